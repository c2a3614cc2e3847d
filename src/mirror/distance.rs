//! How far a sink is behind its source. The source is measured beside the mirror, so that the distance is known also while
//! nothing can be sent.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::endpoint::{Mirror, Place};
use super::run::{Event, Progress};
use crate::api::Positions;
use crate::client::{Client, positions};
use crate::format::{Commit, Framing};
use crate::limits::{
    COMMIT_BYTES_MAX, MEASURE_COMMITS_MAX, MEASURE_EVERY, MEASURE_LATE, MEASURE_LOG_EVERY, MEASURE_TIME_MAX,
};
use crate::offset::{BytePos, Generation, Offset};
use crate::repo::FsRepo;
use crate::segment::{Entry, SegmentReader};
use crate::stream::{current_dir, recorded_generation, segment_starts};

/// How far a sink is behind its source, as last measured. A source that is far ahead is measured roughly. While the source
/// cannot be measured, its end and the distance are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distance {
    /// The offset after the source's last commit; none where that does not compare with the sink.
    pub source_next: Option<Offset>,
    /// Offsets in the source that are not durable in the sink; none until both ends are known.
    pub offsets: Option<u64>,
    /// Their bytes, and those of `unfinished`.
    pub bytes: Option<u64>,
    /// Bytes at the end of a directory that is the source that are no whole commit.
    pub unfinished: u64,
    /// For how long the oldest of them has been seen in the source; zero when there are none.
    pub age: Duration,
    /// Bytes of the source that were moved since the start, or are still to be moved.
    pub source_bytes: u64,
    /// Whether the source was found, more than once in a row, to end before the sink.
    pub is_short: bool,
}

/// What happens, seen from outside: passes events on, and knows where source and sink were last.
pub(super) struct Observer<F> {
    events: F,
    progress: Option<Progress>,
    /// Whether the sink held a log or was opened once.
    held: bool,
    /// How often in a row the source was found to end before the sink.
    short: u32,
    source: Option<Measured>,
    /// When the source was first seen to reach an offset, ascending.
    seen: VecDeque<(Offset, Instant)>,
}

/// Where a source ends.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// The generation that it is in, where that is known.
    generation: Option<Generation>,
    next: Option<Offset>,
    /// Bytes that are not durable in the sink, and that were not handed to it.
    behind: u64,
    left: u64,
    /// Bytes after `next` that are no whole commit; none where the end was not reached in time.
    unfinished: Option<u64>,
}

impl<F: FnMut(Event)> Observer<F> {
    pub(super) fn new(events: F) -> Self {
        Observer { events, progress: None, held: false, short: 0, source: None, seen: VecDeque::new() }
    }

    pub(super) fn tell(&mut self, event: Event) {
        match &event {
            Event::Started { from, held, .. } => {
                let before = self.progress.unwrap_or_default();
                if *from < before.durable {
                    // Of another generation, whose offsets say nothing of this one.
                    self.seen.clear();
                }
                self.progress = Some(Progress { next: *from, durable: *from, ..before });
                (self.held, self.short) = (self.held || *held, 0);
            }
            Event::Opened { .. } => self.held = true,
            Event::Moved(progress) => {
                self.saw(progress.next);
                self.progress = Some(*progress);
            }
            _ => {}
        }
        (self.events)(event);
    }

