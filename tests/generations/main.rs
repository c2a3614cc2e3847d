//! Generations end and begin: whatever fails and whenever the power goes, the log is in the old one or the new one, whole,
//! and holds what was acknowledged.
#![allow(clippy::unwrap_used, reason = "tests")]

mod kill;
#[path = "../support/mod.rs"]
mod support;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use logmirror::api::{CheckpointPolicy, CreateLog};
use logmirror::checkpoint::fold;
use logmirror::format::{LogFormat, database, name};
use logmirror::mirror::{Error, Registry, Settings, State};
use logmirror::offset::{Generation, Offset};
use logmirror::repo::{Faults, Loss, MemRepo, Op, Repo};
use notify::event::{ModifyKind, RenameMode};
use notify::{EventKind, RecursiveMode, Watcher};
use serde_json::{Value, json};
use support::commitlog::{Draw, get, put, seed};
use support::frames::FrameLog;
use support::process;
use support::service::{Wire, request};
use support::sqlite::Sqlite;

const LOG: &str = "app";

/// Held by tests that start processes: one that is being started holds the locks of all others here for a moment.
static PROCESSES: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The history of a log over two generations: the frames of each, and the last frame of the first.
struct History {
    first: FrameLog,
    second: FrameLog,
}

fn with_base(base: Vec<u8>, salt: u32) -> FrameLog {
    let mut log = FrameLog::new(4096, false);
    log.header.salts = [salt, 7];
    log.chain = log.header.seed();
    FrameLog { base, ..log }
}

impl History {
    fn new() -> History {
        let first = with_base(database::empty(4096), 1)
            .commit(&[1, 2, 3], 3)
            .commit(&[2], 3)
            .commit(&[4, 5, 1, 6], 6)
            .commit(&[3, 3, 1], 5)
            .commit(&[6, 2, 1], 6);
        let second = with_base(first.state(14), 2).commit(&[1, 7, 8], 8).commit(&[2], 8).commit(&[9, 9, 1], 9);
        History { first, second }
    }

    fn of(&self, generation: Generation) -> &FrameLog {
        if generation == Generation::FIRST { &self.first } else { &self.second }
    }
}

/// What was acknowledged: the frames of each generation, and whether the second one began.
#[derive(Clone, Copy, Default)]
struct Acked {
    first: u64,
    second: u64,
    rolled: bool,
}

fn settings() -> Settings {
    // Segments of a few frames each.
    Settings { writer_threads: 1, wal_segment_bytes: 3 * 4120, ..Settings::default() }
}

fn open(disk: &(impl Repo + Clone + 'static)) -> std::io::Result<Registry> {
    Registry::open(Arc::new(disk.clone()), settings())
}

/// Sends header and frames of the log's generation up to frame `to`; what is there already is skipped.
fn send(registry: &Registry, history: &History, to: u64) -> Result<u64, Error> {
    let log = registry.get(LOG)?;
    let frames = history.of(log.generation());
    let stream = [&frames.header.encode()[..], &frames.frames[..to as usize].concat()].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut append = registry.append(&log, None).await?;
        append.push(stream.into()).await;
        append.finish().await.map(|outcome| outcome.durable.0 - 1).map_err(|(error, _)| error)
    })
}

/// A log that keeps nothing but its current generation, with some frames.
fn prepare(disk: &(impl Repo + Clone + 'static), history: &History) {
    let registry = open(disk).unwrap();
    let policy = CheckpointPolicy::Roll { frames: Some(1 << 40), bytes: None, seconds: None, keep: 1 };
    let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint: Some(policy), foreign_keys: None };
    registry.create(LOG, wanted).unwrap();
    assert_eq!(send(&registry, history, 8).unwrap(), 8);
    registry.stop();
}

fn prepared(history: &History) -> MemRepo {
    let disk = MemRepo::default();
    prepare(&disk, history);
    disk.after_power_loss(Loss::All)
}

fn directory(disk: &impl Repo) -> Arc<dyn Repo> {
    disk.dir("logs").unwrap().dir(LOG).unwrap()
}

