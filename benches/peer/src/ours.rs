//! logmirror as a user meets it: a program with a command line. DESIGN section 7 is all this file knows of it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::files;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const READY: &str = "listening on http://";

/// The logmirror program.
#[derive(Clone, Debug)]
pub struct Logmirror {
    program: PathBuf,
}

impl Logmirror {
    /// The program at `path`, or `LOGMIRROR_BIN`, or a release build of the repository this package lies in.
    pub fn find(path: Option<PathBuf>) -> Result<Self> {
        let program = path
            .or_else(|| std::env::var_os("LOGMIRROR_BIN").map(PathBuf::from))
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/logmirror"));
        ensure!(
            program.is_file(),
            "no logmirror at {}: build it with `cargo build --release`, or set LOGMIRROR_BIN",
            program.display()
        );
        Ok(Self { program })
    }

    /// Run it to its end, whatever that is.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Output> {
        Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", self.program.display()))
    }

    /// Mirror a directory or a log URL to another, and fail with what it printed unless it exits with 0.
    pub fn mirror(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        self.must(&[OsStr::new("mirror"), from.as_ref(), to.as_ref()])
    }

    /// Verify a directory or a log URL, and fail with what it printed unless it is clean.
    pub fn verify(&self, log: impl AsRef<OsStr>) -> Result<()> {
        self.must(&[OsStr::new("verify"), log.as_ref()])
    }

    /// Start the service on `data` and a free port, and wait until it is ready.
    pub fn serve(&self, data: &Path) -> Result<Server> {
        let mut child = Command::new(&self.program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} serve", self.program.display()))?;
        let address = match child.stdout.take() {
            Some(stdout) => ready(stdout),
            None => Err(anyhow!("logmirror serve has no stdout")),
        };
        let server = |address| Server { child: Some(child), data: data.to_owned(), address };
        match address {
            Ok(address) => Ok(server(address)),
            Err(e) => {
                drop(server(SocketAddr::from(([127, 0, 0, 1], 0))));
                Err(e)
            }
        }
    }

    fn must(&self, arguments: &[&OsStr]) -> Result<()> {
        let output = self.run(arguments)?;
        if !output.status.success() {
            bail!(
                "logmirror {} ended with {}\n{}{}",
                arguments.join(OsStr::new(" ")).display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

/// A running `logmirror serve`; killed when this is dropped before [`Server::stop`].
pub struct Server {
    child: Option<Child>,
    data: PathBuf,
    address: SocketAddr,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a log.
    pub fn log_url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }

    /// Where it keeps the segments of a log that has had one generation.
    pub fn log_dir(&self, log: &str) -> Result<PathBuf> {
        let log = self.data.join("logs").join(log);
        for entry in fs::read_dir(&log).with_context(|| format!("list {}", log.display()))? {
            let path = entry?.path();
            if path.is_dir() && !files::segments(&path)?.is_empty() {
                return Ok(path);
            }
        }
        bail!("no segments below {}", log.display())
    }

    /// The most memory it has held so far, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let child = self.child.as_ref().context("logmirror serve was stopped")?;
        let path = format!("/proc/{}/status", child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
            .with_context(|| format!("{path} has no VmHWM"))?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// Ask it to end, and fail unless it drains and exits with 0.
    pub fn stop(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            signal(&child, Signal::TERM)?;
            let status = child.wait()?;
            ensure!(status.success(), "logmirror serve ended with {status} after SIGTERM");
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Send a signal to a child that was not waited for yet, so that its number is still its own.
pub(crate) fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed()).context("the child has no process number")?;
    Ok(kill_process(pid, signal)?)
}

/// Wait for the line that names the address, and go on reading so that the pipe never fills.
fn ready(stdout: ChildStdout) -> Result<SocketAddr> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(address) = address_in(&line) {
                // Nobody listens after the first: later lines are only read away.
                let _ = tell.send(address);
            }
        }
    });
    told.recv_timeout(START_TIMEOUT).with_context(|| format!("logmirror serve did not print {READY:?}"))
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once(READY)?;
    address.trim().trim_end_matches('/').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_ready_line() {
        let address = address_in("listening on http://127.0.0.1:40123\n");
        assert_eq!(address, Some(SocketAddr::from(([127, 0, 0, 1], 40123))));
        assert_eq!(address_in("opening 3 logs"), None);
    }
}
