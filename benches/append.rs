//! How fast a raw stream becomes a durable log: `StreamWriter` append and sync into a directory, beside a plain write and
//! fdatasync of the same bytes in the same run, which is what the disk allows.

mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use logmirror::repo::FsRepo;
use logmirror::stream::{Options, StreamWriter};
use support::SHAPES;
use tempfile::TempDir;

const STREAM_BYTES: usize = 64 << 20;

/// As chunks of a bulk transfer arrive.
const CHUNK_BYTES: usize = 256 << 10;

fn chunks(stream: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..stream.len()).step_by(CHUNK_BYTES).map(|at| stream.slice(at..stream.len().min(at + CHUNK_BYTES)))
}

fn append(dir: &Path, stream: &Bytes) {
    let repo = Arc::new(FsRepo::open(dir).expect("a directory"));
    let mut writer = StreamWriter::open(repo, Options::default()).expect("an empty log");
    for chunk in chunks(stream) {
        writer.append(chunk).expect("a sound stream");
    }
    writer.finish().expect("a sync");
}

fn raw(dir: &Path, stream: &Bytes) {
    let mut file = File::create_new(dir.join("raw")).expect("a new file");
    for chunk in chunks(stream) {
        file.write_all(&chunk).expect("space");
    }
    file.sync_data().expect("a sync");
}

fn appends(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    group.sample_size(20);
    for shape in SHAPES {
        let stream = Bytes::from(support::stream(shape, STREAM_BYTES));
        group.throughput(Throughput::Bytes(stream.len() as u64));
        let empty = || tempfile::tempdir().expect("a directory");
        // The directory is handed back, so that removing it is not measured.
        let timed = |work: fn(&Path, &Bytes)| {
            let stream = stream.clone();
            move |dir: TempDir| {
                work(dir.path(), &stream);
                dir
            }
        };
        group.bench_function(BenchmarkId::new(shape.name, "write+fdatasync"), |b| {
            b.iter_batched(empty, timed(raw), BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new(shape.name, "StreamWriter"), |b| {
            b.iter_batched(empty, timed(append), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, appends);
criterion_main!(benches);
