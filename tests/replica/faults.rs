//! The nth call of every kind fails, on the disk or on the way to the remote, in each operation. The same engine goes on
//! then, or says that it has to be opened again. In the end the rows here and there are those that were written, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logmirror::replica::{Options, ReplicaError, Report, SyncEngine, Value};
use logmirror::repo::{Faults, MemRepo, Op};
use logmirror::sync::Remote;

use super::support::failing::{Failing, Trouble};
use super::support::service::Service;
use super::wire::{Left, Lost, Wire};
use super::{Rig, rows};

/// A call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Disk(Op),
    /// A request to the remote, with which the network goes away.
    Remote(Lost),
}

const CALLS: [Call; 9] = [
    Call::Disk(Op::Create),
    Call::Disk(Op::Write),
    Call::Disk(Op::Truncate),
    Call::Disk(Op::Sync),
    Call::Disk(Op::Rename),
    Call::Disk(Op::Remove),
    Call::Disk(Op::SyncDir),
    Call::Remote(Lost::Request),
    Call::Remote(Lost::Answer),
];

/// What every database is to hold: rows of `n`, which has no key, and of `k`, which has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    /// How often each row is there.
    n: BTreeMap<(String, i64), u64>,
    k: BTreeMap<String, i64>,
}

/// A log, a disk, and a replica on it.
struct Case<'a> {
    rig: &'a Rig,
    wire: &'a Wire,
    log: String,
    disk: MemRepo,
    engine: Option<SyncEngine>,
    model: Model,
    next: i64,
}

impl<'a> Case<'a> {
    fn new(rig: &'a Rig, wire: &'a Wire) -> Case<'a> {
        let log = format!("fault-{}", uuid::Uuid::new_v4());
        assert_eq!(rig.service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
        let (engine, model) = (None, Model::default());
        let mut case = Case { rig, wire, log, disk: MemRepo::default(), engine, model, next: 0 };
        case.ask("CREATE TABLE n(x TEXT, y INT)");
        case.ask("CREATE TABLE k(id TEXT PRIMARY KEY, v INT)");
        case.write_there();
        case
    }

    fn ask(&self, sql: &str) -> Vec<Vec<Value>> {
        self.rig.ask_log(&self.log, sql)
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, ReplicaError>>) -> Result<T, ReplicaError> {
        self.rig.service.runtime.block_on(work)
    }

    fn open(&mut self) -> Result<SyncEngine, ReplicaError> {
        if let Some(engine) = &self.engine {
            return Ok(engine.clone());
        }
        let remote = Remote::new(&format!("http://{}/logs/{}", self.wire.address, self.log), None).unwrap();
        let remote = remote.retry_first(Duration::from_millis(1));
        let opening = SyncEngine::open_in(Arc::new(self.disk.clone()), "app", remote, Options::default());
        let engine = self.wait(opening)?;
        self.engine = Some(engine.clone());
        Ok(engine)
    }

    fn sync(&mut self) -> Result<Report, ReplicaError> {
        let engine = self.open()?;
        self.wait(engine.sync())
    }

