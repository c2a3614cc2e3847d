//! One attempt to bring a read replica file to where its source is, and to keep it there.

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::error::ReplicaFileError;
use super::fresh::{build, install};
use super::kept::{Kept, of_file};
use super::record::{FileRecord, Followed, Position, RecordFile};
use super::same_log::proven;
use super::step::step;
use super::target::{Found, Instead, ReplicaFile, gone, is_in_place, open};
use crate::client::{ClientError, without_secrets};
use crate::format::LogFormat;
use crate::limits::{REPLICA_PUBLISH_BYTES, REPLICA_SETTLE_AFTER, SINK_LOOK_EVERY};
use crate::mirror::attempt::check_end;
use crate::mirror::base::unset;
use crate::mirror::database::off;
use crate::mirror::endpoint::{Mirror, Place};
use crate::mirror::failure::MirrorError;
use crate::mirror::missing::Warning;
use crate::mirror::others;
use crate::mirror::overlap::Overlap;
use crate::mirror::ownership::source_identity;
use crate::mirror::run::{Event, Progress};
use crate::mirror::source::{Extent, Piece, Reading, Source};
use crate::offset::Offset;
use crate::sqlite::names::may_be_set_aside;
use crate::sqlite::opener_of;
use crate::sqlite::page_sums::new_key;

use crate::stream::{MirrorRecord, ReadError, Tail};

/// What a source holds; of a directory, as its mirror record says.
///
/// # Errors
/// [`ReplicaFileError::Source`] for a source that makes no database.
pub(super) async fn extent_of(source: &Source, target: &ReplicaFile) -> Result<Extent, MirrorError> {
    let mut extent = source.extent(None).await?;
    if let Source::Dir(repo) = source {
        let record = MirrorRecord::read(repo).map_err(ReadError::Io)?;
        if let Some(record) = record.filter(|record| record.format == LogFormat::Wal) {
            (extent.generation, extent.log) = (record.generation, record.log);
        }
    }
    match extent.format {
        Some(LogFormat::Wal) => Ok(extent),
        Some(format) => Err(ReplicaFileError::Source {
            path: target.path.clone(),
            what: format!("a {format}, which makes no database"),
            advice: "give a directory as DST (a slash at its end says that it is one)",
        }
        .into()),
        None => Err(MirrorError::Interrupted("the source is empty".into())),
    }
}

/// Which source a file must follow.
pub(super) fn followed(mirror: &Mirror, extent: &Extent) -> Followed {
    let source = match &mirror.source {
        Place::Url(url) => without_secrets(url),
        Place::Dir(path) => source_identity(path),
    };
    let log = extent.log.map(|log| log.to_string());
    Followed { source, log, former: None, adopt: mirror.adopt }
}

/// Mirrors what is missing, and then follows if that is wanted.
pub(in crate::mirror) async fn attempt(
    mirror: &Mirror,
    source: &Source,
    target: &mut ReplicaFile,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let extent = extent_of(source, target).await?;
    let followed = followed(mirror, &extent);
    is_in_place(&target.path, target.was_kept)?;
    // A log that was deleted and created again is another one.
    target.kept = target.kept.take().filter(|kept| kept.follows(&followed));
    if target.kept.is_none() {
        let followed = proven(mirror, source, &extent, target).await?;
        let (path, wanted) = (target.path.clone(), followed.clone());
        match off(move || open(&path, &wanted)).await?? {
            Found::Kept(kept) => target.kept = Some(kept),
            Found::Fresh { store, instead } => {
                if !mirror.create && instead == Instead::Nothing {
                    store.remove_if_empty();
                    return Err(MirrorError::Absent { place: target.path.display().to_string() });
                }
                let record = FileRecord::new(&followed.source, followed.log.clone(), new_key());
                let made = make(mirror, source, &extent, target, (store, record, instead), progress, told).await;
                made?;
            }
        }
    }
    target.was_kept = true;
    let (mut extent, mut again) = (extent, false);
    loop {
        let error = match go_on(mirror, source, &extent, target, progress, told).await {
            Ok(()) => {
                // The source may have gone on while this one was copied, or what was asked first was an old answer.
                let now = extent_of(source, target).await?;
                if now.generation > extent.generation && now.log == extent.log {
                    extent = now;
                    continue;
                }
                others::is_still(&extent, &now)?;
                break;
            }
            Err(error) => error,
        };
        let Some(instead) = made_again_for(&error, mirror).filter(|_| !again) else {
            // A stream ends with its generation.
            match extent_of(source, target).await {
                Ok(now) if mirror.follow && now.generation > extent.generation && now.log == extent.log => extent = now,
                _ => return Err(error),
            }
            continue;
        };
        again = true;
        is_in_place(&target.path, target.was_kept)?;
        if instead == Instead::Ours {
            log::info!("{error}: the file is made again, and those who have it open keep what they have");
        }
        let (store, record) = match target.kept.take() {
            Some(kept) => kept.into_store(),
            None => {
                let path = target.path.clone();
                off(move || {
                    let store = RecordFile::lock(&path)?;
                    let record = store.read()?;
                    Ok::<_, MirrorError>((store, record))
                })
                .await?
                .map(|(store, record)| {
                    let fresh = || FileRecord::new(&followed.source, followed.log.clone(), new_key());
                    (store, record.unwrap_or_else(fresh))
                })?
            }
        };
        // Where the source is now.
        extent = extent_of(source, target).await?;
        make(mirror, source, &extent, target, (store, record, instead), progress, told).await?;
    }
    match target.kept.take() {
        Some(kept) => off(move || kept.finish()).await?,
        None => Ok(()),
    }
}

