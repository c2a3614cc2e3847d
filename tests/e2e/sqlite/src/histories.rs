//! Random histories: whatever an application does with its database and whatever happens to the mirror, each commit of the log is
//! a state that the database had.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use logmirror_e2e_support::random::Random;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::app;
use crate::followed::{Followed, Work};

/// Steps of one history.
const STEPS: u64 = 120;
/// Commits of the log that are restored after it.
const RESTORED: u64 = 25;

/// The states that a database had, by a number that each transaction draws.
#[derive(Default)]
struct States(HashMap<i64, String>);

impl States {
    fn note(&mut self, db: &Connection) -> Result<()> {
        let (number, state) = state_of(db)?;
        self.0.insert(number, state);
        Ok(())
    }
}

/// The number of the last transaction, and everything else.
fn state_of(db: &Connection) -> Result<(i64, String)> {
    let number = db.query_row("SELECT n FROM h", [], |row| row.get(0))?;
    let text = |sql: &str| -> Result<String> {
        Ok(db.query_row(sql, [], |row| row.get::<_, Option<String>>(0))?.unwrap_or_default())
    };
    let rows = text("SELECT group_concat(id || ':' || length(x) || hex(substr(x, 1, 4))) FROM t")?;
    let twins = text("SELECT count(*) || ':' || coalesce(sum(id), 0) FROM twin")?;
    Ok((number, format!("{rows} {twins}")))
}

/// One history a seed.
pub fn run(seeds: u64, first: u64) -> Result<()> {
    let (mut compared, mut commits) = (0, 0);
    for seed in first..first + seeds {
        let (found, restored) = history(seed).with_context(|| format!("the history of seed {seed}"))?;
        (compared, commits) = (compared + found, commits + restored);
    }
    println!("{seeds} histories: {commits} commits restored, pages compared {compared} times");
    Ok(())
}

fn open(path: &Path, mode: &str) -> Result<Connection> {
    let db = app::plain(path)?;
    // Refused while somebody follows.
    let _ = db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get::<_, String>(0));
    db.pragma_update(None, "synchronous", "OFF")?;
    Ok(db)
}

fn history(seed: u64) -> Result<(u64, u64)> {
    let work = Work::create(&format!("history-{seed}"))?;
    let mut random = Random::new(seed, 7);
    let mut states = States::default();
    let mut db = Some(open(&work.app(), "WAL")?);
    if let Some(db) = &db {
        db.execute_batch(
            "CREATE TABLE h (n INTEGER); INSERT INTO h VALUES (0); CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB);
             CREATE TABLE twin (id INTEGER)",
        )?;
        states.note(db)?;
    }
    let backup = work.0.join("backup.db");
    let mut followed = Some(Followed::start(&work)?);
    let mut compared = 0;
    for _ in 0..STEPS {
        let Some(open_db) = &db else {
            db = Some(open(&work.app(), if random.one_in(6) { "DELETE" } else { "WAL" })?);
            continue;
        };
        match random.within(0..24) {
            0..=11 => {
                let bytes = random.within(0..9000);
                let number = random.within(1..1 << 40) as i64;
                open_db.execute_batch(&format!(
                    "BEGIN IMMEDIATE; UPDATE h SET n = {number}; INSERT INTO t (x) VALUES (randomblob({bytes}));
                     INSERT INTO twin SELECT max(id) FROM t;
                     DELETE FROM t WHERE id < (SELECT max(id) - 40 FROM t); DELETE FROM twin WHERE id NOT IN (SELECT id FROM t); COMMIT"
                ))?;
                states.note(open_db)?;
            }
            12..=14 => {
                let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.within(0..4) as usize];
                let _ = open_db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, i64>(0));
            }
            15 => open_db.execute_batch("VACUUM").unwrap_or_default(),
            16 | 17 => db = None,
            18 => {
                // Refused while somebody follows.
                let mode = ["DELETE", "WAL", "TRUNCATE"][random.within(0..3) as usize];
                let _ = open_db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get::<_, String>(0));
            }
            19 => {
                let _ = fs::remove_file(&backup);
                open_db.execute("VACUUM INTO ?", [backup.to_str().context("a path")?])?;
            }
            20 if backup.exists() => {
                // Restored from a backup, or another file in its place.
                db = None;
                for suffix in ["-wal", "-shm", "-journal"] {
                    let _ = fs::remove_file(work.app().with_extension(format!("db{suffix}")));
                }
                fs::rename(&backup, work.app())?;
            }
            21 => {
                if let Some(mut now) = followed.take() {
                    compared += now.compared()?;
                    now.mirror.kill()?;
                    followed = Some(now.again(&work)?);
                }
            }
            22 => {
                if let Some(now) = &mut followed {
                    now.mirror.signal(Signal::STOP)?;
                    std::thread::sleep(Duration::from_millis(random.within(0..60)));
                    now.mirror.signal(Signal::CONT)?;
                }
            }
            _ => std::thread::sleep(Duration::from_millis(random.within(0..80))),
        }
    }
    let db = match db {
        Some(db) => db,
        None => open(&work.app(), "WAL")?,
    };
    let mut followed = followed.context("a mirror")?;
    followed.caught_up(&db)?;
    compared += followed.compared()?;
    let restored = restore(&followed, &states, &mut random)?;
    followed.end()?;
    drop(db);
    work.remove()?;
    Ok((compared, restored))
}

/// Restores commits of the log, and finds each among the states.
fn restore(followed: &Followed, states: &States, random: &mut Random) -> Result<u64> {
    let status = followed.status()?;
    let next = status["durable"].as_u64().context("durable")?;
    let mut restored = 0;
    for _ in 0..RESTORED {
        let Some(path) = followed.restored(random.within(1..next.max(2)))? else {
            continue;
        };
        let db = Connection::open(&path)?;
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        ensure!(sound == "ok", "{sound}");
        // Before the tables were made there is nothing to compare.
        let Ok((number, state)) = state_of(&db) else {
            continue;
        };
        match states.0.get(&number) {
            Some(known) if *known == state => restored += 1,
            Some(known) => bail!("transaction {number} restores to {state}, and was {known}"),
            None if number == 0 => {}
            None => bail!("there was no transaction {number}"),
        }
    }
    Ok(restored)
}
