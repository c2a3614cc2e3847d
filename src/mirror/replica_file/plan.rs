//! What a mirror into a read replica file would do, found out without changing anything.

use super::attempt::extent_of;
use super::error::ReplicaFileError;
use super::record::read_record;
use super::same_log::proven;
use super::target::{ReplicaFile, is_ours_or_absent};
use crate::mirror::endpoint::Mirror;
use crate::mirror::failure::MirrorError;
use crate::mirror::overlap::Overlap;
use crate::mirror::plan::Plan;
use crate::mirror::pump::compare;
use crate::mirror::source::{Reading, Source};

/// Finds out what an attempt would do with a file, as far as its record says where it is.
///
/// # Errors
/// Those that would stop the mirror before anything is written.
pub(in crate::mirror) async fn plan(
    mirror: &Mirror,
    source: &Source,
    target: &ReplicaFile,
) -> Result<Plan, MirrorError> {
    let path = &target.path;
    is_ours_or_absent(path)?;
    let extent = extent_of(source, target).await?;
    let followed = proven(mirror, source, &extent, target).await?;
    let mut plan = Plan { to: extent.end, ..Plan::default() };
    let record = read_record(path)?.filter(|_| path.exists());
    let Some(record) = record else {
        if !mirror.create && !path.exists() {
            return Err(MirrorError::Absent { place: path.display().to_string() });
        }
        (plan.creates, plan.from) = (Some(path.display().to_string()), extent.first);
        plan.bytes = source.bytes_from(extent.first.unwrap_or_default(), &extent);
        plan.notes.push(format!("the base of generation {} is fetched first", extent.generation));
        return Ok(plan);
    };
    if !record.is_of(&followed) {
        if !followed.adopt {
            let (held, offered) = (record.source, followed.source);
            return Err(ReplicaFileError::OtherLog { path: path.clone(), held, offered }.into());
        }
        (plan.creates, plan.from) = (Some(path.display().to_string()), extent.first);
        plan.notes.push(format!("DST follows {}: it is set aside", record.source));
        return Ok(plan);
    }
    let Some(at) = record.now.map(|now| now.at) else {
        (plan.creates, plan.from) = (Some(path.display().to_string()), extent.first);
        return Ok(plan);
    };
    plan.from = Some(at.next);
    if at.generation < extent.generation {
        plan.notes.push(format!(
            "DST is in generation {}: what differs in generation {} of SRC is found by comparing pages",
            at.generation, extent.generation
        ));
        return Ok(plan);
    }
    let held = Overlap::only(at.last);
    if let Some(from) = held.next() {
        let (generation, log) = (at.generation, extent.log);
        let reading = Reading { generation, from, held: true, follow: false, base: None, log };
        compare(source.stream(reading, mirror.commit_bytes_max), held, at.next).await?;
        plan.compares = Some(from);
    }
    plan.bytes = source.bytes_from(at.next, &extent);
    Ok(plan)
}
