//! `logmirror mirror` from SQLite databases by the real binary: what arrives opens in the real SQLite with the rows of the
//! source. `verify`, `status` and `inspect` of such databases too.
#![allow(clippy::unwrap_used, reason = "tests")]

mod edges;
mod first_base;
mod live_faults;
mod rolls;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use logmirror::api::LogStatus;
use logmirror::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use logmirror::sqlite::Snapshot;
use serde_json::{Value, json};
use support::commitlog::Draw;
use support::process::{Ended, Mirror, Service, arg, mirror, until};
use support::sqlite::{Sqlite, assert_sound, blob, connect, dump, rows};
use support::{assert_bytes, files, root};
use tempfile::TempDir;

/// Small enough that the logs of the specimens become several segments.
const SEGMENT_BYTES: u64 = 20_000;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// Checks that each database is in order, and that all hold the same. They are changed by that.
#[track_caller]
fn same(databases: &[&Path]) {
    let dumps = databases.iter().map(|path| {
        let db = connect(path);
        assert_sound(&db);
        dump(&db)
    });
    let dumps: Vec<String> = dumps.collect();
    assert!(dumps[0].len() > 10, "{}", dumps[0]);
    dumps.iter().for_each(|dump| assert_bytes(dump.as_bytes(), dumps[0].as_bytes(), "the dump of another"));
}

fn expectations() -> BTreeMap<String, Value> {
    let text = fs::read_to_string(root().join("segments/wal/EXPECT.json")).unwrap();
    let all: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 8);
    all
}

/// A specimen's database and WAL as `app.db` and `app.db-wal` in a directory of their own.
fn copy_of(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    put(name, &app);
    (dir, app)
}

