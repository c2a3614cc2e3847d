//! Metadata damaged in every way, at every moment a crash can leave: the next run moves exactly the right frames.

use std::fs;
use std::path::Path;

use logmirror::sync::{Direction, Position, SyncError, metadata};

use crate::fake::{Fault, pulled, pushed};
use crate::sqlite::{self, dump, rows};
use crate::support::process::{Mirror, arg, until};
use crate::{Stage, beside, frames, info, litter, set_info};

/// Frames in a request, so that there are several of them.
const BATCH: u32 = 4;

/// What an old draft of a crashed process is called.
const DRAFT: &str = ".tmp.20250102_030405.0b7d4a6e-3a54-4f0f-9b3e-0d6c7f1f2a11";

type Damage = (&'static str, fn(&Path));

/// Every kind of damage to a metadata file.
const DAMAGES: [Damage; 9] = [
    ("missing", |info| fs::remove_file(info).unwrap()),
    ("empty", |info| fs::write(info, "").unwrap()),
    ("garbage", |info| fs::write(info, b"\x00\xff garbage").unwrap()),
    ("truncated", |info| {
        let content = fs::read(info).unwrap();
        fs::write(info, &content[..content.len() / 2]).unwrap();
    }),
    ("wrong hash", |info| fs::write(info, r#"{"hash":1,"version":0,"durable_frame_num":3,"generation":1}"#).unwrap()),
    ("wrong version", |info| fs::write(info, hashed(1, 3, 1)).unwrap()),
    ("generation 0", |info| fs::write(info, hashed(0, 3, 0)).unwrap()),
    ("too long", |info| fs::write(info, " ".repeat(1 << 20)).unwrap()),
    ("not even a number", |info| {
        fs::write(info, r#"{"hash":2496050245,"version":0,"durable_frame_num":1e99,"generation":1}"#).unwrap();
    }),
];

fn hashed(version: u32, frame: u32, generation: u32) -> String {
    let words = [version, frame, generation].map(u32::to_le_bytes);
    let hash = crc32fast::hash(words.as_flattened());
    format!(r#"{{"hash":{hash},"version":{version},"durable_frame_num":{frame},"generation":{generation}}}"#)
}

#[test]
fn after_any_damage_the_whole_log_is_pushed_again_and_nothing_else() {
    for (damage, apply) in DAMAGES {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.run(Direction::Push, &db, BATCH).unwrap();
        apply(&beside(&db, "-info"));
        stage.fake.seen();
        stage.run(Direction::Push, &db, BATCH).unwrap();
        let total = frames(&db);
        assert_eq!(
            (pushed(&stage.fake.seen()), info(&db), stage.fake.frames()),
            (total, (1, total), total),
            "{damage}"
        );
        // And with new frames, once more.
        apply(&beside(&db, "-info"));
        sqlite::run_and_die(&db, &rows(3));
        stage.run(Direction::Push, &db, BATCH).unwrap();
        let total = frames(&db);
        assert_eq!(
            (pushed(&stage.fake.seen()), info(&db), stage.fake.frames()),
            (total, (1, total), total),
            "{damage}"
        );
        stage.run(Direction::Push, &db, BATCH).unwrap();
        assert_eq!(pushed(&stage.fake.seen()), 0, "{damage}: the metadata are good again");
    }
}

#[test]
fn a_push_that_was_cut_off_is_repeated_from_where_the_metadata_stand() {
    // (batches stored before the crash, damage on top)
    let damages = DAMAGES.map(Some).into_iter().chain([None]);
    for (batches, damage) in damages.flat_map(|damage| [(1, damage), (2, damage)]) {
        let stage = Stage::new();
        let db = stage.database(&rows(3));
        stage.run(Direction::Push, &db, BATCH).unwrap();
        let confirmed = info(&db).1;
        sqlite::run_and_die(&db, &rows(12));
        let total = frames(&db);
        for _ in 0..batches - 1 {
            stage.fake.fault("POST", Fault::Cut(0));
        }
        // The last one is stored, but its answer does not come.
        stage.fake.fault("POST", Fault::Done(418, String::new()));
        stage.run(Direction::Push, &db, BATCH).unwrap_err();
        assert_eq!(stage.fake.frames(), confirmed + batches * BATCH);
        // Before these batches were sent it was noted what they are; so they are when all of them are sent again.
        let noted = confirmed;
        assert_eq!(info(&db), (1, noted));
        let name = damage.map_or("none", |(name, apply)| {
            apply(&beside(&db, "-info"));
            name
        });
        stage.fake.seen();
        stage.run(Direction::Push, &db, BATCH).unwrap();
        let wanted = if damage.is_some() { total } else { total - noted };
        assert_eq!(pushed(&stage.fake.seen()), wanted, "{batches} batches, damage: {name}");
        assert_eq!((info(&db), stage.fake.frames()), ((1, total), total), "{batches} batches, damage: {name}");
    }
}

#[test]
fn wherever_a_server_was_cut_off_its_frames_are_known_after_the_wal_was_restarted() {
    for (batch, nth) in [1, 3, 7].into_iter().flat_map(|batch| (0..60 / batch).step_by(3).map(move |nth| (batch, nth)))
    {
        let stage = Stage::new();
        let db = stage.database(&rows(3));
        stage.run(Direction::Push, &db, batch).unwrap();
        let confirmed = info(&db).1;
        let inserts = (0..12).map(|row| format!("INSERT INTO t VALUES({row}, randomblob(14000));"));
        sqlite::run_and_die(&db, &inserts.collect::<String>());
        for _ in 0..nth {
            stage.fake.fault("POST", Fault::Cut(0));
        }
        stage.fake.fault("POST", Fault::Done(418, String::new()));
        if stage.run(Direction::Push, &db, batch).is_ok() {
            continue;
        }
        assert!(info(&db).1 >= confirmed);
        // A server that is restarted holds whole transactions only.
        let held = {
            let mut store = stage.fake.store();
            store.faults.clear();
            let held = &mut store.generations.last_mut().unwrap().frames;
            let whole = held.iter().rposition(|frame| frame[4..8] != [0; 4]).map_or(0, |last| last + 1);
            held.truncate(whole);
            whole as u32
        };
        sqlite::run_and_die(&db, "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(99, randomblob(9000));");
        let pushed = stage.run(Direction::Push, &db, batch);
        let place = format!("batches of {batch}, cut off in the one after {nth}, {confirmed} and {held} frames");
        pushed.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(stage.fake.frames() > held, "{place}");
        let replica = stage.path("replica.db");
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db), "{place}");
    }
}

#[test]
fn a_crash_before_the_rename_leaves_a_draft_that_is_cleaned_up() {
    for (content, damage) in [
        (Vec::new(), None),
        (b"{\"hash\":".to_vec(), None),
        (metadata::encode(Position { generation: 1, frame: 99 }), None),
        (Vec::new(), Some(DAMAGES[1])),
    ] {
        for direction in [Direction::Push, Direction::Pull] {
            let stage = Stage::new();
            let db = stage.database(&rows(3));
            stage.push(&db).unwrap();
            let path = if direction == Direction::Push { db.clone() } else { stage.path("replica.db") };
            stage.run(direction, &path, BATCH).unwrap();
            let before = info(&path).1;
            sqlite::run_and_die(&db, &rows(5));
            if direction == Direction::Pull {
                stage.push(&db).unwrap();
            }
            fs::write(stage.path(DRAFT), &content).unwrap();
            if let Some((_, apply)) = damage {
                apply(&beside(&path, "-info"));
            }
            stage.fake.seen();
            stage.run(direction, &path, BATCH).unwrap();
            let (seen, total) = (stage.fake.seen(), frames(&db));
            let fresh = if damage.is_some() { total } else { total - before };
            match direction {
                Direction::Push => assert_eq!(pushed(&seen), fresh),
                // With sound metadata the last frame held is looked at too.
                Direction::Pull => assert_eq!(pulled(&seen), fresh + u32::from(damage.is_none())),
            }
            assert_eq!((info(&path), litter(&path)), ((1, total), Vec::<String>::new()), "{direction:?}");
        }
    }
}

#[test]
fn a_crash_after_the_rename_costs_nothing() {
    let stage = Stage::new();
    let db = stage.database(&rows(10));
    stage.push(&db).unwrap();
    stage.fake.seen();
    // Everything is done and synced by then; the process just did not get to say so.
    stage.push(&db).unwrap();
    assert_eq!(pushed(&stage.fake.seen()), 0);
}

#[test]
fn after_any_damage_a_replica_is_compared_with_all_the_server_has() {
    for (damage, apply) in DAMAGES {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        stage.run(Direction::Pull, &replica, BATCH).unwrap();
        for more in [0, 5] {
            sqlite::run_and_die(&db, &rows(more));
            stage.push(&db).unwrap();
            apply(&beside(&replica, "-info"));
            let wal = fs::read(beside(&replica, "-wal")).unwrap();
            stage.fake.seen();
            stage.run(Direction::Pull, &replica, BATCH).unwrap();
            let total = frames(&db);
            assert_eq!((pulled(&stage.fake.seen()), info(&replica)), (total, (1, total)), "{damage}");
            assert!(fs::read(beside(&replica, "-wal")).unwrap().starts_with(&wal), "{damage}: nothing is rewritten");
            assert_eq!((dump(&replica), litter(&replica)), (dump(&db), Vec::new()), "{damage}");
        }
        stage.run(Direction::Pull, &replica, BATCH).unwrap();
        assert_eq!(pulled(&stage.fake.seen()), 1, "{damage}: the metadata are good again");
    }
}

#[test]
fn a_pull_that_was_cut_off_goes_on_with_what_was_synced() {
    let damages = DAMAGES.map(Some).into_iter().chain([None]);
    for damage in damages {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(12)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        let total = frames(&db);
        for _ in 0..2 {
            stage.fake.fault("GET sync", Fault::Cut(0));
        }
        stage.fake.fault("GET sync", Fault::Answer(404, String::new()));
        stage.run(Direction::Pull, &replica, BATCH).unwrap_err();
        let held = 2 * BATCH;
        assert_eq!((frames(&replica), info(&replica)), (held, (1, held)));
        // Torn: the crash came in the middle of writing the next frames.
        let mut wal = fs::read(beside(&replica, "-wal")).unwrap();
        wal.extend_from_slice(&wal.clone()[32..4000]);
        fs::write(beside(&replica, "-wal"), wal).unwrap();
        let name = damage.map_or("none", |(name, apply)| {
            apply(&beside(&replica, "-info"));
            name
        });
        stage.fake.seen();
        stage.run(Direction::Pull, &replica, BATCH).unwrap();
        let wanted = if damage.is_some() { total } else { total - held + 1 };
        assert_eq!((pulled(&stage.fake.seen()), info(&replica)), (wanted, (1, total)), "damage: {name}");
        assert_eq!(dump(&replica), dump(&db), "damage: {name}");
    }
}

#[test]
fn frames_synced_before_their_metadata_are_skipped() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(5)), stage.path("replica.db"));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    let old = fs::read(beside(&replica, "-info")).unwrap();
    let before = frames(&db);
    sqlite::run_and_die(&db, &rows(5));
    stage.push(&db).unwrap();
    stage.pull(&replica).unwrap();
    fs::write(beside(&replica, "-info"), old).unwrap();
    let wal = fs::read(beside(&replica, "-wal")).unwrap();
    stage.fake.seen();
    let progress = stage.pull(&replica).unwrap();
    assert_eq!((progress.bytes, pulled(&stage.fake.seen())), (0, frames(&db) - before + 1));
    assert_eq!((info(&replica), fs::read(beside(&replica, "-wal")).unwrap()), ((1, frames(&db)), wal));
}

