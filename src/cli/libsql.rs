//! `logmirror mirror` between a SQLite database and a libSQL sync server.

use std::cell::RefCell;
use std::path::Path;

use logmirror::mirror::{is_database, replica_file_status};
use logmirror::sync::{Direction, Replicate, is_replica};

use super::exit::{Exit, with_causes};
use super::mirror::{Create, MirrorArgs, keep_telling};
use super::report::Report;

/// Whether a place is a libSQL sync server.
fn is_server(place: &str) -> bool {
    place.starts_with("libsql://") || (place.starts_with("libsql+") && place.contains("://"))
}

/// Whether such a server is to be mirrored.
pub(super) fn is_meant(args: &MirrorArgs) -> bool {
    is_server(&args.source) || is_server(&args.sink)
}

/// Why an option of the mirror cannot be kept with a libSQL sync server; none where each that was given can.
fn refused(args: &MirrorArgs, direction: Direction) -> Option<String> {
    let why = [
        (args.trim, "--trim is for directories with segments; a WAL's unfinished end is never sent"),
        (
            args.release,
            "--release is for logs of a logmirror service; a libSQL sync server is always written by its clients",
        ),
        (
            args.no_hold,
            "--no-hold is not for libSQL sync servers: their frames can only go on where no transaction of the database passes \
             unseen. Without --follow nothing is held once the mirror has ended; http://HOST/logs/NAME takes --no-hold",
        ),
        (
            args.allow_empty,
            "--allow-empty is for a directory of segments as SRC; a libSQL sync server goes with a database file",
        ),
        (
            args.adopt && direction == Direction::Push,
            "--adopt is for what is set aside in DST, and a libSQL sync server sets nothing aside: push into an empty log",
        ),
        (
            is_limited_here(args),
            "--commit-bytes-max is not for libSQL sync servers: they limit what they take, and a replica takes any transaction",
        ),
    ];
    why.iter().find(|(is_given, _)| *is_given).map(|(_, why)| (*why).to_owned())
}

/// Why a database is no source of a mirror without a libSQL sync server: it is a read replica that follows one.
pub(super) fn replica_as_source(path: &Path) -> Option<String> {
    // What cannot be read is the mirror's to say.
    let is_source = is_database(path) && is_replica(path).unwrap_or(false);
    is_source.then(|| {
        format!(
            "SRC {} is a read replica that follows a libSQL sync server: are the arguments swapped? To mirror it as a database of its \
             own, remove its -info file first",
            path.display()
        )
    })
}

/// Whether a largest commit is given for this mirror, and not by the environment for all commands.
fn is_limited_here(args: &MirrorArgs) -> bool {
    let is_option = |word: std::ffi::OsString| word.as_encoded_bytes().starts_with(b"--commit-bytes-max");
    args.commit_bytes_max.is_some() && std::env::args_os().any(is_option)
}

/// Why a path can be no database file; none where it can.
fn not_a_file(path: &str, direction: Direction) -> Option<String> {
    let end = if direction == Direction::Push { "SRC" } else { "DST" };
    let what = match path {
        path if Path::new(path).is_dir() => "is a directory",
        path if path.ends_with('/') => "names a directory",
        _ => return None,
    };
    let inside = Path::new(path).join("replica.db");
    Some(match direction {
        Direction::Pull => format!(
            "{end} {path} {what}, and with a libSQL sync server {end} must be a file: give {}",
            inside.display()
        ),
        Direction::Push => {
            format!(
                "{end} {path} {what}, and with a libSQL sync server {end} must be a SQLite database file: give its path"
            )
        }
    })
}

pub(super) fn run(args: &MirrorArgs, report: RefCell<Report>) -> Exit {
    let (direction, url, database) = match (is_server(&args.source), is_server(&args.sink)) {
        (false, true) => (Direction::Push, &args.sink, &args.source),
        _ => (Direction::Pull, &args.source, &args.sink),
    };
    if database.contains("://") {
        return Exit::Usage.because(format_args!("{database} must be a database file: {url} is a libSQL sync server"));
    }
    if let Some(wrong) = refused(args, direction).or_else(|| not_a_file(database, direction)) {
        return Exit::Usage.because(wrong);
    }
    if let Ok(Some(found)) = replica_file_status(Path::new(database)) {
        let of = found.source;
        return Exit::Usage
            .because(format_args!("{database} is a read replica file that follows {of}: give another path"));
    }
    let remote = match args.access.remote(url) {
        Ok(remote) => remote,
        Err(exit) => return exit,
    };
    let mut replicate = Replicate::new(direction, database.into(), remote);
    (replicate.batch, replicate.follow) = (args.batch, args.follow);
    (replicate.create, replicate.adopt) = (args.create == Create::Auto, args.adopt);
    if args.dry_run {
        return match super::block_on(logmirror::sync::plan(&replicate)) {
            Ok(Ok(plan)) => report.into_inner().planned(&plan),
            Ok(Err(error)) => report.into_inner().refuse(Exit::of(&error), with_causes(&error)),
            Err(exit) => exit,
        };
    }
    let result = super::block_on(async {
        let stop = super::asked_to_stop()?;
        tokio::select! {
            result = logmirror::sync::run(&replicate, |event| report.borrow_mut().tell(&event)) => Ok(Some(result)),
            () = stop => Ok(None),
            never = keep_telling(&report) => match never {},
        }
    });
    let ended = match result {
        Ok(Ok(ended)) => ended,
        Err(exit) | Ok(Err(exit)) => return exit,
    };
    let error = ended.as_ref().and_then(|result| result.as_ref().err());
    let failed = error.map(|error| (Exit::of(error), with_causes(error)));
    report.into_inner().end(ended.is_some(), failed)
}
