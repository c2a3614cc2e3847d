//! A log that a service knows to be damaged, as its clients see it.

use std::fs;
use std::path::Path;

use crate::run;
use crate::support::process::{Mirror, Service, arg};
use crate::support::{assert_bytes, copy_of, files, specimen};

const SECOND: &str = "00000000000000000111.stdb.log";
const THIRD: &str = "00000000000000000222.stdb.log";

fn start(data: &Path) -> Service {
    let service = Service::start(data);
    let pushed = run(&["mirror", arg(&specimen("whole")), &service.url("app"), "--quiet"]);
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    service
}

/// A service whose log has a flipped bit in the commit at offset 276.
fn with_a_flipped_bit(data: &Path) -> Service {
    let mut service = start(data);
    service.kill();
    let file = service.segments_of("app").join(THIRD);
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 1;
    fs::write(&file, bytes).unwrap();
    service.restart();
    service
}

#[test]
fn verify_says_where_the_log_of_a_service_is_damaged() {
    let data = tempfile::tempdir().unwrap();
    let service = with_a_flipped_bit(data.path());
    let ended = run(&["verify", &service.url("app")]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in ["damaged: 1 fault", "0..276 are sound", "offset 276", "segment 222", "byte 3934"] {
        assert!(ended.out.contains(part), "{part}: {ended:?}");
    }
    let report = run(&["verify", &service.url("app"), "--json"]).json();
    let fault = &report["faults"][0];
    assert_eq!(
        (&fault["segment"], &fault["offset"], &fault["at"]),
        (&222.into(), &276.into(), &3934.into()),
        "{report}"
    );
}

#[test]
fn a_mirror_of_a_damaged_log_receives_all_that_is_sound_and_says_why_no_more() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = with_a_flipped_bit(data.path());
    for (name, flags) in [("copy", &[][..]), ("followed", &["--follow"])] {
        let copy = dir.path().join(name);
        let ended = Mirror::start(service.url("app"), arg(&copy), flags).ended();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.error().contains("the log is damaged on the service at offset 276"), "{ended:?}");
        let verified = run(&["verify", arg(&copy), "--json"]);
        assert_eq!((verified.code, &verified.json()["next"]), (Some(0), &276.into()), "{verified:?}");
        // Once more: nothing is left to copy, and that is no success.
        let again = Mirror::start(service.url("app"), arg(&copy), flags).ended();
        assert_eq!(again.code, Some(1), "{again:?}");
        assert!(again.error().contains("damaged on the service at offset 276"), "{again:?}");
    }
}

#[test]
fn what_was_sent_before_an_answer_breaks_off_is_received() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = start(data.path());
    let copy = dir.path().join("copy");
    fs::remove_file(service.segments_of("app").join(SECOND)).unwrap();
    let ended = Mirror::start(service.url("app"), arg(&copy), &[]).ended();
    // It may come back, until it has been away for some seconds.
    assert!(matches!(ended.code, Some(1 | 3)), "{ended:?}");
    let first = "00000000000000000000.stdb.log";
    let whole = copy_of("whole");
    assert_bytes(&files(&copy)[first], &files(whole.path())[first], "the segment before the one that is missing");
}
