//! What is refused before anything changes, and what is said of a replica file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use logmirror::format::LogFormat;

use super::support::process::{Mirror, arg, mirror, until};
use super::support::specimen;
use super::support::sqlite::connect;
use super::{World, content, is_done, is_refused, logmirror, record};

#[test]
fn the_database_of_an_application_is_never_written() {
    let world = World::new();
    world.feed();
    let db = connect(&world.replica());
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE precious (x); INSERT INTO precious VALUES (1)").unwrap();
    drop(db);
    let before = fs::read(world.replica()).unwrap();
    for flags in [&[][..], &["--adopt"], &["--dry-run"]] {
        is_refused(&world.pull(flags), 2, &["without the record of a mirror", "choose another DST"]);
    }
    assert_eq!(fs::read(world.replica()).unwrap(), before);
    assert!(!world.path("replica.db-logmirror").exists(), "nothing is left beside it");
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let world = World::new();
    world.feed();
    fs::write(world.replica(), "a letter, and no database at all").unwrap();
    is_refused(&world.pull(&[]), 2, &["this is a file"]);
    // One without a byte holds nothing.
    fs::write(world.path("replica"), "").unwrap();
    is_done(&mirror(world.url(), arg(&world.path("replica")), &[]));
    assert_eq!(content(&world.path("replica")), content(&world.source()));
}

#[test]
fn the_name_says_whether_dst_is_a_file() {
    let world = World::new();
    world.feed();
    for name in ["a.db", "a.sqlite", "a.sqlite3", "a.DB3"] {
        is_done(&mirror(world.url(), arg(&world.path(name)), &[]));
        assert!(world.path(name).is_file(), "{name}");
    }
    for name in ["b", "b.db/"] {
        is_done(&mirror(world.url(), arg(&world.path(name)), &[]));
        assert!(world.path(name).is_dir(), "{name}");
    }
    // A directory stays one.
    is_done(&mirror(world.url(), arg(&world.path("b.db")), &[]));
}

#[test]
fn a_source_that_makes_no_database_is_refused() {
    let world = World::new();
    world.feed();
    let clog = mirror(arg(&specimen("whole")), arg(&world.replica()), &[]);
    is_refused(&clog, 2, &["commitlog", "a directory as DST"]);
    let app = mirror(arg(&world.source()), arg(&world.replica()), &[]);
    is_refused(&app, 2, &["app.db, a SQLite database"]);
    assert!(!world.replica().exists() && !world.path("replica.db-logmirror").exists());
}

#[test]
fn another_log_is_refused_and_adopted_with_the_old_file_aside() {
    let world = World::new();
    world.feed();
    let second = world.path("second.db");
    connect(&second).execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES ('second')").unwrap();
    is_done(&mirror(arg(&second), world.service.url("other"), &[]));
    is_done(&world.pull(&[]));
    let other = |flags: &[&str]| mirror(world.service.url("other"), arg(&world.replica()), flags);
    is_refused(&other(&[]), 1, &["it follows http://", "logs/app", "logs/other", "--adopt"]);
    is_refused(&other(&["--dry-run"]), 1, &["--adopt"]);
    let held = content(&world.replica());
    is_done(&other(&["--adopt"]));
    assert_eq!(world.aside().len(), 1);
    assert_eq!(content(&world.path(&world.aside()[0])), held);
    assert!(record(&world)["source"].as_str().unwrap().ends_with("/logs/other"));
    is_done(&other(&[]));
}

#[test]
fn two_mirrors_of_one_file_do_not_run_at_once() {
    let world = World::new();
    world.feed();
    let first = Mirror::start(world.url(), arg(&world.replica()), &["--follow"]);
    until("the file to be there", || world.replica().exists().then_some(()));
    is_refused(&world.pull(&[]), 3, &["another mirror is keeping this file"]);
    first.kill();
    is_done(&world.pull(&[]));
}

#[test]
fn a_replica_is_no_source_by_accident() {
    let world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    for sink in [world.url(), world.service.url("new"), arg(&world.path("copy")).to_owned()] {
        is_refused(
            &mirror(arg(&world.replica()), sink, &[]),
            2,
            &["are the arguments swapped", "replica.db-logmirror"],
        );
    }
    let libsql = world.url().replace("http://", "libsql+http://");
    for (source, sink) in [(arg(&world.replica()), &*libsql), (&*libsql, arg(&world.replica()))] {
        is_refused(&mirror(source, sink, &[]), 2, &["a read replica file that follows http://"]);
    }
    fs::remove_file(world.path("replica.db-logmirror")).unwrap();
    is_done(&mirror(arg(&world.replica()), world.service.url("new"), &[]));
}

