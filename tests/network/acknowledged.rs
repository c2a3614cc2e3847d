//! Answers that acknowledge what was never stored.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmirror::blame::{Blame, Blamed};
use logmirror::mirror::{Event, Mirror, MirrorError, Place, Progress, run};

use crate::forger::Forger;
use crate::service;
use crate::support::frames::FrameLog;
use crate::support::log::{commits, header};
use crate::support::service::{PATIENCE, Service};

const COMMITS: u64 = 20;

fn is_append(line: &str) -> bool {
    line.starts_with("POST ") && line.contains("/commits")
}

/// The answer to an append that says that all before `end` is durable.
fn acknowledged(end: u64, live: bool) -> String {
    let line = if live { format!("{{\"durable\":{end}}}\n") } else { String::new() };
    format!("{line}{{\"next\":{end},\"durable\":{end},\"appended\":1,\"skipped\":0}}\n")
}

/// A directory with one segment of so many commits.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let stream = [header(), commits(0, COMMITS, 100, 0)].concat();
    std::fs::write(dir.path().join(format!("{:020}.stdb.log", 0)), stream).unwrap();
    dir
}

/// Mirrors `source` to a log through something that answers the first `count` requests that are `forged`, and what was retried.
fn push(
    service: &Service,
    (source, log): (&Path, &str),
    mut forged: impl FnMut(&str) -> Option<String> + Send + 'static,
    count: usize,
) -> (Result<Progress, MirrorError>, Vec<String>) {
    let mut left = count;
    let forger = Forger::start(service.address, move |line| {
        let answer = (left > 0).then(|| forged(line)).flatten();
        left -= usize::from(answer.is_some());
        answer
    });
    let mirror = Mirror::new(Place::Dir(source.into()), Place::Url(forger.url(log)));
    let mut retries = Vec::new();
    let told = |event| {
        if let Event::Retrying { error, .. } = event {
            retries.push(error);
        }
    };
    let pushed = service.runtime.block_on(async { tokio::time::timeout(PATIENCE, run(&mirror, told)).await });
    (pushed.expect("a push must not hang"), retries)
}

/// The end of all that is sent, one more, and the largest number; in the answer of a stream with and without a line before the last.
fn answers() -> impl Iterator<Item = (u64, bool)> {
    [COMMITS, COMMITS + 1, u64::MAX].into_iter().flat_map(|end| [(end, false), (end, true)])
}

/// Whether an error says that an acknowledgement was not believed: the log does not confirm it, or it came before the end of the
/// request, as it may.
fn is_disbelieved(error: &str) -> bool {
    error.contains("were acknowledged") || error.contains("ended its answer")
}

#[test]
fn a_push_whose_acknowledgement_the_log_does_not_confirm_is_made_again() {
    for (end, live) in answers() {
        let (service, source) = (service(|_| {}), source());
        let forged = move |line: &str| is_append(line).then(|| acknowledged(end, live));
        let (pushed, retries) = push(&service, (source.path(), "app"), forged, 1);
        assert_eq!(pushed.unwrap().durable.0, COMMITS, "{end} {live}");
        assert_eq!(service.status("app")["durable"], COMMITS, "{end} {live}");
        assert!(retries.iter().any(|error| is_disbelieved(error)), "{end} {live}: {retries:?}");
    }
}

#[test]
fn a_push_whose_acknowledgements_the_log_never_confirms_is_an_error_of_the_data() {
    for (end, live) in answers() {
        let (service, source) = (service(|_| {}), source());
        let forged = move |line: &str| is_append(line).then(|| acknowledged(end, live));
        let (pushed, _) = push(&service, (source.path(), "app"), forged, usize::MAX);
        let error = pushed.unwrap_err();
        let text = error.to_string();
        assert!(is_disbelieved(&text), "{end} {live}: {text}");
        assert!(service.status("app")["durable"] == 0, "{end} {live}");
        if error.blame() == Blame::Data {
            assert!(text.contains(&format!("up to offset {end} were acknowledged")), "{text}");
            assert!(text.contains("the log is durable up to 0"), "{text}");
        }
    }
}

#[test]
fn a_base_is_there_only_when_the_status_of_the_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in FrameLog::new(4096, false).with_base(30).commit(&[2, 3], 30).files(&[]) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    for count in [1, usize::MAX] {
        let service = service(|_| {});
        assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
        let status = service.get("/logs/db").text();
        let forged =
            move |line: &str| (line.starts_with("PUT ") && line.contains("/generations/")).then(|| status.clone());
        let (pushed, retries) = push(&service, (dir.path(), "db"), forged, count);
        if count == 1 {
            assert_eq!(pushed.unwrap().durable.0, 3);
            assert_eq!(service.get("/logs/db/base").body, crate::base(30));
            assert!(
                retries.iter().any(|error| error.contains("the base of generation 1 was acknowledged")),
                "{retries:?}"
            );
        } else {
            let error = pushed.unwrap_err();
            assert_eq!(error.blame(), Blame::Data, "{error}");
            assert_eq!(service.status("db")["durable"], 1, "no frame follows a base that is not there");
        }
    }
}

#[test]
fn a_follower_believes_no_acknowledgement_of_more_than_it_sent() {
    let (service, source) = (service(|_| {}), source());
    let forged = Arc::new(AtomicUsize::new(0));
    let count = forged.clone();
    let forger = Forger::start(service.address, move |line| {
        let is_first = is_append(line) && count.fetch_add(1, Ordering::Relaxed) == 0;
        is_first.then(|| acknowledged(u64::MAX, true))
    });
    let mirror =
        Mirror { follow: true, ..Mirror::new(Place::Dir(source.path().into()), Place::Url(forger.url("app"))) };
    let retries = Mutex::new(Vec::new());
    let told = |event| {
        if let Event::Retrying { error, .. } = event {
            retries.lock().unwrap().push(error);
        }
    };
    service.runtime.block_on(async {
        let client = service.client("app");
        let stored = async {
            while client.status().await.unwrap().durable.unwrap().0 < COMMITS {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            ended = run(&mirror, told) => panic!("it ended: {ended:?}"),
            stored = tokio::time::timeout(PATIENCE, stored) => stored.expect("all of it is stored"),
        }
    });
    let retries = retries.into_inner().unwrap();
    assert!(retries.iter().any(|error| error.contains("acknowledged")), "{retries:?}");
}
