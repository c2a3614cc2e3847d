//! Read replica files of a log at whose URL something else answers for a while: another log, or what a cache kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use logmirror::blame::{Blame, Blamed};
use logmirror::mirror::{Mirror, Place, run};

use crate::failover::{copy, serve};
use crate::proxy::{Kind, Proxy};
use crate::support::service::{PATIENCE, Service};
use crate::support::sqlite::{Sqlite, connect};
use crate::switch::{Switch, Way};

/// An application with a database in WAL mode, and a service with the log of it.
struct Fed {
    database: PathBuf,
    app: Sqlite,
    service: Service,
}

impl Fed {
    fn of(database: PathBuf, data: &Path) -> Fed {
        std::fs::create_dir_all(data).unwrap();
        let fed = Fed { app: Sqlite::open_within(&database, 10), service: serve(data), database };
        fed.mirror();
        fed
    }

    fn insert(&mut self, text: &str) {
        self.app.rows(&format!("INSERT INTO t VALUES ('{text}')"));
        self.mirror();
    }

    fn mirror(&self) {
        let mirror = Mirror::new(Place::Dir(self.database.clone()), Place::Url(self.service.url("/logs/app")));
        self.service.runtime.block_on(run(&mirror, |_| ())).unwrap();
    }
}

/// Follows the log of one service with polls, until another one answers, whose log has the same base: one that was started as a
/// copy of the first one's data if `copied`.
fn polls_until_another_log_answers(copied: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let db = connect(&path("app.db"));
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
    drop(db);
    std::fs::copy(path("app.db"), path("other.db")).unwrap();
    let mut first = Fed::of(path("app.db"), &path("first"));
    if copied {
        copy(&path("first/logs"), &path("second/logs"));
    }
    first.insert("ours");
    let mut other = Fed::of(path("other.db"), &path("second"));
    other.insert("theirs 1");
    let addresses = [first.service.address, other.service.address];
    let switch = Switch::start(move |_| Way::To(addresses[0]));
    let proxy = Proxy::start(switch.address(), Kind::BuffersAnswers);
    let replica = path("replica.db");
    let mirror = Mirror { follow: true, ..Mirror::new(Place::Url(proxy.url("app")), Place::Dir(replica.clone())) };
    let following = first.service.runtime.handle().spawn(async move { run(&mirror, |_| ()).await });
    let is_there = |text: &str| {
        let since = Instant::now();
        while !rows(&replica).contains(&text.to_owned()) {
            assert!(since.elapsed() < PATIENCE && !following.is_finished(), "{text:?} was never received");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    is_there("ours");
    // It polls by then.
    first.insert("ours too");
    is_there("ours too");
    other.insert("theirs 2");
    switch.set(move |_| Way::To(addresses[1]));
    other.insert("theirs 3");
    let ended = first.service.runtime.block_on(async { tokio::time::timeout(PATIENCE, following).await });
    let error = ended.expect("it ends").unwrap().unwrap_err();
    println!("{error}");
    assert_eq!(error.blame(), Blame::Data, "{error}");
    assert_eq!(rows(&replica), ["ours", "ours too"], "{error}");
}

fn rows(replica: &Path) -> Vec<String> {
    if !replica.exists() {
        return Vec::new();
    }
    let db = connect(replica);
    let mut rows = db.prepare("SELECT x FROM t").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_follower_that_polls_ends_when_another_log_answers() {
    polls_until_another_log_answers(false);
}

#[test]
fn a_follower_that_polls_ends_when_another_history_of_the_log_answers() {
    polls_until_another_log_answers(true);
}

#[test]
fn one_stale_answer_makes_no_old_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    connect(&path("app.db")).execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
    let mut fed = Fed::of(path("app.db"), &path("data"));
    let kept = fed.service.put("/logs/app/checkpoint", r#"{"policy":"roll","frames":100000000,"keep":2}"#);
    assert_eq!(kept.status, 200, "{}", kept.text());
    fed.insert("first");
    let stale = serde_json::to_vec(&fed.service.status("app")).unwrap();
    assert_eq!(fed.service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
    fed.insert("second");
    let address = fed.service.address;
    for nth in 1..10 {
        let (stale, asked) = (stale.clone(), Arc::new(AtomicUsize::new(0)));
        let statuses = asked.clone();
        let switch = Switch::start(move |path| match path.split('?').next() == Some("/logs/app") {
            true if statuses.fetch_add(1, Ordering::SeqCst) + 1 == nth => Way::Stale(stale.clone()),
            _ => Way::To(address),
        });
        let replica = path(&format!("{nth}.db"));
        let mirror = Mirror::new(Place::Url(switch.url("app")), Place::Dir(replica.clone()));
        fed.service.runtime.block_on(run(&mirror, |_| ())).unwrap();
        assert_eq!(rows(&replica), ["first", "second"], "status {nth} of {}", asked.load(Ordering::SeqCst));
    }
}
