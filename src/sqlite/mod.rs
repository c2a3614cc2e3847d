//! SQLite databases as sources: read while they are in use, never written. Knows no log and no network.
//!
//! - [`Snapshot`]: a database file and the committed part of its WAL that fit together, and stay so while it is held;
//! - [`Verdict`]: what stands behind that committed part;
//! - [`btree`], [`record`]: the trees of a database and their rows, without an engine.

pub mod btree;
mod follow;
mod held;
mod lock;
pub mod page_sums;
pub mod record;
mod snapshot;
mod source;
mod wal_index;
mod walk;

pub use follow::{Follower, Held, Moved, WalPosition};
pub use held::{HeldDatabase, each_difference, each_frame, holds};
pub use snapshot::{Snapshot, take};
pub use source::{BaseVersion, SnapshotError};
pub use walk::{Place, Verdict};