/// What a file is made again in place of after an error of going on with it; none where that would not help.
fn made_again_for(error: &MirrorError, mirror: &Mirror) -> Option<Instead> {
    match error {
        MirrorError::ReplicaFile(ReplicaFileError::Again { .. }) => Some(Instead::Ours),
        MirrorError::ReplicaFile(ReplicaFileError::Touched { what, .. }) => Some(Instead::touched(what)),
        MirrorError::Fork { .. }
        | MirrorError::Reset { .. }
        | MirrorError::LaterGeneration { .. }
        | MirrorError::OtherBase { .. }
            if mirror.adopt =>
        {
            Some(Instead::Aside(error.to_string()))
        }
        // One that follows waits for a source that lost its end, which may bring it back.
        MirrorError::Ahead { .. } if mirror.adopt && !mirror.follow => Some(Instead::Aside(error.to_string())),
        _ => None,
    }
}

/// Makes the file, as of the end of the source.
async fn make(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    target: &mut ReplicaFile,
    (store, record, instead): (RecordFile, FileRecord, Instead),
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    if mirror.follow && matches!(instead, Instead::Written(_)) {
        let path = target.path.clone();
        off(move || may_be_set_aside(&path, opener_of(&path))).await?.map_err(of_file)?;
    }
    let first = extent.first.unwrap_or_default();
    progress.begin(extent.generation, first);
    told(Event::Started { from: first, held: false, source_bytes: source.bytes_from(first, extent) });
    let built = match build(mirror, source, extent, &target.path, progress, told).await {
        Ok(built) => built,
        Err(error) => {
            store.remove_if_empty();
            return Err(error);
        }
    };
    let (path, at, reason) = (target.path.clone(), built.at, instead.clone());
    let (kept, aside) = off(move || install(&path, built, store, record, &instead)).await??;
    target.kept = Some(Box::new(kept));
    if let Some(aside) = aside {
        let reason = reason.reason().unwrap_or("files of SQLite's were beside the place of DST");
        let (path, aside) = (target.path.display(), aside.display());
        let text =
            format!("sink: {path}: {reason}: what was there is set aside as {aside}, and the file is made again");
        told(Event::Warning(Warning { text, missing: None }));
    }
    (progress.next, progress.durable) = (at.next, at.next);
    progress.counted = (at.generation, at.next);
    told(Event::Opened { durable: at.next });
    told(Event::Moved(*progress));
    Ok(())
}

/// Goes on with a file that is open.
async fn go_on(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    target: &mut ReplicaFile,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let Some(Position { generation: held, .. }) = target.position() else { return Err(gone()) };
    if held > extent.generation {
        return Err(MirrorError::LaterGeneration { sink: held, source_generation: extent.generation });
    }
    if held < extent.generation {
        let Source::Url(client) = source else {
            let why = format!("it is in generation {held}, and the directory that it follows in {}", extent.generation);
            return Err(ReplicaFileError::Again { path: target.path.clone(), why }.into());
        };
        let older = source.extent_of(held).await?;
        if let Some(older) = &older {
            let once = Mirror { follow: false, ..mirror.clone() };
            bring(&once, source, older, target, progress, told).await?;
        }
        let fetched = step(client, extent, target, mirror.commit_bytes_max).await;
        if fetched.is_err() {
            // What was appended for it is no transaction.
            target.kept = None;
        }
        let fetched = fetched?;
        if fetched > 0 {
            let now = extent.generation;
            let reason = match older.is_some() && now.0 == held.0.saturating_add(1) {
                // All that was before is in the file.
                true => format!("the source started generation {now} from another database"),
                false => format!("the source went from generation {held} to {now}, and not all between could be read"),
            };
            told(Event::Compared { reason, pages: fetched.into() });
        }
        if let Some(position) = target.position() {
            progress.begin(position.generation, position.next);
            progress.counted = (position.generation, position.next);
            told(Event::Moved(*progress));
        }
    }
    bring(mirror, source, extent, target, progress, told).await
}

