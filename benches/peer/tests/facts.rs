//! How crate 1.3.0 really behaves where a mirror has to fit it. Needs no logmirror; each test states one fact, and
//! fails when another version of the crate changes it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use logmirror_peer::{Plan, Shape, files, published};
use spacetimedb_commitlog::repo::Repo;
use spacetimedb_commitlog::stream::{OnTrailingData, StreamWriter};
use spacetimedb_commitlog::{Commitlog, Options};
use tempfile::TempDir;

type Record = [u8; 1000];
/// A commit of 4 transactions; the index takes one each 4,096 bytes, which is every second one.
const COMMIT_BYTES: u64 = 4026;
const HEADER_BYTES: u64 = 10;
const ENTRY_BYTES: u64 = 16;

fn log(commits: u64, options: Options) -> Result<(TempDir, PathBuf)> {
    let home = tempfile::tempdir()?;
    let dir = home.path().join("clog");
    let plan = Plan { shape: Shape::A, bytes: commits * COMMIT_BYTES, segment_bytes: options.max_segment_size };
    plan.write(&dir)?;
    Ok((home, dir))
}

fn options() -> Options {
    published::options(100 * COMMIT_BYTES)
}

fn open(dir: &Path, options: Options) -> Result<Commitlog<Record>> {
    Ok(Commitlog::open(published::path(dir), options)?)
}

fn index(dir: &Path, segment: u64) -> Result<Vec<(u64, u64)>> {
    let index = published::repo(dir)?.get_offset_index(segment)?;
    Ok(index.entries().collect::<Result<_, _>>()?)
}

fn index_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:020}.stdb.ofs"))
}

#[test]
fn an_index_entry_is_the_first_commit_since_the_last_entry_once_an_interval_is_full() -> Result<()> {
    let (_home, dir) = log(11, options())?;
    // Commits 0 and 1 fill the first interval. Offset 0 cannot be a key, so 1 is its candidate; commit 2 is the
    // candidate from its own on, and 3 fills the interval, and so on in pairs.
    let at = |commit: u64| (commit * 4, HEADER_BYTES + commit * COMMIT_BYTES);
    ensure!(index(&dir, 0)? == [at(1), at(2), at(4), at(6), at(8)]);
    Ok(())
}

#[test]
fn the_interval_starts_anew_when_a_log_is_opened() -> Result<()> {
    let (_home, dir) = log(3, options())?;
    log_more(&dir, options(), 2)?;
    let at = |commit: u64| (commit * 4, HEADER_BYTES + commit * COMMIT_BYTES);
    ensure!(index(&dir, 0)? == [at(1), at(3)], "{:?}", index(&dir, 0)?);
    Ok(())
}

#[test]
fn an_index_has_room_for_one_entry_each_interval_and_a_segment_is_not_preallocated() -> Result<()> {
    let (_home, dir) = log(3, options())?;
    let entries = options().max_segment_size / 4096;
    ensure!(index_path(&dir, 0).metadata()?.len() == entries * ENTRY_BYTES);
    ensure!(files::segment_bytes(&dir)? == HEADER_BYTES + 3 * COMMIT_BYTES);
    Ok(())
}

#[test]
fn opening_to_write_makes_the_last_index_as_long_as_its_options_say() -> Result<()> {
    let (_home, dir) = log(50, options())?;
    let entries = index(&dir, 0)?;
    ensure!(entries.len() == 25);
    let len = || anyhow::Ok(index_path(&dir, 0).metadata()?.len());

    let smaller = published::options(10 * 4096);
    drop(open(&dir, smaller)?);
    ensure!(len()? == 10 * ENTRY_BYTES && index(&dir, 0)? == entries[..10]);

    drop(open(&dir, Options::default())?);
    ensure!(len()? == Options::default().offset_index_len() * ENTRY_BYTES);
    ensure!(index(&dir, 0)? == entries[..10]);
    Ok(())
}

#[test]
fn an_index_of_any_length_can_be_read() -> Result<()> {
    let (_home, dir) = log(50, options())?;
    let all = index(&dir, 0)?;
    let file = OpenOptions::new().write(true).open(index_path(&dir, 0))?;
    for (len, entries) in [(25 * 16, 25), (3 * 16 + 7, 3), (16, 1), (0, 0)] {
        file.set_len(len)?;
        ensure!(index(&dir, 0)? == all[..entries], "length {len}");
        ensure!(published::commits(&dir, 100)?.len() == 25, "length {len}");
        // A fresh writer makes it long again, and goes on.
        let meta = spacetimedb_commitlog::committed_meta(published::path(&dir))?;
        ensure!(meta.context("the log is not empty")?.tx_range.end == 200);
    }
    Ok(())
}

