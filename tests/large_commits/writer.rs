//! [`StreamWriter`] and [`StreamReader`] with large commits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use logmirror::format::commitlog::Version;
use logmirror::format::{LogFormat, name};
use logmirror::limits::{COMMIT_BYTES_MAX, COMMIT_HELD_MAX, SPOOL_RESERVE_BYTES};
use logmirror::offset::Offset;
use logmirror::repo::{Faults, MemRepo, Repo};
use logmirror::stream::{
    AppendError, Appended, Batch, Batcher, LargeCommits, Options, Read, ReadAt, StreamReader, StreamWriter,
};

use crate::support::commitlog::{Source, commit, marked, open, put, seal, trim, write};
use crate::support::repo_segments;

/// Small and large commits, where a commit of more than 1,000 bytes is large.
fn source() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[10, 3000, 900, 900, 5000, 5000]);
    source.segment(Version::V0).commits(&[7000, 1]);
    source
}

fn held(commit_held_max: u64) -> Options {
    Options { commit_held_max, ..trim() }
}

#[test]
fn how_a_stream_is_cut_and_how_much_of_a_commit_is_held_changes_nothing_that_is_stored() {
    let source = source();
    for held_max in [0, 1, 1000, 6000] {
        for size in [1, 7, 100, 999, 4096, source.stream.len()] {
            let repo = MemRepo::default();
            let mut writer = StreamWriter::open(Arc::new(repo.clone()), held(held_max)).unwrap();
            let mut done = Appended::default();
            for chunk in source.stream.chunks(size) {
                done.commits += writer.append(chunk.to_vec()).unwrap().commits;
            }
            assert_eq!((writer.finish().unwrap().0, done.commits), (source.next, 8), "{held_max}, {size}");
            drop(writer);
            source.assert_is(&repo, &format!("held {held_max}, chunks of {size}"));
            let others: Vec<_> = repo.list().unwrap().into_iter().filter(|name| name.ends_with(".spool")).collect();
            assert!(others.is_empty(), "{others:?}");
        }
    }
}

#[test]
fn a_large_commit_that_is_held_already_is_skipped_and_another_one_is_a_fork() {
    let source = source();
    let repo = MemRepo::default();
    source.store(&repo);
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), held(1000)).unwrap();
    writer.restart_from_header();
    let mut skipped = 0;
    for chunk in source.stream.chunks(500) {
        skipped += writer.append(chunk.to_vec()).unwrap().skipped;
    }
    assert_eq!(skipped, 8);
    let mut other = Source::new(0);
    other.segment(Version::V1).commits(&[10, 3001]);
    writer.restart_from_header();
    let refused = other.stream.chunks(500).find_map(|chunk| writer.append(chunk.to_vec()).err());
    assert!(matches!(refused, Some(AppendError::Fork { at: Offset(3) })), "{refused:?}");
    source.assert_is(&repo, "after a fork");
}

#[test]
fn the_torn_end_of_a_commit_of_any_size_is_cut_after_the_durable_mark_and_is_damage_where_nothing_tells() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
    writer.append(source.stream.clone()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let mut torn = commit(Version::V0, source.next, 0, 1, &[7; 5000]);
    torn[10..14].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    let head = name::segment(LogFormat::Commitlog, Offset(source.segments[1].0));
    write(&repo, &head, None, &torn[..4000]);
    // Without its mark.
    let plain = MemRepo::default();
    for (name, bytes) in repo_segments(&repo) {
        put(&plain, &name, &bytes);
    }
    let error = StreamWriter::open(Arc::new(plain), trim()).unwrap_err();
    assert!(error.to_string().contains("commit length 1073741824 runs past the end"), "{error}");
    let writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
    assert_eq!(writer.next(), Offset(source.next));
    drop(writer);
    source.assert_is(&repo, "after the torn end was cut");
}

