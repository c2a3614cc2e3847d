//! How a mirror reports its progress: a bar on a terminal, lines with a time elsewhere, JSON lines for programs.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use logmirror::mirror::{Distance, Event, Plan, Progress, Warning};
use logmirror::offset::Offset;
use logmirror::stream::TornContent;
use serde_json::{Value, json};

use super::exit::{Exit, printed};
use super::output;

/// Lines about progress are at least this far apart.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// A JSON line is printed at least this often, whatever happens.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// While waiting, a line of text is printed this often; the reason is repeated as often.
const WAITING_EVERY: Duration = Duration::from_secs(60);
/// An attempt that lasts this long has ended the wait before it.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

const COPYING: &str = "{bar:24} {bytes}/{total_bytes} at {binary_bytes_per_sec}, {msg}, ETA {eta}";
const RESTING: &str = "{bytes}, {msg}";

/// Reports the progress of one mirror.
pub(super) struct Report {
    way: Way,
    quiet: bool,
    follow: bool,
    start: Instant,
    /// When the last line was printed.
    told: Instant,
    /// What it said.
    before: (Progress, State, Option<Offset>),
    now: Progress,
    distance: Option<Distance>,
    source_bytes: u64,
    /// What is waited for, and when that was printed.
    waiting: Option<(String, Instant)>,
    /// Whether it is known where the sink is: it held a log, or was opened.
    known: bool,
    /// Whether the next attempt is announced: the first, and those after one that wrote.
    announce: bool,
    /// Warnings that were printed.
    warned: Vec<String>,
    /// What the sink lost at its start.
    missing: Option<std::ops::Range<Offset>>,
    /// When the last attempt started.
    attempt: Option<Instant>,
    /// Which layout the bar has.
    layout: &'static str,
}

enum Way {
    Bar(ProgressBar),
    Lines,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Copying,
    Following,
    Waiting,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Copying => "copying",
            State::Following => "following",
            State::Waiting => "waiting",
        }
    }
}

