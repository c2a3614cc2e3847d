//! The writing process, seen from the tests.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// How to open the log.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The size from which on a segment is followed by another.
    pub segment_bytes: u64,
    /// Whether segments have their space reserved.
    pub preallocate: bool,
}

/// SpacetimeDB's writer in a process of its own; killed when dropped.
pub struct Writer {
    program: PathBuf,
    dir: PathBuf,
    setup: Setup,
    running: Option<Running>,
}

struct Running {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Writer {
    /// Opens or creates the log `dir` with `program`, the program of this package.
    pub fn start(program: &str, dir: &Path, setup: Setup) -> Result<Writer> {
        let mut writer = Writer { program: program.into(), dir: dir.to_owned(), setup, running: None };
        writer.restart()?;
        Ok(writer)
    }

    /// Opens the log again, after [`Writer::kill`] or [`Writer::exit`].
    pub fn restart(&mut self) -> Result<u64> {
        let mut child = Command::new(&self.program)
            .arg(&self.dir)
            .args([self.setup.segment_bytes.to_string(), self.setup.preallocate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("its input")?;
        let answers = BufReader::new(child.stdout.take().context("its output")?);
        self.running = Some(Running { child, commands, answers });
        self.call("next")
    }

    /// Has a command carried out, and returns the offset after the last commit that was made, written or not.
    pub fn call(&mut self, command: &str) -> Result<u64> {
        self.send(command)?;
        self.answer()
    }

    /// Sends a command without waiting for [`Writer::answer`].
    pub fn send(&mut self, command: &str) -> Result<()> {
        let running = self.running.as_mut().context("the writer runs")?;
        Ok(writeln!(running.commands, "{command}")?)
    }

    /// Waits for the answer to a command that was sent.
    pub fn answer(&mut self) -> Result<u64> {
        let running = self.running.as_mut().context("the writer runs")?;
        let mut line = String::new();
        running.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "SpacetimeDB's writer ended: {:?}", running.child.wait()?);
        Ok(line.trim().parse()?)
    }

    /// `kill -9`: what it has not flushed is gone.
    pub fn kill(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the writer runs")?;
        running.child.kill()?;
        running.child.wait()?;
        Ok(())
    }

    /// Has it flush, sync and end.
    pub fn exit(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the writer runs")?;
        writeln!(running.commands, "exit")?;
        let status = running.child.wait()?;
        ensure!(status.success(), "SpacetimeDB's writer ended with {status}");
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}
