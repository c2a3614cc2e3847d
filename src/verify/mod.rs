//! Is a log whole? Reads every byte of it, checks every checksum, offset and epoch, and names each fault with its place.
//! Knows one log in one repo; never writes.
//!
//! Segments do not depend on one another until their ends are compared, so all cores share them out; a large one is cut
//! into pieces at index entries that hold. What the pieces give is then put together in order. An offset index is a
//! hint: a piece that does not end exactly where the next begins is read once more without it.

mod base;
mod check;
mod index;
mod plan;
mod report;
mod stitch;

pub use report::{BaseReport, FoundFault, Note, Report, SegmentReport};

use std::fmt;
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crate::format::name;
use crate::format::wal::FIRST_FRAME;
use crate::limits::{COMMIT_BYTES_MAX, VERIFY_PIECE_BYTES};
use crate::offset::Offset;
use crate::repo::Repo;
use crate::segment::base::{BaseReader, KnownBase};
use crate::stream::{DurableMark, MirrorRecord, Placed, recorded_base, segment_starts};
use base::CheckedBase;
use check::{Checked, Checker};
use plan::{Piece, plan};

/// How to verify.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// A commit longer than this is a fault.
    pub commit_bytes_max: u64,
    /// How many threads read and check; `None` is one a core.
    pub threads: Option<NonZeroUsize>,
    /// A segment of twice this length or more is cut into pieces of about this length, so that all threads share it.
    pub piece_bytes: NonZeroU64,
    /// Told now and then how far it is, from any of the threads.
    pub on_progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// What is known of the base from outside of the directory; what a mirror record in it says counts in any case.
    pub base: KnownBase,
}

impl Default for Options<'_> {
    fn default() -> Self {
        let piece_bytes = VERIFY_PIECE_BYTES;
        Options {
            commit_bytes_max: COMMIT_BYTES_MAX,
            threads: None,
            piece_bytes,
            on_progress: None,
            base: KnownBase::default(),
        }
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { commit_bytes_max, threads, piece_bytes, base, on_progress: _ } = self;
        let mut shown = f.debug_struct("Options");
        shown
            .field("commit_bytes_max", commit_bytes_max)
            .field("threads", threads)
            .field("piece_bytes", piece_bytes)
            .field("base", base);
        shown.finish_non_exhaustive()
    }
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the base and of segments read, uncompressed. What is read twice counts twice.
    pub read: u64,
    /// Bytes of the base and of all segments when it began.
    pub total: u64,
}

/// Verifies the log in `repo`. Faults are part of the answer.
///
/// ```
/// use logmirror::repo::FsRepo;
/// use logmirror::verify::{Options, verify};
/// use std::sync::Arc;
///
/// let repo = Arc::new(FsRepo::open("segments/commitlog/bit-flip")?);
/// let report = verify(repo, &Options::default())?;
/// assert_eq!((report.commits, report.next.0), (118, 354)); // all that is whole from the start on
/// assert_eq!((report.faults[0].segment.0, report.faults[0].offset.0), (333, 354));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// When a file cannot be read.
pub fn verify(repo: Arc<dyn Repo>, options: &Options<'_>) -> io::Result<Report> {
    let threads = options.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let log = Log::open(repo, &options.base)?;
    let plan = plan(&*log.repo, &log.starts, options);
    let read = AtomicU64::new(0);
    let total = plan.bytes + BaseReader::open(&*log.repo).ok().flatten().map_or(0, |base| base.bytes());
    let on_read = |bytes| {
        let read = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(told) = options.on_progress {
            told(Progress { read, total });
        }
    };
    let check = |piece: &Piece| log.checker(options, on_read, |_| ()).check(piece);
    let base = base::check(&*log.repo, &log.known_base(options)?, on_read)?;
    let mut segments: Vec<Vec<(Piece, Checked)>> = log.starts.iter().map(|_| Vec::new()).collect();
    for (piece, checked) in plan.pieces.iter().zip(in_parallel(threads, &plan.pieces, check)?) {
        segments[piece.segment].push((*piece, checked));
    }
    let (joined, again): (Vec<_>, Vec<_>) = segments.into_iter().map(Checked::join).unzip();
    let again = in_parallel(threads, &again, |piece: &Option<Piece>| piece.as_ref().map(check).transpose())?;
    let segments = joined.into_iter().zip(again).filter_map(|(joined, rest)| match (joined, rest) {
        (Some(mut joined), Some(rest)) => {
            joined.extend(rest);
            Some(joined)
        }
        (joined, rest) => joined.or(rest),
    });
    let mut report = stitch::stitch(&log.starts, segments.collect(), log.durable, log.missing);
    report.add_base(base);
    Ok(report)
}

