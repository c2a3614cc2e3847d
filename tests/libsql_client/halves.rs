//! Transactions of several batches of which a server has only the first: ours, and those of others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use logmirror::client::Client;
use logmirror::format::LogFormat;
use logmirror::sync::{Direction, SyncError};

use crate::fake::Fault;
use crate::sqlite::{self, dump, large, rows};
use crate::support::process::{Ended, Mirror, Service, arg, mirror, until};
use crate::{Stage, beside, frames, info};

/// The prefix of the calls that push frames from `start` on.
fn pushes_from(start: u32) -> &'static str {
    Box::leak(format!("POST sync/1/{start}/").into_boxed_str())
}

#[test]
fn the_rest_of_a_transaction_is_sent_also_when_its_frames_were_checkpointed() {
    for (answer_lost, changed) in [(false, true), (false, false), (true, true)] {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        let whole = stage.fake.frames();
        sqlite::run_and_die(&db, &large(60));
        let fault = if answer_lost { Fault::Done(418, "lost".into()) } else { Fault::Answer(418, "busy".into()) };
        stage.fake.fault(pushes_from(whole + 21), fault);
        stage.run(Direction::Push, &db, 10).unwrap_err();
        assert_eq!(stage.fake.frames(), whole + 20 + 10 * u32::from(answer_lost), "the server has a part of it");
        if changed {
            sqlite::run(&db, "DELETE FROM t WHERE a % 3 = 0").unwrap();
        }
        sqlite::run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        stage.push(&db).unwrap();
        assert_eq!(info(&db).1, stage.fake.frames());
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db), "{answer_lost} {changed}");
        assert_eq!(stage.push(&db).unwrap().bytes, 0, "nothing is sent twice");
    }
}

#[test]
fn the_rest_of_a_transaction_is_sent_from_the_frames_where_they_are_still_there() {
    for restarted in [false, true] {
        let stage = Stage::new();
        let (db, replica) = (stage.database(&rows(10)), stage.path("replica.db"));
        stage.push(&db).unwrap();
        if restarted {
            sqlite::run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            sqlite::run_and_die(&db, &rows(1));
            stage.push(&db).unwrap();
        }
        let whole = stage.fake.frames();
        sqlite::run_and_die(&db, &large(60));
        stage.fake.fault(pushes_from(whole + 21), Fault::Answer(418, "busy".into()));
        stage.run(Direction::Push, &db, 10).unwrap_err();
        let total = whole + frames(&db) - if restarted { 1 } else { whole };
        assert_eq!(stage.fake.frames(), whole + 20);
        stage.push(&db).unwrap();
        assert_eq!((stage.fake.frames(), info(&db).1), (total, total), "{restarted}: nothing is sent twice");
        stage.pull(&replica).unwrap();
        assert_eq!(dump(&replica), dump(&db), "{restarted}");
    }
}

#[test]
fn a_transaction_of_another_client_without_its_end_is_named_with_what_to_do() {
    for checkpointed in [false, true] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        let whole = stage.fake.frames();
        let mut frame = stage.fake.store().generations[0].frames.last().unwrap().clone();
        frame[4..8].fill(0);
        for _ in 0..3 {
            frame[100] ^= 1;
            stage.fake.store().generations[0].frames.push(frame.clone());
        }
        sqlite::run_and_die(&db, &rows(2));
        if checkpointed {
            sqlite::run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let error = stage.push(&db).unwrap_err();
        let said = error.to_string();
        let (first, last) = (whole + 1, whole + 3);
        let expected =
            matches!(error, SyncError::Unfinished { generation: 1, first: a, last: b } if (a, b) == (first, last));
        assert!(expected && error.is_data(), "{said}");
        assert!(said.contains(&format!("frames {first}..={last} of generation 1")), "{said}");
        assert!(said.contains("without its end") && said.contains("push it again"), "{said}");
        assert_eq!(stage.fake.frames(), last, "nothing is put behind it");
        if checkpointed {
            // Where it is not known what was pushed, either.
            std::fs::remove_file(beside(&db, "-info")).unwrap();
            let error = stage.push(&db).unwrap_err();
            assert!(
                matches!(error, SyncError::Unfinished { first: a, last: b, .. } if (a, b) == (first, last)),
                "{error}"
            );
        }
    }
}

#[test]
fn frames_of_a_server_that_no_database_has_are_refused_by_number() {
    for (word, value) in [(0, u32::MAX), (0, 0), (4, u32::MAX)] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        sqlite::run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        sqlite::run(&db, "UPDATE t SET b = 1").unwrap();
        stage.fake.store().generations[0].frames[3][word..word + 4].copy_from_slice(&value.to_be_bytes());
        let before = stage.fake.frames();
        let error = stage.push(&db).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("frame 4 of generation 1"), "{said}");
        assert!(matches!(error, SyncError::Protocol { .. }), "{said}");
        assert_eq!(stage.fake.frames(), before);
    }
}

