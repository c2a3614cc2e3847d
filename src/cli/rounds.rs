//! How the rounds of a replica are told.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use logmirror::replica::{Action, Event, Outcome, Report};
use serde::Serialize;
use serde_json::{Value, json};

use super::exit::with_causes;
use super::output;

/// Lines of progress come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What happens, told in the way that suits who listens: results on standard output, progress and errors beside it.
pub(super) struct Teller {
    action: Action,
    way: Way,
}

enum Way {
    Bar(ProgressBar),
    Lines(Mutex<Option<Came>>),
    Json,
}

/// What came in this round, and since the last line.
struct Came {
    bytes: u64,
    before: u64,
    told: Instant,
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<T> {
    action: Action,
    #[serde(flatten)]
    told: T,
}

impl Teller {
    pub(super) fn new(action: Action, json: bool) -> Teller {
        let way = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Way::Json,
            (false, false) => Way::Lines(Mutex::new(None)),
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, output::bar());
                let style = "{spinner} {bytes} at {binary_bytes_per_sec}, {elapsed}";
                bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_spinner()));
                Way::Bar(bar)
            }
        };
        Teller { action, way }
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Came(bytes) => self.came(*bytes),
            Event::Done(outcome) => {
                self.ends();
                match (&self.way, outcome) {
                    (Way::Json, _) => self.json(outcome),
                    (_, Outcome::Done { made, report }) => told(*made, report),
                    (_, Outcome::Stands(status)) => stands(status),
                }
            }
            Event::Failed { error, after } => {
                self.ends();
                let text = with_causes(error);
                let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                match &self.way {
                    Way::Json => self.json(json!({"error": text, "after_ms": ms})),
                    _ => output::err().offer(format!("{text}; trying again in {ms} ms")),
                }
            }
        }
    }

    fn came(&self, bytes: u64) {
        match &self.way {
            Way::Bar(bar) => {
                if bar.is_finished() {
                    bar.reset();
                }
                bar.inc(bytes);
            }
            Way::Lines(came) => {
                let mut came = came.lock().unwrap_or_else(PoisonError::into_inner);
                let came = came.get_or_insert_with(|| Came { bytes: 0, before: 0, told: Instant::now() });
                came.bytes += bytes;
                let since = came.told.elapsed();
                if since >= LINE_EVERY {
                    let rate = ((came.bytes - came.before) as f64 / since.as_secs_f64()) as u64;
                    output::err().offer(format!("{} came, at {}/s", HumanBytes(came.bytes), HumanBytes(rate)));
                    (came.before, came.told) = (came.bytes, Instant::now());
                }
            }
            Way::Json => {}
        }
    }

    /// A round ends, and with it what tells of its bytes.
    pub(super) fn ends(&self) {
        match &self.way {
            Way::Bar(bar) => bar.finish_and_clear(),
            Way::Lines(came) => *came.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Way::Json => {}
        }
    }

    fn json(&self, told: impl Serialize) {
        match serde_json::to_string(&Line { action: self.action, told }) {
            Ok(text) => line(&text),
            Err(error) => log::error!("a line of JSON is missing: {error}"),
        }
    }
}

fn told(made: bool, report: &Report) {
    let Report { frames_pulled, changes_pushed, requests, conflicts } = report;
    let (made, count) = (if made { "made of all that the remote has; " } else { "" }, conflicts.len());
    line(&format!(
        "{made}{changes_pushed} changes pushed, {frames_pulled} frames pulled, {count} conflicts, {requests} requests"
    ));
    for conflict in conflicts {
        line(&format!("conflict: {conflict}"));
    }
}

fn stands(status: &impl Serialize) {
    let Ok(Value::Object(status)) = serde_json::to_value(status) else { return };
    for (key, value) in &status {
        match value {
            Value::String(text) => line(&format!("{key:16} {text}")),
            value => line(&format!("{key:16} {value}")),
        }
    }
}

fn line(text: &str) {
    output::out().result(text);
}
