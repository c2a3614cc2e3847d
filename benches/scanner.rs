//! How fast bytes turn into verified commits, against the checksum alone: what framing costs.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use logmirror::format::commitlog::Commitlog;
use logmirror::format::{Item, Scanner};
use support::SHAPES;

/// Fits the L2 cache beside what is else in it, as a block read from a file does.
const STREAM_BYTES: usize = 1 << 20;

/// How the stream is cut: as a file is read, and as a socket gives it.
const CHUNKS: [usize; 2] = [256 << 10, 16 << 10];

fn scan(stream: &[u8], chunk: usize) -> u64 {
    let mut scanner = Scanner::new(Commitlog::default());
    let mut commits = 0;
    for mut input in stream.chunks(chunk) {
        while let Some(item) = scanner.next(&mut input).expect("a sound stream") {
            commits += u64::from(matches!(item, Item::Commit(_)));
        }
    }
    scanner.finish().expect("whole commits");
    commits
}

fn scanner(c: &mut Criterion) {
    let mut group = c.benchmark_group("scanner");
    for shape in SHAPES {
        let stream = support::stream(shape, STREAM_BYTES);
        group.throughput(Throughput::Bytes(stream.len() as u64));
        for chunk in CHUNKS {
            let id = BenchmarkId::new(shape.name, format!("{}KiB", chunk >> 10));
            group.bench_function(id, |b| b.iter(|| scan(black_box(&stream), chunk)));
        }
        let pieces: Vec<&[u8]> = stream.chunks(shape.commit_len()).collect();
        group.bench_function(BenchmarkId::new(shape.name, "crc32c-alone"), |b| {
            b.iter(|| pieces.iter().fold(0, |sum, piece| sum ^ crc32c::crc32c(black_box(piece))));
        });
    }
    group.finish();
}

criterion_group!(benches, scanner);
criterion_main!(benches);
