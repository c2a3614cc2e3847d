//! Files of a replica that are damaged, gone, or of another moment: a clear error, or a replica with all that it had.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use logmirror::replica::{Options, ReplicaError, SyncEngine, Value};
use logmirror::sync::Remote;

use super::Rig;

/// A replica that has pulled and pushed, and has changes that it has not pushed.
fn used(rig: &Rig) {
    let one = rig.open("one");
    one.run("CREATE TABLE n(x)");
    one.run("INSERT INTO n VALUES (1)");
    one.sync();
    rig.ask("INSERT INTO n VALUES (2)");
    one.run("INSERT INTO n VALUES (3)");
    one.push();
    one.run("INSERT INTO n VALUES (4)");
}

fn files(rig: &Rig) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(rig.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn restore(rig: &Rig, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(rig.dir.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (path, content) in files {
        fs::write(path, content).unwrap();
    }
}

/// The values, in order.
fn values(rows: Vec<Vec<Value>>) -> Vec<i64> {
    let value = |row: Vec<Value>| match row[..] {
        [Value::Integer(value)] => value,
        _ => panic!("{row:?}"),
    };
    rows.into_iter().map(value).collect()
}

/// Fails unless the replica opens with all it had, and brings that to the remote once.
#[track_caller]
fn goes_on(rig: &Rig, context: &str) {
    let one = rig.try_open("one", Options::default()).unwrap_or_else(|error| panic!("{context}: {error}"));
    one.sync();
    assert_eq!(values(rig.ask("SELECT x FROM n ORDER BY x")), [1, 2, 3, 4], "{context}");
    assert_eq!(one.dump(), rig.dump(), "{context}");
}

#[test]
fn a_damaged_info_is_a_clear_error_and_changes_nothing() {
    let rig = Rig::new();
    used(&rig);
    let before = files(&rig);
    let info = rig.path("one-info");
    let good = before[&info].clone();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    damaged.extend((0..good.len()).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    }));
    damaged.extend([&b"{}"[..], b"null", b"[1]", &[0; 700], &[0xff; 700]].map(<[u8]>::to_vec));
    damaged.push([&good[..], b"}"].concat());
    damaged.push(String::from_utf8(good.clone()).unwrap().replace("\"version\":1", "\"version\":2").into());
    for content in damaged {
        fs::write(&info, &content).unwrap();
        match rig.try_open("one", Options::default()) {
            Err(ReplicaError::Info { file, reason }) => assert!(file == "one-info" && !reason.is_empty()),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{:?} is believed", String::from_utf8_lossy(&content)),
        }
        assert_eq!(fs::read(&info).unwrap(), content);
    }
    fs::write(&info, &good).unwrap();
    assert_eq!(files(&rig), before);
    goes_on(&rig, "the info as it was");
}

/// Its generation may have as many frames as the right one.
#[test]
fn an_info_that_says_another_generation_is_named_with_what_is_there_and_stays() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE n(x)");
    assert_eq!(rig.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    rig.ask("INSERT INTO n VALUES (0)");
    let end = rig.service.get("/logs/app/segments?generation=1").json()[0]["end"].as_u64().unwrap();
    let durable = || rig.service.status("app")["durable"].as_u64().unwrap();
    while durable() < end {
        rig.ask("INSERT INTO n VALUES (1)");
    }
    assert_eq!(durable(), end);
    let one = rig.open("one");
    one.run("INSERT INTO n VALUES (2)");
    drop(one);
    let info = rig.path("one-info");
    let right = fs::read_to_string(&info).unwrap();
    for (generation, there) in [(1, "is another one on the remote"), (7, "the remote is at generation 2")] {
        let (_, rest) = right.split_once("\"info\":").unwrap();
        let said =
            rest[..rest.len() - 1].replace("\"synced_generation\":2", &format!("\"synced_generation\":{generation}"));
        assert_ne!(said, rest[..rest.len() - 1]);
        let hash = crc32c::crc32c(format!("1{said}").as_bytes());
        let wrong = format!("{{\"version\":1,\"hash\":{hash},\"info\":{said}}}");
        fs::write(&info, &wrong).unwrap();
        for pushes in [true, false] {
            let one = rig.open("one");
            let refused = if pushes { one.wait(one.engine.push()) } else { one.wait(one.engine.pull()) };
            let text = refused.expect_err(there).to_string();
            assert!(text.contains("one-info says ") && text.contains(&format!("generation {generation}")), "{text}");
            assert!(text.contains(there), "{text}");
        }
        assert_eq!(fs::read_to_string(&info).unwrap(), wrong);
    }
    fs::write(&info, right).unwrap();
    let one = rig.open("one");
    one.sync();
    assert_eq!(one.dump(), rig.dump());
}