#[test]
fn frames_of_others_in_the_next_generation_are_a_conflict() {
    for checkpointed in [false, true] {
        let stage = Stage::new();
        let db = stage.database(&rows(10));
        stage.push(&db).unwrap();
        let other = stage.fake.store().generations[0].frames.last().unwrap().clone();
        stage.fake.roll();
        stage.fake.store().generations[1].frames.push(other);
        sqlite::run_and_die(&db, "UPDATE t SET b = 1");
        if checkpointed {
            sqlite::run(&db, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let error = stage.push(&db).unwrap_err();
        assert!(matches!(error, SyncError::Conflict { generation: 2, start: 1, server: 1 }), "{error}");
        assert_eq!(stage.fake.frames(), 1);
    }
}

/// Passes requests on to a service, and does something before one of the pushes.
struct Between {
    address: std::net::SocketAddr,
    pushes: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Passing {
    service: String,
    http: reqwest::Client,
    log: Client,
    pushes: Arc<AtomicUsize>,
    before: usize,
    what: Before,
}

#[derive(Clone, Copy)]
enum Before {
    /// The log is rolled over.
    Roll,
    /// The push is refused, and all after it.
    Refuse,
}

impl Between {
    fn start(service: &Service, before: usize, what: Before) -> Between {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let pushes = Arc::<AtomicUsize>::default();
        let passing = Passing {
            service: service.address().to_owned(),
            http: reqwest::Client::new(),
            log: service.client("app"),
            pushes: pushes.clone(),
            before,
            what,
        };
        let router = Router::new().fallback(pass).with_state(passing);
        runtime.spawn(async { axum::serve(listener, router).await.unwrap() });
        Between { address, pushes, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("libsql+http://{}/logs/app", self.address)
    }
}

async fn pass(State(passing): State<Passing>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    if parts.method == "POST" {
        let number = passing.pushes.fetch_add(1, Ordering::SeqCst);
        match passing.what {
            Before::Roll if number == passing.before => drop(passing.log.checkpoint(false).await.unwrap()),
            Before::Refuse if number >= passing.before => return StatusCode::IM_A_TEAPOT.into_response(),
            _ => {}
        }
    }
    let url = format!("http://{}{}", passing.service, parts.uri);
    let method = reqwest::Method::from_bytes(parts.method.as_str().as_bytes()).unwrap();
    let answer = passing.http.request(method, url).body(body).send().await.unwrap();
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap();
    (status, Body::from(answer.bytes().await.unwrap())).into_response()
}

fn service(data: &Path) -> Service {
    let service = Service::start(data);
    service.call(service.client("app").create(LogFormat::Wal, None)).unwrap();
    service
}

fn url(service: &Service) -> String {
    format!("libsql+{}", service.url("app"))
}

fn held(service: &Service) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.db");
    let restored = Mirror::command(&["restore", &service.url("app"), arg(&out), "--json"]).ended();
    assert_eq!(restored.code, Some(0), "{restored:?}");
    dump(&out)
}

fn is_pushed(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_transaction_in_the_middle_of_which_the_log_is_rolled_over_goes_whole_into_the_next_generation() {
    for restarted in [false, true] {
        let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let service = service(data.path());
        let path = dir.path().join("app.db");
        sqlite::run_and_die(&path, &rows(10));
        is_pushed(&mirror(arg(&path), url(&service), &[]));
        if restarted {
            // The frames of its WAL are not those of the generation any more.
            sqlite::run(&path, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            sqlite::run_and_die(&path, &rows(1));
            is_pushed(&mirror(arg(&path), url(&service), &[]));
        }
        sqlite::run_and_die(&path, &large(60));
        let between = Between::start(&service, 2, Before::Roll);
        is_pushed(&mirror(arg(&path), between.url(), &["--batch", "10"]));
        assert!(between.pushes.load(Ordering::SeqCst) > 8);
        assert_eq!(held(&service), dump(&path), "{restarted}");
        let status = service.call(service.client("app").status()).unwrap();
        assert_eq!(status.generation.unwrap().0, 2);
        assert_eq!(info(&path).0, 2);
        assert_eq!(mirror(arg(&path), url(&service), &[]).last("done")["bytes"], 0, "nothing is sent twice");
    }
}

#[test]
fn a_transaction_of_which_the_service_forgot_the_first_batches_is_sent_whole() {
    for case in 0..8 {
        let [is_first, rolled, checkpointed] = [1, 2, 4].map(|bit| case & bit > 0);
        let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut service = service(data.path());
        let path = dir.path().join("app.db");
        if !is_first {
            sqlite::run_and_die(&path, &rows(10));
            is_pushed(&mirror(arg(&path), url(&service), &[]));
            sqlite::run(&path, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        sqlite::run_and_die(&path, &large(60));
        let between = Between::start(&service, 2, Before::Refuse);
        assert_ne!(mirror(arg(&path), between.url(), &["--batch", "10"]).code, Some(0));
        assert!(beside(&path, "-info").exists());
        service.kill();
        service.restart();
        if rolled {
            service.call(service.client("app").checkpoint(false)).unwrap();
        }
        if checkpointed {
            // Its frames are gone as well.
            sqlite::run(&path, "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        is_pushed(&mirror(arg(&path), url(&service), &["--batch", "10"]));
        assert_eq!(held(&service), dump(&path), "{is_first} {rolled} {checkpointed}");
        let again = mirror(arg(&path), url(&service), &[]);
        assert_eq!(again.last("done")["bytes"], 0, "{is_first} {rolled} {checkpointed}: nothing is sent twice");
    }
}

#[test]
fn a_follower_goes_on_whenever_the_log_is_rolled_over_within_a_transaction() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = service(data.path());
    let path = dir.path().join("app.db");
    let mut app = sqlite::Open::start(&path);
    app.run("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 50;");
    app.run(&rows(3));
    for before in 1..6 {
        let between = Between::start(&service, before, Before::Roll);
        let follower = Mirror::start(arg(&path), between.url(), &["--follow", "--batch", "7"]);
        follower.wait_for("its start", |line| line["event"] == "started");
        for _ in 0..4 {
            app.run(&large(30));
            app.run("DELETE FROM t WHERE a % 2 = 0;");
        }
        until("the log to hold all of it", || (held(&service) == dump(&path)).then_some(()));
        let ended = follower.terminate();
        assert_eq!(ended.code, Some(0), "{before}: {ended:?}");
    }
}
