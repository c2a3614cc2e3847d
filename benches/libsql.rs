//! The libSQL sync server over loopback, on files: pushes of full batches beside write + fdatasync of as many bytes, pulls
//! beside the same bytes served natively, what it costs to verify a batch early and late in a log, and the checksum alone.
//!
//! Rounds of what is compared take turns, and medians are printed with their spread: `median (least to most)`.

use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use logmirror::format::wal::{Chain, WalHeader};
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings, Share};
use logmirror::offset::Generation;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use logmirror::sync::libsql::LibSql;
use reqwest::header::RANGE;
use tokio::runtime::Runtime;

const FRAME_BYTES: u64 = 4120;
/// Frames in a push of the published clients.
const BATCH: u64 = 128;
/// Batches in a round of pushes. Five rounds make more than 2,000 of them.
const BATCHES: usize = 410;
const ROUNDS: usize = 5;

/// Figures of the rounds.
struct Figures(Vec<f64>);

impl Figures {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (least, most) = self.0.iter().fold((f64::MAX, 0.0_f64), |(low, high), x| (low.min(*x), high.max(*x)));
        write!(f, "{:.0} ({least:.0} to {most:.0})", self.median())
    }
}

/// A replica that commits at the end of every batch.
struct Sender {
    header: WalHeader,
    chain: Chain,
    frames: u64,
    state: u64,
}

impl Sender {
    fn new(salts: [u32; 2]) -> Sender {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 0, salts };
        Sender { header, chain: header.seed(), frames: 0, state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn batch(&mut self) -> Bytes {
        let mut body = Vec::with_capacity((BATCH * FRAME_BYTES) as usize);
        let mut page = [0; 4096];
        for at in 1..=BATCH {
            for word in page.as_chunks_mut::<8>().0 {
                // xorshift64: cheap bytes that do not repeat
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                *word = self.state.to_le_bytes();
            }
            let number = (self.frames % 10_000) as u32 + 1;
            let (head, chain) = self.header.frame(self.chain, number, if at == BATCH { 10_000 } else { 0 }, &page);
            body.extend_from_slice(&head);
            body.extend_from_slice(&page);
            (self.chain, self.frames) = (chain, self.frames + 1);
        }
        body.into()
    }
}

/// A service on a directory, and a client of it.
struct Bench {
    runtime: Runtime,
    registry: Arc<Registry>,
    http: reqwest::Client,
    base: String,
}

impl Bench {
    fn start(dir: &Path) -> Bench {
        let runtime = Runtime::new().expect("threads");
        let data = Arc::new(FsRepo::open(dir).expect("a directory for the data"));
        let registry = Arc::new(Registry::open(data, Settings::default()).expect("an empty data directory"));
        let server = Server::bind("127.0.0.1:0", registry.clone(), Timeouts::default(), CONNECTIONS_MAX);
        let server = runtime.block_on(server).expect("a free port");
        let base = format!("http://{}/logs", server.address().expect("a bound socket"));
        runtime.spawn(server.run(std::future::pending()));
        let http = reqwest::Client::builder().tcp_nodelay(true).build().expect("a client");
        Bench { runtime, registry, http, base }
    }

    fn create(&self, log: &str) {
        let put = self.http.put(format!("{}/{log}", self.base)).body(r#"{"format":"wal"}"#).send();
        let answer = self.runtime.block_on(put).expect("a new log");
        assert!(answer.status().is_success());
    }

    async fn push(&self, log: &str, start: u64, body: Bytes) {
        let end = start + body.len() as u64 / FRAME_BYTES;
        let push = self.http.post(format!("{}/{log}/sync/1/{start}/{end}", self.base)).body(body).send();
        let text = push.await.expect("an answer").text().await.expect("a whole one");
        assert!(text.contains("\"ok\"") && text.contains(&format!(":{}", end - 1)), "{text}");
    }

    /// Takes all of an answer; its bytes.
    async fn take(&self, path: String, range: Option<(u64, u64)>) -> u64 {
        let mut get = self.http.get(format!("{}/{path}", self.base));
        if let Some((from, to)) = range {
            get = get.header(RANGE, format!("bytes={from}-{}", to - 1));
        }
        let mut answer = get.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        let mut bytes = 0;
        while let Some(chunk) = answer.chunk().await.expect("all of it") {
            bytes += black_box(chunk).len() as u64;
        }
        bytes
    }
}

/// A client that costs next to nothing, on a thread of its own: what is measured is the service.
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn connect(bench: &Bench) -> Wire {
        let address = bench.base.trim_start_matches("http://").trim_end_matches("/logs");
        let stream = TcpStream::connect(address).expect("the service");
        stream.set_nodelay(true).expect("a socket option");
        Wire(BufReader::new(stream))
    }

