//! What a crash or a full disk leaves of our own writes: the same command goes on by itself.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use logmirror::repo::FsRepo;
use logmirror::stream::{OnTrailing, Options, StreamWriter};

use crate::support::commitlog::{Draw, seed};
use crate::support::frames::FrameLog;
use crate::support::live_writer::LiveWriter;
use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::{segments, specimen};
use crate::{directory, is_done, rounds, run, segment_name, whole_up_to};

#[test]
fn our_own_torn_tail_is_cut_and_reported_with_its_size() {
    let whole = whole_up_to(360);
    for (durable, segment) in [(240, 222), (300, 222), (345, 333)] {
        let from = (10 + (durable - segment) / 3 * 218) as usize;
        let next = &whole[&segment_name(segment)][from..][..218];
        for torn in [&next[..1], &next[..25], &next[..217], &[0; 217], &[0xFF; 3000]] {
            let (source, copy) = (directory(&whole_up_to(durable)), tempfile::tempdir().unwrap());
            is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), durable);
            let path = copy.path().join(segment_name(segment));
            fs::write(&path, [&fs::read(&path).unwrap(), torn].concat()).unwrap();
            let ended = mirror(arg(&specimen("whole")), arg(copy.path()), &[]);
            is_done(&ended, 360);
            let cut = ended.last("cut");
            assert_eq!((cut["bytes"].as_u64(), cut["at"].as_u64()), (Some(torn.len() as u64), Some(from as u64)));
            assert!(cut["aside"].is_null(), "{cut}");
            assert!(segments(copy.path()) == whole_up_to(360), "{durable}");
        }
    }
}

#[test]
fn whole_commits_behind_a_hole_are_set_aside_when_they_are_cut() {
    let (source, copy) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), 240);
    // As a power failure may leave it, or another writer.
    let path = copy.path().join(segment_name(222));
    let mut tail = whole_up_to(360)[&segment_name(222)][10 + 6 * 218..].to_vec();
    tail[30] ^= 1;
    fs::write(&path, [fs::read(&path).unwrap(), tail.clone()].concat()).unwrap();
    let (_, said, _) = run("status", copy.path());
    assert!(said.contains("with whole commits after a damaged one: `logmirror mirror` cuts them off"), "{said}");
    let (_, said, _) = run("verify", copy.path());
    assert!(said.contains("hold whole commits after a damaged one: `logmirror mirror` cuts them off"), "{said}");
    let ended = mirror(arg(&specimen("whole")), arg(copy.path()), &[]);
    is_done(&ended, 360);
    assert_eq!(ended.last("cut")["whole_commits"], true);
    let aside = ended.last("cut")["aside"].as_str().unwrap().to_owned();
    assert!(fs::read(copy.path().join(aside)).unwrap() == tail);
    assert!(segments(copy.path()) == whole_up_to(360));
}

#[test]
fn a_first_wal_segment_that_was_cut_in_its_header_is_begun_again() {
    let log = FrameLog::new(4096, false).with_base(4).commit(&[1, 2, 3, 4], 4).commit(&[2, 3], 4);
    let (source, end) = (directory(&log.files(&[])), log.frames.len() as u64 + 1);
    let segment = name::segment(LogFormat::Wal, Offset(1));
    let header = log.files(&[])[&segment][..10].to_vec();
    // As a mirror.
    let (empty, copy) = (directory(&log.files(&[])), tempfile::tempdir().unwrap());
    fs::write(empty.path().join(&segment), []).unwrap();
    let base_only = mirror(arg(empty.path()), arg(copy.path()), &[]);
    assert_eq!(base_only.code, Some(0), "{base_only:?}");
    fs::write(copy.path().join(&segment), &header).unwrap();
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), end);
    assert!(fs::read(copy.path().join(&segment)).unwrap() == log.files(&[])[&segment]);
    // As it was when nothing but the record was stored.
    let copy = tempfile::tempdir().unwrap();
    assert_eq!(mirror(arg(empty.path()), arg(copy.path()), &[]).code, Some(0));
    fs::remove_file(copy.path().join("base.db")).unwrap();
    is_done(&mirror(arg(source.path()), arg(copy.path()), &[]), end);
    assert!(fs::read(copy.path().join("base.db")).unwrap() == log.base);
    // As a log of the library, or of a service.
    let dir = directory(&crate::Segments::from([(segment.clone(), header)]));
    let options = Options { on_trailing: OnTrailing::Trim, format: LogFormat::Wal, ..Options::default() };
    let mut writer = StreamWriter::open(Arc::new(FsRepo::open(dir.path()).unwrap()), options).unwrap();
    writer.append(log.stream(&[])).unwrap();
    assert_eq!(writer.finish().unwrap(), Offset(end));
    assert!(fs::read(dir.path().join(&segment)).unwrap() == log.files(&[])[&segment]);
}

