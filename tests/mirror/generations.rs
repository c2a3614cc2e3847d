//! WAL logs: the base comes before the frames, and generations one after the other.

use std::path::Path;

use futures::TryStreamExt;
use logmirror::api::{CheckpointPolicy, LogSource};
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
pub(crate) fn history(number: u32) -> FrameLog {
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
    service.call(service.client("app").promote()).unwrap();
    service.call(service.client("app").checkpoint(false)).unwrap();
    let refused = mirror(arg(from.path()), service.url("app"), &["--adopt"]);
    assert!(refused.error().contains("the sink is in generation 2"), "{refused:?}");
}

/// The database that `restore` makes of a log or a directory, as of now.
pub(crate) fn restored(place: impl AsRef<str>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let restored = Mirror::command(&["restore", place.as_ref(), arg(&out), "--json"]).ended();
    assert_eq!(restored.code, Some(0), "{restored:?}");
    std::fs::read(out).unwrap()
}

/// All names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

/// That `dir` holds what the log holds, whole, and says so.
fn is_current(service: &Service, client: &Client, dir: &Path) {
    assert!(restored(arg(dir)) == restored(client.url()), "{} is not what the log holds", dir.display());
    let status = service.call(client.status()).unwrap();
    let here = Mirror::command(&["status", arg(dir), "--json"]).ended();
    let said = &here.lines[0];
    assert_eq!(said["generation"], status.generation.unwrap().0, "{here:?}");
    assert_eq!((&said["format"], &said["next"]), (&"wal".into(), &status.durable.unwrap().0.into()), "{here:?}");
    let verified = Mirror::command(&["verify", arg(dir), "--json"]).ended();
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn a_directory_goes_on_with_the_generations_of_its_source_also_one_without_frames() {
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
    // Without a frame, then with fewer and with more than the directory held.
    let done = mirror(service.url("app"), arg(to.path()), &[]);
    assert_eq!((done.code, &done.last("done")["durable"]), (Some(0), &1.into()), "{done:?}");
    is_current(&service, &client, to.path());
    for number in [1, 9] {
        service.call(client.append(None, history(number).stream(&[]))).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(mirror(service.url("app"), arg(to.path()), &[]).code, Some(0));
        is_current(&service, &client, to.path());
        service.call(client.checkpoint(false)).unwrap();
    }
    // It holds one generation, and nothing is left of those before.
    assert_eq!(mirror(service.url("app"), arg(to.path()), &[]).code, Some(0));
    is_current(&service, &client, to.path());
    assert_eq!(names(to.path()), ["generation-0000000004"]);
}

#[test]
fn a_directory_that_was_away_for_several_generations_skips_them_also_when_they_were_deleted() {
    for keep in [None, Some(1)] {
        let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let service = Service::start(data.path());
        let client = service.client("app");
        service.call(client.create(LogFormat::Wal, None)).unwrap();
        if let Some(keep) = keep {
            let policy = CheckpointPolicy::Roll { frames: None, bytes: None, seconds: Some(1 << 30), keep };
            service.call(client.set_checkpoint(policy)).unwrap();
        }
        for round in 0..3 {
            service.call(client.append(None, history(2).stream(&[]))).unwrap();
            assert_eq!(mirror(service.url("app"), arg(to.path()), &[]).code, Some(0));
            is_current(&service, &client, to.path());
            for number in [round + 3, round + 4] {
                service.call(client.checkpoint(false)).unwrap();
                service.call(client.append(None, history(number).stream(&[]))).unwrap();
            }
            service.call(client.checkpoint(false)).unwrap();
            if keep.is_some() {
                let gone = service.call(client.status_of(Generation(1))).unwrap_err();
                assert!(gone.to_string().contains("no longer here"), "{gone}");
            }
        }
        let follower = Mirror::start(service.url("app"), arg(to.path()), &["--follow"]);
        follower.wait_durable(1);
        is_current(&service, &client, to.path());
        follower.terminate();
    }
}

#[test]
fn a_following_directory_goes_through_generations_as_they_end_also_after_it_was_killed() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(LogFormat::Wal, None)).unwrap();
    let mut follower = Mirror::start(client.url(), arg(to.path()), &["--follow"]);
    for number in 1..=8 {
        service.call(client.append(None, history(number).stream(&[]))).unwrap();
        if number % 3 == 0 {
            follower.kill();
            // What a kill leaves is whole, whatever it interrupted.
            let verified = Mirror::command(&["verify", arg(to.path()), "--json"]).ended();
            assert_eq!(verified.code, Some(0), "{verified:?}");
            restored(arg(to.path()));
            follower = Mirror::start(client.url(), arg(to.path()), &["--follow"]);
        }
        if number % 2 == 0 {
            until("it holds the same", || (restored(arg(to.path())) == restored(client.url())).then_some(()));
        }
        service.call(client.checkpoint(false)).unwrap();
    }
    until("it is in the last generation", || to.path().join("generation-0000000009/base.sums").exists().then_some(()));
    until("nothing else is left", || (names(to.path()) == ["generation-0000000009"]).then_some(()));
    is_current(&service, &client, to.path());
    let ended = follower.terminate();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_directory_steps_only_if_it_is_a_copy_of_that_log() {
    let (data, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let [(first, log), (second, other)] = two_bases(&service);
    service.call(first.append(None, log.stream(&[]))).unwrap();
    assert_eq!(mirror(first.url(), arg(to.path()), &[]).code, Some(0));
    service.call(second.append(None, other.stream(&[]))).unwrap();
    service.call(second.checkpoint(false)).unwrap();
    let refused = untouched(to.path(), || mirror(second.url(), arg(to.path()), &[]));
    is_refused(&refused, "holds the base of another log");
    // A source that went back is not where it came from either.
    service.call(first.checkpoint(false)).unwrap();
    assert_eq!(mirror(first.url(), arg(to.path()), &[]).code, Some(0));
    let older = tempfile::tempdir().unwrap();
    store(&log.files(&[]), older.path());
    let refused = mirror(arg(older.path()), arg(to.path()), &[]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    is_current(&service, &first, to.path());
}

#[test]
fn a_copy_of_a_directory_steps_with_it() {
    let (data, first, second) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(LogFormat::Wal, None)).unwrap();
    service.call(client.append(None, history(1).stream(&[]))).unwrap();
    assert_eq!(mirror(client.url(), arg(first.path()), &[]).code, Some(0));
    let follower = Mirror::start(arg(first.path()), arg(second.path()), &["--follow"]);
    follower.wait_durable(history(1).frames.len() as u64 + 1);
    let relay = Mirror::start(arg(first.path()), service.url("relay"), &["--follow"]);
    for number in 2..=4 {
        service.call(client.checkpoint(false)).unwrap();
        service.call(client.append(None, history(number).stream(&[]))).unwrap();
        assert_eq!(mirror(client.url(), arg(first.path()), &[]).code, Some(0));
        until("the copy has it", || (restored(arg(second.path())) == restored(client.url())).then_some(()));
        let there = service.client("relay");
        until("the relay is in the same generation", || {
            let status = service.call(there.find()).unwrap()?;
            (status.generation == Some(Generation(u64::from(number)))
                && status.durable == Some(Offset(history(number).frames.len() as u64 + 1)))
            .then_some(())
        });
        assert!(restored(there.url()) == restored(client.url()));
    }
    is_current(&service, &client, second.path());
    follower.terminate();
    relay.terminate();
}

#[test]
fn a_relay_has_the_generations_the_policy_and_the_name_of_its_source() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, relay) = (service.client("source"), service.client("relay"));
    service.call(source.create(LogFormat::Wal, None)).unwrap();
    for number in 1..=3 {
        service.call(source.append(None, history(number).stream(&[]))).unwrap();
        service.call(source.checkpoint(false)).unwrap();
    }
    let policy = |keep| CheckpointPolicy::Roll { frames: None, bytes: None, seconds: Some(1 << 30), keep };
    service.call(source.set_checkpoint(policy(3))).unwrap();
    let with_password = service.url("source").replace("http://", "http://:secret@");
    let done = mirror(with_password, relay.url(), &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let status = service.call(relay.status()).unwrap();
    assert_eq!((status.generation, status.checkpoint), (Some(Generation(4)), Some(policy(3))), "{status:?}");
    assert_eq!(status.source.unwrap().identity, service.url("source"), "without what is secret");
    assert!(restored(relay.url()) == restored(source.url()));
    // None before that was made up.
    let data_of = |name: &str| names(&data.path().join("logs").join(name));
    assert_eq!(data_of("relay"), ["0000000004", "log.json"]);
    // What changes there later is taken over, and so are the next generations.
    service.call(source.set_checkpoint(policy(2))).unwrap();
    for number in 4..=6 {
        service.call(source.append(None, history(number).stream(&[]))).unwrap();
        service.call(source.checkpoint(false)).unwrap();
        assert_eq!(mirror(service.url("source"), relay.url(), &[]).code, Some(0));
        let status = service.call(relay.status()).unwrap();
        assert_eq!((status.generation, status.checkpoint), (Some(Generation(u64::from(number) + 1)), Some(policy(2))));
        assert_eq!(status.source.unwrap().generation, Generation(u64::from(number) + 1));
    }
    // Also where all that it held is gone from its source.
    for number in 7..=9 {
        service.call(source.append(None, history(number).stream(&[]))).unwrap();
        service.call(source.checkpoint(false)).unwrap();
    }
    let done = mirror(service.url("source"), relay.url(), &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(restored(relay.url()) == restored(source.url()));
}

#[test]
fn a_relay_is_never_rolled_over_by_itself() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (source, relay, other) = (service.client("source"), service.client("relay"), service.client("other"));
    let log = history(5);
    for client in [&source, &other] {
        service.call(client.create(LogFormat::Wal, None)).unwrap();
        service.call(client.append(None, log.stream(&[]))).unwrap();
    }
    assert_eq!(mirror(source.url(), relay.url(), &[]).code, Some(0));
    let policy = CheckpointPolicy::Roll { frames: Some(1), bytes: None, seconds: None, keep: 2 };
    for client in [&relay, &other] {
        service.call(client.set_checkpoint(policy)).unwrap();
    }
    // Logs are looked at in the order of their names, so the relay was looked at before the second time.
    for generation in 2..=3 {
        until("the other one is rolled over", || {
            (service.call(other.status()).unwrap().generation == Some(Generation(generation))).then_some(())
        });
        service.call(other.append(None, log.stream(&[]))).unwrap();
    }
    assert_eq!(service.call(relay.status()).unwrap().generation, Some(Generation(1)));
}

