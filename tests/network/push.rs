//! Pushing through proxies.

use std::path::Path;
use std::time::{Duration, Instant};

use logmirror::limits::{COMMIT_HELD_MAX, FIRST_ACK_WAIT, LIVE_STALL};
use logmirror::mirror::{Event, Mirror, MirrorError, Place, Progress, run};

use crate::proxy::{Kind, Proxy};
use crate::support::assert_bytes;
use crate::support::frames::FrameLog;
use crate::support::log::{commits, header};
use crate::support::service::Service;
use crate::{base, service};

const NGINX: Kind = Kind::Buffers { body_bytes_max: 1 << 20 };

/// A directory with one segment.
fn source(stream: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(segment(dir.path()), stream).unwrap();
    dir
}

fn segment(dir: &Path) -> std::path::PathBuf {
    dir.join(format!("{:020}.stdb.log", 0))
}

/// Mirrors `source` to a log, and what was retried meanwhile.
fn push(service: &Service, source: &Path, url: String) -> (Result<Progress, MirrorError>, Vec<String>) {
    let mirror = Mirror::new(Place::Dir(source.into()), Place::Url(url));
    let mut retries = Vec::new();
    let told = |event| {
        if let Event::Retrying { error, .. } = event {
            retries.push(error);
        }
    };
    let pushed =
        service.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), run(&mirror, told)).await });
    (pushed.expect("a push must not hang"), retries)
}

/// Appends a commit to the source every `pause`, until the service holds `count` of them; the longest time that took after
/// the commit was written, from the second second on.
fn lag(service: &Service, source: &Path, url: String, count: u64, pause: Duration) -> Duration {
    use std::io::Write;
    let mirror = Mirror { follow: true, ..Mirror::new(Place::Dir(source.into()), Place::Url(url)) };
    let path = segment(source);
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        (0..count)
            .map(|offset| {
                file.write_all(&commits(offset, 1, 100, 0)).unwrap();
                let written = Instant::now();
                std::thread::sleep(pause);
                written
            })
            .collect::<Vec<Instant>>()
    });
    let mut durable = Vec::new();
    service.runtime.block_on(async {
        let mut view = service.registry.get("app").unwrap().watch();
        let watching = async {
            while (durable.len() as u64) < count {
                let next = view.wait_for(|view| view.durable.0 > durable.len() as u64).await.unwrap().durable.0;
                durable.resize(next as usize, Instant::now());
            }
        };
        tokio::select! {
            ended = run(&mirror, |_| ()) => panic!("the follower ended: {ended:?}"),
            watched = tokio::time::timeout(Duration::from_secs(60), watching) => watched.expect("a push must not hang"),
        }
    });
    let written = writer.join().unwrap();
    written.iter().zip(&durable).map(|(written, durable)| durable.saturating_duration_since(*written)).max().unwrap()
}

#[test]
fn a_push_through_a_proxy_that_takes_in_requests_whole_and_small_ones_only_ends_well_and_says_so_once() {
    let service = service(|_| {});
    let stream = [header(), commits(0, 40, 200_000, 0)].concat();
    let source = source(&stream);
    let proxy = Proxy::start(service.address, NGINX);
    let (pushed, retries) = push(&service, source.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 40);
    assert_bytes(&service.stream("app"), &stream, "the log");
    assert_eq!(retries.len(), 1, "{retries:?}");
    assert!(
        retries[0].contains("413") && retries[0].contains("fake/1.0") && !retries[0].contains("html"),
        "{retries:?}"
    );
}

#[test]
fn commits_reach_the_service_soon_through_a_proxy_that_takes_in_requests_whole() {
    let service = service(|_| {});
    let source = source(&header());
    let proxy = Proxy::start(service.address, NGINX);
    let lag = lag(&service, source.path(), proxy.url("app"), 12, Duration::from_millis(500));
    assert!(lag < Duration::from_secs(5), "{lag:?}");
    assert!(FIRST_ACK_WAIT < Duration::from_secs(5));
}

