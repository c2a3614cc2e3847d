//! Slow links: what counts is whether bytes are still received.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use logmirror::mirror::{Event, Mirror, Place, run};

use crate::proxy::{Kind, Proxy};
use crate::service;
use crate::support::log::{commit, commits, header};
use crate::support::service::request;

const SHORT: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(40);

#[test]
fn a_commit_that_takes_longer_than_the_timeout_is_taken_while_it_keeps_the_rate() {
    let service =
        service(|setup| (setup.timeouts.commit, setup.timeouts.min_rate) = (SHORT, NonZeroU64::new(1000).unwrap()));
    let mut wire = service.begin_append("app", "");
    wire.send_chunk(&header());
    let since = Instant::now();
    for piece in commit(0, 0, 1, &[7; 100 * 60]).chunks(200) {
        wire.send_chunk(piece);
        std::thread::sleep(PAUSE);
    }
    wire.send_chunk(b"");
    let answer = wire.answer();
    assert!(since.elapsed() > SHORT * 2);
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &1.into()), "{}", answer.text());
}

#[test]
fn a_sender_that_falls_silent_within_a_commit_is_noticed() {
    let service = service(|setup| setup.timeouts.commit = SHORT);
    let mut wire = service.begin_append("app", "");
    let bytes = commit(0, 0, 1, &[7; 500_000]);
    wire.send_chunk(&[header(), bytes[..400_000].to_vec()].concat());
    let since = Instant::now();
    let answer = wire.answer();
    assert!(since.elapsed() < SHORT * 5, "{:?}", since.elapsed());
    assert_eq!(answer.refusal(), (422, "truncated".to_owned()), "{}", answer.text());
    assert!(answer.text().contains("--min-rate"), "{}", answer.text());
}

#[test]
fn a_base_that_takes_longer_than_the_timeout_is_taken_while_it_keeps_the_rate() {
    let service =
        service(|setup| (setup.timeouts.commit, setup.timeouts.min_rate) = (SHORT, NonZeroU64::new(1000).unwrap()));
    assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
    let base = crate::base(40);
    let mut wire = service.connect();
    let fields = format!("content-length: {}\r\n", base.len());
    wire.send(request("PUT", "/logs/db/generations/2", &fields).as_bytes());
    for piece in base.chunks(base.len().div_ceil(30)) {
        wire.send(piece);
        std::thread::sleep(PAUSE);
    }
    assert_eq!(wire.answer().status, 201);
}

#[test]
fn a_follower_that_was_cut_off_by_a_timeout_tries_again_until_it_succeeds() {
    let service = service(|setup| setup.timeouts.commit = SHORT);
    let source = tempfile::tempdir().unwrap();
    let stream = [header(), commits(0, 1, 9, 0), commits(1, 1, 200_000, 0)].concat();
    std::fs::write(source.path().join(format!("{:020}.stdb.log", 0)), stream).unwrap();
    let proxy = Proxy::start(service.address, Kind::StallsOnce { after: 100_000 });
    let sink = Place::Url(proxy.url("app"));
    let mirror = Mirror { follow: true, ..Mirror::new(Place::Dir(source.path().into()), sink) };
    let mut retries = Vec::new();
    service.runtime.block_on(async {
        let told = |event| {
            if let Event::Retrying { error, .. } = event {
                retries.push(error);
            }
        };
        let mut view = service.registry.get("app").unwrap().watch();
        tokio::select! {
            ended = run(&mirror, told) => panic!("the follower ended: {ended:?}"),
            reached = tokio::time::timeout(Duration::from_secs(30), view.wait_for(|view| view.durable.0 == 2)) => {
                assert!(reached.is_ok_and(|reached| reached.is_ok()), "the commit never arrived");
            }
        }
    });
    assert!(retries.iter().any(|error| error.contains("--commit-timeout")), "{retries:?}");
}
