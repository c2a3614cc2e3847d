//! The offset index is a hint: whatever it says, the answers are those of the log.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::format::commitlog::Version;
use logmirror::format::{LogFormat, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, MemRepo, Repo};
use logmirror::stream::{Read, StreamReader};
use support::commitlog::{Draw, Source, commit, get, open, put, read_from, records, seed};
use support::watched::Watched;

type Entries = Vec<(u64, u64)>;

/// Two segments of commits of many sizes. One commit of each holds a sound commit in its records, which claims the
/// offset right behind its own.
fn source() -> Source {
    let mut source = Source::new(0);
    for _ in 0..2 {
        source.segment(Version::V1).epoch(2);
        for at in 0..24 {
            if at == 16 {
                let forged = commit(Version::V1, source.next + 3, 2, 3, &records(1, 60));
                source.commit(3, &[records(7, 300), forged, records(8, 4500)].concat());
            } else {
                source.commits(&[[100, 5000, 30, 700][at % 4]]);
            }
        }
    }
    source
}

/// Where in its segment file the forged commit of the segment stands, and the offset it claims.
fn forged(source: &Source, segment: usize) -> (u64, u64) {
    let holder = source.commits[segment * 24 + 16];
    (holder.end, (holder.from - holder.segment + 22 + 300) as u64)
}

fn mirrored(source: &Source) -> MemRepo {
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    for chunk in source.stream.chunks(1000) {
        writer.append(chunk.to_vec()).unwrap();
    }
    writer.finish().unwrap();
    repo
}

fn decode(index: &[u8]) -> Entries {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let slots = index.chunks_exact(16).map(|slot| (number(&slot[..8]), number(&slot[8..])));
    slots.take_while(|(key, _)| *key != 0).collect()
}

fn encode(entries: &[(u64, u64)]) -> Vec<u8> {
    entries.iter().flat_map(|(key, value)| [key.to_le_bytes(), value.to_le_bytes()].concat()).collect()
}

/// Wrong indexes, made from the right one.
fn wrong(right: &[(u64, u64)], forged: (u64, u64), draw: &mut Draw) -> Vec<(String, Option<Vec<u8>>)> {
    let last = right[right.len() - 1];
    let middle = right.len() / 2;
    let with = |at: usize, entry: (u64, u64)| {
        let mut entries = right.to_vec();
        entries[at] = entry;
        encode(&entries)
    };
    let reversed: Entries = right.iter().rev().copied().collect();
    let shifted: Entries = right.iter().map(|(key, value)| (*key, value + 1)).collect();
    let rotated: Entries = right.iter().zip(right.iter().cycle().skip(1)).map(|(a, b)| (a.0, b.1)).collect();
    let before = right.iter().filter(|entry| entry.1 < forged.1);
    let lying: Entries = before.clone().copied().chain([forged]).collect();
    let behind: Entries =
        before.copied().chain([forged]).chain(right.iter().filter(|e| e.0 > forged.0).copied()).collect();
    let beyond: Entries = (1..200).map(|at| (last.0 + 3 * at, last.1 + 5000 * at)).collect();
    let mut all = vec![
        ("missing".to_owned(), None),
        ("empty".to_owned(), Some(vec![])),
        ("short".to_owned(), Some(encode(&right[..middle]))),
        ("cut in an entry".to_owned(), Some(encode(right)[..middle * 16 + 5].to_vec())),
        ("nothing but zeros".to_owned(), Some(vec![0; 64 << 10])),
        ("stale".to_owned(), Some([encode(right), encode(&beyond)].concat())),
        ("stale, then zeros".to_owned(), Some([encode(right), encode(&beyond), vec![0; 4096]].concat())),
        ("garbage behind an empty slot".to_owned(), Some([vec![0; 16], encode(right)].concat())),
        ("twice".to_owned(), Some(encode(right).repeat(2))),
        ("reversed".to_owned(), Some(encode(&reversed))),
        ("positions shifted".to_owned(), Some(encode(&shifted))),
        ("positions of others".to_owned(), Some(encode(&rotated))),
        ("last position wrong".to_owned(), Some(with(right.len() - 1, (last.0, last.1 - 9)))),
        ("last key wrong".to_owned(), Some(with(right.len() - 1, (last.0 + 1, last.1)))),
        ("a key out of order".to_owned(), Some(with(middle, (u64::MAX, right[middle].1)))),
        ("a position out of order".to_owned(), Some(with(middle, (right[middle].0, u64::MAX)))),
        ("a slot empty".to_owned(), Some(with(middle, (0, 0)))),
        ("a forged commit last".to_owned(), Some(encode(&lying))),
        ("a forged commit among others".to_owned(), Some(encode(&behind))),
        ("a forged commit alone".to_owned(), Some(encode(&[forged]))),
        ("all ones".to_owned(), Some(vec![0xff; 1600])),
    ];
    for at in 0..6 {
        let len = draw.below(3000) as usize;
        let garbage = (0..len).map(|_| draw.below(256) as u8).collect();
        all.push((format!("garbage {at}"), Some(garbage)));
        let numbers: Entries = (0..40).map(|_| (draw.below(150), draw.below(60_000))).collect();
        all.push((format!("numbers {at}"), Some(encode(&numbers))));
    }
    all
}

