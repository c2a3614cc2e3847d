//! The end of a generation in a replica: its frames are put into the database, or the pages of another one's base take their place.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::super::error::SyncError;
use super::super::replica_sum::ReplicaSum;
use super::super::{PAGE_LEN, Position, base};
use super::{READERS_PATIENCE, Replica};
use crate::format::database::{VERSIONS, WAL_VERSIONS};
use crate::limits::LIBSQL_PAGE_SIZE;
use crate::repo::opened;
use crate::sqlite::DatabaseError;
use crate::sqlite::image::Image;

impl Replica {
    /// Ends a generation: puts its frames into the database and goes on with the first frame of the next.
    ///
    /// # Errors
    /// [`SyncError::Ahead`] when it holds frames that did not come from the server, and [`DatabaseError::ReadInTheWay`] where a
    /// read takes long; nothing was changed then.
    pub fn fold(&mut self) -> Result<(), SyncError> {
        let Position { generation, frame: server } = self.position;
        if self.frames() > server {
            let (path, local) = (self.path.clone(), self.frames());
            return Err(SyncError::Ahead { path, generation, local, server, is_written: true });
        }
        let following = generation.checked_add(1).ok_or_else(|| SyncError::Full { path: self.path.clone() })?;
        self.restart_wal()?;
        self.file.forget_open();
        self.end(following)
    }

    /// Puts all frames into the database, and is at the start of the generation `following` then.
    fn end(&mut self, following: u32) -> Result<(), SyncError> {
        let folded = self.file.copy_within(READERS_PATIENCE).map_err(|error| self.of_others(error))?;
        if folded.copied < folded.frames {
            return Err(self.not_copied().into());
        }
        (self.start, self.last) = (0, String::new());
        self.resume(Position { generation: following, frame: 0 });
        self.store()?;
        self.leftover = self.log.frames() > 0;
        match self.restart_wal() {
            // Its frames are not needed before those of the next generation come.
            Err(SyncError::Database(DatabaseError::ReadInTheWay { .. })) => Ok(()),
            done => done,
        }
    }

    /// Goes to the start of another generation, of which this is the base: the pages that differ become one transaction, so that
    /// those who read go along. Returns how many they were; none, and nothing was changed, where there are some and not all that
    /// it holds is known to have come from the server.
    ///
    /// # Errors
    /// [`DatabaseError::ReadInTheWay`] where a read takes long: the same again goes on from there.
    pub(in crate::sync) fn step_to(&mut self, base: &File, generation: u32) -> Result<Option<u32>, SyncError> {
        self.restart_wal()?;
        self.file.forget_open();
        let path = self.path.clone();
        let io = |error| DatabaseError::io("reading the base of", &path, error);
        let pages = base::pages_of(base).map_err(io)?;
        let mut differing = self.differing(base, pages)?;
        if differing.is_empty() && self.file.pages()? != pages {
            differing.push(1);
        }
        let Position { frame, .. } = self.position;
        let is_whole = frame > 0 && self.frames() == frame;
        if !differing.is_empty() {
            if !is_whole && (self.frames() > frame || self.is_pushed()?) {
                return Ok(None);
            }
            if let Some(sum) = self.sum.take()
                && ReplicaSum::of(&self.file, sum.key())?.number() != sum.number()
            {
                return Ok(None);
            }
            self.begin_write()?;
        }
        let (mut content, last) = ([0; PAGE_LEN], differing.last());
        for page in &differing {
            base::read_page(base, *page, &mut content).map_err(io)?;
            let size = if Some(page) == last { pages } else { 0 };
            self.file.append([(*page, size, &content[..])]).map_err(|error| self.of_others(error))?;
        }
        self.file.commit().map_err(|error| self.of_others(error))?;
        self.log.look()?;
        self.end(generation)?;
        Ok(Some(differing.len() as u32))
    }

    /// The pages of a base that are others here.
    fn differing(&self, base: &File, pages: u32) -> Result<Vec<u32>, DatabaseError> {
        let (mut ours, mut theirs, mut differing) = ([0; PAGE_LEN], [0; PAGE_LEN], Vec::new());
        for page in 1..=pages {
            base::read_page(base, page, &mut theirs)
                .map_err(|error| DatabaseError::io("reading the base of", &self.path, error))?;
            if !self.file.read_page(page, &mut ours)? {
                ours.fill(0);
            }
            if page == 1 {
                ours[VERSIONS].copy_from_slice(&WAL_VERSIONS);
            }
            if ours != theirs {
                differing.push(page);
            }
        }
        Ok(differing)
    }

    /// The database as of the last commit.
    fn image(&self) -> io::Result<Image> {
        let database = self.database().map_err(io::Error::other)?.try_clone()?;
        let image = Image::of(Arc::new(opened(database)), LIBSQL_PAGE_SIZE)?;
        match self.log.frames() {
            0 => Ok(image),
            frames => image.over(self.dir.open(&self.wal_name)?, frames.into()),
        }
    }

    /// Whether a crash, or a read, kept the WAL of a generation that was folded.
    pub(super) fn find_leftover(&mut self) -> Result<(), SyncError> {
        let Position { generation, frame } = self.position;
        let former = self.log.header().is_some_and(|header| header.sequence < generation - 1);
        if frame > 0 || !former || self.log.frames() == 0 {
            return Ok(());
        }
        let is_folded = self.image().and_then(|image| image.is_folded());
        self.leftover = is_folded.map_err(|error| self.io("reading", error))?;
        if self.leftover {
            log::info!("{}: its WAL is of a former generation and in the database", self.path.display());
        }
        Ok(())
    }

    /// Why the WAL could not be copied into the database, or could not start again.
    fn not_copied(&self) -> DatabaseError {
        let path = self.path.clone();
        match self.file.linked() {
            Some(links) => {
                let what = "its WAL is not copied into it, because the file under its other name would change too: remove that name, or \
                            replace that file by a copy";
                DatabaseError::Linked { path, links, what: what.to_owned() }
            }
            None => DatabaseError::ReadInTheWay { path },
        }
    }

    /// Restarts the WAL if it is of a former generation.
    pub(super) fn restart_wal(&mut self) -> Result<(), SyncError> {
        if !self.leftover {
            return Ok(());
        }
        self.file.keep_frames(false);
        let done = self.file.checkpoint_within(READERS_PATIENCE);
        self.file.keep_frames(true);
        if !done.map_err(|error| self.of_others(error))?.restarted {
            return Err(self.not_copied().into());
        }
        self.leftover = false;
        self.log.look().map(drop)
    }
}
