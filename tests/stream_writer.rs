//! What a writer takes, what it refuses, and what it says about it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex};

use logmirror::format::commitlog::{Commitlog, Version};
use logmirror::format::{FormatError, LogFormat, ScanError, Scanner, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::{Epoch, Offset};
use logmirror::repo::{MemRepo, Repo};
use logmirror::stream::{AppendError, Appended, Batch, Batcher, Options, StreamWriter};
use support::commitlog::{Source, commit, get, header, open, put, read_from, records, trim};

const SEGMENT_0: &str = "00000000000000000000.stdb.log";

/// Two segments: commits of three entries at 0, 3, 6 and at 9, 12, 15.
fn source() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).epoch(4).commits(&[100, 5000, 30]);
    source.segment(Version::V1).commits(&[200, 10, 6000]);
    source
}

/// A log that holds the source's commits before `next`.
fn log_up_to(source: &Source, next: u64) -> (MemRepo, StreamWriter) {
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    let end = source.commits.iter().filter(|commit| commit.end <= next).map(|commit| commit.to).max().unwrap_or(0);
    writer.append(source.stream[..end].to_vec()).unwrap();
    assert_eq!(writer.next().0, next);
    (repo, writer)
}

/// The error of a stream, after which the log ends at `next` and nothing else has changed.
fn refused(source: &Source, next: u64, stream: &[u8]) -> AppendError {
    let (repo, mut writer) = log_up_to(source, next);
    let error = writer.append(stream.to_vec()).unwrap_err();
    let again = writer.append(source.rest(next).to_vec()).unwrap_err();
    assert_eq!(again.to_string(), error.to_string(), "a stream cannot go on");
    assert_eq!(writer.sync().unwrap().0, next);
    source.assert_holds(&repo, next, &error.to_string());
    writer.restart();
    writer.append(source.rest(next).to_vec()).unwrap();
    assert_eq!(writer.finish().unwrap().0, source.next, "a new stream goes on");
    error
}

fn one(first: u64, epoch: u64) -> Vec<u8> {
    commit(Version::V1, first, epoch, 3, &records(first, 50))
}

#[test]
fn a_gap_is_refused_with_both_offsets() {
    let error = refused(&source(), 6, &one(7, 4));
    assert!(matches!(error, AppendError::Gap { expected: Offset(6), found: Offset(7) }), "{error}");
}

#[test]
fn what_comes_before_a_fault_is_kept_also_within_one_chunk() {
    let source = source();
    let (repo, mut writer) = log_up_to(&source, 3);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = told.clone();
    writer.on_progress(move |progress| tells.lock().unwrap().push(progress.next.0));
    let mut stream = source.stream[source.commits[1].from..source.commits[2].to].to_vec();
    stream.extend(one(20, 4));
    let error = writer.append(stream).unwrap_err();
    assert!(matches!(error, AppendError::Gap { expected: Offset(9), found: Offset(20) }), "{error}");
    assert_eq!(
        (writer.next().0, told.lock().unwrap().as_slice()),
        (9, &[9][..]),
        "handed to the system before the error"
    );
    drop(writer);
    source.assert_holds(&repo, 9, "without a sync");
}

#[test]
fn another_commit_at_an_offset_we_hold_is_a_fork() {
    let error = refused(&source(), 9, &one(3, 4));
    assert!(matches!(error, AppendError::Fork { at: Offset(3) }), "{error}");
    let longer = commit(Version::V1, 6, 4, 4, &records(6, 30));
    assert!(matches!(refused(&source(), 9, &longer), AppendError::Fork { at: Offset(6) }), "runs over our end");
    assert!(matches!(refused(&source(), 9, &one(4, 4)), AppendError::Fork { at: Offset(4) }), "inside one of ours");
}

#[test]
fn a_falling_epoch_is_refused_from_run_to_run_and_within_one() {
    let error = refused(&source(), 6, &one(6, 3));
    assert!(matches!(error, AppendError::StaleEpoch { at: Offset(6), current: Epoch(4), found: Epoch(3) }), "{error}");
    let (_, mut writer) = log_up_to(&source(), 6);
    let error = writer.append([one(6, 9), one(9, 9), one(12, 8)].concat()).unwrap_err();
    assert!(matches!(error, AppendError::StaleEpoch { at: Offset(12), current: Epoch(9), found: Epoch(8) }), "{error}");
    assert_eq!(writer.next().0, 12);
}

#[test]
fn the_epoch_of_the_log_is_known_after_reopening() {
    let (repo, writer) = log_up_to(&source(), 6);
    drop(writer);
    let error = open(&repo).unwrap().append(one(6, 3)).unwrap_err();
    assert!(matches!(error, AppendError::StaleEpoch { current: Epoch(4), .. }), "{error}");
}

