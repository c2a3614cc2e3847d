//! What is pushed, and what the server's answers lead to.

use logmirror::sqlite::DatabaseError;
use logmirror::sync::{Direction, SyncError};

use crate::fake::{Fault, calls, pushed};
use crate::sqlite::{self, dump, large, rows};
use crate::{Stage, beside, frames, info, set_info};

#[test]
fn only_new_frames_travel() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    let total = frames(&db);
    assert!(total > 10);
    let progress = stage.push(&db).unwrap();
    assert_eq!((progress.commits, progress.bytes), (11, u64::from(total) * 4120));
    assert_eq!((progress.next.0, progress.durable.0), (u64::from(total) + 1, u64::from(total) + 1));
    let seen = stage.fake.seen();
    assert_eq!(calls(&seen), ["GET info", "GET export/1", &format!("POST sync/1/1/{}", total + 1)]);
    assert!(seen.iter().all(|seen| seen.token.is_none()));
    assert_eq!(info(&db), (1, total));

    // Nothing new: one look at the last frame both hold.
    let before = std::fs::metadata(beside(&db, "-info")).unwrap().modified().unwrap();
    assert_eq!(stage.push(&db).unwrap().bytes, 0);
    let look = format!("GET sync/1/{total}/{}", total + 1);
    assert_eq!(calls(&stage.fake.seen()), [look.as_str()]);
    assert_eq!(std::fs::metadata(beside(&db, "-info")).unwrap().modified().unwrap(), before, "nothing to write");

    sqlite::run_and_die(&db, &rows(3));
    let more = frames(&db);
    stage.push(&db).unwrap();
    let seen = stage.fake.seen();
    assert_eq!(calls(&seen), [look, format!("POST sync/1/{}/{}", total + 1, more + 1)]);
    assert_eq!(pushed(&seen), more - total);
    assert_eq!(info(&db), (1, more));
}

#[test]
fn a_large_transaction_goes_in_batches_with_batons() {
    let stage = Stage::new();
    stage.fake.store().baton = true;
    let db = stage.database(&large(300));
    let total = frames(&db);
    stage.run(Direction::Push, &db, 100).unwrap();
    let seen = stage.fake.seen();
    let posts: Vec<_> = calls(&seen).into_iter().filter(|call| call.starts_with("POST")).collect();
    assert_eq!(posts[..3], ["POST sync/1/1/101", "POST sync/1/101/201/b%2F101", "POST sync/1/201/301/b%2F201"]);
    assert_eq!((pushed(&seen), stage.fake.frames()), (total, total));
}

#[test]
fn frames_behind_the_last_commit_stay_here() {
    let stage = Stage::new();
    let path = stage.path("app.db");
    let mut open = sqlite::Open::start(&path);
    open.run("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=5;");
    open.run(&rows(5));
    let committed = frames(&path);
    open.run(&format!("BEGIN; {}", large(100)));
    let bytes = std::fs::metadata(beside(&path, "-wal")).unwrap().len();
    assert!(bytes > 32 + u64::from(committed) * 4120, "SQLite spilled pages of the open transaction");
    stage.push(&path).unwrap();
    assert_eq!((stage.fake.frames(), info(&path)), (committed, (1, committed)));
    open.run("COMMIT;");
    stage.push(&path).unwrap();
    assert_eq!(stage.fake.frames(), frames(&path));
    assert!(stage.fake.frames() > committed + 100);
}

#[test]
fn a_server_that_lost_its_log_gets_all_of_it_again() {
    for (left, new_rows) in [(0, 2), (0, 0), (5, 2), (5, 0)] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        stage.fake.store().generations[0].frames.truncate(left);
        sqlite::run_and_die(&db, &rows(new_rows));
        let (total, before) = (frames(&db), info(&db).1);
        stage.fake.seen();
        stage.push(&db).unwrap();
        assert_eq!((stage.fake.frames(), info(&db)), (total, (1, total)), "{left} frames left");
        // One attempt where the metadata say, which tells where the server ends; then all from there.
        let attempt = if total > before { total - before } else { 1 };
        assert_eq!(pushed(&stage.fake.seen()), attempt + total - left as u32, "{left} frames left");
    }
}

