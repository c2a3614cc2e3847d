//! Sinks that cannot go on as they are: of another database, of another page size, or without their base. And a database that is
//! handed over while its application still has it open.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::support::process::{Ended, Mirror, Service, arg, mirror, until};
use super::support::sqlite::{Sqlite, connect, rows};
use super::{beside, files, is_done, is_refused, logmirror, restored, same, source_in, stands, status};

/// A database that nobody has open, with no WAL beside it.
fn closed(dir: &Path, name: &str, page_size: u32, statements: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let db = connect(&path);
    let pragmas = format!("PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; CREATE TABLE t (x)");
    rows(&db, &pragmas).unwrap();
    statements.iter().for_each(|sql| drop(rows(&db, sql).unwrap()));
    db.close().unwrap();
    assert!(!beside(&path, "-wal").exists());
    path
}

/// Gives a database pages of another size.
fn with_pages(path: &Path, page_size: u32, sql: &str) {
    let db = connect(path);
    let change =
        format!("PRAGMA journal_mode = DELETE; PRAGMA page_size = {page_size}; VACUUM; PRAGMA journal_mode = WAL");
    rows(&db, &change).unwrap();
    rows(&db, sql).unwrap();
    assert_eq!(rows(&db, "PRAGMA page_size").unwrap(), [[json!(page_size)]]);
    db.close().unwrap();
}

