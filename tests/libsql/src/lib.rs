//! The published `libsql` crate as a user has it, against logmirror as a user runs it: the client on one side, the
//! program on the other, and between them a wire that counts, cuts and refuses.
//!
//! Two packages build this code, each with its own version of the client: see `README.md`.

mod metadata;
mod replica;
mod scene;
mod segments;
mod server;
mod wire;

pub use metadata::{Damage, Metadata};
pub use replica::{Outcome, Replica, Row, connector, rows};
pub use scene::{Scene, TOKEN};
pub use segments::cut_to_transactions;
pub use server::{Program, Server, Status};
pub use wire::{Cut, Upstream, Wire};

/// Bytes of a frame on the wire: SQLite's frame header and a page of 4,096.
pub const FRAME_BYTES: u64 = 4120;
/// Frames the client sends in one request unless told otherwise.
pub const BATCH_FRAMES: u64 = 128;
/// Bytes of a full batch.
pub const BATCH_BYTES: u64 = BATCH_FRAMES * FRAME_BYTES;
