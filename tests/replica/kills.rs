//! Processes of the application, which write and sync, are killed -9 at random points, again and again, and so is the service
//! (the real program). What they said was committed is on the remote in the end, once.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use logmirror::replica::{Options, SyncEngine, Value};
use logmirror::sync::Remote;
use serde_json::json;
use tokio::runtime::Runtime;

use super::{dump, rows};
use crate::support::commitlog::{Draw, seed};
use crate::support::process::Service;
use crate::support::service::PATIENCE;

/// Path and URL of the replica of a process that writes and syncs until it is killed, and the first number it writes.
const CHILD: &str = "LOGMIRROR_TEST_REPLICA_CHILD";

/// Not a test: what the killed processes do.
#[test]
fn child_that_writes_and_syncs() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [path, url, first] = told.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let remote = Remote::new(url, None).unwrap();
    let engine = runtime.block_on(SyncEngine::open(Path::new(path), remote, Options::default())).unwrap();
    let connection = engine.connect().unwrap();
    let say = |what: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{what}").and_then(|()| out.flush()).unwrap();
    };
    for number in first.parse::<i64>().unwrap().. {
        say(format!("tries {number}"));
        connection.execute("BEGIN IMMEDIATE").unwrap();
        connection.execute(format!("INSERT INTO n VALUES ({number}, zeroblob({}))", number * 37 % 6000)).unwrap();
        connection.execute(format!("INSERT INTO k VALUES ({number}, {number})")).unwrap();
        connection.execute("COMMIT").unwrap();
        say(format!("acked {number}"));
        if number % 3 == 0 {
            match runtime.block_on(engine.sync()) {
                Ok(report) => assert!(report.conflicts.is_empty(), "{report:?}"),
                // The service is killed too.
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
}

/// A service that is killed, a log in it, and replicas of that.
struct Scene {
    service: Service,
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(&dir.path().join("data"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let scene = Scene { service, dir, runtime };
        let create = reqwest::Client::new().put(scene.service.url("app")).body(r#"{"format":"wal"}"#);
        assert_eq!(scene.runtime.block_on(create.send()).unwrap().status(), 201);
        scene
    }

    fn remote(&self) -> Remote {
        Remote::new(&self.service.url("app"), None).unwrap()
    }

    fn ask(&self, sql: &str) -> Vec<Vec<Value>> {
        let call = json!({"requests": [{"type": "execute", "stmt": {"sql": sql}}]}).to_string();
        let answer = self.runtime.block_on(self.remote().pipeline(call.into(), 64 << 20)).unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let result = &answer["results"][0];
        assert_eq!(result["type"], "ok", "{sql}: {result}");
        serde_json::from_value(result["response"]["result"]["rows"].clone()).unwrap()
    }

    fn open(&self, name: &str) -> SyncEngine {
        let path = self.dir.path().join(name);
        self.runtime.block_on(SyncEngine::open(&path, self.remote(), Options::default())).unwrap()
    }

    /// A process that writes and syncs.
    fn start(&self, name: &str, first: i64) -> Child {
        let path = self.dir.path().join(name).display().to_string();
        let told = [path, self.service.url("app"), first.to_string()].join("\n");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "kills::child_that_writes_and_syncs", "--nocapture"]).env(CHILD, told);
        child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
    }
}

#[test]
fn what_killed_processes_committed_reaches_the_remote_once() {
    let kills: u64 = std::env::var("LOGMIRROR_TEST_KILLS").map_or(100, |text| text.parse().unwrap());
    let mut draw = Draw(seed());
    let mut scene = Scene::new();
    scene.ask("CREATE TABLE n(x, y)");
    scene.ask("CREATE TABLE k(a INTEGER PRIMARY KEY, b)");
    for name in ["one", "two"] {
        drop(scene.open(name));
    }
    let (mut acked, mut tried) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..kills {
        let name = ["one", "two"][round as usize % 2];
        let mut child = scene.start(name, 1 + round as i64 * 1000);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, told) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| drop(tell.send(line)));
        });
        let mut note = |line: &str| {
            let number = |line: &str| line.split(' ').next_back().unwrap().parse::<i64>().unwrap();
            // The test program says its own things on the same line.
            match () {
                () if line.contains("tries ") => drop(tried.insert(number(line))),
                () if line.contains("acked ") => drop(acked.insert(number(line))),
                () => {}
            }
        };
        // So many lines, and some time on top, which may end anywhere within whatever comes then.
        for _ in 0..draw.below(12) {
            note(&told.recv_timeout(PATIENCE).expect("the process goes on"));
        }
        let _ = told.recv_timeout(Duration::from_micros(draw.below(30_000))).map(|line| note(&line));
        let kills_service = draw.below(3) == 0;
        if kills_service {
            scene.service.kill();
            let _ = told.recv_timeout(Duration::from_micros(draw.below(3_000))).map(|line| note(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        told.try_iter().for_each(|line| note(&line));
        if kills_service {
            scene.service.restart();
        } else if draw.below(4) == 0 {
            scene.ask(&format!("INSERT INTO n VALUES ({}, NULL)", -1 - round as i64));
        }
    }
    let replicas = ["one", "two"].map(|name| scene.open(name));
    for which in [0, 1, 0] {
        let report = scene.runtime.block_on(replicas[which].sync()).unwrap();
        assert!(report.conflicts.is_empty(), "{report:?}");
    }
    let there = dump(|sql| scene.ask(sql));
    for replica in &replicas {
        let connection = replica.connect().unwrap();
        assert_eq!(dump(|sql| rows(&connection, sql)), there);
    }
    for table in ["SELECT x FROM n WHERE x > 0", "SELECT a FROM k"] {
        let rows = scene.ask(table);
        let found: BTreeSet<i64> = rows
            .iter()
            .map(|row| match row[..] {
                [Value::Integer(number)] => number,
                _ => panic!("{row:?}"),
            })
            .collect();
        assert_eq!(found.len(), rows.len(), "{table}: something is there twice");
        assert!(found.is_superset(&acked), "{table}: {:?} are lost", acked.difference(&found).collect::<Vec<_>>());
        assert!(found.is_subset(&tried), "{table}");
    }
    println!("kills: {kills}, {} commits acknowledged", acked.len());
}
