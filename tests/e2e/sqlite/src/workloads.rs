//! What following costs, in bytes on disk and on the wire.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use logmirror_e2e_support::random::Random;
use rusqlite::Connection;

use crate::app;
use crate::followed::{Followed, Work};

/// Bytes of a frame with a page of 4096 bytes.
const FRAME: u64 = 4120;
/// How many times the bytes that an application wrote following it may cost.
const TIMES_MAX: f64 = 3.0;

fn fill(db: &Connection, megabytes: u64) -> Result<()> {
    db.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)")?;
    for _ in 0..megabytes {
        db.execute(
            "INSERT INTO t (x) SELECT randomblob(3900) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 256) SELECT i FROM n)",
            [],
        )?;
    }
    Ok(())
}

fn report(what: &str, followed: &mut Followed, written: u64, before: u64) -> Result<()> {
    let (log, bases, generations) = followed.disk()?;
    let compared = followed.compared()?;
    let log = log - before;
    let times = log as f64 / written.max(1) as f64;
    println!(
        "{what}: written {:.1} MB, on disk {:.1} MB = {times:.2} times, bases {:.1} MB, {generations} generations, pages compared {compared} times",
        written as f64 / 1e6,
        log as f64 / 1e6,
        bases as f64 / 1e6
    );
    ensure!(times <= TIMES_MAX, "{times:.2} times what was written");
    ensure!(generations == 1, "{generations} generations");
    Ok(())
}

/// What the mirror sent, as the service's log of requests says once it has ended.
fn report_wire(what: &str, followed: Followed, written: u64, work: &Work) -> Result<()> {
    let base = fs::metadata(work.0.join("data/logs/app/0000000001/base.db"))?.len();
    followed.end()?;
    let said = fs::read_to_string(work.0.join("service.err"))?;
    let number = |line: &str, name: &str| -> u64 {
        line.split_whitespace().find_map(|part| part.strip_prefix(name)?.parse().ok()).unwrap_or(0)
    };
    let sums = |line: &&str| line.contains("page-sums");
    let sent: u64 = said.lines().map(|line| number(line, "in=")).sum();
    let received: u64 = said.lines().filter(sums).map(|line| number(line, "out=")).sum();
    let wire = (sent + received).saturating_sub(base);
    let times = wire as f64 / written.max(1) as f64;
    println!("{what}: {:.1} MB on the wire beside the base = {times:.2} times", wire as f64 / 1e6);
    ensure!(times <= TIMES_MAX, "{times:.2} times what was written");
    Ok(())
}

/// A large database under the default autocheckpoint; `write` MB written at a megabyte a second.
pub fn reset(megabytes: u64, write: u64, seed: u64) -> Result<()> {
    let work = Work::create("reset")?;
    let db = app::open(&work.app())?;
    fill(&db, megabytes)?;
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&db)?;
    let before = followed.disk()?.0;
    let (start, frames) = (Instant::now(), app::frames_written());
    let (mut random, rows) = (Random::new(seed, 1), megabytes * 256);
    while (app::frames_written() - frames) * FRAME < write * 1_000_000 {
        let id = 1 + random.within(0..rows);
        db.execute("UPDATE t SET x = randomblob(3900) WHERE id = ?", [id as i64])?;
        // A megabyte a second.
        let due = Duration::from_secs_f64(((app::frames_written() - frames) * FRAME) as f64 / 1e6);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let written = (app::frames_written() - frames) * FRAME;
    followed.caught_up(&db)?;
    report("reset", &mut followed, written, before)?;
    report_wire("reset", followed, written, &work)?;
    drop(db);
    work.remove()
}

