//! `verify` and `inspect` as a user runs them: exit codes, JSON, tables.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use assert_cmd::Command;
use logmirror::format::commitlog::{CommitHeader, Version};
use logmirror::format::{LogFormat, name};
use logmirror::offset::Offset;
use serde_json::Value;
use support::{copy_of, expectations, files, segments, specimen};

/// Exit code, stdout and stderr.
fn logmirror(args: &[&str], path: &Path) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).arg(path).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn verify_answers_with_its_exit_code_and_json() {
    for expect in expectations() {
        let (code, json, _) = logmirror(&["verify", "--json"], &specimen(&expect.name));
        assert_eq!(code, i32::from(!expect.is_sound()), "{}", expect.name);
        let report: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(report["commits"], expect.commits, "{}", expect.name);
        assert_eq!(report["next"], expect.next, "{}", expect.name);
        assert_eq!(report["trailing"].as_u64(), expect.trailing, "{}", expect.name);
        let error = report["error"].as_str();
        assert_eq!(error.is_some(), expect.error.is_some(), "{}", expect.name);
        assert!(error.unwrap_or_default().starts_with(&expect.error.unwrap_or_default()), "{}", expect.name);
    }
}

#[test]
fn verify_names_each_fault_in_words_and_what_to_do_about_it() {
    let (_, flip, _) = logmirror(&["verify"], &specimen("bit-flip"));
    assert!(flip.contains("damaged: 1 fault"), "{flip}");
    assert!(flip.contains("checksum mismatch at offset 354 (segment 333, byte 1536); replace segment 333"), "{flip}");
    let (_, gap, _) = logmirror(&["verify"], &specimen("gap"));
    assert!(gap.contains("gap: expected offset 111, found 222 (segment 0, byte 8076); bring back"), "{gap}");
    let (_, torn, _) = logmirror(&["verify"], &specimen("torn-header"));
    assert!(torn.contains("torn: 7 bytes after offset 357") && torn.contains("--trim"), "{torn}");
    let (_, whole, _) = logmirror(&["verify"], &specimen("whole"));
    assert!(whole.contains("verdict   whole") && whole.contains("commits   120"), "{whole}");
}

#[test]
fn what_cannot_be_verified_is_not_called_whole() {
    let nowhere = specimen("whole").join("nowhere");
    assert_eq!(logmirror(&["verify"], &nowhere).0, 3);
    let above = specimen("whole");
    let (code, _, error) = logmirror(&["verify"], above.parent().unwrap());
    assert!(code == 2 && error.contains("holds no segments") && error.contains("did you mean"), "{error}");
    assert_eq!(logmirror(&["verify", "--fix"], &above).0, 2);
}

#[test]
fn verify_and_inspect_change_nothing() {
    for name in ["torn-payload", "wrong-index", "empty-head", "bit-flip"] {
        let dir = copy_of(name);
        logmirror(&["verify"], dir.path());
        logmirror(&["inspect", "--commits"], dir.path());
        assert_eq!(files(dir.path()), files(&specimen(name)), "{name}");
    }
}

#[test]
fn inspect_lists_segments_as_the_files_are() {
    for name in ["whole", "sealed", "no-index"] {
        let (code, json, _) = logmirror(&["inspect", "--json"], &specimen(name));
        assert_eq!(code, 0);
        let table: Value = serde_json::from_str(&json).unwrap();
        let lines = table["segments"].as_array().unwrap();
        let (uncompressed, found) = (segments(&specimen("whole")), files(&specimen(name)));
        assert_eq!(lines.len(), uncompressed.len());
        for (at, (line, (file, bytes))) in lines.iter().zip(&uncompressed).enumerate() {
            let start = name::parse_segment(file).unwrap().1;
            let last = at + 1 == lines.len();
            assert_eq!(line["start"], start.0);
            assert_eq!(line["end"], if last { 360 } else { lines[at + 1]["start"].as_u64().unwrap() });
            assert_eq!(line["commits"].as_u64().unwrap(), (bytes.len() as u64 - 10) / 218);
            assert_eq!(line["bytes"], bytes.len());
            assert_eq!(line["version"], bytes[6]);
            assert_eq!(line["sealed"], !last);
            assert_eq!(line["compressed"], found[file] != *bytes);
            let index = found
                .get(&name::index(LogFormat::Commitlog, start))
                .map(|index| index.chunks(16).filter(|slot| **slot != [0; 16]).count());
            assert_eq!(line["index_entries"].as_u64(), index.map(|entries| entries as u64));
        }
    }
}

#[test]
fn inspect_lists_each_commit_as_it_stands_in_its_file() {
    let (code, lines, _) = logmirror(&["inspect", "--commits", "--json"], &specimen("whole"));
    assert_eq!(code, 0);
    let segments = segments(&specimen("whole"));
    let mut next = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = |key: &str| line[key].as_u64().unwrap();
        let file = &segments[&name::segment(LogFormat::Commitlog, Offset(number("segment")))];
        let commit = &file[number("at") as usize..][..number("bytes") as usize];
        let header = CommitHeader::decode(Version::V1, commit).unwrap();
        assert_eq!(
            (header.first.0, u64::from(header.entries), header.epoch.0),
            (next, number("entries"), number("epoch"))
        );
        assert_eq!(number("offset"), next);
        let checksum = u32::from_le_bytes(*commit.last_chunk().unwrap());
        assert_eq!(line["checksum"], format!("{checksum:08x}"));
        next += number("entries");
    }
    assert_eq!(next, 360);
}

#[test]
fn inspect_shows_the_same_in_words() {
    let (_, table, _) = logmirror(&["inspect"], &specimen("sealed"));
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["start", "end", "commits", "bytes", "version", "state", "index"]);
    assert_eq!(words[2], ["111", "222", "37", "8076", "1", "sealed", "zstd", "1"]);
    assert_eq!(words[4], ["333", "360", "9", "1972", "1", "open", "0"]);
    let (code, table, faults) = logmirror(&["inspect", "--commits"], &specimen("bit-flip"));
    assert_eq!((code, table.lines().count()), (1, 1 + 119), "a line for each sound commit, behind the fault too");
    assert!(faults.contains("checksum mismatch at offset 354"), "{faults}");
}
