//! What a sink holds already, compared with the source before a byte of the sink changes.

use std::sync::Arc;

use super::database::off;
use super::failure::MirrorError;
use super::sink::DirStatus;
use crate::api::LastCommit;
use crate::offset::Offset;
use crate::repo::Repo;
use crate::stream::{Batch, Cursor, OpenError, Part, SurveyError};

/// Commits at the end of a sink that the source must hold too, in order.
#[derive(Debug, Default)]
pub(super) struct Overlap {
    next: Option<LastCommit>,
    rest: Option<Cursor>,
    /// Whether one was compared, and was the same.
    same: bool,
}

impl Overlap {
    /// The last commit of a sink and nothing before it.
    pub(super) fn only(last: Option<LastCommit>) -> Overlap {
        Overlap { next: last, rest: None, same: false }
    }

    /// Those of a directory from the last one that its record says is durable on; without a record, its last. None before
    /// `from`, where the source starts.
    pub(super) async fn in_dir(
        found: &DirStatus,
        from: Option<Offset>,
        commit_bytes_max: u64,
    ) -> Result<Overlap, MirrorError> {
        let survey = &found.survey;
        let Some(last) = survey.last.filter(|_| from.is_none_or(|from| from < survey.next)) else {
            return Ok(Overlap::default());
        };
        let durable = found.record.as_ref().map(|record| record.durable.0.saturating_sub(1));
        let start = durable.map_or(last.first, Offset).max(from.unwrap_or_default()).min(last.first);
        let (repo, segments): (Arc<dyn Repo>, _) = (Arc::new(found.repo.clone()), survey.segments.clone());
        off(move || {
            let mut cursor = Cursor::open(&repo, &segments, start, commit_bytes_max).map_err(damaged)?;
            let next = cursor.next().map_err(damaged)?.map(|placed| LastCommit::from(&placed.commit));
            Ok(Overlap { next, rest: Some(cursor), same: false })
        })
        .await?
    }

    /// The offset of the next commit to compare; `None` when all were.
    pub(super) fn next(&self) -> Option<Offset> {
        self.next.map(|next| next.offset)
    }

    /// The batch without the commits that the sink holds, each of which must be the same.
    ///
    /// # Errors
    /// [`MirrorError::Fork`] at the first that differs.
    pub(super) async fn without(&mut self, batch: Batch) -> Result<Batch, MirrorError> {
        let mut held = std::mem::take(self);
        // Only a directory's are read from a disk.
        let (held, rest) = if held.rest.is_some() {
            off(move || held.compare(batch).map(|rest| (held, rest))).await??
        } else {
            let rest = held.compare(batch)?;
            (held, rest)
        };
        *self = held;
        Ok(rest)
    }

    fn compare(&mut self, batch: Batch) -> Result<Batch, MirrorError> {
        let (mut headers, mut left) = (Vec::new(), Vec::new());
        for part in batch.parts {
            let run = match part {
                Part::Header(..) => {
                    headers.push(part);
                    continue;
                }
                Part::Run(run) => run,
            };
            if self.next.is_none() {
                left.append(&mut headers);
                left.push(Part::Run(run));
                continue;
            }
            headers.clear();
            for (compared, (at, found)) in run.commits().enumerate() {
                let Some(held) = self.next else {
                    left.push(Part::Run(run.after(at, &found, compared as u64)));
                    break;
                };
                if LastCommit::from(&found) != held {
                    let (at, is_first) = (held.offset.min(found.first), self.same);
                    return Err(MirrorError::Fork { at, is_first });
                }
                self.same = true;
                self.next = match &mut self.rest {
                    Some(rest) => rest.next().map_err(damaged)?.map(|placed| LastCommit::from(&placed.commit)),
                    None => None,
                };
            }
        }
        if self.next.is_none() {
            left.append(&mut headers);
        }
        Ok(Batch { parts: left })
    }
}

fn damaged(error: SurveyError) -> MirrorError {
    MirrorError::Open(OpenError::from(error))
}
