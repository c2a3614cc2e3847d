//! Commits that are larger than what is held of one in memory: through every path, whole or not at all, within the memory budget.
//!
//! `LOGMIRROR_TEST_LARGE_COMMIT_BYTES` makes the large commits of [`paths`] as large as it says.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod database;
mod paths;
mod senders;
mod writer;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use logmirror::format::wal::{FRAME_HEADER_LEN, WalHeader};
use logmirror::offset::Offset;
use logmirror::segment::frames::segment_name;

/// The processes of `Sqlite`, and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// How large a large commit is: more than twice of what is held of one.
fn large_bytes() -> u64 {
    let given = std::env::var("LOGMIRROR_TEST_LARGE_COMMIT_BYTES").ok().map(|text| text.parse().unwrap());
    given.unwrap_or(20 << 20)
}

/// The most memory that a process has had, without what files back: that is the program itself, which is large in a debug build.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kilobytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    (kilobytes("VmHWM:") - kilobytes("RssFile:")) * 1024
}

/// Whether two files hold the same bytes.
#[track_caller]
fn assert_same(found: &Path, wanted: &Path) {
    let (mut found_file, mut wanted_file) = (File::open(found).unwrap(), File::open(wanted).unwrap());
    let (found_len, wanted_len) = (found_file.metadata().unwrap().len(), wanted_file.metadata().unwrap().len());
    assert_eq!(found_len, wanted_len, "bytes of {} and {}", found.display(), wanted.display());
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < wanted_len {
        let count = ours.len().min((wanted_len - at) as usize);
        found_file.read_exact(&mut ours[..count]).unwrap();
        wanted_file.read_exact(&mut theirs[..count]).unwrap();
        assert!(ours[..count] == theirs[..count], "{} differs from {}", found.display(), wanted.display());
        at += count as u64;
    }
}

/// Writes a commit of one entry and so many bytes of records, a piece at a time.
fn write_commit(out: &mut impl Write, first: u64, records: u64) {
    let mut head = first.to_le_bytes().to_vec();
    head.extend(0_u64.to_le_bytes());
    head.extend(1_u16.to_le_bytes());
    head.extend(u32::try_from(records).unwrap().to_le_bytes());
    out.write_all(&head).unwrap();
    let mut checksum = crc32c::crc32c(&head);
    let piece: Vec<u8> = (0..1_u64 << 16).map(|at| 0x80 | ((at * 7) ^ first) as u8).collect();
    let mut left = records;
    while left > 0 {
        let bytes = &piece[..piece.len().min(left as usize)];
        out.write_all(bytes).unwrap();
        checksum = crc32c::crc32c_append(checksum, bytes);
        left -= bytes.len() as u64;
    }
    out.write_all(&checksum.to_le_bytes()).unwrap();
}

/// Writes a WAL of transactions of so many frames each to a directory, a frame at a time; returns the offset after its end. The
/// first transaction has at least two frames.
fn write_wal(dir: &Path, transactions: &[u32]) -> Offset {
    let header = WalHeader { big_endian: false, page_size: 4096, sequence: 0, salts: [5, 77] };
    let mut out = std::io::BufWriter::new(File::create(dir.join(segment_name(Offset(1)))).unwrap());
    out.write_all(&header.encode()).unwrap();
    let (mut chain, mut next) = (header.seed(), Offset(1));
    let pages = transactions.iter().copied().max().unwrap();
    for (number, frames) in transactions.iter().enumerate() {
        for frame in 1..=*frames {
            let content = support::frames::content(4096, frame, number);
            let (head, after): ([u8; FRAME_HEADER_LEN], _) =
                header.frame(chain, frame, if frame == *frames { pages } else { 0 }, &content);
            out.write_all(&head).unwrap();
            out.write_all(&content).unwrap();
            (chain, next) = (after, Offset(next.0 + 1));
        }
    }
    out.flush().unwrap();
    next
}
