//! Readers in this process and others, all the time, while thousands of transactions, checkpoints and restarts go by.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::origin::{Origin, append};
use crate::support::commitlog::{Draw, seed};
use crate::support::sqlite::{Sqlite, assert_sound, connect, dump, rows};

/// Whatever a transaction does, `v` counts it, and says how many rows `t` has and what they add up to.
const SCHEMA: &str = "
    CREATE TABLE v (version, count, sum);
    CREATE TABLE t (n INTEGER PRIMARY KEY, y, x);
    CREATE INDEX i ON t (y);
    INSERT INTO v VALUES (0, 0, 0)";
const COUNT: &str = "UPDATE v SET version = version + 1,
    count = (SELECT count(*) FROM t), sum = (SELECT total(y) FROM t)";
/// The version, and whether the rest fits: by the table and by its index.
const LOOK: &str =
    "SELECT version, count = (SELECT count(*) FROM t NOT INDEXED), sum = (SELECT total(y) FROM t NOT INDEXED),
    sum = (SELECT total(y) FROM t INDEXED BY i) FROM v";

/// What a reader needs to know of the writer.
#[derive(Default)]
struct Shared {
    published: AtomicI64,
    ended: AtomicBool,
    reads: AtomicU64,
}

impl Shared {
    /// A read that started after `before` was published.
    #[track_caller]
    fn check(&self, before: i64, seen: &serde_json::Value) {
        let version = seen[0].as_i64().unwrap();
        assert!(version >= before, "version {version} seen after {before} was published");
        assert_eq!((&seen[1], &seen[2], &seen[3]), (&json!(1), &json!(1), &json!(1)), "version {version}");
        self.reads.fetch_add(1, SeqCst);
    }
}

fn look(db: &Connection) -> serde_json::Value {
    json!(rows(db, LOOK).unwrap()[0])
}

/// Reads until the writer ends, now and then in a transaction of some time, and never meets an error.
fn read_here(path: &Path, shared: &Shared, mut draw: Draw) {
    let mut db = connect(path);
    while !shared.ended.load(SeqCst) {
        let before = shared.published.load(SeqCst);
        match draw.below(20) {
            0 => {
                // A connection comes and goes.
                let other = connect(path);
                shared.check(before, &look(&other));
                db = other;
            }
            1..4 => {
                db.execute_batch("BEGIN").unwrap();
                let first = look(&db);
                shared.check(before, &first);
                thread::sleep(Duration::from_millis(draw.below(30)));
                assert_eq!(look(&db), first);
                db.execute_batch("COMMIT").unwrap();
            }
            4 => assert_sound(&db),
            _ => shared.check(before, &look(&db)),
        }
    }
}

fn read_there(path: &Path, shared: &Shared, mut draw: Draw) {
    let mut sqlite = Sqlite::open(path);
    while !shared.ended.load(SeqCst) {
        let before = shared.published.load(SeqCst);
        match draw.below(20) {
            0 => {
                sqlite.reopen();
                shared.check(before, &sqlite.rows(LOOK)[0]);
            }
            1..4 => {
                sqlite.rows("BEGIN");
                let first = sqlite.rows(LOOK)[0].take();
                shared.check(before, &first);
                thread::sleep(Duration::from_millis(draw.below(30)));
                assert_eq!(sqlite.rows(LOOK)[0], first);
                sqlite.rows("COMMIT");
            }
            4 => assert_eq!(sqlite.rows("PRAGMA integrity_check"), json!([["ok"]])),
            5 => drop(sqlite.rows("PRAGMA wal_checkpoint(PASSIVE)")),
            _ => shared.check(before, &sqlite.rows(LOOK)[0]),
        }
    }
}

fn transaction(draw: &mut Draw) -> String {
    let change = match draw.below(12) {
        0 => "DELETE FROM t WHERE n % 3 = 0".to_owned(),
        1 => format!("DELETE FROM t WHERE n > {}", draw.below(40)),
        2 => "UPDATE t SET y = y + 1".to_owned(),
        _ => format!(
            "WITH r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {})
             INSERT INTO t (y, x) SELECT abs(random()) % 1000, randomblob(abs(random()) % 1500) FROM r",
            1 + draw.below(30),
        ),
    };
    format!("BEGIN; {change}; {COUNT}; COMMIT")
}

#[test]
fn every_read_sees_one_state_the_newest_one_and_nobody_is_locked_out() {
    let mut draw = Draw(seed());
    for page_size in [4096, 512, 65_536] {
        let mut origin = Origin::new(page_size, SCHEMA);
        let mut replica = origin.replica("replica.db");
        let path = replica.path().to_owned();
        let (shared, mut restarts, mut copied) = (Shared::default(), 0, 0);
        thread::scope(|scope| {
            for reader in 0..3 {
                let (shared, path) = (&shared, &path);
                let (here, there) = (Draw(draw.below(u64::MAX)), Draw(draw.below(u64::MAX)));
                thread::Builder::new()
                    .name(format!("here {reader}"))
                    .spawn_scoped(scope, || read_here(path, shared, here))
                    .unwrap();
                thread::Builder::new()
                    .name(format!("there {reader}"))
                    .spawn_scoped(scope, || read_there(path, shared, there))
                    .unwrap();
            }
            // A reader that fails must not leave the others behind.
            let end = Ended(&shared.ended);
            let (start, mut version) = (Instant::now(), 0);
            while version < 800 && start.elapsed() < Duration::from_secs(40) {
                let many = 1 + draw.below(4);
                for _ in 0..many {
                    version += 1;
                    let frames = match draw.below(60) {
                        0 => [origin.run(&transaction(&mut draw)), origin.run("VACUUM")].concat(),
                        _ => origin.run(&transaction(&mut draw)),
                    };
                    let cut = draw.below(1 + frames.len() as u64 / (24 + u64::from(page_size))) as usize;
                    let (first, second) = frames.split_at(cut * (24 + page_size as usize));
                    append(&mut replica, first);
                    append(&mut replica, second);
                }
                if draw.below(3) == 0 {
                    replica.publish().unwrap()
                } else {
                    replica.commit().unwrap()
                }
                shared.published.store(version, SeqCst);
                let done = match draw.below(20) {
                    0 => Some(replica.checkpoint().unwrap()),
                    1 => Some(replica.checkpoint_within(Duration::from_millis(20)).unwrap()),
                    _ => replica.checkpoint_if_due().unwrap(),
                };
                if let Some(done) = done {
                    restarts += u32::from(done.restarted);
                    copied += u32::from(done.copied > 0);
                }
            }
            // They all read on, and what is in the WAL gets into the file all the same.
            assert!(replica.wal_bytes() < 12 << 20);
            assert!(replica.checkpoint_within(Duration::from_secs(5)).unwrap().restarted);
            drop(end);
            println!(
                "pages of {page_size}: {version} versions, {restarts} restarts, {copied} checkpoints that copied, {} reads in {:?}",
                shared.reads.load(SeqCst),
                start.elapsed()
            );
            assert!(copied > 10);
        });
        let db = connect(&path);
        assert_sound(&db);
        assert_eq!(dump(&db), origin.dump());
        drop(db);
        replica.close().unwrap();
    }
}

/// Says so when the writer ends, however.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