/// A source with some megabytes in it, and what a mirror of it must hold.
fn large_source(dir: &Path) -> crate::Segments {
    let mut writer = LiveWriter::new(dir, Draw(seed()), 1 << 20);
    while writer.did.bytes < 24 << 20 {
        writer.step();
    }
    writer.finish();
    writer.wanted().clone()
}

fn bytes_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    files
        .filter(|file| file.path().extension().is_some_and(|it| it == "log"))
        .map(|file| file.metadata().map_or(0, |m| m.len()))
        .sum()
}

#[test]
fn after_kill_9_the_same_command_goes_on() {
    let (source, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wanted = large_source(source.path());
    let (total, mut draw) = (wanted.values().map(|it| it.len() as u64).sum::<u64>(), Draw(seed()));
    let mut torn = 0;
    for round in 0..rounds(6) {
        let copy = root.path().join(round.to_string());
        while !copy.exists() || bytes_in(&copy) < total * 9 / 10 {
            let more = bytes_in(&copy) + 1 + draw.below(total / 3);
            let follower = Mirror::start(arg(source.path()), arg(&copy), &["--follow"]);
            until("some bytes", || (bytes_in(&copy) >= more.min(total * 9 / 10)).then_some(()));
            let ended = follower.kill();
            torn += u64::from(ended.lines.iter().any(|line| line["event"] == "cut"));
            assert!(!ended.errors.contains("error"), "{ended:?}");
        }
        let ended = mirror(arg(source.path()), arg(&copy), &[]);
        assert_eq!(ended.code, Some(0), "round {round}: {ended:?}");
        assert!(segments(&copy) == wanted, "round {round}");
        fs::remove_dir_all(&copy).unwrap();
    }
    println!("{torn} torn tails were cut");
}

/// Runs a mirror that may make no file longer than `kib`, or half of that, as the shell counts: a full disk, as far as it can tell.
fn limited(source: &Path, copy: &Path, kib: u64) -> (bool, String) {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_logmirror"), "mirror", arg(source), arg(copy)]);
    let out = command.stdin(Stdio::null()).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn is_whole(dir: &Path) -> bool {
    let out = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(["verify", arg(dir)]).output().unwrap();
    out.status.success() && String::from_utf8_lossy(&out.stdout).contains("verdict   whole")
}

#[test]
fn a_write_that_fails_in_the_middle_leaves_no_half_commit_and_the_same_command_goes_on() {
    let (source, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wanted = large_source(source.path());
    for round in 0..rounds(8) {
        let copy = root.path().join(round.to_string());
        let kib = 200 + round * 97 % 800;
        let (done, said) = limited(source.path(), &copy, kib);
        assert!(!done && said.contains("File too large"), "{said}");
        assert!(is_whole(&copy), "after a write that failed at {kib} KiB");
        let ended = mirror(arg(source.path()), arg(&copy), &[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(segments(&copy) == wanted);
        fs::remove_dir_all(&copy).unwrap();
    }
}
