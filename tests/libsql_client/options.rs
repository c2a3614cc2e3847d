//! Every option of `logmirror mirror` means with a libSQL sync server what it means with a log, or is refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::sqlite::{self, dump, rows};
use crate::support::process::{Ended, arg, mirror};
use crate::{Stage, beside, frames};

/// What becomes of an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    /// It means what it means with a log.
    Meant,
    /// It is a usage error, before anything is read or sent.
    Refused,
}
use Is::{Meant, Refused};

/// Each option, what it is given, and what becomes of it in a pull and in a push.
const OPTIONS: [(&str, &str, Is, Is); 16] = [
    ("--follow", "", Meant, Meant),
    ("--trim", "", Refused, Refused),
    ("--adopt", "", Meant, Refused),
    ("--release", "", Refused, Refused),
    ("--no-hold", "", Refused, Refused),
    ("--allow-empty", "", Refused, Refused),
    ("--create", "never", Meant, Meant),
    ("--dry-run", "", Meant, Meant),
    ("--json", "", Meant, Meant),
    ("--quiet", "", Meant, Meant),
    ("--commit-bytes-max", "1MiB", Refused, Refused),
    ("--token", "secret", Meant, Meant),
    ("--token-file", "token", Meant, Meant),
    ("--cacert", "ca.pem", Meant, Meant),
    ("--batch", "64", Meant, Meant),
    ("--log-level", "warn", Meant, Meant),
];
/// Those that are no options of the mirror.
const OTHERS: [&str; 4] = ["--log-format", "--help", "--version", "--log-file"];

/// Names and contents in a directory.
fn content(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = names.map(|path| (arg(&path).to_owned(), fs::read(&path).unwrap_or_default())).collect();
    found.sort();
    found
}

#[test]
fn every_option_means_with_a_libsql_server_what_it_means_with_a_log_or_is_refused() {
    let help = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(["mirror", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let words = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let long =
            line.strip_prefix("-q, ").or(line.strip_prefix("-h, ")).or(line.strip_prefix("-V, ")).unwrap_or(line);
        long.starts_with("--").then(|| long.split([' ', '=']).next().unwrap())
    });
    for option in words {
        let known = OPTIONS.iter().any(|(name, ..)| *name == option) || OTHERS.contains(&option);
        assert!(known, "{option}: say here what it means with a libSQL server");
    }
    for (option, value, of_pull, of_push) in OPTIONS {
        for (is, is_pull) in [(of_pull, true), (of_push, false)] {
            if is == Meant {
                continue;
            }
            let stage = Stage::new();
            let (db, url, new) = (stage.database(&rows(3)), stage.fake.url(), stage.path("new.db"));
            let (source, sink) = if is_pull { (&*url, arg(&new)) } else { (arg(&db), &*url) };
            let before = content(stage.dir.path());
            let given = if value.is_empty() { option.to_owned() } else { format!("{option}={value}") };
            let ended = mirror(source, sink, &[&given]);
            assert_eq!(ended.code, Some(2), "{given}, pull: {is_pull}: {ended:?}");
            assert!(ended.error().contains(option), "{given}: {ended:?}");
            assert_eq!((stage.fake.seen().len(), content(stage.dir.path())), (0, before), "{given}, pull: {is_pull}");
        }
    }
}

#[test]
fn a_limit_that_the_environment_sets_for_all_commands_refuses_nothing() {
    let stage = Stage::new();
    let db = stage.database(&rows(3));
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.args(["mirror", arg(&db), &stage.fake.url()]).env("LOGMIRROR_COMMIT_BYTES_MAX", "64MiB");
    assert_eq!(command.output().unwrap().status.code(), Some(0));
}