#[test]
fn an_empty_log_wants_a_header_first() {
    let repo = MemRepo::default();
    let error = open(&repo).unwrap().append(one(0, 0)).unwrap_err();
    assert!(matches!(error, AppendError::NoHeader { found: Offset(0) }), "{error}");
    assert_eq!(repo.list().unwrap(), Vec::<String>::new());
}

#[test]
fn an_empty_log_takes_the_offset_it_was_made_for() {
    let mut late = Source::new(1000);
    late.segment(Version::V1).commits(&[10, 10]);
    let first = |first| Options { first, ..Options::default() };
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), first(None)).unwrap();
    writer.append(late.stream.clone()).unwrap();
    assert_eq!((writer.first(), writer.finish().unwrap()), (Some(Offset(1000)), Offset(1006)));
    late.assert_is(&repo, "any offset");
    let mut writer = StreamWriter::open(Arc::new(MemRepo::default()), first(Some(Offset(5)))).unwrap();
    let error = writer.append(late.stream.clone()).unwrap_err();
    assert!(matches!(error, AppendError::Gap { expected: Offset(5), found: Offset(1000) }), "{error}");
}

#[test]
fn commits_we_hold_are_compared_and_skipped() {
    let source = source();
    for held in [3, 6, 9, 12, 18] {
        for from in (0..=held).step_by(3) {
            for chunk in [7, 100, 100_000] {
                let (repo, mut writer) = log_up_to(&source, held);
                let mut done = Appended::default();
                for chunk in source.rest(from).chunks(chunk) {
                    let more = writer.append(chunk.to_vec()).unwrap();
                    done.commits += more.commits;
                    done.skipped += more.skipped;
                }
                assert_eq!(writer.finish().unwrap().0, source.next);
                assert_eq!((done.skipped, done.commits), ((held - from) / 3, (18 - held) / 3), "{from} to {held}");
                source.assert_is(&repo, "resumed");
            }
        }
    }
}

#[test]
fn a_commit_sent_twice_and_a_header_sent_twice_are_harmless() {
    let source = source();
    let (repo, mut writer) = log_up_to(&source, 3);
    let [_, second, third, fourth, ..] = &source.commits[..] else { unreachable!() };
    let stream = &source.stream;
    writer.append(stream[second.from..second.to].repeat(3)).unwrap();
    writer.append(stream[third.from..third.to].to_vec()).unwrap();
    writer.append(header(Version::V1).repeat(2)).unwrap();
    writer.append(stream[fourth.segment..fourth.to].to_vec()).unwrap();
    writer.append(stream[fourth.segment..fourth.to].to_vec()).unwrap();
    writer.append(stream[fourth.to..].to_vec()).unwrap();
    assert_eq!(writer.finish().unwrap().0, 18);
    source.assert_is(&repo, "with everything twice");
}

#[test]
fn a_log_that_holds_a_commit_twice_is_compared_all_the_same() {
    let mut source = source();
    let middle = source.commits[4];
    let (before, behind) = source.stream[middle.segment..].split_at(middle.to - middle.segment);
    let repo = MemRepo::default();
    source.store(&repo);
    let twice = [before, &source.stream[middle.from..middle.to], behind].concat();
    put(&repo, &name::segment(LogFormat::Commitlog, Offset(9)), &twice);
    source.commits(&[40]);
    let mut writer = open(&repo).unwrap();
    let done = writer.append(source.rest(9).to_vec()).unwrap();
    assert_eq!((done.skipped, done.commits, writer.finish().unwrap().0), (3, 1, 21));
    assert_eq!(read_from(&repo, 0), (source.stream.clone(), Ok(21)));
}

#[test]
fn a_header_alone_makes_no_segment_and_belongs_to_its_own_stream() {
    let source = source();
    let (repo, mut writer) = log_up_to(&source, 6);
    // One sender gets as far as its first header; another goes on in the open segment.
    let mut batch = Batch::default();
    Batcher::new(Version::V1, None, COMMIT_BYTES_MAX).push(header(Version::V1).into(), &mut batch).unwrap();
    writer.append_batch(&batch, &mut Appended::default()).unwrap();
    let mut batch = Batch::default();
    let mut other = Batcher::new(Version::V1, Some(Offset(6)), COMMIT_BYTES_MAX);
    other.push(source.rest(6).to_vec().into(), &mut batch).unwrap();
    writer.append_batch(&batch, &mut Appended::default()).unwrap();
    writer.finish().unwrap();
    source.assert_is(&repo, "two senders");
}

