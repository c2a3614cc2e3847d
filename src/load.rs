//! A load on a service: live writers and followers, and how long everything takes. What `logmirror bench` runs.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::api::AckLine;
use crate::client::{Client, ClientError, HttpOptions};
use crate::format::commitlog::{SegmentHeader, Version, encode_commit};
use crate::format::{Commit, LogFormat};
use crate::offset::{Epoch, Offset};
use crate::stream::{Batch, BatchError, Batcher};

/// Latencies are kept from a microsecond to a minute, to two digits.
const LATENCY_US_MAX: u64 = 60_000_000;

/// What to do to a service.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Writers, each with a log of its own.
    pub writers: usize,
    /// Followers, shared out over the logs.
    pub followers: usize,
    /// Bytes of records in a commit.
    pub record_bytes: usize,
    /// Commits sent in one piece.
    pub piece_commits: usize,
    /// Commits a writer may have under way without an ack.
    pub window_commits: usize,
    /// How long.
    pub time: Duration,
}

/// Why a load cannot run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The service did not play along.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A follower got what is no sound log.
    #[error("a follower received a damaged stream: {0}")]
    Received(#[from] BatchError),
    /// An append was refused.
    #[error("the service ended an append: {0}")]
    Ended(String),
    /// A file for the ceilings cannot be written.
    #[error("cannot measure the disk: {0}")]
    Disk(#[from] io::Error),
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// One in a hundred is worse.
    pub p99_ms: f64,
    /// The worst.
    pub max_ms: f64,
    /// How many there were.
    pub count: u64,
}

/// What came of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Commits made durable.
    pub commits: u64,
    /// Commits a second, all writers together.
    pub commits_per_second: f64,
    /// Megabytes (10⁶) a second.
    pub mb_per_second: f64,
    /// From handing a commit to the connection until its ack is here.
    pub ack: Latency,
    /// From the ack at the writer until the commit is at a follower; 0 when it was there before.
    pub follow_lag: Latency,
}

/// The ceilings of a disk, in the same run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Commits a second when each is written and synced by itself.
    pub fdatasync_per_second: f64,
    /// Megabytes a second of a plain write with one sync at its end.
    pub raw_mb_per_second: f64,
}

struct Track {
    state: Mutex<TrackState>,
}

struct TrackState {
    /// When the piece that ends at an offset was sent; those not acked yet.
    sent: VecDeque<(Offset, Instant)>,
    /// When each piece was acked, by the offset it ends at.
    acked: VecDeque<(Offset, Instant)>,
    /// When followers got up to an offset that is not acked here yet.
    early: u64,
    ack: Histogram<u64>,
    lag: Histogram<u64>,
}

impl Track {
    fn state(&self) -> MutexGuard<'_, TrackState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).unwrap_or_else(|never| unreachable!("these bounds hold: {never}"))
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record((took.as_micros() as u64).clamp(1, LATENCY_US_MAX));
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    let ms = |us: u64| us as f64 / 1000.0;
    Latency {
        p50_ms: ms(histogram.value_at_quantile(0.5)),
        p99_ms: ms(histogram.value_at_quantile(0.99)),
        max_ms: ms(histogram.max()),
        count: histogram.len(),
    }
}

/// Runs a load on logs whose URLs are `url` with a number behind it; they are created and stay.
///
/// # Errors
/// See [`LoadError`].
pub async fn run(url: &str, http: &HttpOptions, load: Load) -> Result<Report, LoadError> {
    let deadline = Instant::now() + load.time;
    let start = Instant::now();
    let mut writers = Vec::new();
    let mut followers = Vec::new();
    for n in 0..load.writers {
        let client = Client::with_options(&format!("{url}-{n}"), http)?;
        client.create(LogFormat::Commitlog, None).await?;
        let state =
            TrackState { sent: VecDeque::new(), acked: VecDeque::new(), early: 0, ack: histogram(), lag: histogram() };
        let track = Arc::new(Track { state: Mutex::new(state) });
        for _ in (n..load.followers).step_by(load.writers) {
            followers.push(tokio::spawn(follow(client.clone(), track.clone())));
        }
        writers.push((tokio::spawn(write(client, load, deadline, track.clone())), track));
    }
    let (mut commits, mut ack, mut lag) = (0, histogram(), histogram());
    for (writer, track) in writers {
        commits += writer.await.map_err(|_| LoadError::Ended("a writer panicked".into()))??;
        let state = track.state();
        // Histograms of the same kind always add up.
        let _ = (ack.add(&state.ack), lag.add(&state.lag));
    }
    let seconds = start.elapsed().as_secs_f64();
    followers.iter().for_each(tokio::task::JoinHandle::abort);
    let commits_per_second = commits as f64 / seconds;
    let mb_per_second = commits_per_second * commit_bytes(load.record_bytes) / 1e6;
    Ok(Report { commits, commits_per_second, mb_per_second, ack: latency(&ack), follow_lag: latency(&lag) })
}

fn commit_bytes(record_bytes: usize) -> f64 {
    let mut bytes = Vec::new();
    encode_commit(Version::V1, Offset::ZERO, Epoch(0), 1, &vec![0; record_bytes], &mut bytes);
    bytes.len() as f64
}

