//! [`out`] and [`err`]: what a command writes to standard output and standard error while it runs.
//!
//! Each has one bounded queue and one thread of its own, which alone writes: a pipe that nobody reads, or a terminal that was
//! stopped, holds up that thread and nothing else. What one-shot commands print as their result is not written here.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressDrawTarget, TermLike};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;

use super::exit;
use super::stop;

/// Bytes of lines that wait to be written. What does not fit is dropped and counted.
const QUEUE_BYTES_MAX: usize = 256 << 10;

/// Bytes that are written in one call, unless a line is longer. A pipe takes so many wholly or not at all (PIPE_BUF), so the end
/// of the process cuts no line in two.
const WRITE_BYTES_MAX: usize = 4096;

/// How long a command that runs until it is stopped waits at its end for its last lines to be written.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// The same at an end that has to be immediate.
const FLUSH_WAIT_SHORT: Duration = Duration::from_millis(100);

/// Pause before another attempt to write to what is full and does not block.
const FULL_WAIT: Duration = Duration::from_millis(10);

static OUT: Output = Output::new(Target::Out);
static ERR: Output = Output::new(Target::Err);

/// Whether what is written may be dropped at the end too, because the command ran until it was stopped.
static PROMPT: AtomicBool = AtomicBool::new(false);
/// Whether lines are the last ones, of which none is dropped.
static LAST: AtomicBool = AtomicBool::new(false);
/// Whether the log is in JSON.
static LOG_IN_JSON: AtomicBool = AtomicBool::new(false);
/// Lines dropped so far, and the metric that counts them.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static METRIC: OnceLock<Counter> = OnceLock::new();

/// Standard output.
pub(super) fn out() -> &'static Output {
    &OUT
}

/// Standard error.
pub(super) fn err() -> &'static Output {
    &ERR
}

/// From now on the end of the process waits only for a moment for lines that cannot be written: the command runs until it is
/// stopped, or was asked to stop.
pub(super) fn end_promptly() {
    PROMPT.store(true, Ordering::Relaxed);
}

/// From now on no line is dropped: they say how the command ended.
pub(super) fn last_lines() {
    LAST.store(true, Ordering::Relaxed);
}

/// The log is in JSON, and so is what is said in it here.
pub(super) fn log_in_json() {
    LOG_IN_JSON.store(true, Ordering::Relaxed);
}

/// Counts dropped lines in `metric` too.
pub(super) fn count_in(metric: Counter) {
    metric.inc_by(DROPPED.load(Ordering::Relaxed));
    let _only_one_service = METRIC.set(metric);
}

/// Waits until all lines are written: as long as it takes, or until a signal; only for a moment after [`end_promptly`].
pub(super) fn finish() {
    if OUT.is_written() && ERR.is_written() {
        return;
    }
    if PROMPT.load(Ordering::Relaxed) {
        return finish_within(FLUSH_WAIT);
    }
    let _ended_by_a_signal = stop::unless_stopped(|| {
        OUT.wait(None);
        ERR.wait(None);
    });
}

/// Waits only for a moment for lines that are not written yet: the process ends at once.
pub(super) fn finish_soon() {
    finish_within(FLUSH_WAIT_SHORT);
}

fn finish_within(wait: Duration) {
    let until = Instant::now() + wait;
    OUT.wait(Some(until));
    ERR.wait(Some(until));
}

/// Whether anything in this process panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Whether anything in this process panicked since [`report_panics`].
pub(super) fn has_panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// Reports panics as the default does, but without waiting for a reader.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICKED.store(true, Ordering::Relaxed);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        ERR.put(format!("thread '{name}': {info}{backtrace}"));
        finish_soon();
    }));
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Out,
    Err,
}

/// A queue of lines and the thread that writes them, in their order.
#[derive(Debug)]
pub(super) struct Output {
    target: Target,
    state: Mutex<State>,
    /// There is something to write.
    queued: Condvar,
    /// All is written.
    written: Condvar,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Line>,
    /// Bytes in `lines`.
    bytes: usize,
    /// Lines that were dropped and not reported yet.
    dropped: u64,
    /// Whether to report them although no line follows.
    report: bool,
    thread: Thread,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Thread {
    None,
    Idle,
    Writing,
}

/// Some lines of text with their ends.
#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// How many dropped lines this one reports.
    reports: u64,
}