/// Frames, roll-over with the deletion of the old generation, frames. True when all of it went well. `told` hears of what
/// was acknowledged.
fn scenario(disk: &(impl Repo + Clone + 'static), history: &History, mut told: impl FnMut(Acked)) -> bool {
    let Ok(registry) = open(disk) else { return false };
    let mut acked = Acked::default();
    let mut run = || -> Result<(), Error> {
        acked.first = send(&registry, history, 14)?;
        told(acked);
        acked.rolled = registry.checkpoint(LOG, false)?.done;
        told(acked);
        acked.second = send(&registry, history, 4)?;
        told(acked);
        Ok(())
    };
    let done = run().is_ok();
    registry.stop();
    done
}

/// What is found is whole and holds what was acknowledged; the log goes on to the end of its history.
fn recovers(found: &(impl Repo + Clone + 'static), history: &History, acked: Acked, what: &str) -> Generation {
    let registry = open(found).unwrap_or_else(|error| panic!("{what}: {error}"));
    let log = registry.get(LOG).unwrap();
    let (view, generation) = (log.view(), log.generation());
    assert_eq!(view.state, State::Ok, "{what}");
    assert!(generation <= Generation(2) && !(acked.rolled && generation == Generation::FIRST), "{what}: {generation}");
    let frames = view.durable.0 - 1;
    let wanted = if generation == Generation::FIRST { acked.first } else { acked.second };
    assert!(frames >= wanted, "{what}: {wanted} frames were acknowledged, {frames} are there");
    let out = MemRepo::default();
    fold(&**log.repo(), None, Arc::new(out.clone()), "out.db").unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(get(&out, "out.db") == history.of(generation).state(frames), "{what}: another database");
    drop(log);
    // And on.
    if generation == Generation::FIRST {
        assert_eq!(send(&registry, history, 14).unwrap_or_else(|error| panic!("{what}: {error}")), 14);
        let outcome = registry.checkpoint(LOG, false).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(outcome.done && outcome.frames == 14, "{what}");
    }
    assert_eq!(send(&registry, history, 7).unwrap_or_else(|error| panic!("{what}: {error}")), 7);
    assert!(registry.checkpoint(LOG, false).unwrap().done, "{what}");
    let log = registry.get(LOG).unwrap();
    assert!(get(&**log.repo(), name::BASE) == history.second.state(7), "{what}: another database at the end");
    drop(log);
    registry.stop();
    drop(registry);
    // A thread that was not done with a generation may have held it back; later nobody does.
    let registry = open(found).unwrap();
    registry.prune_generations(&registry.get(LOG).unwrap(), 1).unwrap();
    registry.stop();
    let mut left = directory(found).list().unwrap();
    left.sort();
    assert_eq!(left, ["0000000003", "log.json"], "{what}");
    generation
}

#[test]
fn power_loss_at_every_step_of_a_roll_over_leaves_one_generation_whole() {
    let (history, seed) = (History::new(), seed());
    let (start, mut draw) = (prepared(&history), Draw(seed));
    let (mut cases, mut old, mut step) = (0, 0, 0);
    loop {
        let disk = start.after_power_loss(Loss::Nothing);
        disk.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
        let mut acked = Acked::default();
        let done = scenario(&disk, &history, |now| acked = now) && disk.steps() <= step;
        let mut patterns = vec![Loss::All, Loss::Nothing];
        patterns.extend((0..2).map(|_| Loss::Prefix { seed: draw.below(u64::MAX) }));
        patterns.extend((0..3).map(|_| Loss::Torn { seed: draw.below(u64::MAX) }));
        for pattern in patterns {
            let what = format!("seed {seed}, power lost at step {step}, {pattern:?}");
            let generation = recovers(&disk.after_power_loss(pattern), &history, acked, &what);
            (cases, old) = (cases + 1, old + u32::from(generation == Generation::FIRST));
        }
        if done {
            break;
        }
        step += 1;
        assert!(step < 2000, "it must end");
    }
    println!("{step} steps, {cases} power losses (step, pattern), {old} found in the old generation; seed {seed}");
    assert!(cases > 300 && old > 50 && cases - old > 50, "{cases} cases, {old} old");
}

#[test]
fn any_one_call_that_fails_in_a_roll_over_loses_nothing_that_was_acknowledged() {
    let history = History::new();
    let start = prepared(&history);
    let (mut cases, mut failed, mut poisoned) = (0, 0, Vec::new());
    for op in [Op::Create, Op::Write, Op::Truncate, Op::Sync, Op::Rename, Op::Remove, Op::SyncDir, Op::Map, Op::Store] {
        for nth in 0.. {
            let disk = start.after_power_loss(Loss::Nothing);
            let registry = open(&disk).unwrap();
            let mut acked = Acked { first: send(&registry, &history, 11).unwrap(), ..Acked::default() };
            disk.set_faults(Faults { fail_nth: Some((op, nth)), ..Faults::default() });
            let before = disk.steps();
            let rolled = registry.checkpoint(LOG, false);
            // Whether the call was among those of the roll-over shows in how a plain run differs: it went well with all.
            acked.rolled = rolled.is_ok();
            let reached = rolled.is_err();
            disk.set_faults(Faults::default());
            let what = format!("{op:?} {nth}: {rolled:?} after {before} steps");
            let log = registry.get(LOG).unwrap();
            let second =
                History { second: with_base(history.first.state(11), 2).commit(&[1, 7, 6], 7), ..History::new() };
            match log.view().state {
                State::Ok => {
                    let (sent, to) = if acked.rolled { (&second, 3) } else { (&history, 14) };
                    let acked_now = send(&registry, sent, to).unwrap_or_else(|error| panic!("{what}: {error}"));
                    if acked.rolled { acked.second = acked_now } else { acked.first = acked_now }
                }
                State::Failed(_) => {
                    assert!(send(&registry, if acked.rolled { &second } else { &history }, 3).is_err(), "{what}");
                    poisoned.push(format!("{op:?} {nth} in generation {}", log.generation()));
                }
                other => panic!("{what}: {other:?}"),
            }
            drop(log);
            registry.stop();
            for pattern in [Loss::All, Loss::Nothing] {
                let found = open(&disk.after_power_loss(pattern)).unwrap();
                let log = found.get(LOG).unwrap();
                let frames = log.view().durable.0 - 1;
                assert_eq!(log.view().state, State::Ok, "{what}, {pattern:?}");
                assert!(!acked.rolled || log.generation() == Generation(2), "{what}, {pattern:?}");
                let wanted = if log.generation() == Generation::FIRST { acked.first } else { acked.second };
                let lost = log.generation() > Generation::FIRST && acked.first > 11;
                assert!(frames >= wanted && !lost, "{what}, {pattern:?}: {frames} frames, {wanted} were acknowledged");
                let out = MemRepo::default();
                fold(&**log.repo(), None, Arc::new(out.clone()), "out.db").unwrap();
                let state = if log.generation() == Generation::FIRST { &history.first } else { &second.second };
                assert!(get(&out, "out.db") == state.state(frames), "{what}, {pattern:?}");
                drop(log);
                found.stop();
                cases += 1;
            }
            failed += u32::from(reached);
            if nth > 40 || (!reached && nth > 25) {
                break;
            }
        }
    }
    println!("{failed} calls failed a roll-over, {cases} disks looked at, poisoned by {poisoned:?}");
    assert!(failed > 10, "{failed}");
    // The sync of the directory after log.json was replaced: which generation a restart finds is not known. In the new
    // one it is poisoned where it could not be opened.
    assert_eq!(poisoned.iter().filter(|call| call.ends_with("generation 1")).count(), 1, "{poisoned:?}");
}

#[test]
fn after_a_sync_that_failed_as_the_process_ended_the_next_one_acknowledges_only_what_survives() {
    let history = History::new();
    let start = prepared(&history);
    let mut cases = 0;
    for op in [Op::Sync, Op::SyncDir] {
        for nth in 0.. {
            let disk = start.after_power_loss(Loss::Nothing);
            disk.set_faults(Faults { fail_nth: Some((op, nth)), process_ends: true, ..Faults::default() });
            let mut acked = Acked::default();
            scenario(&disk, &history, |now| acked = now);
            if disk.calls() <= nth {
                break;
            }
            disk.set_faults(Faults::default());
            let (disk, what) = (disk.fork(), format!("{op:?} {nth} failed"));
            let registry = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            acked.rolled = registry.get(LOG).unwrap().generation() > Generation::FIRST;
            let sent = send(&registry, &history, if acked.rolled { 4 } else { 14 });
            let sent = sent.unwrap_or_else(|error| panic!("{what}: {error}"));
            if acked.rolled {
                acked.second = sent
            } else {
                acked.first = sent
            }
            registry.stop();
            recovers(&disk.after_power_loss(Loss::All), &history, acked, &what);
            cases += 1;
        }
    }
    println!("{cases} failed syncs, each with the end of the process, a restart and a power loss");
    assert!(cases > 20, "{cases}");
}

#[test]
fn what_is_staged_of_a_log_stays_when_its_description_is_read_again() {
    let history = History::new();
    let start = prepared(&history);
    let mut found = 0;
    for nth in 0..40 {
        let disk = start.after_power_loss(Loss::Nothing);
        let registry = open(&disk).unwrap();
        send(&registry, &history, 11).unwrap();
        let log = registry.get(LOG).unwrap();
        let staged = registry.stage(&log).unwrap();
        put(&**staged.dir(), "upload", b"half");
        disk.set_faults(Faults { fail_nth: Some((Op::SyncDir, nth)), ..Faults::default() });
        let rolled = registry.checkpoint(LOG, false);
        disk.set_faults(Faults::default());
        let failed = matches!(registry.get(LOG).unwrap().view().state, State::Failed(_));
        if rolled.is_err() && failed && registry.get(LOG).unwrap().generation() == Generation::FIRST {
            found += 1;
            registry.load_again();
            assert_eq!(registry.get(LOG).unwrap().view().state, State::Ok, "{nth}");
            assert!(get(&**staged.dir(), "upload") == b"half", "{nth}");
            let drafts = directory(&disk).list().unwrap().into_iter().filter(|name| name.ends_with(".draft"));
            assert_eq!(drafts.count(), 1, "{nth}");
        }
        drop(staged);
        registry.stop();
    }
    assert_eq!(found, 1, "one sync leaves it open which generation there is");
}

#[test]
fn left_over_directories_are_removed_and_one_with_frames_is_not() {
    let history = History::new();
    let disk = prepared(&history);
    let left = directory(&disk).create_dir("0000000002").unwrap();
    put(&*left, "base.db", b"old");
    let further = directory(&disk).create_dir("0000000007").unwrap();
    put(&*further, "base.db", b"older");
    let draft = directory(&disk).create_dir("0000000002.x.draft").unwrap();
    put(&*draft, "base.db.tmp", b"half");
    let registry = open(&disk).unwrap();
    let mut names = directory(&disk).list().unwrap();
    names.sort();
    assert_eq!(names, ["0000000001", "log.json"], "removed at the start");
    // While the service runs.
    let left = directory(&disk).create_dir("0000000002").unwrap();
    put(&*left, "base.db", b"old");
    assert!(matches!(registry.generation(LOG, Some(Generation(2))), Err(Error::NotFound(_))), "it never began");
    assert_eq!(send(&registry, &history, 14).unwrap(), 14);
    assert!(registry.checkpoint(LOG, false).unwrap().done);
    let log = registry.get(LOG).unwrap();
    assert!(get(&**log.repo(), name::BASE) == history.first.state(14));
    assert_eq!(send(&registry, &history, 7).unwrap(), 7);
    // Nobody's frames are deleted, and the log goes on.
    let foreign = directory(&disk).create_dir("0000000003").unwrap();
    put(&*foreign, "00000000000000000001.wal", b"frames");
    let error = registry.checkpoint(LOG, false).unwrap_err();
    assert!(error.to_string().contains("holds frames"), "{error}");
    assert_eq!(log.view().state, State::Ok);
    assert_eq!(get(&*foreign, "00000000000000000001.wal"), b"frames");
    registry.stop();
}

#[test]
fn a_full_disk_or_a_damaged_base_leaves_the_log_open_and_writable() {
    let history = History::new();
    let disk = prepared(&history);
    let registry = open(&disk).unwrap();
    let log = registry.get(LOG).unwrap();
    for bytes_max in [0, 60_000] {
        disk.set_faults(Faults { bytes_max: Some(bytes_max), ..Faults::default() });
        let error = registry.checkpoint(LOG, false).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert_eq!(log.view().state, State::Ok);
        disk.set_faults(Faults::default());
    }
    assert_eq!(send(&registry, &history, 11).unwrap(), 11);
    let base = get(&**log.repo(), name::BASE);
    log.repo().open_write(name::BASE).unwrap().truncate(100).unwrap();
    let error = registry.checkpoint(LOG, false).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error}");
    assert_eq!(send(&registry, &history, 14).unwrap(), 14, "it goes on");
    put(&**log.repo(), name::BASE, &base);
    let mut names = directory(&disk).list().unwrap();
    names.sort();
    assert_eq!(names, ["0000000001", "log.json"], "no draft is left");
    assert_eq!(registry.checkpoint(LOG, false).unwrap().frames, 14);
    registry.stop();
}

#[test]
fn what_is_being_read_is_not_deleted_until_nobody_does() {
    let history = History::new();
    let disk = prepared(&history);
    let registry = open(&disk).unwrap();
    send(&registry, &history, 14).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let old = registry.get(LOG).unwrap();
    // A feed, a base and a libSQL pull hold it, each alone.
    let mut feed = runtime.block_on(registry.feed(&old, (Offset(1), None), false)).unwrap();
    let mut base = registry.base(&old).unwrap();
    let mut frames = registry.frames(&old, &(Offset(1)..Offset(15))).unwrap();
    drop(old);
    assert!(registry.checkpoint(LOG, false).unwrap().done);
    let there = |disk: &MemRepo| directory(disk).list().unwrap().contains(&"0000000001".to_owned());
    let current = registry.get(LOG).unwrap();
    assert!(there(&disk), "read by three");
    let drained = runtime.block_on(async {
        let mut bytes = 0;
        while let Some(piece) = feed.next().await.unwrap() {
            bytes += piece.len();
        }
        bytes
    });
    assert!(drained > 14 * 4120);
    drop(feed);
    registry.prune_generations(&current, 1).unwrap();
    assert!(there(&disk), "read by two");
    assert!(runtime.block_on(base.next()).unwrap().is_some());
    drop(base);
    registry.prune_generations(&current, 1).unwrap();
    assert!(there(&disk), "read by one");
    assert!(runtime.block_on(frames.next()).unwrap().is_some());
    drop(frames);
    registry.prune_generations(&current, 1).unwrap();
    assert!(!there(&disk));
    let gone = registry.generation(LOG, Some(Generation(1))).unwrap_err();
    assert!(matches!(gone, Error::GenerationGone { generation: Generation(1), current: Generation(2) }), "{gone}");
    registry.stop();
}

#[test]
fn an_unused_generation_gets_another_base_unless_it_was_put_to_use_meanwhile() {
    let history = History::new();
    let disk = MemRepo::default();
    let registry = open(&disk).unwrap();
    registry
        .create(LOG, CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None })
        .unwrap();
    let log = registry.get(LOG).unwrap();
    let draft = |log| {
        let draft = registry.draft_generation(log, Some(Generation(1))).unwrap();
        put(&**draft.dir(), name::BASE, &history.first.state(14));
        draft
    };
    let (used, late) = (draft(&log), draft(&log));
    let log = registry.start_generation(&log, &used, |_, _| Ok(None)).unwrap();
    assert_eq!(log.generation(), Generation(1));
    assert!(get(&**log.repo(), name::BASE) == history.first.state(14));
    let third = draft(&log);
    send(&registry, &history, 3).unwrap();
    for draft in [late, third] {
        let refused = registry.start_generation(&log, &draft, |_, _| Ok(None)).unwrap_err();
        assert!(matches!(refused, Error::Ended { .. }), "{refused}");
    }
    assert_eq!(log.view().state, State::Ok);
    assert_eq!(send(&registry, &history, 4).unwrap(), 4, "it goes on");
    registry.stop();
}

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    let _alone = PROCESSES.lock();
    support::sqlite::process();
}

