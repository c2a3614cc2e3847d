//! Readers of a replica that are the last to close it, which puts its WAL into the file: it goes on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::fake::{Fault, calls, pulled};
use crate::sqlite::{self, dump, large, rows};
use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::sqlite::Sqlite;
use crate::{Stage, beside, frames, info, litter, set_aside, set_info};

/// A replica, and its source.
fn pulled_once() -> (Stage, PathBuf, PathBuf) {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    stage.fake.seen();
    (stage, db, replica)
}

/// Reads all of it, and closes it as the last one.
fn read_and_close(replica: &Path) {
    assert_eq!(sqlite::run(replica, "PRAGMA integrity_check").unwrap(), "ok\n");
    assert!(!beside(replica, "-wal").exists());
}

/// Frames pulled, if nothing was downloaded but frames.
fn only_frames(stage: &Stage) -> u32 {
    let seen = stage.fake.seen();
    assert!(calls(&seen).iter().all(|call| call.starts_with("GET sync")), "{seen:?}");
    pulled(&seen)
}

#[test]
fn each_refresh_after_a_reader_closed_it_downloads_only_what_is_new() {
    let (stage, db, replica) = pulled_once();
    let statements = [
        "INSERT INTO t VALUES('more', 1);",
        "DELETE FROM t WHERE a < 5; VACUUM;",
        "DROP TABLE t; CREATE TABLE t(a, b); VACUUM;",
    ];
    for round in 0..12 {
        if round % 4 != 3 {
            read_and_close(&replica);
        }
        let before = frames(&db);
        match round % 5 {
            4 => sqlite::run_and_die(&db, &large(50)),
            kind => sqlite::run_and_die(&db, statements[kind % 3]),
        }
        stage.push(&db).unwrap();
        stage.fake.seen();
        stage.pull(&replica).unwrap();
        assert_eq!(only_frames(&stage), frames(&db) - before + 1, "round {round}");
        assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, frames(&db))), "round {round}");
        assert_eq!(litter(&replica), Vec::<String>::new(), "round {round}");
    }
    // Nothing new.
    read_and_close(&replica);
    stage.pull(&replica).unwrap();
    assert_eq!((only_frames(&stage), dump(&replica)), (1, dump(&db)));
    // Then the generation ends, also twice.
    for generation in 2..4 {
        stage.fake.roll();
        stage.pull(&replica).unwrap();
        assert_eq!((info(&replica), dump(&replica)), ((generation, 0), dump(&db)));
        read_and_close(&replica);
    }
    let writer = stage.path("writer.db");
    stage.pull(&writer).unwrap();
    sqlite::run_and_die(&writer, &rows(5));
    stage.push(&writer).unwrap();
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    assert_eq!((only_frames(&stage), dump(&replica)), (frames(&writer), dump(&writer)));
}

#[test]
fn a_server_with_another_history_is_noticed_after_a_reader_closed_the_replica() {
    let (stage, _, replica) = pulled_once();
    read_and_close(&replica);
    stage.pull(&replica).unwrap();
    let before = dump(&replica);
    stage.fake.store().generations[0].frames.last_mut().unwrap()[4000] ^= 1;
    let error = stage.pull(&replica).unwrap_err();
    assert!(error.to_string().contains("fork") && error.is_data(), "{error}");
    stage.fake.store().generations[0].frames.pop();
    let error = stage.pull(&replica).unwrap_err();
    assert!(error.to_string().contains("holds frames up to"), "{error}");
    assert_eq!((dump(&replica), litter(&replica)), (before, Vec::new()));
}

#[test]
fn what_another_program_wrote_before_it_closed_the_replica_is_set_aside() {
    let (stage, db, replica) = pulled_once();
    for round in 0..2 {
        sqlite::run(&replica, &format!("INSERT INTO t VALUES('mine {round}', 1)")).unwrap();
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db));
        let held: Vec<_> = set_aside(&replica).iter().map(|aside| dump(aside)).collect();
        assert!(held.len() == round + 1 && held.iter().any(|held| held.contains(&format!("mine {round}"))), "{held:?}");
        // It is a replica as any other again.
        read_and_close(&replica);
        stage.fake.seen();
        stage.pull(&replica).unwrap();
        assert_eq!(only_frames(&stage), 1);
    }
}

#[test]
fn a_reader_that_closed_it_where_a_generation_started_costs_nothing_and_a_writer_is_noticed_when_it_is_deleted() {
    for writes in [false, true] {
        let (stage, db, replica) = pulled_once();
        stage.fake.roll();
        stage.pull(&replica).unwrap();
        assert_eq!(info(&replica), (2, 0));
        let sql = if writes { "INSERT INTO t VALUES('mine', 1)" } else { "SELECT 1" };
        sqlite::run(&replica, sql).unwrap();
        let writer = stage.path("writer.db");
        stage.pull(&writer).unwrap();
        sqlite::run_and_die(&writer, &rows(5));
        stage.push(&writer).unwrap();
        stage.fake.roll();
        stage.fake.store().generations[1].gone = true;
        stage.pull(&replica).unwrap();
        assert_eq!((info(&replica), dump(&replica)), ((3, 0), dump(&writer)));
        assert_ne!(dump(&replica), dump(&db));
        let aside = litter(&replica).iter().any(|name| name.starts_with("replica.db.aside-"));
        assert_eq!(aside, writes, "{:?}", litter(&replica));
    }
}

