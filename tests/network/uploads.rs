//! Commits and bases in parts: `upload=ID&at=BYTE&total=BYTES`.

use std::sync::Arc;

use logmirror::limits::UPLOADS_PER_LOG_MAX;
use logmirror::repo::{FsRepo, MemRepo, Repo};

use crate::support::failing::{Failing, Trouble};
use crate::support::log::{commit, commits, header};
use crate::support::service::{Answer, Service, Setup, request};
use crate::{base, service};

fn part(service: &Service, upload: &str, at: usize, total: Option<usize>, body: &[u8]) -> Answer {
    let total = total.map_or_else(String::new, |total| format!("&total={total}"));
    service.append("app", &format!("?from=0&upload={upload}&at={at}{total}"), body)
}

fn received(answer: &Answer) -> (u16, u64) {
    (answer.status, answer.json()["received"].as_u64().unwrap())
}

#[test]
fn parts_are_visible_only_when_whole_and_durable_when_answered() {
    let disk = Arc::new(MemRepo::default());
    let service = Service::start_with(disk.clone(), Setup::default());
    service.create("app");
    let bytes = [header(), commit(0, 0, 2, &[7; 50_000])].concat();
    assert_eq!(received(&part(&service, "a", 0, None, &bytes[..20_000])), (202, 20_000));
    assert_eq!(received(&part(&service, "a", 20_000, None, &bytes[20_000..40_000])), (202, 40_000));
    assert_eq!(service.status("app")["next"], 0);
    let answer = part(&service, "a", 40_000, Some(bytes.len()), &bytes[40_000..]);
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &2.into()), "{}", answer.text());
    assert_eq!(service.stream("app"), bytes);
    drop(service);
    let after = Service::start(Arc::new(disk.after_power_loss(logmirror::repo::Loss::All)));
    assert_eq!(after.stream("app"), bytes);
}

#[test]
fn a_part_may_be_sent_again_the_last_one_too() {
    let service = service(|_| {});
    let bytes = [header(), commits(0, 3, 9_000, 0)].concat();
    let (first, last) = bytes.split_at(10_000);
    for _ in 0..2 {
        assert_eq!(received(&part(&service, "a", 0, None, first)), (202, 10_000));
    }
    // The first half of it again, and what follows.
    assert_eq!(received(&part(&service, "a", 5_000, None, &bytes[5_000..12_000])), (202, 12_000));
    assert_eq!(received(&part(&service, "a", 0, None, first)), (202, 12_000));
    let answers = [0, 1].map(|_| part(&service, "a", 10_000, Some(bytes.len()), last));
    assert_eq!((answers[0].status, answers[0].text()), (200, answers[1].text()));
    assert_eq!(answers[0].json()["durable"], 3);
    assert_eq!(service.stream("app"), bytes);
}

#[test]
fn parts_that_are_missing_are_named() {
    let service = service(|_| {});
    let unknown = part(&service, "a", 10, None, b"x");
    assert_eq!((unknown.refusal(), &unknown.json()["received"]), ((409, "part-missing".into()), &0.into()));
    assert_eq!(received(&part(&service, "a", 0, None, b"12345")), (202, 5));
    let gap = part(&service, "a", 6, None, b"x");
    assert_eq!((gap.refusal(), &gap.json()["received"]), ((409, "part-missing".into()), &5.into()));
}

#[test]
fn a_connection_that_breaks_off_costs_no_part_that_was_received() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let service = Service::start(repo);
    service.create("app");
    let bytes = [header(), commit(0, 0, 2, &[7; 50_000])].concat();
    let (first, last) = bytes.split_at(30_000);
    assert_eq!(received(&part(&service, "a", 0, None, first)), (202, 30_000));
    // Once while its body is sent, and once while it is made durable.
    let query = |total: &str| format!("/logs/app/commits?from=0&upload=a&at=30000{total}");
    let begin = |total: &str, body: &[u8]| {
        let mut wire = service.connect();
        let length = format!("content-length: {}\r\n", last.len());
        wire.send(request("POST", &query(total), &length).as_bytes());
        wire.send(body);
        wire
    };
    drop(begin("", &last[..1_000]));
    assert_eq!(part(&service, "a", 30_000, None, b"").status, 202);
    plan.set("logs/app", Trouble::SyncHangs);
    let total = format!("&total={}", bytes.len());
    drop(begin(&total, last));
    plan.wait_hanging(1);
    let mut again = begin(&total, last);
    // The service has seen by then that the first connection is gone.
    assert_eq!(service.get("/livez").status, 200);
    plan.clear();
    let answer = again.answer();
    assert_eq!((answer.status, &answer.json()["appended"]), (200, &1.into()), "{}", answer.text());
    assert_eq!(service.stream("app"), bytes);
}

