//! [`StreamReader`]: a range of a log on disk as a verified stream, also while somebody else is writing it.

use std::io;
use std::sync::Arc;

use super::batch::{Batch, BatchError, Batcher, Part, Run};
use super::fault::{Fault, FaultKind, Tail};
use super::large::{LargeCommits, SegmentBytes};
use super::recover::{Edge, SurveyError, is_repeat, judge, segment_starts, walk};
use crate::block::BlockPool;
use crate::format::{Commit, FormatError, Framing, LogFormat, ScanError};
use crate::limits::{COMMIT_HELD_MAX, READ_BLOCK};
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::Repo;
use crate::segment::SegmentReader;

/// How far zeros behind the last commit are followed before they are taken for space not written yet: a source may have
/// preallocated a gibibyte, and its end is looked at often.
const ZEROS_LOOK: u64 = 1 << 20;

/// What a read gave.
#[derive(Debug)]
pub enum Read {
    /// Verified commits, and the headers before them.
    Batch(Batch),
    /// The log ends here, for now: a later read may find more.
    End(Tail),
}

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is damaged here.
    #[error("{0}")]
    Damaged(Fault),
    /// It starts behind the offset asked for.
    #[error("the log starts at offset {first}, behind {from}")]
    Pruned {
        /// The offset asked for.
        from: Offset,
        /// Its first.
        first: Offset,
    },
    /// It ends before the offset asked for.
    #[error("the log ends at offset {next}, before {from}")]
    Ahead {
        /// The offset asked for.
        from: Offset,
        /// Its end.
        next: Offset,
    },
    /// Another commit is at the place of one that was read before: proof that the log was reset.
    #[error("the log holds another commit at offset {at} than the one read there before: it was reset")]
    Reset {
        /// The offset of the commit that was read.
        at: Offset,
    },
    /// The last commit read cannot be found now. That proves nothing: files may be moved, restored or written again, so
    /// the next read looks for it again.
    #[error("the log does not hold the commit at offset {at} now, which was read from it before")]
    Missing {
        /// The commit's offset.
        at: Offset,
    },
    /// It cannot be read.
    #[error("cannot read the log")]
    Io(#[from] io::Error),
}

impl From<SurveyError> for ReadError {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Damaged(fault) => ReadError::Damaged(fault),
            SurveyError::Io(error) => ReadError::Io(error),
        }
    }
}

/// Reads a log in a repo as a stream of segment headers and whole, verified commits, from an offset on.
///
/// The range starts with a segment header exactly when it starts with a segment's first commit; an offset inside a
/// commit yields that commit whole. Zero tails and torn bytes are never part of it. The log may be written meanwhile:
/// growth, rotation, preallocated zeros, a half-written commit and a segment replaced by its sealed form are all normal.
///
/// ```
/// use logmirror::offset::Offset;
/// use logmirror::repo::FsRepo;
/// use logmirror::stream::{Read, StreamReader};
/// use std::sync::Arc;
///
/// let repo = Arc::new(FsRepo::open("segments/commitlog/whole")?);
/// let mut reader = StreamReader::open(repo, Offset(100), 64 << 20)?;
/// let mut commits = 0;
/// while let Read::Batch(batch) = reader.read()? {
///     commits += batch.runs().map(|run| run.commits).sum::<u64>();
/// }
/// assert_eq!(commits, 87); // commits of three entries, the first holding offset 100
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StreamReader {
    repo: Arc<dyn Repo>,
    commit_bytes_max: u64,
    /// The segment being read, and where.
    place: Option<Place>,
    open: Option<Open>,
    next: Offset,
    epoch: Epoch,
    /// The last commit handed out, its segment and its end there.
    last: Option<(Commit, Offset, BytePos)>,
    /// A sound batch was followed by an error, which is looked into with the next read.
    stuck: Option<Stuck>,
    blocks: BlockPool,
}