/// The same over what is there.
fn put(name: &str, app: &Path) {
    for suffix in ["", "-wal"] {
        fs::copy(root().join(format!("segments/wal/{name}.db{suffix}")), beside(app, suffix)).unwrap();
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", arg(path)).into()
}

/// A copy of a database and its WAL, to be opened with SQLite.
fn source_in(dir: &Path, app: &Path) -> PathBuf {
    let copy = dir.join("source.db");
    for suffix in ["", "-wal"] {
        if beside(app, suffix).exists() {
            fs::copy(beside(app, suffix), beside(&copy, suffix)).unwrap();
        }
    }
    copy
}

/// Puts the header and the frames of all segments of a generation beside a copy of its base, as whoever has the directory
/// would. The number of segments too.
fn opened_in(dir: &Path, generation: &Path, name: &str) -> (PathBuf, usize) {
    let path = dir.join(name);
    let found = files(generation);
    fs::write(&path, &found["base.db"]).unwrap();
    let segments: Vec<_> = found.iter().filter(|(name, _)| name.ends_with(".wal")).collect();
    let mut wal = Vec::new();
    for (_, bytes) in &segments {
        let cut = if wal.is_empty() { 0 } else { HEADER_LEN };
        wal.extend_from_slice(&bytes[cut..]);
    }
    fs::write(beside(&path, "-wal"), wal).unwrap();
    (path, segments.len())
}

fn logmirror(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.env_remove("LOGMIRROR_TOKEN").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// A service with small segments, and its data.
fn service() -> (TempDir, Service) {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(data.path(), &["--wal-segment-bytes", &SEGMENT_BYTES.to_string()]);
    (data, service)
}

fn status(service: &Service, log: &str) -> LogStatus {
    service.status(&service.client(log)).unwrap().unwrap()
}

/// The generation and the frames of it.
fn stands(service: &Service, log: &str) -> (u64, u64) {
    let status = status(service, log);
    (status.generation.unwrap().0, status.durable.unwrap().0 - 1)
}

fn restored(service: &Service, log: &str, out: &Path) {
    let output = logmirror(&["restore", &service.url(log), arg(out), "--force"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Ended well, with so many commits moved.
#[track_caller]
fn is_done(ended: &Ended, commits: u64) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.last("done")["commits"], commits, "{ended:?}");
}

#[track_caller]
fn is_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for words in words {
        assert!(ended.error().contains(words), "{words:?} in {:?}", ended.error());
    }
}

#[test]
fn every_specimen_is_described_as_expected() {
    for (name, expect) in expectations() {
        let (_dir, app) = copy_of(&name);
        for (command, suffix) in [("verify", "-wal"), ("verify", ""), ("status", ""), ("inspect", "-wal")] {
            let path = beside(&app, suffix);
            let output = logmirror(&[command, arg(&path), "--json"]);
            let found: Value = serde_json::from_slice(&output.stdout).unwrap();
            for number in ["page_size", "valid_frames", "committed_frames", "transactions", "db_pages"] {
                assert_eq!(found[number], expect[number], "{command} {name}{suffix}: {number}");
            }
            let damaged = name == "bit-flip";
            assert_eq!(output.status.code(), Some(i32::from(damaged)), "{command} {name}{suffix}");
            let fault = if damaged { (json!(6), json!(20_632)) } else { (Value::Null, Value::Null) };
            assert_eq!((found["fault_frame"].clone(), found["fault_byte"].clone()), fault, "{command} {name}");
            let counted = HEADER_LEN as u64
                + expect["committed_frames"].as_u64().unwrap() * (24 + expect["page_size"].as_u64().unwrap());
            let verdict = match (damaged, expect["bytes"] == counted) {
                (true, _) => "damaged",
                (false, true) => "whole",
                (false, false) => "leftover",
            };
            assert_eq!(found["verdict"], verdict, "{name}");
            let words = logmirror(&[command, arg(&path)]);
            assert_eq!(words.status.code(), output.status.code());
            assert!(String::from_utf8_lossy(&words.stdout).contains("committed_frames"));
        }
    }
}

#[test]
fn every_specimen_opens_in_sqlite_with_its_rows_wherever_it_was_mirrored_to() {
    let (_data, service) = service();
    let mut several = 0;
    for (name, expect) in expectations() {
        let (dir, app) = copy_of(&name);
        let before = files(dir.path());
        let (direct, pulled) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let url = service.url(&name);
        for sink in [url.as_str(), arg(direct.path())] {
            for (source, again) in [(app.clone(), false), (app.clone(), true), (beside(&app, "-wal"), true)] {
                let ended = mirror(arg(&source), sink, &[]);
                let commits = if again { &json!(0) } else { &expect["transactions"] };
                if name == "bit-flip" {
                    is_refused(&ended, 1, &["frame 6 at byte 20632"]);
                    assert_eq!(&ended.last("failed")["commits"], commits);
                } else {
                    is_done(&ended, commits.as_u64().unwrap());
                }
            }
        }
        assert_eq!(files(dir.path()), before, "a source is only read");
        assert_eq!(stands(&service, &name), (1, expect["committed_frames"].as_u64().unwrap()));
        is_done(&mirror(&url, arg(pulled.path()), &[]), expect["transactions"].as_u64().unwrap());

        let work = tempfile::tempdir().unwrap();
        let source = source_in(work.path(), &app);
        let (of_service, segments) = opened_in(work.path(), &service.segments_of(&name), "service.db");
        let (of_dir, _) = opened_in(work.path(), direct.path(), "direct.db");
        let (of_pull, _) = opened_in(work.path(), pulled.path(), "pulled.db");
        assert_eq!(fs::read(beside(&of_service, "-wal")).unwrap(), fs::read(beside(&of_dir, "-wal")).unwrap());
        assert_eq!(fs::read(beside(&of_service, "-wal")).unwrap(), fs::read(beside(&of_pull, "-wal")).unwrap());
        let out = work.path().join("restored.db");
        restored(&service, &name, &out);
        same(&[&source, &of_service, &of_dir, &of_pull, &out]);
        several += usize::from(segments > 1);
    }
    assert!(several >= 5, "{several} specimens in more than one segment");
}

#[test]
fn only_new_frames_travel_and_a_source_that_ends_earlier_is_refused() {
    let (_data, service) = service();
    let (url, dir) = (service.url("app"), tempfile::tempdir().unwrap());
    let (_shorter, shorter) = copy_of("unfinished");
    let (_longer, longer) = copy_of("plain");
    for sink in [url.as_str(), arg(dir.path())] {
        is_done(&mirror(arg(&shorter), sink, &[]), 20);
        // The same log with its last transaction; by way of the WAL without its database, which is enough to go on.
        let alone = tempfile::tempdir().unwrap();
        let wal = alone.path().join("app.db-wal");
        fs::copy(beside(&longer, "-wal"), &wal).unwrap();
        is_done(&mirror(arg(&wal), sink, &[]), 1);
        is_done(&mirror(arg(&longer), sink, &[]), 0);
        is_refused(&mirror(arg(&shorter), sink, &[]), 1, &["the source ends at offset 45", "51"]);
        let (_damaged, damaged) = copy_of("bit-flip");
        is_refused(&mirror(arg(&damaged), sink, &[]), 1, &["frame 6 at byte 20632"]);
        // Another page in the last frame, with sums that fit.
        let mut wal = fs::read(beside(&longer, "-wal")).unwrap();
        let header = WalHeader::decode(wal.first_chunk().unwrap()).unwrap();
        let frame_len = header.frame_len() as usize;
        let last = wal.len() - frame_len;
        let before = FrameHeader::decode(wal[last - frame_len..].first_chunk().unwrap()).chain;
        let claim = FrameHeader::decode(wal[last..].first_chunk().unwrap());
        wal[last + FRAME_HEADER_LEN + 4000] ^= 1;
        let (head, _) = header.frame(before, claim.page, claim.size, &wal[last + FRAME_HEADER_LEN..]);
        wal[last..last + FRAME_HEADER_LEN].copy_from_slice(&head);
        let (_other, other) = copy_of("plain");
        fs::write(beside(&other, "-wal"), wal).unwrap();
        is_refused(&mirror(arg(&other), sink, &[]), 1, &["fork", "offset 50"]);
    }
    assert_eq!(stands(&service, "app"), (1, 50));
}

#[test]
fn a_wal_that_was_started_anew_unseen_is_one_transaction_of_the_pages_that_differ() {
    let (_data, service) = service();
    let (url, dir) = (service.url("app"), tempfile::tempdir().unwrap());
    let (_dir, app) = copy_of("plain");
    let work = tempfile::tempdir().unwrap();
    for sink in [url.as_str(), arg(dir.path())] {
        put("plain", &app);
        is_done(&mirror(arg(&app), sink, &[]), 21);
        put("restarted", &app);
        let compared = mirror(arg(&app), sink, &[]);
        is_done(&compared, 1);
        assert!(compared.last("compared")["pages"].as_u64().unwrap() > 0, "{compared:?}");
        is_done(&mirror(arg(&app), sink, &[]), 0);
    }
    assert_eq!(stands(&service, "app").0, 1);
    let (source, out) = (source_in(work.path(), &app), work.path().join("out.db"));
    restored(&service, "app", &out);
    let (of_dir, _) = opened_in(work.path(), dir.path(), "direct.db");
    same(&[&source, &out, &of_dir]);
    // What was before is still there.
    let (_plain, plain) = copy_of("plain");
    let out = work.path().join("first.db");
    let output = logmirror(&["restore", &url, arg(&out), "--to", "50"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let first = work.path().join("first");
    fs::create_dir(&first).unwrap();
    same(&[&source_in(&first, &plain), &out]);
}

#[test]
fn another_database_does_not_take_a_log_over_without_a_word() {
    let (_data, service) = service();
    let url = service.url("app");
    let (_dir, app) = copy_of("plain");
    is_done(&mirror(arg(&app), &url, &[]), 21);
    let source = status(&service, "app").source.unwrap();
    assert!(source.identity.ends_with(arg(&fs::canonicalize(&app).unwrap())), "{source:?}");
    let other_dir = tempfile::tempdir().unwrap();
    let other = other_dir.path().join("other.db");
    let mut sqlite = Sqlite::open(&other);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE o (x)", "INSERT INTO o VALUES ('other')"]);
    let before = stands(&service, "app");
    let refused = mirror(arg(&other), &url, &[]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.error().contains("is fed from") && refused.error().contains(arg(&app)), "{}", refused.error());
    assert_eq!(
        (stands(&service, "app"), status(&service, "app").source),
        (before, Some(source)),
        "nothing was changed"
    );
    // Rows that were folded into a base are no less acknowledged.
    let rolled = logmirror(&["checkpoint", &url]);
    assert_eq!(rolled.status.code(), Some(0), "{rolled:?}");
    assert_ne!(mirror(arg(&other), &url, &[]).code, Some(0));
    assert_eq!(stands(&service, "app"), (2, 0));
    // Another copy of it holds the same pages, and may.
    let (_copy, copy) = copy_of("plain");
    is_done(&mirror(arg(&copy), &url, &[]), 0);
    is_done(&mirror(arg(&other), &url, &["--adopt"]), 2);
    assert_eq!(stands(&service, "app").0, 3);
    let (work, out) = (tempfile::tempdir().unwrap(), other_dir.path().join("out.db"));
    restored(&service, "app", &out);
    same(&[&source_in(work.path(), &other), &out]);
}

#[test]
fn a_wal_alone_makes_a_log_only_if_its_first_transaction_has_every_page() {
    let (_data, service) = service();
    let dir = tempfile::tempdir().unwrap();
    let wal = dir.path().join("app.db-wal");
    fs::copy(root().join("segments/wal/restarted.db-wal"), &wal).unwrap();
    let refused = mirror(arg(&wal), service.url("lacking"), &[]);
    is_refused(&refused, 2, &["alone", "give the database file"]);
    assert_eq!(stands(&service, "lacking"), (1, 0));
    // One whose first transaction writes its pages, as that of a new database does.
    let header = WalHeader { big_endian: true, page_size: 1024, sequence: 0, salts: [7, 9] };
    let page = logmirror::format::database::empty(1024);
    let (head, _) = header.frame(header.seed(), 1, 1, &page);
    fs::write(&wal, [&header.encode()[..], &head, &page].concat()).unwrap();
    is_done(&mirror(arg(&wal), service.url("whole"), &[]), 1);
    let out = dir.path().join("out.db");
    restored(&service, "whole", &out);
    assert_eq!(fs::read(&out).unwrap(), page);
    assert_ne!(Chain::default(), header.seed());
}

#[test]
fn a_database_that_was_checkpointed_and_closed_goes_on_in_the_same_generation() {
    let (_data, service) = service();
    let url = service.url("app");
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let work = tempfile::tempdir().unwrap();
    let compare = |number: u64| {
        let at = work.path().join(number.to_string());
        fs::create_dir(&at).unwrap();
        let out = at.join("out.db");
        restored(&service, "app", &out);
        same(&[&source_in(&at, &app), &out]);
    };
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (randomblob(9000))"]);
    is_done(&mirror(arg(&app), &url, &[]), 2);
    compare(1);
    sqlite.close();
    assert!(!beside(&app, "-wal").exists());
    is_done(&mirror(arg(&app), &url, &[]), 0);
    assert_eq!(stands(&service, "app").0, 1, "all that was checkpointed had been mirrored");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["INSERT INTO t VALUES ('unseen')"]);
    sqlite.close();
    for commits in [1, 0] {
        is_done(&mirror(arg(&app), &url, &[]), commits);
        assert_eq!(stands(&service, "app").0, 1);
    }
    compare(2);
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["INSERT INTO t VALUES ('seen')"]);
    is_done(&mirror(arg(&app), &url, &[]), 1);
    assert_eq!(stands(&service, "app").0, 1);
    compare(3);
}

#[test]
fn errors_say_who_is_to_do_what() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start_with(data.path(), &["--token", "secret"]);
    let (dir, app) = copy_of("plain");
    let url = service.url("app");
    is_refused(&mirror(arg(&app), &url, &[]), 2, &["401"]);
    is_refused(&mirror(arg(&app), &url, &["--token", "wrong"]), 2, &["401"]);
    is_done(&mirror(arg(&app), &url, &["--token", "secret"]), 21);
    let text = dir.path().join("notes.txt");
    fs::write(&text, "not a database, but longer than the header of one would be: ".repeat(4)).unwrap();
    is_refused(&mirror(arg(&text), &url, &["--token", "secret"]), 1, &["neither a directory"]);
    let wal = dir.path().join("notes.txt-wal");
    fs::write(&wal, "").unwrap();
    is_refused(&mirror(arg(&wal), &url, &["--token", "secret"]), 1, &["not a SQLite database"]);
    let nothing = dir.path().join("nothing.db-wal");
    is_refused(&mirror(arg(&nothing), &url, &["--token", "secret"]), 2, &["nothing.db"]);
}

/// Opens the database for [`write`].
fn writer(app: &Path) -> Sqlite {
    let mut sqlite = Sqlite::open_within(app, 30);
    sqlite.run(&[
        "PRAGMA journal_mode = WAL",
        "PRAGMA wal_autocheckpoint = 0",
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)",
    ]);
    sqlite
}