#[test]
fn a_replica_of_another_generation_with_damaged_metadata_is_refused_as_without_any() {
    for (damage, apply) in DAMAGES {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        stage.pull(&replica).unwrap();
        stage.fake.roll();
        let writer = stage.path("writer.db");
        stage.pull(&writer).unwrap();
        sqlite::run_and_die(&writer, &rows(5));
        stage.push(&writer).unwrap();
        apply(&beside(&replica, "-info"));
        stage.fake.seen();
        // It may be an application's.
        let error = stage.pull(&replica).unwrap_err();
        assert!(matches!(error, SyncError::NotOurs { .. }), "{damage}: {error}");
        assert_eq!((dump(&replica), litter(&replica)), (dump(&db), Vec::new()), "{damage}");
        set_info(&replica, 1, frames(&replica));
        stage.pull(&replica).unwrap();
        stage.fake.seen();
        assert_eq!((info(&replica), dump(&replica)), ((2, frames(&writer)), dump(&writer)), "{damage}");
        // Folded, with the metadata damaged, it is at home.
        apply(&beside(&replica, "-info"));
        stage.pull(&replica).unwrap();
        assert_eq!(pulled(&stage.fake.seen()), frames(&writer), "{damage}");
        assert_eq!((info(&replica), dump(&replica)), ((2, frames(&writer)), dump(&writer)), "{damage}");
    }
}

