//! SpacetimeDB's commitlog crate as the writer of a log that logmirror follows (in a process of its own, the program of
//! this package), and as the judge of what logmirror wrote.

mod commands;
mod judge;
mod writer;

pub use commands::serve;
pub use judge::{commits, continue_log, plain_copy};
pub use writer::{Setup, Writer};