impl Output {
    const fn new(target: Target) -> Output {
        let state = State { lines: VecDeque::new(), bytes: 0, dropped: 0, report: false, thread: Thread::None };
        Output { target, state: Mutex::new(state), queued: Condvar::new(), written: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line soon, or drops it while too much is waiting. Does not block.
    pub(super) fn offer(&'static self, line: impl Into<Vec<u8>>) {
        self.queue(ended(line.into()), LAST.load(Ordering::Relaxed));
    }

    /// Writes a line soon, however much is waiting: for the few that say how a command ended. Does not block.
    pub(super) fn put(&'static self, line: impl Into<Vec<u8>>) {
        self.queue(ended(line.into()), true);
    }

    /// Writes a line of a result soon: only a command that runs until it is stopped may drop it. Does not block.
    #[cfg(feature = "turso")]
    pub(super) fn result(&'static self, line: &str) {
        self.queue(ended(line.into()), LAST.load(Ordering::Relaxed) || !PROMPT.load(Ordering::Relaxed));
    }

    fn queue(&'static self, text: Vec<u8>, must: bool) {
        let mut state = self.lock();
        // After a line was dropped so are those after it until there is some room, so that reports are few.
        let max = if state.dropped == 0 { QUEUE_BYTES_MAX } else { QUEUE_BYTES_MAX / 2 };
        if !must && state.bytes + text.len() > max {
            (state.dropped, state.report) = (state.dropped + 1, true);
            drop(state);
            count(1);
            return;
        }
        if state.dropped > 0 {
            self.report(&mut state);
        }
        state.push(Line { text, reports: 0 });
        match std::mem::replace(&mut state.thread, Thread::Writing) {
            Thread::Writing => {}
            Thread::Idle => self.queued.notify_one(),
            Thread::None => {
                let name = match self.target {
                    Target::Out => "stdout",
                    Target::Err => "stderr",
                };
                let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(|| self.write_all());
                if spawned.is_err() {
                    state.thread = Thread::None;
                    let (text, _) = state.take();
                    let _ = self.write(&text);
                }
            }
        }
    }

    fn report(&self, state: &mut State) {
        let lines = std::mem::take(&mut state.dropped);
        state.report = false;
        state.push(Line { text: ended(self.target.dropped(lines).into()), reports: lines });
    }

    /// Writes what is queued, for ever.
    fn write_all(&self) {
        let mut state = self.lock();
        loop {
            if state.lines.is_empty() && state.report {
                self.report(&mut state);
            }
            if state.lines.is_empty() {
                state.thread = Thread::Idle;
                self.written.notify_all();
                state = self.queued.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (text, (lines, reported)) = state.take();
            drop(state);
            let result = self.write(&text);
            if result.is_err() {
                count(lines);
            }
            state = self.lock();
            if result.is_err() {
                state.dropped += lines + reported;
            }
        }
    }

    /// Blocks while a pipe is full.
    fn write(&self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let written = match self.target {
                Target::Out => rustix::io::write(io::stdout(), text),
                Target::Err => rustix::io::write(io::stderr(), text),
            };
            match written.map_err(io::Error::from) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => text = &text[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(FULL_WAIT),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_written(&self) -> bool {
        self.lock().thread != Thread::Writing
    }

    /// Blocks until all is written, or until that time.
    fn wait(&self, until: Option<Instant>) {
        let mut state = self.lock();
        while state.thread == Thread::Writing {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return,
                Some(left) => self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.written.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl State {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }

    /// What to write in one call, how many lines that are, and how many dropped ones they report.
    fn take(&mut self) -> (Vec<u8>, (u64, u64)) {
        let (mut text, mut lines, mut reported) = (Vec::new(), 0, 0);
        while let Some(line) =
            self.lines.pop_front_if(|line| text.len() + line.text.len() <= WRITE_BYTES_MAX || text.is_empty())
        {
            self.bytes -= line.text.len();
            lines += u64::from(line.reports == 0);
            reported += line.reports;
            if text.is_empty() {
                text = line.text;
            } else {
                text.extend_from_slice(&line.text);
            }
        }
        (text, (lines, reported))
    }
}

impl Target {
    /// The line that says how many were dropped.
    fn dropped(self, lines: u64) -> String {
        let what = match lines {
            1 => "1 line was dropped".to_owned(),
            lines => format!("{lines} lines were dropped"),
        };
        match self {
            Target::Out if exit::is_json() => json!({"event": "dropped", "lines": lines}).to_string(),
            Target::Out => format!("{what}: standard output was not read in time"),
            Target::Err => {
                let (time, what) =
                    (jiff::Timestamp::now(), format!("{what}: they could not be written to standard error in time"));
                if LOG_IN_JSON.load(Ordering::Relaxed) {
                    let time = format!("{time:.3}");
                    json!({"time": time, "level": "warn", "target": "logmirror", "message": what, "lines": lines})
                        .to_string()
                } else {
                    format!("[{time:.3} WARN  logmirror] {what}")
                }
            }
        }
    }
}

fn count(lines: u64) {
    DROPPED.fetch_add(lines, Ordering::Relaxed);
    if let Some(metric) = METRIC.get() {
        metric.inc_by(lines);
    }
}

fn ended(mut line: Vec<u8>) -> Vec<u8> {
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    line
}

/// Standard error as a log writes to it, one record a call.
pub(super) struct LogLines;

impl Write for LogLines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        err().offer(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A progress bar's way to the terminal at standard error: what it draws at a time is queued as one piece.
pub(super) fn bar() -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(Box::new(Terminal::default()), 10)
}

#[derive(Debug, Default)]
struct Terminal {
    drawn: Mutex<Vec<u8>>,
}

impl Terminal {
    fn draw(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).write_fmt(text)
    }

    fn moved(&self, count: usize, way: char) -> io::Result<()> {
        if count == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{count}{way}")) }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        console::Term::stderr().size().1
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let drawn = std::mem::take(&mut *self.drawn.lock().unwrap_or_else(PoisonError::into_inner));
        if !drawn.is_empty() {
            err().queue(drawn, LAST.load(Ordering::Relaxed));
        }
        Ok(())
    }
}
