//! The process of a worker: started, listened to, ended.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::descriptors;
use super::packets::Packets;
use super::pool::WorkerProgram;
use crate::limits::{WORKER_LAST_WORDS_BYTES, WORKER_LINE_BYTES_MAX};

/// A process that runs. It ends when its connection is closed.
#[derive(Debug)]
pub(super) struct Process {
    child: Arc<Mutex<Child>>,
}

/// A process that was started.
pub(super) struct Started {
    pub(super) process: Process,
    /// The other end of its standard input.
    pub(super) socket: UnixStream,
    /// The other end of its second socket.
    pub(super) packets: Packets,
    /// How it ended, in words, once it has.
    pub(super) ended: oneshot::Receiver<String>,
}

impl Process {
    /// Starts `program` with a socket as its standard input, over which it gets its second one.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(program: &WorkerProgram) -> io::Result<Started> {
        let (ours, theirs) = UnixStream::pair()?;
        let (packets, end) = Packets::pair()?;
        descriptors::send(&ours, end)?;
        let mut command = Command::new(&program.path);
        command.args(&program.args).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        // What a terminal sends to the service is not for it.
        command.process_group(0);
        let mut child = command.spawn()?;
        let stderr = child.stderr.take();
        let child = Arc::new(Mutex::new(child));
        let (tell, ended) = oneshot::channel();
        let waiting = child.clone();
        std::thread::Builder::new().name("sql-worker".into()).spawn(move || {
            let last_words = stderr.map(listen).unwrap_or_default();
            let mut child = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            // One that closed its standard error is ending, or of no use.
            let _has_ended = child.kill();
            let ended = match child.wait() {
                Ok(status) => describe(status, &last_words),
                Err(error) => error.to_string(),
            };
            let _nobody_asks = tell.send(ended);
        })?;
        Ok(Started { process: Process { child }, socket: ours, packets, ended })
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        if let Err(error) = self.child.lock().unwrap_or_else(PoisonError::into_inner).kill() {
            log::warn!("an SQL worker cannot be ended: {error}");
        }
    }
}

/// What the runtime says of an end, and what that means.
const CAUSES: [(&str, &str); 2] = [
    ("overflowed its stack", "a statement used up the stack: it nests too deep"),
    ("memory allocation of", "a statement used up the memory that a worker may have"),
];

/// What a worker said before it ended.
#[derive(Default)]
struct LastWords {
    /// The first of the [`CAUSES`]: more may be said after it.
    cause: Option<&'static str>,
    last: String,
}

/// Passes on what a worker logs, and returns the last of it.
fn listen(stderr: ChildStderr) -> LastWords {
    let (mut last, mut cause) = (String::new(), None);
    let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
    // Of a line that is too long the rest is another.
    while (&mut stderr).take(WORKER_LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let bytes = std::mem::take(&mut line);
        let line = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        let (level, text) = match line.split_once(' ') {
            Some(("ERROR", text)) => (log::Level::Error, text),
            Some(("WARN", text)) => (log::Level::Warn, text),
            Some(("INFO", text)) => (log::Level::Info, text),
            Some(("DEBUG", text)) => (log::Level::Debug, text),
            Some(("TRACE", text)) => (log::Level::Trace, text),
            // Of the runtime: the stack or the memory is used up.
            _ => {
                cause =
                    cause.or_else(|| CAUSES.iter().find(|(words, _)| line.contains(words)).map(|(_, cause)| *cause));
                last.push_str(line.trim());
                last.push(' ');
                (log::Level::Error, &*line)
            }
        };
        log::log!(level, "SQL worker: {text}");
        let over = last.len().saturating_sub(WORKER_LAST_WORDS_BYTES);
        last.drain(..last.ceil_char_boundary(over));
    }
    LastWords { cause, last: last.trim_end().to_owned() }
}

fn describe(status: ExitStatus, last_words: &LastWords) -> String {
    if let Some(cause) = last_words.cause {
        return cause.into();
    }
    match (status.signal(), &*last_words.last) {
        (Some(signal), "") => format!("signal {signal}"),
        (Some(signal), words) => format!("signal {signal}: {words}"),
        (None, "") => status.to_string(),
        (None, words) => format!("{status}: {words}"),
    }
}