    fn roll_over(&self) {
        let answer = self.rig.service.call("POST", &format!("/logs/{}/checkpoint", self.log), "", b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The statements of a writer, and what comes of them. `of` is in the name of each row that they write.
    fn statements(&mut self, of: &str) -> (Vec<String>, Model) {
        self.next += 1;
        let (number, mut model) = (self.next, self.model.clone());
        let mut sql = vec![
            format!("INSERT INTO n VALUES ('{of}', {number}), ('{of}', {number}), ('{of} alone', {number})"),
            format!("INSERT INTO k VALUES ('{of} {number}', {number})"),
            format!("UPDATE k SET v = {number} WHERE id = '{of} 1'"),
        ];
        model.n.insert((of.to_owned(), number), 2);
        model.n.insert((format!("{of} alone"), number), 1);
        model.k.insert(format!("{of} {number}"), number);
        if let Some(value) = model.k.get_mut(&format!("{of} 1")) {
            *value = number;
        }
        // Rows of before, which both sides have by now or not.
        let alone: Vec<i64> =
            model.n.keys().filter(|(x, y)| *x == format!("{of} alone") && *y < number).map(|(_, y)| *y).collect();
        if let Some(y) = alone.first() {
            sql.push(format!("DELETE FROM n WHERE x = '{of} alone' AND y = {y}"));
            model.n.remove(&(format!("{of} alone"), *y));
        }
        if let Some(y) = alone.get(1) {
            sql.push(format!("UPDATE n SET y = {} WHERE x = '{of} alone' AND y = {y}", -y));
            model.n.remove(&(format!("{of} alone"), *y));
            model.n.insert((format!("{of} alone"), -y), 1);
        }
        (sql, model)
    }

    fn write_there(&mut self) {
        let (sql, model) = self.statements("there");
        for sql in sql {
            self.ask(&sql);
        }
        self.model = model;
    }

    /// One transaction of the application. After an error nothing of it is there.
    fn write_here(&mut self) -> Result<(), ReplicaError> {
        let engine = self.open()?;
        let (sql, model) = self.statements("here");
        let connection = engine.connect()?;
        connection.execute("BEGIN IMMEDIATE")?;
        for sql in sql {
            connection.execute(sql)?;
        }
        connection.execute("COMMIT")?;
        self.model = model;
        Ok(())
    }

    fn has(&self, ask: &dyn Fn(&str) -> Vec<Vec<Value>>) -> Model {
        let mut model = Model::default();
        for row in ask("SELECT x, y, count(*) FROM n GROUP BY x, y") {
            let [Value::Text(x), Value::Integer(y), Value::Integer(count)] = &row[..] else { panic!("{row:?}") };
            model.n.insert((x.clone(), *y), *count as u64);
        }
        for row in ask("SELECT id, v FROM k") {
            let [Value::Text(id), Value::Integer(v)] = &row[..] else { panic!("{row:?}") };
            model.k.insert(id.clone(), *v);
        }
        model
    }

    /// The engine does the same again and goes on, or says that it has to be opened again, in whatever it is asked for.
    fn goes_on(&mut self, again: impl Fn(&mut Case<'_>) -> Result<(), ReplicaError>, context: &str) {
        let went_on = again(self).and_then(|()| self.write_here()).and_then(|()| self.sync()).map(drop);
        let Err(error) = went_on else { return };
        let again = self.sync().map(drop);
        for error in [Err(error), again].into_iter().filter_map(Result::err) {
            let text = error.to_string();
            assert!(text.contains("open the replica again"), "{context}: neither usable nor latched: {text}");
        }
        self.engine = None;
    }

    fn converges(&mut self, context: &str) {
        for _ in 0..2 {
            self.write_here().unwrap_or_else(|error| panic!("{context}: {error}"));
            self.write_there();
            let report = self.sync().unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(report.conflicts, [], "{context}");
        }
        let connection = self.open().unwrap().connect().unwrap();
        assert_eq!(self.has(&|sql| self.ask(sql)), self.model, "{context}: there");
        assert_eq!(self.has(&|sql| rows(&connection, sql)), self.model, "{context}: here");
        assert_eq!(rows(&connection, "PRAGMA integrity_check"), [[Value::Text("ok".into())]], "{context}");
    }
}

/// Fails each call of `act` once, and lets the same engine go on.
fn each_call_fails(
    phase: &str,
    set_up: impl Fn(&mut Case<'_>),
    act: impl Fn(&mut Case<'_>) -> Result<(), ReplicaError>,
) {
    let rig = Rig::new();
    let wire = Wire::to(rig.service.address);
    let mut failed = Vec::new();
    for call in CALLS {
        let mut count = 0;
        loop {
            let mut case = Case::new(&rig, &wire);
            set_up(&mut case);
            match call {
                Call::Disk(op) => case.disk.set_faults(Faults { fail_nth: Some((op, count)), ..Faults::default() }),
                Call::Remote(lost) => wire.set(Left { nth: Some((count, lost)), ..Left::default() }),
            }
            let acted = act(&mut case);
            let was_failed = match call {
                Call::Disk(_) => case.disk.calls() > count,
                Call::Remote(_) => wire.seen() > count,
            };
            case.disk.set_faults(Faults::default());
            wire.set(Left::default());
            let context = format!("{phase}: {call:?} {count} failed, {acted:?}");
            assert!(was_failed || acted.is_ok(), "{context}: without a fault");
            case.goes_on(&act, &context);
            case.converges(&context);
            if !was_failed {
                break;
            }
            count += 1;
        }
        failed.push((call, count));
    }
    let total: u64 = failed.iter().map(|(_, count)| count).sum();
    println!("faults: {phase}: {total} calls failed, {failed:?}");
    for (call, count) in failed {
        assert!(count > 0 || matches!(call, Call::Disk(Op::Truncate | Op::Remove)), "{phase}: no {call:?}");
    }
}

#[test]
fn a_replica_is_made_whole_whichever_call_of_it_failed() {
    each_call_fails(
        "bootstrap",
        |case| {
            case.roll_over();
            case.write_there();
        },
        |case| case.open().map(drop),
    );
}

#[test]
fn no_row_is_doubled_or_lost_whichever_call_of_a_pull_failed() {
    each_call_fails(
        "pull",
        |case| {
            case.write_here().unwrap();
            case.sync().unwrap();
            case.write_here().unwrap();
            case.write_there();
        },
        |case| {
            let engine = case.open()?;
            case.wait(engine.pull()).map(drop)
        },
    );
}

#[test]
fn no_row_is_doubled_or_lost_whichever_call_of_a_push_failed() {
    each_call_fails(
        "push",
        |case| {
            case.write_here().unwrap();
            case.sync().unwrap();
            case.write_here().unwrap();
            case.write_there();
        },
        |case| {
            let engine = case.open()?;
            case.wait(engine.push()).map(drop)
        },
    );
}

/// What came from the remote before is put under local changes, some of which were pushed.
#[test]
fn no_row_is_doubled_or_lost_whichever_call_of_a_rebase_failed() {
    each_call_fails(
        "rebase",
        |case| {
            case.write_here().unwrap();
            case.sync().unwrap();
            case.write_here().unwrap();
            case.write_there();
            let engine = case.open().unwrap();
            case.wait(engine.push()).unwrap();
            case.write_here().unwrap();
        },
        |case| {
            let engine = case.open()?;
            case.wait(engine.pull()).map(drop)
        },
    );
}

#[test]
fn no_row_is_doubled_or_lost_whichever_call_failed_where_the_remote_is_fetched_whole() {
    each_call_fails(
        "whole",
        |case| {
            let policy = r#"{"policy":"roll","frames":1099511627776,"keep":1}"#;
            assert_eq!(case.rig.service.put(&format!("/logs/{}/checkpoint", case.log), policy).status, 200);
            case.write_here().unwrap();
            case.sync().unwrap();
            case.write_here().unwrap();
            for _ in 0..2 {
                case.write_there();
                case.roll_over();
            }
        },
        |case| case.sync().map(drop),
    );
}

#[test]
fn no_row_is_doubled_or_lost_whichever_call_of_a_step_through_generations_failed() {
    each_call_fails(
        "generations",
        |case| {
            case.write_here().unwrap();
            case.sync().unwrap();
            case.write_here().unwrap();
            case.write_there();
            case.roll_over();
            case.write_there();
        },
        |case| case.sync().map(drop),
    );
}

#[test]
fn a_push_of_which_the_remote_cannot_say_whether_it_is_stored_is_looked_up_and_made_once() {
    let (disk, plan) = Failing::new(Arc::new(MemRepo::default()));
    let rig = Rig { service: Service::start(disk), dir: tempfile::tempdir().unwrap() };
    assert_eq!(rig.service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    rig.execute("app", "CREATE TABLE n(x)");
    let replica = rig.open("app");
    replica.sync();
    for (number, trouble) in (1..).zip([Trouble::SyncFails, Trouble::DiskFull]) {
        replica.run(&format!("INSERT INTO n VALUES ({number})"));
        plan.set("logs/app", trouble);
        let error = replica.wait(replica.engine.push()).unwrap_err();
        assert!(error.is_transient(), "{error}");
        plan.clear();
        rig.service.wait_state("app", "ok");
        replica.sync();
        assert_eq!(
            rig.ask("SELECT count(*), count(DISTINCT x) FROM n"),
            [[Value::Integer(number), Value::Integer(number)]]
        );
    }
}
