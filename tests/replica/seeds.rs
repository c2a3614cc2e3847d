//! Two replicas and the remote, written at random on all three, synced in any order while the network breaks, answers are
//! lost, processes are killed, power fails and the remote rolls over. In the end all three are equal, nothing that was
//! acknowledged is lost, and nothing was applied twice.
//!
//! `LOGMIRROR_TEST_SEED` replays one seed, `LOGMIRROR_TEST_SEEDS` says how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logmirror::replica::{Conflict, Doing, Options, ReplicaError, Report, SyncEngine, Value};
use logmirror::repo::{Faults, Loss, MemRepo};
use logmirror::sync::Remote;

use super::wire::{Left, Wire};
use super::{Dump, Rig, dump, rows};
use crate::support::commitlog::Draw;

/// Seeds, unless the environment says otherwise.
const SEEDS: u64 = 100;
/// What happens in one of them.
const STEPS: u64 = 14;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    One,
    Two,
    Remote,
}

/// A row by its table and key.
type Key = (&'static str, String);

/// What was done to rows, by anybody.
#[derive(Default)]
struct History {
    inserted: BTreeSet<Key>,
    /// Inserted, and perhaps not.
    tried: BTreeSet<Key>,
    deleted: BTreeSet<Key>,
    /// Deleted, and perhaps not.
    tried_to_delete: BTreeSet<Key>,
    /// Updated, perhaps.
    updated: BTreeSet<Key>,
    /// Values that a row may have.
    values: BTreeMap<Key, BTreeSet<String>>,
    next: u64,
}

struct Local {
    name: &'static str,
    disk: MemRepo,
    engine: Option<SyncEngine>,
}

struct Run<'a> {
    rig: &'a Rig,
    wire: &'a Wire,
    log: String,
    draw: Draw,
    locals: [Local; 2],
    history: History,
    conflicts: Vec<Conflict>,
    story: Vec<String>,
}

/// A statement, and the row that it deletes if that is there.
type Written = (String, Option<Key>);

/// Tables whose rows have a text for a key, which are made and changed alike.
const KEYED: [&str; 2] = ["p", "q"];

impl<'a> Run<'a> {
    fn new(rig: &'a Rig, wire: &'a Wire, seed: u64) -> Run<'a> {
        let log = format!("seed-{}", uuid::Uuid::new_v4());
        assert_eq!(rig.service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
        let local = |name| Local { name, disk: MemRepo::default(), engine: None };
        let locals = [local("one"), local("two")];
        let (history, conflicts, story) = Default::default();
        let run = Run { rig, wire, log, draw: Draw(seed), locals, history, conflicts, story };
        for sql in [
            "CREATE TABLE p(id TEXT PRIMARY KEY, v, w BLOB)",
            "CREATE TABLE q(a TEXT, b INT, v, w, PRIMARY KEY(a, b))",
            "CREATE TABLE i(id INTEGER PRIMARY KEY, v)",
            "CREATE TABLE n(x, w)",
            "CREATE TABLE u(id TEXT PRIMARY KEY, k UNIQUE, v)",
            "CREATE TABLE r(id TEXT PRIMARY KEY, v) WITHOUT ROWID",
            "CREATE INDEX p_v ON p(v)",
        ] {
            run.rig.ask_log(&run.log, sql);
        }
        run
    }