#[test]
fn commits_of_another_version_do_not_get_into_a_segment() {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[10, 20]);
    let (repo, mut writer) = log_up_to(&source, 6);
    let mut batch = Batch::default();
    Batcher::new(Version::V1, Some(Offset(6)), COMMIT_BYTES_MAX).push(one(6, 0).into(), &mut batch).unwrap();
    let error = writer.append_batch(&batch, &mut Appended::default()).unwrap_err();
    assert!(matches!(error, AppendError::NoHeader { found: Offset(6) }), "{error}");
    writer.finish().unwrap();
    source.assert_is(&repo, "after a commit of version 1");
}

#[test]
fn version_0_is_mirrored_byte_for_byte_and_rotates_to_version_1() {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[0, 700, 1, 9000]);
    source.segment(Version::V0).commits(&[5]);
    source.segment(Version::V1).epoch(2).commits(&[5, 9000, 3]);
    for chunk in [1, 9, 11, 13, 1000, 100_000] {
        let repo = MemRepo::default();
        let mut writer = open(&repo).unwrap();
        for chunk in source.stream.chunks(chunk) {
            writer.append(chunk.to_vec()).unwrap();
        }
        assert_eq!(writer.finish().unwrap().0, source.next);
        drop(writer);
        source.assert_is(&repo, "mixed versions");
        assert_eq!(read_from(&repo, 0), (source.stream.clone(), Ok(source.next)));
        assert_eq!(read_from(&repo, 6).0, source.rest(6));
    }
}

#[test]
fn version_0_goes_on_without_a_header_after_reopening() {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[10, 20, 30]);
    let (repo, writer) = log_up_to(&source, 6);
    drop(writer);
    let mut writer = open(&repo).unwrap();
    writer.append(source.rest(6).to_vec()).unwrap();
    writer.finish().unwrap();
    source.assert_is(&repo, "reopened");
}

/// What a scan says about a stream right behind offset 6.
fn scan_error(stream: &[u8]) -> FormatError {
    match refused(&source(), 6, stream) {
        AppendError::Stream(ScanError::Corrupt { error, offset, .. }) => {
            assert!(matches!(offset, None | Some(Offset(6))), "{offset:?}");
            error
        }
        error => panic!("{error}"),
    }
}

#[test]
fn unknown_versions_and_algorithms_are_named() {
    let mut bytes = header(Version::V1);
    bytes[6] = 2;
    assert_eq!(scan_error(&bytes), FormatError::Version { found: 2 });
    bytes[6..8].copy_from_slice(&[1, 9]);
    assert_eq!(scan_error(&bytes), FormatError::Algorithm { found: 9 });
    bytes[6..9].copy_from_slice(&[1, 0, 1]);
    assert_eq!(scan_error(&bytes), FormatError::Header { found: bytes.clone() });
    let mut damaged = header(Version::V1);
    damaged[5] = 0;
    assert_eq!(scan_error(&damaged), FormatError::Header { found: damaged.clone() });
}

#[test]
fn zeros_are_no_end_on_the_wire() {
    assert_eq!(scan_error(&[0; 64]), FormatError::Zeros);
}

#[test]
fn a_commit_without_entries_or_past_the_last_offset_is_refused() {
    assert_eq!(scan_error(&commit(Version::V1, 6, 4, 0, &[1; 30])), FormatError::NoEntries);
    let repo = MemRepo::default();
    let last = Options { first: Some(Offset(u64::MAX - 1)), ..Options::default() };
    let mut writer = StreamWriter::open(Arc::new(repo), last).unwrap();
    let stream = [header(Version::V1), commit(Version::V1, u64::MAX - 1, 0, 9, &[1; 30])].concat();
    let AppendError::Stream(ScanError::Corrupt { error, .. }) = writer.append(stream).unwrap_err() else { panic!() };
    assert_eq!(error, FormatError::OffsetOverflow { first: Offset(u64::MAX - 1), entries: 9 });
}

#[test]
fn html_is_not_a_log() {
    let page = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>";
    assert_eq!(scan_error(page), FormatError::NotALog { found: page[..16].to_vec() });
    let error = open(&MemRepo::default()).unwrap().append(page.to_vec()).unwrap_err();
    assert!(matches!(error, AppendError::Stream(ScanError::Corrupt { .. })), "{error}");
}

#[test]
fn a_length_of_four_gibibytes_is_refused_from_its_header_alone() {
    let mut bytes = one(6, 4);
    bytes[18..22].copy_from_slice(&u32::MAX.to_le_bytes());
    let max = 64 << 20;
    let expected = FormatError::TooLarge { len: u32::MAX.into(), max };
    let mut scanner = Scanner::new(Commitlog::at_commit(Version::V1, max));
    let Err(ScanError::Corrupt { error, .. }) = scanner.next(&mut &bytes[..22]) else { panic!() };
    assert_eq!(error, expected, "no byte of its records has come");
}