#[test]
fn a_large_commit_that_would_leave_no_room_for_others_is_refused_before_the_disk_is_full() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), held(1000)).unwrap();
    repo.set_faults(Faults { bytes_max: Some(SPOOL_RESERVE_BYTES + 1000), ..Faults::default() });
    let refused = source.stream.chunks(500).find_map(|chunk| writer.append(chunk.to_vec()).err());
    assert!(matches!(refused, Some(AppendError::Spool(_))), "{refused:?}");
    assert!(refused.unwrap().to_string().contains("bytes free"));
    assert_eq!(writer.sync().unwrap(), Offset(3), "what is before it is kept, and the log has not failed");
    repo.set_faults(Faults::default());
    writer.restart();
    for chunk in source.rest(3).chunks(500) {
        writer.append(chunk.to_vec()).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), Offset(source.next));
    source.assert_is(&repo, "after there was room again");
}

#[test]
fn names_that_a_crash_left_of_spool_files_are_removed_and_others_are_not() {
    let (repo, source) = (MemRepo::default(), source());
    source.store(&repo);
    let left = "0b1f4e0e-6f2f-4a5f-9d0c-2d9a5e8a7c11.spool";
    for name in [left, "mine.spool"] {
        put(&repo, name, b"x");
    }
    drop(open(&repo).unwrap());
    let names = repo.list().unwrap();
    assert!(!names.iter().any(|name| name == left) && names.iter().any(|name| name == "mine.spool"), "{names:?}");
}

/// A file that changes after it was read once.
#[derive(Debug)]
struct Changing(Vec<u8>, AtomicBool);

impl ReadAt for Changing {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let count = buf.len().min(self.0.len() - at as usize);
        buf[..count].copy_from_slice(&self.0[at as usize..at as usize + count]);
        if self.1.load(Ordering::Relaxed) {
            buf[count - 1] ^= 1;
        }
        Ok(count)
    }
}

#[test]
fn a_source_that_changes_before_a_large_commit_was_copied_leaves_nothing_of_it() {
    let source = source();
    let bytes = Arc::new(Changing(source.stream.clone(), AtomicBool::new(true)));
    let large = LargeCommits::InSource { bytes: bytes.clone(), start: 0 };
    let mut batch = Batch::default();
    let mut batcher = Batcher::new(Version::V1, None, COMMIT_BYTES_MAX).keeping(large, 1000);
    for chunk in source.stream.chunks(500) {
        batcher.push(chunk.to_vec().into(), &mut batch).unwrap();
    }
    assert_eq!(batch.runs().filter(|run| run.large.is_some()).count(), 4);
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    let error = writer.append_batch(&batch, &mut Appended::default()).unwrap_err();
    assert!(matches!(error, AppendError::Unread { at: Offset(3), .. }), "{error}");
    assert_eq!(writer.sync().unwrap(), Offset(3));
    source.assert_holds(&repo, 3, "after it changed");
    // It is sent again, and the log goes on.
    bytes.1.store(false, Ordering::Relaxed);
    let mut done = Appended::default();
    writer.append_batch(&batch, &mut done).unwrap();
    assert_eq!((writer.finish().unwrap().0, done.commits, done.skipped), (source.next, 7, 1));
    source.assert_is(&repo, "after it was sent again");
}

#[test]
fn a_reader_hands_out_a_large_commit_of_a_plain_and_of_a_sealed_segment_whole() {
    let large = usize::try_from(COMMIT_HELD_MAX).unwrap() + 600_000;
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[10, large, 10]);
    let (plain, sealed, copy) = (MemRepo::default(), MemRepo::default(), MemRepo::default());
    source.store(&plain);
    for (name, bytes) in source.files() {
        put(&sealed, &name, &seal(&bytes));
    }
    for repo in [plain, sealed] {
        let mut reader = StreamReader::open(Arc::new(repo), Offset(0), COMMIT_BYTES_MAX).unwrap();
        let mut writer = open(&copy).unwrap();
        let (mut done, mut larges) = (Appended::default(), 0);
        while let Read::Batch(batch) = reader.read().unwrap() {
            larges += batch.runs().filter(|run| run.large.is_some()).count();
            writer.append_batch(&batch, &mut done).unwrap();
        }
        assert_eq!((reader.next().0, larges), (source.next, 1));
        assert_eq!(writer.finish().unwrap().0, source.next);
    }
    assert!(repo_segments(&copy) == source.files(), "the copy is the source");
}
