//! Every bit of a small base, flipped, is found by whoever reads it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use logmirror::checkpoint::{FoldError, RestoreError, Wanted, restore_dir};
use logmirror::mirror::{Error, Mirror, MirrorError, Place, run};
use logmirror::offset::Generation;
use logmirror::repo::FsRepo;
use logmirror::segment::base::store;
use logmirror::verify::{Options, verify};
use serde_json::json;

use crate::support::files;
use crate::{GENERATION, base_of, flip, log, log_of, logmirror, said, serve, service_with};

/// A directory of a generation, made by a service.
fn generation(data: &Path) -> Vec<u8> {
    let log = log(1);
    drop(service_with(data, &log.base, &log.stream(&[])));
    log.base
}

/// Calls `check` for every bit of the base in `path`, while it is flipped.
fn each_flipped(path: &Path, base: &[u8], mut check: impl FnMut(usize)) {
    for bit in 0..base.len() * 8 {
        let mut flipped = base.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(path, flipped).unwrap();
        check(bit);
    }
    fs::write(path, base).unwrap();
}

#[test]
fn verify_finds_every_flipped_bit_of_a_base() {
    let data = tempfile::tempdir().unwrap();
    let base = generation(data.path());
    let dir = data.path().join(GENERATION);
    let verified = || verify(Arc::new(FsRepo::open(&dir).unwrap()), &Options::default()).unwrap();
    each_flipped(&base_of(data.path()), &base, |bit| {
        let report = verified();
        assert!(!report.is_sound(), "bit {bit}");
        let fault = &report.faults[0];
        assert_eq!((fault.code.as_str(), fault.at.0), ("base", 0), "bit {bit}: {fault:?}");
        assert!(fault.message.contains("base.db: block 0, at byte 0,"), "{fault:?}");
        // The frames are as they were.
        assert_eq!((report.faults.len(), report.next.0), (1, 3), "{report:?}");
    });
    assert!(verified().is_sound());
}

#[test]
fn restore_finds_every_flipped_bit_of_a_base() {
    let data = tempfile::tempdir().unwrap();
    let base = generation(data.path());
    let out = data.path().join("out.db");
    let wanted = Wanted { to: None, generation: None, out: out.clone(), overwrite: false, plain: false };
    let restored = || restore_dir(&data.path().join("logs/app"), &wanted);
    each_flipped(&base_of(data.path()), &base, |bit| {
        let error = restored().unwrap_err();
        assert!(matches!(error, RestoreError::Fold(FoldError::Base(_))) && error.is_data(), "bit {bit}: {error}");
        assert!(!out.exists(), "bit {bit}");
    });
    restored().unwrap();
}

#[test]
fn a_mirror_finds_every_flipped_bit_of_a_base() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = log(1).base[..96].to_vec();
    store(Arc::new(FsRepo::open(from.path()).unwrap()), &base).unwrap();
    for (name, bytes) in log(1).segments(&[]) {
        fs::write(from.path().join(name), bytes).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sink = to.path().join("copy");
    let mirror = Mirror::new(Place::Dir(from.path().to_owned()), Place::Dir(sink.clone()));
    each_flipped(&from.path().join("base.db"), &base, |bit| {
        let copied = runtime.block_on(run(&mirror, |_| ()));
        assert!(matches!(copied, Err(MirrorError::BaseDamaged { side: "source", .. })), "bit {bit}: {copied:?}");
        assert!(!sink.join("base.db").exists(), "bit {bit}");
    });
    runtime.block_on(run(&mirror, |_| ())).unwrap();
    assert!(fs::read(sink.join("base.db")).unwrap() == base);
}

#[test]
fn a_pull_is_not_given_a_base_with_a_flipped_bit() {
    let data = tempfile::tempdir().unwrap();
    let base = generation(data.path());
    let service = serve(data.path());
    // A generation that has ended is no matter of the log's state, so one service reads all of them.
    assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    each_flipped(&base_of(data.path()), &base, |bit| {
        let log = service.registry.generation("app", Some(Generation(1))).unwrap();
        let read = service.runtime.block_on(async { service.registry.base(&log)?.next().await });
        assert!(matches!(read, Err(Error::Damaged(_))), "bit {bit}: {read:?}");
        if bit % 16 == bit / 16 % 16 {
            let answer = service.get("/logs/app/base?generation=1");
            assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "bit {bit}");
        }
    });
    assert!(service.get("/logs/app/base?generation=1").body == base);
    assert_eq!(service.status("app")["state"], "ok");
}

