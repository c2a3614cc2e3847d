//! Reading a log while somebody else writes, seals, prunes or resets it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use logmirror::format::commitlog::Version;
use logmirror::format::{FormatError, LogFormat, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::{Epoch, Offset};
use logmirror::repo::{FsRepo, Repo};
use logmirror::stream::{FaultKind, Read, ReadError, StreamReader, Tail};
use support::commitlog::{Source, commit, get, header, put, read_from, records, seal, write};
use support::watched::Watched;
use tempfile::TempDir;

/// A directory that the test writes, and a reader that follows it.
struct Followed {
    _dir: TempDir,
    repo: FsRepo,
    watched: Watched<FsRepo>,
    reader: StreamReader,
    /// All that was read.
    read: Vec<u8>,
}

impl Followed {
    fn new() -> Followed {
        Followed::from(0, |_| ())
    }

    /// Follows from an offset on what `made` puts into the directory.
    fn from(from: u64, made: impl Fn(&FsRepo)) -> Followed {
        let dir = tempfile::tempdir().unwrap();
        let repo = FsRepo::open(dir.path()).unwrap();
        made(&repo);
        let watched = Watched::new(repo.clone());
        let reader = StreamReader::open(Arc::new(watched.clone()), Offset(from), COMMIT_BYTES_MAX).unwrap();
        Followed { _dir: dir, repo, watched, reader, read: Vec::new() }
    }

    fn append(&self, segment: u64, bytes: &[u8]) {
        let name = name::segment(LogFormat::Commitlog, Offset(segment));
        if self.repo.open(&name).is_err() {
            put(&self.repo, &name, &[]);
        }
        write(&self.repo, &name, None, bytes);
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.repo.path().join(name::segment(LogFormat::Commitlog, Offset(segment)))
    }

    /// Replaces a segment as a sealer does: at once, under its name.
    fn replace(&self, segment: u64, bytes: &[u8]) {
        put(&self.repo, "draft", bytes);
        std::fs::rename(self.repo.path().join("draft"), self.path(segment)).unwrap();
    }

    fn remove(&self, segment: u64) {
        std::fs::remove_file(self.path(segment)).unwrap();
    }

    /// Reads to the end of what there is.
    fn end(&mut self) -> Tail {
        loop {
            match self.reader.read().unwrap() {
                Read::Batch(batch) => batch.slices().for_each(|slice| self.read.extend_from_slice(slice)),
                Read::End(tail) => return tail,
            }
        }
    }

    /// Reads on to an error.
    fn error(&mut self) -> ReadError {
        loop {
            match self.reader.read() {
                Ok(Read::Batch(batch)) => batch.slices().for_each(|slice| self.read.extend_from_slice(slice)),
                Ok(Read::End(tail)) => panic!("ends in {tail:?}"),
                Err(error) => return error,
            }
        }
    }
}

/// Two segments: commits of three entries at 0, 3, 6 and at 9, 12, 15.
fn source() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).epoch(1).commits(&[100, 600, 30]);
    source.segment(Version::V1).commits(&[200, 10, 900]);
    source
}

fn one(first: u64) -> Vec<u8> {
    commit(Version::V1, first, 1, 3, &records(first, 40))
}

#[test]
fn a_commit_is_handed_out_once_its_last_byte_is_there() {
    let source = source();
    let mut followed = Followed::new();
    assert_eq!(followed.end(), Tail::Clean);
    for (at, byte) in source.stream.iter().enumerate() {
        let segment = source.segments.iter().rfind(|(_, from)| *from <= at).unwrap().0;
        followed.append(segment, &[*byte]);
        let tail = followed.end();
        let whole = source.commits.iter().rfind(|commit| commit.to <= at + 1).map_or(0, |commit| commit.to);
        assert_eq!(followed.read, &source.stream[..whole], "after byte {at}");
        let boundary = whole == at + 1 || source.segments.iter().any(|(_, from)| from + 10 == at + 1);
        assert_eq!(matches!(tail, Tail::Clean), boundary, "{tail:?} after byte {at}");
    }
    assert_eq!(followed.reader.next().0, source.next);
}

