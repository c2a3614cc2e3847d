//! A read replica file beside readers that read all the time: how late each commit is seen, and whether any reader ever fails.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::process::Program;
use logmirror_e2e_support::random::Random;
use logmirror_e2e_support::wait_for;
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;

use crate::app;
use crate::followed::{Followed, Work};

const ACCOUNTS: i64 = 2000;
/// What all accounts hold together, at any time.
const TOTAL: i64 = ACCOUNTS * 100;
/// Rows of 4,000 bytes that nobody touches but a VACUUM, which writes them all in one commit.
const UNTOUCHED: u64 = 10_000;
/// The longest that a commit may take to be seen.
const LAG_MAX: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);
/// Between two reads of a reader.
const PAUSE: Duration = Duration::from_millis(10);
/// Ends a reader.
const STOP: &str = "stop";

/// The workload: a writer at the source, so many readers of the replica in other processes, for so many seconds.
pub fn run(seconds: u64, readers: u64, seed: u64) -> Result<()> {
    let work = Work::create("replica")?;
    let db = app::plain(&work.app())?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, note BLOB);
         CREATE TABLE latest (seq INTEGER);
         INSERT INTO latest VALUES (0);
         CREATE TABLE untouched (x BLOB);
         CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)",
    )?;
    db.execute(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?)
         INSERT INTO untouched SELECT randomblob(4000) FROM c",
        [UNTOUCHED as i64],
    )?;
    db.execute(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?)
         INSERT INTO account SELECT i, 100, randomblob(200) FROM c",
        [ACCOUNTS],
    )?;
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&db)?;
    let (program, replica) = (Program::find()?, work.0.join("replica.db"));
    let (url, path) = (followed.url().to_owned(), replica.to_str().context("a path in plain UTF-8")?);
    let mut mirror = program.start(&["mirror", &url, path, "--follow", "--json"], &work.0, "replica")?;
    wait_for("the replica to be there", LIMIT, || Ok(replica.exists().then_some(())))?;

    let reading: Vec<Child> = (0..readers).map(|number| start_reader(&replica, number)).collect::<Result<_>>()?;
    let (times, ended) = (Arc::new(Mutex::new(vec![Instant::now()])), Arc::new(AtomicBool::new(false)));
    let seen = Arc::new(AtomicU64::new(0));
    let watching = {
        let (times, ended, seen, replica) = (times.clone(), ended.clone(), seen.clone(), replica.clone());
        std::thread::spawn(move || watch(&replica, &times, &ended, &seen))
    };
    let written = write(&db, seconds, seed, &times)?;
    let size: i64 =
        db.query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| row.get(0))?;
    let last =
        wait_for("the last commit to be seen", LIMIT, || Ok((seen.load(Ordering::Relaxed) >= written).then_some(())));
    last.with_context(|| mirror.errors())?;
    ended.store(true, Ordering::Relaxed);
    let mut lags = watching.join().map_err(|_| anyhow::anyhow!("the watcher ended"))??;
    let (mut reads, mut checks, mut errors) = (0, 0, 0);
    for reader in reading {
        let (read, checked, failed) = end_reader(reader)?;
        (reads, checks, errors) = (reads + read, checks + checked, errors + failed);
    }
    mirror.signal(Signal::INT)?;
    mirror.ended(LIMIT)?;
    let behind = |lines: &[serde_json::Value]| {
        lines.iter().filter_map(|line| line["behind_seconds"].as_f64()).fold(0.0, f64::max)
    };
    let (log, file) = (behind(&followed.mirror.json_lines()?), behind(&mirror.json_lines()?));
    println!(
        "as the mirrors say, the log was at most {log:.2} s behind the source, and the file {file:.2} s behind the log"
    );
    lags.sort_unstable();
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    let wal = std::fs::metadata(work.0.join("replica.db-wal")).map_or(0, |found| found.len());
    println!(
        "{written} commits to a database of {size} bytes, seen after p50 {p50:.1?}, p99 {p99:.1?}, at most {max:.1?}"
    );
    println!(
        "{readers} readers: {reads} reads, {checks} integrity checks, {errors} errors; WAL {wal} bytes at the end"
    );
    ensure!(errors == 0, "{errors} reads failed");
    ensure!(max <= LAG_MAX, "a commit was seen after {max:?}");
    ensure!(wal <= 64 << 20, "the WAL has grown to {wal} bytes");
    let once = program.run(&["mirror", &url, path], &work.0, "once", LIMIT)?;
    ensure!(once.success(), "the mirror ended with {once}");
    let (ours, theirs) = (app::plain(&replica)?, &db);
    let content = |db: &Connection| -> Result<(i64, i64, i64)> {
        Ok(db.query_row(
            "SELECT (SELECT seq FROM latest), (SELECT sum(balance * id) FROM account), (SELECT count(*) FROM t)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?)
    };
    ensure!(content(&ours)? == content(theirs)?, "the replica is not the source");
    let aside = std::fs::read_dir(&work.0)?.filter_map(Result::ok);
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains(".aside-")).count();
    ensure!(aside == 0, "{aside} files were set aside");
    drop(ours);
    followed.end()?;
    drop(db);
    work.remove()
}