    fn saw(&mut self, next: Offset) {
        if self.seen.back().is_some_and(|(seen, _)| *seen >= next) {
            return;
        }
        if self.seen.len() >= SEEN_MAX {
            // Every other one: the age is less exact then.
            let mut at = 0;
            self.seen.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
        self.seen.push_back((next, Instant::now()));
    }

    /// Records where the source ends, which was found after `before`.
    fn measured(&mut self, measured: Measured, before: Option<Progress>) {
        if let Some(next) = measured.next {
            self.saw(next);
        }
        self.source = Some(measured);
        let Progress { bytes, next, durable, counted, .. } = self.progress.unwrap_or_default();
        // Offsets of one generation say nothing of another.
        let is_same = measured.generation.is_none_or(|generation| generation == counted.0);
        while self.seen.front().is_some_and(|(seen, _)| *seen <= durable) {
            self.seen.pop_front();
        }
        // What was durable before the source was looked at must be in it, unless it lost its end or was reset.
        let is_end = measured.unfinished.is_some();
        let is_short =
            is_same && is_end && measured.next.is_some_and(|found| before.is_some_and(|before| found < before.durable));
        self.short = if is_short { self.short + 1 } else { 0 };
        let known = self.progress.is_some() && self.held && !is_short && is_same;
        let source_next = measured.next.filter(|_| is_same).map(|found| if known { found.max(next) } else { found });
        let offsets = source_next.filter(|_| known).map(|end| end.0.saturating_sub(durable.0));
        let unfinished = measured.unfinished.unwrap_or(0);
        let behind = offsets.map(|offsets| if offsets == 0 { 0 } else { measured.behind } + unfinished);
        let age = match (offsets, self.seen.front()) {
            (Some(1..), Some((_, since))) => since.elapsed(),
            _ => Duration::ZERO,
        };
        let source_bytes = bytes + measured.left;
        // What shows once may have been measured before the sink moved on.
        let is_short = self.short > 1;
        let distance = Distance { source_next, offsets, bytes: behind, unfinished, age, source_bytes, is_short };
        (self.events)(Event::Measured(distance));
    }
}

impl<F: FnMut(Event)> Observer<F> {
    /// Reports that the source cannot be measured now: what was measured before no longer counts.
    fn not_measured(&mut self) {
        self.source = None;
        let source_bytes = self.progress.unwrap_or_default().bytes;
        (self.events)(Event::Measured(Distance { source_bytes, ..Distance::default() }));
    }
}

/// Marks kept of when the source was seen to grow.
const SEEN_MAX: usize = 1024;

/// Measures the source of a mirror without end, whatever the mirror does meanwhile.
pub(super) async fn measure<F: FnMut(Event)>(
    mirror: &Mirror,
    wal: &SharedWal,
    observer: &Mutex<Observer<F>>,
) -> Infallible {
    let mut gauge = Gauge::of(mirror, wal);
    loop {
        let lock = || observer.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = lock().progress;
        let mut measuring = pin!(gauge.measure(progress));
        let (back, measured) = loop {
            match timeout(MEASURE_LATE, &mut measuring).await {
                Ok(done) => break done,
                Err(_elapsed) => lock().not_measured(),
            }
        };
        match measured {
            Ok(measured) => lock().measured(measured, progress),
            // The mirror itself says what is wrong.
            Err(error) => {
                log::debug!("the source cannot be measured: {error}");
                lock().not_measured();
            }
        }
        gauge = back;
        sleep(gauge.every()).await;
    }
}

/// Where a database ends, as it was last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalSeen {
    /// The offset in the log after the frames it has.
    pub(super) next: Offset,
    pub(super) frame_bytes: u64,
}

pub(super) type SharedWal = Arc<Mutex<Option<WalSeen>>>;

enum Gauge {
    Dir(Box<DirGauge>),
    Log(Option<Client>),
}

impl Gauge {
    fn of(mirror: &Mirror, wal: &SharedWal) -> Gauge {
        match &mirror.source {
            Place::Url(url) => Gauge::Log(Client::with_options(url, &mirror.http).ok()),
            Place::Dir(path) => Gauge::Dir(Box::new(DirGauge {
                path: path.clone(),
                commit_bytes_max: mirror.commit_bytes_max,
                known: None,
                wal: wal.clone(),
            })),
        }
    }

    fn every(&self) -> Duration {
        match self {
            Gauge::Log(_) => MEASURE_LOG_EVERY,
            _ => MEASURE_EVERY,
        }
    }

    async fn measure(self, progress: Option<Progress>) -> (Gauge, io::Result<Measured>) {
        match self {
            Gauge::Dir(mut gauge) => {
                if let Some(measured) = of_wal(&gauge.wal, progress) {
                    return (Gauge::Dir(gauge), Ok(measured));
                }
                let done = tokio::task::spawn_blocking(move || {
                    let measured = gauge.measure(progress);
                    (gauge, measured)
                });
                match done.await {
                    Ok((gauge, measured)) => (Gauge::Dir(gauge), measured),
                    Err(error) => (Gauge::Log(None), Err(io::Error::other(error))),
                }
            }
            Gauge::Log(Some(client)) => {
                let measured = of_log(&client, progress).await;
                (Gauge::Log(Some(client)), measured)
            }
            Gauge::Log(None) => (self, Err(io::ErrorKind::NotFound.into())),
        }
    }
}

