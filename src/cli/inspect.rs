//! `logmirror inspect`: the segments and commits of a log as a table.

use std::io::{self, BufWriter, Write};

use clap::Args;
use logmirror::offset::{BytePos, Epoch, Offset};
use logmirror::stream::Placed;
use logmirror::verify::{Options, Report, SegmentReport, verify, verify_each};
use serde::Serialize;

use super::database;
use super::exit::{Exit, printed};
use super::place::{is_url, log_directory};

/// Show the segments of a log, or its commits, as a table
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Directory with the segments of a log, or a SQLite database or its WAL
    path: String,
    /// List each commit
    #[arg(long)]
    commits: bool,
    /// Print JSON: one object, or one line a commit
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Exit {
    if is_url(&args.path) {
        return Exit::Usage.because("inspect takes a directory");
    }
    if database::is_meant(&args.path) {
        if args.commits {
            return Exit::Usage.because("inspect --commits takes a directory: mirror the database into one first");
        }
        return database::run(&args.path, args.json);
    }
    match log_directory(&args.path) {
        Err(exit) => exit,
        Ok(repo) if args.commits => {
            let mut lines = Lines::new(args.json);
            let report = verify_each(repo, &Options::default(), |placed| lines.put(&placed));
            lines.end().and(report).map_or_else(|error| printed(Err(error)), |report| verdict(&report))
        }
        Ok(repo) => match verify(repo, &Options::default()) {
            Ok(report) => printed(segments(&report, args.json).map(|()| verdict(&report))),
            Err(error) => Exit::Io.because(error),
        },
    }
}

/// The tables show what is sound; what is not is said beside them. An unfinished end is no fault: a log that is being written
/// has one at almost any moment.
fn verdict(report: &Report) -> Exit {
    for fault in &report.faults {
        eprintln!("fault: {}", fault.message);
    }
    if let Some(bytes) = report.trailing {
        let next = report.segments.last().map_or(report.next, |segment| segment.end);
        eprintln!(
            "note: {bytes} bytes after offset {next} are an unfinished commit: being written, or left by a crash"
        );
    }
    if report.faults.is_empty() { Exit::Done } else { Exit::Data }
}

#[derive(Serialize)]
struct SegmentLine<'a> {
    #[serde(flatten)]
    segment: &'a SegmentReport,
    sealed: bool,
}

fn segments(report: &Report, json: bool) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let last = report.segments.len().saturating_sub(1);
    let lines = report.segments.iter().enumerate().map(|(at, segment)| SegmentLine { segment, sealed: at < last });
    if json {
        #[derive(Serialize)]
        struct Table<'a> {
            segments: Vec<SegmentLine<'a>>,
        }
        serde_json::to_writer(&mut out, &Table { segments: lines.collect() })?;
        writeln!(out)?;
        return out.flush();
    }
    let width = report.segments.last().map_or(0, |last| last.end.to_string().len()).max("start".len());
    writeln!(
        out,
        "{:>width$}  {:>width$}  {:>9}  {:>11}  version  {:<11}  index",
        "start", "end", "commits", "bytes", "state"
    )?;
    for SegmentLine { segment, sealed } in lines {
        let SegmentReport { start, end, commits, bytes, version, compressed, index_entries } = segment;
        let state = match (sealed, compressed) {
            (false, _) => "open",
            (true, false) => "sealed",
            (true, true) => "sealed zstd",
        };
        let index = index_entries.map_or("-".to_owned(), |entries| entries.to_string());
        writeln!(
            out,
            "{start:>width$}  {end:>width$}  {commits:>9}  {bytes:>11}  {version:>7}  {state:<11}  {index:>5}"
        )?;
    }
    out.flush()
}

#[derive(Serialize)]
struct CommitLine {
    offset: Offset,
    entries: u32,
    epoch: Epoch,
    bytes: u64,
    checksum: String,
    segment: Offset,
    at: BytePos,
}

/// Prints commits as they come by.
struct Lines {
    out: BufWriter<io::StdoutLock<'static>>,
    json: bool,
    headed: bool,
}

impl Lines {
    fn new(json: bool) -> Lines {
        Lines { out: BufWriter::new(io::stdout().lock()), json, headed: json }
    }

    fn put(&mut self, placed: &Placed) {
        if let Err(error) = self.write(placed) {
            // The walk has no way to stop early, and nobody reads on.
            std::process::exit(printed(Err(error)) as i32);
        }
    }

    fn write(&mut self, Placed { commit, segment, at }: &Placed) -> io::Result<()> {
        let (segment, at, checksum) = (*segment, *at, format!("{:08x}", commit.checksum));
        let (offset, entries, epoch, bytes) = (commit.first, commit.entries, commit.epoch, commit.bytes);
        if self.json {
            let line = CommitLine { offset, entries, epoch, bytes, checksum, segment, at };
            serde_json::to_writer(&mut self.out, &line)?;
            return writeln!(self.out);
        }
        if !std::mem::replace(&mut self.headed, true) {
            writeln!(
                self.out,
                "{:>12}  entries  epoch  {:>9}  checksum  {:>12}  {:>11}",
                "offset", "bytes", "segment", "at byte"
            )?;
        }
        writeln!(self.out, "{offset:>12}  {entries:>7}  {epoch:>5}  {bytes:>9}  {checksum}  {segment:>12}  {at:>11}")
    }

    fn end(mut self) -> io::Result<()> {
        self.out.flush()
    }
}
