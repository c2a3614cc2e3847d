//! A log that SpacetimeDB 2.14.0 writes is followed into a directory and into a service. Needs the logmirror program:
//! `LOGMIRROR_BIN`, or a build of the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::commitlog::{End, end, ensure_holds, expected, segments};
use logmirror_e2e_support::http;
use logmirror_e2e_support::process::{Process, Program, free_address};
use logmirror_e2e_support::wait_for;
use logmirror_spacetimedb_tests::{Setup, Writer, commits, continue_log, plain_copy};
use rustix::process::Signal;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
/// Longer than any retry that a follower should need, so that one that gives up has done so.
const REST: Duration = Duration::from_millis(1500);
const SMALL: Setup = Setup { segment_bytes: 64 << 10, preallocate: false };
/// All in one segment.
const LARGE: Setup = Setup { segment_bytes: 1 << 30, preallocate: false };
/// What SpacetimeDB buffers before it writes.
const BUFFER_BYTES: u64 = 128 << 10;

/// A log that is written and followed.
struct Followed {
    program: Program,
    writer: Writer,
    clog: PathBuf,
    copy: PathBuf,
    served: PathBuf,
    address: String,
    service: Process,
    followers: Vec<Process>,
    dir: TempDir,
}

impl Followed {
    fn start(setup: Setup) -> Result<Followed> {
        let program = Program::find()?;
        let dir = tempfile::tempdir()?;
        let make = |name: &str| -> Result<PathBuf> {
            let path = dir.path().join(name);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let (clog, copy) = (make("replicas/1")?.join("clog"), make("copy")?.join("clog"));
        fs::create_dir(&clog)?;
        let (data, logs) = (make("data")?, make("output")?);
        let writer = Writer::start(env!("CARGO_BIN_EXE_spacetimedb-writer"), &clog, setup)?;
        let address = free_address()?;
        let serve = ["serve", "--data", text(&data)?, "--listen", &address];
        let mut service = program.start(&serve, &logs, "service")?;
        service.listening(LIMIT)?;
        let served = data.join("logs/app/0000000001");
        let mut followed =
            Followed { program, writer, clog, copy, served, address, service, followers: Vec::new(), dir };
        followed.followers.push(followed.mirror("directory", text(&followed.copy)?, true)?);
        let url = followed.url();
        followed.followers.push(followed.mirror("push", &url, true)?);
        Ok(followed)
    }

    fn url(&self) -> String {
        format!("http://{}/logs/app", self.address)
    }

    /// Starts a mirror of the log, and returns at once.
    fn mirror(&self, label: &str, sink: &str, follow: bool) -> Result<Process> {
        let mut arguments = vec!["mirror", text(&self.clog)?, sink, "--json"];
        arguments.extend(follow.then_some("--follow"));
        self.program.start(&arguments, &self.dir.path().join("output"), label)
    }

    /// Waits until both copies end at `next`.
    fn wait_durable(&mut self, next: u64) -> Result<()> {
        for (copy, follower) in [(&self.copy, 0), (&self.served, 1)] {
            let ended = wait_for(&format!("{} to end at {next}", copy.display()), LIMIT, || {
                if let Some(status) = self.followers[follower].exited()? {
                    anyhow::bail!("the follower ended unexpectedly with {status}");
                }
                Ok((end(copy)?.next >= next).then_some(()))
            });
            ended.with_context(|| self.followers[follower].errors())?;
        }
        let durable = || -> Result<Option<()>> {
            let status = http::get(&self.address, "/logs/app", LIMIT)?;
            Ok((status["durable"].as_u64() >= Some(next)).then_some(()))
        };
        wait_for(&format!("the service to say that {next} is durable"), LIMIT, durable)
    }

    fn ensure_followers_run(&mut self) -> Result<()> {
        for follower in &mut self.followers {
            let exited = follower.exited()?;
            ensure!(exited.is_none(), "a follower ended unexpectedly with {exited:?}: {}", follower.errors());
        }
        Ok(())
    }

    /// Has everything end, and compares: the bytes, and what SpacetimeDB reads, and goes on writing, in each copy.
    fn compare(mut self) -> Result<()> {
        self.writer.call("sync")?;
        let next = self.writer.call("next")?;
        self.wait_durable(next)?;
        for follower in &mut self.followers {
            follower.signal(Signal::TERM)?;
            let status = follower.ended(LIMIT)?;
            ensure!(status.success(), "a follower ended with {status}: {}", follower.errors());
        }
        self.service.signal(Signal::TERM)?;
        self.service.ended(LIMIT)?;
        self.writer.exit()?;
        let plain = self.dir.path().join("plain");
        plain_copy(&self.clog, &plain)?;
        let (expected, commits_written) = (expected(&plain)?, commits(&self.clog)?);
        ensure!(commits_written.last().map(|last| last.tx_range().end) == Some(next));
        for copy in [&self.copy, &self.served] {
            ensure_holds(&expected, copy)?;
            ensure!(commits(copy)? == commits_written, "SpacetimeDB reads other commits in {}", copy.display());
            continue_log(copy)?;
        }
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// Appends until the last segment is one that holds only its header; returns that segment.
fn rotate(followed: &mut Followed) -> Result<PathBuf> {
    let before = segments(&followed.clog)?.len();
    while segments(&followed.clog)?.len() == before {
        followed.writer.call("append 1")?;
    }
    Ok(segments(&followed.clog)?.pop().context("a segment")?.1)
}

#[test]
fn a_restart_after_a_rotation_removes_the_empty_segment_and_followers_go_on() -> Result<()> {
    let mut followed = Followed::start(SMALL)?;
    for (round, cut) in [None, Some(0), None, Some(3)].into_iter().enumerate() {
        let head = rotate(&mut followed)?;
        let next = followed.writer.call("next")?;
        followed.wait_durable(next)?;
        followed.writer.kill()?;
        ensure!(fs::metadata(&head)?.len() == 10);
        if let Some(bytes) = cut {
            // The power failed before the header was on the disk.
            fs::OpenOptions::new().write(true).open(&head)?.set_len(bytes)?;
        }
        if round >= 2 {
            thread::sleep(REST);
            followed.ensure_followers_run()?;
        }
        ensure!(followed.writer.restart()? == next);
        ensure!(!head.exists(), "SpacetimeDB kept the empty segment");
        followed.writer.call("append 2")?;
        let next = followed.writer.call("flush")?;
        followed.wait_durable(next)?;
    }
    followed.compare()
}

#[test]
fn a_buffered_writer_leaves_half_commits_that_followers_wait_for() -> Result<()> {
    let mut followed = Followed::start(LARGE)?;
    let mut halves = 0;
    for round in 0..6 {
        // More than the buffer: it is written out when it is full, wherever that is in a commit.
        while end(&followed.clog)?.torn == 0 {
            followed.writer.call("append 40")?;
        }
        let at = end(&followed.clog)?;
        halves += u64::from(at.torn > 0);
        followed.wait_durable(at.next)?;
        thread::sleep(REST / 3);
        followed.ensure_followers_run()?;
        if round % 3 == 2 {
            // SpacetimeDB leaves the torn end where it is and goes on in another segment.
            followed.writer.kill()?;
            ensure!(followed.writer.restart()? == at.next);
            followed.writer.call("append 1")?;
        }
        let next = followed.writer.call("flush")?;
        followed.wait_durable(next)?;
    }
    ensure!(halves == 6);
    followed.compare()
}

#[test]
fn preallocated_segments_are_followed() -> Result<()> {
    let mut followed = Followed::start(Setup { segment_bytes: 4 * BUFFER_BYTES, preallocate: true })?;
    for _ in 0..4 {
        let next = followed.writer.call("append 100").and_then(|_| followed.writer.call("flush"))?;
        followed.wait_durable(next)?;
        rotate(&mut followed)?;
    }
    followed.writer.kill()?;
    followed.writer.restart()?;
    followed.writer.call("append 10")?;
    followed.compare()
}

#[test]
fn segments_compressed_in_place_while_they_are_followed_are_mirrored_as_plain_bytes() -> Result<()> {
    let mut followed = Followed::start(SMALL)?;
    // Compressed after the followers have read them, while they read them, and before.
    for round in 0..9 {
        if round % 3 == 1 {
            for follower in &mut followed.followers {
                follower.signal(Signal::STOP)?;
            }
        }
        let next = followed.writer.call("append 300").and_then(|_| followed.writer.call("flush"))?;
        if round % 3 == 0 {
            followed.wait_durable(next)?;
        }
        followed.writer.call("compress")?;
        for follower in &mut followed.followers {
            follower.signal(Signal::CONT)?;
        }
        let next = followed.writer.call("append 1").and_then(|_| followed.writer.call("flush"))?;
        followed.wait_durable(next)?;
    }
    let late = followed.dir.path().join("late");
    let status = followed.mirror("late", text(&late)?, false)?.ended(LIMIT)?;
    ensure!(status.success(), "a mirror of the compressed log ended with {status}");
    ensure!(commits(&late)? == commits(&followed.clog)?);
    followed.compare()
}

#[test]
fn a_log_that_was_reset_is_a_fork_that_stops_the_followers_and_changes_no_copy() -> Result<()> {
    for setup in [LARGE, SMALL] {
        let mut followed = Followed::start(setup)?;
        let next = followed.writer.call("append 200").and_then(|_| followed.writer.call("sync"))?;
        followed.wait_durable(next)?;
        let before: Vec<BTreeMap<u64, Vec<u8>>> =
            [&followed.copy, &followed.served].into_iter().map(|dir| expected(dir)).collect::<Result<_>>()?;

        // That the source ends earlier than the copy proves nothing yet.
        followed.writer.call(&format!("reset_to {}", next - 50))?;
        thread::sleep(REST);
        followed.ensure_followers_run()?;

        followed.writer.call("append 100")?;
        followed.writer.call("sync")?;
        for mut follower in std::mem::take(&mut followed.followers) {
            let status = follower.ended(LIMIT)?;
            let errors = follower.errors();
            ensure!(status.code() == Some(1), "ended with {status}: {errors}");
            ensure!(errors.contains("fork"), "no word of a fork: {errors}");
        }
        for (copy, before) in [&followed.copy, &followed.served].into_iter().zip(&before) {
            ensure_holds(before, copy)?;
        }
        // The same command says the same again.
        let status = followed.mirror("again", text(&followed.copy)?, false)?.ended(LIMIT)?;
        ensure!(status.code() == Some(1), "a mirror onto the fork ended with {status}");
        ensure_holds(&before[0], &followed.copy)?;
    }
    Ok(())
}

#[test]
fn one_shot_mirrors_of_a_log_that_is_being_written_end_well_in_8_of_8_runs() -> Result<()> {
    let mut followed = Followed::start(LARGE)?;
    followed.writer.call("append 500")?;
    let mut failed = Vec::new();
    for run in 0..8 {
        // Under load, or quiet with a half commit at the end until the next write.
        let quiet = run % 2 == 1;
        if quiet {
            while end(&followed.clog)?.torn == 0 {
                followed.writer.call("append 40")?;
            }
        } else {
            followed.writer.send("load 3000")?;
        }
        let copy = followed.dir.path().join(format!("copy-{run}"));
        let at_least = end(&followed.clog)?.next;
        let start = Instant::now();
        let mut mirror = followed.mirror(&format!("one-shot-{run}"), text(&copy)?, false)?;
        let status = mirror.ended(LIMIT)?;
        let End { next, torn } = end(&copy)?;
        if !status.success() || next < at_least || torn > 0 {
            let took = start.elapsed();
            failed.push(format!(
                "run {run}, quiet {quiet}: {status} after {took:?}, from {at_least} to {next}, torn {torn}: {}",
                mirror.errors()
            ));
        }
        if !quiet {
            followed.writer.answer()?;
        }
        let written = commits(&copy)?;
        ensure!(commits_from_start(&followed.clog, written.len())? == written);
    }
    ensure!(failed.is_empty(), "{} of 8 runs failed:\n{}", failed.len(), failed.join("\n"));
    followed.compare()
}

/// The first `count` commits of a log whose end may be torn.
fn commits_from_start(dir: &Path, count: usize) -> Result<Vec<spacetimedb_commitlog::StoredCommit>> {
    use spacetimedb_paths::FromPathUnchecked as _;
    let path = spacetimedb_paths::server::CommitLogDir::from_path_unchecked(dir);
    Ok(spacetimedb_commitlog::commits(path)?.take(count).collect::<Result<_, _>>()?)
}
