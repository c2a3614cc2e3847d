//! A SQLite database that is vacuumed while it is followed.

use crate::support::process::{Mirror, Service, arg};
use crate::support::sqlite::{Sqlite, assert_sound, connect, dump};
use crate::{large_bytes, peak_bytes};

#[test]
fn a_vacuum_while_followed_is_one_commit_that_restores() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (app, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let service = Service::start_with(data.path(), &["--memory-max", "4MiB"]);
    let mut sqlite = Sqlite::open(&app);
    let rows = large_bytes() / 50_000;
    sqlite.run(&[
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = OFF",
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
        &format!(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {rows}) \
             INSERT INTO t SELECT x, randomblob(50000) FROM n"
        ),
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA wal_autocheckpoint = 0",
        "DELETE FROM t WHERE a % 10 = 0",
    ]);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    let client = service.client("app");
    let durable = |at_least: u64| {
        crate::support::process::until("the service to have it", || {
            // The connection may have been idle for too long.
            let found = service.status(&client).ok().flatten().and_then(|status| status.durable);
            found.filter(|durable| durable.0 > at_least)
        })
    };
    let before = durable(1);
    sqlite.run(&["VACUUM"]);
    let after = durable(before.0);
    let pages = large_bytes() * 8 / 10 / 4096;
    assert!(after.0 - before.0 > pages, "{before} to {after}, {pages} pages");
    let peak = peak_bytes(follower.id()).max(peak_bytes(service.id()));
    println!("at most {} MiB of memory", peak >> 20);
    assert!(peak < 48 << 20, "{peak} bytes of memory");
    follower.terminate();
    let restored = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror"))
        .args(["restore", &service.url("app"), arg(&copy)])
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    sqlite.close();
    let (ours, theirs) = (connect(&copy), connect(&app));
    assert_sound(&ours);
    let sums = "SELECT count(*), sum(length(b)), min(a), max(a) FROM t";
    let rows = |db| crate::support::sqlite::rows(db, sums).unwrap();
    assert_eq!(rows(&ours), rows(&theirs));
    if large_bytes() < 64 << 20 {
        assert!(dump(&ours) == dump(&theirs), "other content");
    }
}