#[test]
fn preallocated_space_is_an_end_until_it_is_written() {
    let source = source();
    let mut followed = Followed::new();
    let first = name::segment(LogFormat::Commitlog, Offset(0));
    followed.append(0, &vec![0; 300_000]);
    assert_eq!(followed.end(), Tail::Zeros { bytes: 300_000 });
    let [one, two, three, ..] = &source.commits[..] else { unreachable!() };
    write(&followed.repo, &first, Some(0), &source.stream[..one.to]);
    assert_eq!(followed.end(), Tail::Zeros { bytes: 300_000 - one.to as u64 });
    write(&followed.repo, &first, Some(two.from as u64), &source.stream[two.from..two.to - 7]);
    assert_eq!(followed.end(), Tail::Torn { bytes: 300_000 - one.to as u64 }, "half a commit, then zeros");
    write(&followed.repo, &first, Some(two.from as u64), &source.stream[two.from..three.to]);
    assert_eq!(followed.end(), Tail::Zeros { bytes: 300_000 - three.to as u64 });
    assert_eq!(followed.read, &source.stream[..three.to]);
    // The next segment ends this one, zeros and all.
    followed.append(9, source.rest(9));
    assert_eq!(followed.end(), Tail::Clean);
    assert_eq!(followed.read, source.stream);
}

#[test]
fn a_segment_that_ends_torn_is_followed_by_its_successor() {
    let source = source();
    let files = source.files();
    for torn in [&[7; 30][..], &one(9)[..40], &[0; 3]] {
        let mut followed = Followed::new();
        followed.append(0, &[&files[&name::segment(LogFormat::Commitlog, Offset(0))], torn].concat());
        assert_ne!(followed.end(), Tail::Clean);
        followed.append(9, &[]);
        assert_eq!(followed.end(), Tail::Clean, "an empty successor is a clean end");
        followed.append(9, source.rest(9));
        followed.end();
        assert_eq!(followed.read, source.stream);
    }
}

#[test]
fn what_grows_between_the_end_of_a_segment_and_its_successor_is_not_lost() {
    let source = source();
    for seen in [1, 2] {
        let mut followed = Followed::new();
        let (at, second) = (source.commits[seen].from, source.segments[1].1);
        followed.append(0, &source.stream[..at + 11]);
        let (dir, whole) = (followed.repo.clone(), source.clone());
        // The reader has met the end of the first segment when all this happens.
        followed.watched.before_list(|| ());
        followed.watched.before_list(move || {
            write(&dir, &name::segment(LogFormat::Commitlog, Offset(0)), Some(at as u64), &whole.stream[at..second]);
            put(&dir, &name::segment(LogFormat::Commitlog, Offset(9)), whole.rest(9));
        });
        followed.end();
        assert!(followed.watched.acted());
        assert_eq!(followed.read, source.stream);
    }
}

#[test]
fn commits_that_come_while_a_torn_end_is_looked_at_are_no_damage() {
    let source = Source::of(&[3000; 30]);
    for half in [0, 1, 5, 29, 1000, 3020] {
        let mut followed = Followed::new();
        let from = source.commits[5].from;
        followed.append(0, &source.stream[..from + half]);
        followed.append(0, &vec![0; 40_000]);
        // The block is read, with its torn end; then the rest comes, and only then is it asked what follows.
        let (dir, rest) = (followed.repo.clone(), source.stream[from..].to_vec());
        let Read::Batch(_) = followed.reader.read().unwrap() else { panic!() };
        followed.watched.before_list(move || {
            write(&dir, &name::segment(LogFormat::Commitlog, Offset(0)), Some(from as u64), &rest)
        });
        while followed.reader.next().0 < source.next {
            let Read::Batch(_) = followed.reader.read().unwrap() else { panic!("{half} bytes of a commit") };
        }
        assert!(followed.watched.acted());
    }
}