/// Brings the file to the end of its generation, and follows if that is wanted.
async fn bring(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    target: &mut ReplicaFile,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let Some(Position { generation, next, last, base: held_base }) = target.position() else { return Err(gone()) };
    if let (Some(held), Some(offered)) = (held_base, extent.base)
        && held != offered
    {
        if held == unset() {
            let why = "the source was given its first base".to_owned();
            return Err(ReplicaFileError::Again { path: target.path.clone(), why }.into());
        }
        return Err(MirrorError::OtherBase {
            place: target.path.display().to_string(),
            held: format!("its generation {generation} starts from the one with the SHA-256 {held}"),
            offered: format!("that of SRC from the one with the SHA-256 {offered}"),
            advice: "choose another DST, or give --adopt to set this file aside and make a new one",
        });
    }
    let mut held = Overlap::only(last);
    progress.begin(generation, next);
    told(Event::Started { from: next, held: true, source_bytes: source.bytes_from(progress.uncounted(), extent) });
    told(Event::Opened { durable: next });
    told(Event::Moved(*progress));
    let extent = &not_before(source, extent, next).await?;
    if let Some(source_end) = extent.end.filter(|end| *end < next) {
        return Err(MirrorError::Ahead { sink: next, source_end });
    }
    let (from, base) = (held.next().unwrap_or(next), held_base.or(extent.base));
    let (held_first, log) = (held.next().is_some(), extent.log);
    let reading = Reading { generation, from, held: held_first, follow: mirror.follow, base, log };
    let pumped = pump(source, reading, mirror.commit_bytes_max, &mut held, target, progress, told).await;
    // What was appended is sound, and is kept, whatever became of the rest.
    if target.kept.as_ref().is_some_and(|kept| kept.bytes() > 0) {
        publish(target, progress, told).await?;
    }
    check_end(mirror, extent, pumped?, progress.next)
}

/// What a source holds of the generation of `extent`. It is asked again where it ended before `next`: it may have been asked before
/// the file received what it holds.
async fn not_before(source: &Source, extent: &Extent, next: Offset) -> Result<Extent, MirrorError> {
    if extent.end.is_none_or(|end| end >= next) {
        return Ok(*extent);
    }
    let went_on = || MirrorError::Interrupted(format!("the source went on from generation {}", extent.generation));
    match source {
        Source::Url(_) => source.extent_of(extent.generation).await?.ok_or_else(went_on),
        Source::Dir(_) => Ok(Extent { generation: extent.generation, log: extent.log, ..source.extent(None).await? }),
    }
}

/// Appends what the source sends, and publishes it as soon as no more is waiting.
async fn pump(
    source: &Source,
    reading: Reading,
    max: u64,
    held: &mut Overlap,
    target: &mut ReplicaFile,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Tail, MirrorError> {
    let sink = progress.next;
    let mut pieces = source.stream(reading, max);
    let mut looks = interval_at(Instant::now() + SINK_LOOK_EVERY, SINK_LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_settled = target.kept.as_ref().is_none_or(|kept| kept.is_settled());
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            _ = looks.tick() => {
                target.with(Kept::look).await?;
                continue;
            }
            () = sleep(REPLICA_SETTLE_AFTER), if !is_settled => {
                target.with(Kept::settle).await?;
                continue;
            }
        };
        let batch = match piece {
            None => return Err(gone()),
            Some(Err(MirrorError::Read(ReadError::Ahead { next, .. }))) => {
                return Err(MirrorError::Ahead { sink, source_end: next });
            }
            Some(Err(MirrorError::Read(ReadError::Reset { at }))) => return Err(MirrorError::Reset { at }),
            Some(Err(MirrorError::Client(ClientError::Refused { body, .. }))) if body.error == "ahead" => {
                return Err(MirrorError::Ahead { sink, source_end: body.next.unwrap_or_default() });
            }
            Some(Err(error)) => return Err(error),
            Some(Ok(Piece::Live { next, bytes })) => {
                told(Event::SourceLive { next, bytes });
                continue;
            }
            Some(Ok(Piece::Mark(_) | Piece::Compared { .. } | Piece::Stepped(_))) => continue,
            Some(Ok(Piece::End(tail))) => {
                return match held.next() {
                    Some(source_end) => Err(MirrorError::Ahead { sink, source_end }),
                    None => Ok(tail),
                };
            }
            Some(Ok(Piece::Batch(batch))) => batch,
        };
        let batch = if held.next().is_some() { held.without(batch).await? } else { batch };
        for run in batch.runs() {
            progress.count(run);
            let run = run.clone();
            target.with(move |kept| kept.append_run(&run)).await?;
            if target.kept.as_ref().is_some_and(|kept| kept.bytes() >= REPLICA_PUBLISH_BYTES) {
                publish(target, progress, told).await?;
            }
        }
        if pieces.is_empty() && target.kept.as_ref().is_some_and(|kept| kept.bytes() > 0) {
            publish(target, progress, told).await?;
        }
        told(Event::Moved(*progress));
    }
}

/// Makes what was appended visible.
async fn publish(
    target: &mut ReplicaFile,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    progress.durable = target.with(|kept| kept.publish_runs().map(|()| kept.position().next)).await?;
    told(Event::Moved(*progress));
    Ok(())
}
