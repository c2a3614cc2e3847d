//! Copies of a log that is rolled over between them: no false alarm.

use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::sqlite::{connect, rows};
use crate::{database, done, restored, scene, write};

#[test]
fn lone_copies_of_a_log_that_is_rolled_over_and_fed_all_the_time_end_well() {
    let (_data, dir, service) = scene();
    let ([app, rep, copy], url) = (["app.db", "rep.db", "copy"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    let follower = Mirror::start(arg(&app), &url, &["--follow"]);
    until("it is copied", || (restored(&url)?.len() == 1).then_some(()));
    for round in 0..10 {
        write(&app, &["INSERT INTO t VALUES (hex(randomblob(9000)))"]);
        done(&["checkpoint", &url]);
        // What this adds arrives while the copies ask for one thing after another.
        write(&app, &["INSERT INTO t VALUES (1)"]);
        for sink in [&rep, &copy] {
            let ended = mirror(&url, arg(sink), &[]);
            assert_eq!(ended.code, Some(0), "round {round}, {}: {ended:?}", sink.display());
            let compared = ended.lines.iter().find(|line| line["event"] == "compared");
            assert!(compared.is_none(), "round {round}, {}: {compared:?}", sink.display());
        }
    }
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_replica_file_says_that_its_source_started_from_another_database_only_when_it_did() {
    let (_data, dir, service) = scene();
    let ([app, rep], url) = (["app.db", "rep.db"].map(|name| dir.path().join(name)), service.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &url]);
    done(&["mirror", &url, arg(&rep)]);
    let reasons = |what: &str| {
        let ended = mirror(&url, arg(&rep), &[]);
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        let compared = ended.lines.iter().filter(|line| line["event"] == "compared");
        let found: Vec<String> = compared.map(|line| line["reason"].as_str().unwrap().to_owned()).collect();
        let held = rows(&connect(&rep), "SELECT * FROM t").unwrap();
        assert_eq!(Some(held), restored(&url), "{what}");
        found
    };
    // Two roll-overs between two copies.
    for _ in 0..2 {
        write(&app, &["INSERT INTO t VALUES (hex(randomblob(9000)))"]);
        done(&["mirror", arg(&app), &url]);
        done(&["checkpoint", &url]);
    }
    let found = reasons("after roll-overs");
    assert!(!found.is_empty() && found.iter().all(|reason| !reason.contains("another database")), "{found:?}");
    // Another database in the next generation.
    let other = dir.path().join("other.db");
    write(&other, &["CREATE TABLE t (x)", "INSERT INTO t VALUES (zeroblob(20000))"]);
    done(&["mirror", arg(&other), &url, "--adopt"]);
    let found = reasons("after adoption");
    assert!(found.iter().any(|reason| reason.contains("another database")), "{found:?}");
}
