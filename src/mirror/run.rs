//! The one loop behind `logmirror mirror`: from any source to any sink, resuming where the sink ends.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::attempt::attempt;
use super::database::{self, Database};
use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::ownership;
use super::sink::{DirSink, Sink};
use super::source::Source;
use crate::client::{Client, without_secrets};
use crate::limits::{ATTEMPTS_MAX, BACKOFF_FIRST, BACKOFF_LAST};
use crate::offset::Offset;
use crate::repo::FsRepo;
use crate::stream::{CutTail, Options};

/// What happens while a mirror runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// An attempt starts.
    Started {
        /// Where the sink stands.
        from: Offset,
        /// Bytes in the source from there on, roughly.
        source_bytes: u64,
    },
    /// The incomplete end of a write of ours was cut off the sink when it was opened.
    Cut(CutTail),
    /// Something moved.
    Moved(Progress),
    /// An attempt failed, and another will be made.
    Retrying {
        /// Why it failed.
        error: String,
        /// When.
        after: Duration,
    },
}

/// How far a mirror has come, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Commits handed to the sink.
    pub commits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The offset after the last one.
    pub next: Offset,
    /// The offset after the last commit durable in the sink.
    pub durable: Offset,
}

/// Runs a mirror until the source is copied, or for ever if it follows.
///
/// # Errors
/// See [`MirrorError`]. A connection that fails is tried again: for ever when following, else a few times.
pub async fn run(mirror: &Mirror, mut told: impl FnMut(Event)) -> Result<Progress, MirrorError> {
    let identity = match (&mirror.source, &mirror.sink) {
        (Place::Dir(source), Place::Dir(sink)) => {
            ownership::are_apart(source, sink)?;
            ownership::source_identity(source)
        }
        (Place::Dir(source), Place::Url(_)) => ownership::source_identity(source),
        (Place::Url(url), _) => without_secrets(url),
    };
    let source = match &mirror.source {
        Place::Url(url) => Origin::Log(Source::Url(Client::with_options(url, &mirror.http)?)),
        Place::Dir(path) if database::is_database(path) => Origin::Database(Database::new(path)),
        Place::Dir(path) => Origin::Log(Source::Dir(dir(path, FsRepo::open(path))?)),
    };
    let sink = match &mirror.sink {
        Place::Url(url) => Sink::Url(Client::with_options(url, &mirror.http)?),
        Place::Dir(path) => {
            let commit_bytes_max = mirror.commit_bytes_max;
            let options = Options { commit_bytes_max, forget: true, ..Options::default() };
            Sink::Dir(Arc::new(DirSink::new(path, options, mirror.adopt, identity)))
        }
    };
    let mut progress = Progress::default();
    let mut failures = 0;
    loop {
        let before = progress;
        let attempted = match &source {
            Origin::Log(source) => attempt(mirror, source, &sink, &mut progress, &mut told).await,
            Origin::Database(database) => database::attempt(mirror, database, &sink, &mut progress, &mut told).await,
        };
        let error = match attempted {
            Ok(()) => return Ok(progress),
            Err(error) => error,
        };
        if progress.durable > before.durable {
            failures = 0;
        }
        failures += 1;
        if !error.is_transient() || (!mirror.follow && failures >= ATTEMPTS_MAX) {
            return Err(error);
        }
        let after = backoff(failures);
        told(Event::Retrying { error: error.to_string(), after });
        sleep(after).await;
    }
}

/// What a source is: something with segments, or a database whose generations are only known beside the sink.
enum Origin {
    Log(Source),
    Database(Database),
}

fn dir<T>(path: &std::path::Path, opened: std::io::Result<T>) -> Result<T, MirrorError> {
    opened.map_err(|error| MirrorError::Dir { place: path.display().to_string(), error })
}

/// Doubles with each failure up to a cap, and is shortened by chance by up to half.
pub(crate) fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_LAST);
    let chance = RandomState::new().build_hasher().finish() % 1024;
    full.mul_f64(0.5 + chance as f64 / 2048.0)
}
