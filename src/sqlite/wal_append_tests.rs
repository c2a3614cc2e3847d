use super::*;
use crate::repo::{Faults, Loss, MemRepo, Op};
use crate::sqlite::wal_frames::{frame_len, frames_of};

const PAGE_SIZE: u32 = 512;

/// Frames of one page each in which `sizes` are the commit sizes, as another WAL has them.
fn foreign(header: &WalHeader, sizes: &[u32]) -> Vec<u8> {
    let (mut chain, mut bytes) = (header.seed(), Vec::new());
    for (nth, size) in (1..).zip(sizes) {
        let page: Vec<u8> = (0..header.page_size).map(|at| (at * nth * 7 + nth) as u8).collect();
        let (head, after) = header.frame(chain, nth, *size, &page);
        chain = after;
        bytes.extend([&head[..], &page].concat());
    }
    bytes
}

fn content(repo: &MemRepo) -> Vec<u8> {
    let file = repo.open("a-wal").unwrap();
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Fails unless the file is one WAL with these commit sizes and the pages of `theirs`.
#[track_caller]
fn holds(repo: &MemRepo, theirs: &[u8], sizes: &[u32]) {
    let bytes = content(repo);
    let (header, frames) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = WalHeader::decode(header).unwrap();
    assert_eq!(frames.len(), sizes.len() * frame_len(header.page_size));
    let mut chain = header.seed();
    let ours = frames_of(frames, header.page_size).zip(frames_of(theirs, header.page_size)).zip(sizes);
    for (((claim, page), (origin, wanted)), size) in ours {
        chain = header.check(chain, &claim.encode(), page).unwrap().chain;
        assert_eq!((claim.page, claim.size), (origin.page, *size));
        assert!(page == wanted);
    }
}

#[test]
fn frames_of_any_origin_continue_under_salts_of_our_own() {
    for (page_size, big_endian) in [(512, true), (4096, false), (65_536, true)] {
        let theirs = WalHeader { big_endian, page_size, sequence: 9, salts: [1, 2] };
        let (repo, sizes) = (MemRepo::default(), [0, 2, 3, 0, 0, 4]);
        let bytes = foreign(&theirs, &sizes);
        let mut wal = WalAppender::create(&repo, "a-wal", new_header(page_size, 0)).unwrap();
        assert_ne!(wal.header().salts, theirs.salts);
        let (first, second) = bytes.split_at(frame_len(page_size));
        let mut heads = wal.append(frames_of(first, page_size)).unwrap();
        heads.extend(wal.append(frames_of(second, page_size)).unwrap());
        wal.sync().unwrap();
        holds(&repo, &bytes, &sizes);
        let written = content(&repo);
        let written: Vec<_> = frames_of(&written[HEADER_LEN..], page_size).map(|(head, _)| head).collect();
        assert_eq!(heads, written);
        assert_eq!((wal.frames(), Some(wal.chain())), (6, heads.last().map(|head| head.chain)));
        // Opened again it goes on in the same chain, whatever order of words that has.
        let mut wal = WalAppender::open(&repo, "a-wal", 6).unwrap();
        wal.append(frames_of(&bytes, page_size)).unwrap();
        holds(&repo, &bytes.repeat(2), &sizes.repeat(2));
    }
}

#[test]
fn a_wal_of_either_order_of_words_goes_on_in_its_own() {
    for big_endian in [false, true] {
        let header = WalHeader { big_endian, page_size: PAGE_SIZE, sequence: 1, salts: [3, 4] };
        let (repo, bytes) = (MemRepo::default(), foreign(&header, &[1, 0, 2]));
        let file = repo.create("a-wal").unwrap();
        file.write_at(&mut [IoSlice::new(&header.encode()), IoSlice::new(&bytes)], 0).unwrap();
        let mut wal = WalAppender::open(&repo, "a-wal", 3).unwrap();
        wal.append(frames_of(&bytes, PAGE_SIZE)).unwrap();
        holds(&repo, &bytes.repeat(2), &[1, 0, 2, 1, 0, 2]);
    }
}

#[test]
fn what_follows_the_frames_that_count_is_cut_off() {
    let theirs = new_header(PAGE_SIZE, 0);
    let (repo, bytes) = (MemRepo::default(), foreign(&theirs, &[1, 0, 2, 0, 3]));
    let mut wal = WalAppender::create(&repo, "a-wal", theirs).unwrap();
    wal.append(frames_of(&bytes, PAGE_SIZE)).unwrap();
    for (frames, sizes) in [(5, &[1, 0, 2, 0, 3][..]), (3, &[1, 0, 2]), (1, &[1]), (0, &[])] {
        let wal = WalAppender::open(&repo, "a-wal", frames).unwrap();
        assert_eq!(wal.frames(), frames);
        holds(&repo, &bytes, sizes);
    }
    // Frames of a transaction that was not ended make room for others.
    let mut wal = WalAppender::open(&repo, "a-wal", 0).unwrap();
    wal.append(frames_of(&bytes[..4 * frame_len(PAGE_SIZE)], PAGE_SIZE)).unwrap();
    wal.forget_open();
    assert_eq!(wal.frames(), 3);
    wal.append(frames_of(&bytes[..frame_len(PAGE_SIZE)], PAGE_SIZE)).unwrap();
    holds(&repo, &[&bytes[..3 * frame_len(PAGE_SIZE)], &bytes].concat(), &[1, 0, 2, 1]);
    empty(&repo, "a-wal").unwrap();
    assert!(content(&repo).is_empty());
    empty(&repo, "b-wal").unwrap();
}

#[test]
fn frames_that_are_not_there_are_an_error_and_nothing_is_cut() {
    let theirs = new_header(PAGE_SIZE, 0);
    let repo = MemRepo::default();
    let missing = WalAppender::open(&repo, "a-wal", 1).unwrap_err();
    assert_eq!(missing.to_string(), "expected 1 frames, found no file");
    let mut wal = WalAppender::create(&repo, "a-wal", theirs).unwrap();
    wal.append(frames_of(&foreign(&theirs, &[1, 0, 2, 0]), PAGE_SIZE)).unwrap();
    for (frames, wanted) in [(5, "expected 5 frames, found 4"), (2, "frame 2 ends no transaction of this WAL")] {
        let error = WalAppender::open(&repo, "a-wal", frames).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::InvalidData, wanted));
    }
    assert_eq!(content(&repo).len(), HEADER_LEN + 4 * frame_len(PAGE_SIZE));
    repo.open_write("a-wal").unwrap().write_at(&mut [IoSlice::new(&[1])], 20).unwrap();
    assert_eq!(WalAppender::open(&repo, "a-wal", 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn after_an_error_nothing_is_written_until_the_file_is_opened_again() {
    for op in [Op::Write, Op::Sync] {
        let theirs = new_header(PAGE_SIZE, 0);
        let (repo, bytes) = (MemRepo::default(), foreign(&theirs, &[1, 2]));
        let mut wal = WalAppender::create(&repo, "a-wal", theirs).unwrap();
        wal.append(frames_of(&bytes, PAGE_SIZE)).unwrap();
        wal.sync().unwrap();
        repo.set_faults(Faults { fail_nth: Some((op, 0)), ..Faults::default() });
        wal.append(frames_of(&bytes, PAGE_SIZE)).and_then(|_| wal.sync()).unwrap_err();
        let before = content(&repo);
        assert!(wal.append(frames_of(&bytes, PAGE_SIZE)).unwrap_err().to_string().contains("open the WAL again"));
        assert!(wal.sync().unwrap_err().to_string().contains("open the WAL again"));
        assert!(content(&repo) == before);
        let mut wal = WalAppender::open(&repo, "a-wal", 2).unwrap();
        wal.append(frames_of(&bytes, PAGE_SIZE)).unwrap();
        wal.sync().unwrap();
        let repo = repo.after_power_loss(Loss::All);
        holds(&repo, &bytes.repeat(2), &[1, 2, 1, 2]);
    }
}

#[test]
fn checksums_that_follow_from_theirs_are_those_of_the_pages() {
    let at = WalStart::first(WalHeader { big_endian: true, page_size: PAGE_SIZE, sequence: 0, salts: [5, 6] });
    let theirs = WalHeader { sequence: 4, salts: [7, 8], ..at.header };
    let (mut summed, mut derived) = (Rechain::new(at), Rechain::from_checksums(at, theirs.seed()));
    for (claim, page) in frames_of(&foreign(&theirs, &[0, 0, 3, 0, 4]), PAGE_SIZE) {
        assert_eq!(derived.frame(&claim, page), summed.frame(&claim, page));
    }
}
