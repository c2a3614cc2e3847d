//! `logmirror mirror` between a SQLite database and a libSQL sync server.

use std::cell::RefCell;
use std::path::Path;

use logmirror::mirror::replica_file_status;
use logmirror::sync::{Direction, Replicate};

use super::exit::{Exit, with_causes};
use super::mirror::{MirrorArgs, keep_telling};
use super::report::Report;

/// Whether a place is a libSQL sync server.
fn is_server(place: &str) -> bool {
    place.starts_with("libsql://") || (place.starts_with("libsql+") && place.contains("://"))
}

/// Whether such a server is to be mirrored.
pub(super) fn is_meant(args: &MirrorArgs) -> bool {
    is_server(&args.source) || is_server(&args.sink)
}

pub(super) fn run(args: &MirrorArgs, report: RefCell<Report>) -> Exit {
    let (direction, url, database) = match (is_server(&args.source), is_server(&args.sink)) {
        (false, true) => (Direction::Push, &args.sink, &args.source),
        _ => (Direction::Pull, &args.source, &args.sink),
    };
    if database.contains("://") {
        return Exit::Usage.because(format_args!("{database} must be a database file: {url} is a libSQL sync server"));
    }
    if args.release {
        return Exit::Usage.because(
            "--release is for logs of a logmirror service; a libSQL sync server is always written by its clients",
        );
    }
    if let Ok(Some(found)) = replica_file_status(Path::new(database)) {
        let of = found.source;
        return Exit::Usage
            .because(format_args!("{database} is a read replica file that follows {of}: give another path"));
    }
    if args.trim {
        return Exit::Usage.because("--trim is for directories with segments; a WAL's unfinished end is never sent");
    }
    let remote = match args.access.remote(url) {
        Ok(remote) => remote,
        Err(exit) => return exit,
    };
    let mut replicate = Replicate::new(direction, database.into(), remote);
    (replicate.batch, replicate.follow) = (args.batch, args.follow);
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