#[derive(Debug)]
enum Stuck {
    /// The bytes are no log.
    Stream(ScanError),
    /// They are, but not the one that goes on here.
    Fault(FaultKind),
}

/// A boundary in a segment.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: Offset,
    at: BytePos,
    /// How the segment's commits are framed, from its first on.
    framing: Framing,
}

impl Place {
    /// The front of a segment, whose header says the rest.
    fn front(segment: Offset) -> Place {
        Place { segment, at: BytePos(0), framing: Framing::default() }
    }
}

#[derive(Debug)]
struct Open {
    reader: SegmentReader,
    batcher: Batcher,
    /// Up to where it was read.
    read: BytePos,
    /// Up to where what the batcher cut was looked at.
    taken: BytePos,
}

impl StreamReader {
    /// Opens the log at the commit that holds `from`, or at its end.
    ///
    /// # Errors
    /// [`ReadError::Pruned`] and [`ReadError::Ahead`] when `from` is not in it; damage on the way there.
    pub fn open(repo: Arc<dyn Repo>, from: Offset, commit_bytes_max: u64) -> Result<StreamReader, ReadError> {
        let mut reader = StreamReader {
            repo,
            commit_bytes_max,
            place: None,
            open: None,
            next: from,
            epoch: Epoch(0),
            last: None,
            stuck: None,
            blocks: BlockPool::default(),
        };
        reader.locate()?;
        Ok(reader)
    }

    /// Finds the place of `next`; false while the log has no segments.
    fn locate(&mut self) -> Result<bool, ReadError> {
        let (starts, from) = (segment_starts(&*self.repo)?, self.next);
        let Some(first) = starts.first().copied() else {
            return Ok(false);
        };
        if from < first {
            return Err(ReadError::Pruned { from, first });
        }
        let segment = starts[starts.partition_point(|start| *start <= from) - 1];
        self.place = Some(Place::front(segment));
        if segment < from {
            self.place = Some(self.seek(segment, from)?);
        }
        Ok(true)
    }

    /// The place of the commit that holds `from` in `segment`, or of the segment's end.
    fn seek(&mut self, segment: Offset, from: Offset) -> Result<Place, ReadError> {
        let sealed = |error| unreadable(segment, segment, BytePos(0), error);
        let mut reader = SegmentReader::open(&*self.repo, segment).map_err(sealed)?;
        let header = reader.header().map_err(sealed)?.map_err(|error| {
            ReadError::Damaged(Fault { segment, offset: segment, at: BytePos(0), kind: FaultKind::Format(error) })
        })?;
        let (framing, max) = (header.unwrap_or(Framing::of(reader.format())), self.commit_bytes_max);
        let entry = reader.indexed(from, BytePos(u64::MAX), framing, max).map_err(sealed)?;
        let mut place = entry.map_or(BytePos(framing.header_len() as u64), |entry| entry.value);
        let mut next = entry.map_or(segment, |entry| entry.key);
        while next < from {
            let Some(commit) = reader.commit_at(place, framing, max).map_err(sealed)? else {
                let end = walk(&mut reader, entry, Epoch(0), max, None, |_: BytePos, _: &Commit| {})?;
                return Err(end.fault.map_or(ReadError::Ahead { from, next: end.next }, ReadError::Damaged));
            };
            if is_repeat(self.last.map(|(last, ..)| last), &commit) {
                place = place.plus(commit.bytes);
                continue;
            }
            if commit.first != next {
                let found = commit.first;
                let kind = if found > next { FaultKind::Gap { found } } else { FaultKind::Fork { found } };
                return Err(ReadError::Damaged(Fault { segment, offset: next, at: place, kind }));
            }
            if commit.end() > from {
                break;
            }
            (place, next, self.epoch) = (place.plus(commit.bytes), commit.end(), commit.epoch);
            self.last = Some((commit, segment, place));
        }
        self.next = next;
        // The first commit comes with the header.
        let at = if next == segment { BytePos(0) } else { place };
        Ok(Place { segment, at, framing })
    }

