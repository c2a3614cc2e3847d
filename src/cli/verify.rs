//! `logmirror verify`: is a log whole?

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use logmirror::client::without_secrets;
use logmirror::format::name;
use logmirror::limits::COMMIT_BYTES_MAX;
use logmirror::mirror::{DbLock, db_lock_state, is_mirror, on_opening, recorded_end, verify_url};
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, Repo};
use logmirror::stream::{TornContent, current_dir, known_base, survey, torn_content};
use logmirror::verify::{BaseReport, FoundFault, Options, Progress, Report, verify};

use super::access::AccessArgs;
use super::database;
use super::exit::{Exit, printed};
use super::place::{is_url, log_directory};

/// Between two looks at whether a log is being written.
const GROWTH_LOOK: Duration = Duration::from_millis(300);

/// Faults put into words; `--json` has them all.
const FAULTS_SHOWN: usize = 50;

/// Read every byte of a log, check every checksum and offset, and name each fault with its place
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Directory with the segments of a log, the URL of a log, or a SQLite database or its WAL
    path: String,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Exit {
    if is_url(&args.path) {
        return remote(args);
    }
    if let Some(dir) = dir_of_base(Path::new(&args.path)) {
        return run(&VerifyArgs { path: dir, ..args.clone() });
    }
    if database::is_meant(&args.path) {
        return database::run(&args.path, args.json);
    }
    loop {
        let dir = current_dir(Path::new(&args.path)).ok();
        match log_directory(&args.path) {
            Err(exit) => return exit,
            Ok(repo) => match local(repo, args) {
                Ok(report) if report.is_sound() => return printed(show(&report, args)),
                // A mirror that goes on in another directory removes what was read.
                _ if current_dir(Path::new(&args.path)).ok() != dir => {}
                Ok(report) => return printed(show(&report, args)),
                Err(error) => return Exit::Io.because(error),
            },
        }
    }
}

/// The directory of a base with checksums, which are there and not in the file.
fn dir_of_base(path: &Path) -> Option<String> {
    let is_base = path.file_name().is_some_and(|file| file == name::BASE);
    let dir = path.parent().filter(|dir| is_base && dir.join(name::BASE_SUMS).exists())?;
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    dir.to_str().map(str::to_owned)
}

fn local(repo: Arc<dyn Repo>, args: &VerifyArgs) -> io::Result<Report> {
    let bar = if args.json { ProgressBar::hidden() } else { progress_bar() };
    let told = |progress: Progress| {
        bar.set_length(progress.total.max(progress.read));
        bar.set_position(progress.read);
    };
    let result = current_dir(Path::new(&args.path))
        .and_then(|dir| known_base(&dir))
        .and_then(|base| verify(repo, &Options { on_progress: Some(&told), base, ..Options::default() }));
    bar.finish_and_clear();
    result
}

fn remote(args: &VerifyArgs) -> Exit {
    let client = match args.access.client(&args.path) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let bar = if args.json { ProgressBar::hidden() } else { progress_bar() };
    let result = super::block_on(async {
        bar.set_length(client.status().await?.bytes.unwrap_or_default());
        verify_url(&client, COMMIT_BYTES_MAX, |bytes| bar.inc(bytes)).await
    });
    bar.finish_and_clear();
    match result {
        Ok(Ok(report)) => printed(show(&report, args)),
        Ok(Err(error)) => Exit::of(&error).because_of(without_secrets(&args.path), error),
        Err(exit) => exit,
    }
}

/// On stderr, and only when that is a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn show(report: &Report, args: &VerifyArgs) -> io::Result<Exit> {
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        in_words(&mut out, report, &args.path)?;
    }
    Ok(if report.is_sound() { Exit::Done } else { Exit::Data })
}

