//! Services that hang, are slow or damaged: no proxy is at fault, and a mirror that follows waits.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use logmirror::blame::{Blame, Blamed};
use logmirror::format::LogFormat;
use logmirror::mirror::{Distance, Event, Mirror, MirrorError, Place, run};

use crate::gate::{Gate, answering};
use crate::proxy::{Kind, Proxy};
use crate::service;
use crate::support::frames::FrameLog;
use crate::support::log::{commits, header};
use crate::support::service::{PATIENCE, Service};

fn source(dir: &Path) -> Place {
    std::fs::write(dir.join(format!("{:020}.stdb.log", 0)), [header(), commits(0, 2, 9, 0)].concat()).unwrap();
    Place::Dir(dir.into())
}

/// Follows until `see` has seen enough.
fn follow(service: &Service, source: Place, sink: Place, mut see: impl FnMut(Event) -> ControlFlow<()>) {
    let mirror = Mirror { follow: true, ..Mirror::new(source, sink) };
    let (enough, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let told = |event| {
        if see(event).is_break() {
            let _ = enough.send(());
        }
    };
    service.runtime.block_on(async {
        tokio::select! {
            ended = run(&mirror, told) => panic!("the follower ended: {ended:?}"),
            seen = tokio::time::timeout(PATIENCE, seen.recv()) => assert!(seen.is_ok(), "never seen"),
        }
    });
}

#[test]
fn a_service_that_hangs_for_a_while_is_not_taken_for_a_proxy() {
    let service = service(|_| {});
    let (dir, gate) = (tempfile::tempdir().unwrap(), Gate::start(service.address));
    let (mut started, mut reasons) = (false, Vec::new());
    let sink = Place::Url(gate.url("app"));
    follow(&service, source(dir.path()), sink, |event| {
        match event {
            Event::Started { .. } if !std::mem::replace(&mut started, true) => gate.close(),
            Event::Retrying { error, .. } => {
                reasons.push(error);
                gate.open();
            }
            Event::Moved(progress) if progress.durable.0 == 2 => return ControlFlow::Break(()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert!(reasons.iter().any(|reason| reason.contains("did not answer a request for its status")), "{reasons:?}");
    assert!(!reasons.iter().any(|reason| reason.contains("proxy")), "{reasons:?}");
}

#[test]
fn a_follower_that_asks_for_what_is_new_goes_on_with_the_next_generation() {
    let service = service(|_| {});
    let source = service.client("source");
    let frames = FrameLog::new(4096, false).commit(&[1, 2, 3], 3).commit(&[2], 3);
    service.runtime.block_on(async {
        source.create(LogFormat::Wal, None).await.unwrap();
        source.append(None, frames.stream(&[])).await.unwrap();
    });
    let proxy = Proxy::start(service.address, Kind::BuffersAnswers);
    let sink = service.client("sink").url().to_string();
    let mirror = Mirror { follow: true, ..Mirror::new(Place::Url(proxy.url("source")), Place::Url(sink)) };
    let reaches = async |what: &str, number: u64| {
        let since = std::time::Instant::now();
        loop {
            // None until the log exists.
            let found = service.client("sink").find().await.unwrap();
            let found = serde_json::to_value(found).unwrap();
            if found[what] == number {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{what} {number}: {found}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    service.runtime.block_on(async {
        let watching = async {
            reaches("durable", 5).await;
            assert!(source.checkpoint(false).await.unwrap().done);
            reaches("generation", 2).await;
        };
        tokio::select! {
            ended = run(&mirror, |_| ()) => panic!("the follower ended: {ended:?}"),
            () = watching => {}
        }
    });
}

#[test]
fn a_sink_that_is_damaged_in_its_service_is_waited_for() {
    let damaged = r#"{"log":"app","format":"commitlog","id":"1","generation":1,"epoch":null,"first":null,"next":null,
        "durable":null,"segments":null,"bytes":null,"last_commit":null,"state":"damaged","error":"bit rot"}"#;
    let (service, dir) = (service(|_| {}), tempfile::tempdir().unwrap());
    let (source, sink) = (source(dir.path()), Place::Url(answering(damaged)));
    follow(&service, source.clone(), sink.clone(), |event| match event {
        Event::Retrying { error, .. } if error.contains("is damaged") && error.contains("bit rot") => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    let once = service.runtime.block_on(run(&Mirror::new(source, sink), |_| ())).unwrap_err();
    assert!(matches!(once, MirrorError::SinkDamaged { .. }), "{once}");
    assert_eq!(once.blame(), Blame::Data);
}

#[test]
fn the_distance_is_unknown_while_the_source_cannot_be_measured() {
    let (service, dir) = (service(|_| {}), tempfile::tempdir().unwrap());
    let (here, away) = (dir.path().join("here"), dir.path().join("away"));
    std::fs::create_dir(&here).unwrap();
    let (source, sink) = (source(&here), Place::Dir(dir.path().join("copy")));
    let mut stage = 0;
    follow(&service, source, sink, |event| {
        match (stage, event) {
            (0, Event::Measured(Distance { offsets: Some(0), .. })) => std::fs::rename(&here, &away).unwrap(),
            (1, Event::Measured(Distance { offsets: None, source_next: None, bytes: None, .. })) => {
                std::fs::rename(&away, &here).unwrap();
            }
            (2, Event::Measured(Distance { offsets: Some(0), .. })) => return ControlFlow::Break(()),
            _ => return ControlFlow::Continue(()),
        }
        stage += 1;
        ControlFlow::Continue(())
    });
}
