//! `logmirror verify` against `cat` on the same files, warm in the page cache: both as commands, start-up included.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::SHAPES;

const LOG_BYTES: usize = 700 << 20;

/// Several segments, and one that has to be cut to keep all cores busy.
const SEGMENTS: [(&str, usize); 2] = [("64MiB-segments", 64 << 20), ("1-segment", 1 << 30)];

fn run(mut command: Command) {
    let status = command.stdout(Stdio::null()).status().expect("a command that runs");
    assert!(status.success(), "{command:?}: {status}");
}

fn cat(dir: &Path) -> Command {
    let files = dir.read_dir().expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut segments: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    let mut command = Command::new("cat");
    command.args(segments);
    command
}

fn logmirror(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.arg("verify").arg(dir);
    command
}

fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for shape in SHAPES {
        for (cut, segment_bytes) in SEGMENTS {
            let dir = tempfile::tempdir().expect("a directory");
            support::write_log(dir.path(), shape, LOG_BYTES, segment_bytes);
            group.throughput(Throughput::Bytes(LOG_BYTES as u64));
            let id = |name| BenchmarkId::new(format!("{}/{cut}", shape.name), name);
            group.bench_function(id("cat"), |b| b.iter(|| run(cat(dir.path()))));
            group.bench_function(id("logmirror"), |b| b.iter(|| run(logmirror(dir.path()))));
        }
    }
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);
