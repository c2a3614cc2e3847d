//! A SQLite database in use, read for a log: its transactions one by one while its locks are held hand over hand, and where they
//! could not be, the pages that differ as one transaction. On a thread of its own.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::database::damage;
use super::difference::{Difference, fresh_header};
use super::distance::{SharedWal, WalSeen};
use super::failure::MirrorError;
use super::fed;
use super::outlet::{Handed, Outlet};
use super::source::{Piece, Watch};
use crate::format::wal::{Chain, FIRST_FRAME, FRAME_HEADER_LEN, WalHeader};
use crate::limits::{
    DAMAGE_LOOK_AGAIN, DAMAGE_LOOKS, HELD_WAL_BYTES_MAX, LOCK_PATIENCE, LOOK_AT_ONCE, LOOK_AT_ONCE_FOR, LOOK_BUSY,
    LOOK_BUSY_FOR, LOOK_IDLE,
};
use crate::sqlite::names::database_of_wal;
use crate::sqlite::{
    BaseVersion, DatabaseError, Differences, Follower, HardLinks, Held, HeldDatabase, KnownWal, Moved, Snapshot,
    WalPosition, each_difference, each_frame, holds, is_proven_after,
};

/// How long a WAL that grew because of us is let go of.
const LET_GO: Duration = Duration::from_millis(20);
/// How often at most.
const LET_GO_EVERY: Duration = Duration::from_secs(5);

/// How long what may pass within moments is waited for before it is reported.
const FAILING_MAX: Duration = Duration::from_secs(3);

/// How often in a row a comparison of pages makes way for a writer with a rollback journal before that waits for it.
const GIVE_WAY_MAX: u32 = 3;

/// See the [module](self).
pub(super) struct Live {
    pub(super) path: PathBuf,
    /// The database that it led to at the start.
    pub(super) database: PathBuf,
    /// Its other names, as last seen.
    pub(super) links: HardLinks,
    pub(super) outlet: Outlet,
    /// None for a mirror that does not follow.
    pub(super) watch: Option<Watch>,
    /// The position in the WAL that was read last, and the one at the last commit.
    pub(super) at: Option<WalPosition>,
    pub(super) committed: Option<WalPosition>,
    /// Why pages must be compared when there is no position.
    pub(super) reason: String,
    /// The database, as a sink notes it.
    pub(super) identity: String,
    pub(super) wal: SharedWal,
    /// How far the WAL was sound when it was looked at last without a follower, and all of that was read without an error.
    pub(super) known: Option<KnownWal>,
    /// Whether locks are held between two looks.
    pub(super) hold: bool,
    /// How long the last look took without a follower.
    pub(super) took: Duration,
    /// The state of a database that nobody had open when it was looked at last.
    pub(super) seen: Option<Rest>,
    /// Bytes of a page in this generation of the log.
    pub(super) page_size: u32,
    /// Whether it was reported that it has a rollback journal, so that its pages are compared whenever it changed.
    pub(super) is_rollback_known: bool,
    /// Since when each look has failed.
    pub(super) failing: Option<Instant>,
    /// How often in a row a writer was let go first.
    pub(super) gave_way: u32,
}

/// What tells whether a database that nobody has open has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    base: Option<BaseVersion>,
    header: Option<WalHeader>,
    frames: u64,
}

impl Rest {
    pub(super) fn of(snapshot: &Snapshot) -> Rest {
        Rest { base: snapshot.base_version(), header: snapshot.header(), frames: snapshot.frames() }
    }
}

/// How a look ended.
enum Looked {
    /// All there is was handed over.
    Done,
    /// The files must be looked at anew.
    Again,
    /// Nobody takes anything any more, or it cannot go on without what the sink holds.
    End,
}