#[test]
fn a_stream_writer_adds_no_entries_to_an_index_without_room() -> Result<()> {
    let (_home, dir) = log(50, options())?;
    let mirror = dir.with_file_name("mirror");
    let copy = |from| {
        let (source, target) = (published::repo(&dir)?, published::repo(&mirror)?);
        published::mirror(source, target, from, options())
    };
    copy(0)?;
    let before = index(&mirror, 0)?;
    let file = OpenOptions::new().write(true).open(index_path(&mirror, 0))?;
    file.set_len(before.len() as u64 * ENTRY_BYTES)?;

    log_more(&dir, options(), 20)?;
    copy(200)?;
    ensure!(index(&mirror, 0)? == before, "opened as long as it is found");
    files::ensure_same(&dir, &mirror)?;

    fs::remove_file(index_path(&mirror, 0))?;
    log_more(&dir, options(), 20)?;
    copy(280)?;
    ensure!(!index_path(&mirror, 0).exists(), "a lost index is not made again");
    files::ensure_same(&dir, &mirror)
}

#[test]
fn a_wrong_index_is_passed_over() -> Result<()> {
    let (_home, dir) = log(50, options())?;
    let expected = published::commits(&dir, 0)?;
    let index = OpenOptions::new().write(true).open(index_path(&dir, 0))?;
    // Offset 4's slot leads into the middle of a commit, and one past the end to nowhere.
    index.write_all_at(&9u64.to_le_bytes(), 8)?;
    index.write_all_at(&1_000u64.to_le_bytes(), 25 * ENTRY_BYTES)?;
    index.write_all_at(&9_999_999u64.to_le_bytes(), 25 * ENTRY_BYTES + 8)?;

    ensure!(published::commits(&dir, 5)? == expected[1..]);
    ensure!(open(&dir, options())?.max_committed_offset() == Some(199));
    Ok(())
}

#[test]
fn an_all_zero_commit_header_is_a_bad_checksum_in_format_version_1() -> Result<()> {
    let (_home, dir) = log(5, options())?;
    append(&files::segments(&dir)?[0], &[0; 4096])?;

    let mut commits = spacetimedb_commitlog::commits(published::path(&dir))?;
    ensure!(commits.by_ref().take(5).all(|c| c.is_ok()));
    ensure!(commits.next().is_some_and(|c| c.is_err()));

    let stream = StreamWriter::create(published::repo(&dir)?, options(), OnTrailingData::Error);
    ensure!(stream.is_err());
    Ok(())
}

#[test]
fn a_torn_tail_makes_a_writer_start_the_next_segment() -> Result<()> {
    let (_home, dir) = log(5, options())?;
    let last = files::segments(&dir)?[0].clone();
    OpenOptions::new().write(true).open(&last)?.set_len(5 * COMMIT_BYTES)?;

    let log = open(&dir, options())?;
    ensure!(log.existing_segment_offsets()? == [0, 16]);
    ensure!(last.metadata()?.len() == 5 * COMMIT_BYTES, "the torn bytes stay");
    Ok(())
}

#[test]
fn fewer_bytes_than_a_commit_header_are_no_error_and_writing_goes_on_behind_them() -> Result<()> {
    let (_home, dir) = log(5, options())?;
    append(&files::segments(&dir)?[0], &[7; 21])?;
    ensure!(published::commits(&dir, 0)?.len() == 5);

    log_more(&dir, options(), 1)?;
    ensure!(open(&dir, options())?.existing_segment_offsets()?.len() == 2);
    ensure!(published::commits(&dir, 0).map_or(0, |c| c.len()) < 6, "the new commit is lost");
    Ok(())
}

#[test]
fn a_last_segment_may_be_a_header_but_not_empty_and_not_compressed() -> Result<()> {
    let (_home, dir) = log(5, options())?;
    let head = dir.join("00000000000000000020.stdb.log");

    fs::write(&head, b"(ds)^2\x01\0\0\0")?;
    ensure!(open(&dir, options())?.max_committed_offset() == Some(19));

    fs::write(&head, b"")?;
    ensure!(open(&dir, options()).is_err());

    fs::remove_file(&head)?;
    published::repo(&dir)?.compress_segment(0)?;
    ensure!(open(&dir, options()).is_err());
    ensure!(published::commits(&dir, 0)?.len() == 5, "it can be read");
    Ok(())
}

#[test]
fn a_compressed_segment_keeps_its_index_in_plain_positions() -> Result<()> {
    let (_home, dir) = log(150, options())?;
    let before = (index(&dir, 0)?, published::commits(&dir, 99)?);
    published::repo(&dir)?.compress_segment(0)?;
    let start = fs::read(&files::segments(&dir)?[0])?;
    ensure!(start.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]));
    ensure!((index(&dir, 0)?, published::commits(&dir, 99)?) == before);
    Ok(())
}

fn log_more(dir: &Path, options: Options, commits: u64) -> Result<()> {
    let plan = Plan { shape: Shape::A, bytes: commits * COMMIT_BYTES, segment_bytes: options.max_segment_size };
    plan.write(dir)
}

fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(OpenOptions::new().append(true).open(path)?.write_all(bytes)?)
}
