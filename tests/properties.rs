//! What holds for any log, any bytes and any way of cutting them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::format::commitlog::{Commitlog, Version};
use logmirror::format::{Item, LogFormat, ScanError, Scanner, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::{BytePos, Offset};
use logmirror::repo::{MemRepo, Repo};
use logmirror::segment::{Entry, OffsetIndex, SegmentReader};
use logmirror::stream::{Batch, BatchError, Batcher, StreamWriter, survey};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use support::commitlog::{Source, put, read_from, seal, seed, trim};

/// Runs a property with the seed of this run.
fn holds<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value) -> TestCaseResult) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed().to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    if let Err(error) = TestRunner::new_with_rng(config, rng).run(&strategy, property) {
        panic!("{error}");
    }
}

/// A log of any shape: where it starts, and its segments with their versions and commits.
fn any_log() -> impl Strategy<Value = Source> {
    let len = prop_oneof![6 => 0..200_usize, 2 => 3000..9000_usize, 1 => Just(300_000_usize)];
    let commit = (1..=20_u16, len, 0..3_u64);
    let segment = (prop::bool::weighted(0.3), vec(commit, 1..8));
    let first = prop_oneof![Just(0), 0..1000_u64, Just(u64::from(u32::MAX)), Just(0x5e_2973_6420)];
    (first, vec(segment, 1..5)).prop_map(|(first, segments)| {
        let mut source = Source::new(first);
        for (old, commits) in segments {
            // Version 0 has no epochs, so it comes only while there are none.
            let version = if old && source.epoch == 0 { Version::V0 } else { Version::V1 };
            source.segment(version);
            for (entries, len, by) in commits {
                source.epoch += if version == Version::V1 { by / 2 } else { 0 };
                let records = support::commitlog::records(source.next, len);
                source.commit(entries, &records);
            }
        }
        source
    })
}

/// Where to cut a stream: sizes, used in turn.
fn any_cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![3 => 1..30_usize, 2 => 30..5000_usize, 1 => Just(1 << 20)], 1..40)
}

/// Bytes with some of them changed and the end cut off, mostly not much.
fn damaged(mut bytes: Vec<u8>, flips: &[(Index, u8)], cut: Index) -> Vec<u8> {
    for (at, with) in flips {
        let at = at.index(bytes.len());
        bytes[at] ^= with;
    }
    bytes.truncate(cut.index(bytes.len() * 4).max(4));
    bytes
}

/// Bytes that are like a log, up to a point: damaged, cut, or not one at all.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let near = (any_log(), vec((any::<Index>(), any::<u8>()), 0..4), any::<Index>());
    let near = near.prop_map(|(source, flips, cut)| damaged(source.stream, &flips, cut));
    let headed = vec(any::<u8>(), 0..300).prop_map(|bytes| [&b"(ds)^2\x01\0\0\0"[..], &bytes].concat());
    prop_oneof![4 => near, 1 => headed, 1 => vec(any::<u8>(), 0..300), 1 => vec(0..2_u8, 0..300)]
}

fn chunks<'a>(mut bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut cuts = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let chunk = bytes.split_off(..bytes.len().min(*cuts.next()?))?;
        (!chunk.is_empty()).then_some(chunk)
    })
}

type Found = (Vec<(BytePos, Item<logmirror::format::commitlog::SegmentHeader>)>, Result<(), ScanError>);