/// Of a database, if the source is one and was read.
fn of_wal(seen: &SharedWal, progress: Option<Progress>) -> Option<Measured> {
    let WalSeen { next, frame_bytes } = (*seen.lock().unwrap_or_else(PoisonError::into_inner))?;
    let bytes = |from: Offset| next.0.saturating_sub(from.0) * frame_bytes;
    let progress = progress.unwrap_or_default();
    let (sent, durable) = (progress.uncounted(), progress.durable);
    Some(Measured {
        generation: None,
        next: Some(next),
        behind: bytes(durable),
        left: bytes(sent),
        unfinished: Some(0),
    })
}

async fn of_log(client: &Client, progress: Option<Progress>) -> io::Result<Measured> {
    let status = client.status().await.map_err(io::Error::other)?;
    let Positions { generation, first, durable: next, bytes, .. } = positions(&status).map_err(io::Error::other)?;
    let progress = progress.unwrap_or_default();
    let (sent, durable) = (progress.uncounted(), progress.durable);
    let share = |from: Offset| {
        let (all, wanted) = (next.0.saturating_sub(first.0), next.0.saturating_sub(from.max(first).0));
        if all == 0 { 0 } else { (bytes as f64 * wanted as f64 / all as f64) as u64 }
    };
    let (behind, left) = (share(durable), share(sent));
    Ok(Measured { generation: Some(generation), next: Some(next), behind, left, unfinished: Some(0) })
}

/// Where a directory ends, roughly, and how many bytes it has from `from` on.
pub(super) fn measure_dir(path: PathBuf, commit_bytes_max: u64, from: Offset) -> io::Result<(Offset, u64)> {
    let mut gauge = DirGauge { path, commit_bytes_max, known: None, wal: SharedWal::default() };
    let at = Progress { next: from, durable: from, ..Progress::default() };
    let Measured { next, behind, .. } = gauge.measure(Some(at))?;
    Ok((next.unwrap_or_default(), behind))
}

/// How many bytes of whole commits a directory has from `from` on; none where its end is not found at once.
pub(super) fn bytes_in_dir(path: PathBuf, from: Offset) -> io::Result<Option<u64>> {
    let mut gauge = DirGauge { path, commit_bytes_max: COMMIT_BYTES_MAX, known: None, wal: SharedWal::default() };
    let at = Progress { next: from, durable: from, ..Progress::default() };
    let Measured { behind, unfinished, .. } = gauge.measure(Some(at))?;
    Ok(unfinished.map(|_| behind))
}

/// Measures a directory by its index and the little after its last entry.
struct DirGauge {
    path: PathBuf,
    commit_bytes_max: u64,
    /// The end that was found last: segment, offset and byte.
    known: Option<(Offset, Entry)>,
    wal: SharedWal,
}

impl DirGauge {
    fn measure(&mut self, progress: Option<Progress>) -> io::Result<Measured> {
        let repo = FsRepo::open(current_dir(&self.path)?)?;
        let starts = segment_starts(&repo)?;
        let generation = recorded_generation(&repo)?;
        let Some(last) = starts.last().copied() else {
            return Ok(Measured { generation, next: Some(Offset::ZERO), behind: 0, left: 0, unfinished: Some(0) });
        };
        let end = self.end(&repo, last)?;
        self.known = Some((last, end));
        let progress = progress.unwrap_or_default();
        let (sent, durable) = (progress.uncounted(), progress.durable);
        let behind = self.bytes(&repo, &starts, durable, end)?;
        let left = if sent == durable { behind } else { self.bytes(&repo, &starts, sent, end)? };
        let unfinished = self.unfinished(&repo, last, end)?;
        Ok(Measured { generation, next: Some(end.key), behind, left, unfinished })
    }

