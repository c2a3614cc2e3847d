//! A database that has a rollback journal where it comes from: to clients it has a WAL, however a page comes to them.

use rusqlite::Connection;

use crate::support::frames::FrameLog;
use crate::{PAGE, Pulled, Rig};

/// Two states of a database.
fn states() -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let after = |sql: &str| {
        let db = Connection::open(&path).unwrap();
        db.execute_batch(sql).unwrap();
        db.close().unwrap();
        std::fs::read(&path).unwrap()
    };
    let before = after("PRAGMA journal_mode = DELETE; CREATE TABLE t(a, b); INSERT INTO t VALUES (1, zeroblob(9000))");
    (before, after("CREATE TABLE u(a); INSERT INTO u VALUES (zeroblob(5000)); DELETE FROM t"))
}

fn as_wal(state: &[u8]) -> Vec<u8> {
    let mut state = state.to_vec();
    assert_eq!(state[18..20], [1, 1]);
    state[18..20].copy_from_slice(&[2, 2]);
    state
}

#[test]
fn page_1_says_that_there_is_a_wal_by_every_way_and_the_log_keeps_its_bytes() {
    let (before, after) = states();
    let log = FrameLog { base: before.clone(), ..FrameLog::new(4096, false) }.becomes(&after);
    let rig = Rig::new();
    rig.start(1, &before);
    let base = rig.bootstrap();
    assert!(base.applied(&[]) == as_wal(&before), "out of the base");
    rig.append(&log, 0..log.frames.len());
    let whole = rig.bootstrap();
    assert!(whole.applied(&[]) == as_wal(&after), "out of frames");
    let increment = rig.between(&base.revision, &whole.revision);
    assert!(increment.ids().contains(&0));
    assert!(increment.applied(&base.applied(&[])) == as_wal(&after), "an increment");
    assert!(rig.between("", &base.revision).applied(&[]) == as_wal(&before), "as of before");
    assert!(rig.service.get("/logs/app/base").body == before);
    assert!(rig.service.get("/logs/app/commits?from=1").body == log.stream(&[]));
    assert!(rig.restored(1, log.frames.len() as u64) == after);
    // Folded into the next base it is the same page.
    rig.roll();
    let folded = rig.bootstrap();
    assert!(rig.service.get("/logs/app/base").body[18..20] == [1, 1]);
    assert!(folded.applied(&[]) == as_wal(&after), "out of the folded base");
    assert_eq!(rig.between(&whole.revision, &folded.revision).pages, []);
}

#[test]
fn a_generation_that_starts_from_the_same_state_differs_in_no_page() {
    let (before, after) = states();
    let log = FrameLog { base: before, ..FrameLog::new(4096, false) }.becomes(&after);
    let rig = Rig::holding(&log);
    let old = rig.bootstrap();
    rig.start(2, &after);
    let Pulled { revision, size, pages } = rig.between(&old.revision, "");
    assert!(revision.starts_with("2:0:"));
    assert_eq!((size as usize * PAGE, pages), (after.len(), vec![]));
}