#[test]
fn a_crash_after_frames_were_written_and_before_they_were_counted_costs_no_download() {
    let (stage, db, replica) = pulled_once();
    read_and_close(&replica);
    let before = fs::read(beside(&replica, "-info")).unwrap();
    for _ in 0..2 {
        sqlite::run_and_die(&db, &rows(5));
        stage.push(&db).unwrap();
        stage.pull(&replica).unwrap();
    }
    assert_eq!(bases(&stage), 0, "no base");
    // The metadata are those of before: the WAL has more than they count.
    let (generation, frame) = info(&replica);
    let now = fs::read(beside(&replica, "-info")).unwrap();
    assert_ne!(before, now);
    sqlite::run_and_die(&db, "INSERT INTO t VALUES('more', 1);");
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    fs::write(beside(&replica, "-info"), now).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(bases(&stage), 0, "no base");
    assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, frames(&db))));
    read_and_close(&replica);
    stage.pull(&replica).unwrap();
    assert_eq!(bases(&stage), 0, "no base");
    // Of metadata that another program wrote nothing is known of the pages: it is made again, and nothing is lost.
    read_and_close(&replica);
    set_info(&replica, generation, frame);
    stage.pull(&replica).unwrap();
    assert_eq!((bases(&stage), dump(&replica), litter(&replica)), (1, dump(&db), Vec::new()));
}

/// Bases downloaded.
fn bases(stage: &Stage) -> usize {
    calls(&stage.fake.seen()).iter().filter(|call| call.starts_with("GET export")).count()
}

#[test]
fn what_is_written_to_a_replica_that_a_reader_closed_can_be_pushed() {
    let (stage, db, replica) = pulled_once();
    read_and_close(&replica);
    sqlite::run_and_die(&db, &rows(3));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    sqlite::run_and_die(&replica, "INSERT INTO t VALUES('mine', 1);");
    stage.push(&replica).unwrap();
    let other = stage.path("other.db");
    stage.pull(&other).unwrap();
    assert_eq!(dump(&other), dump(&replica));
    assert!(dump(&other).contains("mine"));
}

