//! Two logs that start from the same base and went through two generations each, and replicas of the first.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use logmirror::format::LogFormat;
use logmirror::sync::{Direction, Remote, Replicate, SyncError};
use tempfile::TempDir;

use crate::beside;
use crate::proxy::{Change, Proxy};
use crate::sqlite::{dump, run_and_die};
use crate::support::process::{Service, until};

/// Which replica a pull starts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum From {
    Nothing,
    /// One in the middle of the first generation.
    Old,
    /// One that has all.
    Whole,
}

pub struct Scene {
    pub service: Service,
    pub proxy: Proxy,
    pub dir: TempDir,
    /// Every state of the log `a`.
    pub states: HashSet<String>,
    pub last: String,
    runtime: tokio::runtime::Runtime,
}

impl Scene {
    pub fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(&dir.path().join("data"));
        let proxy = Proxy::start(service.address());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (states, last) = Default::default();
        let mut scene = Scene { service, proxy, dir, states, last, runtime };
        for log in ["a", "b"] {
            scene.service.call(scene.service.client(log).create(LogFormat::Wal, None)).unwrap();
            let db = scene.path(&format!("{log}.db"));
            for step in 0..9 {
                let sql = match step {
                    0 => "CREATE TABLE t(a, b);".to_owned(),
                    step => format!(
                        "INSERT INTO t VALUES('{log}{step}', zeroblob({})); UPDATE t SET b = b || '{log}';",
                        1500 * step
                    ),
                };
                run_and_die(&db, &sql);
                if log == "a" {
                    scene.last = dump(&db);
                    scene.states.insert(scene.last.clone());
                }
                if [3, 5, 8].contains(&step) {
                    scene.push(&db, log);
                }
                if (step, log) == (3, "a") {
                    scene.pull(&scene.path("old.db"), "a").unwrap();
                }
                if step == 5 {
                    scene.roll(log);
                }
            }
        }
        scene.pull(&scene.path("whole.db"), "a").unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes through the proxy.
    pub fn try_push(&self, db: &Path, log: &str) -> Result<(), SyncError> {
        let url = format!("http://{}/logs/{log}", self.proxy.address);
        let remote = Remote::new(&url, None).unwrap().retry_first(Duration::from_millis(1));
        self.run(Replicate::new(Direction::Push, db.to_owned(), remote))
    }

    /// What a log holds now.
    pub fn held(&self, log: &str) -> String {
        self.proxy.plan(None);
        let replica = self.replica(From::Nothing);
        self.pull(&replica, log).unwrap();
        dump(&replica)
    }

    pub fn push(&self, db: &Path, log: &str) {
        let remote = Remote::new(&self.service.url(log), None).unwrap();
        self.run(Replicate::new(Direction::Push, db.to_owned(), remote)).unwrap();
    }

    pub fn roll(&self, log: &str) {
        self.service.call(self.service.client(log).checkpoint(false)).unwrap();
    }

    /// Pulls through the proxy.
    pub fn pull(&self, replica: &Path, log: &str) -> Result<(), SyncError> {
        let url = format!("http://{}/logs/{log}", self.proxy.address);
        let remote = Remote::new(&url, None).unwrap().retry_first(Duration::from_millis(1));
        self.run(Replicate::new(Direction::Pull, replica.to_owned(), remote))
    }

    /// The same with `--adopt`.
    pub fn pull_with_adopt(&self, replica: &Path, log: &str) -> Result<(), SyncError> {
        let remote = Remote::new(&format!("http://{}/logs/{log}", self.proxy.address), None).unwrap();
        self.run(Replicate { adopt: true, ..Replicate::new(Direction::Pull, replica.to_owned(), remote) })
    }

    /// The log `a` loses its first generation.
    pub fn keep_one_generation(&self) {
        let url = format!("{}/checkpoint", self.service.url("a"));
        let policy = r#"{"policy":"roll","frames":1000000,"keep":1}"#;
        let put = reqwest::Client::new().put(url).body(policy).send();
        assert!(self.service.call(put).unwrap().status().is_success());
        self.roll("a");
        let url = format!("{}/sync/1/1/2", self.service.url("a"));
        until("the first generation is deleted", || {
            let answer = self.service.call(reqwest::get(&url)).unwrap();
            (answer.status().as_u16() == 410).then_some(())
        });
    }

    fn run(&self, what: Replicate) -> Result<(), SyncError> {
        self.runtime.block_on(logmirror::sync::run(&what, |_| ())).map(drop)
    }

    /// A replica to pull into.
    pub fn replica(&self, from: From) -> PathBuf {
        let path = self.path("replica.db");
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("replica.db") {
                fs::remove_file(self.path(&name)).unwrap();
            }
        }
        let source = match from {
            From::Nothing => return path,
            From::Old => self.path("old.db"),
            From::Whole => self.path("whole.db"),
        };
        for ending in ["", "-wal", "-info"] {
            if beside(&source, ending).exists() {
                fs::copy(beside(&source, ending), beside(&path, ending)).unwrap();
            }
        }
        path
    }

    /// The answers of a pull that nothing happens to.
    pub fn answers(&self, from: From) -> Vec<Vec<u8>> {
        self.proxy.plan(None);
        let replica = self.replica(from);
        self.pull(&replica, "a").unwrap();
        assert!(dump(&replica) == self.last);
        self.proxy.answers()
    }

    /// Pulls with changed answers, and again with right ones. The replica must be a state of the log at any time, `exactly` the last
    /// one after a pull that went well, and the last one in the end. Whether the first pull went well.
    pub fn must_stay_right(&self, from: From, change: (usize, usize, Change), exactly: bool) -> Result<(), SyncError> {
        let replica = self.replica(from);
        self.proxy.plan(Some(change.clone()));
        let pulled = self.pull(&replica, "a");
        self.proxy.plan(None);
        let is = |text: &str| format!("{from:?}, answer {change:?}: {text}: {pulled:?}");
        let state = replica.exists().then(|| dump(&replica));
        if let Some(state) = &state {
            assert!(self.states.contains(state) || state.is_empty(), "{}", is("no state of the log"));
        }
        if pulled.is_ok() && (exactly || state.is_none()) {
            assert!(state.as_ref() == Some(&self.last), "{}", is("not the last state"));
        }
        if state.as_ref() != Some(&self.last) || pulled.is_err() {
            let again = self.pull(&replica, "a");
            assert!(again.is_ok(), "{}, then {again:?}", is("it does not go on"));
            assert!(dump(&replica) == self.last, "{}", is("not right in the end"));
        }
        pulled
    }
}