#[test]
fn a_replica_whose_info_cannot_be_used_is_made_anew_and_nothing_is_thrown_away() {
    let rig = Rig::new();
    used(&rig);
    fs::write(rig.path("one-info"), b"").unwrap();
    let rebuild = Options { rebuild: true, ..Options::default() };
    let one = rig.try_open("one", rebuild).unwrap();
    assert_eq!(one.dump(), rig.dump());
    assert_eq!(values(one.ask("SELECT x FROM n ORDER BY x")), [1, 2, 3]);
    let aside = files(&rig).into_keys().filter(|path| path.to_str().unwrap().contains("set-aside"));
    let aside: Vec<String> = aside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    let (draft, dir) = (aside.iter().find(|name| name.ends_with("-draft")).unwrap(), rig.dir.path());
    assert_eq!(super::support::sqlite::run(&dir.join(draft), "SELECT x FROM n ORDER BY x").unwrap(), "1\n3\n4\n");
}

/// Whatever else is gone with it: what the application wrote is in one of those that are left.
#[test]
fn files_of_a_replica_without_its_info_are_refused_and_stay_and_rebuild_keeps_the_rows() {
    let rebuild = || Options { rebuild: true, ..Options::default() };
    for (gone, named) in [
        (&["one-info"][..], "one-draft"),
        (&["one-info", "one-synced", "one-synced-wal"], "one-draft"),
        (&["one-info", "one-draft"], "one-draft-wal"),
        (&["one-info", "one-draft", "one-draft-wal"], "one-pushed.1"),
    ] {
        let rig = Rig::new();
        used(&rig);
        for file in gone {
            fs::remove_file(rig.path(file)).unwrap();
        }
        let (before, there) = (files(&rig), rig.dump());
        match rig.try_open("one", Options::default()) {
            Err(error @ ReplicaError::Missing { .. }) => {
                let text = error.to_string();
                assert!(text.contains("one-info is missing") && text.contains(named), "{text}");
                assert!(text.contains("--rebuild") && error.is_data(), "{text}");
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("without {gone:?} it is made from scratch"),
        }
        assert!(files(&rig) == before, "{gone:?}: a file was changed");
        let one = rig.try_open("one", rebuild()).unwrap();
        assert_eq!((one.dump(), rig.dump()), (there.clone(), there), "{gone:?}");
        let kept: Vec<_> =
            files(&rig).into_iter().filter(|(path, _)| path.to_str().unwrap().contains("set-aside")).collect();
        for (path, content) in before {
            assert!(kept.iter().any(|(_, kept)| *kept == content), "{}", path.display());
        }
    }
}

#[test]
fn what_a_crash_leaves_of_a_replica_in_the_making_is_no_replica() {
    let rig = Rig::new();
    rig.ask("CREATE TABLE n(x)");
    rig.ask("INSERT INTO n VALUES (1)");
    drop(rig.open("other"));
    let database = fs::read(rig.path("other-synced")).unwrap();
    for left in [&["one-synced"][..], &["one-synced", "one-draft"], &["one-synced.part", "one-draft.part"]] {
        for file in left {
            fs::write(rig.path(file), &database).unwrap();
        }
        let one = rig.try_open("one", Options::default()).unwrap_or_else(|error| panic!("{left:?}: {error}"));
        assert_eq!(one.dump(), rig.dump());
        drop(one);
        for (path, _) in files(&rig).iter().filter(|(path, _)| path.to_str().unwrap().contains("/one-")) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// The info of another replica of the same log, and of another log.
#[test]
fn the_info_of_another_replica_is_refused_and_nothing_changes() {
    let rig = Rig::new();
    used(&rig);
    drop(rig.open("other"));
    let own = fs::read(rig.path("one-info")).unwrap();
    fs::copy(rig.path("other-info"), rig.path("one-info")).unwrap();
    let (before, there) = (files(&rig), rig.dump());
    match rig.try_open("one", Options::default()) {
        Err(ReplicaError::Mismatch { .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is taken for its own"),
    }
    assert!(files(&rig) == before, "a file was changed");
    assert_eq!(rig.dump(), there);
    fs::write(rig.path("one-info"), own).unwrap();
    goes_on(&rig, "its own info");
}

/// Two logs whose generations have the same number, with no frame or as many.
#[test]
fn a_replica_of_one_log_changes_nothing_of_another_and_takes_nothing_from_it() {
    for frames in 0..2 {
        let rig = Rig::new();
        assert_eq!(rig.service.put("/logs/b", r#"{"format":"wal"}"#).status, 201);
        for log in ["app", "b"] {
            rig.execute(log, "CREATE TABLE n(x)");
            rig.execute(log, &format!("INSERT INTO n VALUES ('{log}')"));
            assert_eq!(rig.service.call("POST", &format!("/logs/{log}/checkpoint"), "", b"").status, 200);
            for frame in 0..frames {
                rig.execute(log, &format!("INSERT INTO n VALUES ('{log} {frame}')"));
            }
        }
        let one = rig.open("one");
        one.run("INSERT INTO n VALUES ('offline')");
        drop(one);
        rig.execute("b", "INSERT INTO n VALUES ('more')");
        let (before, own) = (rig.ask_log("b", "SELECT x FROM n"), rig.dump());
        let remote = Remote::new(&rig.service.url("/logs/b"), None).unwrap();
        let path = rig.path("one");
        let opening = SyncEngine::open(&path, remote, Options::default());
        let outcome = rig.service.runtime.block_on(async { opening.await?.sync().await });
        let error = outcome.expect_err("the other log is taken for its own");
        assert!(error.is_data(), "{error}");
        assert_eq!((rig.ask_log("b", "SELECT x FROM n"), rig.dump()), (before, own));
        let one = rig.open("one");
        one.sync();
        assert_eq!(one.dump(), rig.dump());
        assert_eq!(rig.dump()["rows of n"].len(), 2 + frames);
    }
}

#[test]
fn a_missing_database_is_a_clear_error() {
    for file in ["one-draft", "one-synced"] {
        let rig = Rig::new();
        used(&rig);
        fs::remove_file(rig.path(file)).unwrap();
        let error = rig.try_open("one", Options::default()).err().unwrap();
        assert!(matches!(&error, ReplicaError::Missing { file: missing, .. } if missing == file), "{error}");
    }
}

#[test]
fn a_missing_wal_is_refused_and_takes_nothing_from_the_remote() {
    for file in ["one-draft-wal", "one-synced-wal"] {
        let rig = Rig::new();
        used(&rig);
        fs::remove_file(rig.path(file)).unwrap();
        let (before, there) = (files(&rig), rig.dump());
        match rig.try_open("one", Options::default()) {
            Err(error) => assert!(error.is_data(), "{file}: {error}"),
            Ok(_) => panic!("without {file} it is taken for whole"),
        }
        // The engine may have made an empty one.
        for (path, content) in before {
            assert!(fs::read(&path).unwrap() == content, "{}", path.display());
        }
        assert_eq!(rig.dump(), there, "{file}");
    }
}

/// Each file of a replica as of each of several moments, beside the others as of the last: an older copy is refused, or all
/// comes out right.
#[test]
fn an_older_copy_of_any_file_is_refused_or_harmless() {
    let rig = Rig::new();
    let mut moments = Vec::new();
    {
        let one = rig.open("one");
        moments.push(files(&rig));
        one.run("CREATE TABLE n(x)");
        one.run("INSERT INTO n VALUES (1)");
        moments.push(files(&rig));
        one.sync();
        moments.push(files(&rig));
        rig.ask("INSERT INTO n VALUES (2)");
        one.run("INSERT INTO n VALUES (3)");
        one.push();
        moments.push(files(&rig));
    }
    let last = {
        let one = rig.open("one");
        one.run("INSERT INTO n VALUES (4)");
        drop(one);
        files(&rig)
    };
    let (mut refused, mut harmless) = (0, 0);
    for older in &moments {
        for file in ["one-info", "one-synced", "one-synced-wal"] {
            let path = rig.path(file);
            let mut mixed = last.clone();
            match older.get(&path) {
                Some(content) if last.get(&path) != Some(content) => mixed.insert(path, content.clone()),
                None if last.contains_key(&path) => mixed.remove(&path),
                _ => continue,
            };
            restore(&rig, &mixed);
            let opened = rig.try_open("one", Options::default());
            let synced = opened.and_then(|one| {
                let report = one.wait(one.engine.sync())?;
                Ok((one.dump(), report))
            });
            match synced {
                Ok((dump, report)) => {
                    // Whatever was done is what all three say, and nothing is there twice.
                    let there = values(rig.ask("SELECT x FROM n ORDER BY x"));
                    assert_eq!(there, [1, 2, 3, 4], "{file}: {report:?}");
                    assert_eq!(dump, rig.dump(), "{file}");
                    // What comes after would find it pushed.
                    rig.ask("DELETE FROM n WHERE x = 4");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(error.is_data(), "{file}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused + harmless > 4, "{refused} {harmless}");
}

/// Applications make their tables where there are none.
#[test]
fn a_draft_that_was_made_anew_is_refused_before_and_after_the_first_pull_and_empties_no_remote() {
    for pulls in 0..2 {
        let rig = Rig::new();
        rig.ask("CREATE TABLE todo(id INTEGER PRIMARY KEY, t)");
        rig.ask("INSERT INTO todo VALUES (1, 'a'), (2, 'b')");
        rig.ask("CREATE TABLE other(x)");
        let one = rig.open("one");
        for _ in 0..pulls {
            rig.ask("INSERT INTO other VALUES (1)");
            one.sync();
        }
        drop(one);
        let before = rig.dump();
        for suffix in ["", "-wal", "-shm"] {
            let _none = fs::remove_file(rig.path(&format!("one-draft{suffix}")));
        }
        let anew = rusqlite::Connection::open(rig.path("one-draft")).unwrap();
        anew.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE todo(id INTEGER PRIMARY KEY, t)").unwrap();
        drop(anew);
        match rig.try_open("one", Options::default()) {
            Err(ReplicaError::Mismatch { what }) => assert!(what.contains("one-draft"), "{what}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("after {pulls} pulls it is taken for the replica's"),
        }
        assert_eq!(rig.dump(), before);
    }
}
