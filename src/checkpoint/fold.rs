//! Folding: the database as of a frame, from the base of a generation and its segments.
//!
//! Two passes. The first walks over all frames up to the one asked for, verifies each, and notes which frame holds a page
//! last; a transaction counts once its commit frame is there. The second copies the base, writes the noted pages in the
//! order of their numbers, verifying once more what it copies, and cuts the file to the size that the commit says. Only
//! then is the result synced, renamed and its directory synced, so a crash at any step leaves what was there before or
//! the whole result, and folding again gives the same bytes. Nothing is ever taken away: base and segments stay.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde::Serialize;

use super::draft::Draft;
use crate::format::FormatError;
use crate::format::name;
use crate::format::wal::{Chain, FIRST_FRAME, FRAME_HEADER_LEN, WalHeader};
use crate::limits::OPEN_SEGMENTS_MAX;
use crate::offset::{BytePos, Generation, Offset};
use crate::repo::{Repo, RepoFile};
use crate::segment::base::{self, BaseFault};
use crate::segment::frames::{BASE, FrameError, Frames, frame_at, segment_name, segment_starts};
use crate::sqlite::image::Newest;
use crate::stream::{DurableMark, MirrorRecord};

/// Why there is no database as of that frame.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// No transaction ends with the frame asked for.
    #[error("no transaction ends with frame {frame}; {}", around(.before, .after))]
    NotACommit {
        /// The frame asked for.
        frame: Offset,
        /// The last commit before it; 0 is the start of the generation.
        before: Offset,
        /// The first one behind it, if the log has one.
        after: Option<Offset>,
    },
    /// A segment is damaged before the frame asked for.
    #[error("{error}; whole up to frame {last}")]
    Damaged {
        /// What is wrong, and where.
        error: FrameError,
        /// The last commit before it.
        last: Offset,
    },
    /// Frames are missing between two segments, or are there twice.
    #[error("frame {expected} should come next, but the next segment starts at {found}; whole up to frame {last}")]
    Gap {
        /// The frame that should come.
        expected: Offset,
        /// The one the next segment starts with.
        found: Offset,
        /// The last commit before it.
        last: Offset,
    },
    /// Frames that were durable once are gone from the end of the log.
    #[error("the log ends with frame {last}, but was durable up to frame {durable}")]
    Lost {
        /// The last commit that is there.
        last: Offset,
        /// The last frame that was durable.
        durable: Offset,
    },
    /// The base is damaged, or missing.
    #[error("{0}")]
    Base(BaseFault),
    /// Base and log are not of the same database.
    #[error("the database has pages of {database} bytes and its log of {log}")]
    PageSize {
        /// As the first page says.
        database: u32,
        /// As the log says.
        log: u32,
    },
    /// Neither the base nor a frame holds a page.
    #[error("page {page} of {size} is neither in the base nor in the log: the base is cut, or of another generation")]
    Missing {
        /// The first such page.
        page: u32,
        /// Pages of the database.
        size: u32,
    },
    /// The next generation has frames of its own already.
    #[error("generation {generation} has begun: its base stays as it is")]
    Begun {
        /// Which one.
        generation: Generation,
    },
    /// The disk is at fault.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for FoldError {
    fn from(error: io::Error) -> FoldError {
        match BaseFault::of(&error) {
            Some(fault) => FoldError::Base(fault.clone()),
            None => FoldError::Io(error),
        }
    }
}

fn around(before: &Offset, after: &Option<Offset>) -> String {
    match after {
        Some(after) => format!("{before} and {after} are the nearest commits"),
        None => format!("{before} is the last commit"),
    }
}