#[test]
fn a_server_that_keeps_losing_frames_is_an_error() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    let lower = r#"{"status":"ok","generation":1,"max_frame_no":0}"#;
    for _ in 0..2 {
        stage.fake.fault("POST", Fault::Answer(200, lower.into()));
    }
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Behind { generation: 1, start: 1, server: 0 }), "{error}");
    assert!(error.is_data() && !beside(&db, "-info").exists());
}

#[test]
fn a_server_that_has_more_is_believed_and_the_rest_is_sent() {
    let stage = Stage::new();
    stage.fake.store().first_of_its_kind = true;
    let db = stage.database(&rows(10));
    let total = frames(&db);
    stage.run(Direction::Push, &db, 4).unwrap();
    assert_eq!(stage.fake.frames(), total);
    let seen = stage.fake.seen();
    assert_eq!(calls(&seen)[0], "GET info", "a server without it counts as one generation without a base");
    // The metadata are gone, and the server says to the first batch how much it has.
    std::fs::remove_file(beside(&db, "-info")).unwrap();
    stage.run(Direction::Push, &db, 4).unwrap();
    let seen = stage.fake.seen();
    assert_eq!((pushed(&seen), info(&db)), (4, (1, total)), "{seen:?}");
}

#[test]
fn other_frames_on_the_server_are_a_conflict_before_anything_is_sent() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    let total = frames(&db);
    // Somebody wiped the log, and pushed another: this one's last frame is not ours.
    stage.fake.store().generations[0].frames[total as usize - 1][24] ^= 1;
    sqlite::run_and_die(&db, &rows(1));
    stage.fake.seen();
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Fork { generation: 1, frame, .. } if frame == total), "{error}");
    assert!(error.is_data() && error.to_string().contains("push it to a log of its own"));
    assert_eq!((pushed(&stage.fake.seen()), info(&db)), (0, (1, total)));
    // Further back only the server can see it.
    stage.fake.store().generations[0].frames[total as usize - 1][24] ^= 1;
    stage.fake.store().generations[0].frames[3][24] ^= 1;
    std::fs::remove_file(beside(&db, "-info")).unwrap();
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Conflict { generation: 1, start: 1, .. }), "{error}");
    assert!(error.is_data() && !beside(&db, "-info").exists());
}

#[test]
fn what_was_committed_before_a_checkpoint_that_was_not_seen_is_found_by_comparing_pages() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    let (total, kept) = (frames(&db), stage.fake.frames());
    // Opened and closed: SQLite removes the WAL.
    sqlite::run(&db, "SELECT 1 FROM t").unwrap();
    assert!(!beside(&db, "-wal").exists());
    assert_eq!(stage.push(&db).unwrap().bytes, 0);
    assert_eq!((info(&db), stage.fake.frames()), ((1, total), kept), "what the server confirmed still holds");
    // A new log, shorter and then longer than the old one, and one that is gone.
    for count in [2, 20, 3] {
        sqlite::run_and_die(&db, &format!("{} UPDATE t SET b = {count};", rows(count)));
        if count == 3 {
            sqlite::run(&db, "VACUUM").unwrap();
        }
        stage.push(&db).unwrap();
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db));
        assert_eq!(stage.push(&db).unwrap().bytes, 0, "nothing is sent twice");
        // What follows goes on without a comparison.
        stage.fake.seen();
        sqlite::run_and_die(&db, "INSERT INTO t VALUES(1, 2)");
        assert_eq!(stage.push(&db).unwrap().commits, 1);
        assert_eq!(calls(&stage.fake.seen()).iter().any(|call| call.starts_with("GET export")), count == 3);
    }
    // Others may have pushed since: that is never overwritten.
    let mut frame = stage.fake.store().generations[0].frames.last().unwrap().clone();
    frame[100] ^= 1;
    stage.fake.store().generations[0].frames.push(frame);
    sqlite::run(&db, "UPDATE t SET b = 7").unwrap();
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Conflict { .. }), "{error}");
}

