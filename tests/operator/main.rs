//! What an operator meets: files that are none, signals, lines in the log, messages.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod damaged;
mod ends;
mod log_lines;
mod messages;
mod mistakes;
mod odd_files;
mod signals;
mod unread;
mod unreadable;

use std::process::{Command, Stdio};

use serde_json::Value;

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Ended {
    /// The last line of its output, which is JSON.
    pub(crate) fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_else(|| panic!("nothing on standard output: {self:?}"));
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// Runs a command to its end, with nothing of our environment that it would read.
///
/// # Panics
/// When it does not end in time; it is killed then.
pub(crate) fn run(args: &[&str]) -> Ended {
    run_with(args, &[])
}

/// The same with variables of the environment.
pub(crate) fn run_with(args: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.args(args).envs(env.iter().copied());
    ended(command)
}

/// The same under a limit of the system, as `ulimit` takes it.
pub(crate) fn run_under(limit: &str, args: &[&str]) -> Ended {
    let mut command = Command::new("/bin/sh");
    let limited = format!("ulimit {limit} && exec \"$@\"");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_logmirror")]).args(args);
    ended(command)
}

fn ended(mut command: Command) -> Ended {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
        if !command.get_envs().any(|(given, _)| given == name.as_str()) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let id = rustix::process::Pid::from_child(&child);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = is_done.recv_timeout(support::process::PATIENCE).is_err();
        if late {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
        late
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    assert!(!watch.join().unwrap(), "{command:?} did not end in time");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), out: text(output.stdout), errors: text(output.stderr) }
}
