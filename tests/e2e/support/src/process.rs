//! The logmirror program as child processes whose output goes to files, where it stays for the analysis of
//! a failure.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait_for;

/// How much of its error output an error message quotes.
const QUOTED: usize = 2000;

/// The logmirror program.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// Without the capabilities of root, so that permissions count.
    plain: bool,
}

impl Program {
    /// The program that `LOGMIRROR_BIN` names, or a build of the repository that this package lies in.
    pub fn find() -> Result<Program> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target");
        let path = match std::env::var_os("LOGMIRROR_BIN") {
            Some(path) => PathBuf::from(path),
            None => ["release", "debug"]
                .map(|profile| target.join(profile).join("logmirror"))
                .into_iter()
                .find(|path| path.is_file())
                .context("no logmirror program: build it with `cargo build --release`, or set LOGMIRROR_BIN")?,
        };
        ensure!(path.is_file(), "no logmirror program at {}", path.display());
        Ok(Program { path: path.canonicalize()?, plain: false })
    }

    /// The same, run without capabilities: root is then bound by permissions as its owner. Needs `setpriv`.
    pub fn without_capabilities(&self) -> Program {
        Program { plain: true, ..self.clone() }
    }

    /// A command that runs it. Settings in the environment are not passed on.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.plain {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(&self.path);
            command
        } else {
            Command::new(&self.path)
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LOGMIRROR_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts it; what it writes is appended to `LABEL.out` and `LABEL.err` in `logs`.
    pub fn start(&self, arguments: &[&str], logs: &Path, label: &str) -> Result<Process> {
        start(self.command(arguments), logs, label)
    }

    /// Runs it to its end, at most for `limit`.
    pub fn run(&self, arguments: &[&str], logs: &Path, label: &str, limit: Duration) -> Result<ExitStatus> {
        self.start(arguments, logs, label)?.ended(limit)
    }
}

/// Starts any command as [`Program::start`] does.
pub fn start(mut command: Command, logs: &Path, label: &str) -> Result<Process> {
    let open = |name: &Path| {
        OpenOptions::new().create(true).append(true).open(name).with_context(|| format!("open {}", name.display()))
    };
    let (out, err) = (logs.join(format!("{label}.out")), logs.join(format!("{label}.err")));
    let (out_file, err_file) = (open(&out)?, open(&err)?);
    let (read, errors_from) = (out_file.metadata()?.len(), err_file.metadata()?.len());
    let child = command.stdout(out_file).stderr(err_file).spawn();
    let child = child.with_context(|| format!("start {label}: {command:?}"))?;
    Ok(Process { child, label: label.to_owned(), out, err, read, errors_from, stopped: false })
}

/// A child process; killed when dropped.
pub struct Process {
    child: Child,
    label: String,
    out: PathBuf,
    err: PathBuf,
    /// How much of its output was returned by [`Process::lines`].
    read: u64,
    /// Where its own error output starts in the file.
    errors_from: u64,
    stopped: bool,
}

impl Process {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; none to a process that has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), signal)?;
            self.stopped = signal == Signal::STOP || (self.stopped && signal != Signal::CONT);
        }
        Ok(())
    }

    /// Whether it was stopped and not continued.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.label);
        let ended = wait_for(&what, limit, || self.exited());
        ended.with_context(|| self.errors())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// The whole lines that it printed since the last call.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let mut file = File::open(&self.out)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect())
    }

    /// The same for a command that prints JSON lines.
    pub fn json_lines(&mut self) -> Result<Vec<Value>> {
        let label = self.label.clone();
        let parse = |line: String| serde_json::from_str(&line).with_context(|| format!("{label} printed {line:?}"));
        self.lines()?.into_iter().map(parse).collect()
    }

    /// The end of its error output, for messages.
    pub fn errors(&self) -> String {
        let text = std::fs::read(&self.err).unwrap_or_default();
        let from = text.len().saturating_sub(QUOTED).max(self.errors_from as usize).min(text.len());
        format!("{} printed: {}", self.label, String::from_utf8_lossy(&text[from..]).trim_end())
    }

    /// Waits until the service that this is listens.
    pub fn listening(&mut self, limit: Duration) -> Result<()> {
        let what = format!("{} to listen", self.label);
        let ready = wait_for(&what, limit, || {
            if self.lines()?.iter().any(|line| line.contains("listening on http://")) {
                return Ok(Some(()));
            }
            match self.exited()? {
                Some(status) => bail!("{} ended with {status}", self.label),
                None => Ok(None),
            }
        });
        ready.with_context(|| self.errors())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free address, with a port below those that the kernel gives to outgoing connections, so that it stays free while a
/// service is restarted.
pub fn free_address() -> Result<String> {
    static TRIED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    for _ in 0..1000 {
        let tried = TRIED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = 10_000 + (std::process::id().wrapping_mul(97) + tried) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port")
}
