//! The transactions of a database in use, for a sink that is none of a mirror's: see [`Live`]. Knows no sink.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::database::{database_of, watch};
use super::distance::SharedWal;
use super::failure::MirrorError;
use super::live::Live;
use super::outlet::{NO_STALL, Outlet, STALL};
use super::source::{Piece, Pieces};
use super::step::Steps;
use crate::api::LogSource;
use crate::format::wal::WalStart;
use crate::limits::BATCHES_UNDER_WAY;
use crate::offset::{Generation, Offset};
use crate::sqlite::page_sums::PageSums;
use crate::sqlite::{HardLinks, Snapshot, WalPosition};
use crate::stream::{Batch, Tail};

/// Where to start with a database.
pub(crate) struct LiveStart {
    /// The position in its WAL up to which the sink has everything; without one the pages are compared.
    pub(crate) at: Option<WalPosition>,
    /// The pages that the sink has, where they are known.
    pub(crate) sums: Option<PageSums>,
    /// The header and the checksum that the sink's frames go on from, and the number of the first.
    pub(crate) end: WalStart,
    pub(crate) next: Offset,
    /// Why pages are compared.
    pub(crate) reason: String,
    pub(crate) follow: bool,
}

/// What a database gives.
pub(crate) enum LivePiece {
    /// Whole transactions.
    Frames(Batch),
    /// The frame of the sink that comes next follows this position of a WAL.
    Mark(Box<LogSource>),
    /// The frames that come next are the pages that differ.
    Compared { reason: String, pages: u64 },
}

/// A database that is being read, on a thread of its own, until this is dropped.
#[derive(Debug)]
pub(crate) struct LiveFeed {
    pieces: Pieces,
}

impl LiveFeed {
    /// Starts with what `first` holds.
    pub(crate) fn start(path: &Path, first: Arc<Snapshot>, start: LiveStart) -> LiveFeed {
        let (out, pieces) = mpsc::channel(BATCHES_UNDER_WAY);
        let LiveStart { at, sums, end, next, reason, follow } = start;
        let stall = if follow { STALL } else { NO_STALL };
        // Nobody asks for another generation.
        let steps = Arc::<Steps>::default();
        // So nothing has to be kept for one.
        steps.set_durable(Offset(u64::MAX));
        let live = Live {
            path: path.to_owned(),
            database: database_of(path),
            links: HardLinks::default(),
            outlet: Outlet::new((out.clone(), stall), (Generation::FIRST, Some(end), next), u64::MAX, sums, steps),
            watch: follow.then(|| watch(path)),
            at,
            committed: at,
            reason,
            identity: String::new(),
            wal: SharedWal::default(),
            known: None,
            hold: true,
            took: Duration::ZERO,
            seen: None,
            page_size: end.header.page_size,
            is_rollback_known: false,
            failing: None,
            gave_way: 0,
        };
        tokio::task::spawn_blocking(move || {
            let end = live.run(first).map(|()| Piece::End(Tail::Clean));
            // The other end is gone when it has stopped for a reason of its own.
            let _ = out.blocking_send(end);
        });
        LiveFeed { pieces }
    }

    /// What comes next; `None` at the end: of a database that is followed, when it cannot go on without what the sink holds.
    pub(crate) async fn next(&mut self) -> Option<Result<LivePiece, MirrorError>> {
        loop {
            return Some(match self.pieces.recv().await? {
                Ok(Piece::Batch(batch)) => Ok(LivePiece::Frames(batch)),
                Ok(Piece::Mark(mark)) => Ok(LivePiece::Mark(mark)),
                Ok(Piece::Compared { reason, pages }) => Ok(LivePiece::Compared { reason, pages }),
                Ok(Piece::Live { .. } | Piece::Stepped(_)) => continue,
                Ok(Piece::End(_)) => return None,
                Err(error) => Err(error),
            });
        }
    }
}