/// So many commits.
fn write(sqlite: &mut Sqlite, draw: &mut Draw, commits: u32) {
    for _ in 0..commits {
        let rows = (0..1 + draw.below(4)).map(|_| format!("(randomblob({}))", draw.below(4000))).collect::<Vec<_>>();
        sqlite.rows(&format!("INSERT INTO t (x) VALUES {}", rows.join(", ")));
    }
}

/// Waits until the log holds what the database does, which nobody writes meanwhile.
fn caught_up(service: &Service, app: &Path) {
    let work = tempfile::tempdir().unwrap();
    let content = dump(&connect(&source_in(work.path(), app)));
    let out = work.path().join("out.db");
    until("the mirror to catch up", || {
        let output = logmirror(&["restore", &service.url("app"), arg(&out), "--force"]);
        (output.status.success() && dump(&connect(&out)) == content).then_some(())
    });
}

#[test]
fn a_follower_goes_through_every_reset_of_the_wal_without_missing_a_commit() {
    let (_data, service) = service();
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let (mut writer, mut draw) = (writer(&app), Draw(7));
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    // From here on it holds the locks: what was before is in the base or in the WAL.
    caught_up(&service, &app);
    write(&mut writer, &mut draw, 1);
    caught_up(&service, &app);
    let before = frames_written(&app);
    let (generation, start) = stands(&service, "app");
    let mut written = 0;
    for _ in 0..6 {
        let frames = frames_written(&app);
        write(&mut writer, &mut draw, 40);
        written += frames_written(&app) - if written == 0 { before } else { frames };
        // The next commit starts the WAL from its beginning, as soon as the follower has all of it.
        until("the checkpoint", || (writer.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0).then_some(()));
    }
    write(&mut writer, &mut draw, 25);
    written += frames_written(&app);
    caught_up(&service, &app);
    assert_eq!(stands(&service, "app"), (generation, start + written), "each frame is there once");
    let work = tempfile::tempdir().unwrap();
    let (source, out) = (source_in(work.path(), &app), work.path().join("out.db"));
    restored(&service, "app", &out);
    same(&[&source, &out]);
    // Closed, the database is as the log has it.
    writer.close();
    let ended = follower.interrupt();
    assert_eq!(ended.code, Some(0));
    assert!(ended.lines.iter().all(|line| line["event"] != "compared"), "nothing was missed: {ended:?}");
    is_done(&mirror(arg(&app), service.url("app"), &[]), 0);
    assert_eq!(stands(&service, "app"), (generation, start + written));
}

