//! Random histories: whatever an application does with its database and whatever happens to the mirror and the service, each commit
//! of the log is a state that the database had, in the order in which it had them, and what was not seen is reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::random::Random;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::child::Application;
use crate::commits;
use crate::followed::{Followed, Work};
use crate::model::{Model, States};

/// Steps of one history.
const STEPS: u64 = 120;
/// Histories at once.
const AT_ONCE: u64 = 4;

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    compared: u64,
    commits: u64,
    generations: u64,
    crashes: u64,
    missing: u64,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.compared += other.compared;
        self.commits += other.commits;
        self.generations += other.generations;
        self.crashes += other.crashes;
        self.missing += other.missing;
    }
}

/// One history a seed.
pub fn run(seeds: u64, first: u64) -> Result<()> {
    let (next, all, start) = (AtomicU64::new(first), Mutex::new(Found::default()), Instant::now());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    match history(seed).with_context(|| format!("the history of seed {seed}")) {
                        Ok(found) => all.lock().unwrap_or_else(|all| all.into_inner()).add(found),
                        Err(error) => {
                            eprintln!("FAILED: {error:#}");
                            failed.lock().unwrap_or_else(|failed| failed.into_inner()).push(seed);
                        }
                    }
                }
            });
        }
    });
    let found = *all.lock().unwrap_or_else(|all| all.into_inner());
    let seconds = start.elapsed().as_secs();
    println!("{seeds} histories in {seconds} s: {found:?}");
    let failed = failed.into_inner().unwrap_or_default();
    ensure!(failed.is_empty(), "{} of {seeds} histories failed: {failed:?}", failed.len());
    Ok(())
}

/// A history under way.
struct History {
    random: Random,
    work: Work,
    app: Option<Application>,
    followed: Followed,
    states: States,
    now: Model,
    /// The states that the database had, in order, and those that it may have had.
    had: Vec<(i64, bool)>,
    backup: Option<i64>,
    /// Whether nothing happens but writes and checkpoints beside a mirror that runs: nothing may be missed.
    calm: bool,
    /// Times that something may have been missed.
    breaks: u64,
    compared: u64,
    crashes: u64,
    /// Whether it had a rollback journal at any time: comparing pages is reported once then.
    rollback: bool,
}

fn history(seed: u64) -> Result<Found> {
    let work = Work::create(&format!("history-{seed}"))?;
    let mut random = Random::new(seed, 7);
    let calm = random.one_in(4);
    let mut app = Application::open(&work.app(), "WAL")?;
    let (now, sql) = Model::create(random.within(1..1 << 40) as i64);
    let mut states = States::default();
    states.add(&now);
    app.must(&sql)?;
    let followed = Followed::start(&work)?;
    if random.one_in(2) {
        followed.roll_after(random.within(3..60), 100_000)?;
    }
    let had = vec![(now.number, true)];
    let mut history = History {
        random,
        work,
        app: Some(app),
        followed,
        states,
        now,
        had,
        backup: None,
        calm,
        breaks: 0,
        compared: 0,
        crashes: 0,
        rollback: false,
    };
    history.followed.started()?;
    if calm {
        history.followed.caught_up_with(&history.states, history.now.number)?;
        // From here on it holds the locks.
        history.write()?;
        history.followed.caught_up_with(&history.states, history.now.number)?;
        history.compared = history.followed.compared()?;
    }
    let before = history.compared;
    for _ in 0..STEPS {
        history.step()?;
    }
    history.end(before)
}

impl History {
    fn number(&mut self) -> i64 {
        self.random.within(1..1 << 40) as i64
    }

    fn app(&mut self) -> Result<&mut Application> {
        if self.app.is_none() {
            let rollback = !self.calm && self.random.one_in(6);
            self.rollback |= rollback;
            self.app = Some(Application::open(&self.work.app(), if rollback { "DELETE" } else { "WAL" })?);
            // Which state a crash left shows now.
            self.look()?;
        }
        self.app.as_mut().context("an application")
    }

    /// Finds out which state the database is in.
    fn look(&mut self) -> Result<()> {
        let Some(app) = &mut self.app else { return Ok(()) };
        let number: i64 = app.must("SELECT n FROM h")?.parse()?;
        if number != self.now.number {
            self.now = self.states.get(number).with_context(|| format!("the database has state {number}"))?.clone();
            self.had.push((number, true));
        }
        Ok(())
    }

    /// The next transaction.
    fn transaction(&mut self) -> (Model, String) {
        let (number, bytes) = (self.number(), self.random.within(16..9000));
        if self.random.one_in(5) { self.now.rewrite(number, bytes) } else { self.now.insert(number, bytes) }
    }

    fn write(&mut self) -> Result<()> {
        self.app()?;
        let (next, sql) = self.transaction();
        self.states.add(&next);
        let app = self.app()?;
        match app.run(&sql)? {
            Ok(_) => {
                self.had.push((next.number, true));
                self.now = next;
                Ok(())
            }
            // Somebody has it locked: it may be that only the end of the transaction did not go through.
            Err(_) => {
                let _ = app.run("ROLLBACK")?;
                self.look()
            }
        }
    }