impl Live {
    /// Hands over what `first` holds, and then what comes, if it is watched; until nobody takes it any more, or pages must be
    /// compared whose sums are not known.
    pub(super) fn run(mut self, first: Arc<Snapshot>) -> Result<(), MirrorError> {
        let looked = self.take_snapshot(&first)?;
        self.known = first.known_wal().cloned();
        // With its locks.
        drop(first);
        if let (Looked::End, _) | (_, None) = (&looked, &self.watch) {
            self.all_is_taken();
            return Ok(());
        }
        let mut damaged = 0;
        loop {
            // Without any lock, however long the sink takes.
            if !self.all_is_taken() {
                return Ok(());
            }
            self.took = Duration::ZERO;
            let ended = match self.look() {
                Ok(Looked::End) => {
                    self.all_is_taken();
                    return Ok(());
                }
                Ok(Looked::Again) => continue,
                Ok(Looked::Done) => {
                    (damaged, self.failing) = (0, None);
                    Duration::ZERO
                }
                Err(error) => {
                    let waits = self.waits_for(&error, &mut damaged);
                    self.give_up();
                    self.note_unseen();
                    let since = *self.failing.get_or_insert_with(Instant::now);
                    if waits && since.elapsed() < FAILING_MAX { DAMAGE_LOOK_AGAIN } else { return Err(error) }
                }
            };
            if !self.all_is_taken() {
                return Ok(());
            }
            // Such a look may read the whole database: at most half of the time.
            std::thread::sleep(ended.max(self.took));
            if let (Some(watch), Duration::ZERO) = (&self.watch, ended) {
                watch.wait();
            }
        }
    }

    /// Whether what a look failed for may pass.
    fn waits_for(&self, error: &MirrorError, damaged: &mut u32) -> bool {
        match error {
            MirrorError::Snapshot(DatabaseError::Changed { .. } | DatabaseError::Unsettled { .. }) => {
                log::debug!("looking again: {error}");
                true
            }
            // Nothing that passes within moments.
            MirrorError::Snapshot(
                DatabaseError::WalAway { .. }
                | DatabaseError::FileAway { .. }
                | DatabaseError::PathMoved { .. }
                | DatabaseError::Linked { .. },
            ) => false,
            // A connection may hold it exclusively indefinitely.
            MirrorError::Snapshot(error) if error.is_transient() => {
                log::warn!("looking again: {error}");
                true
            }
            MirrorError::WalDamaged { .. } | MirrorError::WalHeader { .. } if *damaged < DAMAGE_LOOKS => {
                *damaged += 1;
                log::debug!("looking again ({damaged}): {error}");
                true
            }
            _ => false,
        }
    }

    /// Waits until the sink has taken all that was handed over; false when nobody takes anything any more.
    fn all_is_taken(&mut self) -> bool {
        loop {
            match self.outlet.wait(Duration::from_secs(1)) {
                Handed::Over => return true,
                Handed::Gone => return false,
                Handed::Stalled => {}
            }
        }
    }

    fn outlet_is_closed(&mut self) -> bool {
        matches!(self.outlet.wait(Duration::ZERO), Handed::Gone)
    }

    /// Goes back to the last commit.
    fn give_up(&mut self) {
        self.outlet.give_up();
        self.at = self.committed;
    }

    /// That the path still leads to the database that this started with.
    fn check_path(&self) -> Result<(), DatabaseError> {
        let named = database_of_wal(&self.path).unwrap_or(&self.path);
        match fs::canonicalize(named) {
            Ok(now) if now == self.database => Ok(()),
            Ok(now) => Err(DatabaseError::PathMoved { path: self.path.clone(), before: self.database.clone(), now }),
            // A WAL may stand alone.
            Err(_) if named == self.database => Ok(()),
            Err(error) => Err(DatabaseError::io("opening", named, error)),
        }
    }

    fn look(&mut self) -> Result<Looked, MirrorError> {
        self.check_path()?;
        self.links.warning(&self.path)?;
        if self.hold
            && let Some(follower) = Follower::attach(&self.path, LOCK_PATIENCE)?
        {
            return self.follow(follower);
        }
        let since = Instant::now();
        let snapshot = Snapshot::open_after(&self.path, self.known.take().as_ref())?;
        let looked = self.take_snapshot(&snapshot);
        self.known = snapshot.known_wal().filter(|_| looked.is_ok()).cloned();
        self.took = since.elapsed();
        looked
    }

