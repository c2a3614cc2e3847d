//! `--dry-run` is refused as the run is: with the same words and the same exit code.

use std::fs::{self, File};
use std::path::Path;

use crate::record::{change, pruned_to, with_record_of};
use crate::support::frames::FrameLog;
use crate::support::process::{Service, arg, mirror};
use crate::support::specimen;
use crate::{directory, is_done, put, segment_name, untouched, whole_up_to};

#[test]
fn a_dry_run_is_refused_as_the_run_is() {
    let (data, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let refused = |source: &str, sink: &Path, flags: &[&str], words: &str| {
        let dry = untouched(sink, || mirror(source, arg(sink), &[flags, &["--dry-run"]].concat()));
        let real = untouched(sink, || mirror(source, arg(sink), flags));
        assert!(real.error().contains(words), "{words:?} in {real:?}");
        assert_eq!((dry.code, dry.error()), (real.code, real.error()));
        assert!(real.code.is_some_and(|code| code > 0), "{real:?}");
    };
    let whole = specimen("whole");
    let mut torn = whole_up_to(240);
    torn.get_mut(&segment_name(222)).unwrap().extend([7; 50]);
    refused(arg(&whole), directory(&torn).path(), &[], "bytes that are no whole commit");
    let clog = root.path().join("clog");
    put(&clog, &whole_up_to(240));
    let lock = File::create(root.path().join("db.lock")).unwrap();
    lock.try_lock().unwrap();
    refused(arg(&whole), &clog, &[], "db.lock is locked");
    let forked = with_record_of(240, 330);
    change(forked.path(), 300);
    refused(arg(&whole), forked.path(), &[], "the commit at offset 300");
    let changed = with_record_of(240, 330);
    change(changed.path(), 237);
    refused(arg(&whole), changed.path(), &[], "the commit at offset 237 was durable");
    refused(arg(pruned_to(333).path()), with_record_of(240, 333).path(), &[], "its mirror record ends at offset 240");
    refused(arg(pruned_to(333).path()), directory(&whole_up_to(240)).path(), &[], "gap");
    refused(arg(directory(&whole_up_to(120)).path()), directory(&whole_up_to(240)).path(), &[], "the source ends at");
    // Other formats, and a database.
    let wal = FrameLog::new(4096, false).with_base(4).commit(&[1, 2, 3, 4], 4).files(&[]);
    refused(arg(&whole), directory(&wal).path(), &[], "holds a wal, and the source is a commitlog");
    let database = root.path().join("app.db");
    fs::write(&database, "").unwrap();
    refused(arg(&database), directory(&whole_up_to(240)).path(), &[], "holds a commitlog, and the source is a wal");
    refused(arg(directory(&wal).path()), directory(&whole_up_to(240)).path(), &[], "holds a commitlog");
    is_done(&mirror(arg(&whole), service.url("x"), &[]), 360);
    let [dry, real] =
        [&["--dry-run"][..], &[]].map(|flags| mirror(arg(directory(&wal).path()), service.url("x"), flags));
    assert!(real.code.is_some_and(|code| code > 0) && real.error().contains("commitlog"), "{real:?}");
    assert_eq!((dry.code, dry.error()), (real.code, real.error()));
}
