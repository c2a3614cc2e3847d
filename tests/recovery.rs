//! What opening a log takes for its end, what it cuts, and what it refuses to cut.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::format::commitlog::Version;
use logmirror::format::{LogFormat, name};
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::Offset;
use logmirror::repo::{Loss, MemRepo, Repo};
use logmirror::stream::{FaultKind, OpenError, Read, ReadError, StreamReader, StreamWriter};
use support::commitlog::{Source, commit, get, header, marked, open, put, records, seal, trim, write};

const SEGMENT_0: &str = "00000000000000000000.stdb.log";

/// Two segments: commits of three entries at 0, 3, 6 and at 9, 12, 15.
fn source() -> Source {
    let mut source = Source::new(0);
    source.segment(Version::V1).epoch(4).commits(&[100, 5000, 30]);
    source.segment(Version::V1).commits(&[200, 10, 6000]);
    source
}

fn one(first: u64, epoch: u64) -> Vec<u8> {
    commit(Version::V1, first, epoch, 3, &records(first, 50))
}

#[test]
fn a_log_shorter_than_its_durable_mark_is_refused() {
    let source = source();
    let repo = MemRepo::default();
    let mut writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
    writer.append(source.stream.clone()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let open = |repo: &MemRepo| StreamWriter::open(Arc::new(repo.clone()), marked());
    assert!(open(&repo).is_ok());
    let last = name::segment(LogFormat::Commitlog, Offset(9));
    let whole = get(&repo, &last);

    // Cut at a boundary: what is left is a sound log, only not all of it.
    repo.open_write(&last).unwrap().truncate(whole.len() as u64 - 6026).unwrap();
    let error = open(&repo).unwrap_err();
    assert!(matches!(error, OpenError::Lost { next: Offset(15), durable: Offset(18) }), "{error}");
    // Cut inside a commit, or rotten there: a torn end by its shape, but it was acknowledged.
    for at in [whole.len() - 6027 + 100, whole.len() - 1] {
        put(&repo, &last, &whole[..at]);
        assert!(matches!(open(&repo), Err(OpenError::Damaged(fault)) if fault.kind == FaultKind::Cut), "cut at {at}");
        let mut rotten = whole.clone();
        rotten[at] ^= 1;
        put(&repo, &last, &rotten);
        let error = open(&repo).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged(fault) if fault.offset == Offset(15)), "{error}");
        assert_eq!(get(&repo, &last), rotten, "refusing changes nothing");
    }
    // Without the mark, the same is torn and trimmed.
    repo.remove("durable").unwrap();
    assert_eq!(open(&repo).unwrap().next(), Offset(15));
}

#[test]
fn damage_behind_the_durable_mark_is_trimmed_whatever_its_shape() {
    let source = source();
    let tails: [Vec<u8>; 6] = [
        one(100, 4),                                     // a gap
        one(3, 4),                                       // a fork
        one(18, 3),                                      // a stale epoch
        header(Version::V1),                             // a header where none belongs
        [vec![9; 60], one(18, 4), one(21, 4)].concat(),  // sound commits behind garbage
        [vec![0; 512], one(18, 4), one(21, 4)].concat(), // and behind a lost sector
    ];
    for (at, tail) in tails.iter().enumerate() {
        let repo = MemRepo::default();
        let mut writer = StreamWriter::open(Arc::new(repo.clone()), marked()).unwrap();
        writer.append(source.stream.clone()).unwrap();
        writer.finish().unwrap();
        drop(writer);
        write(&repo, &name::segment(LogFormat::Commitlog, Offset(9)), None, tail);
        let writer = StreamWriter::open(Arc::new(repo.clone()), marked());
        assert_eq!(writer.unwrap_or_else(|error| panic!("tail {at}: {error}")).next(), Offset(18));
        source.assert_is(&repo, "trimmed");
        write(&repo, &name::segment(LogFormat::Commitlog, Offset(9)), None, tail);
        repo.remove("durable").unwrap();
        let refused = StreamWriter::open(Arc::new(repo.clone()), trim()).unwrap_err();
        assert!(matches!(refused, OpenError::Damaged(_)), "tail {at} without a mark: {refused}");
    }
}

#[test]
fn a_segment_whose_header_was_zeroed_is_not_taken_for_an_empty_one() {
    let source = Source::of(&[10; 4]);
    let repo = MemRepo::default();
    source.store(&repo);
    write(&repo, SEGMENT_0, Some(0), &[0; 10]);
    let before = get(&repo, SEGMENT_0);
    assert!(matches!(open(&repo), Err(OpenError::Damaged(_))));
    assert!(matches!(StreamWriter::open(Arc::new(repo.clone()), trim()), Err(OpenError::Damaged(_))));
    assert_eq!(get(&repo, SEGMENT_0), before);
}

