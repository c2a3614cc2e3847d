//! Whether verification finds what is wrong, all of it and nothing else, and names the right place.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logmirror::format::commitlog::{HEADER_LEN, Version};
use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, MemRepo, Repo};
use logmirror::stream::{Options as WriterOptions, Placed, StreamWriter};
use logmirror::verify::{Options, Progress, Report, verify, verify_each};
use support::commitlog::{Draw, commit, get, header, put, records, seed};
use support::{expectations, files, specimen};

type Files = BTreeMap<String, Vec<u8>>;

fn repo_of(files: &Files) -> Arc<MemRepo> {
    let repo = MemRepo::default();
    files.iter().for_each(|(name, bytes)| put(&repo, name, bytes));
    Arc::new(repo)
}

fn report_on(files: &Files) -> Report {
    verify(repo_of(files), &Options::default()).unwrap()
}

/// Code, segment, offset and byte position of each fault.
fn faults(report: &Report) -> Vec<(&str, u64, u64, u64)> {
    report.faults.iter().map(|fault| (&*fault.code, fault.segment.0, fault.offset.0, fault.at.0)).collect()
}

fn commits_of(files: &Files) -> Vec<Placed> {
    let mut commits = Vec::new();
    verify_each(repo_of(files), &Options::default(), |placed| commits.push(placed)).unwrap();
    commits
}

fn segment_mut(files: &mut Files, start: u64) -> &mut Vec<u8> {
    files.get_mut(&name::segment(LogFormat::Commitlog, Offset(start))).unwrap()
}

/// A segment with commits of `(first, entries, epoch)`, 40 bytes of records each.
fn segment(version: Version, commits: &[(u64, u16, u64)]) -> Vec<u8> {
    let commits = commits.iter().flat_map(|&(first, n, epoch)| commit(version, first, epoch, n, &records(first, 40)));
    [header(version), commits.collect()].concat()
}

const CRAFTED_LEN: u64 = 22 + 40 + 4;

fn log(segments: &[(u64, Vec<u8>)]) -> Files {
    segments.iter().map(|(start, bytes)| (name::segment(LogFormat::Commitlog, Offset(*start)), bytes.clone())).collect()
}

#[test]
fn every_specimen_gets_its_verdict() {
    for expect in expectations() {
        let repo = Arc::new(FsRepo::open(specimen(&expect.name)).unwrap());
        let report = verify(repo.clone(), &Options::default()).unwrap();
        let found = (report.commits, report.entries, report.next.0, report.trailing);
        assert_eq!(found, (expect.commits, expect.next, expect.next, expect.trailing), "{}", expect.name);
        assert_eq!(report.error.is_some(), expect.error.is_some(), "{}: {:?}", expect.name, report.error);
        if let (Some(found), Some(error)) = (&report.error, &expect.error) {
            assert!(found.starts_with(error.as_str()), "{}: {found}", expect.name);
        }
        assert_eq!(report.faults.is_empty(), expect.error.is_none(), "{}", expect.name);
        assert_eq!(report.is_sound(), expect.is_sound(), "{}", expect.name);
        let mut commits = 0;
        let in_order = verify_each(repo, &Options::default(), |_| commits += 1).unwrap();
        assert_eq!(in_order, report, "{}", expect.name);
        assert_eq!(commits, report.segments.iter().map(|segment| segment.commits).sum::<u64>(), "{}", expect.name);
    }
}

#[test]
fn harmless_peculiarities_are_notes() {
    for (name, segment, text) in [
        ("torn-middle", 111, "90 torn bytes from byte 8076 on"),
        ("zero-tail", 333, "4096 zero bytes from byte 1972 on"),
        ("wrong-index", 333, "offset index: 1 of 1 entries wrong"),
        ("empty-head", 360, "holds no commit yet"),
    ] {
        let report = report_on(&files(&specimen(name)));
        let [note] = &report.notes[..] else { panic!("{name}: {:?}", report.notes) };
        assert_eq!(note.segment.0, segment, "{name}");
        assert!(note.message.starts_with(text), "{name}: {}", note.message);
    }
    for name in ["whole", "no-index", "foreign-file", "sealed"] {
        assert_eq!(report_on(&files(&specimen(name))).notes, [], "{name}");
    }
}