/// Runs a check on the mirrored log with each wrong index of each segment.
fn with_wrong_indexes(check: impl Fn(&Source, &MemRepo, Offset, &str)) {
    let source = source();
    let mut draw = Draw(seed());
    for (at, (start, _)) in source.segments.iter().enumerate() {
        let index = name::index(LogFormat::Commitlog, Offset(*start));
        let right = decode(&get(&mirrored(&source), &index));
        assert!(right.len() >= 6, "{right:?}");
        for (what, content) in wrong(&right, forged(&source, at), &mut draw) {
            let repo = mirrored(&source);
            match content {
                Some(content) => put(&repo, &index, &content),
                None => repo.remove(&index).unwrap(),
            }
            check(&source, &repo, Offset(*start), &format!("segment {start}, {what}"));
        }
    }
}

/// The entries of an index ascend, point at commits, and leave out no more than an interval and a commit.
fn assert_whole(source: &Source, repo: &MemRepo, start: Offset, what: &str) {
    let entries = decode(&get(repo, &name::index(LogFormat::Commitlog, start)));
    let segment = source.segments.iter().find(|(first, _)| *first == start.0).unwrap().1;
    let end = get(repo, &name::segment(LogFormat::Commitlog, start)).len() as u64;
    let mut before = (0, 0);
    for entry in &entries {
        assert!(entry.0 > before.0 && entry.1 > before.1, "{what}: {entries:?}");
        assert!(entry.1 - before.1 < 4096 + 2 * 5026, "{what}: an entry is missing before {entry:?}");
        let made = source.commits.iter().find(|commit| commit.first == entry.0).unwrap();
        assert_eq!(((made.from - segment) as u64, made.segment), (entry.1, segment), "{what}");
        before = *entry;
    }
    assert!(end - before.1 < 4096 + 2 * 5026, "{what}: ends early at {before:?}");
}

#[test]
fn whatever_the_index_says_every_offset_reads_the_same() {
    with_wrong_indexes(|source, repo, _, what| {
        for from in 0..source.next {
            let expected = source.rest(source.at(from).unwrap().first);
            let (found, end) = read_from(repo, from);
            assert!(found == expected && end == Ok(source.next), "{what}, from {from}: {end:?}");
        }
        assert_eq!(read_from(repo, source.next), (vec![], Ok(source.next)), "{what}");
    });
}