#[test]
fn a_segment_may_be_sealed_under_the_reader() {
    let mut source = Source::new(0);
    source.segment(Version::V1).commits(&[9000; 100]);
    source.segment(Version::V0).commits(&[100, 9000]);
    source.segment(Version::V1).commits(&[100]);
    let files: Vec<Vec<u8>> = source.files().into_values().collect();
    for steps in 0..6 {
        let mut followed = Followed::from(0, |repo| source.store(repo));
        for _ in 0..steps {
            let Read::Batch(batch) = followed.reader.read().unwrap() else { panic!() };
            batch.slices().for_each(|slice| followed.read.extend_from_slice(slice));
        }
        followed.replace(0, &seal(&files[0]));
        followed.replace(300, &seal(&files[1]));
        assert_eq!(followed.end(), Tail::Clean);
        assert_eq!(followed.read, source.stream, "sealed after {steps} batches");
        for from in [0, 1, 3, 150, 299, 300, 303, 306] {
            let expected = source.rest(source.at(from).unwrap().first);
            assert_eq!(read_from(&followed.repo, from), (expected.to_vec(), Ok(source.next)), "sealed, from {from}");
        }
        // The open end is sealed too, and then grows a successor.
        followed.replace(306, &seal(&files[2]));
        assert_eq!(followed.end(), Tail::Clean);
        followed.append(309, &[header(Version::V1), one(309)].concat());
        followed.end();
        assert_eq!(followed.reader.next(), Offset(312));
    }
}

type Change = fn(&Followed, &Source);

/// A reader that has read the commits of three entries at 0 to 12, and then `change` happens.
fn read_up_to_15(source: &Source, change: Change) -> Followed {
    let read = source.commits[4];
    let mut followed = Followed::new();
    source.store(&followed.repo);
    followed
        .repo
        .open_write(&name::segment(LogFormat::Commitlog, Offset(9)))
        .unwrap()
        .truncate((read.to - read.segment) as u64)
        .unwrap();
    followed.end();
    assert_eq!((followed.reader.next().0, read.first), (15, 12));
    change(&followed, source);
    followed
}

#[test]
fn another_commit_at_the_offset_of_the_last_one_is_a_reset() {
    let source = source();
    let changes: [(&str, Change); 3] = [
        ("with other commits", |f, source| {
            let mut other = source.files().into_values().next_back().unwrap();
            other.truncate(10);
            other.extend((9..60).step_by(3).flat_map(one));
            f.replace(9, &other);
        }),
        ("with other boundaries", |f, _| {
            f.replace(9, &[header(Version::V1), commit(Version::V1, 9, 1, 5, b"9 to 14")].concat());
        }),
        ("with commits of the same size", |f, source| {
            let mut other = Source::new(9);
            other.segment(Version::V1).epoch(2).commits(&[200, 10, 900]);
            assert_eq!(other.stream.len(), source.rest(9).len());
            f.replace(9, &other.stream);
        }),
    ];
    for (what, change) in changes {
        let mut followed = read_up_to_15(&source, change);
        for _ in 0..3 {
            let error = followed.error();
            assert!(matches!(error, ReadError::Reset { at: Offset(12) }), "{what}: {error}");
        }
    }
}

