//! What is at the path of a replica and may be an application's, or another kind of file: never replaced without `--adopt`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fake::Fault;
use crate::sqlite::{self, Open, dump, rows};
use crate::support::process::{Ended, arg, mirror};
use crate::support::sqlite::Sqlite;
use crate::{Stage, beside, frames, litter, set_aside, set_info};

/// A server with a database, and its URL.
fn served() -> (Stage, PathBuf) {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    stage.fake.seen();
    (stage, db)
}

/// The files of a database.
fn files(path: &Path) -> Vec<Option<Vec<u8>>> {
    ["", "-wal", "-info", "-journal"].iter().map(|ending| fs::read(beside(path, ending)).ok()).collect()
}

fn refused(ended: &Ended) {
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for part in ["may be an application's", "nothing was changed", "--adopt"] {
        assert!(ended.error().contains(part), "{part:?} is not in {ended:?}");
    }
}

#[test]
fn a_database_without_metadata_that_is_not_the_servers_is_refused_and_with_adopt_set_aside() {
    type Make = (&'static str, fn(&Path));
    let kinds: [Make; 5] = [
        ("in WAL mode", |path| drop(sqlite::run(path, &format!("PRAGMA journal_mode=WAL; {}", rows(30))).unwrap())),
        ("all in its WAL", |path| {
            sqlite::run_and_die(path, "CREATE TABLE mine(x); INSERT INTO mine VALUES('precious');")
        }),
        ("with a rollback journal", |path| drop(sqlite::run(path, &rows(30)).unwrap())),
        ("with other pages", |path| drop(sqlite::run(path, &format!("PRAGMA page_size=1024; {}", rows(30))).unwrap())),
        ("no database", |path| fs::write(path, "hello, this is no database, at all".repeat(300)).unwrap()),
    ];
    for (kind, make) in kinds {
        for follow in [false, true] {
            let (stage, db) = served();
            let path = stage.path("mine.db");
            make(&path);
            let before = files(&path);
            let flags: &[&str] = if follow { &["--follow"] } else { &[] };
            refused(&mirror(stage.fake.url(), arg(&path), flags));
            assert_eq!((files(&path), litter(&path)), (before.clone(), Vec::<String>::new()), "{kind}");
            if follow {
                continue;
            }
            let ended = mirror(stage.fake.url(), arg(&path), &["--adopt"]);
            assert_eq!(ended.code, Some(0), "{kind}: {ended:?}");
            assert_eq!(dump(&path), dump(&db), "{kind}");
            let aside = set_aside(&path);
            assert_eq!(aside.len(), 1, "{kind}: {aside:?}");
            assert_eq!(files(&aside[0])[..2], before[..2], "{kind}");
            assert_eq!(mirror(stage.fake.url(), arg(&path), &[]).code, Some(0), "{kind}: it is a replica now");
        }
    }
}

#[test]
fn an_application_that_has_its_database_open_keeps_it() {
    let (stage, db) = served();
    let path = stage.path("mine.db");
    let mut app = Open::start(&path);
    app.run("PRAGMA journal_mode=WAL; CREATE TABLE mine(x); INSERT INTO mine VALUES('before');");
    refused(&mirror(stage.fake.url(), arg(&path), &[]));
    app.run("INSERT INTO mine VALUES('after');");
    drop(app);
    assert!(dump(&path).contains("before") && dump(&path).contains("after"));
    assert_eq!(litter(&path), Vec::<String>::new());
    // The server's pages, and a row more: its history is known, but not whose the row is.
    let copy = stage.path("copy.db");
    stage.pull(&copy).unwrap();
    fs::remove_file(beside(&copy, "-info")).unwrap();
    sqlite::run_and_die(&copy, "INSERT INTO t VALUES('mine', 1);");
    let before = files(&copy);
    refused(&mirror(stage.fake.url(), arg(&copy), &[]));
    assert_eq!((files(&copy), litter(&copy)), (before, Vec::<String>::new()));
    assert_ne!(dump(&copy), dump(&db));
}

#[test]
fn a_server_that_cannot_be_read_decides_nothing_about_a_file() {
    let (stage, _) = served();
    let path = stage.path("mine.db");
    sqlite::run(&path, &rows(30)).unwrap();
    let before = files(&path);
    stage.fake.fault("GET export", Fault::Answer(404, "no".into()));
    let ended = mirror(stage.fake.url(), arg(&path), &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!((files(&path), litter(&path)), (before, Vec::<String>::new()));
}

#[test]
fn a_database_that_is_pushed_is_not_replaced_by_a_pull() {
    let (stage, db) = served();
    // Closed: its WAL is checkpointed away. Then the arguments are swapped.
    sqlite::run(&db, "INSERT INTO t VALUES('mine', 1)").unwrap();
    assert_eq!(frames(&db), 0);
    let before = files(&db);
    refused(&mirror(stage.fake.url(), arg(&db), &[]));
    assert_eq!((files(&db), litter(&db)), (before, Vec::<String>::new()));
    assert_eq!(mirror(stage.fake.url(), arg(&db), &["--adopt"]).code, Some(0));
    assert!(!dump(&db).contains("mine"));
}

#[test]
fn a_replica_of_another_history_is_refused_and_with_adopt_made_again() {
    let (stage, db) = served();
    let replica = stage.path("replica.db");
    stage.pull(&replica).unwrap();
    stage.fake.store().generations[0].frames.last_mut().unwrap()[4000] ^= 1;
    let ended = mirror(stage.fake.url(), arg(&replica), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains("fork"), "{ended:?}");
    let ended = mirror(stage.fake.url(), arg(&replica), &["--adopt"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_ne!(fs::read(beside(&replica, "-wal")).unwrap()[32..], fs::read(beside(&db, "-wal")).unwrap()[32..]);
    assert!(litter(&replica).iter().any(|name| name.starts_with("replica.db.aside-")), "{:?}", litter(&replica));
    assert_eq!(mirror(stage.fake.url(), arg(&replica), &[]).code, Some(0));
}

#[test]
fn two_that_are_set_aside_in_one_second_have_names_of_their_own() {
    let (stage, db) = served();
    let path = stage.path("mine.db");
    for round in 0..3 {
        for ending in ["", "-wal", "-shm", "-info"] {
            let _ = fs::remove_file(beside(&path, ending));
        }
        sqlite::run_and_die(&path, &format!("CREATE TABLE mine(x); INSERT INTO mine VALUES({round});"));
        let ended = mirror(stage.fake.url(), arg(&path), &["--adopt"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    assert_eq!(dump(&path), dump(&db));
    let mut found: Vec<_> = set_aside(&path).iter().map(|aside| dump(aside)).collect();
    found.sort();
    assert!(found.len() == 3 && (0..3).all(|round| found[round].contains(&format!("mine: [{round}]"))), "{found:?}");
}

#[test]
fn a_pushed_database_that_was_replaced_with_adopt_stays_for_the_application_that_has_it_open() {
    let stage = Stage::new();
    let path = stage.path("app.db");
    let mut app = Sqlite::open(&path);
    app.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    assert_eq!(mirror(arg(&path), stage.fake.url(), &[]).code, Some(0));
    app.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(mirror(stage.fake.url(), arg(&path), &["--adopt"]).code, Some(0));
    app.rows("INSERT INTO t VALUES ('after')");
    let aside = set_aside(&path);
    assert_eq!(aside.len(), 1, "{aside:?}");
    app.close();
    assert_eq!(sqlite::run(&aside[0], "SELECT count(*) FROM t").unwrap(), "2\n");
    // What was pushed of it is known there too.
    let pushed = mirror(arg(&aside[0]), stage.fake.url(), &[]);
    assert_eq!(pushed.code, Some(0), "{pushed:?}");
    stage.pull(&path).unwrap();
    assert!(dump(&path).contains("after"));
}

#[test]
fn a_database_whose_metadata_cannot_be_read_or_believed_is_not_replaced() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 4] = [
        ("damaged", |info| fs::write(info, "damaged").unwrap()),
        ("a damaged mark", |info| {
            let content = fs::read_to_string(info).unwrap();
            fs::write(info, content.replace("\"pushed\":{\"last\":\"", "\"pushed\":{\"last\":\"0")).unwrap();
        }),
        ("of another time", |info| {
            let hash = crc32fast::hash([1_u32, 3, 1].map(u32::to_le_bytes).as_flattened());
            fs::write(info, format!(r#"{{"hash":{hash},"version":1,"durable_frame_num":3,"generation":1}}"#)).unwrap();
        }),
        ("not readable", |info| {
            fs::remove_file(info).unwrap();
            std::os::unix::fs::symlink(info, info).unwrap();
        }),
    ];
    for (damage, apply) in damages {
        let (stage, db) = served();
        sqlite::run(&db, "INSERT INTO t VALUES('mine', 1)").unwrap();
        apply(&beside(&db, "-info"));
        let before = files(&db);
        let ended = mirror(stage.fake.url(), arg(&db), &[]);
        match damage {
            "not readable" => assert_eq!(ended.code, Some(3), "{ended:?}"),
            _ => refused(&ended),
        }
        assert_eq!((files(&db), litter(&db)), (before, Vec::<String>::new()), "{damage}");
    }
}

#[test]
fn a_pushed_database_whose_wal_grew_past_what_was_pushed_after_a_checkpoint_is_refused_unopened() {
    let (stage, db) = served();
    let pushed = frames(&db);
    let mut app = Open::start(&db);
    app.run("PRAGMA wal_autocheckpoint=0; PRAGMA wal_checkpoint(TRUNCATE);");
    app.run(&rows(30));
    drop(app);
    assert!(frames(&db) > pushed);
    let before = files(&db);
    refused(&mirror(stage.fake.url(), arg(&db), &[]));
    assert_eq!((files(&db), litter(&db)), (before, Vec::<String>::new()));
}

#[test]
fn a_replica_that_has_another_name_is_not_written_through() {
    let (stage, db) = served();
    let (replica, backup) = (stage.path("replica.db"), stage.path("backup"));
    stage.pull(&replica).unwrap();
    for ending in ["", "-wal"] {
        sqlite::run_and_die(&db, "INSERT INTO t VALUES('more', 1);");
        stage.push(&db).unwrap();
        fs::hard_link(beside(&replica, ending), &backup).unwrap();
        let before = (files(&replica), fs::read(&backup).unwrap());
        let ended = mirror(stage.fake.url(), arg(&replica), &[]);
        assert_ne!(ended.code, Some(0), "{ended:?}");
        assert!(ended.error().contains("hard link") && ended.error().contains("cp "), "{ended:?}");
        assert_eq!((files(&replica), fs::read(&backup).unwrap()), before);
        fs::remove_file(&backup).unwrap();
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db));
    }
}

#[test]
fn a_replica_that_is_made_again_is_not_removed_while_another_process_has_it_open() {
    for is_open in [true, false] {
        let (stage, db) = served();
        let replica = stage.path("replica.db");
        stage.pull(&replica).unwrap();
        let mut reader = Sqlite::open(&replica);
        // Its WAL is gone, and nothing says what its pages were.
        reader.rows("PRAGMA wal_checkpoint(TRUNCATE)");
        set_info(&replica, 1, frames(&db));
        reader.rows("SELECT count(*) FROM sqlite_schema");
        let reader = match is_open {
            true => Some(reader),
            false => {
                reader.close();
                None
            }
        };
        stage.pull(&replica).unwrap();
        assert_eq!(set_aside(&replica).len(), usize::from(is_open));
        drop(reader);
        assert_eq!(dump(&replica), dump(&db));
    }
}

#[test]
fn what_an_application_left_beside_a_free_place_is_set_aside() {
    let (stage, db) = served();
    for ending in ["-wal", "-journal"] {
        let replica = stage.path(&format!("replica{ending}.db"));
        fs::write(beside(&replica, ending), b"committed, and nowhere else").unwrap();
        let ended = mirror(stage.fake.url(), arg(&replica), &[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(dump(&replica), dump(&db));
        let kept = litter(&replica).into_iter().find(|name| name.contains(".aside-") && name.ends_with(ending));
        let kept = fs::read(stage.path(&kept.expect("it is set aside"))).unwrap();
        assert_eq!(kept, b"committed, and nowhere else");
        assert!(ended.errors.contains("set aside as"), "{ended:?}");
    }
}
