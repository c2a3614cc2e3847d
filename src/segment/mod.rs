//! One segment and its index, and the base before the first segment of a WAL. Owns: appending to a segment, reading one,
//! finding an offset or a page in it; reading a base. Knows nothing of other segments, but for the checksum that a WAL
//! segment goes on from.

pub mod base;
pub mod frames;
mod index;
pub mod pages;
mod reader;
mod writer;

pub use index::{Entry, IndexFile, OffsetIndex};
pub use reader::{Found, SegmentReader};
pub use writer::SegmentWriter;
