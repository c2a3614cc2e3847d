//! Pulls of the Turso sync protocol over loopback, on files: a bootstrap beside the same database's segments served natively,
//! increments by one client and by many at once, and pulls that find nothing new.
//!
//! Rounds of what is compared take turns, and medians are printed with their spread: `median (least to most)`.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logmirror::api::CreateLog;
use logmirror::format::LogFormat;
use logmirror::format::wal::{Chain, WalHeader};
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings};
use logmirror::offset::Offset;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use logmirror::sync::turso::proto::{PullUpdatesRequest, PullUpdatesResponse};
use prost::Message;
use tokio::runtime::Runtime;

/// Pages of the database: 200 MB.
const PAGES: u32 = 48_828;
/// Pages of a transaction of the first load, and of a later one.
const LOADED: u32 = 512;
const CHANGED: u32 = 32;
/// Later transactions: every page is written again once in all, in another order.
const CHANGES: u32 = PAGES / CHANGED;
const ROUNDS: usize = 7;
const CLIENTS: usize = 16;
/// For how long a round of small pulls goes on.
const ROUND: Duration = Duration::from_millis(700);

/// Figures of the rounds.
#[derive(Default)]
struct Figures(Vec<f64>);

impl Figures {
    fn quantile(&self, at: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * at) as usize]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.quantile(0.5), self.quantile(0.0), self.quantile(1.0))
    }
}

/// Transactions, one after the other.
struct Writer {
    header: WalHeader,
    chain: Chain,
    state: u64,
}

impl Writer {
    fn commit(&mut self, pages: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u8>) {
        let (count, mut content) = (pages.len(), [0; 4096]);
        for (nth, page) in pages.enumerate() {
            for word in content.as_chunks_mut::<8>().0 {
                // xorshift64: cheap bytes that do not repeat
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                *word = self.state.to_le_bytes();
            }
            let size = if nth + 1 == count { PAGES } else { 0 };
            let (head, chain) = self.header.frame(self.chain, page, size, &content);
            out.extend_from_slice(&head);
            out.extend_from_slice(&content);
            self.chain = chain;
        }
    }
}

/// A client that costs next to nothing: what is measured is the service.
struct Wire {
    stream: BufReader<TcpStream>,
    space: Vec<u8>,
}

impl Wire {
    fn connect(address: &str) -> Wire {
        let stream = TcpStream::connect(address).expect("the service");
        stream.set_nodelay(true).expect("a socket option");
        Wire { stream: BufReader::new(stream), space: vec![0; 1 << 20] }
    }

    /// Sends a request and takes all of the answer; how many bytes its body has. What fits of it is left in `space`.
    fn call(&mut self, method: &str, path: &str, body: &[u8]) -> u64 {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat()).expect("a connection");
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line).expect("an answer");
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            self.stream.read_line(&mut line).expect("an answer");
            let value = line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().parse());
            length = value.map_or(length, |value| value.expect("a length"));
        }
        let mut left = length;
        while left > 0 {
            let want = self.space.len().min(left);
            let count = self.stream.read(&mut self.space[..want]).expect("a connection");
            assert!(count > 0, "the answer broke off");
            left -= count;
        }
        length as u64
    }

    fn pull(&mut self, request: &PullUpdatesRequest) -> u64 {
        self.call("POST", "/logs/app/pull-updates", &request.encode_to_vec())
    }
}

/// A service with the log `app`.
struct Bench {
    runtime: Runtime,
    registry: Arc<Registry>,
    address: String,
    _data: tempfile::TempDir,
}

impl Bench {
    fn start() -> Bench {
        let data = tempfile::tempdir().expect("a directory for the data");
        let runtime = Runtime::new().expect("threads");
        let repo = Arc::new(FsRepo::open(data.path()).expect("a directory"));
        let registry = Arc::new(Registry::open(repo, Settings::default()).expect("an empty data directory"));
        let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
        registry.create("app", wanted).expect("a new log");
        let server = Server::bind("127.0.0.1:0", registry.clone(), Timeouts::default(), CONNECTIONS_MAX);
        let server = runtime.block_on(server).expect("a free port");
        let address = server.address().expect("a bound socket").to_string();
        runtime.spawn(server.run(std::future::pending()));
        Bench { runtime, registry, address, _data: data }
    }

    /// Appends the first load, or the changes behind it.
    fn fill(&self, writer: &mut Writer, changes: bool) {
        let log = self.registry.get("app").expect("the log");
        let from = changes.then(|| log.view().durable);
        let mut append = self.runtime.block_on(self.registry.append(&log, from)).expect("an append");
        self.runtime.block_on(async {
            if changes {
                for nth in 0..CHANGES {
                    let mut stream = Vec::new();
                    // A prime that does not divide the number of pages: all of them in a scattered order.
                    let pages =
                        (0..CHANGED).map(|at| ((u64::from(nth * CHANGED + at) * 7_919) % u64::from(PAGES)) as u32 + 1);
                    writer.commit(pages, &mut stream);
                    append.push(stream.into()).await;
                }
            } else {
                append.push(writer.header.encode().to_vec().into()).await;
                for first in (1..=PAGES).step_by(LOADED as usize) {
                    let mut stream = Vec::new();
                    let pages: Vec<u32> = (first..=PAGES).take(LOADED as usize).collect();
                    writer.commit(pages.into_iter(), &mut stream);
                    append.push(stream.into()).await;
                }
            }
            append.finish().await.expect("durable frames");
        });
    }

