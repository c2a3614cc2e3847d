//! The published SpacetimeDB commitlog as judge over logmirror's mirrors, and logmirror as judge over the
//! published writers' logs. Needs the logmirror program: `LOGMIRROR_BIN`, or a release build of the repository.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use logmirror_peer::ours::Logmirror;
use logmirror_peer::tuned::Tuned;
use logmirror_peer::{Plan, Shape, files, published};
use spacetimedb_commitlog::payload::{ArrayDecodeError, ArrayDecoder};
use spacetimedb_commitlog::repo::Repo;
use spacetimedb_commitlog::segment::{Transaction, validate_commit_header};
use spacetimedb_commitlog::{Commitlog, Options, StoredCommit};
use tempfile::TempDir;

const SEGMENT_BYTES: u64 = 100_000;
/// Five segments.
const PLAN: Plan = Plan { shape: Shape::A, bytes: 450_000, segment_bytes: SEGMENT_BYTES };

type Record = [u8; 1000];
const RECORD: ArrayDecoder<1000> = ArrayDecoder;

/// A log by the real writer, and room for its mirror.
struct Case {
    logmirror: Logmirror,
    source: PathBuf,
    mirror: PathBuf,
    _dir: TempDir,
}

impl Case {
    fn new() -> Result<Self> {
        let logmirror = Logmirror::find(None)?;
        let dir = tempfile::tempdir()?;
        let source = dir.path().join("source");
        PLAN.write(&source)?;
        Ok(Self { logmirror, source, mirror: dir.path().join("mirror"), _dir: dir })
    }

    /// With the mirror made by logmirror, and found to be byte-identical.
    fn mirrored() -> Result<Self> {
        let case = Self::new()?;
        case.logmirror.mirror(&case.source, &case.mirror)?;
        files::ensure_same(&case.source, &case.mirror)?;
        Ok(case)
    }

    fn source_commits(&self) -> Result<Vec<StoredCommit>> {
        published::commits(&self.source, 0)
    }
}

#[test]
fn the_real_reader_finds_the_same_commits_and_transactions_in_our_mirror() -> Result<()> {
    let case = Case::mirrored()?;
    let commits = case.source_commits()?;
    ensure!(commits.len() as u64 == PLAN.commits());
    ensure!(published::commits(&case.mirror, 0)? == commits);

    let expected = transactions(&case.source)?;
    ensure!(expected.len() as u64 == PLAN.commits() * PLAN.shape.transactions());
    ensure!(transactions(&case.mirror)? == expected);
    Ok(())
}

#[test]
fn spacetimedb_opens_our_mirror_as_it_is_and_appends_to_it() -> Result<()> {
    // With its defaults, where an index has more slots than ours; with the source's options; and with an index so
    // small that ours is cut.
    let defaults = Options::default();
    let small = published::options(4 * defaults.offset_index_interval_bytes.get());
    for options in [defaults, published::options(SEGMENT_BYTES), small] {
        let case = Case::mirrored()?;
        let before = case.source_commits()?;
        let next = PLAN.commits() * PLAN.shape.transactions();

        let log = Commitlog::<Record>::open(published::path(&case.mirror), options)?;
        ensure!(log.max_committed_offset() == Some(next - 1));
        ensure!(
            log.existing_segment_offsets()?.len() == files::segments(&case.source)?.len(),
            "opening the mirror started another segment, so the writer found its end at fault"
        );
        for i in 0..100 {
            log.append_maybe_flush([i; 1000])?;
            log.flush()?;
        }
        log.flush_and_sync()?;
        drop(log);

        let after = published::commits(&case.mirror, 0)?;
        ensure!(after[..before.len()] == before[..]);
        ensure!(after.len() == before.len() + 100);
        case.logmirror.verify(&case.mirror)?;
    }
    Ok(())
}

#[test]
fn every_entry_of_our_offset_index_points_at_its_commit() -> Result<()> {
    let case = Case::mirrored()?;
    let (source, mirror) = (published::repo(&case.source)?, published::repo(&case.mirror)?);
    for segment in source.existing_offsets()? {
        let theirs = source.get_offset_index(segment)?;
        let ours = mirror.get_offset_index(segment).with_context(|| format!("open our index of segment {segment}"))?;
        let mut file = File::open(mirror.segment_path(segment))?;

        let mut last = segment;
        let mut entries = 0;
        for entry in ours.entries() {
            let (offset, position) = entry?;
            ensure!(offset > last || (entries == 0 && offset == last));
            last = offset;
            entries += 1;
            let commit = validate_commit_header(&mut file, position)?;
            ensure!(
                commit.min_tx_offset == offset,
                "index of {segment}: offset {offset} leads to {}",
                commit.min_tx_offset
            );
        }
        let theirs = theirs.entries().count();
        ensure!(entries >= theirs / 2, "our index of {segment} has {entries} entries, the real one {theirs}");
    }
    Ok(())
}

#[test]
fn the_real_reader_starts_in_the_middle_of_our_mirror() -> Result<()> {
    let case = Case::mirrored()?;
    let all = case.source_commits()?;
    let end = PLAN.commits() * PLAN.shape.transactions();
    for offset in (0..end).step_by(17).chain([end - 1]) {
        let found = published::commits(&case.mirror, offset)?;
        let expected = all.iter().position(|c| c.tx_range().contains(&offset));
        let expected = &all[expected.context("the offset is in the log")?..];
        ensure!(found == expected, "from {offset}: {} commits", found.len());
    }
    Ok(())
}

