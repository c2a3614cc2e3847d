//! `logmirror mirror`: the main job.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use logmirror::client::{Client, without_secrets};
use logmirror::format::name;
use logmirror::limits;
use logmirror::mirror::{Mirror, MirrorError, Place, is_database, plan};
use logmirror::repo::FsRepo;
use logmirror::stream::segment_starts;
use serde_json::json;

use super::access::AccessArgs;
use super::exit::{Exit, printed, with_causes};
use super::place;
use super::promote;
use super::report::Report;
use super::wrong_place;

/// How often a report is asked whether a line is due.
const TICK: Duration = Duration::from_millis(250);

/// Copy, push, pull or relay a log: SRC and DST are each a directory or the URL of a log, SRC also a SQLite database, DST also a
/// SQLite file that follows a log
#[derive(Args)]
pub(crate) struct MirrorArgs {
    /// Directory with segments, URL of a log (http://HOST/logs/NAME), or SQLite database (app.db, or its WAL app.db-wal),
    /// which is only read and may be in use; or a SQLite database and a libSQL sync server (libsql+http://HOST/PATH,
    /// libsql+https:// or libsql://), one on either side
    #[arg(value_name = "SRC")]
    pub(super) source: String,
    /// Directory, SQLite file (replica.db: a name that ends in .db, .sqlite, .sqlite3 or .db3, and no slash) or URL; what is not
    /// there is created, see --create
    #[arg(value_name = "DST")]
    pub(super) sink: String,
    /// Go on as SRC grows, until stopped. Waits for what is not there or cannot be reached, read or written now; only
    /// damaged or differing data ends it
    #[arg(long)]
    pub(super) follow: bool,
    /// Accept a torn end of SRC, a directory that nobody writes; it is not changed
    #[arg(long)]
    pub(super) trim: bool,
    /// Take over a directory DST that has no mirror record and does not pass for a mirror by itself: compared with SRC all
    /// the same, and what must be cut off its end is set aside. A SQLite file DST that follows another log, or another history of
    /// it, is set aside and made again. A directory that another SQLite database feeds, or that lost its base, keeps what it held as
    /// aside-N and starts again from the database SRC, and so does a log in a new generation
    #[arg(long)]
    pub(super) adopt: bool,
    /// Hand the log DST over to its clients once all of SRC is copied: they may write it then, and no mirror does any more. Refused
    /// while another process has the database SRC open
    #[arg(long, conflicts_with_all = ["follow", "dry_run"])]
    pub(super) release: bool,
    /// Hold no lock of a SQLite database SRC between two looks: pages are compared each time, and commits between are one
    #[arg(long)]
    pub(super) no_hold: bool,
    /// Take a directory without segments for an empty log
    #[arg(long)]
    pub(super) allow_empty: bool,
    /// Whether to create DST where it does not exist
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(super) create: Create,
    /// Say what would be compared, created and sent, and change nothing
    #[arg(long, conflicts_with = "follow")]
    pub(super) dry_run: bool,
    /// Print progress as JSON lines, at least every 5 s
    #[arg(long)]
    pub(super) json: bool,
    /// Print no progress, only what is waited for and errors
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// Largest commit taken; any unless this is given
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_COMMIT_BYTES_MAX")]
    pub(super) commit_bytes_max: Option<ByteSize>,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    /// Frames in one request to a libSQL sync server
    #[arg(long, value_name = "FRAMES", default_value_t = limits::SYNC_BATCH, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SYNC_BATCH_MAX)))]
    pub(super) batch: u32,
}

/// Whether a sink is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Create {
    /// Where it does not exist.
    Auto,
    /// Never: it must exist, which keeps a typing error from making a log.
    Never,
}

pub(crate) fn run(args: MirrorArgs) -> Exit {
    let report = RefCell::new(Report::new(args.json, args.quiet, args.follow));
    if let Err(what) = check_places(&args) {
        return report.into_inner().refuse(Exit::Usage, what);
    }
    if super::libsql::is_meant(&args) {
        return super::libsql::run(&args, report);
    }
    let (source, sink) = match (args.access.place(&args.source), args.access.place(&args.sink)) {
        (Ok(source), Ok(sink)) => (source, sink),
        (Err(exit), _) | (_, Err(exit)) => return exit,
    };
    if let Some(wrong) = super::libsql::replica_as_source(Path::new(&source)) {
        return report.into_inner().refuse(Exit::Usage, wrong);
    }
    // One that follows waits until the place is what it should be.
    let is_segment = Path::new(&source).file_name().and_then(|file| name::parse_segment(file.to_str()?)).is_some();
    if let Some(wrong) = wrong_place::not_a_log(&source).filter(|_| !args.follow || is_segment) {
        return if is_segment { Exit::Usage } else { Exit::Data }.because(wrong);
    }
    if let Some(error) = place::not_permitted(Path::new(&sink)).filter(|_| !args.follow) {
        let what = format!("sink: {sink}: {error}: let this user read and write it, or run this as its owner");
        return report.into_inner().refuse(Exit::Io, what);
    }
    if let Some(wrong) = wrong_place::not_a_sink(&sink).filter(|_| !args.follow || Path::new(&sink).is_file()) {
        return Exit::Usage.because(wrong);
    }
    let released = match (args.release, Place::parse(&sink)) {
        (false, _) => None,
        (true, Place::Url(url)) => match args.access.client(&url) {
            Ok(client) => Some(client),
            Err(exit) => return exit,
        },
        (true, Place::Dir(path)) => {
            let what =
                format!("--release hands a log of a service over to its clients, and {} is a path", path.display());
            return report.into_inner().refuse(Exit::Usage, what);
        }
    };
    let mut mirror = Mirror::new(Place::parse(&source), Place::parse(&sink));
    (mirror.follow, mirror.trim, mirror.create) = (args.follow, args.trim, args.create == Create::Auto);
    (mirror.adopt, mirror.release, mirror.hold) = (args.adopt, args.release, !args.no_hold);
    mirror.commit_bytes_max = args.commit_bytes_max.map_or(limits::COMMIT_BYTES_MAX, |bytes| bytes.as_u64());
    mirror.http = match args.access.http() {
        Ok(http) => http,
        Err(exit) => return exit,
    };
    if args.dry_run {
        return match super::block_on(plan(&mirror)) {
            Ok(Ok(plan)) => report.into_inner().planned(&plan),
            Ok(Err(error)) => {
                report.into_inner().refuse(Exit::of(&error), with_causes(&error) + &advice(&error, &source, &sink))
            }
            Err(exit) => exit,
        };
    }
    let result = super::block_on(async {
        let stop = super::asked_to_stop()?;
        tokio::select! {
            result = logmirror::mirror::run(&mirror, |event| report.borrow_mut().tell(&event)) => Ok(Some(result)),
            () = stop => Ok(None),
            never = keep_telling(&report) => match never {},
        }
    });
    let ended = match result {
        Ok(Ok(ended)) => ended,
        Err(exit) | Ok(Err(exit)) => return exit,
    };
    let error = ended.as_ref().and_then(|result| result.as_ref().err());
    let failed = error.map(|error| (Exit::of(error), with_causes(error) + &advice(error, &source, &sink)));
    let is_copied = ended.is_some() && failed.is_none();
    let exit = report.into_inner().end(ended.is_some(), failed);
    match released {
        Some(client) if is_copied => release(&client, args.json),
        _ => exit,
    }
}

