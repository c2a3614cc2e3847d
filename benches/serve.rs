//! The service over loopback: a push made durable, a pull, and one segment as a file, beside a plain TCP copy of as
//! many bytes in the same run.

mod support;

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::TryStreamExt;
use logmirror::client::Client;
use logmirror::http::Timeouts;
use logmirror::limits::CONNECTIONS_MAX;
use logmirror::mirror::{Registry, Settings};
use logmirror::offset::Offset;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use tokio::runtime::Runtime;

const BYTES: usize = 64 << 20;

fn start(runtime: &Runtime, dir: &std::path::Path) -> String {
    let data = Arc::new(FsRepo::open(dir).expect("a directory for the data"));
    let registry = Arc::new(Registry::open(data, Settings::default()).expect("an empty data directory"));
    let server = runtime.block_on(Server::bind("127.0.0.1:0", registry, Timeouts::default(), CONNECTIONS_MAX));
    let server = server.expect("a free port");
    let address = server.address().expect("a bound socket");
    runtime.spawn(server.run(std::future::pending()));
    format!("http://{address}/logs")
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
    let base = start(&runtime, dir.path());
    for shape in support::SHAPES {
        let raw = Bytes::from(support::stream(shape, BYTES));
        let mut group = c.benchmark_group(format!("serve/{}", shape.name));
        group.throughput(Throughput::Bytes(raw.len() as u64)).sample_size(10);
        let made = AtomicU64::new(0);
        let fresh = || {
            let n = made.fetch_add(1, Ordering::Relaxed);
            let client = Client::new(&format!("{base}/{}-{n}", shape.name)).expect("a URL of a log");
            runtime.block_on(client.create(Offset::ZERO)).expect("a new log");
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

criterion_group!(benches, serve);
criterion_main!(benches);
