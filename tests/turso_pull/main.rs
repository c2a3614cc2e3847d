//! What pulls of the Turso sync protocol promise, against a service in this process.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod generations;
mod hostile;
mod images;
mod journals;
mod pinned;
mod polls;
mod queries;
mod transport;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use logmirror::format::database;
use logmirror::mirror::Settings;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, MemRepo, Repo};
use logmirror::sync::turso::proto::{PageData, PullUpdatesRequest, PullUpdatesResponse, RawEncoding};
use prost::Message;
use roaring::RoaringBitmap;
use support::commitlog::Draw;
use support::frames::{FrameLog, head};
use support::service::{Answer, Service, Setup};
use support::sqlite::{blob, connect, rows};

const PAGE: usize = 4096;
const PULL: &str = "/logs/app/pull-updates";

/// A service with the log `app`, whose segments are a few dozen frames long.
struct Rig {
    service: Service,
}

impl Rig {
    fn new() -> Rig {
        Rig::on(Arc::new(MemRepo::default()))
    }

    fn on(data: Arc<dyn Repo>) -> Rig {
        Rig::with_segments(data, 40)
    }

    /// With segments of so many frames or a few more.
    fn with_segments(data: Arc<dyn Repo>, frames: u64) -> Rig {
        let settings = Settings { wal_segment_bytes: frames * 4120, ..Setup::default().settings };
        let service = Service::start_with(data, Setup { settings, ..Setup::default() });
        if service.get("/logs/app").status == 404 {
            assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
        }
        Rig { service }
    }

    fn in_dir(data: &Path) -> Rig {
        Rig::on(Arc::new(FsRepo::open(data).unwrap()))
    }

    /// A service with this log, its base included.
    fn holding(log: &FrameLog) -> Rig {
        Rig::new().filled(log)
    }

    fn filled(self, log: &FrameLog) -> Rig {
        self.start(1, &log.base);
        self.append(log, 0..log.frames.len());
        self
    }

