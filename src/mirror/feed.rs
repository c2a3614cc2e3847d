//! [`Feed`]: a range of a log as raw bytes, optionally without end. Never past `durable`, and no decoding on the way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::budget::Budget;
use super::error::Error;
use super::files::Files;
use super::log::{Log, State, View};
use crate::limits::{FILES_WAIT, FILES_WAIT_ANSWERING};
use crate::offset::{BytePos, Offset};
use crate::repo::{RepoFile, is_out_of_files};
use crate::segment::{Found, SegmentReader};
use crate::stream::SegmentInfo;

/// A place in a log: a segment and a byte position in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    segment: Offset,
    at: BytePos,
}

#[derive(Debug)]
enum Opened {
    Plain(Arc<dyn RepoFile>),
    Compressed(Box<SegmentReader>),
}

/// A stream of raw log bytes out of a log.
#[derive(Debug)]
pub struct Feed {
    log: Arc<Log>,
    budget: Arc<Budget>,
    files: Arc<Files>,
    view: watch::Receiver<View>,
    /// Where it is; none while the log has no segment.
    place: Option<Place>,
    /// Where it ends; none while that is not known.
    end: Option<Place>,
    /// The offset it was told to end at.
    to: Option<Offset>,
    /// Whether it waits for more at the durable end.
    follow: bool,
    /// The files of the log when it was opened that often.
    openings: u64,
    open: Option<(Offset, Opened)>,
    /// Whether the answer that it is for has begun: it waits longer for a file then.
    answering: bool,
    stop: watch::Receiver<bool>,
    commit_bytes_max: u64,
}

impl Feed {
    /// From the commit that holds `from` up to the one before `to`, or to the durable end; with `follow` it goes on
    /// from there as commits become durable. It starts with a segment header exactly when it starts with the first
    /// commit of a segment.
    ///
    /// # Errors
    /// When `from` is not in the log, or the log is damaged.
    pub(super) async fn range(
        log: Arc<Log>,
        (budget, files): (Arc<Budget>, Arc<Files>),
        range: (Offset, Option<Offset>),
        follow: bool,
        stop: watch::Receiver<bool>,
        commit_bytes_max: u64,
    ) -> Result<Feed, Error> {
        log.readable()?;
        let (from, to) = range;
        let view = log.view();
        if from < view.first {
            return Err(Error::Pruned { from, first: view.first });
        }
        if view.cut_short && from >= view.durable {
            return Err(view.trouble());
        }
        if from > view.durable {
            return Err(Error::Ahead { from, next: view.durable, generation: log.generation() });
        }
        if to.is_some_and(|to| to < from) {
            return Err(Error::Invalid(format!("the range ends (to) before it starts (from {from})")));
        }
        let to = match to {
            _ if follow => to,
            // It ends with the reason why there is no more.
            to if view.cut_short && to.is_none_or(|to| to > view.durable) => to,
            to => Some(to.unwrap_or(view.durable).min(view.durable)),
        };
        let (watch, openings) = (log.watch(), view.openings);
        let (place, end, open, answering) = (None, None, None, false);
        let mut feed = Feed {
            log,
            budget,
            files,
            view: watch,
            place,
            end,
            to,
            follow,
            openings,
            open,
            answering,
            stop,
            commit_bytes_max,
        };
        feed.place = feed.locate(&view, from).await?;
        feed.find_end(&view).await?;
        Ok(feed)
    }

    /// A range of bytes of one segment, all of them durable.
    pub(super) fn segment(
        log: Arc<Log>,
        (budget, files): (Arc<Budget>, Arc<Files>),
        segment: &SegmentInfo,
        bytes: Range<u64>,
        stop: watch::Receiver<bool>,
        commit_bytes_max: u64,
    ) -> Feed {
        let place = |at| Some(Place { segment: segment.start, at: BytePos(at) });
        let (place, end, view) = (place(bytes.start), place(bytes.end), log.watch());
        let openings = view.borrow().openings;
        let (to, follow, open, answering) = (None, false, None, false);
        Feed { log, budget, files, view, place, end, to, follow, openings, open, answering, stop, commit_bytes_max }
    }