#[test]
fn a_flipped_bit_is_found_in_its_commit_wherever_it_is() {
    let whole = files(&specimen("whole"));
    let commits = commits_of(&whole);
    assert_eq!(commits.len(), 120);
    let last = *commits.last().unwrap();
    let segments: Vec<&String> = whole.keys().filter(|name| name.ends_with(".log")).collect();
    for name in segments {
        let start = name::parse_segment(name).unwrap().1;
        let header = 0..HEADER_LEN;
        let first_commits = HEADER_LEN..HEADER_LEN + 2 * 218;
        let others = (first_commits.end..whole[name].len()).step_by(23);
        for byte in header.chain(first_commits).chain(others) {
            // All bits of the headers, one of each byte elsewhere.
            let bits = if byte < HEADER_LEN + 22 { 0..8 } else { byte % 8..byte % 8 + 1 };
            for bit in bits {
                let mut files = whole.clone();
                files.get_mut(name).unwrap()[byte] ^= 1 << bit;
                let report = report_on(&files);
                let hit = commits.iter().rfind(|hit| hit.segment == start && hit.at.0 <= byte as u64);
                let place = match hit {
                    Some(hit) => (start.0, hit.commit.first.0, hit.at.0),
                    // Version 0 is a version, but its commits are framed otherwise.
                    None if (byte, bit) == (6, 0) => (start.0, start.0, HEADER_LEN as u64),
                    None => (start.0, start.0, 0),
                };
                let context = format!("{name}, bit {bit} of byte {byte}: {report:?}");
                assert_eq!(report.next.0, place.1, "{context}");
                if hit == Some(&last) && report.faults.is_empty() {
                    assert_eq!(report.trailing, Some(last.commit.bytes), "{context}");
                    continue;
                }
                assert_eq!(faults(&report), [("corrupt", place.0, place.1, place.2)], "{context}");
                assert_eq!(report.trailing, None, "{context}");
            }
        }
    }
}

#[test]
fn faults_in_several_segments_are_all_listed_in_order() {
    let mut files = files(&specimen("whole"));
    let at = |commit: u64| HEADER_LEN as u64 + commit * 218;
    segment_mut(&mut files, 0)[at(10) as usize + 50] ^= 1;
    segment_mut(&mut files, 111)[at(3) as usize] ^= 1;
    segment_mut(&mut files, 111)[at(20) as usize + 30] ^= 0x80;
    segment_mut(&mut files, 111)[at(21) as usize + 30] ^= 0x80;
    files.remove(&name::segment(LogFormat::Commitlog, Offset(222)));
    segment_mut(&mut files, 333)[3] = b'!';
    segment_mut(&mut files, 333).truncate(1900);
    let report = report_on(&files);
    assert_eq!(
        faults(&report),
        [
            ("corrupt", 0, 30, at(10)),
            ("corrupt", 111, 120, at(3)),
            ("corrupt", 111, 171, at(20)),
            ("gap", 111, 222, at(37)),
            ("corrupt", 333, 333, 0),
        ]
    );
    assert_eq!((report.commits, report.next.0, report.bytes), (10, 30, at(10)));
    assert_eq!(report.trailing, Some(1900 - at(8)));
    let sound: Vec<u64> = report.segments.iter().map(|segment| segment.commits).collect();
    assert_eq!(sound, [36, 34, 8]);
}

#[test]
fn a_gap_a_fork_and_a_falling_epoch_inside_a_segment_are_told_apart() {
    let at = |commit: u64| HEADER_LEN as u64 + commit * CRAFTED_LEN;
    let v1 = |commits: &[(u64, u16, u64)]| log(&[(0, segment(Version::V1, commits))]);
    let cases = [
        (v1(&[(0, 2, 1), (5, 1, 1), (6, 1, 1)]), ("gap", 0, 2, at(1))),
        (v1(&[(0, 2, 1), (2, 2, 1), (0, 4, 1), (4, 1, 1)]), ("fork", 0, 4, at(2))),
        (v1(&[(0, 2, 1), (2, 1, 7), (3, 1, 6), (4, 1, 6)]), ("stale-epoch", 0, 3, at(2))),
    ];
    for (files, fault) in cases {
        let report = report_on(&files);
        assert_eq!(faults(&report), [fault], "{report:?}");
        assert_eq!((report.next.0, report.segments[0].commits), (fault.2, if fault.0 == "gap" { 3 } else { 4 }));
    }
    let repeated = report_on(&v1(&[(0, 2, 1), (2, 2, 1), (2, 2, 1), (4, 1, 1)]));
    assert!(repeated.is_sound() && repeated.next.0 == 5 && repeated.commits == 3, "{repeated:?}");
}