/// One piece of a log: commits of one entry each, behind a header if it is the first.
fn piece(from: Offset, commits: usize, records: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(commits * (records.len() + 32));
    if from == Offset::ZERO {
        bytes.extend_from_slice(&SegmentHeader { version: Version::V1 }.encode());
    }
    for n in 0..commits as u64 {
        encode_commit(Version::V1, Offset(from.0 + n), Epoch(0), 1, records, &mut bytes);
    }
    bytes.into()
}

/// Writes to one log until the deadline; how many commits became durable.
async fn write(client: Client, load: Load, deadline: Instant, track: Arc<Track>) -> Result<u64, LoadError> {
    let window = Arc::new(Semaphore::new((load.window_commits / load.piece_commits).max(1)));
    let (permits, sends) = (window.clone(), track.clone());
    let records = vec![0x5a; load.record_bytes];
    let body = stream::unfold(Offset::ZERO, move |from| {
        let (permits, sends, records) = (permits.clone(), sends.clone(), records.clone());
        async move {
            permits.acquire_owned().await.ok()?.forget();
            if Instant::now() >= deadline {
                return None;
            }
            let bytes = piece(from, load.piece_commits, &records);
            let end = Offset(from.0 + load.piece_commits as u64);
            sends.state().sent.push_back((end, Instant::now()));
            Some((Ok(bytes), end))
        }
    });
    let mut acks = client.append_live(Offset::ZERO, body.boxed()).await?;
    loop {
        match acks.next().await? {
            Some(AckLine::Durable { durable }) => window.add_permits(take_ack(&track, durable)),
            Some(AckLine::Outcome(outcome)) => {
                take_ack(&track, outcome.durable);
                return Ok(outcome.durable.0);
            }
            Some(AckLine::Error(body)) => return Err(LoadError::Ended(body.message)),
            None => return Err(LoadError::Ended("the answer ended early".into())),
        }
    }
}

/// Notes the ack of everything before `durable`; how many pieces that was.
fn take_ack(track: &Track, durable: Offset) -> usize {
    let now = Instant::now();
    let mut state = track.state();
    let mut pieces = 0;
    while let Some((end, sent)) = state.sent.pop_front_if(|(end, _)| *end <= durable) {
        record(&mut state.ack, now - sent);
        if end.0 <= state.early {
            record(&mut state.lag, Duration::ZERO);
        } else {
            state.acked.push_back((end, now));
        }
        pieces += 1;
    }
    pieces
}

async fn follow(client: Client, track: Arc<Track>) -> Result<(), LoadError> {
    let mut bytes = client.read(Offset::ZERO, None, true).await?;
    let mut batcher = Batcher::new(Version::V1, None, u64::MAX);
    while let Some(chunk) = bytes.try_next().await? {
        let now = Instant::now();
        let mut batch = Batch::default();
        batcher.push(chunk, &mut batch)?;
        let Some(end) = batch.runs().map(|run| Commit::end(&run.last)).max() else {
            continue;
        };
        let mut state = track.state();
        state.early = state.early.max(end.0);
        while let Some((_, acked)) = state.acked.pop_front_if(|(piece, _)| *piece <= end) {
            record(&mut state.lag, now - acked);
        }
    }
    Ok(())
}

/// One commit a request, one after the other: what a client that waits for each answer gets, in commits a second.
///
/// # Errors
/// See [`LoadError`].
pub async fn lockstep(url: &str, http: &HttpOptions, record_bytes: usize, time: Duration) -> Result<f64, LoadError> {
    let client = Client::with_options(url, http)?;
    client.create(LogFormat::Commitlog, None).await?;
    let records = vec![0x5a; record_bytes];
    let (start, mut next) = (Instant::now(), Offset::ZERO);
    while start.elapsed() < time {
        next = client.append(Some(next), piece(next, 1, &records)).await?.durable;
    }
    Ok(next.0 as f64 / start.elapsed().as_secs_f64())
}

/// Measures what the disk under `dir` would allow. Blocks.
///
/// # Errors
/// [`LoadError::Disk`].
pub fn ceilings(dir: &Path, record_bytes: usize, time: Duration) -> Result<Ceilings, LoadError> {
    let records = vec![0x5a; record_bytes];
    let mut file = tempfile::tempfile_in(dir)?;
    let (start, mut commits) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        file.write_all(&piece(Offset(commits + 1), 1, &records))?;
        file.sync_data()?;
        commits += 1;
    }
    let fdatasync_per_second = commits as f64 / start.elapsed().as_secs_f64();
    let block = vec![0x5a; 1 << 20];
    let mut file = tempfile::tempfile_in(dir)?;
    let (start, mut blocks) = (Instant::now(), 0_u64);
    while start.elapsed() < time && blocks < 1024 {
        file.write_all(&block)?;
        blocks += 1;
    }
    file.sync_data()?;
    let raw_mb_per_second = (blocks << 20) as f64 / 1e6 / start.elapsed().as_secs_f64();
    Ok(Ceilings { fdatasync_per_second, raw_mb_per_second })
}