/// Writes rows in transactions into a database, whose WAL is checkpointed before if `fold` says so, and dies with it open.
/// Returns the WAL.
fn write(database: &Path, fold: bool, round: u32) -> Vec<u8> {
    let mut sqlite = Sqlite::open(database);
    sqlite.run(&["PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0"]);
    if fold {
        assert_eq!(sqlite.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0], 0);
    }
    sqlite.run(&[
        "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, round, x)",
        "CREATE INDEX IF NOT EXISTS tx ON t(x)",
    ]);
    for n in 0..8 {
        let insert = format!("INSERT INTO t (round, x) VALUES ({round}, hex(randomblob(150)));").repeat(20);
        sqlite.rows(&format!("BEGIN; {insert} UPDATE t SET round = round + 1 WHERE id % 7 = {}; COMMIT", n % 7));
    }
    let wal = std::fs::read(database.with_extension("db-wal")).unwrap();
    sqlite.kill();
    wal
}

/// What is in it, if it is sound. Not closed, which would make an end of its WAL.
fn look(database: &Path) -> Value {
    let mut sqlite = Sqlite::open(database);
    assert_eq!(sqlite.rows("PRAGMA integrity_check"), json!([["ok"]]));
    let found = sqlite.rows("SELECT count(*), sum(id * round), sum(length(x)), max(x), min(x) FROM t");
    sqlite.kill();
    found
}

