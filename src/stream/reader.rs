//! [`StreamReader`]: a range of a log on disk as a verified stream, also while somebody else is writing it.

use std::io;
use std::sync::Arc;

use super::batch::{Batch, Batcher};
use super::fault::{Fault, FaultKind, Tail};
use super::recover::{SurveyError, judge, segment_starts};
use crate::block::BlockPool;
use crate::format::commitlog::{HEADER_LEN, Version};
use crate::format::{Commit, ScanError};
use crate::limits::READ_BLOCK;
use crate::offset::{BytePos, Epoch, Offset};
use crate::repo::Repo;
use crate::segment::SegmentReader;

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
    /// What was read before is there no longer: the log was reset under us.
    #[error("the log no longer holds the commit read at offset {at}: it was reset")]
    Reset {
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
    stuck: Option<ScanError>,
    blocks: BlockPool,
}

/// A boundary in a segment.
#[derive(Clone, Copy, Debug)]
struct Place {
    segment: Offset,
    at: BytePos,
    version: Version,
}

#[derive(Debug)]
struct Open {
    reader: SegmentReader,
    batcher: Batcher,
    /// Where in the segment the batcher started.
    base: BytePos,
    read: BytePos,
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
        let starts = segment_starts(&*reader.repo)?;
        let Some(first) = starts.first().copied() else {
            return Ok(reader);
        };
        if from < first {
            return Err(ReadError::Pruned { from, first });
        }
        let segment = starts[starts.partition_point(|start| *start <= from) - 1];
        if segment == from {
            reader.place = Some(Place { segment, at: BytePos(0), version: Version::V1 });
        } else {
            reader.place = Some(reader.seek(segment, from)?);
        }
        Ok(reader)
    }

    /// The place of the commit that holds `from` in `segment`, or of the segment's end.
    fn seek(&mut self, segment: Offset, from: Offset) -> Result<Place, ReadError> {
        let mut reader = SegmentReader::open(&*self.repo, segment)?;
        let header = reader.header()?.map_err(|error| {
            ReadError::Damaged(Fault { segment, offset: segment, at: BytePos(0), kind: FaultKind::Format(error) })
        })?;
        let version = header.map_or(Version::V1, |header| header.version);
        let entry = reader.indexed(from, BytePos(u64::MAX), version, self.commit_bytes_max)?;
        let mut place = entry.map_or(BytePos(HEADER_LEN as u64), |entry| entry.value);
        let mut next = entry.map_or(segment, |entry| entry.key);
        while next < from {
            let Some(commit) = reader.commit_at(place, version, self.commit_bytes_max)? else {
                return Err(ReadError::Ahead { from, next });
            };
            if commit.end() > from {
                break;
            }
            (place, next, self.epoch) = (place.plus(commit.bytes), commit.end(), commit.epoch);
            self.last = Some((commit, segment, place));
        }
        self.next = next;
        Ok(Place { segment, at: place, version })
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
            if self.place.is_none() && !self.first_segment()? {
                return Ok(Read::End(Tail::Clean));
            }
            let batch = self.read_batch()?;
            if !batch.is_empty() {
                self.check(&batch)?;
                return Ok(Read::Batch(batch));
            }
            let ended = self.stuck.take();
            let (Some(place), Some(mut open)) = (self.place, self.open.take()) else {
                return Ok(Read::End(Tail::Clean));
            };
            let error = ended.or_else(|| open.batcher.finish().err());
            let following = segment_starts(&*self.repo)?.into_iter().find(|start| *start > place.segment);
            match following {
                Some(start) if start == self.next => {
                    self.place = Some(Place { segment: start, at: BytePos(0), version: Version::V1 });
                    second_look = false;
                    continue;
                }
                // The segment may have grown between our read and the appearance of its successor.
                Some(_) if !second_look => {
                    second_look = true;
                    continue;
                }
                _ => {}
            }
            let (tail, kind) = match &error {
                None => (Tail::Clean, None),
                Some(error) => {
                    let max = self.commit_bytes_max;
                    judge(&mut open.reader, place.at, self.next, place.version, max, None, error)?
                }
            };
            let gap = following.map(|found| FaultKind::Gap { found });
            if let Some(kind) = kind.or(gap) {
                return Err(self.fault(place, kind));
            }
            return Ok(Read::End(tail));
        }
    }

    fn fault(&self, place: Place, kind: FaultKind) -> ReadError {
        ReadError::Damaged(Fault { segment: place.segment, offset: self.next, at: place.at, kind })
    }

    /// An empty log may have got its first segment.
    fn first_segment(&mut self) -> Result<bool, ReadError> {
        let Some(first) = segment_starts(&*self.repo)?.first().copied() else {
            return Ok(false);
        };
        if first > self.next {
            return Err(ReadError::Pruned { from: self.next, first });
        }
        self.place = Some(if first == self.next {
            Place { segment: first, at: BytePos(0), version: Version::V1 }
        } else {
            self.seek(first, self.next)?
        });
        Ok(true)
    }

    /// Reads blocks until something whole came, or the segment ends.
    fn read_batch(&mut self) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let Some(mut place) = self.place else {
            return Ok(batch);
        };
        if self.stuck.is_some() {
            return Ok(batch);
        }
        if self.open.is_none() {
            let reader = self.reopen(place)?;
            let expected = (place.at.0 > 0).then_some(self.next);
            let batcher = Batcher::new(place.version, expected, self.commit_bytes_max);
            self.open = Some(Open { reader, batcher, base: place.at, read: place.at });
        }
        while batch.runs().next().is_none()
            && let Some(open) = &mut self.open
        {
            let mut block = self.blocks.take(READ_BLOCK, ());
            let count = open.reader.read_at(block.space(), open.read).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => {
                    let kind = FaultKind::Sealed { text: error.to_string() };
                    ReadError::Damaged(Fault { segment: place.segment, offset: self.next, at: place.at, kind })
                }
                _ => ReadError::Io(error),
            })?;
            if count == 0 {
                break;
            }
            open.read = open.read.plus(count as u64);
            let sound = open.batcher.push(block.filled(count), &mut batch);
            place.version = open.batcher.version();
            if let Err(error) = sound {
                self.stuck = Some(error);
                break;
            }
        }
        // A header alone is no news: it is read again with the first commit behind it.
        if batch.runs().next().is_none() {
            batch.parts.clear();
        } else if let Some(open) = &self.open {
            place.at = BytePos(open.base.0 + open.batcher.boundary().0);
        }
        if let Some(run) = batch.runs().last() {
            self.last = Some((run.last, place.segment, place.at));
        }
        self.place = Some(place);
        Ok(batch)
    }

    /// Opens the segment anew by its name, making sure it still holds what was read of it last.
    fn reopen(&self, place: Place) -> Result<SegmentReader, ReadError> {
        let opened = SegmentReader::open(&*self.repo, place.segment);
        let Some((commit, segment, end)) = self.last.filter(|(_, segment, _)| *segment == place.segment) else {
            return Ok(opened?);
        };
        let mut reader = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::Reset { at: commit.first }),
            reader => reader?,
        };
        let at = BytePos(end.0 - commit.bytes);
        debug_assert_eq!(segment, place.segment);
        match reader.commit_at(at, place.version, self.commit_bytes_max)? {
            Some(found) if found == commit => Ok(reader),
            _ => Err(ReadError::Reset { at: commit.first }),
        }
    }

    /// Offsets must go on and epochs must not fall from batch to batch.
    fn check(&mut self, batch: &Batch) -> Result<(), ReadError> {
        let Some(place) = self.place else {
            return Ok(());
        };
        for run in batch.runs() {
            if run.first != self.next {
                let found = run.first;
                let gap = found > self.next;
                let kind = if gap { FaultKind::Gap { found } } else { FaultKind::Fork { found } };
                return Err(self.fault(place, kind));
            }
            if run.epoch_first < self.epoch {
                let (current, found) = (self.epoch, run.epoch_first);
                return Err(self.fault(place, FaultKind::StaleEpoch { current, found }));
            }
            (self.next, self.epoch) = (run.end, run.last.epoch);
        }
        Ok(())
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