    fn remote(&self) -> Remote {
        let url = format!("http://{}/logs/{}", self.wire.address, self.log);
        // What fails is to fail at once.
        Remote::new(&url, None).unwrap().retry_first(std::time::Duration::from_millis(1))
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.draw.below(100) < percent
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    /// The engine of a replica, opened if need be.
    fn engine(&mut self, local: usize) -> Result<SyncEngine, ReplicaError> {
        if let Some(engine) = &self.locals[local].engine {
            return Ok(engine.clone());
        }
        let (disk, name, remote) = (self.locals[local].disk.clone(), self.locals[local].name, self.remote());
        let opening = SyncEngine::open_in(Arc::new(disk), name, remote, Options::default());
        let engine = self.rig.service.runtime.block_on(opening)?;
        self.locals[local].engine = Some(engine.clone());
        Ok(engine)
    }

    /// The process of a replica ends, by a kill or with the power.
    fn crash(&mut self, local: usize) {
        let seed = self.draw.below(u64::MAX);
        let losses = [Loss::Nothing, Loss::Nothing, Loss::All, Loss::Prefix { seed }, Loss::Torn { seed }];
        let loss = losses[self.draw.below(5) as usize];
        self.tell(format!("{} crashes: {loss:?}", self.locals[local].name));
        self.locals[local].engine = None;
        self.locals[local].disk = self.locals[local].disk.after_power_loss(loss);
    }

    /// Some statements of one transaction, each with the row that it deletes if that is there, and what comes of them.
    fn statements(&mut self, who: Who) -> (Vec<Written>, History) {
        let (mut all, mut done) = (Vec::new(), History::default());
        for _ in 0..1 + self.draw.below(4) {
            self.history.next += 1;
            let number = self.history.next;
            let tag = format!("{who:?}-{number}");
            let value = match self.draw.below(6) {
                0 => "NULL".to_owned(),
                1 => format!("{}", self.draw.below(u64::MAX) as i64),
                2 => format!("'ü\"''{}'", self.draw.below(1000)),
                3 => format!("zeroblob({})", self.draw.below(9000)),
                4 => format!("{}.5e{}", self.draw.below(99), self.draw.below(40)),
                _ => format!("x'{:016x}'", self.draw.below(u64::MAX)),
            };
            let keyed = KEYED[self.draw.below(2) as usize];
            let known: Vec<Key> = self.history.tried.iter().cloned().collect();
            let of = |table: &str| known.iter().filter(|(of, _)| *of == table).cloned().collect::<Vec<_>>();
            let place = |table: &str, key: &str| match table {
                "q" => format!("a = '{key}' AND b = 7"),
                _ => format!("id = '{key}'"),
            };
            let (mut sql, mut deletes) = (Vec::new(), None);
            let mut values = |key: &Key| done.values.entry(key.clone()).or_default().insert(tag.clone());
            match self.draw.below(12) {
                0 | 1 => {
                    let (names, key) =
                        if keyed == "q" { ("a, b", format!("'{tag}', 7")) } else { ("id", format!("'{tag}'")) };
                    sql.push(format!("INSERT INTO {keyed}({names}, v, w) VALUES ({key}, '{tag}', {value})"));
                    values(&(keyed, tag.clone()));
                    done.inserted.insert((keyed, tag));
                }
                2 | 3 => {
                    sql.push(format!("INSERT INTO n VALUES ('{tag}', {value})"));
                    done.inserted.insert(("n", tag));
                }
                4 => {
                    sql.push(format!("INSERT INTO r VALUES ('{tag}', {value})"));
                    done.inserted.insert(("r", tag));
                }
                5 => {
                    // Numbers that nobody else gives.
                    let id = number * 4 + who as u64;
                    sql.push(format!("INSERT INTO i VALUES ({id}, {value})"));
                    done.inserted.insert(("i", id.to_string()));
                }
                6 => {
                    // Others may take the same one.
                    sql.push(format!("INSERT OR IGNORE INTO u VALUES ('{tag}', {}, {value})", self.draw.below(12)));
                    done.tried.insert(("u", tag));
                }
                7 | 8 => {
                    let rows = of(keyed);
                    if let Some(key) = rows.get(self.draw.below(rows.len().max(1) as u64) as usize) {
                        sql.push(format!("UPDATE {keyed} SET v = '{tag}' WHERE {}", place(keyed, &key.1)));
                        values(key);
                        done.updated.insert(key.clone());
                    }
                }
                9 => {
                    let rows = of(keyed);
                    if let Some(key) = rows.get(self.draw.below(rows.len().max(1) as u64) as usize) {
                        sql.push(format!("DELETE FROM {keyed} WHERE {}", place(keyed, &key.1)));
                        deletes = Some(key.clone());
                    }
                }
                10 => {
                    let rows = of("n");
                    if let Some(key) = rows.get(self.draw.below(rows.len().max(1) as u64) as usize) {
                        sql.push(format!("DELETE FROM n WHERE x = '{}'", key.1));
                        deletes = Some(key.clone());
                    }
                }
                _ => match self.draw.below(4) {
                    0 => sql.push(format!("ALTER TABLE p ADD COLUMN c{number} DEFAULT {number}")),
                    1 => {
                        sql.push(format!("CREATE TABLE t{number}(a INTEGER PRIMARY KEY, b DEFAULT 'x')"));
                        sql.push(format!("INSERT INTO t{number}(b) VALUES ({value}), ('{tag}')"));
                    }
                    2 => sql.push(format!("CREATE INDEX x{number} ON i(v, id)")),
                    _ => sql.push(format!("CREATE VIEW s{number} AS SELECT count(*) FROM n")),
                },
            }
            all.extend(sql.into_iter().map(|sql| (sql, deletes.clone())));
        }
        (all, done)
    }

    /// Takes over what was done, all of it or perhaps.
    fn note(&mut self, done: History, acked: bool) {
        let History { inserted, tried, deleted, updated, values, .. } = done;
        let history = &mut self.history;
        history.tried.extend(inserted.iter().cloned().chain(tried));
        history.tried_to_delete.extend(deleted.iter().cloned());
        history.updated.extend(updated);
        for (key, of) in values {
            history.values.entry(key).or_default().extend(of);
        }
        if acked {
            history.inserted.extend(inserted);
            history.deleted.extend(deleted);
        }
    }

    fn write_locally(&mut self, local: usize) {
        let who = [Who::One, Who::Two][local];
        let (sql, mut done) = self.statements(who);
        self.tell(format!("{who:?} writes {sql:?}"));
        let Ok(engine) = self.engine(local) else { return };
        let connection = engine.connect().unwrap();
        let dies = self.chance(10);
        if dies {
            let power_loss_at = Some(self.draw.below(8));
            self.locals[local].disk.set_faults(Faults { power_loss_at, ..Faults::default() });
        }
        let written = (|| {
            connection.execute("BEGIN IMMEDIATE")?;
            for (sql, deletes) in &sql {
                let before = connection.total_changes();
                connection.execute(sql)?;
                done.deleted.extend(deletes.clone().filter(|_| connection.total_changes() > before));
            }
            connection.execute("COMMIT")
        })();
        self.note(done, written.is_ok());
        drop((connection, engine));
        if dies || written.is_err() {
            self.crash(local);
        }
    }

    fn write_there(&mut self) {
        let (sql, mut done) = self.statements(Who::Remote);
        self.tell(format!("the remote is written {sql:?}"));
        for (sql, deletes) in &sql {
            let changed = self.rig.change_log(&self.log, sql);
            done.deleted.extend(deletes.clone().filter(|_| changed > 0));
        }
        self.note(done, true);
    }

    fn sync(&mut self, local: usize) {
        let name = self.locals[local].name;
        let (cut, dies) = (self.chance(35), self.chance(20));
        if cut {
            let mut left = Left::default();
            let bytes = [300, 3000, 60_000][self.draw.below(3) as usize];
            match self.draw.below(2) {
                0 => left.requests = Some(self.draw.below(bytes)),
                _ => left.answers = Some(self.draw.below(bytes)),
            }
            self.tell(format!("the network carries {left:?}"));
            self.wire.set(left);
        }
        if dies {
            let power_loss_at = Some(self.draw.below(60));
            self.tell(format!("{name} dies after {power_loss_at:?} steps"));
            self.locals[local].disk.set_faults(Faults { power_loss_at, ..Faults::default() });
        }
        let what = self.draw.below(5);
        let done = self.engine(local).and_then(|engine| {
            self.rig.service.runtime.block_on(async {
                match what {
                    0 => engine.pull().await,
                    1 => engine.push().await,
                    _ => engine.sync().await,
                }
            })
        });
        self.wire.set(Left::default());
        self.tell(format!("{name} {}: {done:?}", ["pulls", "pushes", "syncs", "syncs", "syncs"][what as usize]));
        let failed = done.is_err();
        if let Ok(report) = done {
            self.keep(report);
        }
        if dies || failed && self.chance(50) {
            self.crash(local);
        }
    }

    fn keep(&mut self, report: Report) {
        self.conflicts.extend(report.conflicts);
    }

    fn go(&mut self) {
        for _ in 0..STEPS {
            match self.draw.below(20) {
                0..=7 => {
                    let local = self.draw.below(2) as usize;
                    self.write_locally(local);
                }
                8..=11 => self.write_there(),
                12 => {
                    self.tell("the remote rolls over".into());
                    let answer = self.rig.service.call("POST", &format!("/logs/{}/checkpoint", self.log), "", b"");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
                _ => {
                    let local = self.draw.below(2) as usize;
                    self.sync(local);
                }
            }
        }
    }

    /// A final round without anything in the way.
    fn end(&mut self) -> [Dump; 3] {
        for local in [0, 1, 0, 1] {
            self.locals[local].disk.set_faults(Faults::default());
            let engine = self.engine(local).unwrap();
            let report = self.rig.service.runtime.block_on(engine.sync()).unwrap();
            self.tell(format!("{} syncs: {report:?}", self.locals[local].name));
            self.keep(report);
        }
        let [one, two] = [0, 1].map(|local| {
            let connection = self.engine(local).unwrap().connect().unwrap();
            let check = rows(&connection, "PRAGMA integrity_check");
            assert_eq!(check, [[Value::Text("ok".into())]], "integrity");
            dump(|sql| rows(&connection, sql))
        });
        [one, two, dump(|sql| self.rig.ask_log(&self.log, sql))]
    }

    fn check(&self, [one, two, remote]: &[Dump; 3]) {
        assert_eq!(one, remote, "the first replica and the remote");
        assert_eq!(two, remote, "the second replica and the remote");
        let there: Vec<Key> =
            [("p", "id"), ("q", "a"), ("n", "x"), ("r", "id"), ("i", "CAST(id AS TEXT)"), ("u", "id")]
                .into_iter()
                .flat_map(|(table, key)| {
                    let rows = self.rig.ask_log(&self.log, &format!("SELECT {key} FROM {table}"));
                    rows.into_iter().map(move |row| match &row[..] {
                        [Value::Text(key)] => (table, key.clone()),
                        row => panic!("{row:?}"),
                    })
                })
                .collect();
        let once: BTreeSet<Key> = there.iter().cloned().collect();
        assert_eq!(there.len(), once.len(), "something was applied twice: {there:?}");
        for key in &once {
            assert!(self.history.tried.contains(key), "{key:?} comes from nowhere");
            // An update that comes after a delete brings the row back.
            let may_be = !self.history.deleted.contains(key) || self.history.updated.contains(key);
            assert!(may_be, "{key:?} was deleted");
        }
        for key in &self.history.inserted {
            let may_be_gone = self.history.tried_to_delete.contains(key);
            assert!(once.contains(key) || may_be_gone, "{key:?} is lost");
        }
        for (table, place) in [("p", "id"), ("q", "a")] {
            for row in self.rig.ask_log(&self.log, &format!("SELECT {place}, v FROM {table}")) {
                let [Value::Text(key), Value::Text(value)] = &row[..] else { panic!("{row:?}") };
                let may_be = self.history.values[&(table, key.clone())].contains(value);
                assert!(may_be, "{table} {key} is {value}, which nobody wrote");
            }
        }
        for Conflict { about, error, .. } in &self.conflicts {
            let deleted = about.doing == Doing::Update && error.contains("there again");
            let taken = about.table == "u" && error.contains("UNIQUE constraint failed: u.k");
            let changed = about.doing == Doing::Delete && error.contains("nothing is deleted");
            assert!(deleted || taken || changed, "{about:?}: {error}");
        }
    }
}

fn run(seeds: impl Iterator<Item = u64>) {
    let rig = Rig::new();
    let wire = Wire::to(rig.service.address);
    for seed in seeds {
        let mut run = Run::new(&rig, &wire, seed);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run.go();
            let dumps = run.end();
            run.check(&dumps);
        }));
        if let Err(panic) = ran {
            // All of it at once: others print too.
            println!("{}", run.story.join("\n"));
            println!("LOGMIRROR_TEST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Every second one of all seeds.
fn half(which: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("LOGMIRROR_TEST_SEED") {
        Some(seed) if seed % 2 == which => run(std::iter::once(seed)),
        Some(_) => {}
        None => run((0..number("LOGMIRROR_TEST_SEEDS").unwrap_or(SEEDS)).filter(|seed| seed % 2 == which)),
    }
}

#[test]
fn replicas_and_remote_converge_whatever_happens_with_even_seeds() {
    half(0);
}

#[test]
fn replicas_and_remote_converge_whatever_happens_with_odd_seeds() {
    half(1);
}
