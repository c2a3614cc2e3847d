//! The published SpacetimeDB commitlog, crate `spacetimedb-commitlog` 1.3.0, as logmirror's peer and oracle.
//!
//! The peer is only run, through its public API. logmirror is only run too, through its command line:
//! nothing here links it, so the two cannot share a bug by sharing code.

pub mod compare;
pub mod files;
pub mod generate;
pub mod http;
pub mod machine;
pub mod nginx;
pub mod ours;
pub mod published;
pub mod report;
pub mod tuned;

pub use generate::{Plan, Shape};
