//! The files of SQLite databases: those of sources, which are read while they are in use and never written, and those of
//! ours. Knows no log and no network.
//!
//! - [`Snapshot`]: a database file and the committed part of its WAL that fit together, and stay so while it is held;
//! - [`Verdict`]: what is after that committed part;
//! - [`Follower`]: all transactions of a database in use, through every reset of its WAL;
//! - [`warning_of_links`]: a database file with more than one name;
//! - `counted`: what the connections that have a database open count of its WAL;
//! - `wal_scan`: how far a `-wal` file is sound, and the frames that were added since;
//! - [`KnownWal`]: how far it was, for the next snapshot of the same database;
//! - [`wal_append`], [`wal_frames`]: the writer of a `-wal` file;
//! - [`image`]: a database as of a frame, and the fold of frames into its file;
//! - [`read_replica`]: a database that we write while others read it;
//! - `lock`, `names`: SQLite's locks, and its names for the files beside a database;
//! - [`btree`], [`record`]: the trees of a database and their rows, without an engine.

pub mod btree;
pub(crate) mod counted;
mod cut;
mod error;
mod follow;
mod hard_links;
mod held;
pub mod image;
mod known_wal;
pub(crate) mod lock;
pub(crate) mod names;
pub mod page_sums;
pub mod read_replica;
pub mod record;
mod snapshot;
mod source;
mod users;
pub mod wal_append;
pub mod wal_frames;
mod wal_index;
mod wal_pages;
pub(crate) mod wal_scan;

pub use cut::CutPage;
pub use error::DatabaseError;
pub use follow::{Follower, Held, Moved, WalPosition};
pub(crate) use hard_links::HardLinks;
pub use hard_links::warning_of_links;
pub(crate) use held::each_counted_frame;
pub use held::{Differences, HeldDatabase, each_difference, each_frame, holds, is_proven_after};
pub use known_wal::KnownWal;
pub use snapshot::{Snapshot, take};
pub use source::BaseVersion;
pub use users::{DatabaseUser, user_of};
pub(crate) use users::{command_of, opener_of, user_beside};
pub use wal_scan::{Place, Verdict};
