//! The service over loopback: a push made durable, a pull, and one segment as a file, beside a plain TCP copy of as
//! many bytes in the same run.

mod support;

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::TryStreamExt;
use logmirror::client::Client;
use logmirror::format::LogFormat;
use logmirror::format::commitlog::Version;
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings};
use logmirror::offset::Offset;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use logmirror::stream::{Batch, Batcher};
use tokio::runtime::Runtime;

const BYTES: usize = 64 << 20;

fn start(runtime: &Runtime, dir: &std::path::Path) -> (String, Arc<Registry>) {
    let data = Arc::new(FsRepo::open(dir).expect("a directory for the data"));
    let registry = Arc::new(Registry::open(data, Settings::default()).expect("an empty data directory"));
    let server = runtime.block_on(Server::bind("127.0.0.1:0", registry.clone(), Timeouts::default(), CONNECTIONS_MAX));
    let server = server.expect("a free port");
    let address = server.address().expect("a bound socket");
    runtime.spawn(server.run(std::future::pending()));
    (format!("http://{address}/logs"), registry)
}

/// One connection, `BYTES` bytes, read and dropped.
fn plain_tcp(block: &[u8]) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut to, _) = listener.accept().expect("a connection");
            for _ in 0..BYTES / block.len() {
                to.write_all(block).expect("a peer that reads");
            }
        });
        let mut from = TcpStream::connect(address).expect("a listener");
        let mut space = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            match from.read(&mut space).expect("a peer that writes") {
                0 => return total,
                count => total += count as u64,
            }
        }
    })
}

fn serve(c: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let dir = tempfile::tempdir().expect("a directory for the data");
    let (base, _registry) = start(&runtime, dir.path());
    for shape in support::SHAPES {
        let raw = Bytes::from(support::stream(shape, BYTES));
        let mut group = c.benchmark_group(format!("serve/{}", shape.name));
        group.throughput(Throughput::Bytes(raw.len() as u64)).sample_size(10);
        let made = AtomicU64::new(0);
        let fresh = || {
            let n = made.fetch_add(1, Ordering::Relaxed);
            let client = Client::new(&format!("{base}/{}-{n}", shape.name)).expect("a URL of a log");
            runtime.block_on(client.create(LogFormat::Commitlog, None)).expect("a new log");
            client
        };
        group.bench_function("push", |b| {
            let push = |client: Client| {
                runtime.block_on(client.append(Some(Offset::ZERO), raw.clone())).expect("a durable append")
            };
            b.iter_batched(fresh, push, BatchSize::PerIteration);
        });
        let client = fresh();
        runtime.block_on(client.append(Some(Offset::ZERO), raw.clone())).expect("a durable append");
        let drain = |segment: bool| {
            runtime.block_on(async {
                let count = |sum: u64, bytes: Bytes| async move { Ok(sum + bytes.len() as u64) };
                let total = match segment {
                    true => client.segment(Offset::ZERO).await?.try_fold(0, count).await?,
                    false => client.read(Offset::ZERO, None, false).await?.try_fold(0, count).await?,
                };
                assert_eq!(total, raw.len() as u64);
                Ok::<_, logmirror::client::ClientError>(black_box(total))
            })
        };
        group.bench_function("pull", |b| b.iter(|| drain(false).expect("a whole log")));
        group.bench_function("segment", |b| b.iter(|| drain(true).expect("a whole segment")));
        let block = vec![0x5a; 256 << 10];
        group.bench_function("plain-tcp", |b| b.iter(|| black_box(plain_tcp(&block))));
        group.finish();
    }
}

/// How long after commits are durable in the service their bytes are at a follower, while small commits are pushed live.
fn follow_lag(_: &mut Criterion) {
    const COMMITS: u64 = 20_000;
    let runtime = Runtime::new().expect("threads");
    let dir = tempfile::tempdir().expect("a directory for the data");
    let (base, registry) = start(&runtime, dir.path());
    let client = Client::new(&format!("{base}/lag")).expect("a URL of a log");
    runtime.block_on(client.create(LogFormat::Commitlog, None)).expect("a new log");
    let mut view = registry.get("lag").expect("the log just made").watch();
    // When each durable end was published, by the thread that made it durable.
    let published = std::thread::spawn(move || {
        let mut times = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            while times.last().is_none_or(|(durable, _)| *durable < COMMITS) && view.changed().await.is_ok() {
                times.push((view.borrow_and_update().durable.0, Instant::now()));
            }
        });
        times
    });
    let arrived = runtime.block_on(async {
        let mut bytes = client.read(Offset::ZERO, None, true).await.expect("a follower");
        let following = tokio::spawn(async move {
            let mut batcher = Batcher::new(Version::V1, None, u64::MAX);
            let mut times = Vec::new();
            while let Some(chunk) = bytes.try_next().await.expect("a live stream") {
                let (now, mut batch) = (Instant::now(), Batch::default());
                batcher.push(chunk, &mut batch).expect("a sound log");
                times.extend(batch.runs().last().map(|run| (run.end.0, now)));
                if times.last().is_some_and(|(end, _)| *end >= COMMITS) {
                    break;
                }
            }
            times
        });
        let mut source = support::Source::new(support::SHAPES[1]);
        let pieces = futures::stream::unfold(0, move |sent| {
            let mut piece = if sent == 0 { support::stream(support::SHAPES[1], 0) } else { Vec::new() };
            if sent == 0 {
                piece.truncate(10)
            }
            source.fill(&mut piece, 0);
            async move {
                tokio::time::sleep(Duration::from_micros(100)).await;
                (sent < COMMITS).then(|| (Ok(Bytes::from(piece)), sent + 1))
            }
        });
        let mut acks = client.append_live(Offset::ZERO, pieces).await.expect("a live append");
        while acks.next().await.expect("an ack").is_some() {}
        following.await.expect("a follower")
    });
    let published = published.join().expect("a watcher");
    let mut lags: Vec<Duration> = Vec::new();
    let mut at = 0;
    for (durable, when) in published {
        while at < arrived.len() && arrived[at].0 < durable {
            at += 1;
        }
        lags.extend(arrived.get(at).map(|(_, there)| there.saturating_duration_since(when)));
    }
    lags.sort_unstable();
    let quantile = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
    println!("follow lag, durable to arrived: p50 {p50:?}, p99 {p99:?}, max {max:?} over {} syncs", lags.len());
}

criterion_group!(benches, serve, follow_lag);
criterion_main!(benches);