#[test]
fn a_commit_larger_than_a_proxy_takes_travels_in_parts() {
    let service = service(|setup| setup.settings.commit_bytes_max = 8 << 20);
    let stream = [header(), commits(0, 2, 3_000_000, 0), commits(2, 1, 10, 0)].concat();
    let source = source(&stream);
    let proxy = Proxy::start(service.address, Kind::Buffers { body_bytes_max: 300_000 });
    let (pushed, _) = push(&service, source.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 3);
    assert_bytes(&service.stream("app"), &stream, "the log");
}

#[test]
fn a_commit_too_large_for_memory_travels_in_parts_through_a_proxy() {
    let service = service(|setup| setup.settings.commit_bytes_max = u64::MAX);
    let large = usize::try_from(COMMIT_HELD_MAX).unwrap() + (1 << 20);
    // It comes with the header of its segment.
    let stream = [header(), commits(0, 1, large, 0), commits(1, 3, 10, 0)].concat();
    let source = source(&stream);
    let proxy = Proxy::start(service.address, NGINX);
    let (pushed, _) = push(&service, source.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 4);
    assert_bytes(&service.stream("app"), &stream, "the log");
}

#[test]
fn headers_and_segments_arrive_as_they_are_in_bounded_requests() {
    let service = service(|_| {});
    let dir = tempfile::tempdir().unwrap();
    let mut stream = Vec::new();
    for start in (0..20).step_by(4) {
        let bytes = [header(), commits(start, 4, 90_000, 0)].concat();
        std::fs::write(dir.path().join(format!("{start:020}.stdb.log")), &bytes).unwrap();
        stream.extend(bytes);
    }
    let proxy = Proxy::start(service.address, Kind::Buffers { body_bytes_max: 100_000 });
    let (pushed, _) = push(&service, dir.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 20);
    assert_bytes(&service.stream("app"), &stream, "the log");
}

#[test]
fn a_base_larger_than_a_proxy_takes_travels_in_parts() {
    let service = service(|setup| setup.settings.commit_bytes_max = 8 << 20);
    let frames = FrameLog::new(4096, false).with_base(600).commit(&[2, 3], 600);
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in frames.files(&[]) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let proxy = Proxy::start(service.address, NGINX);
    let (pushed, _) = push(&service, dir.path(), proxy.url("db"));
    assert_eq!(pushed.unwrap().durable.0, 3);
    assert_bytes(&service.get("/logs/db/base").body, &base(600), "the base");
}

#[test]
fn a_push_through_a_proxy_that_stops_sending_once_the_answer_has_begun_does_not_hang() {
    let service = service(|_| {});
    let stream = [header(), commits(0, 40, 100_000, 0)].concat();
    let source = source(&stream);
    let proxy = Proxy::start(service.address, Kind::StopsSending { after: 1_000_000 });
    let since = Instant::now();
    let (pushed, retries) = push(&service, source.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 40);
    assert!(since.elapsed() < LIVE_STALL * 2, "{:?}", since.elapsed());
    assert_bytes(&service.stream("app"), &stream, "the log");
    assert_eq!(retries.len(), 1, "{retries:?}");
}

#[test]
fn a_push_through_a_proxy_that_cuts_it_off_in_the_middle_of_the_answer_ends_well() {
    let service = service(|setup| setup.settings.commit_bytes_max = 8 << 20);
    let stream = [header(), commits(0, 30, 100_000, 0), commits(30, 1, 2_000_000, 0)].concat();
    let source = source(&stream);
    let proxy = Proxy::start(service.address, Kind::Cuts { after: 1 << 20 });
    let (pushed, retries) = push(&service, source.path(), proxy.url("app"));
    assert_eq!(pushed.unwrap().durable.0, 31);
    assert_bytes(&service.stream("app"), &stream, "the log");
    assert_eq!(retries.len(), 2, "{retries:?}");
}

#[test]
fn a_push_without_a_proxy_stays_one_stream() {
    let service = service(|_| {});
    let source = source(&[header(), commits(0, 40, 200_000, 0)].concat());
    let (pushed, retries) = push(&service, source.path(), service.url("/logs/app"));
    assert_eq!(pushed.unwrap().durable.0, 40);
    assert!(retries.is_empty(), "{retries:?}");
}