#[test]
fn whatever_the_index_says_the_log_opens_at_its_end_and_the_last_index_is_rebuilt() {
    with_wrong_indexes(|source, repo, start, what| {
        let mut longer = source.clone();
        longer.commits(&[4000, 4000, 10]);
        // Entries in the middle are checked when they are used, not when the log is opened.
        let rebuilt = start != Offset(0) && !what.contains("among others") && !what.contains("reversed");
        for _ in 0..2 {
            let writer = open(repo).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(writer.next().0, source.next, "{what}");
            drop(writer);
            source.assert_is(repo, what);
            if rebuilt {
                assert_whole(source, repo, start, what);
            }
        }
        let mut writer = open(repo).unwrap();
        writer.append(longer.rest(source.next).to_vec()).unwrap();
        writer.finish().unwrap();
        drop(writer);
        if rebuilt {
            assert_whole(&longer, repo, start, what);
        }
        // Whatever is left of a wrong one, it is no obstacle.
        assert_eq!(read_from(repo, longer.next - 3), (longer.rest(longer.next - 3).to_vec(), Ok(longer.next)));
    });
}

#[test]
fn an_index_written_along_is_sound_and_gives_back_its_space() {
    let source = source();
    let repo = mirrored(&source);
    for (start, _) in &source.segments {
        assert_whole(&source, &repo, Offset(*start), "written along");
    }
    let sealed = get(&repo, &name::index(LogFormat::Commitlog, Offset(0)));
    let entries = decode(&sealed);
    assert_eq!(sealed.len(), (entries.len() + 1) * 16, "one empty slot stays");
    assert_eq!(get(&repo, &name::index(LogFormat::Commitlog, Offset(72))).len(), 64 << 10, "the open one has room");
}

#[test]
fn an_index_holds_nothing_that_is_not_durable() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = open(&repo).unwrap();
    let index = |start| decode(&get(&repo, &name::index(LogFormat::Commitlog, Offset(start))));
    let half = source.commits[12];
    writer.append(source.stream[..half.to].to_vec()).unwrap();
    assert_eq!(index(0), []);
    let job = writer.begin_sync().unwrap().unwrap();
    writer.append(source.stream[half.to..source.segments[1].1].to_vec()).unwrap();
    writer.finish_sync(job.run()).unwrap();
    let durable = index(0);
    assert!(!durable.is_empty() && durable.iter().all(|(key, _)| *key < half.end), "{durable:?}");
    writer.append(source.stream[source.segments[1].1..].to_vec()).unwrap();
    assert!(index(0).len() > durable.len(), "a rotation makes the old segment durable");
    assert_eq!(index(72), []);
    writer.sync().unwrap();
    assert_whole(&source, &repo, Offset(72), "synced");
}

#[test]
fn opening_a_large_segment_reads_little_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let plain = FsRepo::open(dir.path()).unwrap();
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[16_000; 4000]);
    let mut writer = open(&plain).unwrap();
    for chunk in source.stream.chunks(1 << 20) {
        writer.append(chunk.to_vec()).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    assert!(source.stream.len() > 60 << 20);

    let repo = Watched::new(plain);
    assert_eq!(open(&repo).unwrap().next().0, source.next);
    let read = repo.bytes_read();
    assert!(read < 1 << 20, "{read} bytes read to open it for writing");
    for from in [1, source.next / 2, source.next - 1, source.next] {
        let mut reader = StreamReader::open(Arc::new(repo.clone()), Offset(from), COMMIT_BYTES_MAX).unwrap();
        let read = repo.bytes_read();
        assert!(read < 256 << 10, "{read} bytes read to find {from}");
        let found = reader.read().unwrap();
        assert_eq!(matches!(found, Read::Batch(_)), from < source.next);
        assert!(repo.bytes_read() < 1 << 20);
    }
    repo.remove(&name::index(LogFormat::Commitlog, Offset(0))).unwrap();
    assert_eq!(open(&repo).unwrap().next().0, source.next);
    assert!(repo.bytes_read() > 60 << 20, "this test sees what is read");
}