impl FoldError {
    /// Whether another frame should be asked for.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, FoldError::NotACommit { .. } | FoldError::Begun { .. })
    }

    /// Whether the data is at fault, and not the disk or the one who asks.
    #[must_use]
    pub fn is_data(&self) -> bool {
        let disk = matches!(self, FoldError::Io(_) | FoldError::Damaged { error: FrameError::Io { .. }, .. });
        !disk && !self.is_usage()
    }

    /// One word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            FoldError::NotACommit { .. } => "not-a-commit",
            FoldError::Gap { .. } => "gap",
            FoldError::Lost { .. } => "lost",
            FoldError::Begun { .. } => "begun",
            FoldError::Io(_) | FoldError::Damaged { error: FrameError::Io { .. }, .. } => "io",
            FoldError::Damaged { .. } | FoldError::Base(_) | FoldError::PageSize { .. } | FoldError::Missing { .. } => {
                "corrupt"
            }
        }
    }
}

/// A database as of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Folded {
    /// The commit frame; 0: the base as it is.
    pub frame: Offset,
    /// Bytes of a page; none when the log has no segment.
    pub page_size: Option<u32>,
    /// Bytes of the database.
    pub bytes: u64,
    /// Bytes behind the last transaction that are no whole one, as a crash leaves them. They are left out.
    pub torn: u64,
}

/// Writes the database as of frame `to`, or the last commit, of the generation in `source` into `target` as `name`.
/// Frame 0 is the base as it is; a base that is not there is an empty file. The bytes 18 and 19 of a database, which say
/// that it has a WAL, stay as they are. As `base.db` it gets checksums beside it.
///
/// After Ok it is whole and survives power loss. After Err what had that name before is still there.
///
/// # Errors
/// See [`FoldError`].
pub fn fold(source: &dyn Repo, to: Option<Offset>, target: Arc<dyn Repo>, name: &str) -> Result<Folded, FoldError> {
    if name == BASE {
        // An earlier attempt may have been cut off between the sums and the base.
        base::recover(&*target)?;
    }
    let (draft, folded) = prepare(source, to, target, format!("{name}.tmp"))?;
    match name {
        BASE => draft.publish_base()?,
        _ => draft.publish(name)?,
    }
    Ok(folded)
}

/// Folds a generation of `log`, up to its last commit, into the base of the next one, whose directory is made if need be.
/// After Ok that base survives power loss; making the next generation the current one is up to the caller. Done again
/// after a crash or an error, it ends the same.
///
/// # Errors
/// See [`FoldError`].
pub fn into_next(log: &dyn Repo, generation: Generation) -> Result<Folded, FoldError> {
    let next = Generation(generation.0.saturating_add(1));
    let source = log.dir(&name::generation(generation))?;
    let dir = name::generation(next);
    let target = match log.create_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => log.dir(&dir)?,
        made => made?,
    };
    if !segment_starts(&*target)?.is_empty() {
        return Err(FoldError::Begun { generation: next });
    }
    let folded = fold(&*source, None, target, BASE)?;
    log.sync_dir()?;
    Ok(folded)
}

/// As [`fold`], but the result is synced and still has its draft's name.
pub(super) fn prepare(
    source: &dyn Repo,
    to: Option<Offset>,
    target: Arc<dyn Repo>,
    draft: String,
) -> Result<(Draft, Folded), FoldError> {
    let state = survey(source, to)?;
    let mut draft = Draft::create(target, draft)?;
    match write(source, &state, &mut draft) {
        Ok(bytes) => {
            let page_size = state.header.map(|header| header.page_size);
            Ok((draft, Folded { frame: state.end, page_size, bytes, torn: state.torn }))
        }
        Err(error) => {
            draft.discard();
            Err(error)
        }
    }
}

/// A frame, and the checksum that it goes on from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verified {
    frame: Offset,
    before: Chain,
}

/// The state as of a commit.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) header: Option<WalHeader>,
    starts: Vec<Offset>,
    /// The last commit frame.
    end: Offset,
    pub(super) newest: Newest<Verified>,
    torn: u64,
}

