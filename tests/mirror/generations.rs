//! WAL logs: the base comes before the frames, and generations one after the other.

use std::path::Path;

use futures::TryStreamExt;
use logmirror::client::Client;
use logmirror::format::LogFormat;
use logmirror::offset::{Generation, Offset};

use crate::support::frames::FrameLog;
use crate::support::process::{Mirror, Service, arg, mirror, until};

/// What a log holds of a generation: base and raw stream.
fn generation(service: &Service, client: &Client, generation: u64) -> (Vec<u8>, Vec<u8>) {
    let generation = Generation(generation);
    service.call(async {
        let base = client.base(generation).await.unwrap();
        let commits = client.read_of(Some(generation), Offset(1), None, false).await.unwrap();
        let all = (base.map_ok(Vec::from).try_concat().await, commits.map_ok(Vec::from).try_concat().await);
        (all.0.unwrap(), all.1.unwrap())
    })
}

/// Some transactions that write all of a small database; each number makes another log.
fn history(number: u32) -> FrameLog {
    let mut log = FrameLog::new(4096, false);
    log.header.salts[1] = number;
    log.chain = log.header.seed();
    for at in 0..number + 3 {
        log = log.commit(&[1, 2, 3 + at % 2], 4);
    }
    log.commit(&[1, 2, 3, 4], 4)
}

fn store(files: &std::collections::BTreeMap<String, Vec<u8>>, dir: &Path) {
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn a_follower_goes_through_generations_as_they_end() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, sink) = (service.client("source"), service.client("sink"));
    service.call(source.create(LogFormat::Wal, None)).unwrap();
    let follower = Mirror::start(service.url("source"), service.url("sink"), &["--follow"]);
    follower.wait_for("the first generation", |line| line["event"] == "started");
    for number in 1..=4 {
        let log = history(number);
        service.call(source.append(None, log.stream(&[]))).unwrap();
        if number == 1 {
            // A sink that begins later begins with the generation that is the current one then.
            until("the follower has begun", || service.call(sink.find()).unwrap());
        }
        if number < 4 {
            let outcome = service.call(source.checkpoint(false)).unwrap();
            assert_eq!((outcome.done, outcome.frames), (true, log.frames.len() as u64));
        }
    }
    let end = history(4).frames.len() as u64 + 1;
    service.call(async {
        // The follower says of each generation only how far it is.
        loop {
            let status = sink.find().await.unwrap();
            if status
                .is_some_and(|status| (status.generation, status.durable) == (Some(Generation(4)), Some(Offset(end))))
            {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
    follower.terminate();
    for number in 1..=4 {
        assert_eq!(generation(&service, &source, number), generation(&service, &sink, number), "generation {number}");
    }
    // Each base is what the generation before made.
    let third = FrameLog { base: generation(&service, &sink, 3).0, ..history(3) };
    assert_eq!(generation(&service, &sink, 4).0, third.state(third.frames.len() as u64));
}

#[test]
fn a_wal_directory_goes_through_a_service_and_comes_back_with_its_base() {
    let (data, from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let log = history(5).with_base(4);
    let cuts = [log.commits()[1], log.commits()[4]];
    store(&log.files(&cuts), from.path());
    let there = mirror(arg(from.path()), service.url("app"), &[]);
    assert_eq!(there.last("done")["durable"], log.frames.len() as u64 + 1);
    let back = mirror(service.url("app"), arg(to.path()), &[]);
    assert_eq!(back.last("done")["durable"], log.frames.len() as u64 + 1);
    for (name, bytes) in log.files(&cuts) {
        assert_eq!(std::fs::read(to.path().join(&name)).unwrap(), bytes, "{name}");
    }
    // More of the same is resumed, and another history is refused.
    let longer = log.clone().commit(&[2, 3], 4);
    store(&longer.files(&cuts), from.path());
    assert_eq!(mirror(arg(from.path()), service.url("app"), &[]).last("done")["commits"], 1);
    let other = tempfile::tempdir().unwrap();
    store(&history(6).with_base(4).files(&[]), other.path());
    let refused = mirror(arg(other.path()), service.url("app"), &[]);
    assert!(refused.error().contains("fork"), "{refused:?}");
    // A sink that is in a later generation than its source is not where it came from.
    service.call(service.client("app").checkpoint(false)).unwrap();
    let refused = mirror(arg(from.path()), service.url("app"), &[]);
    assert!(refused.error().contains("the sink is in generation 2"), "{refused:?}");
}

#[test]
fn a_directory_is_completed_with_its_generation_and_refuses_the_next_one_as_that() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(LogFormat::Wal, None)).unwrap();
    let log = history(1);
    service.call(client.append(None, log.stream(&[]))).unwrap();
    let end = log.frames.len() as u64 + 1;
    assert_eq!(mirror(service.url("app"), arg(to.path()), &[]).last("done")["durable"], end);
    let longer = log.clone().commit(&[2, 3], 4);
    service.call(client.append(None, longer.stream(&[]))).unwrap();
    service.call(client.checkpoint(false)).unwrap();
    // Shorter and longer than what the directory holds.
    for number in [1, 9] {
        service.call(client.append(None, history(number).stream(&[]))).unwrap_or_else(|error| panic!("{error}"));
        let refused = mirror(service.url("app"), arg(to.path()), &[]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.error().contains("holds another generation"), "{refused:?}");
        let held = std::fs::read(to.path().join("00000000000000000001.wal")).unwrap();
        assert_eq!(held, longer.stream(&[]), "the rest of its own generation is there");
        service.call(client.checkpoint(false)).unwrap();
    }
}

#[test]
fn a_generation_after_the_last_one_is_refused_and_the_log_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(LogFormat::Wal, None)).unwrap();
    for number in [u64::MAX, 1 << 31] {
        let base = logmirror::format::database::empty(4096);
        let error = service.call(client.start_generation(Generation(number), base)).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }
    service.call(client.append(None, history(1).stream(&[]))).unwrap();
    assert!(service.call(client.checkpoint(false)).unwrap().done);
}
