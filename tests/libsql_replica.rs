//! Both sides of the libSQL sync protocol as an operator has them: `logmirror serve` in one process, `logmirror mirror` of
//! a database and of a replica in others.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "libsql_client/sqlite.rs"]
mod sqlite;
mod support;

use std::path::{Path, PathBuf};

use logmirror::format::LogFormat;
use logmirror::sync::{LocalLog, Position, metadata};
use sqlite::{dump, rows, run_and_die};
use support::process::{Ended, Service, arg, mirror};
use tempfile::TempDir;

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// A service with the log `app`, and a directory for databases.
struct Scene {
    service: Service,
    dir: TempDir,
}

/// The file beside a database.
fn beside(database: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", database.display()))
}

fn frames(database: &Path) -> u64 {
    LocalLog::open(database).unwrap().frames().into()
}

/// What the metadata say: generation and frame.
fn info(database: &Path) -> (u32, u64) {
    let Position { generation, frame } = metadata::decode(&std::fs::read(beside(database, "-info")).unwrap()).unwrap();
    (generation, frame.into())
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(&dir.path().join("data"));
        service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
        Scene { service, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A database after these statements.
    fn database(&self, name: &str, sql: &str) -> PathBuf {
        let path = self.path(name);
        run_and_die(&path, sql);
        path
    }

    fn url(&self) -> String {
        format!("libsql+{}", self.service.url("app"))
    }

    fn push(&self, database: &Path) -> Ended {
        mirror(arg(database), self.url(), &[])
    }

    fn pull(&self, replica: &Path) -> Ended {
        mirror(self.url(), arg(replica), &[])
    }

    #[track_caller]
    fn must_push(&self, database: &Path, sent: u64) {
        let ended = self.push(database);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.last("done")["bytes"].as_u64(), Some(sent * 4120), "{ended:?}");
        assert_eq!(self.last(), frames(database));
    }

    #[track_caller]
    fn must_pull(&self, replica: &Path, came: u64) {
        let ended = self.pull(replica);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.last("done")["bytes"].as_u64(), Some(came * 4120), "{ended:?}");
    }

    /// The number of durable frames.
    fn last(&self) -> u64 {
        self.service.status(&self.service.client("app")).unwrap().unwrap().durable.unwrap().0 - 1
    }

    fn roll_over(&self) {
        let url = format!("{}/checkpoint", self.service.url("app"));
        let rolled = self.service.call(reqwest::Client::new().post(url).send()).unwrap();
        assert_eq!(rolled.status(), 200);
    }
}

#[test]
fn a_database_goes_through_the_service_into_a_replica() {
    let scene = Scene::new();
    let (db, replica) = (scene.database("app.db", &rows(10)), scene.path("replica.db"));
    let first = frames(&db);
    scene.must_push(&db, first);
    scene.must_pull(&replica, first);
    assert_eq!(dump(&replica), dump(&db));
    run_and_die(&db, &sqlite::large(300));
    let all = frames(&db);
    assert!(all > first + 300);
    scene.must_push(&db, all - first);
    scene.must_pull(&replica, all - first);
    assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, all)));
    scene.must_push(&db, 0);
    scene.must_pull(&replica, 0);
}

#[test]
fn after_damage_to_the_metadata_the_right_frames_travel() {
    let scene = Scene::new();
    let (db, replica) = (scene.database("app.db", &rows(10)), scene.path("replica.db"));
    let total = frames(&db);
    scene.must_push(&db, total);
    scene.must_pull(&replica, total);
    let damages: [&dyn Fn(&Path); 4] = [
        &|info| std::fs::write(info, "").unwrap(),
        &|info| std::fs::write(info, r#"{"hash":1,"version":0,"durable_frame_num":12,"generation":1}"#).unwrap(),
        &|info| std::fs::write(info, "\0\u{1}garbage").unwrap(),
        &|info| std::fs::remove_file(info).unwrap(),
    ];
    for (at, damage) in damages.iter().enumerate() {
        damage(&beside(&db, "-info"));
        run_and_die(&db, &rows(1));
        let total = frames(&db);
        // All again, which the service takes as held already.
        scene.must_push(&db, total);
        assert_eq!(info(&db), (1, total));
        damage(&beside(&replica, "-info"));
        let ended = scene.pull(&replica);
        assert_eq!(ended.code, Some(0), "damage {at}: {ended:?}");
        assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, total)), "damage {at}");
    }
}

#[test]
fn a_replica_goes_on_after_a_roll_over() {
    let scene = Scene::new();
    let (db, replica) = (scene.database("app.db", &rows(5)), scene.path("replica.db"));
    let total = frames(&db);
    scene.must_push(&db, total);
    scene.must_pull(&replica, total);
    run_and_die(&db, &rows(2));
    let more = frames(&db) - total;
    scene.must_push(&db, more);
    scene.roll_over();
    // What it lacks of generation 1 first.
    scene.must_pull(&replica, more);
    assert_eq!((dump(&replica), info(&replica)), (dump(&db), (2, 0)));
    // The next generation starts from what the first writer pushed, so it goes on there.
    run_and_die(&db, &rows(1));
    assert_eq!(scene.push(&db).code, Some(0));
    // A replica made now writes on, and the others follow.
    let writer = scene.path("writer.db");
    scene.must_pull(&writer, 1);
    assert_eq!(dump(&writer), dump(&db));
    run_and_die(&writer, &rows(3));
    // A sender that is not known yet is asked for its frames from the first on.
    let written = frames(&writer);
    scene.must_push(&writer, written);
    scene.must_pull(&replica, written);
    assert_eq!((dump(&replica), info(&replica)), (dump(&writer), (2, written)));
    // Now the first one is behind, and what it writes is refused.
    run_and_die(&db, &rows(1));
    assert_eq!(scene.push(&db).code, Some(1));
}

#[test]
fn a_second_writer_conflicts_and_changes_nothing() {
    let scene = Scene::new();
    let (db, other) =
        (scene.database("app.db", &rows(5)), scene.database("other.db", &rows(7).replace("t(a, b)", "t(a, c)")));
    scene.must_push(&db, frames(&db));
    let ended = scene.push(&other);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(scene.last(), frames(&db));
    let replica = scene.path("replica.db");
    scene.must_pull(&replica, frames(&db));
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn a_service_that_was_killed_goes_on() {
    let mut scene = Scene::new();
    let (db, replica) = (scene.database("app.db", &rows(10)), scene.path("replica.db"));
    for round in 0..3 {
        scene.must_push(&db, frames(&db) - if round == 0 { 0 } else { info(&db).1 });
        scene.service.kill();
        scene.service.restart();
        let ended = scene.pull(&replica);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!((dump(&replica), info(&replica)), (dump(&db), (1, frames(&db))));
        run_and_die(&db, &rows(2));
    }
}