/// Walks over all frames up to and with `to`.
pub(super) fn survey(source: &dyn Repo, to: Option<Offset>) -> Result<State, FoldError> {
    if to == Some(Offset(0)) {
        return Ok(State::default());
    }
    // Before any segment, so a writer at work cannot move it past what is found.
    let durable = match DurableMark::read(source)?.offset() {
        None => MirrorRecord::read(source)?.map(|record| record.durable),
        durable => durable,
    };
    let mut state = State { starts: segment_starts(source)?, ..State::default() };
    let mut from = None;
    let mut next = FIRST_FRAME;
    for (nth, segment) in state.starts.clone().into_iter().enumerate() {
        let last_segment = nth + 1 == state.starts.len();
        if segment != next {
            return Err(stopped(&state, to, FoldError::Gap { expected: next, found: segment, last: state.end }, next));
        }
        let mut frames = match Frames::open(source, segment, from) {
            Ok(frames) => frames,
            Err(error) if last_segment && is_torn(None, &error, durable)? => {
                state.torn = source.open(&segment_name(segment))?.bytes()?;
                break;
            }
            Err(error) => return Err(damaged(&state, to, error)),
        };
        let header = *state.header.insert(frames.from().header);
        let ended = walk(&mut frames, to, &mut state);
        match ended {
            Ok(Walked::Reached) => return Ok(state),
            Ok(Walked::Ended) if frames.next_number().0 == state.end.0 + 1 => {}
            // Only whole transactions are in a segment that is not the last.
            Ok(Walked::Ended) if !last_segment => {
                let at = frame_at(segment, &header, Offset(state.end.0 + 1));
                let (frame, trailing) = (frames.next_number(), frames.bytes_from(at).unwrap_or(0));
                return Err(damaged(&state, to, FrameError::Cut { segment, frame, at, trailing }));
            }
            Ok(Walked::Ended) => state.torn = behind(&frames, segment, &header, &state)?,
            Err(FoldError::Damaged { error, .. }) if last_segment && is_torn(Some(&frames), &error, durable)? => {
                state.torn = behind(&frames, segment, &header, &state)?;
            }
            Err(FoldError::Damaged { error, .. }) => return Err(damaged(&state, to, error)),
            Err(error) => return Err(error),
        }
        (from, next) = (Some(frames.from()), frames.next_number());
    }
    if let Some(durable) = durable.filter(|durable| durable.0 > state.end.0 + 1) {
        return Err(FoldError::Lost { last: state.end, durable: Offset(durable.0 - 1) });
    }
    match to {
        Some(frame) => Err(FoldError::NotACommit { frame, before: state.end, after: None }),
        None => Ok(state),
    }
}

enum Walked {
    /// The frame asked for is there, and ends a transaction.
    Reached,
    /// The segment is over.
    Ended,
}

/// Takes in the transactions of one segment, up to and with the one that ends with `to`.
fn walk(frames: &mut Frames, to: Option<Offset>, state: &mut State) -> Result<Walked, FoldError> {
    loop {
        let last = state.end;
        let Some((frame, _)) = frames.next().map_err(|error| FoldError::Damaged { error, last })? else {
            return Ok(Walked::Ended);
        };
        state.newest.add(frame.page, frame.size, Verified { frame: frame.number, before: frame.before });
        if frame.size == 0 {
            continue;
        }
        if let Some(to) = to.filter(|to| *to < frame.number) {
            return Err(FoldError::NotACommit { frame: to, before: last, after: Some(frame.number) });
        }
        state.end = frame.number;
        if to == Some(frame.number) {
            return Ok(Walked::Reached);
        }
    }
}

/// Bytes behind the last transaction.
fn behind(frames: &Frames, segment: Offset, header: &WalHeader, state: &State) -> Result<u64, FoldError> {
    let at = frame_at(segment, header, Offset(state.end.0 + 1));
    frames.bytes_from(at).map_err(|error| FoldError::Damaged { error, last: state.end })
}

