//! Disks that fail and work again, and directories that go away and come back.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use logmirror::repo::{FsRepo, Loss, MemRepo};

use crate::support::failing::{Failing, Trouble};
use crate::support::log::{commits, header};
use crate::support::service::{PATIENCE, Service, Setup, request};
use crate::support::{assert_bytes, files};

fn start_stream() -> Vec<u8> {
    [header(), commits(0, 3, 50, 0)].concat()
}

#[test]
fn a_log_goes_on_by_itself_when_its_disk_works_again() {
    for trouble in [Trouble::DiskFull, Trouble::ReadOnly, Trouble::SyncFails] {
        let disk = MemRepo::default();
        let (repo, plan) = Failing::new(Arc::new(disk.clone()));
        let service = Service::start(repo);
        service.create("app");
        assert_eq!(service.append("app", "", &start_stream()).status, 200);
        let mut follower = service.connect();
        follower.send(request("GET", "/logs/app/commits?follow=true&from=3", "").as_bytes());
        assert_eq!(follower.head().status, 200);
        plan.set("logs/app", trouble);
        for _ in 0..3 {
            assert_eq!(service.append("app", "", &commits(3, 1, 50, 0)).status, 503, "{trouble:?}");
        }
        plan.clear();
        service.wait_state("app", "ok");
        // Sent again it is stored, or held already.
        let sent = commits(3, 2, 50, 0);
        let answer = service.append("app", "", &sent);
        assert_eq!((answer.status, &answer.json()["durable"]), (200, &5.into()), "{trouble:?}: {}", answer.text());
        assert_bytes(&follower.read_stream(sent.len()), &sent, "the follower stayed");
        let metrics = service.get("/metrics").text();
        for counter in ["logmirror_failures_total", "logmirror_reopenings_total"] {
            assert!(metrics.contains(&format!("{counter}{{log=\"app\"}}")), "{counter}: {metrics}");
        }
        drop(service);
        let found = Service::start(Arc::new(disk.after_power_loss(Loss::All)));
        assert_bytes(&found.stream("app"), &[start_stream(), sent].concat(), "after a power loss");
    }
}

#[test]
fn a_log_that_is_opened_again_for_long_holds_up_no_other_log() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let mut setup = Setup::default();
    setup.settings.writer_threads = 1;
    let service = Service::start_with(repo, setup);
    for log in ["bad", "good"] {
        service.create(log);
        assert_eq!(service.append(log, "", &start_stream()).status, 200);
    }
    plan.set("logs/bad", Trouble::ReadOnly);
    assert_eq!(service.append("bad", "", &commits(3, 1, 50, 0)).status, 503);
    // The next attempt to open it does not return.
    plan.set("logs/bad", Trouble::SyncHangs);
    plan.wait_hanging(1);
    let since = Instant::now();
    assert_eq!(service.append("good", "", &commits(3, 1, 50, 0)).json()["durable"], 4);
    assert!(since.elapsed() < PATIENCE / 4, "{:?}", since.elapsed());
    assert_eq!(service.status("bad")["state"], "failed");
    plan.clear();
    service.wait_state("bad", "ok");
    assert_eq!(service.append("bad", "", &commits(3, 1, 50, 0)).json()["durable"], 4);
}

#[test]
fn a_log_that_is_found_has_positions_while_it_is_created_and_rolled_over_too() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let service = Service::start(repo);
    std::thread::scope(|scope| {
        plan.set("logs/app/0000000001", Trouble::SyncHangs);
        let created = scope.spawn(|| service.put("/logs/app", r#"{"format":"commitlog"}"#));
        // Its files are being opened.
        plan.wait_hanging(1);
        assert_eq!(service.get("/logs/app").status, 404);
        plan.clear();
        let created = created.join().unwrap();
        assert_eq!((created.status, &created.json()["next"]), (201, &0.into()), "{}", created.text());
        assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
        plan.set("logs/db/0000000002", Trouble::SyncHangs);
        let started = scope.spawn(|| service.call("PUT", "/logs/db/generations/2", "", b""));
        plan.wait_hanging(1);
        let status = service.status("db");
        assert_eq!((&status["generation"], &status["durable"]), (&1.into(), &1.into()), "{status}");
        plan.clear();
        let started = started.join().unwrap();
        let found = started.json();
        assert_eq!((&found["generation"], &found["durable"]), (&2.into(), &1.into()), "{}", started.text());
    });
}

#[test]
fn a_directory_that_goes_away_and_comes_back_is_waited_for() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    service.create("app");
    assert_eq!(service.append("app", "", &start_stream()).status, 200);
    let (log, away) = (data.path().join("logs/app"), data.path().join("away"));
    fs::rename(&log, &away).unwrap();
    let status = service.status("app");
    assert_eq!(status["state"], "failed", "{status}");
    assert!(status["error"].as_str().unwrap().contains("logs/app"), "{status}");
    assert_eq!(service.append("app", "", &commits(3, 1, 50, 0)).refusal(), (503, "failed".to_owned()));
    fs::rename(&away, &log).unwrap();
    service.wait_state("app", "ok");
    assert_eq!(service.append("app", "", &commits(3, 1, 50, 0)).json()["durable"], 4);
    // An empty directory in its place is not the log.
    fs::rename(&log, &away).unwrap();
    fs::create_dir_all(log.join("0000000001")).unwrap();
    let status = service.status("app");
    assert_ne!(status["state"], "ok", "{status}");
    assert_ne!(service.append("app", "", &commits(4, 1, 50, 0)).status, 200);
    assert_ne!(service.append("app", "", &start_stream()).status, 200);
    fs::remove_dir_all(&log).unwrap();
    fs::rename(&away, &log).unwrap();
    service.wait_state("app", "ok");
    assert_eq!(service.append("app", "", &commits(4, 1, 50, 0)).json()["durable"], 5);
    assert_bytes(&service.stream("app"), &[header(), commits(0, 5, 50, 0)].concat(), "app");
}

