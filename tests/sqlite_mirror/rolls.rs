//! Logs that are rolled over while a database is mirrored to them: no page is compared, and each commit is there once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use logmirror::checkpoint::fold;
use logmirror::format::wal::{FrameHeader, HEADER_LEN, WalHeader};
use logmirror::offset::{Generation, Offset};
use logmirror::repo::FsRepo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::process::{Ended, Mirror, Service, arg, mirror, until};
use super::support::sqlite::{Sqlite, assert_sound, connect, rows};
use super::{is_done, logmirror, status};

/// An application that counts its transactions in the database, one row each, for as long as it runs.
struct Counting {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Sqlite>,
}

/// Opens the database; the WAL is checkpointed after so many frames, 0 for never.
fn open(app: &Path, autocheckpoint: u32) -> Sqlite {
    let mut sqlite = Sqlite::open_within(app, 30);
    sqlite.run(&[
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = OFF",
        &format!("PRAGMA wal_autocheckpoint = {autocheckpoint}"),
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)",
    ]);
    sqlite
}

/// One more row.
fn add(sqlite: &mut Sqlite) {
    sqlite.rows("INSERT INTO t SELECT count(*) + 1, randomblob(abs(random()) % 3000) FROM t");
}

impl Counting {
    fn start(mut sqlite: Sqlite) -> Counting {
        let (stop, count) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (stop, count) = (stop.clone(), count.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    add(&mut sqlite);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                sqlite
            }
        });
        Counting { stop, count, thread }
    }

    fn wait_for(&self, more: u64) {
        let from = self.count.load(Ordering::Relaxed);
        until("the application to write", || (self.count.load(Ordering::Relaxed) >= from + more).then_some(()));
    }

    fn stop(self) -> Sqlite {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A service with an empty log that is rolled over after so many frames.
fn rolled_after(frames: u64, keep: u64) -> (TempDir, Service) {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    set_policy(&service, frames, keep);
    (data, service)
}

fn set_policy(service: &Service, frames: u64, keep: u64) {
    service.call(service.client("app").create(logmirror::format::LogFormat::Wal, None)).unwrap();
    let policy = json!({"policy": "roll", "frames": frames, "keep": keep});
    let url = format!("{}/checkpoint", service.url("app"));
    let answer = service.call(reqwest::Client::new().put(url).body(policy.to_string()).send()).unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
}

fn generation(service: &Service) -> u64 {
    status(service, "app").generation.unwrap().0
}

/// The rows of the database that the log makes now.
fn rows_in_log(service: &Service) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let output = logmirror(&["restore", &service.url("app"), arg(&out), "--force"]);
    if output.status.success() { count(&out) } else { 0 }
}

/// The rows of a database, which must be the first so many.
fn count(database: &Path) -> u64 {
    let db = connect(database);
    assert_sound(&db);
    let Ok(found) = rows(&db, "SELECT count(*), coalesce(max(id), 0) FROM t") else { return 0 };
    assert_eq!(found[0][0], found[0][1], "rows are missing");
    found[0][0].as_u64().unwrap()
}

fn caught_up(service: &Service, sqlite: &mut Sqlite) -> u64 {
    let rows = sqlite.rows("SELECT count(*) FROM t")[0][0].as_u64().unwrap();
    until("the mirror to catch up", || (rows_in_log(service) == rows).then_some(()));
    rows
}

fn compared(ended: &Ended) -> Vec<&Value> {
    ended.lines.iter().filter(|line| line["event"] == "compared").collect()
}

/// Checks that each generation has one transaction for each row more that it has at its end, that it starts with what the one before
/// ended with, and that some of its commits restore to the rows that they should. Returns how many rows there are in the end. The
/// service must be down.
fn every_commit_is_there_once(data: &Path, first: u64) -> u64 {
    let log = data.join("logs/app");
    let mut before: Option<u64> = None;
    for generation in first.. {
        let dir = log.join(format!("{generation:010}"));
        let Ok(repo) = FsRepo::open(&dir) else {
            assert!(generation > first, "{} is not there", dir.display());
            break;
        };
        let rows_at = |frame: u64| {
            let out = tempfile::tempdir().unwrap();
            let target = Arc::new(FsRepo::open(out.path()).unwrap());
            fold(&repo, Some(Offset(frame)), target, "out.db").unwrap();
            count(&out.path().join("out.db"))
        };
        let start = rows_at(0);
        assert_eq!(before.unwrap_or(start), start, "the base of generation {generation}");
        let commits = commits_of(&dir);
        // The table itself is made by a transaction without a row.
        let table = u64::from(start == 0 && commits.first().is_some_and(|first| rows_at(*first) == 0));
        for (number, frame) in (1..).zip(&commits) {
            if number % 16 == 1 || number == commits.len() as u64 {
                assert_eq!(rows_at(*frame), start + number - table, "generation {generation}, frame {frame}");
            }
        }
        before = Some(start + commits.len() as u64 - table);
    }
    before.unwrap()
}

/// The frames of a generation that end a transaction.
fn commits_of(dir: &Path) -> Vec<u64> {
    let (mut commits, mut number) = (Vec::new(), 0);
    for (_, bytes) in super::files(dir).into_iter().filter(|(name, _)| name.ends_with(".wal")) {
        let header = WalHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        for frame in bytes[HEADER_LEN..].chunks_exact(header.frame_len() as usize) {
            number += 1;
            if FrameHeader::decode(frame.first_chunk().unwrap()).size > 0 {
                commits.push(number);
            }
        }
    }
    commits
}

