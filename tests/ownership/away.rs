//! A directory that is being written is unmounted or moved away: the mirror waits for it, and never begins again in its place.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::process::{Mirror, arg, mirror, until};
use crate::support::segments;
use crate::{directory, grow, is_done, is_refused, put, segment_name, whole_up_to};

const AWAY: &str = "is not there now";

fn waits(follower: &Mirror) {
    let waiting = |line: &serde_json::Value| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains(AWAY))
    };
    let start = follower.lines().len();
    // Twice, so that an attempt was made in that state.
    until(AWAY, || (follower.lines().iter().skip(start).filter(|line| waiting(line)).count() >= 2).then_some(()));
}

/// Takes `dir` away while `follower` writes it, puts `instead` there, and lets the source grow or not; then brings it back.
fn is_waited_for(dir: &Path, source: &Path, follower: Mirror, busy: bool, instead: impl Fn(&Path)) {
    let aside = dir.with_extension("aside");
    fs::rename(dir, &aside).unwrap();
    instead(dir);
    let before = dir.exists().then(|| crate::fingerprint(dir).len());
    if busy {
        grow(source, &whole_up_to(300));
    }
    waits(&follower);
    assert_eq!(dir.exists().then(|| crate::fingerprint(dir).len()), before, "nothing is made in its place");
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::rename(&aside, dir).unwrap();
    grow(source, &whole_up_to(360));
    follower.wait_durable(360);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(dir) == whole_up_to(360));
}

fn following(source: &Path, copy: &Path, flags: &[&str]) -> Mirror {
    let follower = Mirror::start(arg(source), arg(copy), &[&["--follow"], flags].concat());
    follower.wait_durable(240);
    follower
}

#[test]
fn a_directory_that_was_written_is_waited_for_and_never_begun_again_in_the_place_that_is_left() {
    let another = tempfile::tempdir().unwrap();
    let old = directory(&whole_up_to(111));
    assert_eq!(mirror(arg(old.path()), arg(another.path()), &[]).code, Some(0));
    let copy_of_another = |dir: &Path| {
        fs::create_dir(dir).unwrap();
        for entry in fs::read_dir(another.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    };
    let instead: [&dyn Fn(&Path); 4] =
        [&|_| {}, &|dir| fs::create_dir(dir).unwrap(), &|dir| put(dir, &whole_up_to(111)), &copy_of_another];
    for (way, instead) in instead.into_iter().enumerate() {
        // Also while the source is idle, when nothing would be written.
        let busy = way % 2 == 0;
        let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
        let copy = root.path().join("clog");
        let follower = following(source.path(), &copy, &[]);
        is_waited_for(&copy, source.path(), follower, busy, instead);
    }
}

#[test]
fn a_sink_that_must_exist_is_waited_for_once_it_was_found() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let copy = root.path().join("clog");
    is_refused(&mirror(arg(source.path()), arg(&copy), &["--create=never", "--follow"]), 2, "does not exist");
    fs::create_dir(&copy).unwrap();
    let follower = following(source.path(), &copy, &["--create=never"]);
    is_waited_for(&copy, source.path(), follower, true, |_| {});
}

#[test]
fn a_directory_that_was_brought_back_from_a_copy_goes_on_if_it_holds_the_same() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let copy = root.path().join("clog");
    let follower = following(source.path(), &copy, &[]);
    let aside = root.path().join("aside");
    fs::rename(&copy, &aside).unwrap();
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let moved = segments(&aside);
    grow(source.path(), &whole_up_to(360));
    follower.wait_durable(360);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(&copy) == whole_up_to(360));
    assert!(segments(&aside) == moved && moved.contains_key(&segment_name(222)), "what was moved away is not written");
}

#[test]
fn a_directory_that_was_compared_and_never_opened_is_waited_for_too() {
    let instead: [fn(&Path); 2] = [|_| {}, |replica| fs::create_dir_all(replica.join("clog")).unwrap()];
    for with_record in [true, false] {
        for instead in instead {
            let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
            let [replica, aside] = ["replica", "aside"].map(|name| root.path().join(name));
            let (clog, lock) = (replica.join("clog"), replica.join("db.lock"));
            match with_record {
                true => is_done(&mirror(arg(source.path()), arg(&clog), &[]), 240),
                false => put(&clog, &whole_up_to(240)),
            }
            // It can be read, and its lock cannot be taken.
            let _ = fs::remove_file(&lock);
            mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            grow(source.path(), &whole_up_to(300));
            let follower = Mirror::start(arg(source.path()), arg(&clog), &["--follow"]);
            let is_fifo = |line: &serde_json::Value| line["error"].as_str().is_some_and(|text| text.contains("FIFO"));
            follower.wait_for("the lock cannot be taken", is_fifo);
            fs::rename(&replica, &aside).unwrap();
            instead(&replica);
            waits(&follower);
            assert!(!clog.exists() || fs::read_dir(&clog).unwrap().count() == 0, "nothing is made in its place");
            let _ = fs::remove_dir_all(&replica);
            fs::remove_file(aside.join("db.lock")).unwrap();
            fs::rename(&aside, &replica).unwrap();
            follower.wait_durable(300);
            assert_eq!(follower.terminate().code, Some(0));
            assert!(segments(&clog) == whole_up_to(300));
        }
    }
}

#[test]
fn a_record_that_is_removed_under_a_follower_is_written_again_if_the_files_are_as_they_were_left() {
    let (source, root) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let copy = root.path().join("copy");
    let follower = following(source.path(), &copy, &[]);
    let record = copy.join(".logmirror");
    let id = fs::read(&record).unwrap()[16..32].to_vec();
    for (end, damaged) in [(300, false), (330, true)] {
        match damaged {
            true => fs::write(&record, "not a record").unwrap(),
            false => fs::remove_file(&record).unwrap(),
        }
        grow(source.path(), &whole_up_to(end));
        until("a record", || fs::read(&record).ok().filter(|bytes| bytes.len() == 512));
        follower.wait_durable(end);
        assert!(fs::read(&record).unwrap()[16..32] == id);
    }
    // What is no longer as it was left is not taken for ours: the reason names the record.
    let away = source.path().with_extension("away");
    fs::rename(source.path(), &away).unwrap();
    follower.wait_for("a wait", |line| line["error"].as_str().is_some_and(|text| text.contains(arg(source.path()))));
    fs::remove_file(&record).unwrap();
    crate::record::change(&copy, 327);
    fs::rename(&away, source.path()).unwrap();
    let names = |line: &serde_json::Value| line["error"].as_str().is_some_and(|text| text.contains(arg(&record)));
    follower.wait_for("the record is named", names);
    assert!(!record.exists());
    let ended = follower.terminate();
    assert!(ended.errors.contains("the mirror record was missing, and is written again"), "{ended:?}");
}