#[test]
fn the_cap_on_a_commit_is_exact() {
    let bytes = one(6, 4);
    for (short, taken) in [(0, true), (1, false)] {
        let (repo, writer) = log_up_to(&source(), 6);
        drop(writer);
        let commit_bytes_max = 5026.max(bytes.len() as u64) - short;
        let mut writer = StreamWriter::open(Arc::new(repo), Options { commit_bytes_max, ..trim() });
        assert_eq!(writer.is_ok(), taken, "a log of larger commits is not opened");
        if let Ok(writer) = &mut writer {
            assert_eq!(writer.append(bytes.clone()).unwrap().commits, 1);
        }
        let capped = Options { commit_bytes_max: bytes.len() as u64 - short, first: Some(Offset(6)), ..trim() };
        let mut writer = StreamWriter::open(Arc::new(MemRepo::default()), capped).unwrap();
        assert_eq!(writer.append([header(Version::V1), bytes.clone()].concat()).is_ok(), taken);
    }
}

#[test]
fn a_flipped_bit_anywhere_is_never_stored() {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[3, 40]);
    source.segment(Version::V1).epoch(1).commits(&[40, 0, 9]);
    for at in 0..source.stream.len() {
        for bit in 0..8 {
            let repo = MemRepo::default();
            let mut writer = open(&repo).unwrap();
            let mut stream = source.stream.clone();
            stream[at] ^= 1 << bit;
            let result = writer.append(stream).map(drop).and_then(|()| writer.finish().map(drop));
            let what = format!("bit {bit} of byte {at}: {result:?}");
            // A header of version 1 may become one of version 0 and the other way round; nothing then fits behind it.
            assert!(result.is_err(), "{what}");
            let sound =
                source.commits.iter().take_while(|commit| commit.to <= at).last().map_or(0, |commit| commit.end);
            assert_eq!(writer.sync().unwrap().0, sound, "{what}");
            source.assert_holds(&repo, sound, &what);
        }
    }
}

#[test]
fn a_stream_cut_inside_a_commit_is_truncated_and_goes_on_later() {
    let source = source();
    for cut in 1..source.stream.len() {
        let repo = MemRepo::default();
        let mut writer = open(&repo).unwrap();
        writer.append(source.stream[..cut].to_vec()).unwrap();
        let boundary = source.commits.iter().any(|commit| commit.to == cut || commit.segment + 10 == cut);
        let ended = writer.finish();
        assert_eq!(ended.is_ok(), boundary, "cut at {cut}");
        let next = writer.durable();
        if let Err(error) = ended {
            let cut_commit = match error {
                AppendError::Stream(ScanError::Truncated { offset, .. }) => offset,
                error => panic!("{error}"),
            };
            assert!(cut_commit.is_none_or(|offset| offset == next), "cut at {cut}");
        }
        if cut % 97 == 0 {
            writer.restart();
            writer.append(source.rest(next.0).to_vec()).unwrap();
            writer.finish().unwrap();
            source.assert_is(&repo, "restarted");
        }
    }
}

#[test]
fn a_resumed_stream_at_a_segment_boundary_needs_its_header_only_for_the_same_files() {
    let source = source();
    let (repo, mut writer) = log_up_to(&source, 9);
    writer.append(source.rest(9).to_vec()).unwrap();
    source.assert_is(&repo, "with the header");
    let (repo, mut writer) = log_up_to(&source, 9);
    writer.append(source.rest(9)[10..].to_vec()).unwrap();
    assert_eq!(writer.finish().unwrap().0, 18);
    assert_eq!(repo.list().unwrap().len(), 2, "one segment and its index");
    assert_eq!(get(&repo, SEGMENT_0).len(), source.stream.len() - 10);
}

#[test]
fn progress_tells_what_each_batch_held() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = told.clone();
    writer.on_progress(move |p| tells.lock().unwrap().push((p.commits, p.bytes, p.next.0, p.durable.0)));
    let [first, second, .., last] = &source.commits[..] else { unreachable!() };
    writer.append(source.stream[..second.from + 50].to_vec()).unwrap();
    writer.append(source.stream[second.from + 50..second.to].to_vec()).unwrap();
    writer.sync().unwrap();
    writer.append(source.stream[second.to..].to_vec()).unwrap();
    let len = |commit: &support::commitlog::Made| (commit.to - commit.from) as u64;
    let third = source.commits[2];
    let behind_header = (last.to - source.commits[3].from) as u64;
    let expected = [(1, len(first), 3, 0), (1, len(second), 6, 0), (1, len(&third), 9, 6), (3, behind_header, 18, 9)];
    assert_eq!(told.lock().unwrap().as_slice(), expected);
}
