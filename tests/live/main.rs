//! A source that is being written, a service, and mirrors that follow, as real processes that get killed.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod followers;
mod history;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logmirror::client::Client;
use logmirror::format::name;
use logmirror::offset::BytePos;
use logmirror::repo::FsRepo;
use logmirror::segment::SegmentReader;
use support::commitlog::{Draw, seed};
use support::live_writer::LiveWriter;
use support::process::{Mirror, Service, arg, until};

const RESTARTS: u64 = 20;
const SEGMENT_BYTES_MAX: u64 = 256 << 10;
/// The pace of the source: a database is not always at full speed.
const PACE: Duration = Duration::from_micros(200);

/// A writer at work in a thread of its own.
struct AtWork {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<LiveWriter>,
}

impl AtWork {
    fn start(dir: &Path, seed: u64) -> AtWork {
        let mut writer = LiveWriter::new(dir, Draw(seed), SEGMENT_BYTES_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                writer.step();
                std::thread::sleep(PACE);
            }
            writer.finish();
            writer
        });
        AtWork { stop, thread }
    }

    fn finish(self) -> LiveWriter {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The segments of a directory, uncompressed, up to the lengths that `wanted` has.
fn segments_of(dir: &Path, wanted: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let repo = FsRepo::open(dir).unwrap();
    let read = |name: &String| {
        let mut segment = SegmentReader::open(&repo, name::parse_segment(name).unwrap().1).unwrap();
        let len = wanted.get(name).map_or(segment.len().unwrap(), |wanted| wanted.len() as u64);
        let mut bytes = vec![0; len as usize];
        assert_eq!(segment.read_at(&mut bytes, BytePos(0)).unwrap(), bytes.len(), "{name}");
        (name.clone(), bytes)
    };
    support::segments(dir).keys().map(read).collect()
}

/// Checks that three directories hold what was written, byte for byte: the source what counts of it, the copies nothing
/// else.
fn compare(writer: &LiveWriter, source: &Path, copies: &[&Path]) {
    let wanted = writer.wanted();
    let differing = |found: &BTreeMap<String, Vec<u8>>| -> Vec<String> {
        let names = wanted.keys().chain(found.keys());
        names.filter(|name| wanted.get(*name) != found.get(*name)).cloned().collect()
    };
    assert_eq!(differing(&segments_of(source, wanted)), [""; 0], "in the source");
    for copy in copies {
        assert_eq!(differing(&support::segments(copy)), [""; 0], "in {}", copy.display());
    }
}

/// What was acknowledged, as the service, the mirror that feeds it and the one fed by it say, must never be missing again.
struct Acks {
    client: Client,
    mirrors: [Mirror; 2],
    highest: u64,
    checked: u64,
}

impl Acks {
    /// Looks at what is durable now and returns it with the number of segments.
    fn check(&mut self, service: &Service) -> (u64, u64) {
        let said = self.mirrors.iter().flat_map(Mirror::lines).filter_map(|line| line["durable"].as_u64()).max();
        let highest = self.highest.max(said.unwrap_or(0));
        // A log that is being opened does not say where it is.
        let (durable, segments) = until("the log to be open", || {
            let status = service.status(&self.client).unwrap()?;
            Some((status.durable?.0, status.segments?))
        });
        assert!(durable >= highest, "{highest} was acknowledged, but the log ends at {durable}");
        self.checked += u64::from(durable > self.highest);
        self.highest = durable;
        (durable, segments)
    }
}

#[test]
fn nothing_acknowledged_is_lost_over_twenty_kills_and_three_directories_are_identical() {
    let began = Instant::now();
    let seed = seed();
    let mut draw = Draw(seed);
    let (source, data, copy) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let writer = AtWork::start(source.path(), seed);
    let mut service = Service::start(data.path());
    let url = service.url("x");
    let push = Mirror::start(arg(source.path()), &url, &["--follow"]);
    let client = service.client("x");
    until("the log to be there", || service.status(&client).unwrap());
    let pull = Mirror::start(&url, arg(copy.path()), &["--follow"]);

    let mut acks = Acks { client, mirrors: [push, pull], highest: 0, checked: 0 };
    for restart in 0..RESTARTS {
        let (durable, segments) = acks.check(&service);
        let (ahead, looks) = (draw.within(1..20_000), draw.within(1..200));
        let mut looked = 0;
        match restart % 4 {
            0 => {}
            1 => until("the log to grow", || (acks.check(&service).0 > durable + ahead).then_some(())),
            2 => until("a new segment", || (acks.check(&service).1 > segments).then_some(())),
            _ => until("some looks", || {
                looked += 1;
                acks.check(&service);
                (looked > looks).then_some(())
            }),
        }
        service.kill();
        service.restart();
        acks.client = service.client("x");
    }
    let (durable, _) = acks.check(&service);
    until("the log to grow once more", || (acks.check(&service).0 > durable).then_some(()));
    let writer = writer.finish();
    for mirror in &acks.mirrors {
        mirror.wait_durable(writer.next());
    }
    assert_eq!(acks.check(&service).0, writer.next());

    for mirror in acks.mirrors {
        let ended = mirror.interrupt();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    let segments = service.segments_of("x");
    let (status, said) = service.terminate();
    assert!(status.success(), "{said}");
    compare(&writer, source.path(), &[&segments, copy.path()]);
    let did = writer.did;
    println!(
        "live: restarts {RESTARTS}, commits {}, bytes {}, segments {}, acks checked {}, {} s; {did:?}",
        did.commits,
        did.bytes,
        did.segments,
        acks.checked,
        began.elapsed().as_secs(),
    );
    let rare = [did.halves, did.preallocated, did.torn, did.zero_tails, did.compressed, did.segments];
    assert!(rare.iter().all(|count| *count > 0), "the source was too tame: {did:?}");
}