    /// Starts a generation from a base.
    #[track_caller]
    fn start(&self, generation: u64, base: &[u8]) {
        let answer = self.service.call("PUT", &format!("/logs/app/generations/{generation}"), "", base);
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    /// Appends frames of a log.
    #[track_caller]
    fn append(&self, log: &FrameLog, frames: Range<usize>) {
        let from = frames.start + 1;
        let header: &[u8] = if from == 1 { &log.header.encode() } else { &[] };
        let body = [header, &log.frames[frames].concat()].concat();
        let answer = self.service.append("app", &format!("?from={from}"), &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn roll(&self) {
        let answer = self.service.call("POST", "/logs/app/checkpoint", "", b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn post(&self, body: &[u8]) -> Answer {
        self.service.call("POST", PULL, "", body)
    }

    fn ask(&self, request: &PullUpdatesRequest) -> Answer {
        self.post(&request.encode_to_vec())
    }

    #[track_caller]
    fn pull(&self, request: &PullUpdatesRequest) -> Pulled {
        Pulled::of(&self.ask(request))
    }

    #[track_caller]
    fn bootstrap(&self) -> Pulled {
        self.pull(&PullUpdatesRequest::default())
    }

    #[track_caller]
    fn between(&self, from: &str, to: &str) -> Pulled {
        self.pull(&between(from, to))
    }

    /// The revision of a commit frame of a generation.
    fn revision(&self, generation: u64, frame: u64) -> String {
        let log = self.service.registry.generation("app", Some(logmirror::offset::Generation(generation))).unwrap();
        let sum = log.frame_head(Offset(frame)).unwrap().unwrap().chain.number();
        format!("{generation}:{frame}:{sum:016x}")
    }

    /// What a restore makes of a frame.
    fn restored(&self, generation: u64, frame: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("restored.db");
        let wanted = logmirror::checkpoint::Wanted {
            to: Some(Offset(frame)),
            generation: Some(logmirror::offset::Generation(generation)),
            out: out.clone(),
            overwrite: false,
            plain: false,
        };
        let client = self.service.client("app");
        let restored = logmirror::checkpoint::restore_url(&client, &wanted);
        self.service.runtime.block_on(restored).unwrap();
        std::fs::read(out).unwrap()
    }
}

fn between(from: &str, to: &str) -> PullUpdatesRequest {
    PullUpdatesRequest { client_revision: from.into(), server_revision: to.into(), ..PullUpdatesRequest::default() }
}

fn selector(pages: &RoaringBitmap) -> bytes::Bytes {
    let mut bytes = Vec::new();
    pages.serialize_into(&mut bytes).unwrap();
    bytes.into()
}

/// An answer that was taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pulled {
    revision: String,
    size: u64,
    pages: Vec<(u64, bytes::Bytes)>,
}

impl Pulled {
    /// Fails unless it is a sound answer: each page once, whole, and below the size.
    #[track_caller]
    fn of(answer: &Answer) -> Pulled {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut body = &answer.body[..];
        let PullUpdatesResponse { server_revision, db_size, raw_encoding, stream_kind, protocol } =
            PullUpdatesResponse::decode_length_delimited(&mut body).unwrap();
        assert_eq!((raw_encoding, stream_kind, protocol), (Some(RawEncoding {}), 0, 1));
        let (mut pages, mut seen) = (Vec::new(), BTreeSet::new());
        while !body.is_empty() {
            let page = PageData::decode_length_delimited(&mut body).unwrap();
            assert_eq!(page.encoded_page.len(), PAGE);
            assert!(page.page_id < db_size, "page {} of {db_size}", page.page_id);
            assert!(seen.insert(page.page_id), "page {} comes twice", page.page_id);
            pages.push((page.page_id, page.encoded_page));
        }
        Pulled { revision: server_revision, size: db_size, pages }
    }

    /// What a client that has `database` makes of it. Pages that are new to it and did not come are of no use.
    fn applied(&self, database: &[u8]) -> Vec<u8> {
        let mut made = database.to_vec();
        made.resize(self.size as usize * PAGE, 0xee);
        for (page, content) in &self.pages {
            made[*page as usize * PAGE..][..PAGE].copy_from_slice(content);
        }
        made
    }

    fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.pages.iter().map(|(page, _)| *page).collect();
        ids.sort_unstable();
        ids
    }
}

/// A log with pages of 4096 bytes that starts as every new one does.
fn fresh() -> FrameLog {
    FrameLog { base: database::empty(4096), ..FrameLog::new(4096, false) }
}

/// Frames 1 to 7 in three transactions.
fn short() -> FrameLog {
    fresh().commit(&[1, 2], 2).commit(&[1, 3, 4], 4).commit(&[2, 1], 4)
}

/// What the real SQLite wrote in some 70 transactions: growth, deletes, a shrink by incremental vacuum, growth again, a
/// VACUUM, and more.
fn real() -> FrameLog {
    let dir = tempfile::tempdir().unwrap();
    let (db, mut draw) = (connect(&dir.path().join("a.db")), Draw(7));
    let run = |sql: &str| drop(rows(&db, sql).unwrap());
    run(
        "PRAGMA page_size = 4096; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0",
    );
    run(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB); CREATE INDEX i ON t(a); PRAGMA wal_checkpoint(TRUNCATE)",
    );
    let mut write = |times: u64, count: u64, bytes: u64| {
        for _ in 0..times {
            let mut sql = "BEGIN;".to_owned();
            for _ in 0..count {
                let (a, bytes) = (draw.below(1 << 40), draw.below(bytes));
                sql += &format!("INSERT INTO t(a, b) VALUES ('0.{a}', {});", blob(&mut draw, bytes));
            }
            run(&format!("{sql} UPDATE t SET a = a || 'x' WHERE id % 7 = {}; COMMIT", draw.below(7)));
        }
    };
    write(25, 6, 5000);
    (0..5).for_each(|n| run(&format!("DELETE FROM t WHERE id % 5 = {}", n * 3 % 5)));
    (0..5).for_each(|_| run("PRAGMA incremental_vacuum(9)"));
    write(15, 5, 4000);
    run("DELETE FROM t WHERE id > 60");
    run("VACUUM");
    write(12, 4, 9000);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let log = FrameLog::parse(&read("a.db-wal"), read("a.db"));
    let sizes: Vec<u32> = log.commits().iter().map(|frame| head(&log.frames[*frame as usize - 1]).size).collect();
    assert!(sizes.len() >= 60 && sizes.windows(2).any(|pair| pair[1] < pair[0]), "{sizes:?}");
    log
}
