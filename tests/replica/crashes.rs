//! Power is lost at every call that changes something on the replica's disk, in each operation, and comes back to a disk
//! that has forgotten all, nothing or something of what was not synced. The replica opens again, and the next sync brings
//! all that was acknowledged to the remote, once.

use std::collections::BTreeSet;
use std::sync::Arc;

use logmirror::replica::{Options, ReplicaError, SyncEngine, Value};
use logmirror::repo::{Faults, Loss, MemRepo};
use logmirror::sync::Remote;

use super::{Dump, Rig, dump};

/// A log of its own and a disk of its own.
struct Case<'a> {
    rig: &'a Rig,
    log: String,
    disk: MemRepo,
}

/// Values that were inserted locally: those that were acknowledged, and those that may be there or not.
#[derive(Default)]
struct Inserted {
    acked: BTreeSet<i64>,
    tried: BTreeSet<i64>,
}

impl Case<'_> {
    fn new<'a>(rig: &'a Rig, name: &str) -> Case<'a> {
        let log = format!("{name}-{}", uuid::Uuid::new_v4());
        assert_eq!(rig.service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
        Case { rig, log, disk: MemRepo::default() }
    }

    fn ask(&self, sql: &str) -> Vec<Vec<Value>> {
        self.rig.ask_log(&self.log, sql)
    }

    fn open(&self) -> Result<SyncEngine, ReplicaError> {
        let remote = Remote::new(&self.rig.service.url(&format!("/logs/{}", self.log)), None).unwrap();
        let opening = SyncEngine::open_in(Arc::new(self.disk.clone()), "app", remote, Options::default());
        self.rig.service.runtime.block_on(opening)
    }

    fn sync(&self, engine: &SyncEngine) -> Result<(), ReplicaError> {
        let report = self.rig.service.runtime.block_on(engine.sync())?;
        assert!(report.conflicts.is_empty(), "{report:?}");
        Ok(())
    }

    fn roll_over(&self) {
        let answer = self.rig.service.call("POST", &format!("/logs/{}/checkpoint", self.log), "", b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Inserts a value into a table without a key and changes a row that others change too.
    fn write(&self, engine: &SyncEngine, value: i64, inserted: &mut Inserted) -> Result<(), ReplicaError> {
        inserted.tried.insert(value);
        let connection = engine.connect()?;
        connection.execute("BEGIN IMMEDIATE")?;
        connection.execute(format!("INSERT INTO n VALUES ({value}, zeroblob(3000))"))?;
        connection.execute(format!("UPDATE t SET b = {value} WHERE a = 1"))?;
        connection.execute(format!("INSERT INTO t(b) VALUES ({value})"))?;
        connection.execute("COMMIT")?;
        inserted.acked.insert(value);
        Ok(())
    }

    /// What others do.
    fn write_there(&self, value: i64) {
        self.ask(&format!("INSERT INTO n VALUES ({value}, zeroblob(5000))"));
        self.ask(&format!("UPDATE t SET c = {value} WHERE a = 2"));
    }

    fn dump(&self) -> Dump {
        dump(|sql| self.ask(sql))
    }
}

fn prepare(case: &Case<'_>) {
    case.ask("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c)");
    case.ask("CREATE TABLE n(x, y)");
    case.ask("INSERT INTO t VALUES (1, 0, 0), (2, 0, 0)");
    case.write_there(-1);
    case.roll_over();
    case.write_there(-2);
}

/// Losses after which a disk is looked at: those in turn, unless there is time for all of them.
fn losses(step: u64) -> Vec<Loss> {
    let all = [Loss::All, Loss::Nothing, Loss::Prefix { seed: step }, Loss::Torn { seed: step }];
    let thorough = std::env::var_os("LOGMIRROR_TEST_THOROUGH").is_some();
    let count = if thorough { all.len() } else { 1 };
    all.into_iter().cycle().skip(step as usize % 4).take(count).collect()
}

/// Runs `act` on what `set_up` has made, once for every step of it and every loss. How many cases that were.
fn at_every_step(
    name: &str,
    set_up: impl Fn(&Case<'_>, &mut Inserted),
    act: impl Fn(&Case<'_>, &mut Inserted) -> Result<(), ReplicaError>,
) -> usize {
    let rig = Rig::new();
    let mut cases = 0;
    for step in 0.. {
        let mut is_past_the_end = false;
        for loss in losses(step) {
            let mut case = Case::new(&rig, name);
            let mut inserted = Inserted::default();
            prepare(&case);
            set_up(&case, &mut inserted);
            case.disk.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
            let outcome = act(&case, &mut inserted);
            is_past_the_end = case.disk.steps() <= step;
            assert!(outcome.is_err() || is_past_the_end, "{name}, step {step}: a failed call was not noticed");
            case.disk = case.disk.after_power_loss(loss);
            converges(&case, &mut inserted, &format!("{name}, step {step}, {loss:?}"));
            cases += 1;
        }
        if is_past_the_end {
            break;
        }
    }
    println!("crashes: {name}: {cases} cases");
    cases
}

/// Fails unless the replica opens, goes on, and brings everything to the remote once.
fn converges(case: &Case<'_>, inserted: &mut Inserted, context: &str) {
    let engine = case.open().unwrap_or_else(|error| panic!("{context}: {error}"));
    case.sync(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
    case.write(&engine, 777_777, inserted).unwrap_or_else(|error| panic!("{context}: {error}"));
    case.sync(&engine).unwrap_or_else(|error| panic!("{context}: {error}"));
    let connection = engine.connect().unwrap();
    let local = dump(|sql| super::rows(&connection, sql));
    assert_eq!(local, case.dump(), "{context}");
    let found: Vec<i64> = case
        .ask("SELECT x FROM n WHERE x > 0 ORDER BY x")
        .into_iter()
        .map(|row| match row[..] {
            [Value::Integer(x)] => x,
            _ => panic!("{row:?}"),
        })
        .collect();
    let once: BTreeSet<i64> = found.iter().copied().collect();
    assert_eq!(found.len(), once.len(), "{context}: something was applied twice: {found:?}");
    assert!(once.is_superset(&inserted.acked), "{context}: {:?} of {:?}", found, inserted.acked);
    assert!(once.is_subset(&inserted.tried), "{context}");
}

#[test]
fn a_replica_in_the_making_is_made_whatever_crashes() {
    let cases = at_every_step("bootstrap", |_, _| {}, |case, _| case.open().map(drop));
    assert!(cases > 25, "{cases}");
}

#[test]
fn a_first_sync_survives_power_loss_at_every_step() {
    let cases = at_every_step(
        "first-sync",
        |case, _| drop(case.open().unwrap()),
        |case, inserted| {
            let engine = case.open()?;
            case.write(&engine, 1, inserted)?;
            case.write_there(-10);
            case.sync(&engine)?;
            case.write(&engine, 2, inserted)
        },
    );
    assert!(cases > 60, "{cases}");
}

#[test]
fn pulls_and_pushes_survive_power_loss_at_every_step() {
    let set_up = |case: &Case<'_>, inserted: &mut Inserted| {
        let engine = case.open().unwrap();
        case.write(&engine, 1, inserted).unwrap();
        case.sync(&engine).unwrap();
        case.write_there(-10);
        case.write(&engine, 2, inserted).unwrap();
    };
    let cases = at_every_step("pull-push", set_up, |case, inserted| {
        let engine = case.open()?;
        let run = &case.rig.service.runtime;
        run.block_on(engine.pull())?;
        case.write(&engine, 3, inserted)?;
        run.block_on(engine.push())?;
        case.write(&engine, 4, inserted)?;
        case.write_there(-11);
        // A second push without a pull in between.
        run.block_on(engine.push())?;
        case.write(&engine, 5, inserted)?;
        run.block_on(engine.pull())?;
        Ok(())
    });
    assert!(cases > 110, "{cases}");
}

/// Applications may commit without a sync, as SQLite does in WAL mode with `synchronous = NORMAL`.
#[test]
fn a_commit_without_a_sync_that_was_pushed_is_not_taken_for_removed_after_power_loss() {
    let rig = Rig::new();
    let mut case = Case::new(&rig, "unsynced");
    prepare(&case);
    let engine = case.open().unwrap();
    case.sync(&engine).unwrap();
    let connection = engine.connect().unwrap();
    connection.execute("PRAGMA synchronous = OFF").unwrap();
    connection.execute("INSERT INTO n VALUES (1, 'pushed')").unwrap();
    rig.service.runtime.block_on(engine.push()).unwrap();
    drop((connection, engine));
    case.disk = case.disk.after_power_loss(Loss::All);
    let engine = case.open().unwrap();
    case.sync(&engine).unwrap();
    assert_eq!(case.ask("SELECT y FROM n WHERE x = 1"), [[Value::Text("pushed".into())]]);
    let connection = engine.connect().unwrap();
    assert_eq!(dump(|sql| super::rows(&connection, sql)), case.dump());
}

#[test]
fn steps_through_generations_survive_power_loss_at_every_step() {
    let set_up = |case: &Case<'_>, inserted: &mut Inserted| {
        let engine = case.open().unwrap();
        case.sync(&engine).unwrap();
        case.write(&engine, 1, inserted).unwrap();
        drop(engine);
        for value in [-10, -11, -12] {
            case.write_there(value);
            case.roll_over();
        }
        case.write_there(-13);
    };
    let cases = at_every_step("generations", set_up, |case, inserted| {
        let engine = case.open()?;
        case.sync(&engine)?;
        case.write(&engine, 2, inserted)
    });
    assert!(cases > 150, "{cases}");
}
