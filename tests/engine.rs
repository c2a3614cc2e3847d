//! The SQL engine beside a log: what it commits is in the log, what others append is in the database, and where they part
//! the log is right.
#![cfg(feature = "turso")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::api::CreateLog;
use logmirror::engine::{Engines, Session};
use logmirror::format::LogFormat;
use logmirror::mirror::{Error, Registry, Settings};
use logmirror::repo::FsRepo;
use support::failing::{Failing, Plan, Trouble};
use tempfile::TempDir;
use tokio::task::block_in_place;

struct Bench {
    _data: TempDir,
    plan: Arc<Plan>,
    registry: Arc<Registry>,
    engines: Arc<Engines>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Settings::default())
    }

    fn with(settings: Settings) -> Bench {
        let data = tempfile::tempdir().unwrap();
        let (disk, plan) = Failing::new(Arc::new(FsRepo::open(data.path()).unwrap()));
        let registry = Registry::open(disk, settings).unwrap();
        let registry = Arc::new(registry);
        registry
            .create("app", CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None })
            .unwrap();
        Bench { _data: data, plan, engines: Arc::new(Engines::new(registry.clone())), registry }
    }

    fn session(&self) -> Session {
        self.engines.session("app", true).unwrap()
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
    let again = Arc::new(Engines::new(bench.registry.clone()));
    let other = again.session("app", true).unwrap();
    assert_eq!(rows(&other, "SELECT b FROM t"), ["one", "two"]);
    // What the one engine commits the other takes in.
    write(&other, "INSERT INTO t(b) VALUES ('three')").await;
    session.refresh().await.unwrap();
    assert_eq!(rows(&session, "SELECT count(*) FROM t"), ["3"]);
    write(&session, "INSERT INTO t(b) VALUES ('four')").await;
    other.refresh().await.unwrap();
    assert_eq!(rows(&other, "SELECT group_concat(b) FROM t"), ["one,two,three,four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_somebody_else_was_first_the_log_is_right_and_the_commit_is_refused() {
    let bench = block_in_place(Bench::new);
    let session = bench.session();
    write(&session, "CREATE TABLE t(a)").await;
    let elsewhere = Arc::new(Engines::new(bench.registry.clone()));
    let other = elsewhere.session("app", true).unwrap();
    let turn = session.turn().await.unwrap();
    session.connection().execute("INSERT INTO t VALUES ('mine')").unwrap();
    write(&other, "INSERT INTO t VALUES ('theirs')").await;
    let durable = bench.durable();
    assert!(session.settle().await.is_err());
    drop(turn);
    assert_eq!(bench.durable(), durable);
    assert!(session.turn().await.is_err() && session.refresh().await.is_err() && session.settle().await.is_err());
    let again = bench.session();
    assert_eq!(rows(&again, "SELECT a FROM t"), ["theirs"]);
    write(&again, "INSERT INTO t VALUES ('mine')").await;
    other.refresh().await.unwrap();
    assert_eq!(rows(&other, "SELECT group_concat(a) FROM t"), ["theirs,mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_opened_on_an_empty_log_takes_over_the_first_frames_of_another() {
    let bench = block_in_place(Bench::new);
    let session = bench.session();
    assert_eq!(rows(&session, "SELECT count(*) FROM sqlite_schema"), ["0"]);
    let elsewhere = Arc::new(Engines::new(bench.registry.clone()));
    write(&elsewhere.session("app", true).unwrap(), "CREATE TABLE t(a)").await;
    assert!(session.turn().await.is_err());
    let session = bench.session();
    write(&session, "INSERT INTO t VALUES (1)").await;
    assert_eq!(rows(&session, "SELECT * FROM t"), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_never_in_the_log_however_much_it_was() {
    let bench = block_in_place(Bench::new);
    let session = bench.session();
    write(&session, "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)").await;
    let durable = bench.durable();
    // More pages than a connection keeps: some are in the WAL before the transaction ends.
    let many = "INSERT INTO t(b) SELECT zeroblob(3000) FROM generate_series(1, 3000)";
    for end in ["ROLLBACK", "dropped"] {
        let session = bench.session();
        let turn = session.turn().await.unwrap();
        session.connection().execute("BEGIN IMMEDIATE").unwrap();
        session.connection().execute(many).unwrap();
        if end == "ROLLBACK" {
            session.connection().execute(end).unwrap();
        }
        session.settle().await.unwrap();
        drop(session);
        drop(turn);
        assert_eq!(bench.durable(), durable, "{end}");
    }
    write(&session, "INSERT INTO t(b) VALUES ('x')").await;
    assert!(bench.durable() < durable + 10, "{} {durable}", bench.durable());
    let other = Arc::new(Engines::new(bench.registry.clone())).session("app", true).unwrap();
    assert_eq!(rows(&other, "SELECT * FROM t"), ["1|x"]);
    assert_eq!(rows(&other, "PRAGMA integrity_check"), ["ok"]);
    write(&session, many).await;
    other.refresh().await.unwrap();
    assert_eq!(rows(&other, "SELECT count(*), sum(length(b)) FROM t"), ["3001|9000001"]);
    assert_eq!(rows(&other, "PRAGMA integrity_check"), ["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_log_would_not_take_fails_and_harms_nothing() {
    let bench = block_in_place(|| Bench::with(Settings { commit_bytes_max: 1 << 20, ..Settings::default() }));
    let session = bench.session();
    write(&session, "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)").await;
    let durable = bench.durable();
    let turn = session.turn().await.unwrap();
    let many = "INSERT INTO t(b) SELECT zeroblob(3000) FROM generate_series(1, 3000)";
    let error = session.connection().execute(many).unwrap_err();
    println!("{error}");
    let settled = session.settle().await;
    drop(turn);
    assert_eq!(bench.durable(), durable, "{settled:?}");
    let session = bench.session();
    write(&session, "INSERT INTO t(b) VALUES ('x')").await;
    assert_eq!(rows(&session, "SELECT * FROM t"), ["1|x"]);
    assert_eq!(rows(&session, "PRAGMA integrity_check"), ["ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_get_their_turn_one_after_the_other_and_none_is_lost() {
    let bench = Arc::new(block_in_place(Bench::new));
    write(&bench.session(), "CREATE TABLE t(a)").await;
    let writers = (0..16).map(|n| {
        let bench = bench.clone();
        tokio::spawn(async move {
            let session = block_in_place(|| bench.session());
            for m in 0..5 {
                write(&session, &format!("INSERT INTO t VALUES ({n} * 10 + {m})")).await;
            }
        })
    });
    futures::future::join_all(writers).await.into_iter().for_each(Result::unwrap);
    let other = Arc::new(Engines::new(bench.registry.clone())).session("app", true).unwrap();
    assert_eq!(rows(&other, "SELECT count(*), count(DISTINCT a) FROM t"), ["80|80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_of_a_row_that_is_not_durable() {
    let bench = Arc::new(block_in_place(Bench::new));
    write(&bench.session(), "CREATE TABLE t(a)").await;
    let (writer, reader) = (bench.session(), bench.session());
    bench.plan.set("logs/app", Trouble::SyncHangs);
    let turn = writer.turn().await.unwrap();
    writer.connection().execute("INSERT INTO t VALUES (1)").unwrap();
    let mut written = Box::pin(writer.settle());
    assert!(futures::poll!(&mut written).is_pending());
    block_in_place(|| bench.plan.wait_hanging(1));
    assert_eq!(rows(&reader, "SELECT count(*) FROM t"), ["1"]);
    let mut read = Box::pin(reader.settle());
    assert!(futures::poll!(&mut read).is_pending() && futures::poll!(&mut written).is_pending());
    bench.plan.clear();
    written.await.unwrap();
    read.await.unwrap();
    drop(turn);
    // And one whose sync fails is not there for anybody.
    let turn = writer.turn().await.unwrap();
    bench.plan.set("logs/app", Trouble::SyncFails);
    writer.connection().execute("INSERT INTO t VALUES (2)").unwrap();
    assert!(writer.settle().await.is_err());
    drop(turn);
    rows(&reader, "SELECT count(*) FROM t");
    assert!(reader.settle().await.is_err());
    let again = bench.session();
    assert_eq!(rows(&again, "SELECT count(*) FROM t"), ["1"]);
    again.refresh().await.unwrap();
    again.settle().await.unwrap();
    assert!(matches!(again.turn().await, Err(Error::Failed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_that_broke_off_had_committed_is_not_stored_with_the_next_commit() {
    let bench = block_in_place(Bench::new);
    write(&bench.session(), "CREATE TABLE t(a)").await;
    let session = bench.session();
    let turn = session.turn().await.unwrap();
    session.connection().execute("INSERT INTO t VALUES ('broken off')").unwrap();
    drop((session, turn));
    write(&bench.session(), "INSERT INTO t VALUES ('next')").await;
    assert_eq!(rows(&bench.session(), "SELECT a FROM t"), ["next"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_goes_on_in_the_next_generation() {
    let bench = block_in_place(Bench::new);
    let session = bench.session();
    write(&session, "CREATE TABLE t(a)").await;
    write(&session, "INSERT INTO t VALUES (1)").await;
    assert!(block_in_place(|| bench.registry.checkpoint("app", false)).unwrap().done);
    assert!(session.turn().await.is_err());
    let session = bench.session();
    assert_eq!(rows(&session, "SELECT * FROM t"), ["1"]);
    write(&session, "INSERT INTO t VALUES (2)").await;
    let elsewhere = Arc::new(Engines::new(bench.registry.clone()));
    assert_eq!(rows(&elsewhere.session("app", true).unwrap(), "SELECT group_concat(a) FROM t"), ["1,2"]);
    assert_eq!(bench.registry.get("app").unwrap().generation().0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_used_again_knows_what_changed_meanwhile() {
    let bench = block_in_place(Bench::new);
    write(&bench.session(), "CREATE TABLE t(a)").await;
    let elsewhere = Arc::new(Engines::new(bench.registry.clone()));
    let other = elsewhere.session("app", true).unwrap();
    for n in 0..5 {
        let session = bench.engines.session("app", false).unwrap();
        write(&session, &format!("INSERT INTO t(a) VALUES ({n})")).await;
        assert_eq!(rows(&session, "SELECT count(*) FROM t"), [(2 * n + 1).to_string()]);
        session.spare();
        drop(session);
        write(&other, &format!("ALTER TABLE t ADD COLUMN b{n}")).await;
        write(&other, &format!("INSERT INTO t(a, b{n}) VALUES ({n}, 'new')")).await;
        let session = bench.engines.session("app", false).unwrap();
        assert_eq!(rows(&session, &format!("SELECT a FROM t WHERE b{n} = 'new'")), [n.to_string()]);
        session.spare();
    }
    assert_eq!(rows(&bench.session(), "PRAGMA integrity_check"), ["ok"]);
}