#[test]
fn an_epoch_that_falls_between_segments_is_found() {
    let files = log(&[
        (0, segment(Version::V1, &[(0, 5, 3)])),
        (5, segment(Version::V1, &[(5, 5, 2), (10, 1, 2)])),
        (11, segment(Version::V1, &[(11, 1, 2)])),
    ]);
    let report = report_on(&files);
    assert_eq!(faults(&report), [("stale-epoch", 5, 5, HEADER_LEN as u64)]);
    assert_eq!((report.next.0, report.epoch.0), (5, 3));
}

#[test]
fn segments_that_overlap_are_a_fault() {
    let files = log(&[(0, segment(Version::V1, &[(0, 5, 0), (5, 5, 0)])), (5, segment(Version::V1, &[(5, 5, 0)]))]);
    assert_eq!(faults(&report_on(&files)), [("gap", 0, 10, HEADER_LEN as u64 + 2 * CRAFTED_LEN)]);
}

#[test]
fn both_versions_are_read_and_told_apart() {
    let files = log(&[(0, segment(Version::V0, &[(0, 5, 0), (5, 5, 0)])), (10, segment(Version::V1, &[(10, 5, 4)]))]);
    let report = report_on(&files);
    assert!(report.is_sound(), "{report:?}");
    let versions: Vec<u32> = report.segments.iter().map(|segment| segment.version).collect();
    assert_eq!((report.commits, report.epoch.0, versions), (3, 4, vec![0, 1]));
}

#[test]
fn a_second_header_inside_a_segment_is_a_fault_and_what_follows_is_still_checked() {
    let mut bytes = segment(Version::V1, &[(0, 5, 0)]);
    bytes.extend(segment(Version::V1, &[(5, 5, 0), (10, 1, 0)]));
    let report = report_on(&log(&[(0, bytes)]));
    assert_eq!(faults(&report), [("corrupt", 0, 5, HEADER_LEN as u64 + CRAFTED_LEN)]);
    assert_eq!((report.next.0, report.segments[0].end.0), (5, 11));
}

#[test]
fn zeros_with_commits_behind_them_are_no_unused_space() {
    let whole = files(&specimen("whole"));
    let last = commits_of(&whole).into_iter().rev().nth(3).unwrap();
    let mut hole = whole.clone();
    segment_mut(&mut hole, 333)[last.at.0 as usize..][..218].fill(0);
    assert_eq!(faults(&report_on(&hole)), [("corrupt", 333, last.commit.first.0, last.at.0)]);
    let mut headless = whole;
    segment_mut(&mut headless, 333)[..HEADER_LEN].fill(0);
    assert_eq!(faults(&report_on(&headless)), [("corrupt", 333, 333, 0)]);
}

#[test]
fn records_made_to_look_like_commits_do_not_hold_up_the_verdict() {
    let mut bytes = segment(Version::V1, &[(0, 1, 0)]);
    let end = bytes.len() as u64;
    bytes.extend([&1_u64.to_le_bytes()[..], &[0; 8], &1_u16.to_le_bytes(), &(9_u32 << 20).to_le_bytes()].concat());
    // Each would take megabytes to refuse, and there are hundred thousands of them.
    let decoy = [&2_u64.to_le_bytes()[..], &[0; 8], &1_u16.to_le_bytes(), &(4_u32 << 20).to_le_bytes()].concat();
    bytes.extend(decoy.repeat((8 << 20) / decoy.len()));
    let trailing = bytes.len() as u64 - end;
    let report = report_on(&log(&[(0, bytes)]));
    assert_eq!((report.faults.len(), report.trailing), (0, Some(trailing)), "{report:?}");
}

#[test]
fn commits_that_were_durable_and_are_gone_are_lost_not_torn() {
    let mut files = files(&specimen("torn-payload"));
    let mark = |offset: u64| {
        let offset = offset.to_le_bytes();
        [&offset[..], &crc32c::crc32c(&offset).to_le_bytes()].concat()
    };
    files.insert("durable".to_owned(), mark(357));
    assert_eq!(report_on(&files).trailing, Some(168));
    files.insert("durable".to_owned(), mark(360));
    let report = report_on(&files);
    assert_eq!((report.trailing, &*report.faults[0].code, report.faults[0].offset.0), (None, "corrupt", 357));
    let end = commits_of(&files).last().map(|last| last.at.0 + last.commit.bytes).unwrap();
    segment_mut(&mut files, 333).truncate(end as usize);
    assert_eq!(faults(&report_on(&files)), [("lost", 333, 357, end)]);
}