#[test]
fn commits_that_could_not_be_stored_when_whole_are_kept_for_the_last_part() {
    let (repo, plan) = Failing::new(Arc::new(MemRepo::default()));
    let service = Service::start(repo);
    service.create("app");
    let bytes = [header(), commit(0, 0, 2, &[7; 50_000])].concat();
    let (first, last) = bytes.split_at(30_000);
    assert_eq!(received(&part(&service, "a", 0, None, first)), (202, 30_000));
    plan.set("logs/app/0000000001", Trouble::SyncFails);
    let in_the_generation = part(&service, "a", 30_000, Some(bytes.len()), last);
    assert_eq!(in_the_generation.status, 503, "{}", in_the_generation.text());
    plan.clear();
    service.wait_state("app", "ok");
    let answer = part(&service, "a", 30_000, Some(bytes.len()), last);
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &2.into()), "{}", answer.text());
}

#[test]
fn a_part_whose_end_is_no_number_is_refused() {
    let service = service(|_| {});
    assert_eq!(received(&part(&service, "a", 0, None, b"12345")), (202, 5));
    assert_eq!(part(&service, "a", usize::MAX - 1, None, b"12345").refusal(), (413, "too-large".to_owned()));
    assert_eq!(received(&part(&service, "a", 5, None, b"6")), (202, 6));
}

#[test]
fn what_is_not_sound_is_refused_as_in_one_request_and_its_files_go() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    service.create("app");
    let files = || std::fs::read_dir(data.path().join("logs/app")).unwrap().count();
    let before = files();
    let mut bytes = [header(), commit(0, 0, 1, &[7; 500])].concat();
    bytes[100] ^= 1;
    assert_eq!(received(&part(&service, "a", 0, None, &bytes[..50])), (202, 50));
    assert_eq!(files(), before + 1);
    assert_eq!(part(&service, "a", 50, Some(bytes.len()), &bytes[50..]).refusal(), (422, "corrupt".into()));
    let cut = [header(), commit(0, 0, 1, &[7; 500])[..100].to_vec()].concat();
    assert_eq!(part(&service, "b", 0, Some(cut.len()), &cut).refusal(), (422, "truncated".into()));
    let ahead = service.append("app", "?from=5&upload=c&at=0", b"x");
    assert_eq!((ahead.refusal(), &ahead.json()["next"]), ((409, "gap".into()), &0.into()));
    assert_eq!(files(), before);
    assert_eq!(service.status("app")["next"], 0);
}

#[test]
fn uploads_are_bounded_in_size_and_number_and_gone_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let start = || Service::start(Arc::new(FsRepo::open(data.path()).unwrap()));
    let service = start();
    service.create("app");
    let max = Setup::default().settings.commit_bytes_max as usize;
    assert_eq!(part(&service, "large", 0, Some(max * 2), b"x").refusal(), (413, "too-large".into()));
    let block = vec![0; max];
    assert_eq!(received(&part(&service, "large", 0, None, &block)), (202, max as u64));
    assert_eq!(part(&service, "large", max, None, &block).refusal(), (413, "too-large".into()));
    for n in 1..UPLOADS_PER_LOG_MAX {
        assert_eq!(part(&service, &format!("u{n}"), 0, None, b"x").status, 202);
    }
    assert_eq!(part(&service, "one-more", 0, None, b"x").refusal(), (503, "unavailable".into()));
    for id in ["", "a/b", "a%20b", &"x".repeat(65)] {
        assert_eq!(part(&service, id, 0, None, b"x").refusal(), (400, "invalid".into()), "{id}");
    }
    assert_eq!(service.append("app", "?from=0&upload=a", b"x").refusal(), (400, "invalid".into()));
    drop(service);
    let service = start();
    let names = FsRepo::open(data.path()).unwrap().dir("logs").unwrap().dir("app").unwrap().list().unwrap();
    assert!(names.iter().all(|name| !name.ends_with(".draft")), "{names:?}");
    assert_eq!(part(&service, "u1", 1, None, b"x").refusal(), (409, "part-missing".into()));
}

