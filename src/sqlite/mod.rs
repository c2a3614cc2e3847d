//! SQLite databases as sources: read while they are in use, never written. Knows no log and no network.
//!
//! - [`Snapshot`]: a database file and the committed part of its WAL that fit together, and stay so while it is held;
//! - [`Verdict`]: what is after that committed part;
//! - `wal_scan`: how far a `-wal` file is sound, and the frames that were added since;
//! - `lock`, `names`: SQLite's locks, and its names for the files beside a database;
//! - [`btree`], [`record`]: the trees of a database and their rows, without an engine.

pub mod btree;
mod follow;
mod held;
pub(crate) mod lock;
pub(crate) mod names;
pub mod page_sums;
pub mod record;
mod snapshot;
mod source;
mod wal_index;
pub(crate) mod wal_scan;

pub use follow::{Follower, Held, Moved, WalPosition};
pub use held::{HeldDatabase, each_difference, each_frame, holds};
pub use snapshot::{Snapshot, take};
pub use source::{BaseVersion, SnapshotError};
pub use wal_scan::{Place, Verdict};