#[test]
fn a_log_checkpointed_by_another_program_is_not_mixed_in_where_it_is_not_known_what_was_pushed() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    let (total, kept) = (frames(&db), stage.fake.frames());
    for count in [2, 20] {
        sqlite::run(&db, "SELECT 1 FROM t").unwrap();
        sqlite::run_and_die(&db, &format!("{} UPDATE t SET b = {count};", rows(count)));
        // As libSQL's own client writes it.
        set_info(&db, 1, total);
        let error = stage.push(&db).unwrap_err();
        assert!(matches!(error, SyncError::Fork { .. }), "{error}");
        assert_eq!((stage.fake.frames(), info(&db)), (kept, (1, total)));
    }
}

#[test]
fn frames_whose_answer_was_lost_are_known_as_ours_after_a_checkpoint() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    sqlite::run(&db, "UPDATE t SET b = 1").unwrap();
    stage.fake.fault("POST", Fault::Reset);
    for _ in 0..20 {
        stage.fake.fault("GET sync", Fault::Answer(503, "busy".into()));
    }
    // From then on it cannot be asked what it has.
    stage.push(&db).unwrap_err();
    assert!(stage.fake.frames() > info(&db).1, "the server took them");
    stage.fake.store().faults.clear();
    // Another mirror, later, after one more checkpoint.
    sqlite::run(&db, "UPDATE t SET b = 2").unwrap();
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!((dump(&replica), info(&db).1), (dump(&db), stage.fake.frames()));
}

#[test]
fn a_database_that_is_more_than_its_frames_is_pushed_to_an_empty_server_and_no_other() {
    let stage = Stage::new();
    let (db, replica) = (stage.path("app.db"), stage.path("replica.db"));
    sqlite::run(&db, &format!("PRAGMA journal_mode=WAL; {}", rows(10))).unwrap();
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    assert_eq!(dump(&replica), dump(&db));
    // Where there is something, it is not known to be this database's.
    std::fs::remove_file(beside(&db, "-info")).unwrap();
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Base { generation: 1, .. }), "{error}");
    sqlite::run_and_die(&db, "INSERT INTO t VALUES(1, 2);");
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Base { .. }) && error.is_data(), "{error}");
    assert!(!beside(&db, "-info").exists());
    // But not when the server has the rest.
    stage.fake.store().generations[0].frames.clear();
    stage.fake.store().generations[0].base = std::fs::read(&db).unwrap();
    stage.push(&db).unwrap();
    assert_eq!(stage.fake.frames(), frames(&db));
    // And not when it is the frames that were checkpointed.
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    let mut open = sqlite::Open::start(&db);
    open.run("PRAGMA wal_autocheckpoint=0; PRAGMA wal_checkpoint(PASSIVE);");
    assert!(std::fs::metadata(&db).unwrap().len() > 4096);
    stage.push(&db).unwrap();
    assert_eq!(stage.fake.frames(), frames(&db));
}

#[test]
fn files_that_cannot_be_pushed_say_why() {
    let stage = Stage::new();
    let db = stage.path("app.db");
    assert!(matches!(stage.push(&db), Err(SyncError::Database(DatabaseError::Io { .. }))));
    std::fs::write(&db, "x".repeat(5000)).unwrap();
    assert!(matches!(stage.push(&db), Err(SyncError::Database(DatabaseError::NotADatabase { .. }))));
    std::fs::remove_file(&db).unwrap();
    sqlite::run(&db, &rows(1)).unwrap();
    assert!(matches!(stage.push(&db), Err(SyncError::NotWal { .. })));
    std::fs::remove_file(&db).unwrap();
    sqlite::run_and_die(&db, &format!("PRAGMA journal_mode=DELETE; PRAGMA page_size=512; VACUUM; {}", rows(1)));
    assert!(matches!(stage.push(&db), Err(SyncError::PageSize { found: 512, .. })));
    assert_eq!(stage.fake.seen(), []);
}