fn scan<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Found {
    let mut scanner = Scanner::new(Commitlog::default());
    let mut items = Vec::new();
    for mut chunk in chunks {
        loop {
            match scanner.next(&mut chunk) {
                Ok(Some(item)) => items.push((scanner.boundary(), item)),
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
        assert!(chunk.is_empty(), "all of a chunk is taken");
    }
    (items, scanner.finish())
}

#[test]
fn a_scanner_finds_the_same_however_the_bytes_are_cut() {
    holds(400, (any_bytes(), any_cuts()), |(bytes, cuts)| {
        let (items, end) = scan(chunks(&bytes, &cuts));
        prop_assert_eq!(&(items, end), &scan([&bytes[..]].into_iter()));
        Ok(())
    });
}

#[test]
fn a_scanner_finds_every_commit_of_a_log_and_where_it_is() {
    holds(200, (any_log(), any_cuts()), |(source, cuts)| {
        let (items, end) = scan(chunks(&source.stream, &cuts));
        prop_assert_eq!(end, Ok(()));
        let commits = items.iter().filter_map(|(at, item)| match item {
            Item::Commit(commit) => Some((commit.first.0, commit.end().0, at.0 as usize)),
            Item::Header(_) => None,
        });
        let made: Vec<_> = source.commits.iter().map(|made| (made.first, made.end, made.to)).collect();
        prop_assert_eq!(commits.collect::<Vec<_>>(), made);
        prop_assert_eq!(items.len(), source.commits.len() + source.segments.len());
        Ok(())
    });
}

#[test]
fn what_a_batcher_cuts_is_what_it_was_given_up_to_the_boundary() {
    holds(200, (any_bytes(), any_cuts()), |(bytes, cuts)| {
        let mut batcher = Batcher::new(Version::V1, None, COMMIT_BYTES_MAX);
        let mut batch = Batch::default();
        let mut result = Ok(());
        for chunk in chunks(&bytes, &cuts) {
            result = batcher.push(chunk.to_vec().into(), &mut batch);
            if result.is_err() {
                break;
            }
            let cut: usize = batch.slices().map(|slice| slice.len()).sum();
            prop_assert_eq!(batcher.boundary().0 as usize, cut);
        }
        let cut: Vec<u8> = batch.slices().flat_map(|slice| slice.to_vec()).collect();
        prop_assert_eq!(&cut, &bytes[..batcher.boundary().0 as usize]);
        let (items, end) = scan([&bytes[..]].into_iter());
        prop_assert_eq!(items.last().map_or(0, |(at, _)| at.0), batcher.boundary().0);
        prop_assert_eq!(result.and_then(|()| Ok(batcher.finish()?)), end.map_err(BatchError::from));
        for run in batch.runs() {
            let commits: Vec<_> = run.commits().collect();
            prop_assert_eq!(commits.len() as u64, run.commits);
            prop_assert_eq!(run.slices.iter().map(|slice| slice.len() as u64).sum::<u64>(), run.bytes);
            prop_assert_eq!(commits.iter().map(|(_, commit)| commit.bytes).sum::<u64>(), run.bytes);
            prop_assert_eq!((commits[0].1.first, commits[commits.len() - 1].1), (run.first, run.last));
            for mark in &run.marks {
                prop_assert!(commits.iter().any(|(at, commit)| (*at, commit.first) == (mark.value, mark.key)));
            }
            for (skipped, (at, commit)) in commits.iter().enumerate() {
                let rest = run.after(*at, commit, skipped as u64);
                prop_assert_eq!(
                    rest.commits().map(|(_, c)| c).collect::<Vec<_>>(),
                    commits[skipped..].iter().map(|c| c.1).collect::<Vec<_>>()
                );
            }
        }
        Ok(())
    });
}

#[test]
fn a_commit_that_dribbles_in_is_not_held_in_as_many_pieces() {
    let source = Source::of(&[500_000, 10]);
    for chunk in [1, 3, 255] {
        let mut batcher = Batcher::new(Version::V1, None, COMMIT_BYTES_MAX);
        let mut batch = Batch::default();
        for chunk in source.stream.chunks(chunk) {
            batcher.push(chunk.to_vec().into(), &mut batch).unwrap();
        }
        let pieces: usize = batch.runs().map(|run| run.slices.len()).sum();
        assert!(pieces < 500_000 / 256 + 512, "{pieces} pieces from chunks of {chunk}");
        assert_eq!(batch.slices().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>(), source.stream);
    }
}

#[test]
fn any_log_in_any_chunks_reads_back_from_any_offset() {
    holds(40, (any_log(), any_cuts(), vec(any::<u64>(), 8)), |(source, cuts, picks)| {
        let repo = MemRepo::default();
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), trim()).unwrap();
        for (at, chunk) in chunks(&source.stream, &cuts).enumerate() {
            writer.append(chunk.to_vec()).unwrap();
            if picks[at % picks.len()] % 5 == 0 {
                writer.sync().unwrap();
            }
            if picks[at % picks.len()] % 11 == 0 {
                // The process goes away with half a commit in memory, and a new one asks for the rest.
                drop(writer);
                writer = StreamWriter::open(Arc::new(repo.clone()), trim()).unwrap();
                let next = writer.next().0.max(source.segments[0].0);
                let sent = source.stream.len() - source.rest(next).len();
                writer.append(source.stream[sent..].to_vec()).unwrap();
                break;
            }
        }
        prop_assert_eq!(writer.finish().unwrap().0, source.next);
        drop(writer);
        source.assert_is(&repo, "mirrored");
        let first = source.segments[0].0;
        let ends = source.commits.iter().flat_map(|commit| [commit.first, commit.end - 1]);
        let picked = picks.iter().map(|pick| first + pick % (source.next - first));
        for from in ends.chain(picked) {
            let expected = source.rest(source.at(from).unwrap().first);
            let (found, end) = read_from(&repo, from);
            prop_assert!(found == expected && end == Ok(source.next), "from {}: {:?}", from, end);
        }
        Ok(())
    });
}