#[test]
fn a_flipped_bit_ends_every_use_of_a_base_and_frames_are_served() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let frames = log.stream(&[]);
    drop(service_with(data.path(), &log.base, &frames));
    // In the second block, of five.
    let at = 4096 + 11;
    flip(&base_of(data.path()), at);
    let service = serve(data.path());
    assert_eq!(service.status("app")["state"], "ok", "nothing has read it");
    let answer = service.get("/logs/app/base");
    assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "{}", answer.text());
    let status = service.status("app");
    assert_eq!(status["state"], "damaged", "{status}");
    assert_eq!(status["damage"], json!({"segment": "base.db", "offset": 0, "byte": 4096}), "{status}");
    assert!(status["error"].as_str().unwrap().contains("base.db: block 1, at byte 4096"), "{status}");
    assert!(service.get("/health").text().contains("base.db: block 1"));
    assert!(service.get("/logs/app/commits?from=1").body == frames);
    for (method, path) in [("GET", "base"), ("HEAD", "base"), ("GET", "export/1"), ("POST", "checkpoint")] {
        let answer = service.call(method, &format!("/logs/app/{path}"), "", b"");
        assert_eq!(answer.status, 500, "{method} {path}");
    }
    // More frames are taken: they are as sound as ever, and the base may be put back.
    let more = log.clone().commit(&[1], 5);
    assert_eq!(service.append("app", "?from=1", &more.stream(&[])).json()["durable"], 4);
    let (url, out) = (service.url("/logs/app"), data.path().join("out.db"));
    let (code, text) = said(&["restore", &url, out.to_str().unwrap()]);
    assert_eq!(code, 1, "{text}");
    let (code, text) = said(&["verify", &url]);
    assert!(code == 1 && text.contains("base: ") && text.contains("block 1"), "{code}: {text}");
    let copy = data.path().join("copy");
    let (code, text) = said(&["mirror", &url, copy.to_str().unwrap()]);
    assert!(code == 1 && text.contains("block 1"), "{code}: {text}");
    let replica = data.path().join("replica.db");
    let (code, text) = said(&["mirror", &format!("libsql+{url}"), replica.to_str().unwrap()]);
    assert!(code != 0 && !replica.exists(), "{text}");
    // Put back, it is read again, without a restart.
    fs::write(base_of(data.path()), &log.base).unwrap();
    service.wait_state("app", "ok");
    assert!(service.get("/logs/app/base").body == log.base);
    assert!(service.get("/health").text().contains("ok"));
    assert!(!out.exists() && !copy.join("base.db").exists());
}

#[test]
fn an_answer_ends_before_the_first_byte_that_is_not_right() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 500);
    drop(service_with(data.path(), &log.base, &[]));
    let at = 1_500_000;
    flip(&base_of(data.path()), at);
    let service = serve(data.path());
    let mut wire = service.connect();
    wire.send(crate::support::service::request("GET", "/logs/app/base", "connection: close\r\n").as_bytes());
    let head = wire.head();
    assert_eq!((head.status, head.header("content-length")), (200, Some("2048000")));
    let received = wire.wait_closed();
    assert!(received.len() <= at && log.base.starts_with(&received), "{} bytes", received.len());
    service.wait_state("app", "damaged");
}

#[test]
fn repair_says_what_to_do_about_a_base_and_makes_none_up() {
    let data = tempfile::tempdir().unwrap();
    let base = generation(data.path());
    flip(&base_of(data.path()), 100);
    let before = files(&data.path().join(GENERATION));
    let dir = data.path().join("logs/app");
    for args in [vec!["repair"], vec!["repair", "--accept-loss"]] {
        let (code, text) = said(&[&args[..], &[dir.to_str().unwrap()]].concat());
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("block 0") && text.contains("put base.db back") && text.contains("mirror"), "{text}");
    }
    assert!(files(&data.path().join(GENERATION)) == before);
    fs::write(base_of(data.path()), base).unwrap();
    assert!(logmirror(&["repair", dir.to_str().unwrap()]).status.success());
}
