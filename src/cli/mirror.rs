//! `logmirror mirror`: the main job.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use logmirror::limits;
use logmirror::mirror::{Event, Mirror, Place, Progress};
use logmirror::offset::Offset;
use serde_json::json;

use super::access::AccessArgs;
use super::exit::{Exit, with_causes};

/// Lines of a script that is told how a mirror fares come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Copy, push, pull or relay a log: SRC and DST are each a directory or the URL of a log, SRC also a SQLite database
#[derive(Args)]
pub(crate) struct MirrorArgs {
    /// Directory with segments, URL of a log (http://HOST/logs/NAME), or SQLite database (app.db, or its WAL app.db-wal),
    /// which is only read and may be in use; or a SQLite database and a libSQL sync server (libsql+http://HOST/PATH,
    /// libsql+https:// or libsql://), one on either side
    #[arg(value_name = "SRC")]
    pub(super) source: String,
    /// Directory or URL; a directory or log that is not there is created
    #[arg(value_name = "DST")]
    pub(super) sink: String,
    /// Go on as SRC grows, until stopped; reconnect when a connection fails
    #[arg(long)]
    pub(super) follow: bool,
    /// Accept a torn end of SRC, a directory that nobody writes; it is not changed
    #[arg(long)]
    pub(super) trim: bool,
    /// Take over a directory DST that has no mirror record and does not pass for a mirror by itself: compared with SRC all
    /// the same, and what must be cut off its end is set aside
    #[arg(long)]
    adopt: bool,
    /// Tell how it fares in lines of JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Largest commit taken
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_COMMIT_BYTES_MAX", default_value_t = ByteSize(limits::COMMIT_BYTES_MAX))]
    commit_bytes_max: ByteSize,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    /// Frames in one request to a libSQL sync server
    #[arg(long, value_name = "FRAMES", default_value_t = limits::SYNC_BATCH, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::SYNC_BATCH_MAX)))]
    pub(super) batch: u32,
}

pub(crate) fn run(args: MirrorArgs) -> Exit {
    if super::libsql::is_meant(&args) {
        return super::libsql::run(&args);
    }
    let (source, sink) = match (args.access.place(&args.source), args.access.place(&args.sink)) {
        (Ok(source), Ok(sink)) => (source, sink),
        (Err(exit), _) | (_, Err(exit)) => return exit,
    };
    let mut mirror = Mirror::new(Place::parse(&source), Place::parse(&sink));
    (mirror.follow, mirror.trim) = (args.follow, args.trim);
    mirror.adopt = args.adopt;
    mirror.commit_bytes_max = args.commit_bytes_max.as_u64();
    mirror.http = match args.access.http() {
        Ok(http) => http,
        Err(exit) => return exit,
    };
    let report = RefCell::new(Report::new(args.json));
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
    let mut report = report.into_inner();
    let error = ended.as_ref().and_then(|result| result.as_ref().err());
    let exit = match error {
        // A mirror that follows has no other end.
        None if ended.is_some() || mirror.follow => Exit::Done,
        None => Exit::Io,
        Some(error) if error.is_usage() => Exit::Usage,
        Some(error) if error.is_data() => Exit::Data,
        Some(_) => Exit::Io,
    };
    let text = error.map(|error| with_causes(error));
    report.end(ended.is_some(), text.as_deref());
    match text {
        Some(text) => exit.because(text),
        None => exit,
    }
}

/// What moved since the last line must be told also when nothing moves any more.
pub(super) async fn keep_telling(report: &RefCell<Report>) -> Infallible {
    let mut ticks = tokio::time::interval(LINE_EVERY / 4);
    loop {
        ticks.tick().await;
        report.borrow_mut().line_if_due();
    }
}

/// How a mirror fares, told in the way that suits who listens.
pub(super) struct Report {
    way: Way,
    start: Instant,
    told: Instant,
    before: Progress,
    now: Progress,
    source_bytes: u64,
}

