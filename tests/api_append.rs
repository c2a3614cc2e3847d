//! What an append gets that is cut, damaged, hostile or simply wrong: the table "Bad input" of the API.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::Shutdown;
use std::sync::Arc;

use logmirror::repo::{Loss, MemRepo};
use support::log::{Sample, commit, commits, header};
use support::service::{Answer, Service, Setup};

/// A service on a disk in memory, which can lose what was not synced.
fn start() -> (MemRepo, Service) {
    let disk = MemRepo::default();
    let service = Service::start_with(Arc::new(disk.clone()), small_commits());
    (disk, service)
}

fn small_commits() -> Setup {
    let mut setup = Setup::default();
    setup.settings.commit_bytes_max = 4096;
    setup
}

/// Ends the service and the power, and looks what is there then.
fn after_power_loss(disk: &MemRepo, service: Service) -> Service {
    let found = disk.after_power_loss(Loss::All);
    drop(service);
    Service::start_with(Arc::new(found), small_commits())
}

fn next(answer: &Answer) -> u64 {
    answer.json()["next"].as_u64().unwrap_or_else(|| panic!("an answer without next: {}", answer.text()))
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str, next_wanted: u64) {
    assert_eq!((answer.refusal(), next(answer)), ((status, code.to_owned()), next_wanted), "{}", answer.text());
}

#[test]
fn a_body_cut_at_any_byte_is_truncated_and_its_whole_commits_are_durable() {
    let (disk, service) = start();
    let sample = Sample::small();
    for cut in 0..=sample.bytes.len() {
        for log in [format!("sized-{cut}"), format!("chunked-{cut}")] {
            service.create(&log);
            let body = &sample.bytes[..cut];
            let answer = match log.starts_with("sized") {
                true => service.append(&log, "", body),
                false => service.append_chunked(&log, "", body, 7),
            };
            let (end, whole) = sample.cut(cut);
            match whole {
                true => assert_eq!((answer.status, next(&answer)), (200, end), "cut at {cut}"),
                false => {
                    refused(&answer, 422, "truncated", end);
                    assert_eq!(answer.json()["offset"], end, "cut at {cut}: {}", answer.text());
                }
            }
        }
    }
    let service = after_power_loss(&disk, service);
    for cut in 0..=sample.bytes.len() {
        for log in [format!("sized-{cut}"), format!("chunked-{cut}")] {
            let status = service.status(&log);
            assert_eq!((&status["durable"], &status["state"]), (&sample.cut(cut).0.into(), &"ok".into()), "{log}");
        }
    }
}

#[test]
fn a_connection_cut_at_any_byte_keeps_the_whole_commits_before_it() {
    let (disk, service) = start();
    let sample = Sample::small();
    for cut in 0..=sample.bytes.len() {
        let log = format!("cut-{cut}");
        service.create(&log);
        let mut wire = service.connect();
        let head = format!("content-length: {}\r\n", sample.bytes.len() + 1);
        wire.send(support::service::request("POST", &format!("/logs/{log}/commits"), &head).as_bytes());
        wire.send(&sample.bytes[..cut]);
        wire.stream.shutdown(Shutdown::Write).unwrap();
        wire.wait_closed();
        service.wait_durable(&log, sample.cut(cut).0);
    }
    let service = after_power_loss(&disk, service);
    for cut in 0..=sample.bytes.len() {
        assert_eq!(service.status(&format!("cut-{cut}"))["durable"], sample.cut(cut).0, "cut at {cut}");
    }
}

#[test]
fn a_body_that_breaks_off_between_commits_is_no_end() {
    let (_disk, service) = start();
    let sample = Sample::small();
    for (n, after) in ["zz\r\n", "-1\r\n", "5"].into_iter().enumerate() {
        let log = format!("chunked-{n}");
        service.create(&log);
        let mut wire = service.begin_append(&log, "");
        wire.send_chunk(&sample.bytes);
        service.wait_durable(&log, sample.cut(sample.bytes.len()).0);
        wire.send(after.as_bytes());
        wire.stream.shutdown(Shutdown::Write).unwrap();
        refused(&wire.answer(), 422, "truncated", sample.cut(sample.bytes.len()).0);
    }
}

