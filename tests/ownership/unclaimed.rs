//! A directory without a mirror record is taken over only to write something; and the data of a service never is.

use std::fs;

use crate::support::process::{Mirror, Service, arg, mirror};
use crate::support::{segments, specimen};
use crate::{directory, grow, is_done, is_refused, put, untouched, whole_up_to};

#[test]
fn a_directory_without_a_record_that_lacks_nothing_is_not_written() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let clog = root.path().join("clog");
    put(&clog, &whole_up_to(240));
    let ended = untouched(root.path(), || untouched(&clog, || mirror(arg(source.path()), arg(&clog), &[])));
    is_done(&ended, 240);
    assert!(
        ended.errors.contains("it has no mirror record") && ended.errors.contains("nothing was written"),
        "{ended:?}"
    );
    let follower = Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
    untouched(root.path(), || {
        untouched(&clog, || follower.wait_for("level", |line| line["state"] == "following"));
    });
    grow(source.path(), &whole_up_to(300));
    follower.wait_durable(300);
    let ended = follower.terminate();
    assert_eq!(ended.code, Some(0));
    let taken = format!("{}: taken over as a mirror of ", clog.display());
    assert!(ended.errors.contains(&taken) && ended.errors.contains("at offset 237, is the source's"), "{ended:?}");
    assert!(clog.join(".logmirror").exists() && segments(&clog) == whole_up_to(300));
    // One that is taken over at once says so too.
    let copy = directory(&whole_up_to(240));
    let ended = mirror(arg(source.path()), arg(copy.path()), &[]);
    is_done(&ended, 300);
    assert!(ended.errors.contains("taken over as a mirror of ") && !ended.errors.contains("nothing was written"));
}

#[test]
fn a_directory_in_the_data_of_a_service_is_no_sink() {
    let (data, whole) = (tempfile::tempdir().unwrap(), specimen("whole"));
    let service = Service::start(data.path());
    is_done(&mirror(arg(&whole), service.url("app"), &[]), 360);
    let [logs, log] = ["logs", "logs/app"].map(|path| data.path().join(path));
    let (generation, new) = (service.segments_of("app"), logs.join("new"));
    let refused = || {
        for sink in [data.path(), &logs, &log, &generation, &generation.join("inner"), &new, &new.join("0000000001")] {
            for flags in [&[][..], &["--adopt"], &["--follow"], &["--dry-run"]] {
                let ended = untouched(&generation, || untouched(&logs, || mirror(arg(&whole), arg(sink), flags)));
                is_refused(&ended, 2, "is in the data directory of a service");
                is_refused(&ended, 2, "http://HOST/logs/NAME");
                assert!(!ended.errors.contains("did you mean"), "{ended:?}");
            }
        }
    };
    refused();
    // It may be read, also when the service does not run.
    assert!(service.terminate().0.success());
    let copy = tempfile::tempdir().unwrap();
    is_done(&mirror(arg(&generation), arg(copy.path()), &[]), 360);
    fs::remove_file(log.join("log.json")).unwrap();
    refused();
    // What is above it is no place either, and none in it is suggested.
    let above = tempfile::tempdir().unwrap();
    fs::rename(data.path(), above.path().join("data")).unwrap();
    let ended = mirror(arg(&whole), arg(above.path()), &[]);
    is_refused(&ended, 2, "holds no segments and no mirror record, but data");
    assert!(!ended.errors.contains("did you mean"), "{ended:?}");
}
