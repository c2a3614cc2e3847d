//! A service whose data are put back from a copy while a pull follows it.

use std::fs;
use std::path::{Path, PathBuf};

use logmirror::format::LogFormat;
use logmirror::sync::LocalLog;
use tempfile::TempDir;

use crate::proxy::{Change, Proxy};
use crate::sqlite::{dump, large, rows, run, run_and_die};
use crate::support::process::{Mirror, Service, arg, mirror};

struct Restored {
    service: Service,
    proxy: Proxy,
    dir: TempDir,
}

impl Restored {
    fn new() -> Restored {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(&dir.path().join("data"));
        service.call(service.client("a").create(LogFormat::Wal, None)).unwrap();
        let proxy = Proxy::start(service.address());
        Restored { service, proxy, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes these statements; how many frames there are then.
    fn push(&self, sql: &str) -> u64 {
        let db = self.path("app.db");
        run_and_die(&db, sql);
        let ended = mirror(arg(&db), format!("libsql+{}", self.service.url("a")), &[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        LocalLog::open(&db).unwrap().frames().into()
    }

    /// Where a pull goes through the proxy.
    fn url(&self) -> String {
        format!("libsql+http://{}/logs/a", self.proxy.address)
    }

    /// Does something with the data while the service is down.
    fn while_down(&mut self, work: impl FnOnce(&Restored)) {
        self.service.kill();
        work(self);
        self.service.restart();
    }

    fn put(&self, from: &str, to: &str) {
        let _ = fs::remove_dir_all(self.path(to));
        copy(&self.path(from), &self.path(to));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn a_pull_that_follows_reports_a_server_that_lost_its_end_and_goes_on_once_that_is_back() {
    let mut scene = Restored::new();
    scene.push(&rows(3));
    scene.while_down(|scene| scene.put("data", "old"));
    let whole = scene.push(&rows(3));
    let follower = Mirror::start(scene.url(), arg(&scene.path("replica.db")), &["--follow"]);
    follower.wait_durable(whole + 1);
    scene.while_down(|scene| {
        scene.put("data", "new");
        scene.put("old", "data");
    });
    follower.wait_for("that the server has less", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|text| text.contains("the server only to"))
    });
    scene.while_down(|scene| scene.put("new", "data"));
    let more = scene.push(&rows(1));
    follower.wait_durable(more + 1);
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_pull_that_follows_goes_on_with_a_log_that_was_put_back_a_little_shorter() {
    let mut scene = Restored::new();
    scene.push(&rows(3));
    let replica = scene.path("replica.db");
    assert_eq!(mirror(scene.url(), arg(&replica), &[]).code, Some(0));
    let shorter = scene.push(&rows(1));
    scene.while_down(|scene| scene.put("data", "old"));
    scene.push(&large(60));
    // It hears how much there is, and nothing more.
    scene.proxy.plan(Some((1, 1_000_000, Change::Drop)));
    let follower = Mirror::start(scene.url(), arg(&replica), &["--follow"]);
    follower.wait_for("an attempt that failed", |line| line["event"] == "retrying");
    scene.while_down(|scene| scene.put("old", "data"));
    scene.proxy.plan(None);
    follower.wait_durable(shorter + 1);
    assert_eq!(follower.terminate().code, Some(0));
}

/// What the log holds.
fn held(scene: &Restored) -> String {
    let out = scene.path("held.db");
    let _ = fs::remove_file(&out);
    let restored = Mirror::command(&["restore", &scene.service.url("a"), arg(&out), "--json"]).ended();
    assert_eq!(restored.code, Some(0), "{restored:?}");
    dump(&out)
}

#[test]
fn a_push_goes_on_where_the_server_ends_where_an_earlier_push_of_the_database_did() {
    let mut scene = Restored::new();
    let db = scene.path("app.db");
    for pushes in [1, 3] {
        scene.push(&rows(2));
        scene.while_down(|scene| scene.put("data", "old"));
        // What these were is in no WAL in the end, and nothing but a comparison says what is missing.
        for _ in 0..pushes {
            run(&db, &rows(2)).unwrap();
            run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            run_and_die(&db, &rows(1));
            assert_eq!(mirror(arg(&db), format!("libsql+{}", scene.service.url("a")), &[]).code, Some(0));
        }
        scene.while_down(|scene| scene.put("old", "data"));
        for _ in 0..2 {
            run_and_die(&db, &rows(1));
            let ended = mirror(arg(&db), format!("libsql+{}", scene.service.url("a")), &[]);
            assert_eq!(ended.code, Some(0), "{pushes}: {ended:?}");
            assert!(held(&scene) == dump(&db), "{pushes}");
        }
    }
}

#[test]
fn a_push_is_refused_with_what_was_lost_where_the_server_was_put_back_and_pushed_to_by_another() {
    let mut scene = Restored::new();
    let db = scene.path("app.db");
    let old = scene.push(&rows(2));
    scene.while_down(|scene| scene.put("data", "old"));
    for _ in 0..3 {
        run(&db, &rows(2)).unwrap();
        run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        run_and_die(&db, &rows(1));
        assert_eq!(mirror(arg(&db), format!("libsql+{}", scene.service.url("a")), &[]).code, Some(0));
    }
    scene.while_down(|scene| scene.put("old", "data"));
    let other = scene.path("other.db");
    assert_eq!(mirror(format!("libsql+{}", scene.service.url("a")), arg(&other), &[]).code, Some(0));
    run_and_die(&other, "INSERT INTO t VALUES('another', 1);");
    assert_eq!(mirror(arg(&other), format!("libsql+{}", scene.service.url("a")), &[]).code, Some(0));
    let before = held(&scene);
    let ended = mirror(arg(&db), format!("libsql+{}", scene.service.url("a")), &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error().contains(&format!("lost frames {}..", old + 2)), "{ended:?}");
    assert!(held(&scene) == before, "what another pushed stays");
}