/// Moves money between accounts, and now and then writes much at once.
fn write(db: &Connection, seconds: u64, seed: u64, times: &Mutex<Vec<Instant>>) -> Result<u64> {
    let mut random = Random::new(seed, 2);
    let (start, mut seq) = (Instant::now(), 0_u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        seq += 1;
        db.execute_batch("BEGIN IMMEDIATE")?;
        for _ in 0..=random.within(0..4) {
            let (from, to) = (random.within(1..ACCOUNTS as u64) as i64, random.within(1..ACCOUNTS as u64) as i64);
            let amount = random.within(1..50) as i64;
            db.execute(
                "UPDATE account SET balance = balance - ?, note = randomblob(200) WHERE id = ?",
                [amount, from],
            )?;
            db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", [amount, to])?;
        }
        match random.within(0..200) {
            // The older half: the database stays of one size, and with it what a VACUUM writes.
            0 => _ = db.execute("DELETE FROM t WHERE id <= (SELECT (min(id) + max(id)) / 2 FROM t)", [])?,
            1..4 => {
                for _ in 0..100 {
                    db.execute("INSERT INTO t (x) VALUES (randomblob(4000))", [])?;
                }
            }
            _ => {}
        }
        db.execute("UPDATE latest SET seq = ?", [seq as i64])?;
        db.execute_batch("COMMIT")?;
        times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        if random.within(0..2000) == 0 {
            db.execute_batch("VACUUM")?;
        }
        std::thread::sleep(Duration::from_millis(random.within(0..20)));
    }
    Ok(seq)
}

/// Looks at the replica over and over: how long after its commit each was seen.
fn watch(replica: &Path, times: &Mutex<Vec<Instant>>, ended: &AtomicBool, seen: &AtomicU64) -> Result<Vec<Duration>> {
    let db = Connection::open(replica)?;
    db.busy_timeout(Duration::ZERO)?;
    let (mut lags, mut last) = (Vec::new(), 0_usize);
    while !ended.load(Ordering::Relaxed) {
        let seq: i64 = db.query_row("SELECT seq FROM latest", [], |row| row.get(0))?;
        let now = Instant::now();
        let times = times.lock().unwrap_or_else(PoisonError::into_inner);
        for at in last + 1..=seq as usize {
            // A commit may be seen before its writer knows that it is made.
            lags.push(times.get(at).map_or(Duration::ZERO, |made| now.saturating_duration_since(*made)));
        }
        drop(times);
        ensure!(seq as usize >= last, "commit {seq} was seen after {last}");
        last = seq as usize;
        seen.store(seq as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(lags)
}

fn start_reader(replica: &Path, number: u64) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("replica-reader").arg(replica).arg(number.to_string());
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// Reads, integrity checks and errors of a reader.
fn end_reader(mut reader: Child) -> Result<(u64, u64, u64)> {
    use std::io::Write;
    writeln!(reader.stdin.take().context("its input")?, "{STOP}")?;
    let mut line = String::new();
    BufReader::new(reader.stdout.take().context("its output")?).read_line(&mut line)?;
    reader.wait()?;
    let mut counts = line.split_whitespace().map(str::parse);
    let mut next = || counts.next().context("three numbers")?.context("a number");
    Ok((next()?, next()?, next()?))
}

/// A process that reads over and over until its input says stop, and says how often, and how often it failed. Every other one
/// may only read.
pub fn read(replica: &str, number: u64) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    std::thread::spawn(move || {
        let _ended = std::io::stdin().lock().read_line(&mut String::new());
        stopping.store(true, Ordering::Relaxed);
    });
    let flags =
        if number.is_multiple_of(2) { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let mut db = Connection::open_with_flags(replica, flags)?;
    db.busy_timeout(Duration::ZERO)?;
    let (mut reads, mut checks, mut errors, mut last) = (0_u64, 0_u64, 0_u64, 0_i64);
    while !stop.load(Ordering::Relaxed) {
        reads += 1;
        let check = reads % 400 == number * 20;
        checks += u64::from(check);
        if let Err(error) = once(&db, check, &mut last) {
            errors += 1;
            eprintln!("reader {number}: {error:#}");
        }
        // All of them together leave the machine some time for what is measured.
        std::thread::sleep(PAUSE);
        if reads.is_multiple_of(500) && number.is_multiple_of(5) {
            // Some come and go.
            drop(db);
            db = Connection::open_with_flags(replica, flags)?;
            db.busy_timeout(Duration::ZERO)?;
        }
    }
    println!("{reads} {checks} {errors}");
    Ok(())
}

/// One read transaction: the sum of all accounts, twice, around everything else.
fn once(db: &Connection, check: bool, last: &mut i64) -> Result<()> {
    let read = db.unchecked_transaction()?;
    let sum = || read.query_row("SELECT sum(balance) FROM account", [], |row| row.get::<_, i64>(0));
    ensure!(sum()? == TOTAL, "{} in all accounts", sum()?);
    let seq: i64 = read.query_row("SELECT seq FROM latest", [], |row| row.get(0))?;
    ensure!(seq >= *last, "commit {seq} after {last}");
    *last = seq;
    if check {
        let said: String = read.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(said == "ok", "{said}");
    }
    ensure!(sum()? == TOTAL, "{} in all accounts", sum()?);
    let again: i64 = read.query_row("SELECT seq FROM latest", [], |row| row.get(0))?;
    ensure!(again == seq, "commits {seq} and {again} in one transaction");
    Ok(())
}