#[test]
fn a_log_that_a_database_feeds_becomes_no_relay_without_proof() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let [(source, log), (fed, _)] = two_bases(&service);
    service.call(source.append(None, log.stream(&[]))).unwrap();
    let note = |offset| LogSource {
        identity: "host:/srv/app.db".into(),
        generation: Generation(1),
        offset: Offset(offset),
        salts: [1, 2],
        frames: 0,
        checksum: "0".into(),
        log_checksum: "0".into(),
        awaits_base: false,
    };
    service.call(fed.set_source(&note(1), false)).unwrap();
    for flags in [&[][..], &["--dry-run"]] {
        let refused = mirror(source.url(), fed.url(), flags);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.errors.contains("it is fed from host:/srv/app.db"), "{refused:?}");
    }
    assert_eq!(service.call(fed.status()).unwrap().source, Some(note(1)));
    // The same commits are proof.
    let copy = service.client("copy");
    assert_eq!(mirror(source.url(), copy.url(), &[]).code, Some(0));
    let end = service.call(copy.status()).unwrap().next.unwrap();
    service.call(copy.set_source(&note(end.0), false)).unwrap();
    let again = mirror(source.url(), copy.url(), &[]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(service.call(copy.status()).unwrap().source.unwrap().identity, source.url().as_str());
    // An empty one is taken over by who says so.
    let empty = service.client("empty");
    service.call(empty.create(LogFormat::Wal, None)).unwrap();
    service.call(empty.set_source(&note(1), false)).unwrap();
    is_refused(&mirror(source.url(), empty.url(), &[]), "it is fed from host:/srv/app.db");
    assert_eq!(mirror(source.url(), empty.url(), &["--adopt"]).code, Some(0));
    assert!(restored(empty.url()) == restored(source.url()));
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