#[test]
fn a_replica_is_followed_while_others_checkpoint_it() {
    let (stage, db, replica) = pulled_once();
    let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    stage.fake.seen();
    for round in 0..4 {
        let mut reader = Sqlite::open_within(&replica, 10);
        reader.rows("SELECT count(*) FROM t");
        reader.rows(["PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint(RESTART)"][round % 2]);
        sqlite::run_and_die(&db, "INSERT INTO t VALUES('more', 1);");
        stage.push(&db).unwrap();
        until("it has caught up", || (dump(&replica) == dump(&db)).then_some(()));
        stage.fake.fault("GET sync", Fault::Reset);
        reader.close();
    }
    assert_eq!((bases(&stage), litter(&replica)), (0, Vec::new()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn what_another_program_wrote_where_a_generation_starts_is_set_aside_and_not_mixed_with_what_follows() {
    let (stage, db, replica) = pulled_once();
    stage.fake.roll();
    stage.pull(&replica).unwrap();
    for _ in 0..2 {
        read_and_close(&replica);
        stage.fake.seen();
        stage.pull(&replica).unwrap();
        assert_eq!((bases(&stage), litter(&replica)), (0, Vec::new()));
    }
    sqlite::run(&replica, "INSERT INTO t VALUES('mine', 1)").unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!((info(&replica), dump(&replica)), ((2, 0), dump(&db)));
    assert!(dump(&set_aside(&replica)[0]).contains("mine"));
}

#[test]
fn a_refresh_that_has_to_wait_for_a_writer_or_a_reader_goes_on_with_what_it_knew() {
    let (stage, db, replica) = pulled_once();
    let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
    follower.wait_for("its start", |line| line["event"] == "started");
    let mut writer = Sqlite::open(&replica);
    let knows_the_pages = || fs::read_to_string(beside(&replica, "-info")).is_ok_and(|info| info.contains("\"key\""));
    for _ in 0..2 {
        writer.rows("BEGIN IMMEDIATE");
        sqlite::run_and_die(&db, "INSERT INTO t VALUES('more', 1);");
        stage.push(&db).unwrap();
        follower.wait_for("that it waits", |line| line["event"] == "retrying");
        assert!(knows_the_pages());
        writer.rows("ROLLBACK");
        until("it has caught up", || (dump(&replica) == dump(&db)).then_some(()));
        until("it knows its pages", || knows_the_pages().then_some(()));
    }
    writer.close();
    assert_eq!(follower.terminate().code, Some(0));
    read_and_close(&replica);
    stage.fake.seen();
    stage.pull(&replica).unwrap();
    assert_eq!((only_frames(&stage), dump(&replica)), (1, dump(&db)));
}

#[test]
fn what_another_program_writes_to_a_replica_that_is_followed_is_set_aside_and_the_follower_goes_on() {
    for is_idle in [true, false] {
        let (stage, db, replica) = pulled_once();
        let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
        sqlite::run_and_die(&db, "INSERT INTO t VALUES('one', 1);");
        stage.push(&db).unwrap();
        until("it follows", || (dump(&replica) == dump(&db)).then_some(()));
        let mut reader = Sqlite::open(&replica);
        reader.rows("SELECT count(*) FROM t");
        sqlite::run_and_die(&replica, "INSERT INTO t VALUES('foreign', 1);");
        if !is_idle {
            sqlite::run_and_die(&db, "INSERT INTO t VALUES('two', 1);");
            stage.push(&db).unwrap();
        }
        until("it goes on", || (!set_aside(&replica).is_empty() && dump(&replica) == dump(&db)).then_some(()));
        sqlite::run_and_die(&db, "INSERT INTO t VALUES('three', 1);");
        stage.push(&db).unwrap();
        until("it follows again", || (dump(&replica) == dump(&db)).then_some(()));
        assert_eq!(follower.terminate().code, Some(0));
        let [aside] = &set_aside(&replica)[..] else { panic!("{:?}", set_aside(&replica)) };
        assert!(dump(aside).contains("foreign"));
    }
}

#[test]
fn a_replica_that_is_cut_while_it_is_followed_is_set_aside_and_the_follower_goes_on() {
    for bytes in [0, 4096] {
        let (stage, db, replica) = pulled_once();
        // Its pages are in the file, and not in the WAL.
        stage.fake.roll();
        let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
        follower.wait_for("that it is in the next generation", |line| line["next"] == 1);
        assert!(fs::metadata(&replica).unwrap().len() > bytes);
        fs::File::options().write(true).open(&replica).unwrap().set_len(bytes).unwrap();
        until("it is set aside", || (!set_aside(&replica).is_empty()).then_some(()));
        until("it goes on", || (dump(&replica) == dump(&db)).then_some(()));
        assert_eq!(follower.terminate().code, Some(0));
    }
}

#[test]
fn a_replica_that_another_program_writes_again_and_again_is_made_again_only_so_often() {
    let (stage, db, replica) = pulled_once();
    let follower = Mirror::start(stage.fake.url(), arg(&replica), &["--follow"]);
    sqlite::run_and_die(&db, "INSERT INTO t VALUES('one', 1);");
    stage.push(&db).unwrap();
    until("it follows", || (dump(&replica) == dump(&db)).then_some(()));
    stage.fake.seen();
    let wanted = Arc::new(());
    let (is_wanted, path) = (Arc::downgrade(&wanted), replica.clone());
    let writing = thread::spawn(move || {
        while is_wanted.upgrade().is_some() {
            // It may find it locked.
            let _ = sqlite::run(&path, "INSERT INTO t VALUES('foreign', 1)");
        }
    });
    let waits = follower.wait_for("that it waits", |line| {
        line["event"] == "retrying"
            && line["error"].as_str().is_some_and(|text| text.contains("writes to this replica"))
    });
    assert!(waits["error"].as_str().unwrap().contains("remove what was set aside"), "{waits}");
    drop(wanted);
    writing.join().unwrap();
    let (asides, bases) = (set_aside(&replica), bases(&stage));
    assert!((1..=2).contains(&asides.len()) && bases <= 2, "{bases} downloads, {asides:?}");
    assert!(asides.iter().all(|aside| dump(aside).contains("foreign")));
    // Whoever has looked at them need not wait.
    for name in litter(&replica).iter().filter(|name| name.contains(".aside-")) {
        fs::remove_file(replica.with_file_name(name)).unwrap();
    }
    until("it is made again", || (dump(&replica) == dump(&db)).then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn frames_of_another_program_where_the_server_has_others_by_now_are_set_aside() {
    let (stage, db, replica) = pulled_once();
    sqlite::run_and_die(&replica, "INSERT INTO t VALUES('foreign', 1);");
    sqlite::run_and_die(&db, "INSERT INTO t VALUES('one', 1);");
    stage.push(&db).unwrap();
    let ended = mirror(stage.fake.url(), arg(&replica), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(dump(&replica), dump(&db));
    assert!(dump(&set_aside(&replica)[0]).contains("foreign"));
}
