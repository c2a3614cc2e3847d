//! An offline-first replica of a database of 500 MB made over loopback by the real program, on files and synced, beside its
//! base and segments downloaded natively into files and synced. The database is all in the base of its generation, or all in
//! the frames of its WAL. Rounds take turns; medians are printed with their spread.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use logmirror::api::CreateLog;
use logmirror::format::wal::{Chain, WalHeader};
use logmirror::format::{LogFormat, database};
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings, Writer};
use logmirror::offset::Offset;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Pages of the database: 500 MB.
const PAGES: u32 = 122_070;
/// Pages of a transaction.
const LOADED: u32 = 512;
const ROUNDS: usize = 5;

/// A service with the log `app`.
struct Bench {
    runtime: Runtime,
    registry: Arc<Registry>,
    address: String,
    dir: TempDir,
}

impl Bench {
    fn start() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = Runtime::new().expect("threads");
        let data = FsRepo::create(dir.path().join("data")).expect("a directory for the data");
        let registry = Arc::new(Registry::open(Arc::new(data), Settings::default()).expect("an empty data directory"));
        let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
        registry.create("app", wanted).expect("a new log");
        let server = Server::bind("127.0.0.1:0", registry.clone(), Timeouts::default(), CONNECTIONS_MAX);
        let server = runtime.block_on(server).expect("a port");
        let address = server.address().expect("an address").to_string();
        runtime.spawn(server.run(std::future::pending()));
        Bench { runtime, registry, address, dir }
    }

    /// Writes every page of a database once, the first one as an empty database has it.
    fn load(&self) {
        let log = self.registry.get("app").expect("the log");
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 0, salts: [1, 2] };
        let (mut chain, mut state, mut next) = (header.seed(), 0x9e37_79b9_7f4a_7c15_u64, 1_u64);
        let mut stream = header.encode().to_vec();
        for first in (1..=PAGES).step_by(LOADED as usize) {
            let last = (first + LOADED - 1).min(PAGES);
            for page in first..=last {
                let content = if page == 1 { first_page() } else { noise(&mut state) };
                let size = if page == last { PAGES } else { 0 };
                let (head, after): (_, Chain) = header.frame(chain, page, size, &content);
                stream.extend_from_slice(&head);
                stream.extend_from_slice(&content);
                chain = after;
            }
            let from = (next > 1).then_some(Offset(next));
            let share = self.runtime.block_on(self.registry.reserve(stream.len() as u64)).expect("memory");
            let append = self.registry.append_whole(
                &log,
                from,
                (vec![std::mem::take(&mut stream).into()], share),
                Writer::Client,
            );
            self.runtime.block_on(append).expect("an append");
            next += u64::from(last - first + 1);
        }
    }

    fn get(&self, path: &str) -> (BufReader<TcpStream>, u64) {
        let stream = TcpStream::connect(&self.address).expect("the service");
        let mut stream = BufReader::with_capacity(1 << 20, stream);
        let request = format!("GET /logs/app{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes()).expect("a connection");
        let (mut line, mut length) = (String::new(), 0);
        stream.read_line(&mut line).expect("an answer");
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).expect("an answer");
            let value = line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().parse());
            length = value.map_or(length, |value| value.expect("a length"));
        }
        (stream, length)
    }

    /// Base and segments into files, synced. The bytes.
    fn download(&self, dir: &Path) -> u64 {
        let status = self.runtime.block_on(async { self.registry.get("app").expect("the log").view() });
        let mut paths: Vec<String> = status.segments().map(|segment| format!("/segments/{}", segment.start)).collect();
        if self.registry.get("app").expect("the log").base().expect("a base").bytes() > 0 {
            paths.push("/base".to_owned());
        }
        let mut all = 0;
        for (at, path) in paths.iter().enumerate() {
            let (mut stream, mut left) = self.get(path);
            let mut file = File::create(dir.join(at.to_string())).expect("a file");
            let mut space = vec![0; 1 << 20];
            while left > 0 {
                let want = space.len().min(left as usize);
                let count = stream.read(&mut space[..want]).expect("a connection");
                assert!(count > 0, "the answer broke off");
                file.write_all(&space[..count]).expect("a write");
                left -= count as u64;
                all += count as u64;
            }
            file.sync_all().expect("a sync");
        }
        all
    }

    /// Makes a replica with the real program. The most memory it had.
    fn bootstrap(&self, dir: &Path) -> u64 {
        let url = format!("http://{}/logs/app", self.address);
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        command.arg("replica").arg(dir.join("app")).arg(url).arg("--json");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        let resident = watch(&mut child);
        assert!(child.wait().expect("its end").success(), "the replica was not made");
        resident
    }
}

/// The most memory a process has while it lives, as far as it can be seen from outside.
fn watch(child: &mut Child) -> u64 {
    let mut most = 0;
    while child.try_wait().expect("its state").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        most = most.max(now.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(1));
    }
    most
}

/// That of a database without tables, of so many pages.
fn first_page() -> Vec<u8> {
    let mut page = database::empty(4096);
    page[28..32].copy_from_slice(&PAGES.to_be_bytes());
    page
}

fn noise(state: &mut u64) -> Vec<u8> {
    let mut content = vec![0; 4096];
    for word in content.as_chunks_mut::<8>().0 {
        // xorshift64: cheap bytes that do not repeat
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *word = state.to_le_bytes();
    }
    content
}

fn median(mut figures: Vec<f64>) -> String {
    figures.sort_by(f64::total_cmp);
    let [least, most] = [figures[0], figures[figures.len() - 1]];
    format!("{:.0} ({least:.0} to {most:.0})", figures[figures.len() / 2])
}

fn compare(bench: &Bench, name: &str) {
    let (mut native, mut ours, mut ratios, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let [one, two] = ["download", "replica"].map(|name| {
            let dir = bench.dir.path().join(name);
            fs::create_dir(&dir).expect("a directory");
            dir
        });
        // What was written before is not to be paid for here.
        rustix::fs::sync();
        let since = Instant::now();
        let bytes = bench.download(&one) as f64 / 1e6;
        let native_rate = bytes / since.elapsed().as_secs_f64();
        fs::remove_dir_all(&one).expect("a directory");
        rustix::fs::sync();
        let since = Instant::now();
        most = most.max(bench.bootstrap(&two));
        let rate = bytes / since.elapsed().as_secs_f64();
        fs::remove_dir_all(&two).expect("a directory");
        native.push(native_rate);
        ours.push(rate);
        ratios.push(rate / native_rate * 100.0);
    }
    println!("{name}: native download {} MB/s, replica {} MB/s", median(native), median(ours));
    println!(
        "{name}: replica at {} % of it, resident at most {:.1} MiB",
        median(ratios),
        most as f64 / f64::from(1 << 20)
    );
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let bench = Bench::start();
    bench.load();
    compare(&bench, "500 MB in frames");
    let roll_over =
        "POST /logs/app/checkpoint HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let mut stream = TcpStream::connect(&bench.address).expect("the service");
    stream.write_all(roll_over.as_bytes()).expect("a connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains(" 200 "), "{answer}");
    compare(&bench, "500 MB in the base");
}