    fn wire(&self) -> Wire {
        Wire::connect(&self.address)
    }

    fn revision(&self, frame: u64) -> String {
        let log = self.registry.get("app").expect("the log");
        let head = log.frame_head(Offset(frame)).expect("a read").expect("a frame");
        format!("{}:{frame}:{:016x}", log.generation(), head.chain.number())
    }

    fn last(&self) -> u64 {
        self.registry.get("app").expect("the log").view().durable.0 - 1
    }

    /// Bootstraps beside the segments, or the base when there are none.
    fn bootstraps(&self, what: &str) {
        let log = self.registry.get("app").expect("the log");
        let generation = log.generation();
        let starts: Vec<Offset> = log.view().segments().map(|segment| segment.start).collect();
        let mut wire = self.wire();
        let mut native = || match &starts[..] {
            [] => wire.call("GET", &format!("/logs/app/base?generation={generation}"), b""),
            starts => starts.iter().map(|start| wire.call("GET", &format!("/logs/app/segments/{start}"), b"")).sum(),
        };
        let mut other = self.wire();
        let mut pull = || other.pull(&PullUpdatesRequest::default());
        let mut figures = [Figures::default(), Figures::default()];
        for _ in 0..ROUNDS {
            let works: [&mut dyn FnMut() -> u64; 2] = [&mut pull, &mut native];
            for (figures, work) in figures.iter_mut().zip(works) {
                let begun = Instant::now();
                let bytes = work();
                figures.0.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
            }
        }
        let [pulled, native] = figures;
        println!("bootstrap, {what}, MB/s: {pulled}");
        println!("  its files natively: {native}; ratio {:.2}", pulled.quantile(0.5) / native.quantile(0.5));
    }

    /// Pulls a second by so many clients, each of one small transaction.
    fn increments(&self, clients: usize) -> f64 {
        let last = self.last();
        let revisions: Vec<String> = (0..200).map(|nth| self.revision(last - nth * u64::from(CHANGED))).collect();
        let begun = Instant::now();
        let counts: Vec<u64> = std::thread::scope(|scope| {
            let client = |client: usize| {
                let revisions = &revisions;
                move || {
                    let (mut wire, mut count) = (self.wire(), 0);
                    while begun.elapsed() < ROUND {
                        let at = (count as usize + client * 13) % (revisions.len() - 1);
                        let bytes = wire.pull(&PullUpdatesRequest {
                            client_revision: revisions[at + 1].clone(),
                            server_revision: revisions[at].clone(),
                            ..PullUpdatesRequest::default()
                        });
                        assert!(bytes > u64::from(CHANGED) * 4096, "{bytes}");
                        count += 1;
                    }
                    count
                }
            };
            let threads: Vec<_> = (0..clients).map(|nth| scope.spawn(client(nth))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
        });
        counts.iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64()
    }

    /// Microseconds of pulls that find nothing new, by one client.
    fn idle(&self) {
        let mut wire = self.wire();
        let request =
            PullUpdatesRequest { client_revision: self.revision(self.last()), ..PullUpdatesRequest::default() };
        let mut figures = Figures::default();
        for _ in 0..3000 {
            let begun = Instant::now();
            let bytes = wire.pull(&request);
            figures.0.push(begun.elapsed().as_secs_f64() * 1e6);
            assert!(bytes < 100);
        }
        let head = PullUpdatesResponse::decode_length_delimited(&wire.space[..]).expect("a header");
        assert_eq!(head.server_revision, request.client_revision);
        println!("nothing new, µs: p50 {:.0}, p99 {:.0}", figures.quantile(0.5), figures.quantile(0.99));
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let bench = Bench::start();
    let header = WalHeader { big_endian: false, page_size: 4096, sequence: 0, salts: [1, 2] };
    let mut writer = Writer { header, chain: header.seed(), state: 0x9e37_79b9_7f4a_7c15 };
    bench.fill(&mut writer, false);
    bench.bootstraps("each page once in the log");
    bench.fill(&mut writer, true);
    bench.bootstraps("each page twice, the second time in another order (natively twice the bytes)");
    let (mut one, mut many) = (Figures::default(), Figures::default());
    for _ in 0..ROUNDS {
        one.0.push(bench.increments(1));
        many.0.push(bench.increments(CLIENTS));
    }
    println!("increments of {CHANGED} pages, one client, pulls/s: {one}");
    println!("  {CLIENTS} clients: {many}; ratio {:.2}", many.quantile(0.5) / one.quantile(0.5));
    bench.idle();
    let end = bench.revision(bench.last());
    let mut wire = bench.wire();
    wire.call("POST", "/logs/app/checkpoint", b"");
    let begun = Instant::now();
    let bytes = wire.pull(&PullUpdatesRequest { client_revision: end, ..PullUpdatesRequest::default() });
    println!("a step over a roll-over: {:.2} ms, {bytes} bytes", begun.elapsed().as_secs_f64() * 1e3);
    bench.bootstraps("out of the base");
}