/// A flipped bit in a length can also make the commit over-long (413) or longer than the body (truncated): nobody can
/// tell where it should have ended. All else is found by a checksum.
#[test]
fn a_flipped_bit_anywhere_is_found_and_nothing_of_that_commit_or_after_it_is_stored() {
    let sample = Sample::small();
    for at in 0..sample.bytes.len() {
        let (disk, service) = start();
        let piece = sample.piece(at);
        let is_len = piece.next.start < piece.next.end && (18..22).contains(&(at - piece.at.start));
        for bit in 0..8 {
            let log = format!("log-{bit}");
            service.create(&log);
            let mut bytes = sample.bytes.clone();
            bytes[at] ^= 1 << bit;
            let answer = service.append(&log, "", &bytes);
            let end = piece.next.start;
            let (status, code) = match answer.refusal().1.as_str() {
                "too-large" if is_len => (413, "too-large"),
                "truncated" if is_len => (422, "truncated"),
                _ => (422, "corrupt"),
            };
            refused(&answer, status, code, end);
            if status == 422 {
                assert_eq!(answer.json()["offset"], end, "byte {at}, bit {bit}: {}", answer.text());
            }
            let kept = sample.pieces.iter().take_while(|kept| kept.next.end <= end && kept.at.end <= piece.at.start);
            let kept = kept.filter(|kept| kept.next.start < kept.next.end).last().map_or(0, |kept| kept.at.end);
            assert_eq!(service.stream(&log), sample.bytes[..kept], "byte {at}, bit {bit}");
        }
        let service = after_power_loss(&disk, service);
        for bit in 0..8 {
            assert_eq!(service.status(&format!("log-{bit}"))["durable"], piece.next.start, "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_commit_of_exactly_the_cap_is_taken_and_one_byte_more_is_not() {
    let (_, service) = start();
    service.create("app");
    let overhead = commit(0, 0, 1, b"").len();
    let fits = [header(), commit(0, 0, 1, &vec![7; 4096 - overhead])].concat();
    assert_eq!(next(&service.append("app", "", &fits)), 1);
    refused(&service.append("app", "", &commit(1, 0, 1, &vec![7; 4097 - overhead])), 413, "too-large", 1);
}

#[test]
fn a_gap_a_fork_and_a_falling_epoch_are_conflicts_with_their_numbers() {
    let (disk, service) = start();
    service.create("app");
    let start = [header(), commit(0, 5, 3, b"first"), commit(3, 5, 2, b"second")].concat();
    assert_eq!(next(&service.append("app", "", &start)), 5);

    let gap = service.append("app", "", &[commit(5, 5, 1, b"kept"), commit(8, 5, 1, b"ahead")].concat());
    refused(&gap, 409, "gap", 6);
    assert!(gap.text().contains("goes on with offset 6, but offset 8 was sent"), "{}", gap.text());

    let fork = service.append("app", "", &[commit(3, 5, 2, b"second"), commit(5, 5, 1, b"else")].concat());
    refused(&fork, 409, "fork", 6);
    assert_eq!(fork.json()["at"], 5);
    let cut_otherwise = service.append("app", "", &commit(4, 5, 1, b"second"));
    refused(&cut_otherwise, 409, "fork", 6);
    assert_eq!(cut_otherwise.json()["at"], 4);

    let stale = service.append("app", "", &[commit(6, 6, 1, b"kept"), commit(7, 4, 1, b"old leader")].concat());
    refused(&stale, 409, "stale-epoch", 7);
    assert!(stale.text().contains("from 6 to 4 at offset 7"), "{}", stale.text());

    let stream = service.stream("app");
    assert_eq!(stream, [start, commit(5, 5, 1, b"kept"), commit(6, 6, 1, b"kept")].concat());
    let service = after_power_loss(&disk, service);
    let status = service.status("app");
    assert_eq!((&status["durable"], &status["epoch"]), (&7.into(), &6.into()));
    assert_eq!(service.stream("app"), stream);
}

#[test]
fn what_is_no_log_is_refused_with_what_was_found() {
    let page = b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>";
    let mut version = header();
    version[6] = 9;
    let mut algorithm = header();
    algorithm[7] = 3;
    let mut reserved = header();
    reserved[9] = 1;
    let cases: [(&str, &[u8], &str); 8] = [
        ("version", &version, "log format version 9 is not supported"),
        ("algorithm", &algorithm, "checksum algorithm 3 is not supported"),
        ("reserved", &reserved, "damaged segment header: found 28 64 73 29 5e 32 01 00 00 01"),
        ("no-header", &commit(0, 0, 1, b"x"), "no segment is open for the commit at offset 0"),
        ("zeros", &[0; 22], "all-zero commit header"),
        ("zeros-behind-header", &[header(), vec![0; 22]].concat(), "all-zero commit header"),
        ("html", page, "neither a segment header nor a commit: found 3c 21 44 4f"),
        ("gzip", &[[0x1f, 0x8b, 8].as_slice(), &[0xee; 30]].concat(), "neither a segment header nor a commit"),
    ];
    let (_, service) = start();
    for (log, body, message) in cases {
        service.create(log);
        let answer = service.append(log, "", body);
        refused(&answer, 422, "corrupt", 0);
        assert!(answer.text().contains(message), "{log}: {}", answer.text());
        assert_eq!((&answer.json()["offset"], &service.status(log)["segments"]), (&0.into(), &0.into()), "{log}");
        // The log is none the worse for it.
        assert_eq!(next(&service.append(log, "", &Sample::small().bytes)), 6, "{log}");
        let answer = service.append(log, "", body);
        if log != "no-header" {
            refused(&answer, 422, "corrupt", 6);
        }
    }
}

#[test]
fn an_empty_body_is_an_append_of_nothing() {
    let (_, service) = start();
    service.create("app");
    for answer in [service.append("app", "", b""), service.append_chunked("app", "", b"", 1)] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text(), r#"{"next":0,"durable":0,"appended":0,"skipped":0}"#);
    }
}

#[test]
fn a_request_that_makes_no_sense_is_refused_before_its_body() {
    let (_, service) = start();
    service.create("app");
    service.append("app", "", &Sample::small().bytes);
    for query in ["?from=-1", "?from=x", "?from=18446744073709551616", "?acks=all", "?fron=0", "?from=1&from=2"] {
        refused(&service.append("app", query, &commits(6, 1, 1, 0)), 400, "invalid", 6);
    }
    assert_eq!(service.append("nothing", "", b"x").refusal(), (404, "not-found".to_owned()));
    assert_eq!(service.append("Bad%20Name", "", b"x").refusal(), (400, "invalid".to_owned()));
    assert_eq!(service.status("app")["durable"], 6);
}

#[test]
fn a_sender_that_asks_first_is_told_to_go_on_or_why_not() {
    let (_, service) = start();
    service.create("app");
    let body = Sample::small().bytes;
    let ask = |path: &str| {
        let mut wire = service.connect();
        let head = format!("expect: 100-continue\r\ncontent-length: {}\r\n", body.len());
        wire.send(support::service::request("POST", path, &head).as_bytes());
        wire
    };
    let mut wire = ask("/logs/app/commits");
    assert_eq!(wire.head().status, 100);
    wire.send(&body);
    assert_eq!(next(&wire.answer()), 6);
    for (path, status) in
        [("/logs/none/commits", 404), ("/logs/app/commits?from=x", 400), ("/logs/app", 405), ("/x", 404)]
    {
        assert_eq!(ask(path).answer().status, status, "{path}");
    }
}

/// The answer comes although the sender is far from done, also when nobody will ever take the rest.
#[test]
fn a_sender_of_much_gets_to_read_why_it_is_refused() {
    let (_, service) = start();
    service.create("app");
    service.append("app", "", &Sample::small().bytes);
    let big = vec![0xab; 24 << 20];
    for (path, status) in [
        ("/logs/nothing/commits", 404),
        ("/logs/app/commits?from=x", 400),
        ("/logs/app/commits", 422),
        ("/logs/app", 405),
        ("/elsewhere", 404),
    ] {
        for _ in 0..3 {
            let post = reqwest::Client::new().post(service.url(path)).body(big.clone()).send();
            let answer = service.runtime.block_on(post).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            assert_eq!(answer.status(), status, "{path}");
            assert!(!service.runtime.block_on(answer.bytes()).unwrap().is_empty(), "{path}");
        }
    }
}
