//! One segment and its offset index. Owns: appending to a segment, reading one, finding an offset in it. Knows nothing
//! of other segments.

mod index;
mod reader;
mod writer;

pub use index::{Entry, IndexFile, OffsetIndex};
pub use reader::{Found, SegmentReader};
pub use writer::SegmentWriter;