#[test]
fn servers_in_trouble_are_tried_again_and_refusals_are_not() {
    let stage = Stage::new();
    let db = stage.database(&rows(5));
    for _ in 0..3 {
        stage.fake.fault("POST", Fault::Answer(503, "busy".into()));
    }
    stage.push(&db).unwrap();
    assert_eq!(calls(&stage.fake.seen()).iter().filter(|call| call.starts_with("POST")).count(), 4);
    for (status, posts) in [(503, 7), (500, 7), (409, 1), (401, 1), (418, 1)] {
        let stage = Stage::new();
        let db = stage.database(&rows(5));
        for _ in 0..7 {
            stage.fake.fault("POST", Fault::Answer(status, "because".into()));
        }
        let error = stage.push(&db).unwrap_err();
        assert!(error.to_string().contains(&format!("{status}, \"because\"")), "{error}");
        assert_eq!(calls(&stage.fake.seen()).iter().filter(|call| call.starts_with("POST")).count(), posts, "{status}");
        assert!(!beside(&db, "-info").exists());
    }
}

#[test]
fn one_redirect_is_followed_as_the_first_answer() {
    let stage = Stage::new();
    let db = stage.database(&rows(5));
    let to = stage.fake.http(&format!("sync/1/1/{}", frames(&db) + 1));
    stage.fake.fault("POST", Fault::Redirect(to.clone()));
    stage.fake.fault("POST", Fault::Answer(503, String::new()));
    stage.push(&db).unwrap();
    sqlite::run_and_die(&db, &rows(1));
    stage.fake.fault("POST", Fault::Redirect(to.clone()));
    stage.fake.fault("POST", Fault::Redirect(to));
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Status { status: 307, .. }), "{error}");
}

#[test]
fn answers_that_make_no_sense_say_so() {
    for answer in [
        "",
        "{}",
        "[]",
        r#"{"status":"ok","generation":1,"max_frame_no":"13"}"#,
        r#"{"status":"maybe","generation":1,"max_frame_no":6}"#,
        r#"{"status":"ok","generation":1,"max_frame_no":-1}"#,
        &"x".repeat(100_000),
    ] {
        let stage = Stage::new();
        let db = stage.database(&rows(2));
        stage.fake.fault("POST", Fault::Answer(200, answer.into()));
        let error = stage.push(&db).unwrap_err();
        assert!(matches!(error, SyncError::Protocol { .. }), "{error}");
        assert!(!beside(&db, "-info").exists());
    }
}

#[test]
fn a_database_goes_on_in_the_generation_that_follows_what_it_pushed_and_in_no_other() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(5)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    // Two generations may have passed.
    for (rolls, generation) in [(1, 2), (2, 4)] {
        (0..rolls).for_each(|_| stage.fake.roll());
        sqlite::run_and_die(&db, &rows(1));
        stage.push(&db).unwrap();
        assert_eq!((info(&db), stage.fake.frames()), ((generation, 1), 1));
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db));
        assert_eq!(stage.push(&db).unwrap().bytes, 0, "nothing is sent twice");
    }
    // Another one pushed before the roll: what is only here is not put on top of that.
    let mut frame = stage.fake.store().generations[3].frames[0].clone();
    frame[100] ^= 1;
    stage.fake.store().generations[3].frames.push(frame);
    stage.fake.roll();
    sqlite::run_and_die(&db, &rows(1));
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Conflict { generation: 4, .. }), "{error}");
    let moved = r#"{"status":"ok","generation":6,"max_frame_no":7}"#;
    stage.fake.fault("POST", Fault::Answer(200, moved.into()));
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Conflict { .. } | SyncError::Generation { ours: 4, .. }), "{error}");
    // Without metadata it would be the server's generation, whose base is not below these frames.
    std::fs::remove_file(beside(&db, "-info")).unwrap();
    let error = stage.push(&db).unwrap_err();
    assert!(matches!(error, SyncError::Base { generation: 5, page: 1 | 2, .. }), "{error}");
    assert_eq!(stage.fake.frames(), 0);
}

#[test]
fn metadata_of_another_database_do_no_harm() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    let total = frames(&db);
    set_info(&db, 1, total + 1000);
    stage.push(&db).unwrap();
    assert_eq!((stage.fake.frames(), info(&db)), (total, (1, total)));
}