    /// Hands over what a snapshot holds after our position; without one, the pages that differ.
    fn take_snapshot(&mut self, snapshot: &Snapshot) -> Result<Looked, MirrorError> {
        let rest = Rest::of(snapshot);
        if self.seen == Some(rest) {
            self.note_seen(snapshot);
            return Ok(Looked::Done);
        }
        // What is sound before damage is handed over first.
        let whole = || damage(&self.path, snapshot).map_or(Ok(()), Err);
        let at = match self.at {
            Some(at) if goes_on(snapshot, &at)? => at,
            _ => {
                whole()?;
                if self.watch.is_none() || self.gave_way >= GIVE_WAY_MAX {
                    snapshot.insist();
                }
                let compared = self.compare(snapshot);
                if let Err(MirrorError::Snapshot(DatabaseError::Writing { .. })) = &compared {
                    (self.gave_way, self.failing) = (self.gave_way + 1, None);
                }
                let Some((position, committed)) = compared? else {
                    return Ok(Looked::End);
                };
                snapshot.check()?;
                self.gave_way = 0;
                if position.is_none() && has_rollback_journal(snapshot)? {
                    self.reason = match std::mem::replace(&mut self.is_rollback_known, true) {
                        false => "it has a rollback journal, as after each change from here on".to_owned(),
                        true => String::new(),
                    };
                }
                let looked = self.compared(position, committed)?;
                self.note_seen(snapshot);
                // Also when the sink stalls: it is taken after what was compared.
                if let Some(at) = position
                    && let Some(ended) = self.mark(snapshot, &at)?
                {
                    return Ok(ended);
                }
                self.seen = Some(rest);
                return Ok(looked);
            }
        };
        self.at = Some(at);
        loop {
            let before = self.at;
            self.read(snapshot, snapshot.frames())?;
            self.note_seen(snapshot);
            if let Some(ended) = self.hand_over()? {
                return Ok(ended);
            }
            if self.at == before || self.at.is_none_or(|at| at.frames >= snapshot.frames()) {
                snapshot.check()?;
                damage(&self.path, snapshot).map_or(Ok(()), Err)?;
                self.seen = Some(rest);
                return Ok(Looked::Done);
            }
        }
    }

    /// Follows a database that others have open, until they are gone or something breaks.
    fn follow(&mut self, mut follower: Follower) -> Result<Looked, MirrorError> {
        self.seen = None;
        let goes_on = match self.at {
            Some(at) => follower.go_on_from(&at)?,
            None => false,
        };
        if !goes_on {
            self.give_up();
            if self.at.is_some() {
                self.reason = "the WAL was reset while it was not held".to_owned();
            }
            match self.compare_with(&mut follower)? {
                Looked::Done => {}
                ended => return Ok(ended),
            }
        }
        let (mut busy, mut let_go) = (Instant::now(), Instant::now());
        loop {
            self.check_path()?;
            let moved = match follower.look() {
                Err(error @ DatabaseError::Changed { .. }) => {
                    log::debug!("{}: {error}", self.path.display());
                    self.reason = error.to_string();
                    return Ok(Looked::Again);
                }
                moved => moved?,
            };
            self.note_seen(&follower);
            if let Moved::To(frame) = moved {
                busy = Instant::now();
                let at = follower.position();
                self.at = Some(at);
                if at.frames == 0 {
                    // All before was handed over.
                    self.committed = self.at;
                    if let Some(ended) = self.mark(&follower, &at)? {
                        return Ok(ended);
                    }
                }
                if let Err(error) = self.read_on(&mut follower, frame) {
                    // The same frames would be in the way again.
                    self.reason = error.to_string();
                    self.give_up();
                    (self.at, self.committed) = (None, None);
                    return Ok(Looked::Again);
                }
                match self.hand_over()? {
                    Some(ended) => return Ok(ended),
                    None => continue,
                }
            }
            self.at = Some(follower.position());
            (self.committed, self.failing) = (self.at, None);
            if self.outlet_is_closed() {
                return Ok(Looked::End);
            }
            let Some(watch) = &self.watch else {
                return Ok(Looked::Done);
            };
            let longest = match follower.held() {
                // Frames are in the WAL a moment before they count.
                _ if busy.elapsed() < LOOK_AT_ONCE_FOR || self.outlet.is_waiting() => LOOK_AT_ONCE,
                Held::Zero => Duration::MAX,
                Held::Slot(_) if follower.wal_bytes() > HELD_WAL_BYTES_MAX && let_go.elapsed() > LET_GO_EVERY => {
                    log::info!("{}: letting go of its WAL of {} bytes", self.path.display(), follower.wal_bytes());
                    drop(follower);
                    std::thread::sleep(LET_GO);
                    return Ok(Looked::Again);
                }
                Held::Slot(_) if busy.elapsed() < LOOK_BUSY_FOR => LOOK_BUSY,
                Held::Slot(_) => LOOK_IDLE,
            };
            if follower.wal_bytes() <= HELD_WAL_BYTES_MAX {
                let_go = Instant::now();
            }
            if watch.wait_at_most(longest) {
                busy = Instant::now();
            }
        }
    }