#[test]
fn a_log_whose_description_cannot_be_read_is_loaded_when_it_can_be() {
    let disk = MemRepo::default();
    let service = Service::start(Arc::new(disk.clone()));
    service.create("app");
    assert_eq!(service.append("app", "", &start_stream()).status, 200);
    drop(service);
    let (repo, plan) = Failing::new(Arc::new(disk));
    plan.set("logs/app", Trouble::ReadFails);
    let service = Service::start(repo);
    let status = service.status("app");
    assert_eq!((&status["state"], status["durable"].is_null()), (&"failed".into(), true), "{status}");
    // What the description says is not known either, and no request is answered as if it were.
    assert!(status["format"].is_null() && status["generation"].is_null(), "{status}");
    assert_eq!(service.get("/logs/app/commits?generation=2").refusal(), (503, "failed".to_owned()));
    let policy = r#"{"policy":"roll","frames":9}"#;
    assert_eq!(service.put("/logs/app/checkpoint", policy).refusal(), (503, "failed".to_owned()));
    plan.clear();
    service.wait_state("app", "ok");
    assert_eq!(service.status("app")["format"], "commitlog");
    assert_eq!(service.append("app", "", &commits(3, 1, 50, 0)).json()["durable"], 4);
}

#[test]
fn nothing_is_left_of_a_log_that_could_not_be_created() {
    for trouble in [Trouble::DiskFull, Trouble::SyncFails, Trouble::SyncDirFails] {
        let data = tempfile::tempdir().unwrap();
        let (repo, plan) = Failing::new(Arc::new(FsRepo::open(data.path()).unwrap()));
        let service = Service::start(repo);
        plan.set("logs/new", trouble);
        for format in ["commitlog", "wal"] {
            assert_eq!(service.put("/logs/new", &format!("{{\"format\":\"{format}\"}}")).status, 503, "{trouble:?}");
            assert!(!data.path().join("logs/new").exists(), "{trouble:?}: {:?}", files(data.path()).keys());
        }
        plan.clear();
        service.create("new");
    }
}

#[test]
fn a_log_of_which_one_segment_cannot_be_read_serves_the_others_and_says_no_end() {
    let disk = MemRepo::default();
    let service = Service::start(Arc::new(disk.clone()));
    service.create("app");
    let second = [header(), commits(3, 3, 50, 0)].concat();
    assert_eq!(service.append("app", "", &[start_stream(), second].concat()).status, 200);
    drop(service);
    let blind = Arc::new(blind::Blind { inner: Arc::new(disk), name: "00000000000000000003.stdb.log" });
    let service = Service::start(blind);
    let status = service.status("app");
    assert_eq!((&status["state"], &status["first"]), (&"failed".into(), &0.into()), "{status}");
    assert!(status["durable"].is_null() && status["next"].is_null(), "{status}");
    let answer = service.get("/logs/app/commits?from=0&to=3");
    assert_eq!(answer.status, 200);
    assert_bytes(&answer.body, &start_stream(), "what can be read");
    for from in [3, 4, 6, 7] {
        let answer = service.get(&format!("/logs/app/commits?from={from}"));
        assert_eq!(answer.refusal(), (503, "failed".to_owned()), "from {from}: {}", answer.text());
    }
}

/// A disk on which one file cannot be opened.
mod blind {
    use std::io;
    use std::sync::Arc;

    use logmirror::repo::{Repo, RepoFile, RepoLock, RepoMap};

    #[derive(Debug)]
    pub struct Blind {
        pub inner: Arc<dyn Repo>,
        pub name: &'static str,
    }

    impl Blind {
        fn check(&self, name: &str) -> io::Result<()> {
            if name == self.name { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        }

        fn below(&self, inner: Arc<dyn Repo>) -> Arc<dyn Repo> {
            Arc::new(Blind { inner, name: self.name })
        }
    }

    impl Repo for Blind {
        fn place(&self) -> String {
            self.inner.place()
        }
        fn list(&self) -> io::Result<Vec<String>> {
            self.inner.list()
        }
        fn open(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
            self.check(name)?;
            self.inner.open(name)
        }
        fn open_write(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
            self.check(name)?;
            self.inner.open_write(name)
        }
        fn create(&self, name: &str) -> io::Result<Arc<dyn RepoFile>> {
            self.inner.create(name)
        }
        fn map(&self, name: &str, bytes: u64) -> io::Result<Box<dyn RepoMap>> {
            self.inner.map(name, bytes)
        }
        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.inner.rename(from, to)
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.inner.remove(name)
        }
        fn sync_dir(&self) -> io::Result<()> {
            self.inner.sync_dir()
        }
        fn lock(&self) -> io::Result<RepoLock> {
            self.inner.lock()
        }
        fn dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
            Ok(self.below(self.inner.dir(name)?))
        }
        fn create_dir(&self, name: &str) -> io::Result<Arc<dyn Repo>> {
            Ok(self.below(self.inner.create_dir(name)?))
        }
    }
}
