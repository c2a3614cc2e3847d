//! Only regular files are read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::run;
use crate::support::process::arg;
use crate::support::{copy_of, files, specimen};

const FIRST: &str = "00000000000000000000";

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Every command that reads a directory, each with an exit code.
fn codes(dir: &Path) -> Vec<(&'static str, Option<i32>, String)> {
    let sink = tempfile::tempdir().unwrap();
    let sink = sink.path().join("sink");
    let commands: [(&str, &[&str]); 5] = [
        ("verify", &["verify", arg(dir)]),
        ("status", &["status", arg(dir)]),
        ("inspect", &["inspect", arg(dir)]),
        ("inspect --commits", &["inspect", "--commits", arg(dir)]),
        ("mirror", &["mirror", arg(dir), arg(&sink)]),
    ];
    let ended = commands.map(|(name, args)| (name, run(args)));
    ended.into_iter().map(|(name, ended)| (name, ended.code, ended.out + &ended.errors)).collect()
}

#[test]
fn a_fifo_named_like_a_segment_is_refused_by_name_and_hangs_no_command() {
    let dir = tempfile::tempdir().unwrap();
    fifo(&dir.path().join(format!("{FIRST}.stdb.log")));
    for (command, code, said) in codes(dir.path()) {
        assert_eq!(code, Some(1), "{command}: {said}");
        assert!(said.contains(&format!("{FIRST}.stdb.log: it is a FIFO, not a regular file")), "{command}: {said}");
    }
}

#[test]
fn a_fifo_named_like_an_index_hangs_no_command() {
    let dir = copy_of("whole");
    fifo(&dir.path().join(format!("{FIRST}.stdb.ofs")));
    for (command, code, said) in codes(dir.path()) {
        assert_eq!(code, Some(0), "{command}: {said}");
    }
}

#[test]
fn a_fifo_in_a_sink_hangs_no_mirror() {
    for name in [format!("{FIRST}.stdb.log"), format!("{FIRST}.stdb.ofs"), ".logmirror".to_owned()] {
        let sink = tempfile::tempdir().unwrap();
        fifo(&sink.path().join(&name));
        // An index is only a hint, and a mirror does without.
        let ended = run(&["mirror", arg(&specimen("whole")), arg(sink.path())]);
        assert!(ended.code.is_some(), "{name}: {ended:?}");
    }
}

#[test]
fn a_device_named_like_a_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/dev/zero", dir.path().join(format!("{FIRST}.stdb.log"))).unwrap();
    for (command, code, said) in codes(dir.path()) {
        assert_eq!(code, Some(1), "{command}: {said}");
        assert!(said.contains("it is a device, not a regular file"), "{command}: {said}");
    }
}

#[test]
fn a_symbolic_link_to_nothing_is_reported_and_no_command_loops() {
    for at in [FIRST, "00000000000000000360"] {
        let dir = copy_of("whole");
        if at == FIRST {
            for name in files(dir.path()).keys() {
                fs::remove_file(dir.path().join(name)).unwrap();
            }
        }
        symlink("/nowhere/at/all", dir.path().join(format!("{at}.stdb.log"))).unwrap();
        for (command, code, said) in codes(dir.path()) {
            // A mirror may wait and say so; nothing goes on for ever, and nothing takes it for an end.
            assert!(code.is_some(), "{command}: {said}");
            if command != "mirror" {
                assert_eq!(code, Some(3), "{command}: {said}");
                assert!(
                    said.contains(&format!("{at}.stdb.log: it is a symbolic link to nothing")),
                    "{command}: {said}"
                );
            }
        }
    }
}

#[test]
fn a_last_segment_of_five_bytes_is_normal_to_verify_and_to_mirror() {
    let dir = copy_of("whole");
    let head = fs::read(dir.path().join(format!("{FIRST}.stdb.log"))).unwrap();
    fs::write(dir.path().join("00000000000000000360.stdb.log"), &head[..5]).unwrap();
    for (command, code, said) in codes(dir.path()) {
        assert_eq!(code, Some(0), "{command}: {said}");
    }
}

#[test]
fn inspect_of_a_log_with_an_unfinished_commit_exits_0_and_says_so() {
    let dir = copy_of("whole");
    let last = dir.path().join("00000000000000000333.stdb.log");
    let mut bytes = fs::read(&last).unwrap();
    let half = bytes[10..110].to_vec();
    bytes.extend(half);
    // The commit that comes next, as far as its first 100 bytes.
    let at = bytes.len() - 100;
    bytes[at..at + 8].copy_from_slice(&360_u64.to_le_bytes());
    fs::write(&last, &bytes).unwrap();
    for args in [vec!["inspect"], vec!["inspect", "--commits"], vec!["inspect", "--json"]] {
        let ended = run(&[&args[..], &[arg(dir.path())]].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.errors.contains("note: 100 bytes after offset 360 are an unfinished commit"), "{ended:?}");
    }
}

#[test]
fn a_seek_table_that_does_not_fit_its_file_is_one_error_without_the_number_that_it_claims() {
    for claimed in [1_u32, 3, 1_000, 12_345_678, u32::MAX] {
        let dir = copy_of("sealed");
        let path = dir.path().join(format!("{FIRST}.stdb.log"));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 9;
        bytes[at..at + 4].copy_from_slice(&claimed.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let ended = run(&["verify", arg(dir.path())]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let about = ended.out.lines().filter(|line| line.contains("seek table")).collect::<Vec<_>>();
        assert_eq!(about.len(), 1, "{claimed}: {ended:?}");
        assert!(about[0].contains("is damaged: it does not fit the file"), "{claimed}: {ended:?}");
        assert!(claimed < 10_000 || !ended.out.contains(&claimed.to_string()), "{ended:?}");
    }
}