    /// Reads frames up to `to` into the outlet, until it is full.
    fn read(&mut self, held: &impl HeldDatabase, to: u64) -> Result<(), DatabaseError> {
        let Some(mut at) = self.at else {
            return Ok(());
        };
        let (outlet, committed) = (&mut self.outlet, &mut self.committed);
        let mut number = at.frames;
        let read = each_frame(held, &mut at, to, |header, claim, frame, before| {
            outlet.frame(header, claim, frame, before);
            number += 1;
            if claim.size > 0 {
                *committed = Some(WalPosition { salts: header.salts, frames: number, chain: claim.chain });
            }
            !outlet.is_full()
        });
        self.at = Some(at);
        read
    }

    fn read_on(&mut self, follower: &mut Follower, to: u64) -> Result<(), DatabaseError> {
        self.read(follower, to)?;
        if let Some(at) = self.at {
            follower.advance(at);
        }
        Ok(())
    }

    /// Hands over what was read; some way to end when that does not go through at once.
    fn hand_over(&mut self) -> Result<Option<Looked>, MirrorError> {
        let handed = self.outlet.hand_over()?;
        Ok(self.ended(handed))
    }

    fn ended(&mut self, handed: Handed) -> Option<Looked> {
        match handed {
            Handed::Over => None,
            Handed::Gone => Some(Looked::End),
            Handed::Stalled => {
                // The caller lets go of all locks before it waits.
                log::info!("{}: letting go of its locks, the sink takes nothing", self.path.display());
                Some(Looked::Again)
            }
        }
    }

    /// Notes that the log's next frame follows this position.
    fn mark(&mut self, held: &impl HeldDatabase, at: &WalPosition) -> Result<Option<Looked>, MirrorError> {
        let (end, next) = self.outlet.committed();
        let header = held.wal_header()?;
        let theirs = match &header {
            _ if at.frames > 0 => at.chain,
            Some(header) => header.seed(),
            None => return Ok(None),
        };
        let ours = end.map_or(theirs, |end| end.chain);
        let mark = fed::note((&self.identity, self.outlet.generation()), at, (theirs, ours), next);
        let handed = self.outlet.piece(Piece::Mark(Box::new(mark)));
        Ok(self.ended(handed))
    }

    /// Hands over the pages that differ, without the last, which ends the transaction: see [`compared`](Self::compared). None
    /// when it is not known what the log holds.
    fn compare(&mut self, held: &impl HeldDatabase) -> Result<Option<(Option<WalPosition>, Difference)>, MirrorError> {
        self.give_up();
        // How much differs shows only at the end.
        self.note_unseen();
        if held.bytes_of_page().is_some_and(|bytes| bytes != self.page_size) {
            // They need a generation of their own.
            return Ok(None);
        }
        let Some(sums) = self.outlet.sums.take() else {
            return Ok(None);
        };
        let header = held.wal_header()?.unwrap_or_else(|| fresh_header(held.bytes_of_page().unwrap_or(4096)));
        let mut found = Difference { header, last: None, count: 0, pages: 0, before: sums.pages(), first: None };
        let outlet = &mut self.outlet;
        let walked = each_difference(held, &sums, |page, content, sum| {
            found.add(outlet, page, content, Some(sum));
            if outlet.is_full() {
                outlet.hand_over()?;
            }
            Ok::<_, MirrorError>(())
        });
        self.outlet.sums = Some(sums);
        let Differences { position, pages, unproven } = walked?;
        let holds_more = self.outlet.committed().1 > FIRST_FRAME || found.before > 1;
        if pages == 0 && holds_more {
            return Err(MirrorError::EmptySource { path: self.path.clone() });
        }
        if let Some(frame) = unproven {
            self.reason = format!(
                "frame {frame} of its WAL has a checksum that does not fit, but the application counts it (SQLite up to 3.40.1 writes \
                 such frames after ROLLBACK TO): until they are checkpointed a crash would lose that frame and those after it"
            );
        }
        found.pages = pages;
        if found.last.is_none() && found.before != pages && pages > 0 {
            let mut first = vec![0; held.bytes_of_page().unwrap_or(4096) as usize];
            held.read_database(0, &mut first)?;
            found.first = Some(first);
        }
        Ok(Some((position, found)))
    }

