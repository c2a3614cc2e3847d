//! Random histories of a replica, its readers, and others who checkpoint it or write into it: it always holds what was committed,
//! no reader meets an error, and whoever wrote into it is noticed.

use logmirror::sqlite::DatabaseError;
use logmirror::sqlite::read_replica::{ReadReplicaFile, StateMark, Touched};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::origin::{Origin, append, claims};
use crate::support::commitlog::seed;
use crate::support::sqlite::{Sqlite, rows};

const SCHEMA: &str = "CREATE TABLE t (n INTEGER PRIMARY KEY, x); INSERT INTO t (x) VALUES ('first')";
const ALL: &str = "SELECT n, x FROM t ORDER BY n";
/// Readers that may be there.
const READERS: usize = 3;

/// What happens while nobody writes the replica.
#[derive(Clone, Copy, Debug)]
enum Visit {
    Reads,
    Checkpoints,
    Writes,
    WritesAndDies,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many transactions, which change so much, published at once or one by one.
    Commit {
        count: u8,
        rows: u8,
        at_once: bool,
        synced: bool,
    },
    Shrink,
    /// A transaction whose end does not come.
    GiveUp,
    Checkpoint,
    /// A reader comes, or goes.
    Connect(usize),
    /// A reader's transaction starts, or ends.
    Transaction(usize),
    /// A reader checkpoints.
    CheckpointBy(usize, u8),
    /// A reader starts to write, and gives up.
    GiveUpBy(usize),
    WriteBy(usize),
    /// The writer ends, well or not, and comes again after visits.
    Reopen {
        well: bool,
        visit: Option<Visit>,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    use Step::*;
    let visit =
        prop_oneof![Just(Visit::Reads), Just(Visit::Checkpoints), Just(Visit::Writes), Just(Visit::WritesAndDies)];
    prop_oneof![
        8 => (1..5_u8, 1..40_u8, any::<bool>(), any::<bool>()).prop_map(|(count, rows, at_once, synced)| Commit { count, rows, at_once, synced }),
        1 => Just(Shrink),
        1 => Just(GiveUp),
        4 => Just(Checkpoint),
        3 => (0..READERS).prop_map(Connect),
        6 => (0..READERS).prop_map(Transaction),
        3 => (0..READERS, 0..4_u8).prop_map(|(reader, mode)| CheckpointBy(reader, mode)),
        1 => (0..READERS).prop_map(GiveUpBy),
        1 => (0..READERS).prop_map(WriteBy),
        3 => (any::<bool>(), prop::option::of(visit)).prop_map(|(well, visit)| Reopen { well, visit }),
    ]
}

/// A reader, and what its transaction sees.
struct Reader {
    sqlite: Sqlite,
    sees: Option<Value>,
}

struct World {
    origin: Origin,
    replica: Option<ReadReplicaFile>,
    readers: [Option<Reader>; READERS],
    /// What was published.
    state: Value,
    /// Somebody else wrote into the replica since it was made.
    written: bool,
    /// Somebody else may have restarted the WAL since this one was written.
    moved: bool,
    made: u32,
}

impl World {
    fn new(page_size: u32) -> World {
        let origin = Origin::new(page_size, SCHEMA);
        let mut world = World {
            origin,
            replica: None,
            readers: Default::default(),
            state: Value::Null,
            written: false,
            moved: false,
            made: 0,
        };
        world.make();
        world
    }

    /// A new replica, and all that was there is gone.
    fn make(&mut self) {
        self.readers = Default::default();
        self.replica = None;
        self.made += 1;
        self.replica = Some(self.origin.replica(&format!("replica-{}.db", self.made)));
        (self.written, self.moved) = (false, false);
        self.publish();
    }

    fn publish(&mut self) {
        self.state = json!(rows(&self.origin.db, ALL).unwrap());
    }

