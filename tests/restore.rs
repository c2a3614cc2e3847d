//! `logmirror restore`, against real databases: from directories and from a service.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use logmirror::checkpoint::{Wanted, restore_dir};
use logmirror::offset::{Generation, Offset};
use serde_json::{Value, json};
use support::commitlog::{Draw, seed};
use support::frames::FrameLog;
use support::history::history;
use tempfile::TempDir;

/// Puts a generation where a restore finds it.
fn store(dir: &Path, log: &FrameLog, cuts: &[u64]) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in log.files(cuts) {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn wanted(out: PathBuf, to: Option<u64>) -> Wanted {
    Wanted { to: to.map(Offset), generation: None, out, overwrite: false, plain: false }
}

#[test]
fn every_one_of_200_transactions_restores_to_what_sqlite_had_then() {
    let mut draw = Draw(seed());
    // The log with the largest pages is long, so it is restored to every seventh only.
    for (page_size, base, step) in [(4096, true, 1), (512, false, 1), (65_536, false, 7)] {
        let (dir, history) = (tempfile::tempdir().unwrap(), history(page_size, base));
        let ends = history.ends();
        let mut cuts: Vec<u64> = (0..7).map(|_| ends[draw.below(199) as usize]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let generation = dir.path().join("generation");
        store(&generation, &history.log, &cuts);
        println!("pages of {page_size}, segments behind {cuts:?}");
        for end in ends.iter().rev().step_by(step) {
            let out = dir.path().join(format!("restored-{end}.db"));
            let (_, folded) = restore_dir(&generation, &wanted(out.clone(), Some(*end))).unwrap();
            assert_eq!((folded.frame.0, folded.page_size), (*end, Some(page_size)));
            history.assert_is(*end, &out);
        }
        let left: Vec<String> =
            support::files_named(dir.path()).into_iter().filter(|name| name.contains(".tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A small log with the frames 2, 10, 11, 13 as commits, in two segments.
fn small() -> FrameLog {
    FrameLog::new(1024, false)
        .with_base(6)
        .commit(&[1, 3], 6)
        .commit(&[1, 7, 8, 9, 10, 2, 11, 11], 11)
        .commit(&[2], 11)
        .commit(&[1, 4], 5)
}

fn logmirror(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.env_remove("LOGMIRROR_TOKEN").arg("restore").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// Exit code, stdout, stderr.
fn restore(args: &[&str]) -> (i32, String, String) {
    let output = logmirror(args);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_directory_may_be_plain_a_generation_or_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (small(), small().commit(&[5], 5));
    let (log, plain, out) = (path(&dir, "log"), path(&dir, "plain"), path(&dir, "out.db"));
    store(&dir.path().join("log/0000000001"), &first, &[10]);
    store(&dir.path().join("log/0000000002"), &second, &[2, 11]);
    store(Path::new(&plain), &first, &[11]);
    let meta = dir.path().join("log/log.json");
    fs::write(&meta, r#"{"format":"wal","id":"x","generation":2,"first":1}"#).unwrap();

    let restored = |args: &[&str], wanted: Vec<u8>, generation: Value| {
        let args: Vec<&str> = args.iter().copied().chain(["--json", "--force"]).collect();
        let (code, told, errors) = restore(&args);
        assert_eq!(code, 0, "{args:?}: {errors}");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(fs::read(&out).unwrap() == wanted, "{args:?}");
        assert_eq!((&told["generation"], told["bytes"].as_u64()), (&generation, Some(wanted.len() as u64)), "{told}");
        told
    };
    let told = restored(&[&log, &out], second.state(14), json!(2));
    assert_eq!((&told["frame"], &told["page_size"], &told["torn"]), (&json!(14), &json!(1024), &json!(0)));
    restored(&[&log, &out, "--to", "11"], second.state(11), json!(2));
    restored(&[&log, &out, "--generation", "1"], first.state(13), json!(1));
    restored(&[&format!("{log}/0000000001"), &out], first.state(13), json!(1));
    restored(&[&format!("{log}/0000000001"), &out, "--generation", "1", "--to", "0"], first.base.clone(), json!(1));
    restored(&[&plain, &out, "--to", "2"], first.state(2), Value::Null);

    let refused = |args: &[&str], wanted: i32, says: &str| {
        let (code, _, errors) = restore(args);
        assert!(code == wanted && errors.contains(says), "{args:?}: {code}, {errors}");
    };
    let other = path(&dir, "other.db");
    refused(&[&log, &other, "--generation", "3"], 3, "0000000003");
    refused(&[&plain, &other, "--generation", "1"], 2, "holds one generation");
    refused(&[&path(&dir, "nowhere"), &other], 3, "nowhere");
    refused(&[&plain, &path(&dir, "nowhere/out.db")], 3, "nowhere");
    refused(&[&plain, &plain], 2, "is a directory");
    refused(&[&plain, &format!("{plain}/base.db"), "--force"], 2, "is what its generation starts from");
    refused(&[dir.path().to_str().unwrap(), &other], 1, "holds neither base.db nor segments");
    fs::write(&meta, r#"{"format":"commitlog","generation":1}"#).unwrap();
    refused(&[&log, &other], 1, "is a commitlog");
    fs::write(&meta, "{").unwrap();
    refused(&[&log, &other], 1, "log.json is damaged");
    fs::remove_file(&meta).unwrap();
    refused(&[&log, &other], 2, "--generation, up to 2");
    restored(&[&log, &out, "--generation", "2"], second.state(14), json!(2));
    assert!(!Path::new(&other).exists());
}

#[test]
fn a_frame_that_is_no_commit_is_an_error_that_names_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), &small(), &[10]);
    let (place, out) = (dir.path().to_str().unwrap(), path(&dir, "out.db"));
    let (code, told, errors) = restore(&[place, &out, "--to", "7", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(code, 2);
    assert_eq!((&told["error"], &told["before"], &told["after"]), (&json!("not-a-commit"), &json!(2), &json!(10)));
    assert!(errors.contains("no transaction ends with frame 7; 2 and 10 are the nearest commits"), "{errors}");
    let (code, _, errors) = restore(&[place, &out, "--to", "99"]);
    assert!(code == 2 && errors.contains("13 is the last commit; frames count from 1 in each generation"), "{errors}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn nothing_that_is_there_is_replaced_unless_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let log = small();
    store(&dir.path().join("log"), &log, &[]);
    let (place, out) = (path(&dir, "log"), path(&dir, "out.db"));
    fs::write(&out, "precious").unwrap();
    let (code, _, errors) = restore(&[&place, &out]);
    assert!(code == 2 && errors.contains("is there already"), "{errors}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    // What is no database was not meant.
    let (code, _, errors) = restore(&[&place, &out, "--force"]);
    assert!(code == 2 && errors.contains("out.db exists and is no SQLite database"), "{errors}");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    let precious = [&b"SQLite format 3\0"[..], b"precious"].concat();
    fs::write(&out, &precious).unwrap();
    // SQLite would play these into whatever stands beside them.
    for suffix in ["-wal", "-journal"] {
        fs::write(format!("{out}{suffix}"), "of another database").unwrap();
        let (code, _, errors) = restore(&[&place, &out, "--force"]);
        assert!(code == 2 && errors.contains("belongs to the database that was there before"), "{errors}");
        assert_eq!(fs::read(&out).unwrap(), precious);
        fs::remove_file(format!("{out}{suffix}")).unwrap();
    }
    assert_eq!(restore(&[&place, &out, "--force"]).0, 0);
    assert!(fs::read(&out).unwrap() == log.state(13));
    assert_eq!(support::files_named(dir.path()), ["out.db"]);
}

#[test]
fn damage_is_named_and_what_is_sound_before_it_still_restores() {
    let dir = tempfile::tempdir().unwrap();
    let log = small();
    store(dir.path(), &log, &[10]);
    let (place, out) = (dir.path().to_str().unwrap(), path(&dir, "out.db"));
    let second = dir.path().join("00000000000000000011.wal");
    let mut bytes = fs::read(&second).unwrap();
    bytes[100] ^= 4;
    fs::write(&second, &bytes).unwrap();
    let (code, told, errors) = restore(&[place, &out, "--json"]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("checksum mismatch at frame 11 (segment 11, byte 32); whole up to frame 10"), "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["error"], "corrupt");
    assert!(!Path::new(&out).exists());
    assert_eq!(restore(&[place, &out, "--to", "10"]).0, 0);
    assert!(fs::read(&out).unwrap() == log.state(10));

    bytes[100] ^= 4;
    bytes.truncate(bytes.len() - 1);
    fs::write(&second, &bytes).unwrap();
    let (code, told, errors) = restore(&[place, &out, "--json", "--force"]);
    assert!(code == 0 && errors.contains("no whole transaction"), "{errors}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["frame"], &told["torn"]), (&json!(11), &json!(2 * 1048 - 1)));
}

#[test]
fn a_restore_that_is_killed_leaves_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let pages: Vec<u32> = (1..=3000).collect();
    let log = FrameLog::new(4096, false).commit(&pages, 3000).commit(&pages[..2000], 2500);
    store(&dir.path().join("log"), &log, &[3000]);
    let (place, out) = (dir.path().join("log"), dir.path().join("out.db"));
    let (mut draw, wanted) = (Draw(seed()), log.state(5000));
    for _ in 0..20 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        let mut child = command.arg("restore").arg(&place).arg(&out).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(draw.below(150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            assert!(fs::read(&out).unwrap() == wanted, "it is whole or it is not there");
            fs::remove_file(&out).unwrap();
        }
    }
    assert_eq!(logmirror(&[place.to_str().unwrap(), out.to_str().unwrap()]).status.code(), Some(0));
    assert!(fs::read(&out).unwrap() == wanted);
}

/// What a service would answer, with faults.
#[derive(Clone, Default)]
struct Served {
    base: Vec<u8>,
    stream: Vec<u8>,
    durable: u64,
    format: &'static str,
    token: Option<&'static str>,
    /// The connection breaks off after this many bytes of the log.
    break_at: Option<usize>,
    /// How many times it says that the generation before is the current one.
    behind: usize,
}

type Shared = Arc<(Served, Mutex<Vec<String>>)>;

/// A service with one log at generation 3, and what was asked of it.
struct Service {
    shared: Shared,
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Service {
    fn start(served: Served) -> Service {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared: Shared = Arc::new((served, Mutex::default()));
        let router = Router::new()
            .route("/logs/app", get(answer))
            .route("/logs/app/{part}", get(answer))
            .with_state(shared.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/logs/app", listener.local_addr().unwrap());
        runtime.spawn(axum::serve(listener, router).into_future());
        Service { shared, url, _runtime: runtime }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.1.lock().unwrap())
    }
}

async fn answer(
    State(shared): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    uri: axum::http::Uri,
    headers: HeaderMap,
) -> Response {
    let (served, asked) = &*shared;
    let times = {
        let mut asked = asked.lock().unwrap();
        asked.push(uri.to_string());
        asked.iter().filter(|asked| *asked == "/logs/app").count()
    };
    let shown = headers.get("authorization").map(|value| value.to_str().unwrap());
    if let Some(token) = served.token.filter(|token| shown != Some(&format!("Bearer {token}"))) {
        let body = json!({"error": "unauthorized", "message": format!("not the token of {} letters", token.len())});
        return (StatusCode::UNAUTHORIZED, axum::Json(body)).into_response();
    }
    let other = query.get("generation").is_some_and(|generation| generation != "3");
    match uri.path() {
        "/logs/app" => {
            let (format, durable, generation) =
                (served.format, served.durable, if times > served.behind { 3 } else { 2 });
            axum::Json(
                json!({"log": "app", "format": format, "id": "", "generation": generation, "epoch": 0, "first": 1,
                "next": durable, "durable": durable, "segments": 1, "bytes": 0, "last_commit": null, "state": "ok",
                "error": null}),
            )
            .into_response()
        }
        _ if other => {
            let body = json!({"error": "pruned", "message": "that generation is gone"});
            (StatusCode::GONE, axum::Json(body)).into_response()
        }
        "/logs/app/base" => served.base.clone().into_response(),
        _ => {
            // In pieces that cut frames and headers anywhere.
            let mut pieces: Vec<std::io::Result<Vec<u8>>> =
                served.stream.chunks(777).map(|piece| Ok(piece.to_vec())).collect();
            if let Some(at) = served.break_at {
                pieces.truncate(at / 777);
                pieces.push(Err(std::io::Error::other("broken")));
            }
            // As the service marks what it sends.
            let fields = [("content-type", "application/octet-stream"), ("log-format-version", "0")];
            (fields, Body::from_stream(futures::stream::iter(pieces))).into_response()
        }
    }
}

fn served(log: &FrameLog, cuts: &[u64]) -> Served {
    let durable = log.frames.len() as u64 + 1;
    Served { base: log.base.clone(), stream: log.stream(cuts), durable, format: "wal", ..Served::default() }
}

#[test]
fn a_service_restores_to_each_of_200_transactions_too() {
    let (dir, history) = (tempfile::tempdir().unwrap(), history(4096, true));
    let ends = history.ends();
    let service = Service::start(served(&history.log, &[ends[10], ends[11], ends[150]]));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = logmirror::client::Client::new(&service.url).unwrap();
    for end in &ends {
        let out = dir.path().join(format!("restored-{end}.db"));
        let wanted = wanted(out.clone(), Some(*end));
        let (generation, folded) = runtime.block_on(logmirror::checkpoint::restore_url(&client, &wanted)).unwrap();
        assert_eq!((generation, folded.frame.0), (Some(Generation(3)), *end));
        history.assert_is(*end, &out);
    }
}

#[test]
fn a_url_restores_as_a_directory_does() {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (small(), path(&dir, "out.db"));
    let service = Service::start(served(&log, &[2, 11]));
    let (code, told, errors) = restore(&[&service.url, &out, "--json"]);
    assert_eq!(code, 0, "{errors}");
    assert!(fs::read(&out).unwrap() == log.state(13));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["frame"], &told["generation"], &told["bytes"]), (&json!(13), &json!(3), &json!(5 * 1024)));
    let base = "/logs/app/base?generation=3";
    let described = "/logs/app?generation=3";
    assert_eq!(service.asked(), ["/logs/app", described, base, "/logs/app/commits?from=1&generation=3"]);

    for (to, wanted) in [(0, log.base.clone()), (2, log.state(2)), (10, log.state(10)), (11, log.state(11))] {
        assert_eq!(restore(&[&service.url, &out, "--force", "--to", &to.to_string()]).0, 0);
        assert!(fs::read(&out).unwrap() == wanted, "{to}");
    }
    let (code, told, _) = restore(&[&service.url, &out, "--force", "--to", "5", "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["before"], &told["after"]), (2, &json!(2), &json!(10)));
    let (code, _, errors) = restore(&[&service.url, &out, "--force", "--to", "14"]);
    assert!(code == 2 && errors.contains("13 is the last commit"), "{errors}");
    let (code, _, errors) = restore(&[&service.url, &out, "--force", "--generation", "2"]);
    assert!(code == 3 && errors.contains("that generation is gone"), "{errors}");
    assert!(fs::read(&out).unwrap() == log.state(11), "what was there stays");
    service.asked();
    assert_eq!(restore(&[&service.url, &out]).0, 2);
    assert_eq!(service.asked(), [""; 0], "nothing was asked for that cannot be used");

    let empty = Service::start(Served { durable: 1, format: "wal", ..Served::default() });
    let (code, _, errors) = restore(&[&empty.url, &out, "--force"]);
    assert!(code == 1 && errors.contains("base.db is missing"), "{errors}");
    assert!(fs::read(&out).unwrap() == log.state(11), "nothing takes the place of something");
    assert_eq!(support::files_named(dir.path()), ["out.db"]);
}

#[test]
fn a_token_is_shown_and_a_wrong_one_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (small(), path(&dir, "out.db"));
    let service = Service::start(Served { token: Some("open-sesame"), ..served(&log, &[]) });
    for args in [&[][..], &["--token", "wrong"], &["--token", "\n"]] {
        let args: Vec<&str> = [service.url.as_str(), &out].into_iter().chain(args.iter().copied()).collect();
        let (code, _, errors) = restore(&args);
        assert!(code == 3 && errors.contains("not the token") || code == 2 && errors.contains("token"), "{errors}");
        assert!(!Path::new(&out).exists() && !errors.contains("wrong"), "{errors}");
    }
    assert_eq!(restore(&[&service.url, &out, "--token", "open-sesame"]).0, 0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    let output =
        command.args(["restore", &service.url, &out, "--force"]).env("LOGMIRROR_TOKEN", "open-sesame").output();
    assert!(output.unwrap().status.success());
}

#[test]
fn what_a_service_sends_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (small(), path(&dir, "out.db"));
    let sound = served(&log, &[10]);
    let fails = |served: Served, wanted: i32, says: &str| {
        let service = Service::start(served);
        let (code, _, errors) = restore(&[&service.url, &out]);
        assert!(code == wanted && errors.contains(says), "{code}, not {wanted}: {errors}, not {says}");
        assert!(support::files_named(dir.path()).is_empty(), "nothing is left");
    };
    let flipped = |at: usize| {
        let mut stream = sound.stream.clone();
        stream[at] ^= 1;
        Served { stream, ..sound.clone() }
    };
    fails(flipped(32 + 1048 * 4 + 24), 1, "checksum mismatch at frame 5 (segment 1, byte 4224); whole up to frame 2");
    fails(flipped(2 * 32 + 1048 * 10 + 2000), 1, "frame 12 (segment 11, byte 1080); whole up to frame 11");
    fails(flipped(8), 1, "frame 1 (segment 1, byte 0)");
    let cut = |bytes: usize| Served { stream: sound.stream[..bytes].to_vec(), ..sound.clone() };
    fails(cut(32 + 1048 * 2 + 100), 1, "frame 3 is cut after 100 bytes");
    fails(cut(32 + 1048 * 4), 1, "frame 5 is cut after 2096 bytes");
    fails(cut(32 + 1048 * 2), 1, "sent frames up to 2, but says that they are durable up to 13");
    fails(cut(20), 1, "cut");
    fails(Served { break_at: Some(3000), ..sound.clone() }, 3, "error");
    fails(Served { format: "commitlog", ..sound.clone() }, 1, "is a commitlog");
    fails(Served { base: vec![7; 100], ..sound.clone() }, 1, "neither in the base nor in the log");
    fails(Served { base: Vec::new(), ..sound.clone() }, 1, "neither in the base nor in the log");
    let (code, _, errors) = restore(&["http://127.0.0.1:1/logs/app", &out]);
    assert_eq!(code, 3, "{errors}");
    assert_eq!(restore(&["http://127.0.0.1:1/", &out]).0, 2);
}

/// The program, with these arguments: its exit code, and all that it printed.
fn program(args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    let output = command.env_remove("LOGMIRROR_TOKEN").args(args).stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The bytes of a segment; none where it is gone.
type Held<'a> = Option<&'a [u8]>;

#[test]
fn a_mirror_directory_that_lost_what_its_record_says_is_durable_is_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (log, source, mirror, out) = (small(), path(&dir, "source"), path(&dir, "mirror"), path(&dir, "out.db"));
    store(Path::new(&source), &log, &[]);
    let (code, text) = program(&["mirror", &source, &mirror]);
    assert_eq!(code, 0, "{text}");
    let segment = Path::new(&mirror).join("00000000000000000001.wal");
    let whole = fs::read(&segment).unwrap();
    let frame_len = log.header.frame_len() as usize;
    let mut rotten = whole.clone();
    rotten[whole.len() - 9] ^= 1;
    let cases: [(&str, Held<'_>, &[&str]); 5] = [
        ("its segment is gone", None, &["ends with frame 0", "durable up to frame 13"]),
        ("its segment is empty", Some(&[]), &["frame 1", "byte 0"]),
        (
            "the last transaction is gone",
            Some(&whole[..whole.len() - 2 * frame_len]),
            &["ends with frame 11", "frame 13"],
        ),
        ("it is cut inside a frame", Some(&whole[..whole.len() - 7]), &["frame 13 is cut", "frame 11"]),
        ("its last frame rotted", Some(&rotten), &["checksum mismatch at frame 13", "frame 11"]),
    ];
    for (what, bytes, says) in cases {
        match bytes {
            None => fs::remove_file(&segment).unwrap(),
            Some(bytes) => fs::write(&segment, bytes).unwrap(),
        }
        let (code, _, errors) = restore(&[&mirror, &out]);
        assert_eq!(code, 1, "{what}: {errors}");
        for text in says.iter().chain(&["sound copy", "--to "]) {
            assert!(errors.contains(text), "{what}: {text:?} is not in {errors}");
        }
        assert!(!Path::new(&out).exists(), "{what}");
        assert_eq!(program(&["verify", &mirror]).0, 1, "{what}");
        // What is whole can still be asked for.
        if bytes.is_some_and(|bytes| !bytes.is_empty()) {
            assert_eq!(restore(&[&mirror, &out, "--to", "11", "--force"]).0, 0, "{what}");
            assert!(fs::read(&out).unwrap() == log.state(11), "{what}");
            fs::remove_file(&out).unwrap();
        }
    }
    fs::write(&segment, &whole).unwrap();
    // What follows the durable end is what a crash leaves, as before.
    fs::write(&segment, [&whole[..], &whole[32..90]].concat()).unwrap();
    let (code, told, errors) = restore(&[&mirror, &out, "--json"]);
    assert!(code == 0 && told.contains("\"torn\":58"), "{code}: {told}{errors}");
    assert!(fs::read(&out).unwrap() == log.state(13));
    fs::remove_file(&out).unwrap();
    for file in ["base.db", "base.sums"] {
        fs::remove_file(Path::new(&mirror).join(file)).unwrap();
    }
    for to in ["13", "0"] {
        let (code, _, errors) = restore(&[&mirror, &out, "--to", to]);
        assert!(code == 1 && errors.contains("base.db") && errors.contains("missing"), "{code}: {errors}");
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_frame_of_a_page_that_no_database_has_is_none_wherever_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, out) = (path(&dir, "plain"), path(&dir, "out.db"));
    for (pages, size) in [(&[1, u32::MAX][..], 1), (&[1], u32::MAX), (&[u32::MAX - 1, u32::MAX], 1)] {
        let log = small().commit(pages, size);
        store(Path::new(&plain), &log, &[]);
        let (code, _, errors) = restore(&[&plain, &out, "--to", &log.frames.len().to_string()]);
        assert!(code == 1 || code == 2, "{code}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        let service = Service::start(served(&log, &[]));
        let (code, _, errors) = restore(&[&service.url, &out]);
        assert!(code == 1 && errors.contains("at frame 1"), "{code}: {errors}");
    }
    let mut left = support::files_named(dir.path());
    left.retain(|name| name.contains("tmp") || name.contains("out.db"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_symbolic_link_is_not_replaced_and_the_file_behind_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, real, link) = (path(&dir, "plain"), path(&dir, "real.db"), path(&dir, "link.db"));
    store(Path::new(&plain), &small(), &[]);
    fs::write(&real, small().state(2)).unwrap();
    std::os::unix::fs::symlink("real.db", &link).unwrap();
    let (code, _, errors) = restore(&[&plain, &link, "--force"]);
    assert!(code == 2 && errors.contains("link.db is a symbolic link") && errors.contains("real.db"), "{errors}");
    assert!(Path::new(&link).is_symlink() && fs::read(&real).unwrap() == small().state(2));
    assert_eq!(restore(&[&plain, &real, "--force"]).0, 0);
}

#[test]
fn a_file_is_no_log_to_restore_from() {
    let dir = tempfile::tempdir().unwrap();
    let (app, out) = (path(&dir, "app.db"), path(&dir, "out.db"));
    fs::write(&app, small().state(2)).unwrap();
    let (code, _, errors) = restore(&[&app, &out]);
    assert!(code == 2 && errors.contains("app.db is a file") && errors.contains("directory"), "{code}: {errors}");
}

#[test]
fn a_file_that_did_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = path(&dir, "plain");
    store(Path::new(&plain), &small(), &[]);
    let service = Service::start(served(&small(), &[]));
    let out = path(&dir, "out.db");
    for source in [&service.url, &plain] {
        // No file may have a byte.
        let limited = "trap '' XFSZ; ulimit -f 0; exec \"$@\"";
        let mut restoring = Command::new("/bin/sh");
        restoring.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_logmirror"), "restore", source, &out]);
        let Output { status, stderr, .. } = restoring.output().unwrap();
        let errors = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(3) && errors.contains("out.db") && errors.contains("too large"), "{errors}");
    }
}

#[test]
fn a_restore_begins_again_where_its_generation_goes_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (small(), path(&dir, "out.db"));
    let service = Service::start(Served { behind: 2, ..served(&log, &[]) });
    let (code, _, errors) = restore(&[&service.url, &out]);
    assert!(code == 0 && fs::read(&out).unwrap() == log.state(13), "{code}: {errors}");
    // One that was asked for by its number is gone.
    let (code, _, errors) = restore(&[&service.url, &out, "--force", "--generation", "2"]);
    assert!(code == 3 && errors.contains("that generation is gone"), "{errors}");
    // It is not tried for ever.
    let service = Service::start(Served { behind: usize::MAX, ..served(&log, &[]) });
    let (code, _, errors) = restore(&[&service.url, &out, "--force"]);
    assert!(code == 3 && errors.contains("that generation is gone"), "{errors}");
    assert_eq!(support::files_named(dir.path()), ["out.db"]);
}
