//! What a mirror with a libSQL sync server would do, found out without changing anything on either side.

use super::error::SyncError;
use super::found::{self, Found};
use super::local::{LocalLog, Stay};
use super::push::{self, Push};
use super::remote::{Pulled, Range, Remote, Streamed};
use super::replicate::{Direction, Replicate};
use super::{FRAME_LEN, Position, off};
use crate::mirror::Plan;
use crate::offset::Offset;

/// Finds out what [`run`](super::run) would do. Reads both sides, and changes neither.
///
/// # Errors
/// Those that would stop the mirror before anything is sent.
pub async fn plan(what: &Replicate) -> Result<Plan, SyncError> {
    let what = &what.located();
    let mut plan = Plan::default();
    match what.direction {
        Direction::Pull => pull(what, &mut plan).await?,
        Direction::Push => push(what, &mut plan).await?,
    }
    if let (Some(from), Some(to)) = (plan.from, plan.to) {
        plan.bytes = to.0.saturating_sub(from.0) * FRAME_LEN as u64;
    }
    Ok(plan)
}

async fn pull(what: &Replicate, plan: &mut Plan) -> Result<(), SyncError> {
    let (remote, path) = (&what.remote, what.database.clone());
    let file = path.clone();
    let creates = Some(path.display().to_string());
    let position = match off(move || found::at(&file)).await?? {
        Found::Nothing if !what.create => return Err(SyncError::Absent { path }),
        Found::Nothing => {
            plan.creates = creates;
            None
        }
        Found::Blank => None,
        Found::Pushed if !what.adopt => return Err(found::pushed(&path)),
        Found::WithMetadata | Found::Pushed => kept(what, plan).await?,
        Found::Unknown => match found::prove(remote, &path, what.batch.max(1)).await {
            Ok(found::Proof { position, .. }) => {
                plan.notes.push(format!("{}-info is lost: it is written again", path.display()));
                plan.compares = Some(Offset(position.frame.into())).filter(|at| at.0 > 0);
                Some(position)
            }
            Err(SyncError::NotOurs { what: found, .. }) if what.adopt => {
                plan.creates = creates;
                plan.notes.push(format!("{found}: DST is set aside"));
                None
            }
            Err(error) => return Err(error),
        },
    };
    let current = remote.info().await?;
    let position = position.unwrap_or(Position { generation: current.unwrap_or(1), frame: 0 });
    if plan.creates.is_some() || position.frame == 0 && plan.compares.is_none() {
        plan.notes
            .push(format!("the base of generation {} is downloaded first, unless DST holds it", position.generation));
    }
    if let Some(current) = current.filter(|current| *current > position.generation) {
        plan.notes.push(format!("the generations of the server up to {current} follow"));
    }
    plan.from = Some(Offset(u64::from(position.frame) + 1));
    plan.to = end_of(remote, position.generation).await?.map(|end| end.max(plan.from.unwrap_or_default()));
    Ok(())
}

/// Where a replica with metadata goes on; none where it is made again.
async fn kept(what: &Replicate, plan: &mut Plan) -> Result<Option<Position>, SyncError> {
    let (remote, path) = (&what.remote, what.database.clone());
    let file = path.clone();
    let found = off(move || {
        let info = push::info_of(&file)?;
        Ok::<_, SyncError>((info.load(), info.load_pulled().ok().flatten(), LocalLog::open(&file)?))
    });
    let (known, mark, log) = found.await??;
    let position = match known {
        Ok(position) => position,
        Err(why) => {
            plan.notes.push(format!(
                "{}-info is not used: {why}: all that DST holds is compared with the server",
                path.display()
            ));
            return Ok(None);
        }
    };
    let Position { generation, frame } = position;
    let before = mark.as_ref().map_or(0, |(_, mark)| mark.start);
    let frames = before + log.frames();
    if frame > frames {
        plan.notes.push(format!(
            "DST had {frame} frames and has {frames}: another program checkpointed its WAL away; unless its pages are those that were \
             known, it is made again from the base"
        ));
        return Ok(mark.filter(|(_, mark)| mark.sum.is_some()).map(|_| position));
    }
    if frame == before {
        return Ok(Some(position));
    }
    match remote.pull(Range { generation, start: frame, end: frame.saturating_add(1) }).await {
        Ok(Pulled::Frames(theirs)) => {
            if off(move || log.differs(frame - before, &theirs)).await??.is_some() {
                return Err(SyncError::Fork { path, generation, frame });
            }
            plan.compares = Some(Offset(frame.into()));
            Ok(Some(position))
        }
        Ok(Pulled::Nothing(_)) => {
            Err(SyncError::Ahead { path, generation, local: frame, server: frame - 1, is_written: frames > frame })
        }
        Err(error) if error.is_pruned() => {
            plan.notes
                .push(format!("the server has deleted generation {generation}: the pages that differ are written"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The end of what the server holds of a generation; none where it does not say.
async fn end_of(remote: &Remote, generation: u32) -> Result<Option<Offset>, SyncError> {
    let after_all = Range { generation, start: u32::MAX - 1, end: u32::MAX };
    match remote.stream(after_all).await? {
        Streamed::Nothing { max_frame_no, .. } => Ok(max_frame_no.map(|last| Offset(u64::from(last) + 1))),
        Streamed::Frames(_) => Ok(None),
    }
}

async fn push(what: &Replicate, plan: &mut Plan) -> Result<(), SyncError> {
    let (remote, path, batch) = (&what.remote, &what.database, what.batch.max(1));
    let file = path.clone();
    drop(off(move || Stay::beside_others(&file)).await??);
    if remote.info().await?.is_none() {
        plan.notes.push("the server does not say what it holds: it may have no such database".to_owned());
    }
    let pages = "the pages that differ from what the server holds are sent as one transaction";
    if let Some(live) = push::resume(remote, path, (batch, false), false).await? {
        let Position { frame, .. } = live.position();
        plan.from = Some(Offset(u64::from(frame) + 1));
        plan.notes.push(format!("where the WAL does not go on from frame {frame} of the server, {pages}"));
        return Ok(());
    }
    match Push::open(remote.clone(), path, batch).await {
        Ok(mut push) => {
            let (held, frames) = push.compared().await?;
            plan.compares = Some(Offset(held.into())).filter(|at| at.0 > 0);
            (plan.from, plan.to) = (Some(Offset(u64::from(held) + 1)), Some(Offset(u64::from(frames.max(held)) + 1)));
        }
        Err(error @ (SyncError::Base { .. } | SyncError::Generation { .. })) => {
            let live = push::live_instead(remote, path, (batch, false), error).await?;
            plan.from = Some(Offset(u64::from(live.position().frame) + 1));
            plan.notes.push(pages.to_owned());
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