impl Report {
    pub(super) fn new(json: bool, quiet: bool, follow: bool) -> Report {
        let way = match (json, std::io::stderr().is_terminal() && !quiet) {
            (true, _) => Way::Json,
            (false, false) => Way::Lines,
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, output::bar());
                bar.set_style(style(COPYING));
                Way::Bar(bar)
            }
        };
        if follow {
            output::end_promptly();
        }
        let (start, now) = (Instant::now(), Progress::default());
        let before = (now, State::Starting, None);
        let (distance, waiting, attempt) = (None, None, None);
        let layout = COPYING;
        Report {
            way,
            quiet,
            follow,
            start,
            told: start,
            before,
            now,
            distance,
            source_bytes: 0,
            waiting,
            known: false,
            announce: true,
            warned: Vec::new(),
            missing: None,
            attempt,
            layout,
        }
    }

    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Started { from, held, source_bytes } => {
                self.attempt = Some(Instant::now());
                let first = std::mem::take(&mut self.announce);
                self.known |= held;
                self.source_bytes = self.source_bytes.max(self.now.bytes + source_bytes);
                (self.now.next, self.now.durable) = (*from, *from);
                match &self.way {
                    Way::Bar(bar) => bar.set_length(self.source_bytes),
                    Way::Lines if first && !self.quiet => say(format_args!("mirroring from offset {from}")),
                    Way::Lines => {}
                    Way::Json => line(&json!({"event": "started", "from": from, "source_bytes": source_bytes})),
                }
            }
            Event::Moved(progress) => {
                if self.now != *progress {
                    self.announce |= progress.durable > self.now.durable;
                    (self.now, self.waiting) = (*progress, None);
                }
                self.tick();
            }
            Event::Measured(distance) => {
                self.source_bytes = distance.source_bytes;
                self.distance = Some(*distance);
                self.tick();
            }
            Event::Opened { durable } => {
                self.known = true;
                self.now.durable = self.now.durable.max(*durable);
            }
            Event::Warning(warning) => self.warn(warning),
            Event::Cut(cut) => {
                let aside = cut.aside.as_ref().map(|aside| format!(", kept in {aside}")).unwrap_or_default();
                let (incomplete, with) = match cut.content {
                    TornContent::Incomplete => ("incomplete ", ""),
                    TornContent::CommitsAfterDamage => ("", ", with whole commits after a damaged one"),
                    TornContent::OtherCommit(..) => ("", ", with whole commits that do not continue the log"),
                };
                match &self.way {
                    Way::Json => line(&json!({"event": "cut", "file": cut.file, "at": cut.at.0, "bytes": cut.bytes,
                        "aside": cut.aside, "whole_commits": cut.content != TornContent::Incomplete})),
                    _ => self.note(format_args!(
                        "{}: cut {} {incomplete}bytes at byte {}{with}{aside}",
                        cut.file, cut.bytes, cut.at
                    )),
                }
            }
            Event::Emptied { durable } => match &self.way {
                Way::Json => line(&json!({"event": "emptied", "durable": durable})),
                _ => self.note(format_args!(
                    "DST was durable up to offset {durable}, but holds no segment any more: it is filled again"
                )),
            },
            Event::Refetched { from, to } => match &self.way {
                Way::Json => line(&json!({"event": "refetched", "from": from, "to": to, "offsets": to.0 - from.0})),
                _ => self.note(format_args!(
                    "DST was durable up to offset {to}, but ends at {from}: offsets {from} to {to} are fetched again"
                )),
            },
            Event::SourceLive { next, bytes } => match &self.way {
                Way::Json => line(&json!({"event": "source-live", "next": next, "unfinished_bytes": bytes})),
                _ => self.note(format_args!(
                    "the source is being written: copied up to offset {next}; {bytes} bytes of a commit that is not whole \
                     yet were left out"
                )),
            },
            Event::Compared { reason, pages } => match &self.way {
                Way::Json => line(&json!({"event": "compared", "reason": reason, "pages": pages})),
                _ => self.note(format_args!(
                    "{reason}: compared pages, and what was committed meanwhile is one transaction of {pages} pages"
                )),
            },
            Event::Retrying { error, after } => self.retrying(error, *after),
        }
    }

    fn warn(&mut self, warning: &Warning) {
        self.missing = warning.missing.clone().or(self.missing.take());
        if self.warned.contains(&warning.text) {
            return;
        }
        let missing = warning.missing.as_ref().map(|missing| [missing.start, missing.end]);
        match &self.way {
            Way::Json => line(&json!({"event": "warning", "text": warning.text, "missing": missing})),
            _ => self.note(format_args!("warning: {}", warning.text)),
        }
        self.warned.push(warning.text.clone());
    }

    fn retrying(&mut self, error: &str, after: Duration) {
        let known = self.waiting.as_ref().filter(|(reason, since)| reason == error && since.elapsed() < WAITING_EVERY);
        let printed_at = known.map(|(_, since)| *since);
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        match (&self.way, printed_at) {
            (Way::Json, _) => line(&json!({"event": "retrying", "error": error, "after_ms": ms})),
            (_, Some(_)) => {}
            (_, None) if self.follow => self.note(format_args!("waiting: {error}")),
            (_, None) => self.note(format_args!("{error}; trying again in {ms} ms")),
        }
        self.waiting = Some((error.to_owned(), printed_at.unwrap_or_else(Instant::now)));
        self.attempt = None;
        self.tick();
    }

    /// A line of text, above the bar if there is one.
    fn note(&self, text: std::fmt::Arguments<'_>) {
        match &self.way {
            Way::Bar(bar) => bar.println(text.to_string()),
            _ => say(text),
        }
    }

    fn state(&self) -> State {
        let behind = self.distance.and_then(|distance| distance.offsets).unwrap_or_else(|| self.lag());
        match (&self.waiting, self.attempt) {
            (Some(_), _) => State::Waiting,
            (None, None) => State::Starting,
            _ if self.follow && self.known && behind == 0 && self.lag() == 0 => State::Following,
            _ => State::Copying,
        }
    }

    /// Prints what is due.
    pub(super) fn tick(&mut self) {
        if self.attempt.is_some_and(|since| since.elapsed() >= SETTLED_AFTER) {
            self.waiting = None;
        }
        let (state, source) = (self.state(), self.distance.and_then(|distance| distance.source_next));
        if self.quiet {
            return;
        }
        let since = self.told.elapsed();
        let changed = self.before != (self.now, state, source);
        match &self.way {
            Way::Bar(_) => self.draw(state),
            Way::Json if changed && since >= LINE_EVERY => self.line("progress", since),
            Way::Json if since >= HEARTBEAT_EVERY => self.line("heartbeat", since),
            Way::Lines if state == State::Waiting && since >= WAITING_EVERY => self.line("waiting", since),
            Way::Lines if state != State::Waiting && changed && since >= LINE_EVERY => {
                self.line(if state == State::Following { "following" } else { "progress" }, since);
            }
            _ => {}
        }
    }

    fn draw(&mut self, state: State) {
        let (behind, commits) = (self.behind(), HumanCount(self.now.commits));
        let layout = if state == State::Copying { COPYING } else { RESTING };
        let Way::Bar(bar) = &self.way else { return };
        if layout != std::mem::replace(&mut self.layout, layout) {
            bar.set_style(style(layout));
        }
        bar.set_length(self.source_bytes.max(self.now.bytes));
        bar.set_position(self.now.bytes);
        bar.set_message(match &self.waiting {
            Some((reason, _)) => format!("{commits} commits, waiting: {reason}; {behind}"),
            None if state == State::Following => format!("{commits} commits, following, {behind}"),
            None => format!("{commits} commits, {behind}"),
        });
    }

    /// Entries sent but not durable.
    fn lag(&self) -> u64 {
        self.now.next.0.saturating_sub(self.now.durable.0)
    }

    /// The distance as measured, brought up to where the sink is now.
    fn current(&self) -> Option<Distance> {
        let mut distance = self.distance?;
        let durable = self.now.durable;
        let (true, false, Some(next)) = (self.known, distance.is_short, distance.source_next) else {
            return Some(distance);
        };
        let next = next.max(durable);
        let offsets = next.0 - durable.0;
        distance.bytes = match (distance.bytes, distance.offsets) {
            (Some(bytes), Some(before)) if offsets > 0 && before > 0 => {
                Some((bytes as f64 * offsets as f64 / before as f64) as u64)
            }
            (bytes, _) if offsets > 0 => bytes,
            _ => Some(distance.unfinished),
        };
        if offsets == 0 {
            distance.age = Duration::ZERO;
        }
        (distance.source_next, distance.offsets) = (Some(next), Some(offsets));
        Some(distance)
    }

    /// How far the sink is behind, in words; none when that was not measured, and all that was received is durable.
    fn behind(&self) -> String {
        let Some(Distance { source_next, offsets, bytes, unfinished, age, is_short, .. }) = self.current() else {
            return match self.lag() {
                0 => String::new(),
                lag => format!("{lag} offsets are not durable yet"),
            };
        };
        match (offsets, source_next) {
            (Some(offsets), _) => {
                let bytes = HumanBytes(bytes.unwrap_or(0));
                let tail = match unfinished {
                    0 => String::new(),
                    bytes => format!(" ({bytes} bytes at its end are no whole commit)"),
                };
                format!("{offsets} offsets, {bytes}, {:.1} s behind the source{tail}", age.as_secs_f64())
            }
            (None, Some(next)) if is_short && self.attempt.is_some() => {
                let end = self.now.durable;
                format!("the source ends at offset {next}, before the end of the copy at offset {end}")
            }
            (None, Some(next)) => format!("the source ends at offset {next}"),
            (None, None) => {
                format!("the distance to the source is unknown, {} offsets are not durable yet", self.lag())
            }
        }
    }

    fn line(&mut self, event: &str, over: Duration) {
        let Progress { commits, bytes: total, next, durable, .. } = self.now;
        // One that is done left nothing to be known, also where there was nothing to open.
        let known = self.known || event == "done";
        let (next, durable) = (Some(next).filter(|_| known), Some(durable).filter(|_| known));
        let bytes = total.saturating_sub(if event == "progress" { self.before.0.bytes } else { 0 });
        let rate = (bytes as f64 / over.as_secs_f64().max(1e-6)) as u64;
        let (lag, state) = (self.lag(), self.state());
        let distance = self.current().unwrap_or_default();
        let source_next = distance.source_next;
        if let Way::Json = self.way {
            let seconds = self.start.elapsed().as_secs_f64();
            let rate = if event == "heartbeat" { 0 } else { rate };
            let mut value = json!({"event": event, "commits": commits, "bytes": total, "next": next, "durable": durable,
                "bytes_per_second": rate, "lag": lag, "source_bytes": self.source_bytes, "seconds": seconds});
            if let (Some(missing), Value::Object(fields)) = (&self.missing, &mut value) {
                fields.insert("missing".into(), json!([missing.start, missing.end]));
            }
            if self.follow
                && let Value::Object(fields) = &mut value
            {
                let age = distance.offsets.map(|_| distance.age.as_secs_f64());
                fields.insert("state".into(), json!(state.word()));
                fields.insert("source_next".into(), json!(source_next));
                fields.insert("behind".into(), json!(distance.offsets));
                fields.insert("behind_bytes".into(), json!(distance.bytes));
                fields.insert("unfinished_bytes".into(), json!(distance.unfinished));
                fields.insert("behind_seconds".into(), json!(age));
                fields.insert("reason".into(), json!(self.waiting.as_ref().map(|(reason, _)| reason)));
            }
            line(&value);
        } else {
            let (total, behind) = (HumanBytes(total), self.behind());
            let rate = match event {
                "following" | "waiting" => String::new(),
                _ => format!(" at {}/s", HumanBytes(rate)),
            };
            let reason = match (&self.waiting, event) {
                (Some((reason, _)), "waiting") => format!("; {reason}"),
                _ => String::new(),
            };
            let durable = durable.map(|durable| format!(", durable up to offset {durable}")).unwrap_or_default();
            let behind = if behind.is_empty() { behind } else { format!(", {behind}") };
            say(format_args!("{event}: {total} in {commits} commits{rate}{durable}{behind}{reason}"));
        }
        if let ("waiting", Some((_, printed_at))) = (event, &mut self.waiting) {
            *printed_at = Instant::now();
        }
        let measured = self.distance.and_then(|distance| distance.source_next);
        (self.told, self.before) = (Instant::now(), (self.now, state, measured));
    }

    /// It ended: by itself or because it was asked to, well or with an error. Returns how the command ends.
    pub(super) fn end(mut self, ended: bool, failed: Option<(Exit, String)>) -> Exit {
        output::last_lines();
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
            self.way = Way::Lines;
        }
        if let Some((Exit::Usage, what)) = failed {
            return self.refuse(Exit::Usage, what);
        }
        let event = match &failed {
            Some(_) => "failed",
            None if ended => "done",
            None => "interrupted",
        };
        if !self.quiet || matches!(self.way, Way::Json) {
            self.line(event, self.start.elapsed());
        }
        match failed {
            Some((exit, what)) => self.refuse(exit, what),
            // A mirror that follows has no other end.
            None if ended || self.follow => Exit::Done,
            None => Exit::Io,
        }
    }

    /// Prints an error, and ends the command like this.
    pub(super) fn refuse(self, exit: Exit, what: String) -> Exit {
        exit.because(what)
    }

    /// Prints what would be done.
    pub(super) fn planned(self, plan: &Plan) -> Exit {
        let mut out = std::io::stdout().lock();
        let written = match self.way {
            Way::Json => writeln!(
                out,
                "{}",
                json!({"event": "plan", "creates": plan.creates, "compares": plan.compares,
                "from": plan.from, "to": plan.to, "source_bytes": plan.bytes, "notes": plan.notes})
            ),
            _ => write!(out, "{plan}"),
        };
        printed(written.map(|()| Exit::Done))
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A line for people, with the time unless it goes to a terminal.
fn say(text: std::fmt::Arguments<'_>) {
    if std::io::stderr().is_terminal() {
        output::err().offer(text.to_string());
    } else {
        output::err().offer(format!("{:.0} {text}", jiff::Timestamp::now()));
    }
}

fn line(value: &Value) {
    output::out().offer(value.to_string());
}