/// Frames of the WAL that count.
fn frames_written(app: &Path) -> u64 {
    Snapshot::open(app).unwrap().frames()
}

/// Writes the same rows into two tables, checkpoints in every way, closes and opens, and waits for nobody, until it is
/// stopped. Returns with the database open.
fn write_freely(app: &Path, seed: u64, stop: &AtomicBool, ready: &mpsc::Sender<()>) -> Sqlite {
    let (mut draw, mut sqlite) = (Draw(seed), Sqlite::open_within(app, 30));
    let connected = ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "PRAGMA wal_autocheckpoint = 40"];
    sqlite.run(&connected);
    for table in ["a", "b"] {
        sqlite.rows(&format!("CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, x)"));
    }
    ready.send(()).unwrap();
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let bytes = draw.below(6000);
        let content = blob(&mut draw, bytes);
        let mut sql = "BEGIN IMMEDIATE;".to_owned();
        for table in ["a", "b"] {
            sql += &format!("INSERT INTO {table} (x) VALUES ({content});");
            if n > 300 {
                sql += &format!("DELETE FROM {table} WHERE id = (SELECT min(id) FROM {table});");
            }
        }
        sqlite.rows(&(sql + ["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"][draw.below(4) as usize]));
        if n % 97 == 0 {
            let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][draw.below(4) as usize];
            sqlite.rows(&format!("PRAGMA wal_checkpoint({kind})"));
        }
        if n % 211 == 0 {
            sqlite.reopen();
            sqlite.run(&connected);
        }
    }
    sqlite.run(&["INSERT INTO a (x) VALUES ('last')", "INSERT INTO b (x) VALUES ('last')"]);
    sqlite
}