    fn push(&mut self, log: &str, start: u64, body: &[u8]) {
        let end = start + body.len() as u64 / FRAME_BYTES;
        let (path, bytes) = (format!("/logs/{log}/sync/1/{start}/{end}"), body.len());
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {bytes}\r\n\r\n");
        let sent = self.0.get_mut().write_vectored(&[IoSlice::new(head.as_bytes()), IoSlice::new(body)]);
        let rest = sent.expect("a connection").saturating_sub(head.len());
        self.0.get_mut().write_all(&body[rest..]).expect("a connection");
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line).expect("an answer");
            let value = line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().parse());
            length = value.map_or(length, |value| value.expect("a length"));
        }
        let mut text = vec![0; length];
        self.0.read_exact(&mut text).expect("a whole answer");
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("\"ok\"") && text.contains(&format!(":{}", end - 1)), "{text}");
    }
}

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}

fn pushes(bench: &Bench, dir: &Path, bodies: &[Bytes]) {
    let bytes = bodies.iter().map(|body| body.len() as u64).sum();
    let (mut raw, mut pushed) = (Figures(Vec::new()), Figures(Vec::new()));
    for round in 0..ROUNDS {
        let path = dir.join("raw");
        let mut file = File::create(&path).expect("a new file");
        let begun = Instant::now();
        for body in bodies {
            file.write_all(body).expect("space");
            file.sync_data().expect("a sync");
        }
        raw.0.push(rate(bytes, begun.elapsed()));
        std::fs::remove_file(&path).expect("its own file");
        let log = format!("push-{round}");
        bench.create(&log);
        let begun = Instant::now();
        let mut wire = Wire::connect(bench);
        for (start, body) in (1..).step_by(BATCH as usize).zip(bodies) {
            wire.push(&log, start, body);
        }
        pushed.0.push(rate(bytes, begun.elapsed()));
    }
    let count = ROUNDS * bodies.len();
    println!("push, {count} batches of {BATCH} frames, each durable before its answer, MB/s: {pushed}");
    println!("write + fdatasync of each batch, MB/s: {raw}; ratio {:.2}", pushed.median() / raw.median());
}

/// Pulls of the frames of the first segment, so that there is one file to serve natively.
fn pulls(bench: &Bench, log: &str) {
    let segment = bench.registry.get(log).expect("a log that was pushed").view().segments().next().copied();
    let frames = segment.expect("a segment").end.0 - 1;
    let bytes = frames * FRAME_BYTES;
    let timed = |work: &dyn Fn() -> u64| {
        let begun = Instant::now();
        assert_eq!(work(), bytes);
        rate(bytes, begun.elapsed())
    };
    for batch in [BATCH, 1024, 8192] {
        let starts = || (1..=frames).step_by(batch as usize).map(|start| (start, (start + batch).min(frames + 1)));
        let pull = || {
            bench.runtime.block_on(async {
                let mut sum = 0;
                for (start, end) in starts() {
                    sum += bench.take(format!("{log}/sync/1/{start}/{end}"), None).await;
                }
                sum
            })
        };
        let ranges = || {
            bench.runtime.block_on(async {
                let mut sum = 0;
                for (start, end) in starts() {
                    let at = |frame| 32 + (frame - 1) * FRAME_BYTES;
                    sum += bench.take(format!("{log}/segments/1"), Some((at(start), at(end)))).await;
                }
                sum
            })
        };
        let whole = || bench.runtime.block_on(bench.take(format!("{log}/segments/1"), Some((32, 32 + bytes))));
        let mut figures = [(); 3].map(|()| Figures(Vec::new()));
        for _ in 0..ROUNDS {
            for (figures, work) in figures.iter_mut().zip([&pull as &dyn Fn() -> u64, &ranges, &whole]) {
                figures.0.push(timed(work));
            }
        }
        let [pulled, native, stream] = figures;
        println!("pull, {batch} frames a request, MB/s: {pulled}");
        println!("  native ranges of that size: {native}; ratio {:.2}", pulled.median() / native.median());
        println!("  one native stream: {stream}; ratio {:.2}", pulled.median() / stream.median());
    }
}

