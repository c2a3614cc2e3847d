//! Mirrors that follow a directory or a service: they are killed and come back, wait for what is not whole yet, and rest
//! while there is nothing to do.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use logmirror::format::commitlog::{Version, encode_commit};
use logmirror::format::{LogFormat, name};
use logmirror::offset::{Epoch, Offset};
use logmirror::repo::{FsRepo, Repo};

use crate::support::commitlog::{Draw, seed};
use crate::support::process::{Ended, Mirror, Service, arg, until};
use crate::support::{self, copy_of};
use crate::{AtWork, compare};

const KILLS: u64 = 6;

/// A time in which a follower that mistakes a half-written commit for damage has given up.
const LONG: Duration = Duration::from_millis(1500);

fn highest(ended: &Ended) -> u64 {
    ended.lines.iter().filter_map(|line| line["durable"].as_u64()).max().unwrap_or(0)
}

#[test]
fn mirrors_that_are_killed_go_on_where_they_were() {
    let seed = seed();
    let mut draw = Draw(seed);
    let (source, data, copy) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let writer = AtWork::start(source.path(), seed);
    let service = Service::start(data.path());
    let (url, client) = (service.url("x"), service.client("x"));
    let push = || Mirror::start(arg(source.path()), &url, &["--follow"]);
    // A killed writer may leave a torn end.
    let pull = || Mirror::start(&url, arg(copy.path()), &["--follow", "--trim"]);
    let mut pushing = push();
    until("the log to be there", || service.status(&client).unwrap());
    let mut pulling = pull();
    let (mut pushed, mut pulled) = (0, 0);
    for _ in 0..KILLS {
        let ahead = draw.within(1..20_000);
        let durable =
            || service.status(&client).unwrap().and_then(|status| status.durable).map_or(0, |durable| durable.0);
        let before = durable();
        until("the log to grow", || (durable() > before + ahead).then_some(()));
        let (killed_push, killed_pull) = (pushing.kill(), pulling.kill());
        assert_eq!((killed_push.code, killed_pull.code), (None, None), "{killed_push:?} {killed_pull:?}");
        (pushed, pulled) = (highest(&killed_push).max(pushed), highest(&killed_pull).max(pulled));
        (pushing, pulling) = (push(), pull());
        let from = |mirror: &Mirror| mirror.wait_for("its start", |line| line["event"] == "started")["from"].as_u64();
        assert!(from(&pushing) >= Some(pushed) && from(&pulling) >= Some(pulled));
    }
    let writer = writer.finish();
    pushing.wait_durable(writer.next());
    pulling.wait_durable(writer.next());
    assert_eq!((pushing.interrupt().code, pulling.terminate().code), (Some(0), Some(0)));
    compare(&writer, source.path(), &[&service.segments_of("x"), copy.path()]);
    println!("killed mirrors: {KILLS} kills each, {:?}", writer.did);
}

#[test]
fn two_mirrors_feed_one_log_without_harm() {
    let (source, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let writer = AtWork::start(source.path(), seed());
    let service = Service::start(data.path());
    let mirrors = [(); 2].map(|()| Mirror::start(arg(source.path()), service.url("x"), &["--follow"]));
    mirrors[0].wait_durable(20_000);
    let writer = writer.finish();
    for mirror in mirrors {
        mirror.wait_durable(writer.next());
        assert_eq!(mirror.interrupt().code, Some(0));
    }
    compare(&writer, source.path(), &[&service.segments_of("x")]);
}

#[test]
fn a_mirror_that_is_told_to_end_leaves_a_directory_without_a_torn_end() {
    let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let writer = AtWork::start(source.path(), seed());
    let mut durable = 0;
    for ends in [Mirror::interrupt as fn(Mirror) -> Ended, Mirror::terminate, Mirror::interrupt] {
        // Without --trim a torn end would be refused.
        let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        mirror.wait_durable(durable + 500);
        let ended = ends(mirror);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.last("interrupted");
        durable = highest(&ended);
    }
    let writer = writer.finish();
    let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &[]).ended();
    assert_eq!((mirror.code, mirror.last("done")["next"].as_u64()), (Some(0), Some(writer.next())), "{mirror:?}");
    compare(&writer, source.path(), &[copy.path()]);
}

/// The next commit of the specimen `whole`, and its last segment.
fn one_more(dir: &Path) -> (Vec<u8>, fs::File, u64) {
    let mut bytes = Vec::new();
    encode_commit(Version::V1, Offset(360), Epoch(9), 5, &[7; 300], &mut bytes);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.join(name::segment(LogFormat::Commitlog, Offset(333))))
        .unwrap();
    let len = file.metadata().unwrap().len();
    (bytes, file, len)
}

#[test]
fn a_commit_is_waited_for_until_it_is_whole() {
    // Into a file that grows, and into space that was reserved.
    for reserved in [0, 8192] {
        let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
        let (commit, file, end) = one_more(source.path());
        file.set_len(end + reserved).unwrap();
        let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
        mirror.wait_durable(360);
        for cut in [1, 9, 22, 150, commit.len() - 1] {
            file.write_all_at(&commit[..cut], end).unwrap();
        }
        std::thread::sleep(LONG);
        file.write_all_at(&commit[commit.len() - 1..], end + commit.len() as u64 - 1).unwrap();
        mirror.wait_durable(365);
        assert_eq!(mirror.interrupt().code, Some(0));
        let wanted = [
            fs::read(support::specimen("whole").join(name::segment(LogFormat::Commitlog, Offset(333)))).unwrap(),
            commit,
        ]
        .concat();
        assert_eq!(support::segments(copy.path())[&name::segment(LogFormat::Commitlog, Offset(333))], wanted);
    }
}

#[test]
fn changes_that_the_file_system_does_not_tell_of_are_found() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let (commit, file, end) = one_more(source.path());
    file.set_len(end + 4096).unwrap();
    let mut map =
        FsRepo::open(source.path()).unwrap().map(&name::segment(LogFormat::Commitlog, Offset(333)), 0).unwrap();
    let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    mirror.wait_durable(360);
    // A store to a map raises no event.
    map.write_at(&commit, end);
    mirror.wait_durable(365);
    assert_eq!(mirror.interrupt().code, Some(0));
}

/// Time on the processor so far.
fn busy(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap()).sum();
    // Linux shows them in hundredths of a second everywhere.
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_mirror_rests_while_nothing_changes() {
    let (source, copy) = (copy_of("whole"), tempfile::tempdir().unwrap());
    let mirror = Mirror::start(arg(source.path()), arg(copy.path()), &["--follow"]);
    mirror.wait_durable(360);
    let (before, start) = (busy(mirror.id()), Instant::now());
    std::thread::sleep(LONG);
    let busy = busy(mirror.id()) - before;
    assert!(busy < start.elapsed() / 10, "busy for {busy:?} of {:?}", start.elapsed());
}