#[test]
fn parts_that_are_refused_take_no_upload_its_place() {
    let service = service(|_| {});
    assert_eq!(received(&part(&service, "a", 0, None, b"12345")), (202, 5));
    for n in 0..3 * UPLOADS_PER_LOG_MAX {
        let refused = part(&service, &format!("refused{n}"), 7, None, b"x");
        assert_eq!(refused.refusal(), (409, "part-missing".into()), "{n}");
    }
    assert_eq!(received(&part(&service, "a", 5, None, b"6")), (202, 6));
}

#[test]
fn the_answer_of_an_upload_that_is_over_is_for_the_same_part_only() {
    let service = service(|_| {});
    let (first, second) = ([header(), commits(0, 3, 900, 0)].concat(), [header(), commits(3, 3, 900, 0)].concat());
    let send = |from: u64, at: usize, total: usize, body: &[u8]| {
        service.append("app", &format!("?from={from}&upload=mine&at={at}&total={total}"), body)
    };
    assert_eq!(send(0, 0, first.len(), &first).json()["durable"], 3);
    let mut other = first.clone();
    other[100] ^= 1;
    assert_eq!(send(0, 0, first.len(), &other).refusal(), (400, "invalid".into()));
    assert_eq!(send(0, 0, first.len(), &other).refusal(), (422, "corrupt".into()), "as in one request");
    assert_eq!(send(0, 0, first.len(), &first).json()["skipped"], 3);
    // The same name for what follows, in one part and in two.
    assert_eq!(send(3, 0, second.len(), &second).json()["durable"], 6, "its bytes are stored");
    assert_eq!(send(3, 100, second.len() + 1, &second[100..]).refusal(), (409, "part-missing".into()));
    let third = [header(), commits(6, 3, 900, 0)].concat();
    let begun = service.append("app", "?from=6&upload=mine&at=0", &third[..500]);
    assert_eq!(received(&begun), (202, 500));
    assert_eq!(send(6, 500, third.len(), &third[500..]).json()["durable"], 9);
    assert_eq!(service.stream("app"), [first, second, third].concat());
}

#[test]
fn a_part_that_is_sent_again_with_other_bytes_is_refused_and_the_upload_goes_on() {
    let service = service(|_| {});
    let bytes = [header(), commits(0, 3, 9_000, 0)].concat();
    let other = [header(), commits(0, 3, 9_000, 1)].concat();
    assert_eq!(received(&part(&service, "a", 0, None, &bytes[..10_000])), (202, 10_000));
    for (at, end) in [(0, 5_000), (0, 10_000), (500, 12_000)] {
        assert_eq!(part(&service, "a", at, None, &other[at..end]).refusal(), (400, "invalid".into()), "{at}..{end}");
    }
    let answer = part(&service, "a", 9_000, Some(bytes.len()), &bytes[9_000..]);
    assert_eq!((answer.status, &answer.json()["durable"]), (200, &3.into()), "{}", answer.text());
    assert_eq!(service.stream("app"), bytes);
}

#[test]
fn a_part_that_goes_on_after_its_own_total_is_invalid() {
    let service = service(|_| {});
    assert_eq!(part(&service, "a", 0, Some(400), &[7; 500]).refusal(), (400, "invalid".into()));
}

#[test]
fn a_base_in_parts_starts_a_generation_when_it_is_whole() {
    let service = service(|_| {});
    assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
    let base = base(20);
    let send = |at: usize, total: &str, body: &[u8]| {
        service.call("PUT", &format!("/logs/db/generations/2?upload=b&at={at}{total}"), "", body)
    };
    let (first, last) = base.split_at(30_000);
    assert_eq!(received(&send(0, "", first)), (202, 30_000));
    assert_eq!(service.status("db")["generation"], 1);
    let total = format!("&total={}", base.len());
    for _ in 0..2 {
        let answer = send(30_000, &total, last);
        assert_eq!((answer.status, &answer.json()["generation"]), (201, &2.into()), "{}", answer.text());
    }
    assert_eq!(service.get("/logs/db/base").body, base);
}
