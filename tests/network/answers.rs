//! Answers that are not the service's, and bytes that a network changed: nothing of them is stored, and no copy ends by them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logmirror::blame::{Blame, Blamed};
use logmirror::mirror::{Event, Mirror, MirrorError, Place, run};

use crate::changing::{Answer, Changing};
use crate::service;
use crate::support::log::{commits, header};
use crate::support::service::{PATIENCE, Service};

const PAGE: &str = "<html>please log in</html>";

/// A service with nine commits, which a part of is copied already.
struct Scene {
    service: Service,
    stream: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let service = service(|_| {});
        let stream = [header(), commits(0, 4, 9, 0)].concat();
        service.append("app", "", &stream);
        let scene = Scene { dir: tempfile::tempdir().unwrap(), service, stream };
        let whole = Mirror::new(Place::Url(scene.service.url("/logs/app")), Place::Dir(scene.sink()));
        scene.service.runtime.block_on(run(&whole, |_| ())).unwrap();
        let more = commits(4, 5, 9, 0);
        scene.service.append("app", "?from=4", &more);
        let stream = [scene.stream, more].concat();
        Scene { stream, ..scene }
    }

    fn sink(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    fn copied(&self) -> Vec<u8> {
        std::fs::read(segment(&self.sink())).unwrap()
    }

    fn mirror(&self, proxy: &Changing, follow: bool) -> Mirror {
        Mirror { follow, ..Mirror::new(Place::Url(proxy.url("app")), Place::Dir(self.sink())) }
    }

    /// A follower waits with a reason like that and stores nothing but what is sound, and goes on to the end of the log once the
    /// proxy changes nothing.
    fn waits(&self, reason: &str, change: impl FnMut(&mut Answer) + Send + 'static) {
        let proxy = Changing::start(self.service.address, change);
        let reasons = Mutex::new(Vec::new());
        let told = |event| {
            if let Event::Retrying { error, .. } = event {
                assert!(self.stream.starts_with(&self.copied()));
                reasons.lock().unwrap().push(error);
            }
        };
        let since = Instant::now();
        let until = async |done: &dyn Fn() -> bool| {
            while !done() {
                assert!(since.elapsed() < PATIENCE, "{reason:?} in vain: {:?}", reasons.lock().unwrap());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        self.service.runtime.block_on(async {
            let watching = async {
                until(&|| reasons.lock().unwrap().iter().filter(|error| error.contains(reason)).count() >= 2).await;
                proxy.set(|_| ());
                until(&|| self.copied() == self.stream).await;
            };
            let mirror = self.mirror(&proxy, true);
            tokio::select! {
                ended = run(&mirror, told) => panic!("{reason:?}: the follower ended: {ended:?}"),
                () = watching => {}
            }
        });
    }
}

fn segment(dir: &Path) -> PathBuf {
    dir.join(format!("{:020}.stdb.log", 0))
}

/// Flips one bit in the record of the commit at offset 6.
fn flip(answer: &mut Answer, bit: u8) {
    let six = commits(6, 1, 9, 0);
    if answer.is_of("/commits")
        && let Some(at) = answer.body.windows(six.len()).position(|bytes| bytes == six)
    {
        answer.body[at + six.len() - 1] ^= bit;
    }
}

#[test]
fn a_page_in_place_of_commits_is_waited_for() {
    Scene::new().waits("200 (fake/1.0), of type text/html", |answer| {
        if answer.is_of("/commits") {
            answer.replace("text/html", PAGE);
        }
    });
}

#[test]
fn commits_that_something_encoded_are_waited_for() {
    Scene::new().waits("encoded as gzip", |answer| {
        if answer.is_of("/commits") {
            answer.fields += "content-encoding: gzip\r\n";
            answer.body = [&[0x1f, 0x8b, 8, 0], &answer.body[..]].concat();
        }
    });
}

#[test]
fn commits_without_the_mark_of_the_service_are_waited_for() {
    Scene::new().waits("without the field log-format-version", |answer| {
        if answer.is_of("/commits") {
            answer.fields = "content-type: application/octet-stream\r\n".to_owned();
        }
    });
}

#[test]
fn zeros_after_the_end_of_the_log_are_not_its_damage() {
    Scene::new().waits("went on after offset 9, where the log ends", |answer| {
        if answer.is_of("/commits") {
            answer.body.extend_from_slice(&[0; 5000]);
        }
    });
}

#[test]
fn an_answer_that_starts_before_what_was_asked_for_is_no_fork() {
    let scene = Scene::new();
    let (fields, whole) = ("log-format-version: 1\r\n", scene.stream.clone());
    scene.waits("starts with the commit at offsets 0 to 1", move |answer| {
        if answer.is_of("/commits") {
            (answer.fields, answer.body) = (fields.to_owned(), whole.clone());
        }
    });
}

#[test]
fn a_page_in_place_of_commits_is_no_fault_of_the_data_in_the_end() {
    let scene = Scene::new();
    let proxy = Changing::start(scene.service.address, |answer| {
        if answer.is_of("/commits") {
            answer.replace("text/html", PAGE);
        }
    });
    let before = scene.copied();
    let error = scene.service.runtime.block_on(run(&scene.mirror(&proxy, false), |_| ())).unwrap_err();
    assert_eq!(error.blame(), Blame::Transient, "{error}");
    assert!(error.to_string().contains("something between us and the service"), "{error}");
    assert_eq!(scene.copied(), before);
}

#[test]
fn bits_that_a_network_flipped_are_asked_for_again_while_each_answer_has_others() {
    for follow in [true, false] {
        let scene = Scene::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let proxy = Changing::start(scene.service.address, move |answer| {
            // Other bits in the second answer: no source has those.
            let nth = if answer.is_of("/commits") { count.fetch_add(1, Ordering::SeqCst) } else { 2 };
            if nth < 2 {
                flip(answer, 1 << nth);
            }
        });
        let (mirror, mut reasons) = (scene.mirror(&proxy, follow), Vec::new());
        let since = Instant::now();
        let ended = scene.service.runtime.block_on(async {
            let copied = async {
                while scene.copied() != scene.stream {
                    assert!(since.elapsed() < PATIENCE, "it was never copied");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let told = |event| {
                if let Event::Retrying { error, .. } = event {
                    reasons.push(error);
                }
            };
            tokio::select! {
                ended = run(&mirror, told) => Some(ended),
                () = copied, if follow => None,
            }
        });
        assert!(ended.is_none_or(|ended| ended.is_ok()), "{reasons:?}");
        assert!(reasons[0].contains("checksum") && reasons[0].contains("on a new connection"), "{reasons:?}");
        assert_eq!(scene.copied(), scene.stream);
    }
}

#[test]
fn a_fault_in_two_answers_is_the_sources_and_nothing_of_it_is_stored() {
    for follow in [true, false] {
        let scene = Scene::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let paths = asked.clone();
        let proxy = Changing::start(scene.service.address, move |answer| {
            if answer.is_of("/commits") {
                paths.lock().unwrap().push(answer.path.clone());
            }
            flip(answer, 1);
        });
        let error = scene.service.runtime.block_on(run(&scene.mirror(&proxy, follow), |_| ())).unwrap_err();
        assert_eq!(error.blame(), Blame::Data, "{error}");
        let text = error.to_string();
        assert!(text.contains(&proxy.url("app")) && text.contains("the same fault in two answers"), "{text}");
        assert!(text.contains("at offset 6"), "{text}");
        assert_eq!(asked.lock().unwrap().len(), 2);
        let sound = [header(), commits(0, 6, 9, 0)].concat();
        assert_eq!(scene.copied(), sound);
    }
}

#[test]
fn commits_that_are_not_those_of_the_status_are_waited_for() {
    Scene::new().waits("and the service says", |answer| {
        if answer.is_of("/commits") {
            answer.body = [header(), commits(3, 6, 9, 7)].concat();
        }
    });
}

#[test]
fn a_fork_counts_only_when_two_answers_show_it() {
    let other = |answer: &mut Answer| {
        if answer.is_of("/commits") {
            answer.body = [header(), commits(3, 6, 9, 7)].concat();
        }
        // As the source of such a log says it.
        if answer.is_of("/logs/app") {
            let last: [u8; 4] = *commits(3, 6, 9, 7).last_chunk().unwrap();
            let mut status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            status["last_commit"]["checksum"] = u32::from_le_bytes(last).into();
            answer.body = status.to_string().into_bytes();
        }
    };
    let scene = Scene::new();
    let before = scene.copied();
    let proxy = Changing::start(scene.service.address, other);
    let (mut tries, mirror) = (0, scene.mirror(&proxy, true));
    let told = |event| tries += usize::from(matches!(event, Event::Retrying { .. }));
    let error = scene.service.runtime.block_on(run(&mirror, told)).unwrap_err();
    assert!(matches!(error, MirrorError::Fork { .. }), "{error}");
    assert_eq!((tries, scene.copied()), (1, before));

    let mut is_first = true;
    proxy.set(move |answer| {
        if is_first {
            other(answer);
            is_first = !answer.is_of("/commits");
        }
    });
    scene.service.runtime.block_on(run(&scene.mirror(&proxy, false), |_| ())).unwrap();
    assert_eq!(scene.copied(), scene.stream);
}

#[test]
fn a_page_in_place_of_a_base_is_waited_for() {
    for kind in ["text/html", "application/octet-stream"] {
        let service = service(|_| {});
        assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
        let base = crate::base(20);
        assert_eq!(service.call("PUT", "/logs/db/generations/2", "", &base).status / 100, 2);
        let mut pages = 0;
        let proxy = Changing::start(service.address, move |answer| {
            if answer.is_of("/base") && pages < 2 {
                pages += 1;
                answer.replace(kind, PAGE);
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        let mut reasons = Vec::new();
        let told = |event| {
            if let Event::Retrying { error, .. } = event {
                assert!(!copy.join("base.db").exists());
                reasons.push(error);
            }
        };
        let mirror = Mirror::new(Place::Url(proxy.url("db")), Place::Dir(copy.clone()));
        service.runtime.block_on(run(&mirror, told)).unwrap();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.contains("something between us and the service")), "{reasons:?}");
        assert_eq!(std::fs::read(copy.join("base.db")).unwrap(), base);
    }
}