/// Checks that a directory is whole, and restores to what the database holds.
#[track_caller]
fn holds(dir: &Path, app: &Path) {
    let verified = logmirror(&["verify", arg(dir)]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.db");
    let output = logmirror(&["restore", arg(dir), arg(&out)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    same(&[&source_in(work.path(), app), &out]);
}

/// What a directory restores to, as rows of `t`.
fn restored_rows(dir: &Path) -> Vec<Vec<serde_json::Value>> {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.db");
    let output = logmirror(&["restore", arg(dir), arg(&out)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    rows(&connect(&out), "SELECT x FROM t ORDER BY rowid").unwrap()
}

#[test]
fn a_directory_whose_database_changed_its_page_size_starts_a_new_generation_and_keeps_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    for frames in [false, true] {
        let name = format!("app-{frames}.db");
        let app = closed(dir.path(), &name, 4096, &["INSERT INTO t VALUES (1), (2)"]);
        let sink = dir.path().join(format!("sink-{frames}"));
        is_done(&mirror(arg(&app), arg(&sink), &[]), 0);
        if frames {
            rows(&connect(&app), "INSERT INTO t VALUES (3)").unwrap();
            is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
        }
        holds(&sink, &app);
        let before = restored_rows(&sink);
        for (page_size, aside) in [(1024, "aside-1"), (8192, "aside-2")] {
            let kept = restored_rows(&sink);
            with_pages(&app, page_size, "INSERT INTO t VALUES ('after')");
            let again = mirror(arg(&app), arg(&sink), &[]);
            assert_eq!(again.code, Some(0), "{again:?}");
            holds(&sink, &app);
            assert!(restored_rows(&sink).contains(&vec![json!("after")]));
            assert_eq!(restored_rows(&sink.join(aside)), kept, "what was before is kept in {aside}");
            // From there on it is a mirror like any other.
            is_done(&mirror(arg(&app), arg(&sink), &[]), 0);
            rows(&connect(&app), "INSERT INTO t VALUES ('later')").unwrap();
            is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
            holds(&sink, &app);
        }
        assert_eq!(restored_rows(&sink.join("aside-1")), before);
    }
}

#[test]
fn a_follower_goes_on_in_its_directory_when_the_page_size_changes() {
    let dir = tempfile::tempdir().unwrap();
    let app = closed(dir.path(), "app.db", 4096, &["INSERT INTO t VALUES (1)"]);
    let sink = dir.path().join("sink");
    is_done(&mirror(arg(&app), arg(&sink), &[]), 0);
    // Locks that are held between two looks would keep the page size as it is.
    let follower = Mirror::start(arg(&app), arg(&sink), &["--follow", "--no-hold"]);
    follower.wait_for("it to start", |line| line["event"] == "started");
    until("the page size to change", || {
        let db = connect(&app);
        let changed = rows(&db, "PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM");
        changed.ok().filter(|_| rows(&db, "PRAGMA page_size").is_ok_and(|size| size == [[json!(1024)]]))
    });
    until("a row to be added", || rows(&connect(&app), "INSERT INTO t VALUES (2)").ok());
    until("the row to be in the mirror", || {
        let out = dir.path().join("out.db");
        let output = logmirror(&["restore", arg(&sink), arg(&out), "--force"]);
        (output.status.success() && rows(&connect(&out), "SELECT count(*) FROM t").ok()? == [[json!(2)]]).then_some(())
    });
    let ended = follower.interrupt();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    holds(&sink, &app);
}

#[test]
fn another_database_into_a_directory_is_refused_as_that_and_adoption_sets_the_old_one_aside() {
    let dir = tempfile::tempdir().unwrap();
    for in_wal in [false, true] {
        let made = |name: &str| {
            let app = closed(
                dir.path(),
                &format!("{name}-{in_wal}.db"),
                4096,
                &[&format!("INSERT INTO t VALUES ('{name}')")],
            );
            let mut sqlite = Sqlite::open(&app);
            if in_wal {
                sqlite.run(&[&format!("INSERT INTO t VALUES ('{name}')")]);
            }
            (app, sqlite)
        };
        let ((a, _a_open), (b, _b_open)) = (made("a"), made("b"));
        let sink = dir.path().join(format!("sink-{in_wal}"));
        is_done(&mirror(arg(&a), arg(&sink), &[]), u64::from(in_wal));
        let (before, note) = (restored_rows(&sink), fs::read(sink.join(".logmirror-source")).unwrap());
        for _ in 0..2 {
            let refused = mirror(arg(&b), arg(&sink), &[]);
            is_refused(&refused, 1, &["is fed from", arg(&fs::canonicalize(&a).unwrap()), "other pages", "--adopt"]);
            assert!(!refused.error().contains("checkpointed"), "{refused:?}");
        }
        assert_eq!(restored_rows(&sink), before, "nothing was changed");
        assert_eq!(fs::read(sink.join(".logmirror-source")).unwrap(), note);
        let planned = logmirror(&["mirror", arg(&b), arg(&sink), "--adopt", "--dry-run"]);
        assert!(String::from_utf8_lossy(&planned.stdout).contains("set aside"), "{planned:?}");
        assert_eq!(restored_rows(&sink), before, "nothing was changed");
        is_done(&mirror(arg(&b), arg(&sink), &["--adopt"]), u64::from(in_wal));
        holds(&sink, &b);
        assert_eq!(restored_rows(&sink.join("aside-1")), before);
        is_done(&mirror(arg(&b), arg(&sink), &[]), 0);
        is_refused(&mirror(arg(&a), arg(&sink), &[]), 1, &["is fed from", arg(&fs::canonicalize(&b).unwrap())]);
        // And back again.
        is_done(&mirror(arg(&a), arg(&sink), &["--adopt"]), u64::from(in_wal));
        holds(&sink, &a);
        assert!(sink.join("aside-2").exists());
    }
}

/// A database in WAL mode that stays open, mirrored to a directory with frames.
fn in_use() -> (TempDir, PathBuf, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let app = closed(dir.path(), "app.db", 4096, &[]);
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["INSERT INTO t VALUES ('x')"]);
    (dir, app, sqlite)
}

#[test]
fn a_directory_whose_base_is_lost_or_cut_is_no_mirror_until_adoption_starts_it_again() {
    let (dir, app, mut sqlite) = in_use();
    for (number, cut) in [false, true].into_iter().enumerate() {
        let sink = dir.path().join(format!("sink-{cut}"));
        let mirrored = mirror(arg(&app), arg(&sink), &[]);
        assert_eq!(mirrored.code, Some(0), "{mirrored:?}");
        let base = sink.join("base.db");
        let whole = fs::read(&base).unwrap();
        if cut {
            fs::write(&base, &whole[..1000]).unwrap()
        } else {
            fs::remove_file(&base).unwrap()
        }
        sqlite.run(&["INSERT INTO t VALUES ('y')"]);
        for flags in [&[][..], &["--follow"]] {
            is_refused(&mirror(arg(&app), arg(&sink), flags), 1, &["base.db", "--adopt"]);
        }
        // What is put back is as good as before.
        fs::write(&base, &whole).unwrap();
        is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
        holds(&sink, &app);
        fs::remove_file(&base).unwrap();
        let adopted = mirror(arg(&app), arg(&sink), &["--adopt"]);
        assert_eq!(adopted.code, Some(0), "{number}: {adopted:?}");
        holds(&sink, &app);
        assert!(sink.join("aside-1/00000000000000000001.wal").exists());
        sqlite.run(&["INSERT INTO t VALUES ('z')"]);
        is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
        holds(&sink, &app);
    }
}

#[test]
fn a_directory_with_a_flipped_bit_in_its_base_is_compared_with_nothing_and_adoption_starts_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let app = closed(dir.path(), "app.db", 4096, &["INSERT INTO t VALUES (1), (2)"]);
    let sink = dir.path().join("sink");
    is_done(&mirror(arg(&app), arg(&sink), &[]), 0);
    let mut base = fs::read(sink.join("base.db")).unwrap();
    base[5000] ^= 1;
    fs::write(sink.join("base.db"), &base).unwrap();
    rows(&connect(&app), "INSERT INTO t VALUES (3)").unwrap();
    for _ in 0..2 {
        is_refused(&mirror(arg(&app), arg(&sink), &[]), 1, &["base.db: block 1", "does not match", "--adopt"]);
    }
    let adopted = mirror(arg(&app), arg(&sink), &["--adopt"]);
    assert_eq!(adopted.code, Some(0), "{adopted:?}");
    holds(&sink, &app);
    assert_eq!(fs::read(sink.join("aside-1/base.db")).unwrap(), base, "what was there is kept as it was");
}

#[test]
fn a_log_of_a_service_whose_base_is_lost_is_fed_but_no_good_end_until_adoption_starts_it_again() {
    let (dir, app, mut sqlite) = in_use();
    let mut service = Service::start(&dir.path().join("data"));
    let url = service.url("app");
    is_done(&mirror(arg(&app), &url, &[]), 1);
    fs::remove_file(service.segments_of("app").join("base.db")).unwrap();
    service.kill();
    service.restart();
    for commits in [1, 0] {
        if commits > 0 {
            sqlite.run(&["INSERT INTO t VALUES ('y')"]);
        }
        let ended = mirror(arg(&app), &url, &[]);
        is_refused(&ended, 1, &["was copied, but", "base.db is missing", "--adopt"]);
        assert_eq!(ended.last("failed")["commits"], commits, "{ended:?}");
        assert!(ended.last("warning")["text"].as_str().unwrap().contains("base.db is missing"), "{ended:?}");
    }
    let follower = Mirror::start(arg(&app), &url, &["--follow"]);
    follower.wait_for("a warning", |line| {
        line["event"] == "warning" && line["text"].as_str().is_some_and(|text| text.contains("base.db is missing"))
    });
    follower.kill();
    let adopted = mirror(arg(&app), &url, &["--adopt"]);
    assert_eq!(adopted.code, Some(0), "{adopted:?}");
    assert_eq!(stands(&service, "app").0, 2);
    assert_eq!(status(&service, "app").damage, None);
    let (out, work) = (dir.path().join("out.db"), tempfile::tempdir().unwrap());
    restored(&service, "app", &out);
    same(&[&source_in(work.path(), &app), &out]);
}

#[test]
fn what_an_application_has_open_is_copied_and_not_handed_over() {
    let (dir, app, mut sqlite) = in_use();
    let service = Service::start(&dir.path().join("data"));
    let url = service.url("app");
    let refused = |ended: &Ended, pid: Option<u32>| {
        is_refused(ended, 3, &["app.db is open in ", "stop the application", "is copied"]);
        if let Some(pid) = pid {
            assert!(ended.error().contains(&format!("process {pid}")), "{ended:?}");
        }
        assert!(status(&service, "app").promoted_from.is_none());
    };
    refused(&mirror(arg(&app), &url, &["--release"]), Some(sqlite.id()));
    assert_eq!(stands(&service, "app"), (1, 1), "all of it is copied");
    sqlite.run(&["BEGIN IMMEDIATE", "INSERT INTO t VALUES ('not committed yet')"]);
    refused(&mirror(arg(&app), &url, &["--release"]), Some(sqlite.id()));
    sqlite.run(&["COMMIT"]);
    // Nor what another mirror follows, which keeps its WAL.
    let follower = Mirror::start(arg(&app), arg(&dir.path().join("sink")), &["--follow"]);
    follower.wait_for("it follows", |line| line["state"] == "following");
    sqlite.close();
    let ended = mirror(arg(&app), &url, &["--release"]);
    refused(&ended, Some(follower.id()));
    assert!(ended.error().contains("(logmirror)") && ended.error().contains("or the mirror"), "{ended:?}");
    assert_eq!(follower.terminate().code, Some(0));
    let released = mirror(arg(&app), &url, &["--release"]);
    assert_eq!(released.code, Some(0), "{released:?}");
    assert!(released.last("released")["from"].as_str().unwrap().ends_with(arg(&app)), "{released:?}");
    let (out, work) = (dir.path().join("out.db"), tempfile::tempdir().unwrap());
    restored(&service, "app", &out);
    same(&[&source_in(work.path(), &app), &out]);
}

#[test]
fn a_database_that_is_being_put_back_from_a_backup_is_waited_for() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let many = "INSERT INTO t SELECT randomblob(500) FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9))";
    let app = closed(dir.path(), "app.db", 4096, &[many, many, many]);
    let whole = fs::read(&app).unwrap();
    fs::write(&app, &whole[..whole.len() - 5000]).unwrap();
    let follower = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    follower.wait_for("it to say that the file is cut", |line| {
        line["event"] == "retrying" && line["error"].as_str().is_some_and(|error| error.contains("is cut"))
    });
    fs::write(&app, &whole).unwrap();
    until("the log to hold it", || {
        let out = dir.path().join("out.db");
        let restored = logmirror(&["restore", &service.url("app"), arg(&out), "--force"]);
        (restored.status.success() && fs::read(&out).unwrap() == whole).then_some(())
    });
    assert_eq!(follower.terminate().code, Some(0));
}

#[test]
fn a_directory_without_record_whose_base_is_not_proved_is_not_taken_over_and_one_that_is_knows_its_base() {
    let (dir, app, mut sqlite) = in_use();
    let (sink, copy) = (dir.path().join("sink"), dir.path().join("copy"));
    is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
    type Damage = fn(&Path);
    fn flip(copy: &Path) {
        let mut base = fs::read(copy.join("base.db")).unwrap();
        base[5000] ^= 1;
        fs::write(copy.join("base.db"), base).unwrap();
    }
    let mut copied = || {
        let _none = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        for (name, bytes) in files(&sink).into_iter().filter(|(name, _)| !name.starts_with('.')) {
            fs::write(copy.join(name), bytes).unwrap();
        }
        sqlite.rows("INSERT INTO t VALUES ('more')");
    };
    let damages: [(&str, Damage); 5] = [
        ("missing", |copy| fs::remove_file(copy.join("base.db")).unwrap()),
        ("neither", |copy| ["base.db", "base.sums"].iter().for_each(|it| fs::remove_file(copy.join(it)).unwrap())),
        ("cut", |copy| fs::File::options().write(true).open(copy.join("base.db")).unwrap().set_len(4096).unwrap()),
        ("without sums", |copy| fs::remove_file(copy.join("base.sums")).unwrap()),
        ("a byte", flip),
    ];
    for (what, damage) in damages {
        copied();
        damage(&copy);
        is_refused(&mirror(arg(&app), arg(&copy), &[]), 1, &["base.db", "--adopt"]);
        assert!(!copy.join(".logmirror").exists(), "{what}");
        let adopted = mirror(arg(&app), arg(&copy), &["--adopt"]);
        assert_eq!(adopted.code, Some(0), "{what}: {adopted:?}");
        holds(&copy, &app);
    }
    // A whole one is taken over, and what becomes of its base later shows.
    copied();
    let taken = mirror(arg(&app), arg(&copy), &[]);
    assert_eq!(taken.code, Some(0), "{taken:?}");
    holds(&copy, &app);
    fs::remove_file(copy.join("base.sums")).unwrap();
    is_done(&mirror(arg(&app), arg(&copy), &[]), 0);
    flip(&copy);
    is_refused(&mirror(arg(&app), arg(&copy), &[]), 1, &["base.db has the SHA-256"]);
}

#[test]
fn a_base_that_goes_away_under_a_follower_of_a_database_is_reported() {
    let (dir, app, mut sqlite) = in_use();
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let (sink, away) = (dir.path().join("sink"), dir.path().join("away"));
    let to_dir = Mirror::start(arg(&app), arg(&sink), &["--follow"]);
    let to_service = Mirror::start(arg(&app), service.url("app"), &["--follow"]);
    for follower in [&to_dir, &to_service] {
        follower.wait_for("it follows", |line| line["state"] == "following");
    }
    fs::rename(sink.join("base.db"), &away).unwrap();
    fs::remove_file(service.segments_of("app").join("base.db")).unwrap();
    let said = to_dir.wait_for("the wait", |line| line["event"] == "retrying");
    assert!(said["error"].as_str().unwrap().contains("base.db is missing"), "{said}");
    let said = to_service.wait_for("the warning", |line| line["event"] == "warning");
    assert!(said["text"].as_str().unwrap().contains("base.db is missing"), "{said}");
    sqlite.rows("INSERT INTO t VALUES ('meanwhile')");
    fs::rename(&away, sink.join("base.db")).unwrap();
    until("it goes on", || restored_rows(&sink).contains(&vec![json!("meanwhile")]).then_some(()));
    for follower in [to_dir, to_service] {
        assert_eq!(follower.terminate().code, Some(0));
    }
}

#[test]
fn the_advice_of_a_refusal_is_what_adoption_does() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(data.path());
    let app = closed(dir.path(), "app.db", 4096, &["INSERT INTO t VALUES (1)"]);
    let shop = closed(dir.path(), "shop.db", 4096, &["INSERT INTO t VALUES ('shop')"]);
    let url = service.url("app");
    is_done(&mirror(arg(&app), &url, &[]), 0);
    let ended = mirror(arg(&shop), &url, &[]);
    is_refused(&ended, 1, &["fed from", "app.db", "into another log", "starts a new generation"]);
    assert!(!ended.error().contains("does not know") && !ended.error().contains("goes on"), "{}", ended.error());
    // A directory that lost its end.
    let sink = dir.path().join("sink");
    is_done(&mirror(arg(&app), arg(&sink), &[]), 0);
    rows(&connect(&app), "INSERT INTO t VALUES (2)").unwrap();
    is_done(&mirror(arg(&app), arg(&sink), &[]), 1);
    let segment = sink.join("00000000000000000001.wal");
    let whole = fs::read(&segment).unwrap();
    fs::write(&segment, &whole[..whole.len() - 3000]).unwrap();
    let ended = mirror(arg(&app), arg(&sink), &[]);
    is_refused(&ended, 1, &["it ends at", "no whole commit", "aside-N", "from scratch"]);
    assert!(!ended.error().contains("comparing its last commit"), "{}", ended.error());
    let ended = mirror(arg(&app), arg(&sink), &["--adopt"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(sink.join("aside-1").exists());
    holds(&sink, &app);
}

#[test]
fn a_directory_of_a_database_without_frames_is_durable_up_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (app, sink) = (closed(dir.path(), "app.db", 4096, &[]), dir.path().join("sink"));
    for _ in 0..2 {
        let ended = mirror(arg(&app), arg(&sink), &[]);
        let done = ended.last("done");
        assert_eq!((&done["durable"], &done["next"], &done["lag"]), (&json!(1), &json!(1), &json!(0)), "{ended:?}");
    }
}

#[test]
fn a_directory_is_not_rolled_over_and_a_message_says_what_bounds_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = logmirror(&["checkpoint", arg(dir.path())]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(arg(dir.path())) && said.contains("service") && said.contains("policy"), "{said}");
    assert!(!said.contains("relative URL"), "{said}");
}
