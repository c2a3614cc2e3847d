//! Output that is not read holds up no work, and no signal.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::log::{commits, header};
use crate::support::process::{PATIENCE, arg, until};
use crate::support::service::{Wire, request};
use crate::support::specimen;

/// A pipe that takes nothing until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // Opened again, so that only this does not block.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut filler = File::from(rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap());
    for lines in [vec![b'\n'; 4096], vec![b'\n']] {
        let full = std::iter::repeat_with(|| filler.write_all(&lines)).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }
    (reader, writer)
}

/// A process that does not outlive the test.
struct Running(Child);

impl Running {
    fn start(args: &[&str], out: impl Into<Stdio>, errors: impl Into<Stdio>) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
            command.env_remove(name);
        }
        Running(command.args(args).stdin(Stdio::null()).stdout(out).stderr(errors).spawn().unwrap())
    }

    /// A service whose log goes there, and its address.
    fn serve(data: &str, errors: PipeWriter) -> (Running, SocketAddr) {
        let mut service = Running::start(&["serve", "--data", data, "--listen", "127.0.0.1:0"], Stdio::piped(), errors);
        let mut line = String::new();
        BufReader::new(service.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (service, line.trim().strip_prefix("listening on http://").unwrap().parse().unwrap())
    }

    fn signal(&self, signal: Signal) {
        // A process that has ended already does not mind.
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }

    fn ended(&mut self) -> ExitStatus {
        until("the process to end", || self.0.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut wire = Wire::connect(address);
    wire.send(request("GET", path, "").as_bytes());
    let answer = wire.answer();
    (answer.status, answer.text())
}

fn dropped(address: SocketAddr) -> u64 {
    let (_, metrics) = get(address, "/metrics");
    let count = metrics.lines().find_map(|line| line.strip_prefix("logmirror_lines_dropped_total "));
    count.unwrap().parse().unwrap()
}

#[test]
fn a_service_whose_log_is_not_read_serves_and_counts_the_lines_that_it_drops() {
    let data = tempfile::tempdir().unwrap();
    let (reader, writer) = full_pipe();
    let (mut service, address) = Running::serve(arg(data.path()), writer);
    let path = format!("/nowhere/{}", "x".repeat(450));
    until("lines to be dropped", || {
        (0..50).for_each(|_| assert_eq!(get(address, &path).0, 404));
        (dropped(address) > 0).then_some(())
    });
    assert_eq!(get(address, "/livez").0, 200);
    let (lines, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || BufReader::new(reader).lines().try_for_each(|line| lines.send(line.unwrap())));
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains(" dropped: ")) {
        lines.push(read.recv_timeout(PATIENCE).unwrap());
    }
    let count = dropped(address);
    service.signal(Signal::TERM);
    assert_eq!(service.ended().code(), Some(0));
    lines.extend(read);
    let told: u64 = lines
        .iter()
        .filter_map(|line| line.split_once(" WARN  logmirror] ")?.1.split_once(" line")?.0.parse::<u64>().ok())
        .sum();
    assert_eq!(told, count, "{:?}", lines.last());
    assert!(lines.iter().any(|line| line.ends_with("shutting down")), "{:?}", lines.last());
    assert!(lines.iter().all(|line| line.is_empty() || line.starts_with('[')), "{lines:?}");
}

#[test]
fn a_service_whose_log_is_not_read_ends_on_a_first_signal_and_at_once_on_a_second() {
    let data = tempfile::tempdir().unwrap();
    let (_unread, writer) = full_pipe();
    let (mut service, address) = Running::serve(arg(data.path()), writer);
    assert_eq!(get(address, "/livez").0, 200);
    service.signal(Signal::TERM);
    assert_eq!(service.ended().code(), Some(0));

    let (_unread, writer) = full_pipe();
    let (mut service, address) = Running::serve(arg(data.path()), writer);
    let mut creating = Wire::connect(address);
    let body = br#"{"format":"commitlog"}"#;
    creating.send(request("PUT", "/logs/app", &format!("content-length: {}\r\n", body.len())).as_bytes());
    creating.send(body);
    assert_eq!(creating.answer().status, 201);
    // An append whose body does not end keeps it from draining.
    let mut appending = Wire::connect(address);
    appending.send(request("POST", "/logs/app/commits?acks=stream", "content-length: 1000000\r\n").as_bytes());
    appending.send(&[header(), commits(0, 3, 9, 0)].concat());
    until("the append to be under way", || {
        let (_, status) = get(address, "/logs/app");
        (serde_json::from_str::<Value>(&status).unwrap()["durable"] == 3).then_some(())
    });
    service.signal(Signal::TERM);
    let status = until("the service to end", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        service.signal(Signal::TERM);
        service.0.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(3));
}

#[test]
fn a_follower_whose_lines_are_not_read_goes_on_and_ends_on_a_signal() {
    for is_out in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (source, sink) = (dir.path().join("source"), dir.path().join("sink"));
        std::fs::create_dir(&source).unwrap();
        let name = format!("{:020}.stdb.log", 0);
        std::fs::write(source.join(&name), header()).unwrap();
        let mut segment = File::options().append(true).open(source.join(&name)).unwrap();
        segment.write_all(&commits(0, 3, 50, 0)).unwrap();
        let (_unread, writer) = full_pipe();
        let mut args = vec!["mirror", arg(&source), arg(&sink), "--follow"];
        let mut mirror = if is_out {
            args.push("--json");
            Running::start(&args, writer, Stdio::null())
        } else {
            Running::start(&args, Stdio::null(), writer)
        };
        for first in [3, 6, 9] {
            segment.write_all(&commits(first, 3, 50, 0)).unwrap();
            let whole = std::fs::read(source.join(&name)).unwrap();
            until("the copy", || std::fs::read(sink.join(&name)).is_ok_and(|copy| copy == whole).then_some(()));
        }
        mirror.signal(Signal::TERM);
        assert_eq!(mirror.ended().code(), Some(0));
    }
}

#[test]
fn the_last_line_of_a_mirror_waits_for_its_reader_unless_a_signal_ends_it() {
    let sink = tempfile::tempdir().unwrap();
    for is_read in [true, false] {
        let copy = sink.path().join(is_read.to_string());
        let (mut reader, writer) = full_pipe();
        let source = specimen("whole");
        let args = ["mirror", arg(&source), arg(&copy), "--json"];
        let mut mirror = Running::start(&args, writer, Stdio::null());
        let name = "00000000000000000333.stdb.log";
        let whole = std::fs::read(source.join(name)).unwrap();
        until("the copy", || std::fs::read(copy.join(name)).is_ok_and(|found| found == whole).then_some(()));
        if is_read {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            let lines: Vec<Value> = text.trim().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(lines.last().unwrap()["event"], "done", "{text}");
            assert_eq!(mirror.ended().code(), Some(0));
        } else {
            assert!(mirror.0.try_wait().unwrap().is_none());
            // Between two listeners for signals one may be missed.
            until("the mirror to end", || {
                mirror.signal(Signal::TERM);
                mirror.0.try_wait().unwrap()
            });
        }
    }
}
