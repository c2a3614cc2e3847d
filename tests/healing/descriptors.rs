//! A service that may open few files, and many clients that ask for nothing; and one whose files may not be large.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::log::{commits, header};
use crate::support::service::{Answer, PATIENCE, Wire, request};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _it_is_gone = self.0.kill();
        let _ = self.0.wait();
    }
}

fn put(address: &str, log: &str) -> u16 {
    let mut wire = Wire::connect(address.parse().unwrap());
    let body = r#"{"format":"commitlog"}"#;
    wire.send(request("PUT", &format!("/logs/{log}"), &format!("content-length: {}\r\n", body.len())).as_bytes());
    wire.send(body.as_bytes());
    wire.answer().status
}

fn append(address: &str, log: &str, body: &[u8]) -> u16 {
    appended(address, log, body).status
}

fn appended(address: &str, log: &str, body: &[u8]) -> Answer {
    let mut wire = Wire::connect(address.parse().unwrap());
    let length = format!("content-length: {}\r\n", body.len());
    wire.send(request("POST", &format!("/logs/{log}/commits"), &length).as_bytes());
    wire.send(body);
    wire.answer()
}

/// A service under a limit as `ulimit` takes it, and its address.
fn start(data: &Path, limit: &str) -> (Killed, String) {
    let mut command = Command::new("/bin/sh");
    let limited = format!("ulimit {limit} && exec \"$@\"");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_logmirror"), "serve", "--data"]);
    command.arg(data).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut service = Killed(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(service.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
    (service, address)
}

#[test]
fn a_service_with_64_descriptors_appends_and_serves_beside_idle_connections() {
    let data = tempfile::tempdir().unwrap();
    let (mut service, address) = start(data.path(), "-n 64");
    let logs = ["a", "b", "c", "d"];
    for log in logs {
        assert_eq!(put(&address, log), 201);
        assert_eq!(append(&address, log, &[header(), commits(0, 1, 50, 0)].concat()), 200);
    }
    // Half of them never say a word, half have asked once and stay.
    let (since, mut idle) = (Instant::now(), Vec::new());
    for at in 0..60 {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if at % 2 == 0 {
            stream.write_all(request("GET", "/livez", "").as_bytes()).unwrap();
            let mut first = [0; 15];
            stream.read_exact(&mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200 OK", "connection {at}");
        }
        idle.push(stream);
    }
    for round in 1..6 {
        for log in logs {
            assert_eq!(append(&address, log, &commits(round, 1, 50, 0)), 200, "{log}, round {round}");
            let mut wire = Wire::connect(address.parse().unwrap());
            wire.send(request("GET", &format!("/logs/{log}/commits"), "").as_bytes());
            assert_eq!(wire.answer().status, 200);
        }
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    assert!(service.0.try_wait().unwrap().is_none());
}

#[test]
fn thirty_readers_and_twelve_logs_share_64_descriptors() {
    let data = tempfile::tempdir().unwrap();
    let (mut service, address) = start(data.path(), "-n 64");
    let logs: Vec<String> = (0..12).map(|at| format!("log-{at}")).collect();
    let content = [header(), commits(0, 20, 50, 0)].concat();
    for log in &logs {
        assert_eq!(put(&address, log), 201);
        assert_eq!(append(&address, log, &content), 200);
    }
    for round in 1..4 {
        std::thread::scope(|scope| {
            let readers = (0..30).map(|at| {
                let (address, log, content) = (&address, &logs[at % logs.len()], &content);
                scope.spawn(move || {
                    let mut wire = Wire::connect(address.parse().unwrap());
                    // It stays, as a follower does, until it has read all and a little longer.
                    wire.send(request("GET", &format!("/logs/{log}/commits?follow=true"), "").as_bytes());
                    let head = wire.head();
                    assert_eq!(head.status, 200, "{log}: {}", head.text());
                    assert!(wire.read_stream(content.len()).starts_with(content), "{log}");
                    std::thread::sleep(Duration::from_millis(100));
                })
            });
            let readers: Vec<_> = readers.collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
        // And the logs are written again.
        for log in &logs {
            assert_eq!(append(&address, log, &commits(19 + round, 1, 50, 0)), 200, "{log}, round {round}");
        }
    }
    assert!(service.0.try_wait().unwrap().is_none());
}

#[test]
fn an_append_that_makes_a_file_larger_than_it_may_be_is_refused_as_on_a_full_disk_and_the_service_goes_on() {
    let data = tempfile::tempdir().unwrap();
    // 512 KiB, or 1 MiB: shells count in other units.
    let (mut service, address) = start(data.path(), "-f 1024");
    for log in ["large", "small"] {
        assert_eq!(put(&address, log), 201);
        assert_eq!(append(&address, log, &[header(), commits(0, 1, 50, 0)].concat()), 200);
    }
    let (refused, held) = (1..100)
        .find_map(|round| {
            let answer = appended(&address, "large", &commits(round, 1, 50_000, 0));
            (answer.status != 200).then_some((answer, round))
        })
        .expect("some commit does not fit");
    assert_eq!(refused.refusal(), (503, "failed".to_owned()), "{}", refused.text());
    assert!(refused.text().contains("File too large"), "{}", refused.text());
    assert!(service.0.try_wait().unwrap().is_none());
    assert_eq!(append(&address, "small", &commits(1, 1, 50, 0)), 200);
    // What was acknowledged is there, and what fits is taken.
    let since = Instant::now();
    while append(&address, "large", &commits(held, 1, 50, 0)) != 200 {
        assert!(since.elapsed() < PATIENCE);
    }
    let mut wire = Wire::connect(address.parse().unwrap());
    wire.send(request("GET", "/logs/large", "").as_bytes());
    assert_eq!(wire.answer().json()["durable"], held + 1);
}