#[test]
fn a_flipped_bit_in_a_compressed_segment_never_passes_for_other_commits() {
    let sealed = files(&specimen("sealed"));
    let sound = report_on(&sealed);
    let name = name::segment(LogFormat::Commitlog, Offset(111));
    let mut found = 0;
    for byte in (0..sealed[&name].len()).step_by(41).chain(sealed[&name].len() - 40..sealed[&name].len()) {
        let mut files = sealed.clone();
        files.get_mut(&name).unwrap()[byte] ^= 1 << (byte % 8);
        let report = report_on(&files);
        if report.faults.is_empty() {
            assert_eq!((report.next, report.commits), (sound.next, sound.commits), "byte {byte}");
        } else {
            assert!(report.faults.iter().all(|fault| fault.segment.0 == 111), "byte {byte}: {report:?}");
            found += 1;
        }
    }
    assert!(found > 150, "{found}");
}

#[test]
fn names_that_are_not_ours_are_ignored() {
    let mut files = files(&specimen("whole"));
    let sound = report_on(&files);
    for foreign in
        ["README.stdb.log", "333.stdb.log", "00000000000000000400.stdb.log.tmp", "00000000000000000400.stdb.ofs"]
    {
        files.insert(foreign.to_owned(), b"not a segment".to_vec());
    }
    assert_eq!(report_on(&files), sound);
}

#[test]
fn an_empty_directory_is_an_empty_log() {
    let report = report_on(&Files::new());
    assert_eq!(report, Report::default());
}

/// Three segments of some 40 KB with their indexes, commits of all lengths.
fn long_log(draw: &mut Draw) -> Files {
    let repo = Arc::new(MemRepo::default());
    let mut writer = StreamWriter::open(repo.clone(), WriterOptions::default()).unwrap();
    for _ in 0..3 {
        let mut bytes = header(Version::V1);
        let mut next = writer.next().0;
        while bytes.len() < 40_000 {
            let records = vec![draw.below(256) as u8; draw.below(900) as usize];
            let entries = 1 + draw.below(5) as u16;
            bytes.extend(commit(Version::V1, next, next / 100, entries, &records));
            next += u64::from(entries);
        }
        writer.append(bytes).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    repo.list().unwrap().into_iter().map(|name| (name.clone(), get(&*repo, &name))).collect()
}

#[test]
fn pieces_give_what_one_walk_gives_whatever_is_damaged() {
    let mut draw = Draw(seed());
    let sound = long_log(&mut draw);
    let names: Vec<&String> = sound.keys().collect();
    for round in 0..300 {
        let mut files = sound.clone();
        for _ in 0..draw.below(4) {
            let bytes = files.get_mut(names[draw.below(names.len() as u64) as usize]).unwrap();
            let at = draw.below(bytes.len() as u64) as usize;
            match draw.below(8) {
                0 => bytes.truncate(at),
                1 => bytes[at..].fill(0),
                2 => drop(bytes.splice(at..at, [0x5a; 7])),
                3 => bytes.copy_within(at.., at / 2),
                _ => bytes[at] ^= 1 << draw.below(8),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        let piece_bytes = NonZeroU64::new(1 + draw.below(20_000)).unwrap();
        let options = Options { piece_bytes, ..Options::default() };
        let mut in_pieces = verify(repo_of(&files), &options).unwrap();
        let mut in_order = verify_each(repo_of(&files), &options, |_| ()).unwrap();
        let index_is_whole = files.iter().all(|(name, bytes)| name.ends_with(".log") || sound[name] == *bytes);
        if !index_is_whole {
            // Where pieces begin, a damaged index may be searched and not read from its start: another note, no more.
            for report in [&mut in_pieces, &mut in_order] {
                report.notes.clear();
                report.segments.iter_mut().for_each(|segment| segment.index_entries = None);
            }
        }
        assert_eq!(in_pieces, in_order, "round {round}, pieces of {piece_bytes}");
        if files == sound {
            assert!(in_pieces.is_sound() && in_pieces.notes.is_empty(), "{in_pieces:?}");
        }
    }
}

#[test]
fn progress_ends_at_the_total() {
    let (read, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let told = |progress: Progress| {
        read.fetch_max(progress.read, Ordering::Relaxed);
        total.store(progress.total, Ordering::Relaxed);
    };
    let whole = files(&specimen("whole"));
    let options = Options { on_progress: Some(&told), ..Options::default() };
    verify(repo_of(&whole), &options).unwrap();
    let headers = 4 * HEADER_LEN as u64;
    assert_eq!(total.load(Ordering::Relaxed), 26_200);
    assert_eq!(read.load(Ordering::Relaxed), 26_200 - headers);
}
