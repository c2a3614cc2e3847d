//! What a mirror directory held before a generation that is none of the same history: kept in a directory of its own, and not
//! removed like a generation that was copied on.
//!
//! ```text
//! DIR/generation-0000000002/.logmirror-aside       says `aside-1`, until all of what was before is there
//! DIR/aside-1/.logmirror base.db *.wal …           a mirror of its own, which is verified and restored like any other
//! ```
//!
//! The file is in the next generation before that becomes the current one, so whatever a crash leaves, the next writer of the
//! directory finds what is to be kept before it removes anything.

use std::io;

use super::generations::{current, is_of_the_first, parse};
use crate::repo::{FsRepo, Repo, persist_names, read_small, replace};

/// The file in the directory of a generation that names where what was before it goes.
const FILE: &str = ".logmirror-aside";
/// What such a directory is named, before its number.
const PREFIX: &str = "aside-";
/// Bytes of that file at most.
const FILE_BYTES_MAX: u64 = 64;

/// Notes in `made`, the next generation of `root` in the making, that what `root` holds is kept once `made` is the current one.
/// Returns the name of the directory for it. Blocks.
///
/// # Errors
/// As the repo says.
pub(crate) fn keep_before(root: &FsRepo, made: &dyn Repo) -> io::Result<String> {
    let names = root.list()?;
    let free = (1_u64..).map(|number| format!("{PREFIX}{number}")).find(|aside| !names.contains(aside));
    let aside = free.ok_or_else(|| io::Error::other("no name is free for what is set aside"))?;
    replace(made, FILE, aside.as_bytes())?;
    Ok(aside)
}

/// Sets aside what the current generation of `root` says is to be kept of before. To be called by the one writer of the directory,
/// before anything of before is removed. Returns the name of the directory it is in now; `None` when nothing was left to do. Blocks.
///
/// # Errors
/// As the file system says; the rest is set aside by the next call.
pub(crate) fn set_before_aside(root: &FsRepo) -> io::Result<Option<String>> {
    let Some((current, made)) = current(root)? else {
        return Ok(None);
    };
    let Some(aside) = read_small(&*made, FILE, FILE_BYTES_MAX)?.and_then(|text| name_of(&text)) else {
        return Ok(None);
    };
    // The current one may have got its name by a process that ended before that was durable.
    persist_names(root)?;
    let names = root.list()?;
    let before = names.iter().filter_map(|found| Some((parse(found)?, found))).filter(|(found, _)| *found < current);
    if let Some((_, last)) = before.max() {
        root.rename(last, &aside)?;
    } else {
        let flat: Vec<&String> = names.iter().filter(|found| is_of_the_first(found)).collect();
        if !flat.is_empty() && !names.contains(&aside) {
            root.create_dir(&aside)?;
            root.sync_dir()?;
        }
        for file in &flat {
            root.rename(file, &format!("{aside}/{file}"))?;
        }
        if names.contains(&aside) || !flat.is_empty() {
            persist_names(&FsRepo::open(root.path().join(&aside))?)?;
        }
    }
    root.sync_dir()?;
    made.remove(FILE)?;
    made.sync_dir()?;
    Ok(Some(aside))
}

/// The name that the file says, if it is one of ours.
fn name_of(text: &[u8]) -> Option<String> {
    let number = std::str::from_utf8(text).ok()?.strip_prefix(PREFIX)?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("{PREFIX}{number}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::generations::{begin_step, end_step, remove_before_current};
    use super::super::record::{MirrorRecord, RecordFile};
    use super::*;
    use crate::format::LogFormat;
    use crate::offset::Generation;

    fn record(source: &str, generation: u64) -> MirrorRecord {
        MirrorRecord::new(source, LogFormat::Wal, Generation(generation))
    }

    /// The files of a directory, with their content.
    fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()).collect();
        found.sort_by_key(fs::DirEntry::file_name);
        let read = |entry: &fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        found.iter().filter(|entry| entry.path().is_file()).map(read).collect()
    }

    /// A step into generation `next`, which is to keep what is before.
    fn step(root: &FsRepo, next: u64) -> String {
        let made = begin_step(root, Generation(next)).unwrap();
        let aside = keep_before(root, &*made).unwrap();
        fs::write(root.path().join(format!("generation-{next:010}.draft/base.db")), b"next").unwrap();
        end_step(root, record("b", next)).unwrap();
        aside
    }

    /// A directory in its first generation.
    fn first(dir: &Path) -> FsRepo {
        let root = FsRepo::create(dir).unwrap();
        RecordFile::open(&root, record("a", 1)).unwrap();
        for file in ["base.db", "base.sums", "00000000000000000001.wal", "00000000000000000001.ofs", "kept.txt"] {
            fs::write(dir.join(file), file).unwrap();
        }
        root
    }

    #[test]
    fn what_was_before_is_kept_whole_wherever_a_crash_stops_it() {
        for moved in 0..=5 {
            let dir = tempfile::tempdir().unwrap();
            let root = first(dir.path());
            let before: Vec<_> = files(dir.path()).into_iter().filter(|(name, _)| name != "kept.txt").collect();
            assert_eq!(before.len(), 5);
            let aside = step(&root, 2);
            // As a crash leaves it after so many files.
            for (name, _) in &before[..moved] {
                let _is_there = fs::create_dir(dir.path().join(&aside));
                fs::rename(dir.path().join(name), dir.path().join(&aside).join(name)).unwrap();
            }
            assert_eq!(set_before_aside(&root).unwrap(), Some(aside.clone()), "{moved}");
            assert_eq!(set_before_aside(&root).unwrap(), None, "once");
            remove_before_current(&root).unwrap();
            assert_eq!(files(&dir.path().join(&aside)), before, "{moved}");
            assert_eq!(files(dir.path()).len(), 1, "what is not ours stays");
            // And from a generation that has a directory.
            let kept = files(&dir.path().join("generation-0000000002"));
            let second = step(&root, 3);
            assert_ne!(second, aside);
            assert_eq!(set_before_aside(&root).unwrap().as_ref(), Some(&second));
            assert_eq!(files(&dir.path().join(&second)), kept);
            assert_eq!(files(&dir.path().join(&aside)), before);
        }
    }

    #[test]
    fn nothing_is_set_aside_that_no_generation_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = first(dir.path());
        assert_eq!(set_before_aside(&root).unwrap(), None);
        step(&root, 2);
        for text in ["", "../elsewhere", "aside-", "aside-1/..", "base.db"] {
            fs::write(dir.path().join("generation-0000000002").join(FILE), text).unwrap();
            assert_eq!(set_before_aside(&root).unwrap(), None, "{text:?}");
        }
    }
}