#[test]
fn a_file_that_must_exist_is_not_made() {
    let world = World::new();
    world.feed();
    is_refused(&world.pull(&["--create=never"]), 2, &["does not exist"]);
    assert!(!world.replica().exists() && !world.path("replica.db-logmirror").exists());
    is_done(&world.pull(&[]));
    is_done(&world.pull(&["--create=never"]));
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let mut world = World::new();
    world.feed();
    let plan = world.pull(&["--dry-run"]);
    assert_eq!((plan.code, &plan.lines[0]["creates"]), (Some(0), &arg(&world.replica()).into()));
    assert!(!world.replica().exists());
    is_done(&world.pull(&[]));
    world.insert("second");
    world.feed();
    let files = || ["replica.db", "replica.db-logmirror"].map(|name| fs::read(world.path(name)).unwrap());
    let before = files();
    let plan = world.pull(&["--dry-run"]);
    let next = record(&world)["now"]["next"].clone();
    assert_eq!((&plan.lines[0]["creates"], &plan.lines[0]["from"]), (&serde_json::Value::Null, &next), "{plan:?}");
    assert!(plan.lines[0]["to"].as_u64() > next.as_u64());
    assert!(before == files());
}

#[test]
fn status_and_verify_say_what_it_follows() {
    let world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    for command in ["status", "verify"] {
        let output = logmirror(&[command, arg(&world.replica()), "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["replica_of"]["source"], world.url().as_str(), "{said}");
        assert_eq!(said["replica_of"]["next"], record(&world)["now"]["next"]);
    }
}

#[test]
fn no_secret_is_in_the_record() {
    let world = World::new();
    world.feed();
    let url = world.url().replace("http://", "http://:secret@");
    is_done(&mirror(url, arg(&world.replica()), &[]));
    let text = fs::read_to_string(world.path("replica.db-logmirror")).unwrap();
    assert!(text.contains(&world.url()) && !text.contains("secret"), "{text}");
}

#[test]
fn a_log_that_was_made_again_under_its_name_is_another_one() {
    let mut world = World::new();
    world.feed();
    is_done(&world.pull(&[]));
    world.service.kill();
    fs::rename(world.path("data/logs/app"), world.path("old")).unwrap();
    world.service.restart();
    // Its base is another one.
    world.app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    world.insert("second");
    world.feed();
    is_refused(&world.pull(&[]), 1, &["it follows http://", "--adopt"]);
    let held = content(&world.replica());
    is_done(&world.pull(&["--adopt"]));
    assert_eq!(content(&world.path(&world.aside()[0])), held);
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn a_log_with_another_id_and_the_same_base_and_frames_is_gone_on_with() {
    let mut world = World::new();
    for flags in [&[][..], &["--follow"]] {
        world.feed();
        is_done(&world.pull(&[]));
        let (id, inode) = (record(&world)["log"].clone(), fs::metadata(world.replica()).unwrap().ino());
        world.service.kill();
        fs::remove_dir_all(world.path("data/logs/app")).unwrap();
        world.service.restart();
        world.insert("more");
        let following = (!flags.is_empty()).then(|| {
            // While it is empty it is not known to be another one.
            let client = world.service.client("app");
            world.service.call(client.create(LogFormat::Wal, None)).unwrap();
            let following = Mirror::start(world.url(), arg(&world.replica()), flags);
            following.wait_for("a wait", |line| line["event"] == "retrying");
            following
        });
        world.feed();
        match following {
            Some(following) => {
                let (wanted, replica) = (content(&world.source()), world.replica());
                until("all that is new", || (content(&replica) == wanted).then_some(()));
                following.terminate();
            }
            None => {
                assert_eq!(world.pull(&["--dry-run"]).code, Some(0));
                is_done(&world.pull(&[]));
            }
        }
        assert_eq!(content(&world.replica()), content(&world.source()));
        assert_eq!(fs::metadata(world.replica()).unwrap().ino(), inode, "it is the same file");
        assert!(record(&world)["log"] != id && world.aside().is_empty());
    }
}

#[test]
fn a_source_that_went_back_is_refused_unless_adopted() {
    let mut world = World::new();
    world.feed();
    world.service.kill();
    let copy = |from: &str, to: &str| {
        fs::create_dir_all(world.path(to)).unwrap();
        for entry in fs::read_dir(world.path(from)).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file())
        {
            fs::copy(entry.path(), world.path(to).join(entry.file_name())).unwrap();
        }
    };
    for dir in ["", "/0000000001"] {
        copy(&format!("data/logs/app{dir}"), &format!("backup{dir}"));
    }
    world.service.restart();
    world.insert("second");
    world.feed();
    is_done(&world.pull(&[]));
    world.service.kill();
    fs::remove_dir_all(world.path("data/logs/app")).unwrap();
    fs::rename(world.path("backup"), world.path("data/logs/app")).unwrap();
    world.service.restart();
    is_refused(&world.pull(&[]), 1, &["before the sink"]);
    // It goes on in another way than before: what was committed in between is one transaction.
    world.app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    world.insert("third");
    world.feed();
    let ended = world.pull(&[]);
    assert_eq!((ended.code, world.aside().len()), (Some(1), 0), "{ended:?}");
    let held = content(&world.replica());
    is_done(&world.pull(&["--adopt"]));
    assert_eq!(content(&world.path(&world.aside()[0])), held);
    assert_eq!(content(&world.replica()), content(&world.source()));
}

#[test]
fn a_link_is_not_written_through() {
    let world = World::new();
    world.feed();
    std::os::unix::fs::symlink(world.path("elsewhere.db"), world.replica()).unwrap();
    is_refused(&world.pull(&[]), 2, &["symbolic link"]);
    assert!(!world.path("elsewhere.db").exists());
}

/// SQLite and we find the files of a database by their names: one without a byte is in use like any other.
#[test]
fn the_name_of_a_file_beside_a_database_is_no_place_for_another() {
    let world = World::new();
    world.feed();
    let live = world.path("live.db");
    let db = connect(&live);
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    fs::write(world.path("live.db-journal"), "").unwrap();
    let files = |name: &str| fs::metadata(world.path(name)).ok().map(|found| (found.ino(), found.len()));
    let names = ["live.db-wal", "live.db-shm", "live.db-journal", "live.db-info", "live.db-logmirror"];
    let before = names.map(files);
    assert!(before[0].is_some_and(|(_, bytes)| bytes == 0) && before[3..] == [None, None]);
    let libsql = world.url().replace("http://", "libsql+http://");
    for name in names {
        let place = world.path(name);
        for (source, flags) in [(world.url(), &["--adopt"][..]), (world.url(), &["--dry-run"]), (libsql.clone(), &[])] {
            is_refused(&mirror(source, arg(&place), flags), 2, &[name]);
        }
        let output = logmirror(&["restore", &world.url(), arg(&place), "--force"]);
        assert_eq!(output.status.code(), Some(2), "{name} {output:?}");
    }
    let output = logmirror(&["replica", arg(&live), &libsql]);
    assert!(output.status.code() == Some(2) && !world.path("live.db-draft").exists(), "{output:?}");
    assert!(names.map(files) == before, "nothing is written");
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    assert_eq!(connect(&live).query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)), Ok(1));
    // The same names without that database are names like others.
    is_done(&mirror(world.url(), arg(&world.path("gone-info")), &[]));
}

#[test]
fn a_source_that_lost_its_acknowledged_end_is_said_to_be_damaged() {
    let mut world = World::new();
    world.feed();
    let segment = world.service.segments_of("app").join("00000000000000000001.wal");
    let change = |world: &mut World, from: &Path, to: &Path| {
        world.service.kill();
        fs::copy(from, to).unwrap();
        world.service.restart();
    };
    let older = world.path("older.wal");
    change(&mut world, &segment, &older);
    world.insert("second");
    world.feed();
    change(&mut world, &older, &segment);
    for flags in [&[][..], &["--follow"]] {
        is_refused(&world.pull(flags), 1, &["damaged on the service at offset", "repair it"]);
    }
    let out = world.path("out.db");
    let restored = |flags: &[&str]| logmirror(&[&["restore", &world.url(), arg(&out)], flags].concat());
    let output = restored(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("damaged on the service at offset"), "{output:?}");
    // What is whole can be had.
    let last = said.split_once("--to ").unwrap().1.split(' ').next().unwrap();
    assert_eq!(restored(&["--to", last]).status.code(), Some(0));
    assert!(content(&out).contains("first"));
}