    /// The next bytes; `None` at the end, or when the service shuts down.
    ///
    /// # Errors
    /// When the log cannot be read. The stream is over then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let view = self.view.borrow_and_update().clone();
            if self.openings != view.openings {
                (self.openings, self.open) = (view.openings, None);
            }
            if self.place.is_none() {
                // The log was empty: its first segment starts where we wait.
                self.place = view.segments().next().map(|first| Place { segment: first.start, at: BytePos(0) });
            }
            if self.end.is_none() {
                self.find_end(&view).await?;
            }
            if let Some(place) = self.place {
                if self.end.is_some_and(|end| place >= end) {
                    return Ok(None);
                }
                let durable = view.segment(place.segment).map_or(0, |segment| segment.bytes);
                let last = self.end.filter(|end| end.segment == place.segment).map_or(durable, |end| end.at.0);
                if place.at.0 < last {
                    return self.read(place, last - place.at.0).await.map(Some);
                }
                if let Some(following) = view.segments().find(|segment| segment.start > place.segment) {
                    self.place = Some(Place { segment: following.start, at: BytePos(0) });
                    continue;
                }
            } else if self.to.is_some_and(|to| to <= view.durable) {
                return Ok(None);
            }
            match &view.state {
                _ if *self.stop.borrow() => return Ok(None),
                State::Ended(_) => return Ok(None),
                State::Damaged(_) => return Err(view.trouble()),
                // A log that failed is opened again: its followers wait.
                State::Ok | State::Failed(_) if self.follow => {}
                State::Ok | State::Failed(_) => return Err(view.trouble()),
            }
            self.answering = true;
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return Ok(None) },
                _ = self.stop.changed() => {}
            }
        }
    }

    /// How long it waits for a file.
    fn patience(&self) -> Duration {
        if self.answering { FILES_WAIT_ANSWERING } else { FILES_WAIT }
    }

    async fn read(&mut self, place: Place, bytes: u64) -> Result<Bytes, Error> {
        if self.open.as_ref().is_none_or(|(segment, _)| *segment != place.segment) {
            // Nothing is held while it waits for a file that another reader may hold.
            self.open = None;
            let (log, segment) = (self.log.clone(), place.segment);
            let open = move || match SegmentReader::open(&**log.repo(), segment) {
                Err(error) if is_out_of_files(&error) => Err(error),
                opened => Ok(opened.map_err(|error| log.unreadable(error))),
            };
            let reader = self.files.opened(self.patience(), open).await?;
            let opened = match reader.plain() {
                Some(file) => Opened::Plain(file.clone()),
                None => Opened::Compressed(Box::new(reader)),
            };
            self.open = Some((segment, opened));
        }
        let mut block = self.budget.block(bytes).await?;
        let at = place.at;
        let (count, block) = match self.open.take() {
            Some((segment, Opened::Plain(file))) => {
                // What is in the page cache is copied here and now; only a real read from disk is worth a thread.
                let read = match file.read_cached(block.space(), at.0)? {
                    Some(count) if count > 0 => (count, block),
                    _ => {
                        let file = file.clone();
                        blocking(move || Ok((file.read_at(block.space(), at.0)?, block))).await?
                    }
                };
                self.open = Some((segment, Opened::Plain(file)));
                read
            }
            Some((segment, Opened::Compressed(mut reader))) => {
                let (count, block, reader) =
                    blocking(move || Ok((reader.read_at(block.space(), at)?, block, reader))).await?;
                self.open = Some((segment, Opened::Compressed(reader)));
                (count, block)
            }
            None => (0, block),
        };
        if count == 0 {
            let text = format!("segment {} ends at byte {at}, {bytes} bytes too early", place.segment);
            return Err(Error::Damaged(text.into()));
        }
        self.answering = true;
        self.place = Some(Place { at: at.plus(count as u64), ..place });
        Ok(block.filled(count))
    }

    /// Finds the place where the stream ends, as soon as it is durable.
    async fn find_end(&mut self, view: &View) -> Result<(), Error> {
        if let Some(to) = self.to.filter(|to| *to <= view.durable)
            && self.end.is_none()
        {
            self.end = self.locate(view, to).await?;
        }
        Ok(())
    }

    /// The place of the commit that holds `offset`: byte 0 of a segment for its first commit, so that its header comes
    /// along; the end of the last segment for the durable end.
    async fn locate(&self, view: &View, offset: Offset) -> Result<Option<Place>, Error> {
        let Some(info) = view.segment_of(offset) else {
            return Ok(None);
        };
        let place = |at| Some(Place { segment: info.start, at });
        if offset <= info.start {
            return Ok(place(BytePos(0)));
        }
        if offset >= info.end {
            return Ok(place(BytePos(info.bytes)));
        }
        let (repo, max) = (self.log.repo().clone(), self.commit_bytes_max);
        let find = move || {
            let mut reader = SegmentReader::open(&*repo, info.start)?;
            let found = reader.seek(offset, BytePos(info.bytes), info.framing, max)?;
            // Byte 0 for the first commit, of which `offset` may be a later entry.
            let at = |found: Found| if found.next == info.start { BytePos(0) } else { found.at };
            Ok(found.filter(|found| found.next <= offset).map(at).ok_or_else(|| {
                Error::Damaged(format!("offset {offset} is not where it must be in segment {}", info.start).into())
            }))
        };
        Ok(place(self.files.opened(self.patience(), find).await?))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Error::Unavailable("a read was interrupted".into())),
    }
}