/// Kills a mirror while it waits for the answer to its nth request, for each n there is.
fn killed_at_each_request(direction: Direction) {
    for nth in 0.. {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(12)), stage.path("replica.db"));
        let total = frames(&db);
        let (source, sink) = match direction {
            Direction::Push => (arg(&db).to_owned(), stage.fake.url()),
            Direction::Pull => {
                stage.push(&db).unwrap();
                (stage.fake.url(), arg(&replica).to_owned())
            }
        };
        let path = if direction == Direction::Push { &db } else { &replica };
        stage.fake.seen();
        for _ in 0..nth {
            stage.fake.fault("", Fault::Cut(0));
        }
        stage.fake.fault("", Fault::Silence);
        let mirror = Mirror::start(source, sink, &["--batch", "4"]);
        let waits = || stage.fake.store().seen.len() > nth;
        let done = || mirror.lines().iter().any(|line| line["event"] == "done");
        let over = until("a request, or the end", || if waits() { Some(false) } else { done().then_some(true) });
        if over {
            assert_eq!(mirror.ended().code, Some(0));
            assert!(nth > 4, "there are several requests");
            break;
        }
        mirror.kill();
        stage.fake.store().faults.clear();
        let moved = info_of(path).unwrap_or(0);
        let seen = stage.fake.seen();
        stage.run(direction, path, BATCH).unwrap();
        let again = stage.fake.seen();
        match direction {
            // What was confirmed and noted is not sent again.
            Direction::Push => assert_eq!(pushed(&again), total - moved, "killed in {seen:?}"),
            // Each batch ends with a commit here; the last frame held is looked at again.
            Direction::Pull => assert_eq!(pulled(&again), total - moved + u32::from(moved > 0), "killed in {seen:?}"),
        }
        assert_eq!((stage.fake.frames(), info(path), dump(path)), (total, (1, total), dump(&db)), "killed in {seen:?}");
        assert_eq!(litter(path), Vec::<String>::new(), "killed in {seen:?}");
    }
}

/// The frame in the metadata, if there are any.
fn info_of(path: &Path) -> Option<u32> {
    beside(path, "-info").exists().then(|| info(path).1)
}

#[test]
fn a_push_killed_at_any_request_is_repeated() {
    killed_at_each_request(Direction::Push);
}

#[test]
fn a_pull_killed_at_any_request_goes_on() {
    killed_at_each_request(Direction::Pull);
}
