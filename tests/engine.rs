//! The SQL engine beside a log: what it commits is in the log, what others append is in the database, and where they part
//! the log is right.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use logmirror::api::CreateLog;
use logmirror::engine::{Engines, Session};
use logmirror::format::LogFormat;
use logmirror::mirror::{Registry, Settings};
use logmirror::repo::FsRepo;
use tempfile::TempDir;
use tokio::task::block_in_place;

struct Bench {
    _data: TempDir,
    registry: Arc<Registry>,
    engines: Engines,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Settings::default())
    }

    fn with(settings: Settings) -> Bench {
        let data = tempfile::tempdir().unwrap();
        let registry = Registry::open(Arc::new(FsRepo::open(data.path()).unwrap()), settings).unwrap();
        let registry = Arc::new(registry);
        registry.create("app", CreateLog { format: LogFormat::Wal, first: None, checkpoint: None }).unwrap();
        Bench { _data: data, engines: Engines::new(registry.clone()), registry }
    }

    fn session(&self) -> Session {
        self.engines.session("app").unwrap()
    }

    fn durable(&self) -> u64 {
        self.registry.get("app").unwrap().view().durable.0
    }
}

async fn write(session: &Session, sql: &str) {
    let turn = session.turn().await.unwrap();
    session.connection().execute(sql).unwrap();
    session.settle().await.unwrap();
    drop(turn);
}

fn rows(session: &Session, sql: &str) -> Vec<String> {
    let mut statement = session.connection().prepare(sql).unwrap();
    let rows = statement.run_collect_rows().unwrap();
    rows.iter().map(|row| row.iter().map(ToString::to_string).collect::<Vec<_>>().join("|")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_in_the_log_before_settle_returns_and_after_a_restart() {
    let bench = block_in_place(Bench::new);
    let session = bench.session();
    write(&session, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await;
    let before = bench.durable();
    assert!(before > 1);
    write(&session, "INSERT INTO t(b) VALUES ('one'), ('two')").await;
    assert!(bench.durable() > before);
    assert_eq!(rows(&session, "SELECT * FROM t"), ["1|one", "2|two"]);
    // Another connection, and another engine over what is on disk.
    assert_eq!(rows(&bench.session(), "SELECT * FROM t"), ["1|one", "2|two"]);
    let again = Engines::new(bench.registry.clone());
    let other = again.session("app").unwrap();
    assert_eq!(rows(&other, "SELECT b FROM t"), ["one", "two"]);
    // What the one engine commits the other takes in.
    write(&other, "INSERT INTO t(b) VALUES ('three')").await;
    session.refresh().await.unwrap();
    assert_eq!(rows(&session, "SELECT count(*) FROM t"), ["3"]);
    write(&session, "INSERT INTO t(b) VALUES ('four')").await;
    other.refresh().await.unwrap();
    assert_eq!(rows(&other, "SELECT group_concat(b) FROM t"), ["one,two,three,four"]);
}