#[test]
fn a_service_that_is_killed_in_a_roll_over_has_all_of_the_database() {
    let _alone = PROCESSES.lock();
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    println!("SEED {seed}");
    let mut draw = Draw(seed);
    let data = dir.path().join("data");
    let mut service = process::Service::start(&data);
    let url = service.url(LOG);
    let call = |address: &str, method: &str, path: &str, body: &[u8]| {
        let mut wire = Wire::connect(address.parse().unwrap());
        wire.send(request(method, path, &format!("content-length: {}\r\n", body.len())).as_bytes());
        wire.send(body);
        wire.answer()
    };
    let address = service.address().to_owned();
    let create = br#"{"format":"wal","checkpoint":{"policy":"roll","frames":1000000,"keep":1}}"#;
    assert_eq!(call(&address, "PUT", "/logs/app", create).status, 201);
    let (database, mut generation, mut fold, mut rolled) = (dir.path().join("app.db"), 1, false, 0);
    let (mut in_the_middle, rounds) = (0, 16);
    for round in 0..rounds {
        let wal = write(&database, fold, round);
        let pushed = call(&address, "POST", "/logs/app/commits", &wal);
        assert_eq!(pushed.status, 200, "round {round}, seed {seed}: {}", pushed.text());
        let frames = (wal.len() as u64 - 32) / 4120;
        assert_eq!(pushed.json()["durable"], frames + 1);

        let nth = draw.below(16);
        let (seen, events) = channel();
        let mut watcher = notify::recommended_watcher(move |event| drop(seen.send(event))).unwrap();
        watcher.watch(&data.join("logs"), RecursiveMode::Recursive).unwrap();
        let mut wire = Wire::connect(address.parse().unwrap());
        wire.send(request("POST", "/logs/app/checkpoint", "connection: close\r\ncontent-length: 0\r\n").as_bytes());
        let rolling = std::thread::spawn(move || {
            let mut answer = String::new();
            // The service may be gone in the middle of it.
            let _ = wire.stream.read_to_string(&mut answer);
            answer.contains(" 200 ") && answer.contains("\"done\":true")
        });
        // Names that come, change or go are the steps; the writes of the fold between them only say that it goes on.
        let mut left = nth;
        while left > 0 {
            match events.recv_timeout(Duration::from_millis(250)) {
                Ok(Ok(event)) => {
                    let named = EventKind::Modify(ModifyKind::Name(RenameMode::From));
                    let is_step =
                        matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_)) || event.kind == named;
                    left -= u64::from(is_step);
                }
                _ => break,
            }
        }
        service.kill();
        let answered = rolling.join().unwrap();
        service.restart();
        let status = call(&address, "GET", "/logs/app", b"").json();
        let now = status["generation"].as_u64().unwrap();
        assert!(now == generation || now == generation + 1, "round {round}, seed {seed}: generation {now}");
        assert!(!answered || now == generation + 1, "round {round}, seed {seed}: the roll-over was acknowledged");
        assert_eq!(status["durable"], if now == generation { frames + 1 } else { 1 }, "round {round}, seed {seed}");
        let out = dir.path().join(format!("restored-{round}.db"));
        let restore = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror"))
            .args(["restore", &url, out.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));
        assert_eq!(look(&out), look(&database), "round {round}, seed {seed}");
        println!("round {round}: {frames} frames, killed at event {nth}, answered {answered}, generation {now}");
        in_the_middle += u32::from(!answered && now == generation + 1);
        rolled += u32::from(now > generation);
        (fold, generation) = (now > generation, now);
    }
    println!("{rounds} kills, {rolled} in the new generation, {in_the_middle} of them not answered; SEED {seed}");
    assert!(rolled > 0 && rolled < rounds);
}