/// Whether what stands at the end of the last segment is what a crash left, rather than damage: behind the durable end
/// if that is known, else with nothing sound behind it.
fn is_torn(frames: Option<&Frames>, error: &FrameError, durable: Option<Offset>) -> Result<bool, FoldError> {
    let Some(frame) = error.frame() else {
        return Ok(false);
    };
    match (durable, frames) {
        (Some(durable), _) => Ok(frame >= durable),
        (None, Some(frames)) => match frames.sound_behind() {
            Ok(sound) => Ok(!sound),
            Err(FrameError::Io { error, .. }) => Err(error.into()),
            Err(_) => Ok(false),
        },
        (None, None) => {
            Ok(matches!(error, FrameError::Cut { .. } | FrameError::Corrupt { error: FormatError::Zeros, .. }))
        }
    }
}

fn damaged(state: &State, to: Option<Offset>, error: FrameError) -> FoldError {
    let at = error.frame();
    let error = FoldError::Damaged { error, last: state.end };
    match at {
        Some(at) => stopped(state, to, error, at),
        None => error,
    }
}

/// The walk stops before frame `at`. When that is behind the frame asked for, it only looked for the next commit.
fn stopped(state: &State, to: Option<Offset>, error: FoldError, at: Offset) -> FoldError {
    match to {
        Some(frame) if frame < at => FoldError::NotACommit { frame, before: state.end, after: None },
        _ => error,
    }
}

/// Writes base and pages, cuts and syncs; returns the length.
fn write(source: &dyn Repo, state: &State, draft: &mut Draft) -> Result<u64, FoldError> {
    draft.copy_base(source)?;
    let Some(header) = state.header else {
        return draft.finish(None);
    };
    draft.base_done(header.page_size)?;
    let mut segments = Segments::new(source, header, state);
    let read = |page, newest, run: &mut Vec<u8>| segments.read(page, newest, run);
    state.newest.fold(header.page_size, read, |first, run| Ok(draft.write(first, run)?))?;
    draft.finish(state.newest.size())
}

/// The segments that pages are copied from.
pub(super) struct Segments<'a> {
    source: &'a dyn Repo,
    header: WalHeader,
    starts: &'a [Offset],
    last: Offset,
    open: HashMap<Offset, Arc<dyn RepoFile>>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(source: &'a dyn Repo, header: WalHeader, state: &'a State) -> Segments<'a> {
        Segments { source, header, starts: &state.starts, last: state.end, open: HashMap::new() }
    }

    /// Adds the page of a frame to `run`, verified.
    pub(super) fn read(&mut self, page: u32, newest: Verified, run: &mut Vec<u8>) -> Result<(), FoldError> {
        let behind = self.starts.partition_point(|start| *start <= newest.frame);
        let segment = behind.checked_sub(1).map_or(FIRST_FRAME, |nth| self.starts[nth]);
        let file = self.file(segment)?;
        let at = frame_at(segment, &self.header, newest.frame);
        let mut head = [0; FRAME_HEADER_LEN];
        let from = run.len();
        run.resize(from + self.header.page_size as usize, 0);
        let mut count = file.read_at(&mut head, at.0)?;
        count += file.read_at(&mut run[from..], at.0 + head.len() as u64)?;
        let frame = newest.frame;
        let error = if (count as u64) < self.header.frame_len() {
            FrameError::Cut { segment, frame, at, trailing: count as u64 }
        } else {
            match self.header.check(newest.before, &head, &run[from..]) {
                Ok(claim) if claim.page == page => return Ok(()),
                Ok(_) => corrupt(segment, frame, at, FormatError::NotALog { found: head[..16].to_vec() }),
                Err(error) => corrupt(segment, frame, at, error),
            }
        };
        Err(FoldError::Damaged { error, last: self.last })
    }

    fn file(&mut self, segment: Offset) -> Result<Arc<dyn RepoFile>, FoldError> {
        if let Some(file) = self.open.get(&segment) {
            return Ok(file.clone());
        }
        if self.open.len() >= OPEN_SEGMENTS_MAX {
            self.open.clear();
        }
        let file = self.source.open(&segment_name(segment))?;
        self.open.insert(segment, file.clone());
        Ok(file)
    }
}

fn corrupt(segment: Offset, frame: Offset, at: BytePos, error: FormatError) -> FrameError {
    FrameError::Corrupt { segment, frame, at, error }
}