    fn compare_with(&mut self, follower: &mut Follower) -> Result<Looked, MirrorError> {
        let since = Instant::now();
        let Some((position, mut found)) = self.compare(follower)? else {
            return Ok(Looked::End);
        };
        let at = position.unwrap_or(WalPosition { frames: 0, chain: Chain::default(), ..follower.position() });
        follower.advance(at);
        // What was copied into the database file meanwhile is in these frames: with them it is one state again.
        if let Moved::To(frame) = follower.look()? {
            let (mut at, outlet) = (follower.position(), &mut self.outlet);
            each_frame(follower, &mut at, frame, |_, claim, frame, _| {
                found.add(outlet, claim.page, &frame[FRAME_HEADER_LEN..], None);
                if claim.size > 0 {
                    found.pages = claim.size;
                }
                true
            })?;
            follower.advance(at);
        }
        log::debug!("{}: compared in {:?}", self.path.display(), since.elapsed());
        let at = follower.position();
        let looked = self.compared(Some(at), found)?;
        // Also when the sink stalls: it is taken after what was compared.
        Ok(self.mark(follower, &at)?.unwrap_or(looked))
    }

    /// Ends the transaction of the pages that differ: the log stands at `position` then.
    fn compared(&mut self, position: Option<WalPosition>, found: Difference) -> Result<Looked, MirrorError> {
        let Difference { header, last, count, pages, first, .. } = found;
        let last = last.or_else(|| first.map(|first| (1, first, None)));
        let (next, reason) = (self.outlet.committed().1, std::mem::take(&mut self.reason));
        if let Some((page, content, sum)) = last {
            let sum = sum.or_else(|| self.outlet.sums.as_ref().map(|sums| sums.sum_of(&content)));
            self.outlet.page(&header, page, pages, (&content, sum));
        }
        (self.at, self.committed) = (position, position);
        self.reason = "it was not open".to_owned();
        log::debug!("{}: {count} pages differ at frame {next}: {reason}", self.path.display());
        // Where it is the only way, it is reported once.
        if count > 0
            && !reason.is_empty()
            && let Handed::Gone = self.outlet.piece(Piece::Compared { reason, pages: count })
        {
            return Ok(Looked::End);
        }
        Ok(self.hand_over()?.unwrap_or(Looked::Done))
    }

    /// Notes where the source ends, for the distance to it.
    fn note_seen(&self, held: &impl HeldDatabase) {
        let left = held.wal_frames().saturating_sub(self.at.map_or(0, |at| at.frames));
        let next = crate::offset::Offset(self.outlet.next().0 + left);
        let frame_bytes = held.bytes_of_page().map_or(0, |bytes| u64::from(bytes) + 24);
        *self.wal.lock().unwrap_or_else(PoisonError::into_inner) = Some(WalSeen { next, frame_bytes });
    }

    /// Notes that it is not known where the source ends.
    fn note_unseen(&self) {
        *self.wal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether a snapshot holds a position, and all that follows can be passed on frame by frame.
pub(super) fn goes_on(snapshot: &Snapshot, at: &WalPosition) -> Result<bool, DatabaseError> {
    Ok(holds(snapshot, at)? && (snapshot.unproven().is_none() || is_proven_after(snapshot, at)?))
}

/// Whether a database file says that it has a rollback journal and no WAL: byte 18 of its header.
fn has_rollback_journal(held: &impl HeldDatabase) -> Result<bool, DatabaseError> {
    let mut version = [0];
    Ok(held.read_database(18, &mut version)? == 1 && version == [1])
}