enum Way {
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        let way = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Way::Json,
            (false, false) => Way::Lines,
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
                let style = "{bar:24} {bytes}/{total_bytes} at {binary_bytes_per_sec}, {msg}, ETA {eta}";
                bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                Way::Bar(bar)
            }
        };
        let (start, progress) = (Instant::now(), Progress::default());
        Report { way, start, told: start, before: progress, now: progress, source_bytes: 0 }
    }

    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Started { from, source_bytes } => {
                self.source_bytes = *source_bytes;
                (self.now.next, self.now.durable) = (*from, *from);
                match &self.way {
                    Way::Bar(bar) => bar.set_length(*source_bytes),
                    Way::Lines => eprintln!("mirroring from offset {from}"),
                    Way::Json => line(&json!({"event": "started", "from": from, "source_bytes": source_bytes})),
                }
            }
            Event::Moved(progress) => {
                self.now = *progress;
                if let Way::Bar(bar) = &self.way {
                    if bar.length().is_none_or(|length| length < progress.bytes) {
                        bar.set_length(progress.bytes);
                    }
                    bar.set_position(progress.bytes);
                    bar.set_message(format!("{} commits, {} to be durable", HumanCount(progress.commits), self.lag()));
                }
                self.line_if_due();
            }
            Event::Cut(cut) => {
                let aside = cut.aside.as_ref().map(|aside| format!(", kept in {aside}")).unwrap_or_default();
                let text = format!("{}: cut {} incomplete bytes at byte {}{aside}", cut.file, cut.bytes, cut.at);
                match &self.way {
                    Way::Bar(bar) => bar.println(text),
                    Way::Lines => eprintln!("{text}"),
                    Way::Json => line(&json!({"event": "cut", "file": cut.file, "at": cut.at.0, "bytes": cut.bytes,
                        "aside": cut.aside})),
                }
            }
            Event::Retrying { error, after } => match &self.way {
                Way::Bar(bar) => bar.println(format!("{error}; trying again in {} ms", after.as_millis())),
                Way::Lines => eprintln!("{error}; trying again in {} ms", after.as_millis()),
                Way::Json => {
                    let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                    line(&json!({"event": "retrying", "error": error, "after_ms": ms}));
                }
            },
        }
    }

    fn line_if_due(&mut self) {
        let bar = matches!(self.way, Way::Bar(_));
        if !bar && self.now != self.before && self.told.elapsed() >= LINE_EVERY {
            self.line("progress", self.now.bytes - self.before.bytes, self.told.elapsed());
        }
    }

    /// Entries sent but not durable.
    fn lag(&self) -> u64 {
        self.now.next.0.saturating_sub(self.now.durable.0)
    }

    fn line(&mut self, event: &str, bytes: u64, over: Duration) {
        let Progress { commits, bytes: total, next: Offset(next), durable: Offset(durable) } = self.now;
        let rate = (bytes as f64 / over.as_secs_f64().max(1e-6)) as u64;
        let lag = self.lag();
        if let Way::Json = self.way {
            let seconds = self.start.elapsed().as_secs_f64();
            line(&json!({"event": event, "commits": commits, "bytes": total, "next": next, "durable": durable,
                "bytes_per_second": rate, "lag": lag, "source_bytes": self.source_bytes, "seconds": seconds}));
        } else {
            let (total, rate) = (HumanBytes(total), HumanBytes(rate));
            eprintln!(
                "{event}: {total} in {commits} commits at {rate}/s, durable up to offset {durable}, {lag} behind"
            );
        }
        (self.told, self.before) = (Instant::now(), self.now);
    }

    /// It ended by itself, or was told to.
    pub(super) fn end(&mut self, ended: bool, error: Option<&str>) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
            self.way = Way::Lines;
        }
        let event = match error {
            Some(_) => "failed",
            None if ended => "done",
            None => "interrupted",
        };
        self.line(event, self.now.bytes, self.start.elapsed());
        if let (Way::Json, Some(error)) = (&self.way, error) {
            line(&json!({"event": "error", "error": error}));
        }
    }
}

fn line(value: &serde_json::Value) {
    // Whoever does not read us any more does not miss the line.
    let _ = writeln!(std::io::stdout(), "{value}");
}
