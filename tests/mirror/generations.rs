//! WAL logs: the base comes before the frames, and generations one after the other.

use std::path::Path;

use futures::TryStreamExt;
use logmirror::client::Client;
use logmirror::format::LogFormat;
use logmirror::offset::{Generation, Offset};

use crate::support::frames::FrameLog;
use crate::support::process::{Mirror, Service, arg, mirror, until};
use crate::untouched;

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

/// Two logs of a service with a base each, and no frame.
fn two_bases(service: &Service) -> [(Client, FrameLog); 2] {
    [(1, 4), (2, 5)].map(|(number, pages)| {
        let (client, log) = (service.client(&format!("log-{number}")), history(number).with_base(pages));
        service.call(client.create(LogFormat::Wal, None)).unwrap();
        service.call(client.start_generation(Generation(1), log.base.clone())).unwrap();
        (client, log)
    })
}

fn base_in(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("base.db")).unwrap()
}

fn is_refused(ended: &crate::support::process::Ended, words: &str) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains(words), "{words:?} in {ended:?}");
}

#[test]
fn the_base_of_another_log_is_never_replaced_also_while_there_are_no_frames() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let [(first, log), (second, other)] = two_bases(&service);
    let (to, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    store(&other.files(&[]).into_iter().filter(|(name, _)| name == "base.db").collect(), from.path());
    std::fs::write(from.path().join("00000000000000000001.wal"), []).unwrap();
    assert_eq!(mirror(first.url(), arg(to.path()), &[]).code, Some(0));
    assert!(base_in(to.path()) == log.base);
    for source in [second.url().as_str(), arg(from.path())] {
        for flags in [&[][..], &["--dry-run"]] {
            let refused = untouched(to.path(), || mirror(source, arg(to.path()), flags));
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.errors.contains("holds the base of another log"), "{refused:?}");
        }
    }
    // A service keeps it too, and takes the same one again.
    is_refused(&mirror(arg(from.path()), first.url(), &[]), "holds the base of another log");
    let refused = service.call(first.start_generation(Generation(1), other.base.clone())).unwrap_err();
    assert!(refused.to_string().contains("starts from another base"), "{refused}");
    service.call(first.start_generation(Generation(1), log.base.clone())).unwrap();
    assert!(generation(&service, &first, 1).0 == log.base);
    // Only an operator can say so, and what was there is kept.
    assert_eq!(mirror(second.url(), arg(to.path()), &["--adopt"]).code, Some(0));
    assert!(base_in(to.path()) == other.base);
    assert!(std::fs::read(to.path().join("base.db.aside-1")).unwrap() == log.base);
    // The log that was there before is another one now.
    is_refused(&mirror(first.url(), arg(to.path()), &[]), "holds the base of another log");
}

#[test]
fn a_follower_holds_its_directory_also_while_there_are_no_frames() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let [(first, log), (second, _)] = two_bases(&service);
    let to = tempfile::tempdir().unwrap();
    let follower = Mirror::start(first.url(), arg(to.path()), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    let locked = until("it holds the directory", || {
        let ended = mirror(second.url(), arg(to.path()), &["--adopt"]);
        ended.errors.contains("in use by another writer").then_some(ended)
    });
    assert_eq!(locked.code, Some(3), "{locked:?}");
    service.call(first.append(None, log.stream(&[]))).unwrap();
    follower.wait_durable(log.frames.len() as u64 + 1);
    follower.terminate();
    assert!(base_in(to.path()) == log.base);
    assert!(std::fs::read(to.path().join("00000000000000000001.wal")).unwrap() == log.stream(&[]));
}

#[test]
fn another_log_at_the_same_url_is_told_apart_by_its_base() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut service = Service::start(data.path());
    let [(first, log), (second, other)] = two_bases(&service);
    // With frames, without one in common, and without frames.
    for frames in [true, false] {
        let to = to.path().join(frames.to_string());
        if frames {
            service.call(first.append(None, log.stream(&[]))).unwrap();
            assert_eq!(mirror(first.url(), arg(&to), &[]).last("done")["durable"], log.frames.len() as u64 + 1);
        } else {
            assert_eq!(mirror(second.url(), arg(&to), &[]).code, Some(0));
        }
    }
    service.kill();
    let (one, two) = (data.path().join("logs/log-1"), data.path().join("logs/log-2"));
    std::fs::rename(&one, data.path().join("logs/log-3")).unwrap();
    std::fs::rename(&two, &one).unwrap();
    std::fs::rename(data.path().join("logs/log-3"), &two).unwrap();
    service.restart();
    for (client, held, name) in [(&first, &log, "true"), (&second, &other, "false")] {
        let to = to.path().join(name);
        let refused = untouched(&to, || mirror(client.url(), arg(&to), &[]));
        is_refused(&refused, "holds the base of another log");
        assert_eq!(refused.error().matches("(log ").count(), 2, "both are named: {refused:?}");
        assert!(base_in(&to) == held.base);
    }
}

#[test]
fn the_status_of_a_directory_says_its_format() {
    let dir = tempfile::tempdir().unwrap();
    store(&history(1).files(&[]), dir.path());
    let out =
        std::process::Command::new(env!("CARGO_BIN_EXE_logmirror")).arg("status").arg(dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("format       wal"), "{out:?}");
}
