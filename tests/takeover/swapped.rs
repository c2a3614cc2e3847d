//! A copy is not the source of the log that it was made from.

use std::fs;

use logmirror::format::LogFormat;

use crate::support::process::{Mirror, Service, arg, mirror, until};
use crate::{database, done, is_refused, restored, scene, source_of, status, write};

const SWAPPED: &str = "are the arguments swapped?";

#[test]
fn a_directory_that_is_a_copy_of_a_log_is_refused_as_its_source_in_every_state_of_the_log() {
    let (_data, dir, service) = scene();
    let [app, copy] = ["app.db", "copy"].map(|name| dir.path().join(name));
    let (app, copy, url) = (arg(&app), arg(&copy), service.url("app"));
    database(app.as_ref());
    let refused = |what: &str| {
        done(&["mirror", &url, copy]);
        let before = (source_of(&service, "app"), status(&service, "app").durable);
        for flags in [&[][..], &["--follow"], &["--adopt"], &["--dry-run"]] {
            let ended = mirror(copy, &url, flags);
            is_refused(&ended, 2, &[SWAPPED, copy, &url]);
            assert_eq!((source_of(&service, "app"), status(&service, "app").durable), before, "{what} {flags:?}");
        }
    };
    done(&["mirror", app, &url]);
    refused("without a frame");
    write(app.as_ref(), &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", app, &url]);
    assert!(status(&service, "app").last_commit.is_some());
    refused("with frames");
    done(&["checkpoint", &url]);
    refused("after a roll-over");
    let follower = Mirror::start(app, &url, &["--follow"]);
    follower.wait_for("it follows", |line| line["event"] == "progress" || line["state"] == "following");
    write(app.as_ref(), &["INSERT INTO t VALUES ('third')"]);
    until("it arrives", || (restored(&url)?.len() == 3).then_some(()));
    refused("while it is fed");
    write(app.as_ref(), &["INSERT INTO t VALUES ('fourth')"]);
    until("the mirror goes on", || (restored(&url)?.len() == 4).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_log_of_commits_is_not_fed_from_its_copy_and_gets_a_lost_end_back() {
    let (_data, dir, service) = scene();
    let (copy, url, client) = (dir.path().join("copy"), service.url("app"), service.client("app"));
    done(&["mirror", arg(&crate::support::specimen("whole")), &url]);
    done(&["mirror", &url, arg(&copy)]);
    is_refused(&mirror(arg(&copy), &url, &[]), 2, &[SWAPPED]);
    is_refused(&mirror(arg(&copy), &url, &["--adopt"]), 2, &[SWAPPED]);
    // The same name, and another log.
    let (lost, found) = (tempfile::tempdir().unwrap(), status(&service, "app").durable);
    let other = Service::start(lost.path());
    other.call(other.client("app").create(LogFormat::Commitlog, None)).unwrap();
    done(&["mirror", arg(&copy), &other.url("app")]);
    assert_eq!(status(&other, "app").durable, found);
    done(&["mirror", arg(&copy), &other.url("app")]);
    drop(client);
}

#[test]
fn a_lost_log_is_brought_back_from_its_copy_under_its_name() {
    let (data, dir, mut service) = scene();
    let [app, copy] = ["app.db", "copy"].map(|name| dir.path().join(name));
    let url = service.url("app");
    database(&app);
    done(&["mirror", arg(&app), &url]);
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&copy)]);
    service.kill();
    fs::remove_dir_all(data.path().join("logs/app")).unwrap();
    service.restart();
    done(&["mirror", arg(&copy), &url]);
    assert_eq!(restored(&url).unwrap().len(), 2);
    // Again, as after an interruption.
    done(&["mirror", arg(&copy), &url]);
}

#[test]
fn a_log_that_is_a_copy_of_another_is_refused_as_its_source() {
    let (_data, dir, service) = scene();
    let other = tempfile::tempdir().unwrap();
    let other = Service::start(other.path());
    let (app, from, to) = (dir.path().join("app.db"), service.url("app"), other.url("app"));
    database(&app);
    for round in 0..3 {
        done(&["mirror", arg(&app), &from]);
        done(&["mirror", &from, &to]);
        for flags in [&[][..], &["--adopt"]] {
            is_refused(&mirror(&to, &from, flags), 2, &[SWAPPED, &from]);
        }
        assert!(source_of(&service, "app").ends_with("app.db"));
        match round {
            0 => write(&app, &["INSERT INTO t VALUES ('second')"]),
            _ => drop(done(&["checkpoint", &from])),
        }
    }
    // What is no copy any more is a source like any other.
    done(&["promote", &to]);
    let ended = mirror(&to, &from, &[]);
    assert!(!ended.errors.contains(SWAPPED), "{ended:?}");
}

/// A log that is written by a libSQL client, from a database, and what was pulled from it.
fn pushed(dir: &std::path::Path, service: &Service) -> (String, String, String) {
    let [app, replica] = ["app.db", "replica.db"].map(|name| arg(&dir.join(name)).to_owned());
    let (url, server) = (service.url("app"), format!("libsql+{}", service.url("app")));
    service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
    database(app.as_ref());
    done(&["mirror", &app, &server]);
    done(&["mirror", &server, &replica]);
    (app, replica, url)
}

#[test]
fn a_replica_of_a_libsql_server_is_refused_as_the_source_of_its_log() {
    let (_data, dir, service) = scene();
    let (app, replica, url) = pushed(dir.path(), &service);
    for source in [replica.clone(), format!("{replica}-wal")] {
        for flags in [&[][..], &["--follow"], &["--adopt"], &["--dry-run"]] {
            is_refused(&mirror(&source, &url, flags), 2, &[SWAPPED, &replica]);
        }
    }
    assert_eq!(source_of(&service, "app"), "");
    // Its clients go on.
    write(app.as_ref(), &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", &app, &format!("libsql+{url}")]);
    assert_eq!(restored(&url).unwrap().len(), 2);
}

#[test]
fn a_log_that_clients_wrote_is_taken_from_them_only_where_that_is_meant() {
    let (_data, dir, service) = scene();
    let (app, _, url) = pushed(dir.path(), &service);
    for flags in [&[][..], &["--follow"], &["--dry-run"]] {
        let ended = mirror(&app, &url, flags);
        is_refused(&ended, 1, &["clients wrote", &format!("libsql+{url}"), "--adopt", "409", "logmirror promote"]);
    }
    assert_eq!(source_of(&service, "app"), "");
    // Also once what they wrote is in its base.
    done(&["checkpoint", &url]);
    is_refused(&mirror(&app, &url, &[]), 1, &["clients wrote", "--adopt"]);
    done(&["mirror", &app, &url, "--adopt"]);
    assert!(source_of(&service, "app").ends_with("app.db"));
    done(&["mirror", &app, &url]);
    done(&["promote", &url]);
    assert_eq!(restored(&url).unwrap().len(), 1);
}