    /// The offset after the last commit handed out.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Reads on.
    ///
    /// # Errors
    /// See [`ReadError`]. Damage may be momentary while somebody writes: another read looks again.
    pub fn read(&mut self) -> Result<Read, ReadError> {
        let mut second_look = false;
        loop {
            if self.place.is_none() && !self.locate()? {
                return Ok(Read::End(Tail::Clean));
            }
            let batch = self.read_batch()?;
            if !batch.is_empty() {
                return Ok(Read::Batch(batch));
            }
            let stuck = self.stuck.take();
            let (Some(place), Some(mut open)) = (self.place, self.open.take()) else {
                continue;
            };
            let following = segment_starts(&*self.repo)?.into_iter().find(|start| *start > place.segment);
            if following == Some(self.next) {
                self.place = Some(Place::front(self.next));
                second_look = false;
                continue;
            }
            let (tail, kind) = match stuck.or_else(|| open.batcher.finish().err().map(Stuck::Stream)) {
                None => (Tail::Clean, None),
                Some(Stuck::Fault(kind)) => (Tail::Clean, Some(kind)),
                Some(Stuck::Stream(error)) => {
                    let edge = Edge { next: self.next, at: place.at, framing: place.framing };
                    let judged = judge(&mut open.reader, edge, self.commit_bytes_max, None, ZEROS_LOOK, &error);
                    match judged.map_err(|error| self.unreadable(place, error))? {
                        // A header that is being written, or was when the writer ended: a head without a commit.
                        (Tail::Torn { bytes }, None) if place.at.0 == 0 && bytes < header_len(&open.reader) => {
                            (Tail::Zeros { bytes }, None)
                        }
                        judged => judged,
                    }
                }
            };
            let gap = following.map(|found| FaultKind::Gap { found });
            match kind.or(gap) {
                None => return Ok(Read::End(tail)),
                // The segment may have grown between our read and the look at what follows.
                Some(_) if !second_look => second_look = true,
                Some(kind) => {
                    let Place { segment, at, .. } = place;
                    return Err(ReadError::Damaged(Fault { segment, offset: self.next, at, kind }));
                }
            }
        }
    }