fn in_words(out: &mut impl Write, report: &Report, args_path: &str) -> io::Result<()> {
    let path = &without_secrets(args_path);
    let first = report.first.unwrap_or(report.next);
    let verdict = match (report.faults.len(), report.trailing) {
        (0, None) => "whole".to_owned(),
        (0, Some(_)) => "torn at its end".to_owned(),
        (1, _) => "damaged: 1 fault".to_owned(),
        (count, _) => format!("damaged: {count} faults"),
    };
    writeln!(out, "log       {path}")?;
    writeln!(out, "verdict   {verdict}")?;
    writeln!(out, "offsets   {first}..{}{}", report.next, if report.faults.is_empty() { "" } else { " are sound" })?;
    writeln!(out, "commits   {}", HumanCount(report.commits))?;
    writeln!(out, "entries   {}", HumanCount(report.entries))?;
    writeln!(out, "bytes     {} ({})", HumanCount(report.bytes), HumanBytes(report.bytes))?;
    if let Some(BaseReport { bytes, sha256, unproven, .. }) = &report.base {
        let unproven = if *unproven { ", unproven" } else { "" };
        writeln!(out, "base      {} bytes, SHA-256 {sha256}{unproven}", HumanCount(*bytes))?;
    }
    writeln!(out, "segments  {}", HumanCount(report.segments.len() as u64))?;
    for fault in report.faults.iter().take(FAULTS_SHOWN) {
        writeln!(out, "{}: {}; {}", fault.code, fault.message, remedy(fault))?;
    }
    if report.faults.len() > FAULTS_SHOWN {
        writeln!(out, "and {} more: --json lists them", report.faults.len() - FAULTS_SHOWN)?;
    }
    if let Some(bytes) = report.trailing {
        let next = report.segments.last().map_or(report.next, |segment| segment.end);
        match of_mirror(args_path) {
            Some(text) => writeln!(out, "torn: {bytes} bytes after offset {next} {text}")?,
            None => {
                let advice = advice(args_path, path);
                writeln!(out, "torn: {bytes} bytes after offset {next} are no whole commit: {advice}")?;
            }
        }
    }
    if let Ok(Some(text)) = on_opening(Path::new(args_path)) {
        writeln!(out, "serve: a service, when it starts, {text}")?;
    }
    for note in &report.notes {
        match report.base.is_some() && note.segment == Offset::ZERO {
            true => writeln!(out, "note: {}", note.message)?,
            false => writeln!(out, "note: segment {}: {}", note.segment, note.message)?,
        }
    }
    Ok(())
}

/// What is to be said of whole commits in the torn end of a mirror of ours; none where there are none.
fn of_mirror(path: &str) -> Option<&'static str> {
    let floor = recorded_end(Path::new(path))?;
    let repo = FsRepo::open(current_dir(Path::new(path)).ok()?).ok()?;
    let found = survey(&repo, COMMIT_BYTES_MAX, Some(floor)).ok()?;
    match torn_content(&repo, &found, COMMIT_BYTES_MAX).ok()? {
        TornContent::Incomplete => None,
        TornContent::CommitsAfterDamage => Some(
            "hold whole commits after a damaged one: `logmirror mirror` cuts them off and keeps them aside when it runs again",
        ),
        TornContent::OtherCommit(..) => Some(
            "are whole commits that do not continue the log: another process wrote them, and `logmirror mirror` leaves them as \
             they are (with --adopt it cuts them off and keeps them aside)",
        ),
    }
}

/// What to do next about a torn end. A log that may be being written is never to be cut.
fn advice(args_path: &str, path: &str) -> String {
    let dir = Path::new(args_path);
    match db_lock_state(dir) {
        DbLock::Held { pid } => {
            return format!("process {pid} has this log open (it holds db.lock) and may be writing them");
        }
        DbLock::Unknown => {
            return "a SpacetimeDB may have this log open (who holds db.lock cannot be seen) and be writing them"
                .to_owned();
        }
        DbLock::Free => {}
    }
    if is_growing(dir) {
        return "the log is being written, and they may be the beginning of a commit".to_owned();
    }
    if is_mirror(dir) {
        return "a crash in mid-write leaves them; `logmirror mirror` cuts them automatically when it runs again"
            .to_owned();
    }
    format!(
        "a crash in mid-write leaves them; if nothing writes this log, `logmirror mirror {path} COPY --trim` copies what is before them"
    )
}

/// Whether the files of a directory change within [`GROWTH_LOOK`].
fn is_growing(dir: &Path) -> bool {
    let dir = current_dir(dir).unwrap_or(dir.to_owned());
    let sizes = || -> Vec<_> {
        let files = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
        let mut sizes: Vec<_> =
            files.map(|it| (it.file_name(), it.metadata().ok().map(|it| (it.len(), it.modified().ok())))).collect();
        sizes.sort();
        sizes
    };
    let before = sizes();
    std::thread::sleep(GROWTH_LOOK);
    sizes() != before
}

/// What to do next about a fault.
fn remedy(fault: &FoundFault) -> String {
    let FoundFault { segment, offset, .. } = fault;
    match fault.code.as_str() {
        "gap" => format!("bring back the segments from offset {offset} on from a sound copy"),
        "fork" => "two histories are mixed here: find out which is the real one and copy that".to_owned(),
        "stale-epoch" => "a writer that had lost the lead wrote here: compare with the source".to_owned(),
        "missing" => format!(
            "restore the segments from offset {offset} up to {segment} from a sound copy, or make a new mirror in another directory"
        ),
        "repeat" => "another process wrote it: compare with the source".to_owned(),
        FoundFault::BASE => "put the base back from a backup or another mirror, or mirror the source again".to_owned(),
        "lost" => format!("bring back the commits from offset {offset} on from a sound copy"),
        _ => format!("replace segment {segment} by that of a sound copy"),
    }
}