/// What the judging of a batch costs, on its own: frames that are held are compared and verified, and nothing is written.
/// Then real pushes by a sender that was never seen before.
fn verification(bench: &Bench) {
    bench.create("long");
    let mut sender = Sender::new([1, 2]);
    let mut late = Sender::new([3, 4]);
    let (mut first, mut thousandth) = (None, None);
    for number in 1..=1000 {
        let (start, body) = (sender.frames + 1, sender.batch());
        let by_another = late.batch();
        if number == 1 {
            first = Some((start, body.clone(), by_another.clone()));
        }
        if number == 1000 {
            thousandth = Some((start, body.clone(), by_another));
        }
        bench.runtime.block_on(bench.push("long", start, body));
    }
    let libsql = LibSql::new(bench.registry.clone());
    let judged = |start: u64, body: &Bytes| {
        let end = start + BATCH;
        bench.runtime.block_on(async {
            let mut share = Share::default();
            libsql.cover(&mut share, body.len() as u64).await.expect("memory");
            let body = BytesMut::from(&body[..]);
            let begun = Instant::now();
            let answer = libsql.push("long", Generation::FIRST, (start, end), (body, share)).await;
            assert!(answer.is_ok_and(|answer| !answer.conflict && answer.max_frame_no == end - 1));
            begun.elapsed().as_secs_f64() * 1e6
        })
    };
    for (name, batch) in [("1st", &first), ("1,000th", &thousandth)] {
        let (start, body, by_another) = batch.as_ref().expect("a batch that was sent");
        let mut figures = [Figures(Vec::new()), Figures(Vec::new())];
        for _ in 0..201 {
            figures[0].0.push(judged(*start, body));
            figures[1].0.push(judged(*start, by_another));
        }
        let [known, new] = figures;
        println!("judging the {name} batch again, µs: {known}; by a sender with other salts: {new}");
    }
    let start = late.frames + 1;
    for what in ["its first", "its second"] {
        let (start, body) = (late.frames + 1, late.batch());
        let begun = Instant::now();
        bench.runtime.block_on(bench.push("long", start, body));
        println!("a new sender at frame {start}, {what} push: {:.2} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
    assert_eq!(start, 128_001);
}

fn checksum() {
    let block: Vec<u8> = (0..4096 * 64).map(|at| (at * 7 % 251) as u8).collect();
    for big_endian in [false, true] {
        let mut figures = Figures(Vec::new());
        for _ in 0..21 {
            let begun = Instant::now();
            let mut chain = Chain::default();
            for _ in 0..64 {
                for page in block.chunks(4096) {
                    chain = black_box(chain.over(black_box(page), big_endian));
                }
            }
            figures.0.push(rate(64 * block.len() as u64, begun.elapsed()));
        }
        println!(
            "checksum of pages, {} words, MB/s: {figures}",
            if big_endian { "big-endian" } else { "little-endian" }
        );
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory for the data");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a new directory");
    let bench = Bench::start(&data);
    checksum();
    let mut sender = Sender::new([1, 2]);
    let bodies: Vec<Bytes> = (0..BATCHES).map(|_| sender.batch()).collect();
    pushes(&bench, dir.path(), &bodies);
    drop(bodies);
    pulls(&bench, "push-0");
    verification(&bench);
}
