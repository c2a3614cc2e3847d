//! A process that dies at any step, or loses power there, leaves a state that was committed: the last one published or a later
//! one, which SQLite reads, and from which it goes on.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use logmirror::repo::{FsRepo, Repo};
use logmirror::sqlite::DatabaseError;
use logmirror::sqlite::read_replica::ReadReplicaFile;
use serde_json::json;

use crate::mortal::Mortal;
use crate::origin::{Origin, claims};
use crate::support::commitlog::{Draw, seed};
use crate::support::sqlite::{Sqlite, assert_sound, connect, dump, rows};

/// The transactions of an origin, and the database after each: before the first, `states[0]`.
struct History {
    origin: Origin,
    commits: Vec<Vec<u8>>,
    states: Vec<String>,
}

impl History {
    fn new() -> History {
        let mut origin = Origin::new(512, "CREATE TABLE t (n INTEGER PRIMARY KEY, x); INSERT INTO t (x) VALUES (0)");
        let (mut commits, mut states) = (Vec::new(), vec![origin.dump()]);
        let statements = [
            "INSERT INTO t (x) VALUES (randomblob(2000))",
            "UPDATE t SET x = randomblob(300)",
            "INSERT INTO t (x) SELECT randomblob(200) FROM t, t",
            "DELETE FROM t WHERE n > 2",
            "VACUUM",
            "INSERT INTO t (x) VALUES (randomblob(9000))",
        ];
        fs::copy(origin.dir.path().join("origin.db"), origin.dir.path().join("base.db")).unwrap();
        for sql in statements {
            commits.push(origin.run(sql));
            states.push(origin.dump());
        }
        History { origin, commits, states }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.origin.dir.path().join(name)
    }

    /// Makes the replica in a directory, which does not change any more, for each of so many runs.
    fn prepare(&self, path: &Path) {
        for ending in ["", "-wal", "-shm"] {
            let _is_not_there = fs::remove_file(format!("{}{ending}", path.display()));
        }
        let draft = self.path("draft.db");
        fs::copy(self.path("base.db"), &draft).unwrap();
        drop(ReadReplicaFile::create(path, &draft).unwrap());
    }

    /// Which state a database is in: that of so many transactions, or of one more.
    #[track_caller]
    fn state(&self, path: &Path, published: usize, steps: u64) -> usize {
        let db = connect(path);
        assert_sound(&db);
        let (seen, may_be) = (dump(&db), &self.states[published..self.states.len().min(published + 2)]);
        let found = may_be.iter().position(|state| *state == seen);
        found.unwrap_or_else(|| {
            let found = self.states.iter().position(|state| *state == seen);
            panic!("step {steps}: {published} published, {found:?} found")
        }) + published
    }

    /// Applies the transactions from `from` on, with a checkpoint after some, and returns how many were published.
    fn apply(&self, dir: Arc<dyn Repo>, path: &Path, from: usize, published: &mut usize) -> Result<(), DatabaseError> {
        let Some(mut replica) = ReadReplicaFile::open_through(&dir, path)? else { panic!("there is none") };
        for (nth, frames) in self.commits.iter().enumerate().skip(from) {
            let half = frames.len() / 536 / 2 * 536;
            replica.append(claims(&frames[..half], 512))?;
            replica.append(claims(&frames[half..], 512))?;
            replica.commit()?;
            *published = nth + 1;
            if nth % 2 == 1 {
                replica.checkpoint()?;
            }
        }
        replica.close().map(drop)
    }
}

/// Lets the process die at each step; `reader` says whether a reader is there meanwhile, `power` whether power is lost.
fn die_at_each_step(reader: bool, power: Option<bool>) {
    let history = History::new();
    let path = history.path("replica.db");
    let mut draw = Draw(seed());
    let plain: Arc<dyn Repo> = Arc::new(FsRepo::open(history.origin.dir.path()).unwrap());
    let mut steps = 0;
    loop {
        steps += 1;
        history.prepare(&path);
        let mortal = Mortal::new(history.origin.dir.path(), steps);
        let mut readers: Vec<Sqlite> = Vec::new();
        if reader {
            let mut old = Sqlite::open(&path);
            old.rows("BEGIN; SELECT count(*) FROM t");
            let mut idle = Sqlite::open(&path);
            idle.rows("SELECT count(*) FROM t");
            readers.extend([old, idle]);
        }
        let mut published = 0;
        let ended = history.apply(Arc::new(mortal.clone()), &path, 0, &mut published);
        if let Some(all) = power {
            let _is_not_there = fs::remove_file(history.path("replica.db-shm"));
            mortal.lose_power(&mut draw, all);
        }
        for reader in &mut readers {
            let seen = reader.rows("SELECT count(*) FROM t");
            assert!(seen[0][0].as_i64() > Some(0));
            assert_eq!(reader.rows("PRAGMA integrity_check"), json!([["ok"]]), "step {steps}");
        }
        // SQLite finds one of the states that may be there, in the files as they are, and in those that a dead machine leaves.
        let copy = history.path("copy.db");
        for ending in ["", "-wal"] {
            fs::copy(format!("{}{ending}", path.display()), format!("{}{ending}", copy.display())).unwrap();
        }
        history.state(&copy, published, steps);
        if reader || steps % 2 == 0 {
            let mut other = Sqlite::open(&path);
            assert_eq!(other.rows("PRAGMA integrity_check"), json!([["ok"]]), "step {steps}");
            let count = rows(&connect(&copy), "SELECT count(*), sum(length(x)) FROM t").unwrap();
            let live = other.rows("SELECT count(*), sum(length(x)) FROM t");
            other.close();
            assert!(live == json!(count) || reader, "step {steps}");
        }
        // It goes on from what is there.
        let mut replica = ReadReplicaFile::open_through(&plain, &path).unwrap().unwrap();
        let copy = history.path("found.db");
        image(&replica, &copy);
        let from = history.state(&copy, published, steps);
        replica.checkpoint().unwrap();
        drop(replica);
        history.apply(plain.clone(), &path, from, &mut published).unwrap();
        for mut reader in readers {
            let _had_none = reader.ask("COMMIT");
            assert_eq!(reader.rows("PRAGMA integrity_check"), json!([["ok"]]), "step {steps}");
            let sum = "SELECT count(*), sum(length(x)) FROM t";
            assert_eq!(reader.rows(sum), json!(rows(&history.origin.db, sum).unwrap()), "step {steps}");
        }
        let db = connect(&path);
        assert_eq!(dump(&db), history.states[history.commits.len()], "step {steps}");
        drop(db);
        if ended.is_ok() {
            break;
        }
    }
    println!("{steps} steps");
    assert!(steps > 50);
}

/// The pages that a replica says it has, as a database file.
fn image(replica: &ReadReplicaFile, path: &Path) {
    let mut bytes = Vec::new();
    let mut page = vec![0; replica.page_size() as usize];
    for number in 1..=replica.pages().unwrap() {
        assert!(replica.read_page(number, &mut page).unwrap());
        bytes.extend_from_slice(&page);
    }
    for ending in ["-wal", "-shm"] {
        let _is_not_there = fs::remove_file(format!("{}{ending}", path.display()));
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_process_that_dies_at_any_step_leaves_a_state_that_was_committed() {
    die_at_each_step(false, None);
}

#[test]
fn readers_go_on_when_it_dies_at_any_step() {
    die_at_each_step(true, None);
}

#[test]
fn a_power_failure_at_any_step_takes_nothing_that_was_committed() {
    die_at_each_step(false, Some(seed().is_multiple_of(2)));
}