    fn replica(&mut self) -> &mut ReadReplicaFile {
        self.replica.as_mut().unwrap()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit { count, rows, at_once, synced } => {
                let sql = format!(
                    "WITH r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {rows})
                     INSERT INTO t (x) SELECT hex(randomblob(abs(random()) % 400)) FROM r",
                );
                for nth in 0..count {
                    let frames = self.origin.run(&sql);
                    if !self.append(&frames) {
                        return;
                    }
                    if nth + 1 == count || !at_once {
                        match synced {
                            true => self.replica().commit().unwrap(),
                            false => self.replica().publish().unwrap(),
                        }
                        self.publish();
                    }
                }
            }
            Step::Shrink => {
                let frames = [self.origin.run("DELETE FROM t WHERE n % 4 > 0"), self.origin.run("VACUUM")].concat();
                if self.append(&frames) {
                    self.replica().commit().unwrap();
                    self.publish();
                }
            }
            Step::GiveUp => {
                let frames = self.origin.run("UPDATE t SET x = hex(randomblob(300))");
                let page_size = self.replica().page_size();
                // There may be no row to change.
                let last = frames.len().saturating_sub(24 + page_size as usize);
                if self.append(&frames[..last]) {
                    self.replica().forget_open();
                    // The source sends it again.
                    append(self.replica(), &frames);
                    self.replica().commit().unwrap();
                    self.publish();
                }
            }
            Step::Checkpoint => match self.replica().checkpoint() {
                Err(DatabaseError::WrittenByOthers { .. }) if self.written => self.make(),
                done => drop(done.unwrap()),
            },
            Step::Connect(at) => {
                if self.readers[at].take().is_none() {
                    self.readers[at] = Some(Reader { sqlite: Sqlite::open(self.replica().path()), sees: None });
                }
            }
            Step::Transaction(at) => {
                let state = self.state.clone();
                if let Some(reader) = &mut self.readers[at] {
                    if reader.sees.take().is_some() {
                        reader.sqlite.rows("COMMIT");
                    } else {
                        reader.sqlite.rows("BEGIN");
                        let seen = reader.sqlite.rows(ALL);
                        if !self.written {
                            assert_eq!(seen, state);
                        }
                        reader.sees = Some(seen);
                    }
                }
            }
            Step::CheckpointBy(at, mode) => {
                if let Some(Reader { sqlite, sees: None }) = &mut self.readers[at] {
                    let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][usize::from(mode)];
                    sqlite.rows(&format!("PRAGMA wal_checkpoint({mode})"));
                    self.moved = true;
                }
            }
            Step::GiveUpBy(at) => {
                if let Some(Reader { sqlite, sees: None }) = &mut self.readers[at] {
                    sqlite.run(&[
                        "PRAGMA cache_spill = 1",
                        "PRAGMA cache_size = 1",
                        "BEGIN",
                        "UPDATE t SET x = hex(randomblob(300))",
                        "ROLLBACK",
                    ]);
                    self.moved = true;
                }
            }
            Step::WriteBy(at) => {
                if let Some(Reader { sqlite, sees: None }) = &mut self.readers[at] {
                    sqlite.rows("INSERT INTO t (x) VALUES ('foreign')");
                    self.written = true;
                }
            }
            Step::Reopen { well, visit } => self.reopen(well, visit),
        }
    }

    /// Appends frames; false when somebody else was noticed to have written, and the replica was made again.
    fn append(&mut self, frames: &[u8]) -> bool {
        let (replica, written) = (self.replica.as_mut().unwrap(), self.written);
        let page_size = replica.page_size();
        match replica.append(claims(frames, page_size)) {
            Err(DatabaseError::WrittenByOthers { .. }) if written => {
                self.make();
                false
            }
            appended => {
                appended.unwrap();
                assert!(!written, "it was not noticed");
                self.moved = false;
                true
            }
        }
    }

    fn reopen(&mut self, well: bool, visit: Option<Visit>) {
        let replica = self.replica.take().unwrap();
        let path = replica.path().to_owned();
        let was_written = self.written;
        let mark: StateMark = match well {
            true => match replica.close() {
                Err(DatabaseError::WrittenByOthers { .. }) if was_written => return self.make(),
                mark => mark.unwrap(),
            },
            false => {
                let mark = replica.mark().unwrap();
                drop(replica);
                mark
            }
        };
        // It is stored and read again.
        let mark: StateMark = serde_json::from_str(&serde_json::to_string(&mark).unwrap()).unwrap();
        let moved = std::mem::take(&mut self.moved);
        if let Some(visit) = visit {
            let mut visitor = Sqlite::open_within(&path, 1);
            visitor.rows(ALL);
            match visit {
                Visit::Reads => visitor.close(),
                Visit::Checkpoints => {
                    visitor.rows("PRAGMA wal_checkpoint(TRUNCATE)");
                    visitor.close();
                }
                Visit::Writes => {
                    visitor.rows("INSERT INTO t (x) VALUES ('foreign')");
                    self.written = true;
                    visitor.close();
                }
                Visit::WritesAndDies => {
                    visitor.rows("INSERT INTO t (x) VALUES ('foreign')");
                    self.written = true;
                    visitor.kill();
                }
            }
        }
        let replica = ReadReplicaFile::open(&path).unwrap().unwrap();
        let touched = replica.touched_since(&mark);
        if self.written {
            assert_eq!(touched, Touched::Maybe, "{visit:?} after {well}");
            return self.make();
        }
        // Who restarts the WAL changes what a mark is of; a close takes that into account.
        if visit.is_none() && (well || !moved) {
            assert_eq!(touched, Touched::No, "nobody was there after {well}");
        }
        self.replica = Some(replica);
    }

    /// Who reads now sees what was published; whose transaction goes on sees what it saw.
    fn check(&mut self) {
        if self.written {
            return;
        }
        for reader in self.readers.iter_mut().flatten() {
            assert_eq!(reader.sqlite.rows(ALL), *reader.sees.as_ref().unwrap_or(&self.state));
            assert_eq!(reader.sqlite.rows("PRAGMA integrity_check"), json!([["ok"]]));
        }
    }
}

#[test]
fn whatever_readers_and_others_do_it_holds_what_was_committed() {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let cases = std::env::var("LOGMIRROR_TEST_CASES").map_or(60, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let page_size = prop_oneof![4 => Just(512_u32), 2 => Just(4096), 1 => Just(65_536)];
    let run = TestRunner::new_with_rng(config, rng).run(&(page_size, vec(any_step(), 1..40)), |(page_size, steps)| {
        let mut world = World::new(page_size);
        for step in steps {
            world.step(step);
            world.check();
        }
        // In the end all of it is in one file, and what SQLite finds there is what was committed.
        world.readers = Default::default();
        if !world.written {
            let replica = world.replica.take().unwrap();
            let path = replica.path().to_owned();
            replica.close().unwrap();
            assert_eq!(std::fs::metadata(format!("{}-wal", path.display())).unwrap().len(), 0);
            let db = crate::support::sqlite::connect(&path);
            crate::support::sqlite::assert_sound(&db);
            assert_eq!(json!(rows(&db, ALL).unwrap()), world.state);
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}
