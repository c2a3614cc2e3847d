//! Arguments that cannot have been meant.

use std::fs;
use std::path::Path;

use crate::run;
use crate::support::process::{Service, arg};
use crate::support::specimen;

#[test]
fn a_place_on_another_host_makes_no_directory_here() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    for place in ["host:/srv/clog", "user@host:clog", "http//127.0.0.1:7301/logs/app"] {
        for args in [["mirror", arg(&specimen("whole")), place], ["mirror", place, arg(&copy)]] {
            let ended = run(&args);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.errors.contains("http(s)://HOST/logs/NAME"), "{ended:?}");
        }
    }
    assert!(!copy.exists());
    for made in ["host:", "user@host:clog", "http"] {
        assert!(!std::path::Path::new(made).exists(), "{made}");
    }
}

#[test]
fn a_log_is_not_mirrored_into_itself_by_another_name() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let url = service.url("app");
    assert_eq!(run(&["mirror", arg(&specimen("whole")), &url]).code, Some(0));
    let other = url.replace("127.0.0.1", "localhost");
    assert_ne!(url, other);
    for args in [vec!["mirror", &url, &url], vec!["mirror", &url, &other], vec!["mirror", &url, &other, "--follow"]] {
        let ended = run(&args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.errors.contains("are the same log"), "{ended:?}");
    }
}

/// What `cp -r` does.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy_all(&from, &to) } else { fs::copy(&from, &to).map(|_| ()).unwrap() }
    }
}

#[test]
fn a_service_that_began_with_a_copy_of_the_files_of_another_follows_it() {
    let data = tempfile::tempdir().unwrap();
    let (first, second) = (data.path().join("first"), data.path().join("second"));
    fs::create_dir(&first).unwrap();
    let service = Service::start(&first);
    assert_eq!(run(&["mirror", arg(&specimen("whole")), &service.url("app")]).code, Some(0));
    copy_all(&first, &second);
    let copy = Service::start(&second);
    let ended = run(&["mirror", &service.url("app"), &copy.url("app")]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_follower_refuses_a_file_as_its_target() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy");
    fs::write(&file, "a file").unwrap();
    let ended = run(&["mirror", arg(&specimen("whole")), arg(&file), "--follow"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.errors.contains("this is a file, and DST is a directory"), "{ended:?}");
}

#[test]
fn a_source_that_is_not_there_is_named_with_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("srv/replicas/1/clog");
    fs::create_dir(dir.path().join("srv")).unwrap();
    let ended = run(&["mirror", arg(&source), arg(&dir.path().join("copy"))]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let wanted = format!("SRC {} does not exist, but {} does", source.display(), dir.path().join("srv").display());
    assert!(ended.errors.contains(&wanted), "{ended:?}");
    assert!(!dir.path().join("copy").exists());
}

#[test]
fn a_url_that_is_not_one_of_a_log_is_answered_with_what_is() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let copy = data.path().join("copy");
    assert_eq!(run(&["mirror", arg(&specimen("whole")), &service.url("app")]).code, Some(0));
    for url in [service.url("app/commits"), format!("http://{}/app", service.address())] {
        let ended = run(&["mirror", &url, arg(&copy)]);
        assert!(ended.code != Some(0) && ended.errors.contains("/logs/NAME"), "{url}: {ended:?}");
    }
}