    /// Reads blocks until something whole came, or the segment ends.
    fn read_batch(&mut self) -> Result<Batch, ReadError> {
        let mut sound = Batch::default();
        let Some(place) = self.place.filter(|_| self.stuck.is_none()) else {
            return Ok(sound);
        };
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                let Some(mut reader) = self.reopen(place)? else {
                    return Ok(sound);
                };
                let expected = (place.at.0 > 0).then_some(self.next);
                let framing = self.framing_of(&mut reader, place).map_err(|error| self.unreadable(place, error))?;
                let expected = expected.or((reader.format() == LogFormat::Wal).then_some(place.segment));
                let bytes = Arc::new(SegmentBytes::new(self.repo.clone(), place.segment));
                let large = LargeCommits::InSource { bytes, start: place.at.0 };
                let batcher = Batcher::new(framing, expected, self.commit_bytes_max).keeping(large, COMMIT_HELD_MAX);
                Open { reader, batcher, read: place.at, taken: place.at }
            }
        };
        while sound.is_empty() && self.stuck.is_none() {
            let mut block = self.blocks.take(READ_BLOCK, ());
            let count = open.reader.read_at(block.space(), open.read).map_err(|error| self.unreadable(place, error))?;
            if count == 0 {
                break;
            }
            open.read = open.read.plus(count as u64);
            let mut batch = Batch::default();
            let scanned = open.batcher.push(block.filled(count), &mut batch);
            for part in batch.parts {
                if let Err(kind) = self.take(part, place.segment, &mut open.taken, &mut sound) {
                    self.stuck = Some(Stuck::Fault(kind));
                    break;
                }
            }
            match scanned {
                Ok(()) => {}
                Err(BatchError::Stream(error)) => {
                    self.stuck.get_or_insert(Stuck::Stream(error));
                }
                Err(error @ BatchError::Spool { .. }) => return Err(ReadError::Io(io::Error::other(error))),
            }
        }
        self.open = Some(open);
        Ok(sound)
    }

    /// What a walk needs to start at `place`.
    fn framing_of(&self, reader: &mut SegmentReader, place: Place) -> io::Result<Framing> {
        if place.at.0 > 0 {
            return reader.framing_at(place.at, place.framing);
        }
        // A WAL's header does not tell where it goes on, only the segment before does.
        Ok(match reader.format() {
            LogFormat::Commitlog => Framing::default(),
            LogFormat::Wal => reader.header()?.ok().flatten().unwrap_or(Framing::Wal(None)),
        })
    }

    /// Looks at what comes at byte `at` of the segment: offsets must go on and epochs must not fall. Only a header at its
    /// front is one; it is handed out with the first commit.
    fn take(&mut self, part: Part, segment: Offset, at: &mut BytePos, sound: &mut Batch) -> Result<(), FaultKind> {
        let run = match part {
            Part::Header(framing, bytes) if at.0 == 0 => {
                *at = BytePos(bytes.len() as u64);
                self.place = self.place.map(|place| Place { framing, ..place });
                return Ok(());
            }
            Part::Header(_, bytes) => {
                return Err(FaultKind::Format(FormatError::Header { found: bytes.to_vec() }));
            }
            Part::Run(run) => run,
        };
        if at.0 == 0 {
            let found = run.slices.first().map(|slice| slice[..slice.len().min(16)].to_vec()).unwrap_or_default();
            return Err(FaultKind::Format(FormatError::NotALog { found }));
        }
        let end = at.plus(run.bytes);
        if let Some(run) = self.without_repeat(run) {
            if run.first != self.next {
                let found = run.first;
                return Err(if found > self.next { FaultKind::Gap { found } } else { FaultKind::Fork { found } });
            }
            if run.epoch_first < self.epoch {
                return Err(FaultKind::StaleEpoch { current: self.epoch, found: run.epoch_first });
            }
            (self.next, self.epoch, self.last) = (run.end, run.last.epoch, Some((run.last, segment, end)));
            sound.parts.extend(run.header.clone().map(|header| Part::Header(run.framing, header)));
            sound.parts.push(Part::Run(run));
        }
        *at = end;
        self.place = self.place.map(|place| Place { at: end, ..place });
        Ok(())
    }

    /// A run that starts with the last commit once more goes on without it.
    fn without_repeat(&self, run: Run) -> Option<Run> {
        let last = self.last.map(|(commit, ..)| commit);
        if run.first >= self.next || !run.commits().next().is_some_and(|(_, first)| is_repeat(last, &first)) {
            return Some(run);
        }
        let second = run.commits().nth(1);
        second.map(|(at, commit)| run.after(at, &commit, 1))
    }

    /// Opens the segment being read by its name, making sure that the log still holds the last commit handed out. `None`
    /// when reading goes on at another place now.
    fn reopen(&mut self, place: Place) -> Result<Option<SegmentReader>, ReadError> {
        if let Some((commit, segment, end)) = self.last {
            match self.holds(&commit, segment, end) {
                Ok(true) => {}
                Ok(false) => return self.find_last(&commit).map(|()| None),
                // Pruned, if the log goes on where the next commit is expected.
                Err(error) if error.kind() == io::ErrorKind::NotFound && segment != place.segment => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return self.find_last(&commit).map(|()| None);
                }
                Err(error) => return Err(self.unreadable(place, error)),
            }
        }
        match SegmentReader::open(&*self.repo, place.segment) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.gone(place, error).map(|()| None),
            opened => opened.map(Some).map_err(|error| self.unreadable(place, error)),
        }
    }

    /// Whether `commit` ends at byte `end` of `segment`.
    fn holds(&self, commit: &Commit, segment: Offset, end: BytePos) -> io::Result<bool> {
        let mut holder = SegmentReader::open(&*self.repo, segment)?;
        let framing = holder.header()?.ok().flatten().unwrap_or(Framing::of(holder.format()));
        let found = holder.commit_at(BytePos(end.0 - commit.bytes), framing, self.commit_bytes_max)?;
        Ok(found.as_ref() == Some(commit))
    }

    /// The segment being read has no file. An empty head may be removed, as SpacetimeDB does when it opens a log, and the
    /// segment before goes on.
    fn gone(&mut self, place: Place, error: io::Error) -> Result<(), ReadError> {
        if segment_starts(&*self.repo)?.contains(&place.segment) {
            // A link that leads nowhere, or a name that was taken again just now.
            let text = format!("segment {} is listed but cannot be opened: {error}", place.segment);
            return Err(ReadError::Io(io::Error::new(error.kind(), text)));
        }
        match self.last {
            Some((commit, ..)) => self.find_last(&commit),
            None => {
                self.place = None;
                Ok(())
            }
        }
    }

    /// Goes back to the last commit handed out, wherever the log holds it now, and reads on after it.
    fn find_last(&mut self, commit: &Commit) -> Result<(), ReadError> {
        let at = commit.first;
        let starts = segment_starts(&*self.repo)?;
        match starts.first().copied() {
            None => return Err(ReadError::Missing { at }),
            Some(first) if first > self.next => return Err(ReadError::Pruned { from: self.next, first }),
            // Pruned up to the next commit.
            Some(first) if first == self.next => {
                self.place = Some(Place::front(first));
                return Ok(());
            }
            Some(_) => {}
        }
        let mut fresh = match StreamReader::open(self.repo.clone(), at, self.commit_bytes_max) {
            Err(ReadError::Ahead { .. }) => return Err(ReadError::Missing { at }),
            fresh => fresh?,
        };
        let Some(Place { segment, at: from, .. }) = fresh.place else {
            return Err(ReadError::Missing { at });
        };
        let Read::Batch(batch) = fresh.read()? else {
            return Err(ReadError::Missing { at });
        };
        let first = batch.runs().next().and_then(|run| run.commits().next());
        match (first, fresh.place) {
            (Some((_, found)), Some(Place { framing, .. })) if found == *commit => {
                let front = BytePos(framing.header_len() as u64);
                let end = from.max(front).plus(commit.bytes);
                self.place = Some(Place { segment, at: end, framing });
                self.last = Some((*commit, segment, end));
                self.stuck = None;
                Ok(())
            }
            _ => Err(ReadError::Reset { at }),
        }
    }

    fn unreadable(&self, place: Place, error: io::Error) -> ReadError {
        unreadable(place.segment, self.next, place.at, error)
    }

    /// The commit at `at` in this log, if one starts there: a fork shows in its checksum.
    ///
    /// # Errors
    /// When the log cannot be read or is damaged before it.
    pub fn commit_at(&self, at: Offset) -> Result<Option<Commit>, ReadError> {
        let mut reader = match StreamReader::open(self.repo.clone(), at, self.commit_bytes_max) {
            Err(ReadError::Ahead { .. } | ReadError::Pruned { .. }) => return Ok(None),
            reader => reader?,
        };
        let Read::Batch(batch) = reader.read()? else {
            return Ok(None);
        };
        let first = batch.runs().next().and_then(|run| run.commits().next());
        Ok(first.map(|(_, commit)| commit).filter(|commit| commit.first == at))
    }
}

fn header_len(reader: &SegmentReader) -> u64 {
    reader.format().header_len() as u64
}

/// A sealed segment that does not decompress is damage; all else is trouble with the files.
fn unreadable(segment: Offset, offset: Offset, at: BytePos, error: io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            ReadError::Damaged(Fault { segment, offset, at, kind: FaultKind::Sealed { text: error.to_string() } })
        }
        _ => ReadError::Io(error),
    }
}