#[test]
fn a_follower_steps_into_each_next_generation_without_comparing_pages() {
    let (data, service) = rolled_after(15, 10_000);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = open(&app, 40);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    add(&mut sqlite);
    caught_up(&service, &mut sqlite);
    let first = generation(&service);
    let counting = Counting::start(sqlite);
    // The service looks once a second whether a log is due; here one roll follows the other.
    for next in first + 1..=first + 12 {
        until("the next generation", || {
            let rolled = logmirror(&["checkpoint", &service.url("app")]);
            // The policy may have been first.
            assert!(rolled.status.success() || String::from_utf8_lossy(&rolled.stderr).contains("ended"), "{rolled:?}");
            (generation(&service) >= next).then_some(())
        });
    }
    counting.wait_for(5);
    let mut sqlite = counting.stop();
    let rows = caught_up(&service, &mut sqlite);
    let ended = follower.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    if ended.errors.contains("the sink takes nothing") {
        // The machine is so busy that the service took nothing for two seconds: the mirror lets go of the locks then, and compares.
        return;
    }
    let told = |event| ended.lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert!(compared(&ended).is_empty(), "{:?}\n{:?}\n{}", told("compared"), told("retrying"), ended.errors);
    assert!(service.terminate().0.success());
    assert_eq!(every_commit_is_there_once(data.path(), first), rows);
}

#[test]
fn a_mirror_that_was_away_while_its_log_was_rolled_over_goes_on_where_it_was() {
    let (data, mut service) = rolled_after(1_000_000, 10_000);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    // The WAL stays: the position in it is known.
    let mut sqlite = open(&app, 0);
    let start = |service: &Service| Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    let follower = start(&service);
    add(&mut sqlite);
    caught_up(&service, &mut sqlite);
    let first = generation(&service);
    let mut ended = vec![follower.kill()];
    for round in 0..4 {
        if round % 2 == 0 {
            add(&mut sqlite);
        }
        let rolled = logmirror(&["checkpoint", &service.url("app")]);
        assert_eq!(rolled.status.code(), Some(0), "{rolled:?}");
        if round % 2 == 1 {
            add(&mut sqlite);
        }
        if round == 2 {
            service.kill();
            service.restart();
        }
        let follower = start(&service);
        caught_up(&service, &mut sqlite);
        // And goes on from there.
        add(&mut sqlite);
        caught_up(&service, &mut sqlite);
        ended.push(follower.kill());
    }
    is_done(&mirror(arg(&app), service.url("app"), &[]), 0);
    assert!(ended.iter().all(|ended| compared(ended).is_empty()), "{ended:?}");
    assert_eq!(generation(&service), first + 4);
    let rows = caught_up(&service, &mut sqlite);
    assert!(service.terminate().0.success());
    assert_eq!(every_commit_is_there_once(data.path(), first), rows);
}

#[test]
fn frames_that_were_not_acknowledged_when_a_log_was_rolled_over_are_neither_lost_nor_there_twice() {
    let (data, service) = rolled_after(1_000_000, 10_000);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = open(&app, 0);
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    add(&mut sqlite);
    caught_up(&service, &mut sqlite);
    let first = generation(&service);
    let process = Pid::from_raw(i32::try_from(service.id()).unwrap()).unwrap();
    for _ in 0..8 {
        // What is written now reaches the service after the request that rolls the log over, or before.
        let rolling = Mirror::command(&["checkpoint", &service.url("app"), "--json"]);
        kill_process(process, Signal::STOP).unwrap();
        for _ in 0..20 {
            add(&mut sqlite);
        }
        kill_process(process, Signal::CONT).unwrap();
        assert_eq!(rolling.ended().code, Some(0));
        caught_up(&service, &mut sqlite);
    }
    let rows = caught_up(&service, &mut sqlite);
    let ended = follower.interrupt();
    assert!(compared(&ended).is_empty(), "{ended:?}");
    assert!(generation(&service) > first);
    assert!(service.terminate().0.success());
    assert_eq!(every_commit_is_there_once(data.path(), first), rows);
}

#[test]
fn generations_are_kept_as_the_policy_says_whoever_started_them() {
    let (data, service) = rolled_after(1_000_000, 1);
    let dir = tempfile::tempdir().unwrap();
    let app = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["CREATE TABLE t (id INTEGER PRIMARY KEY, x)", "INSERT INTO t (x) VALUES (1)"]);
    mirror(arg(&app), service.url("app"), &[]);
    let held = || {
        let log = FsRepo::open(data.path().join("logs/app")).unwrap();
        let names = logmirror::repo::Repo::list(&log).unwrap();
        names.into_iter().filter(|name| name.parse::<u64>().is_ok()).count()
    };
    let before = generation(&service);
    // Pages of another size need a generation of their own, which the mirror makes.
    sqlite.run(&["PRAGMA page_size = 1024", "VACUUM", "INSERT INTO t (x) VALUES (2)"]);
    let ended = mirror(arg(&app), service.url("app"), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(status(&service, "app").generation, Some(Generation(before + 1)));
    assert_eq!(held(), 1, "at once");
    assert_eq!(caught_up(&service, &mut sqlite), 2);
}