#[test]
fn sound_commits_behind_a_zeroed_block_are_not_cut() {
    for end_of_block in [4096 + 512, 8192] {
        let source = Source::of(&[1500; 10]);
        let repo = MemRepo::default();
        source.store(&repo);
        // From a commit boundary on: a header of zeros alone would be the end of what was written.
        let from = source.commits[2].from;
        write(&repo, SEGMENT_0, Some(from as u64), &vec![0; end_of_block - from]);
        let before = get(&repo, SEGMENT_0);
        let error = open(&repo).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged(fault) if fault.offset == Offset(6)), "{error}");
        assert!(StreamWriter::open(Arc::new(repo.clone()), trim()).is_err());
        assert_eq!(get(&repo, SEGMENT_0), before);
    }
}

#[test]
fn zeros_to_the_end_are_space_and_garbage_behind_zeros_is_torn() {
    let source = Source::of(&[1500; 3]);
    for zeros in [1, 13, 21, 22, 1 << 20] {
        let repo = MemRepo::default();
        source.store(&repo);
        write(&repo, SEGMENT_0, None, &vec![0; zeros]);
        assert_eq!(open(&repo).unwrap().next(), Offset(9), "{zeros} zeros");
        source.assert_is(&repo, "zeros cut");
        if zeros > 22 {
            write(&repo, SEGMENT_0, None, &vec![0; zeros]);
            write(&repo, SEGMENT_0, None, &[7; 40]);
            assert!(matches!(open(&repo), Err(OpenError::Torn(_))), "{zeros} zeros and garbage");
            assert_eq!(StreamWriter::open(Arc::new(repo.clone()), trim()).unwrap().next(), Offset(9));
        }
    }
}

#[test]
fn all_that_an_opened_log_holds_is_durable_whoever_put_it_there() {
    let source = source();
    for options in [trim(), marked()] {
        let copied = MemRepo::default();
        source.store(&copied);
        assert_eq!(StreamWriter::open(Arc::new(copied.clone()), options).unwrap().durable().0, source.next);
        source.assert_is(&copied.after_power_loss(Loss::All), "after a power loss");
    }
}

#[test]
fn an_empty_head_is_taken_over_with_what_it_says() {
    let mut source = Source::new(0);
    source.segment(Version::V0).commits(&[10]);
    let heads = [vec![], vec![b'('], header(Version::V1)[..9].to_vec(), header(Version::V1), vec![0; 5000]];
    for head in heads {
        let repo = MemRepo::default();
        source.store(&repo);
        put(&repo, &name::segment(LogFormat::Commitlog, Offset(3)), &head);
        let writer = open(&repo).unwrap();
        let version = if head == header(Version::V1) { Version::V1 } else { Version::V0 };
        assert_eq!((writer.next(), writer.framing()), (Offset(3), version.into()));
        assert_eq!(get(&repo, &name::segment(LogFormat::Commitlog, Offset(3))), header(version));
    }
}

#[test]
fn a_damaged_sealed_segment_is_damage_and_not_trouble_with_files() {
    let source = Source::of(&[9000; 30]);
    let sealed = seal(&source.stream);
    for at in [5000, sealed.len() / 2, sealed.len() - 40, sealed.len() - 5] {
        let mut damaged = sealed.clone();
        damaged[at..at + 4].iter_mut().for_each(|byte| *byte ^= 0x55);
        for from in [0, 30] {
            let repo = MemRepo::default();
            put(&repo, &name::segment(LogFormat::Commitlog, Offset(0)), &damaged);
            let reader = StreamReader::open(Arc::new(repo), Offset(from), COMMIT_BYTES_MAX);
            let error = reader.and_then(|mut reader| {
                loop {
                    if let Read::End(tail) = reader.read()? {
                        panic!("damage at {at} is not noticed: {tail:?}");
                    }
                }
            });
            assert!(matches!(&error, Err::<(), _>(ReadError::Damaged(_))), "damage at {at}, from {from}: {error:?}");
        }
    }
}

#[test]
fn a_sealed_segment_that_claims_billions_of_frames_is_refused_before_memory_is_reserved() {
    let source = Source::of(&[9000; 3]);
    let mut sealed = seal(&source.stream);
    let footer = sealed.len() - 9;
    sealed[footer..footer + 4].copy_from_slice(&0x0800_0000_u32.to_le_bytes());
    let repo = MemRepo::default();
    put(&repo, SEGMENT_0, &sealed);
    let error = open(&repo).unwrap_err();
    assert!(error.to_string().contains("does not fit the file"), "{error}");
}