/// Hands a log over that holds all of its source.
fn release(client: &Client, json: bool) -> Exit {
    let status = match super::block_on(client.promote()) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            return Exit::of(&error).because_of(client.url(), format_args!("copied, but not handed over: {error}"));
        }
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout();
    let written = match json {
        true => {
            writeln!(out, "{}", json!({ "event": "released", "durable": status.durable, "from": status.promoted_from }))
        }
        false => writeln!(out, "{}", promote::in_words(client.url().as_str(), &status)),
    };
    printed(written.map(|()| Exit::Done))
}

/// What to do, as the end of a message: about histories that have parted, or a place that was not meant; empty for any other error.
fn advice(error: &MirrorError, source: &str, sink: &str) -> String {
    let (source, sink) = (without_secrets(source), without_secrets(sink));
    match error {
        MirrorError::Fork { .. } | MirrorError::Reset { .. } | MirrorError::LaterGeneration { .. } => format!(
            "; SRC is {source}, DST is {sink}; nothing more was written: keep both, since each may hold commits that the other lacks; \
             `logmirror status` of each shows where it ends; mirror SRC into a new directory or log to have its history too"
        ),
        MirrorError::Gap { .. } => format!(
            "; SRC is {source}, DST is {sink}; nothing more was written: bring the commits between back from another copy, or mirror \
             SRC into a new directory or log, and keep DST for what it holds"
        ),
        MirrorError::NoLog { place, .. } => place.to_str().map(place::sink_hint).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Refuses what cannot have been meant, before anything is opened.
fn check_places(args: &MirrorArgs) -> Result<(), String> {
    for place in [&args.source, &args.sink] {
        if let Some(url) = place::url_meant(place) {
            return Err(format!(
                "{place} is no path that exists, and looks like a host: did you mean {url}? (./{place} is a path)"
            ));
        }
        if place::is_remote_path(place) {
            return Err(format!(
                "{place} is no path that exists, and looks like a place on another host: supported are a directory, a SQLite \
                 database, http(s)://HOST/logs/NAME of a running `logmirror serve`, and libsql+http(s)://HOST/PATH (./{place} is \
                 a path)"
            ));
        }
    }
    let path = Path::new(&args.source);
    if args.source.contains("://") {
        return Ok(());
    }
    // It is what the log notes as its source.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if place::is_url(&args.sink) && real.to_string_lossy().chars().any(char::is_control) {
        return Err(format!(
            "SRC {real:?}: a path with control characters cannot be noted as what a log is fed from: rename it"
        ));
    }
    if !args.follow && place::is_absent(path) {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let near = whole.ancestors().skip(1).find(|at| at.is_dir());
        let near = near.map_or_else(String::new, |at| format!(", but {} does", at.display()));
        return Err(format!("SRC {} does not exist{near}; --follow waits for it", args.source));
    }
    if !path.is_dir() || is_database(path) || super::libsql::is_meant(args) {
        return Ok(());
    }
    // What cannot be read is the mirror's to say, or to wait for.
    let Ok(starts) = FsRepo::open(path).and_then(|repo| segment_starts(&repo)) else {
        return Ok(());
    };
    if !starts.is_empty() || place::is_based(path) {
        return Ok(());
    }
    match place::hint(&args.source) {
        hint if !hint.is_empty() => Err(place::no_segments(&args.source)),
        _ if args.follow || args.allow_empty => Ok(()),
        _ => Err(format!(
            "{}: --allow-empty takes it for an empty log, --follow waits for its first commit",
            place::no_segments(&args.source)
        )),
    }
}

/// What moved since the last line must be told also when nothing moves any more.
pub(super) async fn keep_telling(report: &RefCell<Report>) -> Infallible {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        report.borrow_mut().tick();
    }
}