#[test]
fn a_commit_that_cannot_be_found_now_is_no_reset_and_is_found_again() {
    let source = source();
    let changes: [(&str, Change); 8] = [
        ("emptied", |f, _| [0, 9].iter().for_each(|segment| f.remove(*segment))),
        ("its segment vanished", |f, _| f.remove(9)),
        ("written again from the start", |f, _| {
            [0, 9].iter().for_each(|segment| f.remove(*segment));
            f.append(0, &[header(Version::V1), one(0)].concat());
        }),
        ("cut before what was read", |f, source| {
            let keep = source.commits[4].to - source.segments[1].1 - 1;
            f.repo.open_write(&name::segment(LogFormat::Commitlog, Offset(9))).unwrap().truncate(keep as u64).unwrap();
        }),
        ("cut to its header", |f, _| {
            f.repo.open_write(&name::segment(LogFormat::Commitlog, Offset(9))).unwrap().truncate(10).unwrap()
        }),
        ("cut to nothing", |f, _| f.replace(9, &[])),
        ("zeroed", |f, _| f.replace(9, &[0; 5000])),
        ("a link that leads nowhere", |f, _| {
            f.remove(9);
            std::os::unix::fs::symlink("nowhere", f.path(9)).unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut followed = read_up_to_15(&source, change);
        for _ in 0..3 {
            let error = followed.error();
            let missing = matches!(&error, ReadError::Missing { at: Offset(12) });
            assert!(missing || what.contains("link") && matches!(error, ReadError::Io(_)), "{what}: {error}");
        }
        for segment in [0, 9] {
            let _ = std::fs::remove_file(followed.path(segment));
        }
        source.store(&followed.repo);
        assert_eq!(followed.end(), Tail::Clean, "{what}");
        assert_eq!(followed.read, source.stream, "{what}");
    }
}

/// What may become of an empty head when SpacetimeDB is started again: it goes on in the segment before.
#[test]
fn an_empty_head_that_disappears_is_followed_into_the_segment_before() {
    let source = source();
    let (second, files) = (source.segments[1].1, source.files());
    let heads: [&[u8]; 3] = [&[], &[0; 300], &header(Version::V1)];
    for head in heads {
        for recreated in [false, true] {
            let mut followed = Followed::new();
            followed.append(0, &files[&name::segment(LogFormat::Commitlog, Offset(0))]);
            followed.append(9, head);
            followed.end();
            assert_eq!(followed.read, &source.stream[..second]);
            followed.remove(9);
            assert_eq!(followed.end(), Tail::Clean);
            followed.append(0, &one(9));
            if recreated {
                followed.append(12, &header(Version::V1));
            }
            followed.end();
            assert_eq!(followed.reader.next(), Offset(12));
            let last = if recreated { 12 } else { 0 };
            followed.append(last, &one(12));
            followed.end();
            assert_eq!(followed.reader.next(), Offset(15));
            assert!(followed.read.ends_with(&one(12)));
        }
    }
}

#[test]
fn a_head_that_is_a_link_to_nowhere_is_an_error_and_no_loop() {
    let source = source();
    let files = source.files();
    for with_log in [false, true] {
        let mut followed = Followed::new();
        if with_log {
            followed.append(0, &files[&name::segment(LogFormat::Commitlog, Offset(0))]);
            followed.end();
        }
        let head = if with_log { 9 } else { 0 };
        std::os::unix::fs::symlink("nowhere", followed.path(head)).unwrap();
        for _ in 0..3 {
            let error = followed.error();
            assert!(
                matches!(&error, ReadError::Io(error) if error.to_string().contains("cannot be opened")),
                "{error}"
            );
        }
        std::fs::remove_file(followed.path(head)).unwrap();
        followed.append(head, &files[&name::segment(LogFormat::Commitlog, Offset(head))]);
        followed.end();
        assert!(followed.reader.next().0 > head);
    }
}

#[test]
fn a_reset_between_two_segments_is_noticed_too() {
    let source = source();
    let mut followed = Followed::new();
    source.store(&followed.repo);
    followed.replace(9, &[]);
    assert_eq!(followed.end(), Tail::Clean);
    assert_eq!(followed.reader.next(), Offset(9));
    // Another history with a boundary at the same offset.
    followed.replace(0, &[header(Version::V1), one(0), one(3), one(6)].concat());
    followed.replace(9, &[header(Version::V1), one(9)].concat());
    let error = followed.error();
    assert!(matches!(error, ReadError::Reset { at: Offset(6) }), "{error}");
}

#[test]
fn pruning_behind_the_reader_is_no_reset_and_pruning_before_it_is_told() {
    let mut source = source();
    source.segment(Version::V1).commits(&[50]);
    let mut followed = Followed::new();
    let files = source.files();
    followed.append(0, &files[&name::segment(LogFormat::Commitlog, Offset(0))]);
    followed.end();
    // The reader stands at the end of the first segment, which goes while the log goes on.
    followed.append(9, source.rest(9)[..200].as_ref());
    followed.remove(0);
    followed.end();
    assert_eq!(followed.reader.next(), Offset(9));
    followed.replace(9, &files[&name::segment(LogFormat::Commitlog, Offset(9))]);
    followed.append(18, source.rest(18));
    followed.end();
    assert_eq!(followed.read, source.stream);

    let mut late = Followed::new();
    late.append(0, &files[&name::segment(LogFormat::Commitlog, Offset(0))][..source.commits[1].to]);
    late.end();
    late.append(18, source.rest(18));
    late.remove(0);
    let error = late.error();
    assert!(matches!(error, ReadError::Pruned { from: Offset(6), first: Offset(18) }), "{error}");
}

#[test]
fn a_log_that_appears_all_at_once_is_read_from_the_offset_asked_for() {
    let source = source();
    for from in [0, 1, 9, 12, 14, 18] {
        let mut followed = Followed::from(from, |_| ());
        assert_eq!(followed.end(), Tail::Clean);
        source.store(&followed.repo);
        followed.end();
        assert_eq!(followed.read, source.at(from).map_or(&[][..], |commit| source.rest(commit.first)), "from {from}");
        assert_eq!(followed.reader.next(), Offset(18));
    }
}

#[test]
fn what_is_sound_is_handed_out_before_the_fault_behind_it() {
    let bad: [(Vec<u8>, FaultKind); 6] = [
        (one(20), FaultKind::Gap { found: Offset(20) }),
        (one(3), FaultKind::Fork { found: Offset(3) }),
        (commit(Version::V1, 9, 0, 3, &[1; 9]), FaultKind::StaleEpoch { current: Epoch(1), found: Epoch(0) }),
        (header(Version::V1), FaultKind::Format(FormatError::Header { found: header(Version::V1) })),
        ([vec![255; 30], one(12)].concat(), FaultKind::Format(FormatError::NotALog { found: vec![255; 16] })),
        ([vec![0; 30], one(12)].concat(), FaultKind::Format(FormatError::Zeros)),
    ];
    let mut source = Source::new(0);
    source.segment(Version::V1).epoch(1).commits(&[100, 600, 30]);
    for (bytes, kind) in bad {
        let mut followed = Followed::new();
        followed.append(0, &[&source.stream, &bytes[..], &one(9)].concat());
        for _ in 0..2 {
            let error = followed.error();
            let ReadError::Damaged(fault) = &error else { panic!("{error}") };
            assert_eq!((&fault.kind, fault.offset), (&kind, Offset(9)));
            assert_eq!(fault.at.0, source.stream.len() as u64);
            assert_eq!((&followed.read, followed.reader.next()), (&source.stream, Offset(9)));
        }
        // Somebody repairs it, and the reader goes on.
        followed
            .repo
            .open_write(&name::segment(LogFormat::Commitlog, Offset(0)))
            .unwrap()
            .truncate(source.stream.len() as u64)
            .unwrap();
        followed.append(0, &one(9));
        followed.end();
        assert_eq!(followed.reader.next(), Offset(12));
    }
}

#[test]
fn a_commit_the_log_holds_twice_is_handed_out_once() {
    let mut followed = Followed::new();
    let whole = [header(Version::V1), one(0), one(3), one(6)].concat();
    followed.append(0, &[header(Version::V1), one(0), one(3), one(3), one(3), one(6), one(6)].concat());
    followed.end();
    assert_eq!(followed.read, whole);
    followed.append(0, &one(6));
    assert_eq!(followed.end(), Tail::Clean);
    followed.append(0, &[one(6), one(9)].concat());
    followed.end();
    assert_eq!(followed.read, [whole, one(9)].concat());
    assert_eq!(read_from(&followed.repo, 5).0, [one(3), one(6), one(9)].concat());
}

#[test]
fn a_segment_without_a_header_is_damage() {
    let mut followed = Followed::new();
    followed.append(0, &one(0));
    let error = followed.error();
    assert!(
        matches!(&error, ReadError::Damaged(f) if matches!(f.kind, FaultKind::Format(FormatError::NotALog { .. })))
    );
}

#[test]
fn readers_change_nothing() {
    let source = source();
    let mut followed = Followed::new();
    source.store(&followed.repo);
    followed.append(9, &[7; 100]);
    let before = support::files(followed.repo.path());
    assert_eq!(followed.end(), Tail::Torn { bytes: 100 });
    read_from(&followed.repo, 10).1.unwrap();
    assert_eq!(support::files(followed.repo.path()), before);
    assert_eq!(
        get(&followed.repo, &name::segment(LogFormat::Commitlog, Offset(9))).len(),
        source.files()[&name::segment(LogFormat::Commitlog, Offset(9))].len() + 100
    );
}