#[test]
fn a_replica_that_is_not_there_is_not_created_where_that_is_forbidden() {
    let stage = Stage::new();
    let (db, replica) = (stage.database(&rows(3)), stage.path("replica.db"));
    let ended = mirror(arg(&db), stage.fake.url(), &["--create=never"]);
    assert_eq!(ended.code, Some(0), "a push creates nothing: {ended:?}");
    let ended = mirror(stage.fake.url(), arg(&replica), &["--create=never"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.error().contains("does not exist, and --create=never"), "{ended:?}");
    assert!(!replica.exists());
    assert_eq!(mirror(stage.fake.url(), arg(&replica), &[]).code, Some(0));
    assert_eq!(mirror(stage.fake.url(), arg(&replica), &["--create=never"]).code, Some(0));
    assert_eq!(dump(&replica), dump(&db));
}

#[test]
fn a_directory_is_neither_a_replica_nor_a_database_to_push() {
    let stage = Stage::new();
    fs::create_dir(stage.path("there")).unwrap();
    let there = arg(&stage.path("there")).to_owned();
    for place in [there.clone(), format!("{there}/"), format!("{there}-not/")] {
        let ended = mirror(stage.fake.url(), &place, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.error().contains("DST must be a file"), "{ended:?}");
    }
    let ended = mirror(&there, stage.fake.url(), &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(stage.fake.seen().is_empty());
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let stage = Stage::new();
    let (db, replica, mine) = (stage.database(&rows(10)), stage.path("replica.db"), stage.path("mine.db"));
    let url = stage.fake.url();
    let planned = |source: &str, sink: &str, flags: &[&str]| {
        let (before, held) = (content(stage.dir.path()), stage.fake.frames());
        stage.fake.seen();
        let ended = mirror(source, sink, &[&["--dry-run"], flags].concat());
        assert!(stage.fake.seen().iter().all(|seen| seen.call.starts_with("GET")), "{ended:?}");
        assert_eq!((content(stage.dir.path()), stage.fake.frames()), (before, held), "{ended:?}");
        ended
    };
    let numbers = |ended: &Ended| {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let plan = ended.last("plan");
        (plan["compares"].as_u64(), plan["from"].as_u64(), plan["to"].as_u64())
    };
    let total = u64::from(frames(&db));
    // A crash left it behind long ago.
    let draft = ".tmp.20200101_000000.00000000-0000-4000-8000-000000000000";
    fs::write(stage.path(draft), "").unwrap();
    assert_eq!(numbers(&planned(arg(&db), &url, &[])), (None, Some(1), Some(total + 1)), "a first push");
    stage.push(&db).unwrap();
    assert!(!stage.path(draft).exists());
    assert_eq!(numbers(&planned(arg(&db), &url, &[])), (Some(total), Some(total + 1), Some(total + 1)), "nothing new");
    let fresh = planned(&url, arg(&replica), &[]);
    assert_eq!(numbers(&fresh), (None, Some(1), None), "a first pull");
    assert_eq!(fresh.last("plan")["creates"], arg(&replica));
    assert_eq!(planned(&url, arg(&replica), &["--create=never"]).code, Some(2));
    stage.pull(&replica).unwrap();
    assert_eq!(numbers(&planned(&url, arg(&replica), &[])), (Some(total), Some(total + 1), None), "a pull");
    fs::remove_file(beside(&replica, "-info")).unwrap();
    assert_eq!(numbers(&planned(&url, arg(&replica), &[])), (Some(total), Some(total + 1), None), "without metadata");
    sqlite::run(&mine, &rows(30)).unwrap();
    let refused = planned(&url, arg(&mine), &[]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.error().contains("may be an application's"), "{refused:?}");
    assert_eq!(numbers(&planned(&url, arg(&mine), &["--adopt"])), (None, Some(1), None));
    // Checkpointed: what is pushed is found by comparing pages.
    sqlite::run(&db, "INSERT INTO t VALUES('more', 1)").unwrap();
    assert_eq!(numbers(&planned(arg(&db), &url, &[])), (None, Some(total + 1), None));
}
