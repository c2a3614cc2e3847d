//! The frames that are wanted next, asked for while those before them are stored. Owns: one call, which ends with this. Checks
//! nothing.

use tokio::task::JoinSet;

use super::error::SyncError;
use super::remote::{Pulled, Range, Remote, Said};

type Answer = Result<(Pulled, Said), SyncError>;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Ahead {
    asked: Option<Range>,
    call: JoinSet<Answer>,
}

impl Ahead {
    /// Asks for `range`, and for nothing else any more.
    pub(super) fn ask(&mut self, remote: &Remote, range: Range) {
        self.call = JoinSet::new();
        let remote = remote.clone();
        self.call.spawn(async move { remote.pull_with_facts(range).await });
        self.asked = Some(range);
    }

    /// The answer about `range`, which is waited for, if that was asked for; whatever else was is given up.
    pub(super) async fn take(&mut self, range: Range) -> Option<Answer> {
        let mut call = std::mem::take(&mut self.call);
        if self.asked.take() != Some(range) {
            return None;
        }
        match call.join_next().await? {
            Ok(answer) => Some(answer),
            Err(error) => Some(Err(SyncError::Interrupted(error.to_string()))),
        }
    }
}