/// Single inserts by connections that open, write and close.
pub fn inserts(count: u64) -> Result<()> {
    let work = Work::create("inserts")?;
    let db = app::open(&work.app())?;
    fill(&db, 12)?;
    drop(db);
    app::wal_is_gone();
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&app::open(&work.app())?)?;
    let (before, frames) = (followed.disk()?.0, app::frames_written());
    for _ in 0..count {
        let db = app::open(&work.app())?;
        db.execute("INSERT INTO t (x) VALUES (randomblob(100))", [])?;
        drop(db);
        if !wal_of(&work.app()) {
            app::wal_is_gone();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let written = (app::frames_written() - frames) * FRAME;
    followed.caught_up(&app::open(&work.app())?)?;
    report("inserts", &mut followed, written, before)?;
    report_wire("inserts", followed, written, &work)?;
    work.remove()
}

fn wal_of(app: &Path) -> bool {
    app.with_extension("db-wal").exists()
}

/// A database with a rollback journal.
pub fn rollback(commits: u64, seed: u64) -> Result<()> {
    let work = Work::create("rollback")?;
    let db = app::plain(&work.app())?;
    fill(&db, 12)?;
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&db)?;
    let before = followed.disk()?.0;
    let mut random = Random::new(seed, 1);
    let mut pages = fs::read(work.app())?;
    let mut differing = 0;
    for _ in 0..commits {
        let id = 1 + random.within(0..12 * 256);
        db.execute("UPDATE t SET x = randomblob(3900) WHERE id = ?", [id as i64])?;
        let now = fs::read(work.app())?;
        differing += now.chunks(4096).zip(pages.chunks(4096)).filter(|(now, before)| now != before).count() as u64;
        pages = now;
        std::thread::sleep(Duration::from_millis(50));
    }
    let written = differing * FRAME;
    followed.caught_up(&db)?;
    report("rollback journal", &mut followed, written, before)?;
    report_wire("rollback journal", followed, written, &work)?;
    drop(db);
    work.remove()
}

/// An application that opens, writes a row and closes, again and again. With `roll` the log is rolled over after so many frames, and
/// two generations are kept.
pub fn open_close(times: u64, roll: Option<u64>) -> Result<()> {
    let what = if roll.is_some() { "open-close with a roll policy" } else { "open-close" };
    let work = Work::create("open-close")?;
    let db = app::open(&work.app())?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x BLOB)")?;
    drop(db);
    app::wal_is_gone();
    let mut followed = Followed::start(&work)?;
    followed.caught_up(&app::open(&work.app())?)?;
    if let Some(frames) = roll {
        followed.roll_after(frames, 2)?;
    }
    let (before, frames, start) = (followed.disk()?.0, app::frames_written(), Instant::now());
    let mut most = 0;
    for number in 0..times {
        let db = app::open(&work.app())?;
        db.pragma_update(None, "synchronous", "OFF")?;
        db.execute("INSERT INTO t (x) VALUES (randomblob(60))", [])?;
        drop(db);
        if !wal_of(&work.app()) {
            app::wal_is_gone();
        }
        if number % 500 == 499 {
            let (log, bases, _) = followed.disk()?;
            most = most.max(log + bases);
        }
    }
    let written = (app::frames_written() - frames) * FRAME;
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {times} times in {seconds:.0} s");
    followed.caught_up(&app::open(&work.app())?)?;
    let Some(frames) = roll else {
        report(what, &mut followed, written, before)?;
        report_wire(what, followed, written, &work)?;
        return work.remove();
    };
    let (log, bases, generations) = followed.disk()?;
    let compared = followed.compared()?;
    let database = fs::metadata(work.app())?.len();
    // What the service may hold: of two generations the frames, with what is written until the next second's look, and their bases;
    // and once more a base that is made.
    let in_a_second = (written as f64 / seconds.max(1.0)) as u64;
    let allowed = 2 * (frames * FRAME + 3 * in_a_second) + 3 * database + (4 << 20);
    println!(
        "{what}: written {:.1} MB, on disk at most {:.1} MB, {:.1} MB in the end ({:.1} MB of it bases, {generations} generations); allowed {:.1} MB; pages compared {compared} times",
        written as f64 / 1e6,
        most as f64 / 1e6,
        (log + bases) as f64 / 1e6,
        bases as f64 / 1e6,
        allowed as f64 / 1e6
    );
    ensure!(most <= allowed, "{most} bytes on disk, and {allowed} are allowed");
    ensure!(generations <= 3, "{generations} generations");
    followed.end()?;
    work.remove()
}