/// Verifies the log in `repo` in order, on this thread, and hands out each sound commit on the way.
///
/// # Errors
/// When a file cannot be read.
pub fn verify_each(
    repo: Arc<dyn Repo>,
    options: &Options<'_>,
    mut on_commit: impl FnMut(Placed),
) -> io::Result<Report> {
    let log = Log::open(repo, &options.base)?;
    let base = base::check(&*log.repo, &log.known_base(options)?, |_| ())?;
    let mut whole = Vec::with_capacity(log.starts.len());
    for segment in 0..log.starts.len() {
        whole.push(log.checker(options, |_| (), &mut on_commit).check(&Piece::whole(segment))?);
    }
    let mut report = stitch::stitch(&log.starts, whole, log.durable, log.missing);
    report.add_base(base);
    Ok(report)
}

impl Report {
    /// Adds what was found of the base, which comes before everything else.
    fn add_base(&mut self, base: CheckedBase) {
        if base.report.is_some() && self.segments.is_empty() {
            self.next = FIRST_FRAME;
        }
        self.base = base.report;
        self.error = base.faults.first().map(|fault| fault.message.clone()).or(self.error.take());
        self.faults.splice(0..0, base.faults);
        self.notes.splice(0..0, base.notes);
    }
}

/// A log to verify.
struct Log {
    repo: Arc<dyn Repo>,
    starts: Vec<Offset>,
    /// Up to where the log was durable once, when it keeps a mark of that. It is read before any segment, so a writer
    /// at work cannot move it past what we find.
    durable: Option<Offset>,
    /// What a mirror lost at its start, as its record tells.
    missing: Option<Range<Offset>>,
}

impl Log {
    fn open(repo: Arc<dyn Repo>, base: &KnownBase) -> io::Result<Log> {
        let record = MirrorRecord::read(&*repo)?;
        let durable = DurableMark::read(&*repo)?.offset().or(record.as_ref().map(|record| record.durable));
        let starts = segment_starts(&*repo)?;
        // A WAL that holds nothing yet ends where it starts.
        let is_based = || Ok::<_, io::Error>(base.exists || repo.list()?.iter().any(|file| file == name::BASE));
        let is_unused = starts.is_empty() && durable == Some(FIRST_FRAME) && is_based()?;
        let durable = durable.filter(|_| !is_unused);
        let missing = record.and_then(|record| record.missing(starts.first().copied()));
        Ok(Log { repo, starts, durable, missing })
    }

    fn known_base(&self, options: &Options<'_>) -> io::Result<KnownBase> {
        let recorded = recorded_base(&*self.repo)?;
        Ok(if options.base.exists { options.base } else { recorded })
    }

    fn checker<R: Fn(u64), C: FnMut(Placed)>(
        &self,
        options: &Options<'_>,
        on_read: R,
        on_commit: C,
    ) -> Checker<'_, R, C> {
        let (repo, starts, durable) = (&*self.repo, &*self.starts, self.durable);
        Checker { repo, starts, durable, commit_bytes_max: options.commit_bytes_max, on_read, on_commit }
    }
}

/// Does all jobs and gives the results in their order. After an error no further job is begun.
fn in_parallel<J: Sync, R: Send>(
    threads: usize,
    jobs: &[J],
    work: impl Fn(&J) -> io::Result<R> + Sync,
) -> io::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(job) = jobs.get(at)
        {
            let result = work(job);
            if result.is_err() {
                next.store(jobs.len(), Ordering::Relaxed);
            }
            done.push((at, result));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(jobs.len())).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
