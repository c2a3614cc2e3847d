//! A directory that a command is refused for is as it was, and the one that is meant is named.

use std::fs;

use crate::support::process::{Mirror, arg, mirror, until};
use crate::{database, done, is_refused, logmirror, restored, scene, status, write};

#[test]
fn a_command_that_is_refused_writes_nothing_into_a_directory_and_claims_nothing() {
    let (_data, dir, service) = scene();
    let ([app, copy], url) = (["app.db", "copy"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &url]);
    let follower = Mirror::start(&url, arg(&copy), &["--follow"]);
    until("it is copied", || (restored(arg(&copy))?.len() == 1).then_some(()));
    follower.wait_for("it follows", |line| line["state"] == "following");
    let names = || {
        let entries = fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap());
        let mut found: Vec<_> = entries.map(|entry| (entry.file_name(), fs::read(entry.path()).ok())).collect();
        found.sort();
        found
    };
    let before = names();
    let ended = mirror(arg(&app), arg(&copy), &[]);
    is_refused(&ended, 3, &["in use by another writer"]);
    assert!(!ended.errors.contains("was a mirror of") && !ended.errors.contains("taken over"), "{}", ended.errors);
    assert!(names() == before, "{:?}", names().iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert_eq!(follower.terminate().code, Some(0));
    // Where nobody writes it, it is taken over with a word, and not before.
    let ended = mirror(arg(&app), arg(&copy), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.errors.contains("taken over") && ended.errors.contains(&url), "{}", ended.errors);
}

#[test]
fn the_directory_of_a_log_of_a_service_leads_to_its_current_generation() {
    let (data, dir, service) = scene();
    let (app, url) = (dir.path().join("app.db"), service.url("app"));
    database(&app);
    for _ in 0..2 {
        write(&app, &["INSERT INTO t VALUES (1)"]);
        done(&["mirror", arg(&app), &url]);
        write(&app, &["INSERT INTO t VALUES (2)"]);
        done(&["mirror", arg(&app), &url]);
        done(&["checkpoint", &url]);
    }
    let log = data.path().join("logs/app");
    let current = log.join(format!("{:010}", status(&service, "app").generation.unwrap().0));
    let sink = dir.path().join("out");
    for args in [&["mirror", arg(&log), arg(&sink)][..], &["verify", arg(&log)], &["status", arg(&log)]] {
        let output = logmirror(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(&format!("did you mean {}?", current.display())), "{args:?}: {said}");
    }
    done(&["verify", arg(&current)]);
}

#[test]
fn what_a_directory_notes_of_a_database_ends_when_it_follows_a_log() {
    let (_data, dir, service) = scene();
    let ([app, other, copy], url) =
        (["app.db", "other.db", "copy"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    database(&other);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&copy)]);
    done(&["mirror", arg(&app), arg(&copy)]);
    done(&["mirror", &url, arg(&copy)]);
    write(&other, &["INSERT INTO t VALUES ('other')"]);
    done(&["mirror", arg(&other), &url, "--adopt"]);
    done(&["mirror", &url, arg(&copy)]);
    let held = restored(arg(&copy));
    is_refused(&mirror(arg(&app), arg(&copy), &[]), 1, &["holds other pages"]);
    assert_eq!(restored(arg(&copy)), held);
}
