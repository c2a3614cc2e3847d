//! Bases of logs that an earlier version of the program made, without checksums, and those whose checksums were lost.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::process::until;
use crate::{GENERATION, base_of, flip, log, said, serve, service_with, sha256};

/// A log as earlier versions left it.
fn made_before(data: &Path) -> Vec<u8> {
    let log = log(40);
    drop(service_with(data, &log.base, &log.stream(&[])));
    fs::remove_file(data.join(GENERATION).join("base.sums")).unwrap();
    let json = data.join("logs/app/log.json");
    let mut described: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(described["base"]["sha256"], sha256(&log.base));
    described.as_object_mut().unwrap().remove("base").unwrap();
    fs::write(&json, described.to_string()).unwrap();
    log.base
}

#[test]
fn an_old_base_gets_checksums_in_the_background_and_is_marked_as_unproven() {
    let data = tempfile::tempdir().unwrap();
    let base = made_before(data.path());
    let dir = data.path().join(GENERATION);
    let (code, text) = said(&["verify", dir.to_str().unwrap()]);
    assert!(code == 0 && text.contains("unproven"), "{code}: {text}");
    let service = serve(data.path());
    let status = until("the checksums", || Some(service.status("app")).filter(|status| !status["base"].is_null()));
    assert_eq!(status["base"]["sha256"], sha256(&base), "{status}");
    assert_eq!((&status["base"]["unproven"], &status["state"]), (&true.into(), &"ok".into()), "{status}");
    assert!(status["warning"].as_str().unwrap().contains("unproven"), "{status}");
    assert!(service.get("/metrics").text().contains("logmirror_base_unproven{log=\"app\"} 1"));
    let answer = service.get("/logs/app/base");
    assert!(answer.body == base && answer.header("repr-digest").unwrap().ends_with(":;unproven"));
    drop(service);
    // It stays so, and is checked from here on.
    let (code, text) = said(&["verify", dir.to_str().unwrap()]);
    assert!(code == 0 && text.contains("unproven"), "{code}: {text}");
    let described: Value = serde_json::from_slice(&fs::read(data.path().join("logs/app/log.json")).unwrap()).unwrap();
    assert_eq!(described["base"]["sha256"], sha256(&base));
    let service = serve(data.path());
    assert_eq!(service.status("app")["base"], status["base"]);
    // A copy does not know more than its source.
    let copy = data.path().join("copy");
    assert_eq!(said(&["mirror", &service.url("/logs/app"), copy.to_str().unwrap()]).0, 0);
    drop(service);
    flip(&base_of(data.path()), 5000);
    assert_eq!(said(&["verify", dir.to_str().unwrap()]).0, 1);
}

#[test]
fn the_bases_of_generations_that_have_ended_get_checksums_too() {
    let data = tempfile::tempdir().unwrap();
    let log = log(40);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    drop(service);
    let sums = data.path().join(GENERATION).join("base.sums");
    fs::remove_file(&sums).unwrap();
    let service = serve(data.path());
    until("the checksums", || sums.exists().then_some(()));
    assert!(service.get("/logs/app/base?generation=1").header("repr-digest").unwrap().ends_with(";unproven"));
    assert!(!service.get("/logs/app/base").header("repr-digest").unwrap().ends_with(";unproven"));
    let status = service.status("app");
    assert!(status["warning"].is_null() && status["state"] == "ok", "{status}");
}

#[test]
fn checksums_that_were_lost_are_made_again_if_the_base_is_the_one_that_the_log_says() {
    let data = tempfile::tempdir().unwrap();
    let log = log(40);
    drop(service_with(data.path(), &log.base, &log.stream(&[])));
    let sums = data.path().join(GENERATION).join("base.sums");
    let before = fs::read(&sums).unwrap();
    fs::remove_file(&sums).unwrap();
    let service = serve(data.path());
    until("the checksums", || fs::read(&sums).ok().filter(|made| *made == before));
    let status =
        until("the status", || Some(service.status("app")).filter(|status| status["base"]["unproven"].is_null()));
    assert_eq!(status["state"], "ok", "{status}");
    drop(service);
    fs::remove_file(&sums).unwrap();
    flip(&base_of(data.path()), 9000);
    let service = serve(data.path());
    service.wait_state("app", "damaged");
    let status = service.status("app");
    assert!(status["error"].as_str().unwrap().contains("has the SHA-256"), "{status}");
    assert!(!sums.exists());
    drop(service);
    // Nothing needs the checksums to find it.
    let (dir, out) = (data.path().join("logs/app"), data.path().join("out.db"));
    let (code, text) = said(&["restore", dir.to_str().unwrap(), out.to_str().unwrap()]);
    assert!(code == 1 && !out.exists(), "{code}: {text}");
    assert_eq!(said(&["verify", data.path().join(GENERATION).to_str().unwrap()]).0, 1);
}
