//! From frames to a database file. Owns: folding a generation of a WAL log into a database as of some commit, restoring
//! one from a directory or a service, and the scheduler of folds in the background. Knows no open logs.

mod draft;
mod each_page;
mod feed;
mod fold;
mod plain;
mod restore;
mod schedule;

pub use each_page::each_page;
pub use fold::{FoldError, Folded, fold, into_next};
pub use restore::{RestoreError, Wanted, draft_path, restore_dir, restore_url};
pub use schedule::{Checkpointer, Failing, GivenUp, Notifier, Outcome, Status};
