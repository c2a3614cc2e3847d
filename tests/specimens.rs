//! Every specimen gets the verdict that `EXPECT.json` gives it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, MemRepo};
use logmirror::stream::{
    Batch, OnTrailing, OpenError, Options, Read, StreamReader, StreamWriter, SurveyError, Tail, survey,
};
use support::{Expect, expectations, specimen};

fn read_all(expect: &Expect) -> (u64, StreamReader, Result<Tail, String>) {
    let repo = Arc::new(FsRepo::open(specimen(&expect.name)).unwrap());
    let mut reader = StreamReader::open(repo, Offset(0), COMMIT_BYTES_MAX).unwrap();
    let mut commits = 0;
    loop {
        match reader.read() {
            Ok(Read::Batch(batch)) => commits += batch.runs().map(|run| run.commits).sum::<u64>(),
            Ok(Read::End(tail)) => return (commits, reader, Ok(tail)),
            Err(error) => return (commits, reader, Err(error.to_string())),
        }
    }
}

#[test]
fn reading_stops_exactly_where_expected() {
    for expect in expectations() {
        let (commits, reader, end) = read_all(&expect);
        assert_eq!((commits, reader.next().0), (expect.commits, expect.next), "{}", expect.name);
        match (&expect.error, end) {
            (Some(error), Err(found)) => assert!(found.starts_with(error.as_str()), "{}: {found}", expect.name),
            (None, Ok(Tail::Torn { bytes })) => assert_eq!(Some(bytes), expect.trailing, "{}", expect.name),
            (None, Ok(_)) => assert_eq!(expect.trailing, None, "{}", expect.name),
            (error, end) => panic!("{}: expected {error:?}, found {end:?}", expect.name),
        }
    }
}

#[test]
fn surveys_find_the_same_without_reading_everything() {
    for expect in expectations() {
        let repo = FsRepo::open(specimen(&expect.name)).unwrap();
        match (&expect.error, survey(&repo, COMMIT_BYTES_MAX, None)) {
            (Some(error), Err(SurveyError::Damaged(fault))) => {
                assert!(fault.to_string().starts_with(error.as_str()), "{}: {fault}", expect.name);
            }
            (None, Ok(found)) => assert_eq!(found.next.0, expect.next, "{}", expect.name),
            (error, found) => panic!("{}: expected {error:?}, found {found:?}", expect.name),
        }
    }
}

#[test]
fn writers_refuse_damage_and_trim_only_torn_tails_on_request() {
    for expect in expectations() {
        let dir = support::copy_of(&expect.name);
        let before = support::files(dir.path());
        let open = |on_trailing| {
            let repo = Arc::new(FsRepo::open(dir.path()).unwrap());
            StreamWriter::open(repo, Options { on_trailing, ..Options::default() })
        };
        match (open(OnTrailing::Error), &expect.error, expect.trailing) {
            (Ok(writer), None, None) => assert_eq!(writer.next().0, expect.next, "{}", expect.name),
            (Err(OpenError::Torn(_)), None, Some(trailing)) => {
                assert_eq!(support::files(dir.path()), before, "refusing changed {}", expect.name);
                assert_eq!(open(OnTrailing::Trim).unwrap().next().0, expect.next);
                let (name, old) = before.iter().rfind(|(name, _)| name.ends_with(".log")).unwrap();
                let new = std::fs::read(dir.path().join(name)).unwrap();
                assert_eq!(new, old[..old.len() - trailing as usize], "{}", expect.name);
            }
            (Err(OpenError::Damaged(fault)), Some(error), None) => {
                assert!(fault.to_string().starts_with(error.as_str()), "{}: {fault}", expect.name);
                assert!(matches!(open(OnTrailing::Trim), Err(OpenError::Damaged(_))), "{}", expect.name);
                assert_eq!(support::files(dir.path()), before, "refusing changed {}", expect.name);
            }
            (found, error, trailing) => panic!("{}: {found:?}, not {error:?} {trailing:?}", expect.name),
        }
    }
}

#[test]
fn a_mirror_of_a_sound_log_is_byte_identical_up_to_each_last_commit() {
    for expect in expectations().into_iter().filter(Expect::is_sound) {
        let repo = Arc::new(MemRepo::default());
        let mut writer = StreamWriter::open(repo.clone(), Options::default()).unwrap();
        let source = Arc::new(FsRepo::open(specimen(&expect.name)).unwrap());
        let mut reader = StreamReader::open(source, Offset(0), COMMIT_BYTES_MAX).unwrap();
        while let Read::Batch(batch) = reader.read().unwrap() {
            writer.append_batch(&batch, &mut Default::default()).unwrap();
        }
        assert_eq!(writer.finish().unwrap().0, expect.next, "{}", expect.name);
        drop(writer);
        let whole = support::segments(&specimen("whole"));
        assert_eq!(support::repo_segments(&*repo), whole, "{}", expect.name);
    }
}

#[test]
fn a_stream_gives_the_same_log_however_it_is_cut_into_chunks() {
    let stream = support::stream_of("whole");
    let whole = support::segments(&specimen("whole"));
    for size in 1..=1500 {
        let repo = Arc::new(MemRepo::default());
        let mut writer = StreamWriter::open(repo.clone(), Options::default()).unwrap();
        for chunk in stream.chunks(size) {
            writer.append(chunk.to_vec()).unwrap();
        }
        writer.finish().unwrap();
        drop(writer);
        assert_eq!(support::repo_segments(&*repo), whole, "pieces of {size} bytes");
    }
}

#[test]
fn a_stream_cut_off_a_boundary_is_truncated_and_keeps_its_whole_commits() {
    let stream = support::stream_of("whole");
    let mut boundaries = 0;
    for cut in 0..=stream.len() {
        let mut batcher =
            logmirror::stream::Batcher::new(logmirror::format::Framing::default(), None, COMMIT_BYTES_MAX);
        let mut batch = Batch::default();
        batcher.push(stream[..cut].to_vec().into(), &mut batch).unwrap();
        let whole: usize = batch.slices().map(|slice| slice.len()).sum();
        let held = batcher.held() as usize;
        assert_eq!(whole + held, cut);
        assert_eq!(batcher.finish().is_ok(), held == 0, "cut at {cut}");
        boundaries += usize::from(held == 0);
    }
    assert_eq!(boundaries, 1 + 4 + 120, "the start, behind each header, behind each commit");
}

#[test]
fn the_readme_says_of_each_specimen_what_the_tests_expect() {
    let readme = std::fs::read_to_string(support::root().join("segments/commitlog/README.md")).unwrap();
    for expect in expectations() {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{}` |", expect.name))).map(cells);
        let row = row.unwrap_or_else(|| panic!("no row for {}", expect.name));
        let trailing = expect.trailing.map(|bytes| bytes.to_string()).unwrap_or_default();
        let expected =
            [expect.commits.to_string(), expect.next.to_string(), trailing, expect.error.unwrap_or_default()];
        assert_eq!(row[2..6], expected, "{}", expect.name);
    }
}
