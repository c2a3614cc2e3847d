//! The arguments the wrong way round: nothing in the live directory may change, whatever the flags.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::offset::{BytePos, Offset};
use logmirror::repo::FsRepo;
use logmirror::segment::SegmentReader;
use logmirror::stream::survey;

use crate::support::commitlog::{Draw, seed};
use crate::support::live_writer::LiveWriter;
use crate::support::process::{Mirror, arg, mirror};
use crate::support::segments;
use crate::{directory, fingerprint, grow, is_done, is_refused, rounds, segment_name, untouched, whole_up_to};

/// Calls that write, truncate, create, rename or remove.
const CHANGES: &str = "trace=openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,rename,renameat,\
                       renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat,symlink,symlinkat,utimensat,mmap,copy_file_range,sendfile";

fn strace_is_wanted() -> bool {
    std::env::var_os("LOGMIRROR_STRACE").is_some()
}

/// Calls of a mirror that change something in `live`, as `strace` sees them.
fn changes_seen(source: &Path, live: &Path, flags: &[&str], trace: &Path) -> (Option<i32>, Vec<String>) {
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", CHANGES, "-o", arg(trace), env!("CARGO_BIN_EXE_logmirror"), "mirror"]);
    let code = command.args([arg(source), arg(live)]).args(flags).output().unwrap().status.code();
    let log = std::fs::read_to_string(trace).unwrap();
    let at = arg(live);
    let changes = log.lines().filter(|line| line.contains(at)).filter(|line| {
        // The flags of a call that was interrupted are in its first line.
        let opened = line.contains("openat(") || line.contains("<... openat resumed>");
        let read_only = opened && !["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| line.contains(flag));
        let mapped_for_reading =
            line.contains("mmap(") && !(line.contains("PROT_WRITE") && line.contains("MAP_SHARED"));
        !read_only && !mapped_for_reading
    });
    (code, changes.map(str::to_owned).collect())
}

/// The offset after the last whole commit of a directory.
/// A writer that has put whole commits into the log: it may halt for long in the middle of its first one.
fn begun(dir: &Path, draw: Draw) -> LiveWriter {
    let mut writer = LiveWriter::new(dir, draw, 256 << 10);
    for step in 0.. {
        writer.step();
        if step >= 300 && step % 100 == 0 && end_of(dir) > Offset(100) {
            break;
        }
    }
    writer
}

fn end_of(dir: &Path) -> Offset {
    survey(&FsRepo::open(dir).unwrap(), COMMIT_BYTES_MAX, None).unwrap().next
}

#[test]
fn swapped_arguments_change_no_byte_of_a_live_directory() {
    let (live, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let seed = seed();
    println!("seed {seed}");
    let mut writer = begun(live.path(), Draw(seed));
    // The end may be a half-written commit; what is before it is copied.
    mirror(arg(live.path()), arg(old.path()), &["--trim"]);
    assert!(!segments(old.path()).is_empty());
    let before = writer.did;
    // It may halt for thousands of steps in the middle of a commit.
    while end_of(live.path()) == end_of(old.path()) {
        (0..200).for_each(|_| writer.step());
    }
    let (mut round, is_seen) =
        (0, |writer: &LiveWriter| writer.did.halves > before.halves && writer.did.preallocated > before.preallocated);
    while round < rounds(30) || !is_seen(&writer) {
        // It may halt for thousands of steps here too.
        (0..if round < rounds(30) { round % 23 } else { 997 }).for_each(|_| writer.step());
        round += 1;
        for flags in [&[][..], &["--trim"], &["--adopt"]] {
            let ended = untouched(live.path(), || mirror(arg(old.path()), arg(live.path()), flags).code);
            let code = if flags.contains(&"--adopt") { 1 } else { 2 };
            assert_eq!(ended, Some(code), "round {round} {flags:?}");
        }
    }
    writer.finish();
    is_whole(live.path(), &writer);
}

/// Checks that a directory holds what its writer wrote.
fn is_whole(live: &Path, writer: &LiveWriter) {
    let repo = FsRepo::open(live).unwrap();
    for (name, wanted) in writer.wanted() {
        let start = logmirror::format::name::parse_segment(name).unwrap().1;
        let mut bytes = vec![0; wanted.len()];
        SegmentReader::open(&repo, start).unwrap().read_at(&mut bytes, BytePos(0)).unwrap();
        assert!(bytes == *wanted, "{name}");
    }
}

#[test]
fn swapped_arguments_do_no_harm_to_a_log_while_it_is_written() {
    let (live, old, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = begun(live.path(), Draw(seed()));
    let copied = mirror(arg(live.path()), arg(old.path()), &["--trim"]);
    assert_eq!(copied.code, Some(0), "{copied:?}");
    // Without a record the log is all there is to tell them apart.
    fs::remove_file(old.path().join(".logmirror")).unwrap();
    // It may halt for thousands of steps in the middle of a commit.
    while end_of(live.path()) == end_of(old.path()) {
        (0..200).for_each(|_| writer.step());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = std::thread::spawn(move || {
        // Fast first, then so that many rounds do not make a log that each of them reads for minutes.
        for step in 0.. {
            writer.step();
            std::thread::sleep(Duration::from_micros(if step < 5_000 { 200 } else { 5_000 }));
            if stopped.load(Ordering::Relaxed) {
                break;
            }
        }
        writer.finish();
        writer
    });
    for round in 0..rounds(20) {
        let flags = [&[][..], &["--trim"]][(round % 2) as usize];
        let code = if strace_is_wanted() {
            let (code, changes) = changes_seen(old.path(), live.path(), flags, &out.path().join("trace"));
            assert_eq!(changes, [""; 0], "round {round} {flags:?}");
            code
        } else {
            mirror(arg(old.path()), arg(live.path()), flags).code
        };
        assert_eq!(code, Some(1), "round {round} {flags:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let writer = writing.join().unwrap();
    is_whole(live.path(), &writer);
}

#[test]
fn a_zero_tail_and_a_torn_commit_of_a_directory_that_is_not_ours_stay() {
    let old = directory(&whole_up_to(300));
    for tail in [vec![0; 5000], whole_up_to(300)[&segment_name(222)][10..][..100].to_vec()] {
        let mut live = whole_up_to(360);
        live.get_mut(&segment_name(333)).unwrap().extend(&tail);
        let live = directory(&live);
        for flags in [&[][..], &["--trim"], &["--adopt"], &["--adopt", "--trim"]] {
            let ended = untouched(live.path(), || mirror(arg(old.path()), arg(live.path()), flags));
            assert_eq!(ended.code, Some(1), "{flags:?} {ended:?}");
        }
    }
}

#[test]
fn a_source_is_read_and_nothing_in_it_changes_not_even_its_index() {
    let mut files = whole_up_to(360);
    files.get_mut(&segment_name(333)).unwrap().extend([0; 4096]);
    let source = directory(&files);
    let copy = tempfile::tempdir().unwrap();
    let ended = untouched(source.path(), || mirror(arg(source.path()), arg(copy.path()), &[]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!fingerprint(source.path()).keys().any(|name| name.ends_with(".ofs")));
}

#[test]
fn a_mirror_into_its_own_source_is_refused_before_anything_is_created() {
    let root = tempfile::tempdir().unwrap();
    let [clog, link, inner, above] = ["clog", "link", "clog/new/mirror", "."].map(|name| root.path().join(name));
    crate::put(&clog, &whole_up_to(360));
    std::os::unix::fs::symlink(&clog, &link).unwrap();
    for (source, sink) in [(&clog, &clog), (&clog, &link), (&link, &clog), (&clog, &inner), (&clog, &above)] {
        let ended = untouched(&clog, || mirror(arg(source), arg(sink), &["--follow"]));
        is_refused(&ended, 2, "are the same directory, or one is inside the other");
    }
    assert!(!clog.join("new").exists());
}

#[test]
fn a_source_that_becomes_a_link_to_the_mirror_while_it_is_waited_for_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let [clog, copy, link] = ["clog", "copy", "link"].map(|name| root.path().join(name));
    crate::put(&clog, &whole_up_to(240));
    crate::is_done(&mirror(arg(&clog), arg(&copy), &[]), 240);
    let follower = Mirror::start(arg(&link), arg(&copy), &["--follow"]);
    follower.wait_for("a wait", |line| line["event"] == "retrying");
    let ended = untouched(&copy, || {
        std::os::unix::fs::symlink(&copy, &link).unwrap();
        follower.ended()
    });
    is_refused(&ended, 2, "are the same directory, or one is inside the other");
}

#[test]
fn a_source_that_was_restored_from_its_mirror_is_the_original_again_once_it_has_grown() {
    let (live, copy) = (directory(&whole_up_to(240)), tempfile::tempdir().unwrap());
    let [from, to] = [arg(live.path()), arg(copy.path())];
    is_done(&mirror(from, to, &[]), 240);
    fs::remove_dir_all(live.path()).unwrap();
    is_done(&mirror(to, from, &[]), 240);
    let swapped = |end: u64| {
        for flags in [&[][..], &["--follow"], &["--dry-run"]] {
            let ended = untouched(copy.path(), || untouched(live.path(), || mirror(from, to, flags)));
            is_refused(&ended, 2, "are the arguments swapped?");
            is_refused(&ended, 2, &format!("if SRC is the original again, remove {from}/.logmirror"));
        }
        assert!(segments(copy.path()) == whole_up_to(end));
    };
    // Nothing shows yet which of the two is the original.
    swapped(240);
    grow(live.path(), &whole_up_to(270));
    untouched(live.path(), || is_done(&mirror(from, to, &[]), 270));
    let follower = Mirror::start(from, to, &["--follow"]);
    grow(live.path(), &whole_up_to(300));
    follower.wait_durable(300);
    assert_eq!(follower.terminate().code, Some(0));
    assert!(segments(copy.path()) == whole_up_to(300));
    // The copy is not mirrored into it meanwhile.
    is_refused(&untouched(live.path(), || mirror(to, from, &[])), 2, "are the arguments swapped?");
    // A mirror that does not end where it was durable may be the one that was written.
    grow(copy.path(), &whole_up_to(303));
    grow(live.path(), &whole_up_to(360));
    swapped(303);
    fs::remove_file(live.path().join(".logmirror")).unwrap();
    is_done(&mirror(from, to, &[]), 360);
}

#[test]
fn a_copy_is_not_mirrored_into_its_own_source_unless_that_is_asked_for() {
    let (live, copy) = (directory(&whole_up_to(300)), tempfile::tempdir().unwrap());
    is_done(&mirror(arg(live.path()), arg(copy.path()), &[]), 300);
    for flags in [&[][..], &["--follow"], &["--dry-run"], &["--trim"]] {
        let ended = untouched(live.path(), || mirror(arg(copy.path()), arg(live.path()), flags));
        is_refused(&ended, 2, "SRC is a copy of DST: are the arguments swapped?");
    }
    is_done(&mirror(arg(copy.path()), arg(live.path()), &["--adopt"]), 300);
    // What was lost may be brought back to where it was.
    for entry in fs::read_dir(live.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    is_done(&mirror(arg(copy.path()), arg(live.path()), &[]), 300);
    assert!(segments(live.path()) == whole_up_to(300));
}