    /// The end of the last segment, or a place before it when that is far.
    fn end(&self, repo: &FsRepo, last: Offset) -> io::Result<Entry> {
        let mut reader = SegmentReader::open(repo, last)?;
        let Some(framing) = reader.header()?.ok().flatten() else {
            return Ok(Entry { key: last, value: BytePos(0) });
        };
        let len = BytePos(reader.len()?);
        let front = Entry { key: last, value: BytePos(framing.header_len() as u64) };
        let known = self.known.filter(|(segment, at)| *segment == last && at.value <= len).map(|(_, at)| at);
        let indexed = reader.indexed(Offset(u64::MAX), len, framing, self.commit_bytes_max)?;
        let from = known.into_iter().chain(indexed).fold(front, |far, at| if at.value > far.value { at } else { far });
        let since = Instant::now();
        self.hop(&mut reader, framing, from, |_| since.elapsed() < MEASURE_TIME_MAX)
    }

    /// How many bytes after `end` in the last segment are no whole commit, not counting zeros, which are space set aside; none
    /// when there is one.
    fn unfinished(&self, repo: &FsRepo, last: Offset, end: Entry) -> io::Result<Option<u64>> {
        let mut reader = SegmentReader::open(repo, last)?;
        let bytes = reader.len()?.saturating_sub(end.value.0);
        if bytes == 0 {
            return Ok(Some(0));
        }
        let framing = reader.header()?.ok().flatten().unwrap_or(Framing::of(reader.format()));
        let mut block = [0; 4096];
        let count = reader.read_at(&mut block, end.value)?;
        if block[..count].iter().all(|byte| *byte == 0) {
            return Ok(Some(0));
        }
        // The end may not have been reached in time.
        let is_more = reader.commit_at(end.value, framing, self.commit_bytes_max)?.is_some();
        Ok((!is_more).then_some(bytes))
    }

    /// The entry after the commits from `from` on, while they follow each other and `go_on`.
    fn hop(
        &self,
        reader: &mut SegmentReader,
        framing: Framing,
        from: Entry,
        mut go_on: impl FnMut(&Commit) -> bool,
    ) -> io::Result<Entry> {
        let mut at = from;
        while let Some(commit) = reader.commit_at(at.value, framing, self.commit_bytes_max)? {
            if commit.first != at.key || !go_on(&commit) {
                break;
            }
            at = Entry { key: commit.end(), value: at.value.plus(commit.bytes) };
        }
        Ok(at)
    }

    /// Bytes from offset `from` to `end`, which is in the last segment.
    fn bytes(&self, repo: &FsRepo, starts: &[Offset], from: Offset, end: Entry) -> io::Result<u64> {
        if from >= end.key {
            return Ok(0);
        }
        let held = starts.partition_point(|start| *start <= from).saturating_sub(1);
        let mut total = 0;
        for (at, start) in starts.iter().enumerate().skip(held) {
            let following = starts.get(at + 1).copied();
            let mut reader = SegmentReader::open(repo, *start)?;
            let len = if following.is_some() { reader.len()? } else { end.value.0 };
            let before = match from > *start {
                true => self.position(&mut reader, from, following.unwrap_or(end.key), len)?,
                false => 0,
            };
            total += len.saturating_sub(before);
        }
        Ok(total)
    }

    /// The byte of offset `from` in a segment of `len` bytes that ends at offset `end`; roughly, where no index entry is near.
    fn position(&self, reader: &mut SegmentReader, from: Offset, end: Offset, len: u64) -> io::Result<u64> {
        let Some(framing) = reader.header()?.ok().flatten() else {
            return Ok(0);
        };
        let start = reader.start();
        let front = Entry { key: start, value: BytePos(framing.header_len() as u64) };
        let near = reader.indexed(from, BytePos(len), framing, self.commit_bytes_max)?.unwrap_or(front);
        let mut hops = 0;
        let found = self.hop(reader, framing, near, |commit| {
            hops += 1;
            hops <= MEASURE_COMMITS_MAX && commit.end() <= from
        })?;
        if found.key >= from || hops <= MEASURE_COMMITS_MAX {
            return Ok(found.value.0);
        }
        let (all, before) = (end.0.saturating_sub(start.0).max(1), from.0 - start.0);
        Ok((len as f64 * before as f64 / all as f64) as u64)
    }
}
