//! Frames in all sorts of batches: what is read of a WAL, and what is written to a replica's.

use std::fs;
use std::path::Path;

use logmirror::format::wal::{FrameHeader, WalHeader};
use logmirror::sync::{FRAME_LEN, LocalLog, Position, Remote, Replica, SyncError, same_frame};
use proptest::prelude::*;

use crate::{beside, frames, info};

/// Frames of transactions with so many frames each, as a server sends them: with salts and checksums of no meaning.
fn served(transactions: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    for (number, count) in transactions.iter().enumerate() {
        for frame in 1..=*count {
            let size = if frame == *count { 300 } else { 0 };
            let page = 1 + (number as u32 * 7 + u32::from(frame)) % 299;
            frames.extend(FrameHeader { page, size, salts: [1, 2], chain: Default::default() }.encode());
            frames.extend((0..4096_usize).map(|at| (at ^ number ^ usize::from(frame) << 3) as u8));
        }
    }
    frames
}

/// A replica with metadata, that stands where those say.
fn replica(dir: &Path) -> Replica {
    let path = dir.join("replica.db");
    let opened = Replica::open(&path).unwrap();
    let (mut replica, known) = opened.unwrap();
    replica.resume(known.unwrap_or(Position { generation: 1, frame: 0 }));
    replica
}

/// A WAL with those frames, of its own salts.
fn wal(frames: &[u8], big_endian: bool) -> Vec<u8> {
    let header = WalHeader { big_endian, page_size: 4096, sequence: 3, salts: [77, 88] };
    let (mut bytes, mut chain) = (header.encode().to_vec(), header.seed());
    for frame in frames.chunks(FRAME_LEN) {
        let claim = FrameHeader::decode(frame[..24].try_into().unwrap());
        let (head, after) = header.frame(chain, claim.page, claim.size, &frame[24..]);
        chain = after;
        bytes.extend(head);
        bytes.extend_from_slice(&frame[24..]);
    }
    bytes
}

fn all_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.chunks(FRAME_LEN).zip(other.chunks(FRAME_LEN)).all(|(one, other)| same_frame(one, other))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// However the frames are cut into batches, and wherever the process ends in between, with the metadata of then or
    /// of before, the replica ends with the same frames.
    #[test]
    fn batches_and_crashes_do_not_change_what_is_written(
        transactions in prop::collection::vec(1_u8..6, 1..8),
        steps in prop::collection::vec((1_usize..9, 0_u8..6), 1..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("replica.db"), "").unwrap();
        let all = served(&transactions);
        let count = all.len() / FRAME_LEN;
        let mut held = replica(dir.path());
        let path = held.path().to_owned();
        // At last, all that is left and no crash.
        for (batch, crash) in steps.into_iter().chain([(count, 0)]) {
            let start = held.next() as usize - 1;
            let end = (start + batch).min(count);
            let before = fs::read(beside(&path, "-info"));
            held.apply(&all[start * FRAME_LEN..end * FRAME_LEN]).unwrap();
            if crash <= 2 && crash > 0 {
                drop(held);
                if let (2, Ok(before)) = (crash, before) {
                    fs::write(beside(&path, "-info"), before).unwrap();
                }
                held = replica(dir.path());
            }
        }
        prop_assert_eq!(held.position().frame as usize, count);
        drop(held);
        let log = LocalLog::open(&path).unwrap();
        prop_assert_eq!((log.frames() as usize, info(&path)), (count, (1, count as u32)));
        prop_assert!(all_same(&log.batch(1, count as u32 + 1).unwrap(), &all));
    }

    /// A frame held with other content is found wherever it is, and nothing is changed.
    #[test]
    fn another_frame_is_a_fork(transactions in prop::collection::vec(1_u8..6, 1..8), place in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("replica.db"), "").unwrap();
        let mut all = served(&transactions);
        let mut held = replica(dir.path());
        held.apply(&all).unwrap();
        held.resume(Position { generation: 1, frame: 0 });
        let wal = fs::read(beside(held.path(), "-wal")).unwrap();
        let at = place.index(all.len());
        all[at] ^= 0x40;
        let covered = at % FRAME_LEN < 8 || at % FRAME_LEN >= 24;
        match held.apply(&all) {
            Ok(applied) => prop_assert!(!covered && applied.frames == 0),
            Err(SyncError::Fork { frame, .. }) => prop_assert!(covered && frame as usize == at / FRAME_LEN + 1),
            Err(error) => prop_assert!(false, "{}", error),
        }
        prop_assert_eq!(fs::read(beside(held.path(), "-wal")).unwrap(), wal);
    }

    /// Any range of a WAL reads as it stands there; a changed or missing byte ends what counts before it.
    #[test]
    fn a_damaged_log_ends_at_a_commit_before_the_damage(
        transactions in prop::collection::vec(1_u8..6, 1..30),
        big_endian: bool,
        (place, cut) in any::<(prop::sample::Index, bool)>(),
        (one, other) in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let mut bytes = wal(&served(&transactions), big_endian);
        let place = place.index(bytes.len());
        if cut { bytes.truncate(place) } else { bytes[place] ^= 1 }
        fs::write(beside(&path, "-wal"), &bytes).unwrap();
        let log = LocalLog::open(&path).unwrap();
        let sound = place.saturating_sub(32) / FRAME_LEN;
        let commits = transactions.iter().scan(0, |end, count| { *end += usize::from(*count); Some(*end) });
        let committed = if place < 32 { 0 } else { commits.filter(|end| *end <= sound).last().unwrap_or(0) };
        prop_assert_eq!(log.frames() as usize, committed);
        if committed > 0 {
            let (one, other) = (one.index(committed), other.index(committed));
            let (start, end) = (one.min(other), one.max(other) + 1);
            let read = log.batch(start as u32 + 1, end as u32 + 1).unwrap();
            prop_assert_eq!(&read, &bytes[32 + start * FRAME_LEN..32 + end * FRAME_LEN]);
        }
        prop_assert!(log.batch(1, committed as u32 + 2).is_err());
        prop_assert!(log.batch(0, 1).is_err());
    }

    #[test]
    fn bytes_that_are_no_log_have_no_frames(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        fs::write(beside(&path, "-wal"), &bytes).unwrap();
        prop_assert_eq!(frames(&path), 0);
    }
}