#[test]
fn the_published_stream_reader_reads_our_mirror() -> Result<()> {
    let case = Case::mirrored()?;
    let again = case.mirror.with_file_name("again");
    let (from, to) = (published::repo(&case.mirror)?, published::repo(&again)?);
    published::mirror(from, to, 0, published::options(SEGMENT_BYTES))?;
    files::ensure_same(&case.source, &again)
}

#[test]
fn the_published_stream_writer_continues_our_mirror() -> Result<()> {
    let case = Case::mirrored()?;
    let next = PLAN.commits() * PLAN.shape.transactions();
    PLAN.write(&case.source)?;

    let (from, to) = (published::repo(&case.source)?, published::repo(&case.mirror)?);
    published::mirror(from, to, next, published::options(SEGMENT_BYTES))?;
    files::ensure_same(&case.source, &case.mirror)?;
    case.logmirror.verify(&case.mirror)
}

#[test]
fn we_continue_a_mirror_by_the_published_stream_writer() -> Result<()> {
    let case = Case::new()?;
    let (from, to) = (published::repo(&case.source)?, published::repo(&case.mirror)?);
    published::mirror(from, to, 0, published::options(SEGMENT_BYTES))?;
    PLAN.write(&case.source)?;

    case.logmirror.mirror(&case.source, &case.mirror)?;
    files::ensure_same(&case.source, &case.mirror)?;
    ensure!(published::commits(&case.mirror, 0)? == case.source_commits()?);
    Ok(())
}

#[test]
fn a_mirror_by_the_published_stream_writer_verifies_clean() -> Result<()> {
    let case = Case::new()?;
    let options = published::options(SEGMENT_BYTES);
    let (from, to) = (published::repo(&case.source)?, published::repo(&case.mirror)?);
    published::mirror(from, to, 0, options)?;
    case.logmirror.verify(&case.mirror)?;

    fs::remove_dir_all(&case.mirror)?;
    published::mirror(Tuned::open(&case.source)?, Tuned::open(&case.mirror)?, 0, options)?;
    case.logmirror.verify(&case.mirror)
}

#[test]
fn segments_compressed_by_the_real_compressor_are_mirrored_as_plain_bytes() -> Result<()> {
    let case = Case::new()?;
    let plain = case.source.with_file_name("plain");
    files::raw_copy(&case.source, &plain)?;
    compress_sealed_segments(&case.source)?;
    ensure!(files::ensure_same(&plain, &case.source).is_err(), "nothing was compressed");

    case.logmirror.verify(&case.source)?;
    case.logmirror.mirror(&case.source, &case.mirror)?;
    files::ensure_same(&plain, &case.mirror)?;
    ensure!(published::commits(&case.mirror, 0)? == case.source_commits()?);
    Ok(())
}

#[test]
fn a_torn_end_of_the_source_is_left_out_so_that_spacetimedb_continues_our_mirror() -> Result<()> {
    // Part of a commit header, part of a commit, and space that was never written.
    for torn in [vec![7; 21], vec![7; 500], vec![0; 4096]] {
        let case = Case::new()?;
        let whole = case.source.with_file_name("whole");
        files::raw_copy(&case.source, &whole)?;
        let last = files::segments(&case.source)?.pop().context("no segments")?;
        OpenOptions::new().append(true).open(last)?.write_all(&torn)?;

        // Whether the end of a source is worth an exit code is not for this test to say.
        case.logmirror.run(&[OsStr::new("mirror"), case.source.as_os_str(), case.mirror.as_os_str()])?;
        files::ensure_same(&whole, &case.mirror)?;

        let log = Commitlog::<Record>::open(published::path(&case.mirror), Options::default())?;
        log.append_maybe_flush([1; 1000])?;
        log.flush_and_sync()?;
        drop(log);
        let commits = published::commits(&case.mirror, 0)?.len() as u64;
        ensure!(commits == PLAN.commits() + 1, "{commits} commits");
    }
    Ok(())
}

#[test]
fn a_log_with_the_real_index_verifies_clean() -> Result<()> {
    let case = Case::new()?;
    case.logmirror.verify(&case.source)
}

#[test]
fn what_the_real_reader_refuses_we_refuse() -> Result<()> {
    let case = Case::new()?;
    let second = &files::segments(&case.source)?[1];
    let file = OpenOptions::new().read(true).write(true).open(second)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 50_000)?;
    file.write_all_at(&[byte[0] ^ 1], 50_000)?;

    ensure!(published::commits(&case.source, 0).is_err());
    let verdict = case.logmirror.run(&[OsStr::new("verify"), case.source.as_os_str()])?;
    ensure!(
        verdict.status.code() == Some(1),
        "verify ended with {}: {}",
        verdict.status,
        String::from_utf8_lossy(&verdict.stdout)
    );
    Ok(())
}

fn transactions(dir: &Path) -> Result<Vec<Transaction<Record>>> {
    let all: Result<_, ArrayDecodeError> =
        spacetimedb_commitlog::transactions(published::path(dir), &RECORD)?.collect();
    Ok(all?)
}

fn compress_sealed_segments(dir: &Path) -> Result<()> {
    let log = Commitlog::<Record>::open(published::path(dir), published::options(SEGMENT_BYTES))?;
    let mut offsets = log.existing_segment_offsets()?;
    offsets.pop();
    Ok(log.compress_segments(&offsets)?)
}
