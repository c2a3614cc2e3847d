//! A log as a stream of raw bytes, in and out of a repo. Owns: contiguity, forks, epochs, rotation, recovery. Knows no
//! sockets and no threads.

mod batch;
mod claim;
mod cursor;
mod fault;
mod generations;
mod known_base;
mod large;
mod mark;
mod open;
mod outcome;
mod reader;
mod record;
mod recover;
mod rewrite;
mod set_aside;
mod sound;
mod sync;
mod writer;

pub use batch::{Batch, BatchError, Batcher, Part, Run};
pub use claim::{CutTail, ForeignWrite, TornContent, torn_content};
pub use cursor::{Cursor, Placed};
pub use fault::{Fault, FaultKind, Tail};
pub use generations::{current_dir, current_generation, recorded_generation};
pub use known_base::{known_base, recorded_base};
pub use large::{LargeCommit, LargeCommits, ReadAt};
pub use open::{OnTrailing, OpenError, Options};
pub use outcome::{AppendError, Appended, Progress};
pub use reader::{Read, ReadError, StreamReader};
pub use recover::{SegmentInfo, Survey, SurveyError, format_of, segment_starts, survey};
pub use sync::{SyncJob, Synced};
pub use writer::StreamWriter;

pub(crate) use claim::{ASIDE, Claim, LogEnd, existing_or_new, holds_cut_commits, new_aside, torn_commits};
pub(crate) use generations::{begin_step, draft_name, end_step, remove_before_current};
pub(crate) use large::create_spool;
pub(crate) use mark::DurableMark;
pub(crate) use record::{MirrorRecord, NAME as RECORD, RecordFile};
pub(crate) use recover::{Reads, Span, Visit, sound_commit_behind, survey_segments, walk, walk_span};
pub(crate) use set_aside::{keep_before, set_before_aside};
pub(crate) use sound::{SegmentFiles, SoundPrefix, segment_files, sound_prefix, sound_prefix_of};