#[test]
fn a_log_that_was_restarted_gives_out_nothing_of_either() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    fs::write(beside(&path, "-wal"), wal(&served(&[3, 3]), false)).unwrap();
    let mut log = LocalLog::open(&path).unwrap();
    // In place, as SQLite does: another header, and frames of which only the first is new.
    let other = WalHeader { big_endian: false, page_size: 4096, sequence: 4, salts: [78, 5] };
    let (head, _) = other.frame(other.seed(), 1, 1, &[9; 4096]);
    let mut bytes = fs::read(beside(&path, "-wal")).unwrap();
    bytes[..32].copy_from_slice(&other.encode());
    bytes[32..56].copy_from_slice(&head);
    bytes[56..56 + 4096].fill(9);
    fs::write(beside(&path, "-wal"), bytes).unwrap();
    // The file is the same one for whoever has it open only where it is written in place; by its name it is found anew.
    assert_eq!(log.look().unwrap(), logmirror::sync::Look::Restarted);
    assert_eq!(log.frames(), 1);
    assert!(log.batch(1, 3).is_err());
}

#[test]
fn urls_keep_their_path_and_lose_their_slashes() {
    for (url, wanted) in [
        ("libsql+http://host:8080", "http://host:8080/"),
        ("libsql+http://host/db//app/", "http://host/db/app"),
        ("libsql+https://host/a%20b", "https://host/a%20b"),
        ("libsql://host/app", "https://host/app"),
        ("http://host/x", "http://host/x"),
        ("http://:s3cret@host/logs/app", "http://host/logs/app"),
    ] {
        assert_eq!(Remote::new(url, Some("t")).unwrap().url().as_str(), wanted);
    }
    for url in
        ["ftp://host/x", "libsql+ftp://host", "libsql+http://", "libsql://u:p@host", "libsql://host/?a=b", "libsql:x"]
    {
        assert!(matches!(Remote::new(url, None), Err(SyncError::Url { .. })), "{url}");
    }
    assert!(matches!(Remote::new("libsql://host", Some("a\nb")), Err(SyncError::Token)));
    for url in ["ftp://:hidden@host", "http://u:hidden@host", "http://:hidden%20@host"] {
        let text = Remote::new(url, None).unwrap_err().to_string();
        assert!(!text.contains("hidden"), "{text}");
    }
}