    fn checkpoint(&mut self) -> String {
        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][self.random.within(0..4) as usize];
        format!("PRAGMA wal_checkpoint({mode})")
    }

    fn step(&mut self) -> Result<()> {
        let what = self.random.within(if self.calm { 0..17 } else { 0..34 });
        if what > 16 {
            self.breaks += 1;
        }
        match what {
            0..=11 => {
                self.write()?;
                std::thread::sleep(Duration::from_micros(self.random.within(0..3000)));
            }
            12..=14 => {
                let sql = self.checkpoint();
                let _ = self.app()?.run(&sql)?;
            }
            15 => {
                let _ = self.app()?.run("VACUUM")?;
            }
            16 => std::thread::sleep(Duration::from_millis(self.random.within(0..30))),
            17 | 18 => {
                if let Some(app) = self.app.take() {
                    app.close()?;
                }
            }
            19 => {
                let mode = ["DELETE", "WAL", "TRUNCATE"][self.random.within(0..3) as usize];
                self.rollback |= mode != "WAL";
                let _ = self.app()?.run(&format!("PRAGMA journal_mode = {mode}"))?;
            }
            20 | 21 => self.crash()?,
            22 => self.back_up()?,
            23 => self.restore()?,
            24 => self.replace()?,
            25 => self.change_page_size()?,
            26 | 27 => {
                self.compared += self.followed.compared()?;
                self.followed.mirror.kill()?;
                self.mirror_again()?;
            }
            28 => {
                // Away for a while.
                self.compared += self.followed.compared()?;
                self.followed.mirror.kill()?;
                for _ in 0..self.random.within(1..6) {
                    self.write()?;
                    let sql = self.checkpoint();
                    let _ = self.app()?.run(&sql)?;
                }
                self.mirror_again()?;
            }
            29 | 30 => {
                self.followed.mirror.signal(Signal::STOP)?;
                std::thread::sleep(Duration::from_millis(self.random.within(0..60)));
                self.followed.mirror.signal(Signal::CONT)?;
            }
            31 => {
                self.followed.service.signal(Signal::STOP)?;
                for _ in 0..self.random.within(1..8) {
                    self.write()?;
                }
                self.followed.service.signal(Signal::CONT)?;
            }
            32 => self.followed.restart_service(&self.work)?,
            _ => std::thread::sleep(Duration::from_millis(self.random.within(0..80))),
        }
        Ok(())
    }

    /// The application is killed in the middle of something.
    fn crash(&mut self) -> Result<()> {
        self.app()?;
        let what = self.random.within(0..6);
        let sql = match what {
            0 => self.checkpoint(),
            1 => "VACUUM".to_owned(),
            _ => {
                let (number, bytes) = (self.number(), self.random.within(16..9000));
                let (next, sql) =
                    if what < 4 { self.now.rewrite(number, bytes) } else { self.now.insert(number, bytes) };
                self.states.add(&next);
                self.had.push((next.number, false));
                // In the middle of it, or about to end.
                if what == 2 { sql.replace("; COMMIT", "; SELECT 1") } else { sql }
            }
        };
        let mut app = self.app.take().context("an application")?;
        app.begin(&sql)?;
        std::thread::sleep(Duration::from_micros(self.random.within(0..4000)));
        app.kill()?;
        self.crashes += 1;
        if self.random.one_in(2) {
            std::thread::sleep(Duration::from_millis(self.random.within(0..40)));
        }
        Ok(())
    }

    fn back_up(&mut self) -> Result<()> {
        let backup = self.work.0.join("backup.db");
        let _ = fs::remove_file(&backup);
        let number = self.now.number;
        let made = self.app()?.run(&format!("VACUUM INTO '{}'", backup.display()))?;
        // After a crash the state may be another one.
        self.backup = made.is_ok().then_some(if self.now.number == number { number } else { self.now.number });
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        if let Some(number) = self.backup.take() {
            let backup = self.work.0.join("backup.db");
            self.put(&backup, number)?;
        }
        Ok(())
    }

    /// Another database in its place.
    fn replace(&mut self) -> Result<()> {
        let other = self.work.0.join("other.db");
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(beside(&other, suffix));
        }
        let (mut model, sql) = Model::create(self.number());
        let mut app = Application::open(&other, "DELETE")?;
        app.must(&sql)?;
        for _ in 0..self.random.within(0..4) {
            let (number, bytes) = (self.number(), self.random.within(16..9000));
            let (next, sql) = model.insert(number, bytes);
            app.must(&sql)?;
            model = next;
        }
        app.close()?;
        self.states.add(&model);
        self.put(&other, model.number)
    }

    /// Puts a file in the place of the database, which nobody has open then.
    fn put(&mut self, file: &Path, number: i64) -> Result<()> {
        if let Some(app) = self.app.take() {
            app.close()?;
        }
        // The file first: without its WAL it would be a database of before.
        fs::remove_file(self.work.app())?;
        for suffix in ["-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(beside(&self.work.app(), suffix));
        }
        fs::rename(file, self.work.app())?;
        self.now = self.states.get(number).context("a state")?.clone();
        self.had.push((number, true));
        self.rollback = true;
        Ok(())
    }

    /// Pages of another size, which no other connection may see being made: the mirror is away.
    fn change_page_size(&mut self) -> Result<()> {
        self.compared += self.followed.compared()?;
        self.followed.mirror.kill()?;
        let bytes = [1024, 4096, 8192][self.random.within(0..3) as usize];
        let app = self.app()?;
        for sql in [
            "PRAGMA journal_mode = DELETE",
            &format!("PRAGMA page_size = {bytes}"),
            "VACUUM",
            "PRAGMA journal_mode = WAL",
        ] {
            let _ = app.run(sql)?;
        }
        self.mirror_again()
    }

    fn mirror_again(&mut self) -> Result<()> {
        // What a crash left is waited for until it is opened.
        self.app()?;
        self.followed.start_mirror(&self.work)?;
        // In most cases it is to see what comes.
        if self.random.one_in(5) { Ok(()) } else { self.followed.started() }
    }

    fn end(mut self, before: u64) -> Result<Found> {
        self.app()?;
        self.look()?;
        self.followed.caught_up_with(&self.states, self.now.number)?;
        self.compared += self.followed.compared()?;
        let History {
            mut random, work, app, mut followed, states, had, calm, breaks, compared, crashes, rollback, ..
        } = self;
        ensure!(!calm || compared == before, "pages were compared {compared} times, and nothing was missed");
        ensure!(
            compared <= 2 * breaks + 1,
            "pages were compared {compared} times, and {breaks} times something may have been missed"
        );
        // The command agrees with what is computed here.
        for _ in 0..2 {
            let next = followed.status()?["durable"].as_u64().context("durable")?;
            if let Some(path) = followed.restored(random.within(1..next.max(2)))? {
                states.find(&Connection::open(&path)?)?;
            }
        }
        followed.mirror.signal(Signal::INT)?;
        ensure!(followed.mirror.ended(Duration::from_secs(60))?.success(), "{}", followed.mirror.errors());
        followed.service.kill()?;
        let unsure = unsure(&work)?;
        let mut found = Found { compared, crashes, ..Found::default() };
        // Where in what it had the log is.
        let (mut at, mut last) = (0, None);
        for (generation, dir) in commits::generations(&work.0.join("data/logs/app"))? {
            found.generations += 1;
            commits::each(&dir, |frame, db| {
                if unsure.iter().any(|(of, until)| *of == generation && frame < *until) {
                    return Ok(());
                }
                let place = || format!("frame {frame} of generation {generation}");
                found.commits += 1;
                let Some(number) = states.find(db).with_context(place)? else { return Ok(()) };
                if last == Some(number) {
                    return Ok(());
                }
                let ahead = had[at..].iter().position(|(had, _)| *had == number);
                let ahead = ahead.with_context(|| {
                    let known = had.iter().position(|(had, _)| *had == number);
                    let around = &had[known.map_or(0, |known| known.saturating_sub(2)).min(at)..had.len().min(at + 4)];
                    format!(
                        "{}: state {number} ({known:?}) is there again after {last:?} ({at}) of {around:?}",
                        place()
                    )
                })?;
                // The first is where the mirror started.
                let passed = had[at..at + ahead].iter().filter(|(_, sure)| *sure).count() as u64;
                found.missing += if last.is_some() { passed } else { 0 };
                (at, last) = (at + ahead + 1, Some(number));
                Ok(())
            })?;
        }
        ensure!(!calm || found.missing == 0, "{} states are missing", found.missing);
        ensure!(
            found.missing == 0 || compared > 0 || rollback || found.generations > 1,
            "{} states are missing, and nothing was reported",
            found.missing
        );
        if let Some(app) = app {
            app.close()?;
        }
        work.remove()?;
        Ok(found)
    }
}

/// Up to which frames the commits of a generation are not sure to be states, as the mirror said: they were in its base already.
fn unsure(work: &Work) -> Result<Vec<(u64, u64)>> {
    let said = fs::read_to_string(work.0.join("mirror.err"))?;
    let (mut generation, mut unsure) = (0, Vec::new());
    let number =
        |line: &str, after: &str| -> Option<u64> { line.split(after).nth(1)?.split_whitespace().next()?.parse().ok() };
    for line in said.lines() {
        if let Some(started) = number(line, " starts generation ") {
            generation = started;
        }
        if let Some(frame) = number(line, ": frames up to ") {
            unsure.push((generation, frame));
        }
    }
    Ok(unsure)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}
