//! `logmirror status`: where a log stands.

use std::io::Write;

use clap::Args;
use logmirror::api::LastCommit;
use logmirror::format::LogFormat;
use logmirror::format::wal::FIRST_FRAME;
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::mirror::{Place, missing_start, recorded_end};
use logmirror::segment::base::{BaseFault, BaseReader};
use logmirror::stream::{
    SurveyError, Tail, TornContent, current_dir, known_base, recorded_generation, survey, torn_content,
};
use serde_json::{Map, Value, json};

use super::access::AccessArgs;
use super::database;
use super::exit::Exit;
use super::place::log_directory;

/// Say where a log stands: a directory with segments, the URL of a log, or a SQLite database or its WAL
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Directory, URL or database file
    place: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: &StatusArgs) -> Exit {
    if database::is_meant(&args.place) {
        return database::run(&args.place, args.json);
    }
    let found = match Place::parse(&args.place) {
        Place::Url(url) => of_url(&url, &args.access),
        Place::Dir(path) => of_dir(&path),
    };
    let (status, exit) = match found {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        writeln!(out, "{}", Value::Object(status))
    } else {
        status.iter().filter(|(_, value)| !value.is_null()).try_for_each(|(key, value)| match value {
            Value::String(text) => writeln!(out, "{key:12} {text}"),
            value => writeln!(out, "{key:12} {value}"),
        })
    };
    if written.is_err() { Exit::Io } else { exit }
}

fn of_url(url: &str, access: &AccessArgs) -> Result<(Map<String, Value>, Exit), Exit> {
    let client = access.client(url)?;
    let status = super::block_on(client.status())?.map_err(|error| Exit::of(&error).because_of(client.url(), error))?;
    let exit = if status.error.is_some() { Exit::Data } else { Exit::Done };
    match serde_json::to_value(status) {
        Ok(Value::Object(status)) => Ok((status, exit)),
        _ => Err(Exit::Io.because("the status is not an object")),
    }
}

fn of_dir(path: &std::path::Path) -> Result<(Map<String, Value>, Exit), Exit> {
    let place = path.display();
    let repo = log_directory(&place.to_string())?;
    let floor = recorded_end(path);
    let surveyed = survey(&*repo, COMMIT_BYTES_MAX, floor).and_then(|found| {
        let torn = torn_content(&*repo, &found, COMMIT_BYTES_MAX)?;
        Ok((found, torn))
    });
    let (found, torn) = match surveyed {
        Ok((found, _)) if floor.is_some_and(|floor| found.next < floor) => {
            let (floor, next) = (floor.unwrap_or_default(), found.next);
            return Err(Exit::Data.because(format_args!(
                "{place}: its mirror record says that it was durable up to offset {floor}, but it ends at {next}"
            )));
        }
        Ok(found) => found,
        Err(SurveyError::Damaged(fault)) => return Err(Exit::Data.because(fault)),
        Err(error) => return Err(Exit::Io.because_of(place, std::io::Error::from(error))),
    };
    let last = found.last.as_ref().map(LastCommit::from);
    let (tail, exit) = match found.tail {
        Tail::Clean => (Value::Null, Exit::Done),
        Tail::Zeros { bytes } => (json!(format!("{bytes} zero bytes of preallocated space")), Exit::Done),
        Tail::Torn { bytes } => {
            let text = match torn {
                TornContent::Incomplete => format!("{bytes} torn bytes"),
                TornContent::CommitsAfterDamage => format!(
                    "{bytes} bytes with whole commits after a damaged one: `logmirror mirror` cuts them off and keeps them aside"
                ),
                TornContent::OtherCommit(..) => format!(
                    "{bytes} bytes with whole commits that do not continue the log: another process wrote them, and `logmirror \
                     mirror` leaves them as they are"
                ),
            };
            (json!(text), Exit::Data)
        }
    };
    let base = current_dir(path).and_then(|dir| known_base(&dir));
    let base = base.and_then(|known| BaseReader::open_known(&*repo, &known));
    let base = match base {
        Ok(base) => base,
        Err(error) if BaseFault::of(&error).is_some() => return Err(Exit::Data.because(error)),
        Err(error) => return Err(Exit::Io.because_of(place, error)),
    };
    // Nothing but a WAL has a base.
    let format = found.format.or(base.as_ref().map(|_| LogFormat::Wal));
    let base = base.map(|base| {
        let sha256 = base.id().map(|id| id.sha256);
        json!({ "bytes": base.bytes(), "sha256": sha256, "unproven": base.is_unproven() })
    });
    let generation = recorded_generation(&*repo).map_err(|error| Exit::Io.because_of(&place, error))?;
    // Frames count from 1, also where there are none yet.
    let next = if format == Some(LogFormat::Wal) { found.next.max(FIRST_FRAME) } else { found.next };
    let missing = missing_start(path).map_err(|error| Exit::Io.because_of(path.display(), error))?;
    let exit = if missing.is_some() { Exit::Data } else { exit };
    let missing =
        missing.map(|missing| format!("offsets {} to {}: the first segments were removed", missing.start, missing.end));
    let status = json!({
        "path": place.to_string(), "format": format, "generation": generation, "epoch": found.epoch, "first": found.first,
        "next": next, "segments": found.segments.len(),
        "bytes": found.segments.iter().map(|segment| segment.bytes).sum::<u64>(), "last_commit": last, "tail": tail, "missing": missing, "base": base,
    });
    match status {
        Value::Object(status) => Ok((status, exit)),
        _ => Err(Exit::Io.because("the status is not an object")),
    }
}
