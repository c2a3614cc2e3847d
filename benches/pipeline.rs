//! SQL over HTTP on loopback, on files: small pushes as the sync clients make them (what was pushed last, then one batch with
//! one row), by one client to one database and by 16 to 16; and many databases in one process, few of them active.
//!
//! Rounds of what is compared take turns, and medians are printed with their spread: `median (least to most)`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use logmirror::api::CreateLog;
use logmirror::format::LogFormat;
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings};
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use logmirror::worker::{WorkerProgram, WorkerSettings};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const CLIENTS: usize = 16;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const DATABASES: usize = 2000;
const ACTIVE: usize = 50;

struct Client {
    wire: BufReader<TcpStream>,
    log: String,
    pushed: u64,
}

impl Client {
    fn new(address: SocketAddr, log: String) -> Client {
        let stream = TcpStream::connect(address).expect("the service");
        stream.set_nodelay(true).expect("a socket option");
        Client { wire: BufReader::new(stream), log, pushed: 0 }
    }

    fn call(&mut self, body: &str) -> String {
        let (log, bytes) = (&self.log, body.len());
        let head =
            format!("POST /logs/{log}/v2/pipeline HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\r\n");
        self.wire.get_mut().write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).expect("a connection");
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            let read = self.wire.read_line(&mut line).expect("an answer");
            assert_ne!(read, 0, "the service closed the connection");
            let value = line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().parse());
            length = value.map_or(length, |value| value.expect("a length"));
        }
        let mut text = vec![0; length];
        self.wire.read_exact(&mut text).expect("a whole answer");
        String::from_utf8(text).expect("text")
    }

    /// What the sync clients send for one row.
    fn push(&mut self) {
        let known = r#"{"baton":null,"requests":[{"type":"batch","batch":{"steps":[{"stmt":{"sql":"SELECT pull_gen, change_id FROM turso_sync_last_change_id WHERE client_id = ?","args":[{"type":"text","value":"bench"}],"want_rows":true}}]}}]}"#;
        self.call(known);
        self.pushed += 1;
        let step = |sql: &str, args: &str| {
            format!(
                r#"{{"condition":{{"type":"not","cond":{{"type":"is_autocommit"}}}},"stmt":{{"sql":"{sql}","args":[{args}],"want_rows":false}}}}"#
            )
        };
        let integer = |n: u64| format!(r#"{{"type":"integer","value":"{n}"}}"#);
        let row =
            format!(r#"{},{{"type":"text","value":"some text of a row of {}"}}"#, integer(self.pushed), self.pushed);
        let last = format!(r#"{{"type":"text","value":"bench"}},{},{}"#, integer(0), integer(self.pushed));
        let steps = [
            r#"{"stmt":{"sql":"BEGIN IMMEDIATE","want_rows":false}}"#.to_owned(),
            step(
                "CREATE TABLE IF NOT EXISTS turso_sync_last_change_id (client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)",
                "",
            ),
            step("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b TEXT)", ""),
            step("INSERT INTO t(a, b) VALUES (?, ?) ON CONFLICT(a) DO UPDATE SET b = excluded.b", &row),
            step(
                "INSERT INTO turso_sync_last_change_id(client_id, pull_gen, change_id) VALUES (?, ?, ?) ON CONFLICT(client_id) DO UPDATE SET pull_gen=excluded.pull_gen, change_id=excluded.change_id",
                &last,
            ),
            step("COMMIT", ""),
        ];
        let body =
            format!(r#"{{"baton":null,"requests":[{{"type":"batch","batch":{{"steps":[{}]}}}}]}}"#, steps.join(","));
        let answer = self.call(&body);
        assert!(answer.contains(r#""type":"ok""#) && !answer.contains("message"), "{answer}");
    }
}

/// Pushes of these clients in a round, a second.
fn rate(clients: &mut [Client]) -> f64 {
    let begun = Instant::now();
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let pushing = clients.iter_mut().map(|client| {
            scope.spawn(move || {
                let mut count = 0;
                while begun.elapsed() < ROUND {
                    client.push();
                    count += 1;
                }
                count
            })
        });
        let pushing: Vec<_> = pushing.collect();
        pushing.into_iter().map(|thread| thread.join().expect("pushes")).collect()
    });
    counts.iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64()
}

fn spread(mut figures: Vec<f64>) -> (f64, String) {
    figures.sort_by(f64::total_cmp);
    let (median, most) = (figures[figures.len() / 2], figures[figures.len() - 1]);
    (median, format!("{median:.0} ({:.0} to {most:.0})", figures[0]))
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
}

/// A service with its databases, on files.
struct Rig {
    _dir: TempDir,
    _runtime: Runtime,
    address: SocketAddr,
    clients: Vec<Client>,
}

/// `workers` processes run SQL; with 0 the service does.
fn start(workers: usize) -> Rig {
    let dir = tempfile::tempdir().expect("a directory for the data");
    let data = Arc::new(FsRepo::open(dir.path()).expect("that directory"));
    let registry = Arc::new(Registry::open(data, Settings::default()).expect("an empty data directory"));
    for n in 0..DATABASES {
        let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
        registry.create(&format!("db-{n}"), wanted).expect("a new log");
    }
    let runtime = Runtime::new().expect("threads");
    let server = Server::bind("127.0.0.1:0", registry, Timeouts::default(), CONNECTIONS_MAX);
    let server = runtime.block_on(server).expect("a free port");
    let program = WorkerProgram { path: env!("CARGO_BIN_EXE_logmirror").into(), args: vec!["sql-worker".into()] };
    let server = match NonZeroUsize::new(workers) {
        Some(count) => server.with_sql_workers(WorkerSettings { count, ..WorkerSettings::of(program) }),
        None => server,
    };
    let address = server.address().expect("a bound socket");
    runtime.spawn(server.run(std::future::pending()));

    Rig { _dir: dir, _runtime: runtime, address, clients: Vec::new() }
}

impl Rig {
    fn connect(&mut self) {
        self.clients = (0..CLIENTS).map(|n| Client::new(self.address, format!("db-{n}"))).collect();
        self.clients.iter_mut().for_each(Client::push);
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let workers = available_parallelism().map_or(1, NonZeroUsize::get);
    let mut rigs = [0, workers].map(start);
    // Once both are there: connections that nobody uses are closed.
    rigs.iter_mut().for_each(Rig::connect);
    let mut figures = [(); 2].map(|()| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (rig, (one, all)) in rigs.iter_mut().zip(&mut figures) {
            one.push(rate(&mut rig.clients[..1]));
            all.push(rate(&mut rig.clients));
        }
    }
    let mut medians = Vec::new();
    for ((one, all), place) in figures.into_iter().zip(["the service itself", "workers"]) {
        let ((one, one_text), (all, all_text)) = (spread(one), spread(all));
        println!("SQL in {place}: small pushes a second, one client: {one_text}");
        println!("SQL in {place}: {CLIENTS} clients, a database each: {all_text}; ratio {:.1}", all / one);
        medians.push((one, all));
    }
    if let [(one, all), (one_in_workers, all_in_workers)] = medians[..] {
        println!("workers beside the service itself: {:.2}, {:.2}", one_in_workers / one, all_in_workers / all);
    }
    let address = rigs[0].address;

    println!("resident with {DATABASES} databases, {CLIENTS} in use: {} MB", resident());
    let mut active: Vec<Client> = (0..ACTIVE).map(|n| Client::new(address, format!("db-{}", 100 + n))).collect();
    for _ in 0..20 {
        active.iter_mut().for_each(Client::push);
    }
    println!("and {ACTIVE} more in use: {} MB", resident());
}