/// The last row of both tables, which have the same rows up to one.
fn last_row(database: &Path) -> u64 {
    let db = connect(database);
    assert_sound(&db);
    let last = rows(&db, "SELECT coalesce(max(id), 0) FROM a UNION ALL SELECT coalesce(max(id), 0) FROM b").unwrap();
    let [a, b] = [0, 1].map(|at: usize| last[at][0].as_u64().unwrap());
    assert!(a.abs_diff(b) <= 1, "{a} and {b}");
    b
}

#[test]
fn every_commit_of_a_database_that_waits_for_nobody_is_sound() {
    let (_data, service) = service();
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let seed = support::commitlog::seed();
    let (stop, (ready, is_ready)) = (Arc::<AtomicBool>::default(), mpsc::channel());
    let writer = std::thread::spawn({
        let (app, stop) = (app.clone(), stop.clone());
        move || write_freely(&app, seed, &stop, &ready)
    });
    is_ready.recv().unwrap();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    let mut resets = 0;
    let mut salts = None;
    until("five resets", || {
        let source = service.status(&service.client("app")).unwrap()?.source?;
        resets += u32::from(salts.replace(source.salts) != Some(source.salts));
        (resets > 5).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    let writer = writer.join().unwrap();
    caught_up(&service, &app);
    let (generation, frames) = stands(&service, "app");
    assert_eq!(generation, 1);
    let work = tempfile::tempdir().unwrap();
    let (source, out) = (source_in(work.path(), &app), work.path().join("out.db"));
    restored(&service, "app", &out);
    same(&[&source, &out]);
    let (mut before, mut tried) = (0, 0);
    // The last one ends a transaction.
    for frame in (frames / 40..frames).step_by((frames / 40).max(1) as usize).chain([frames]) {
        let out = work.path().join(format!("{frame}.db"));
        let output = logmirror(&["restore", &service.url("app"), arg(&out), "--to", &frame.to_string()]);
        // Not every frame ends a transaction.
        if output.status.code() == Some(0) {
            let rows = last_row(&out);
            assert!(rows >= before, "frame {frame} goes back from {before} to {rows}, seed {seed}");
            (before, tried) = (rows, tried + 1);
        }
    }
    eprintln!("{frames} frames, {before} rows, {tried} restored");
    assert!(tried > 0);
    assert_eq!(follower.interrupt().code, Some(0));
    drop(writer);
}