#[test]
fn no_bytes_on_disk_make_a_survey_or_a_writer_panic() {
    holds(200, (any_bytes(), any_bytes(), vec(any::<u8>(), 0..200), any::<bool>()), |(one, two, index, sealed)| {
        let repo = MemRepo::default();
        put(&repo, &name::segment(LogFormat::Commitlog, Offset(0)), &one);
        put(&repo, &name::index(LogFormat::Commitlog, Offset(0)), &index);
        put(&repo, "durable", &index);
        let next = survey(&repo, COMMIT_BYTES_MAX, None).map_or(7, |found| found.next.0);
        if sealed {
            put(&repo, &name::segment(LogFormat::Commitlog, Offset(0)), &seal(&one));
        }
        put(&repo, &name::segment(LogFormat::Commitlog, Offset(next)), &two);
        put(&repo, &name::index(LogFormat::Commitlog, Offset(next)), &index);
        for floor in [None, Some(Offset(0)), Some(Offset(next))] {
            let _ = survey(&repo, COMMIT_BYTES_MAX, floor);
        }
        for from in [0, 1, next, next + 1, u64::MAX] {
            let _ = read_from(&repo, from);
        }
        let marked = support::commitlog::marked();
        if let Ok(writer) = StreamWriter::open(Arc::new(repo.clone()), marked) {
            // What was opened is a sound log, and reads so.
            let (end, first) = (writer.next().0, writer.first().unwrap().0);
            drop(writer);
            prop_assert_eq!(read_from(&repo, first).1, Ok(end));
        }
        Ok(())
    });
}

#[test]
fn no_damage_to_a_sealed_segment_makes_a_reader_panic_or_spin() {
    let flips = vec((any::<Index>(), any::<u8>()), 1..4);
    holds(200, (any_log(), flips, any::<Index>()), |(source, flips, cut)| {
        let whole = source.files().into_values().next().unwrap();
        let sealed = damaged(seal(&whole), &flips, cut);
        let (repo, first) = (MemRepo::default(), source.segments[0].0);
        put(&repo, &name::segment(LogFormat::Commitlog, Offset(first)), &sealed);
        let (found, _) = read_from(&repo, first);
        prop_assert!(whole.starts_with(&found), "something else was read");
        let _ = survey(&repo, COMMIT_BYTES_MAX, None);
        Ok(())
    });
}

#[test]
fn no_index_makes_a_search_or_a_writer_panic() {
    let numbers = vec((any::<u64>(), any::<u64>()), 0..40);
    let small = vec((0..100_u64, 0..9000_u64), 0..40);
    holds(150, (prop_oneof![numbers, small], vec(any::<u8>(), 0..16), any_log()), |(entries, tail, source)| {
        let repo = MemRepo::default();
        source.store(&repo);
        let start = Offset(source.segments[0].0);
        let mut bytes: Vec<u8> =
            entries.iter().flat_map(|(k, v)| [k.to_le_bytes(), v.to_le_bytes()].concat()).collect();
        bytes.extend(tail);
        put(&repo, &name::index(LogFormat::Commitlog, start), &bytes);
        let mut reader = SegmentReader::open(&repo, start).unwrap();
        for (key, value) in entries.iter().copied().chain([(0, 0), (u64::MAX, u64::MAX)]) {
            let framing = reader.header().unwrap().unwrap().unwrap();
            let _ = reader.indexed(Offset(key), BytePos(value), framing, COMMIT_BYTES_MAX).unwrap();
            let last = Entry { key: Offset(key), value: BytePos(value) };
            let copy: Arc<dyn Repo> = Arc::new(repo.after_power_loss(logmirror::repo::Loss::Nothing));
            let mut index = OffsetIndex::open(copy, LogFormat::Commitlog, start, Some(last)).unwrap();
            index.note(Entry { key: Offset(value), value: BytePos(key) }).unwrap();
            index.seal().unwrap();
        }
        prop_assert_eq!(read_from(&repo, start.0), (source.stream.clone(), Ok(source.next)));
        Ok(())
    });
}
