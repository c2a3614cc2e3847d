//! Making a read replica file: the database as of the source's last commit is built beside it, checked on the way, and gets its
//! name when it is whole. What had that name before is set aside, with the files that SQLite keeps beside it, or was ours.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tokio::time::sleep;
use uuid::Uuid;

use super::kept::{Kept, at, of_file, sum_of, with_a_wal};
use super::record::{FileRecord, FileState, Position, RecordFile, sync_dir};
use super::target::{Instead, is_blank, state_of};
use crate::api::LastCommit;
use crate::checkpoint::{Wanted, restore_dir, restore_url};
use crate::client::{named_base, positions};
use crate::format::database::HEADER_LEN;
use crate::limits::BASE_PROGRESS_EVERY;
use crate::mirror::database::off;
use crate::mirror::endpoint::Mirror;
use crate::mirror::failure::MirrorError;
use crate::mirror::others;
use crate::mirror::run::{Event, Progress};
use crate::mirror::source::{Extent, Piece, Reading, Source};
use crate::offset::Offset;
use crate::repo::give_owner;
use crate::segment::base::seen;
use crate::sqlite::names::{JOURNAL, SHM, WAL, aside_path, beside, move_beside};
use crate::sqlite::read_replica::ReadReplicaFile;

/// What the name of a file that is being built ends in.
const DRAFT: &str = "-logmirror-draft";

/// A database as of a commit, under the name of a draft.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) draft: PathBuf,
    pub(super) at: Position,
}

/// Builds the database as of the last commit of the generation of `extent`. Reports its bytes as they are written.
///
/// # Errors
/// When the source does not hold it whole.
pub(super) async fn build(
    mirror: &Mirror,
    source: &Source,
    extent: &Extent,
    path: &Path,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<Built, MirrorError> {
    let (draft, whose) = (beside(path, DRAFT), path.to_owned());
    off(move || remove_drafts(&whose)).await?;
    // Nobody reads the draft who may not read the file.
    let (begun, whose) = (draft.clone(), path.to_owned());
    off(move || begin_draft(&begun, &whose)).await??;
    let (generation, out) = (matches!(source, Source::Url(_)).then_some(extent.generation), draft.clone());
    let wanted = Wanted { to: None, generation, out, overwrite: true, plain: false };
    let growing = crate::checkpoint::draft_path(&draft)?;
    let restored = async {
        Ok::<_, MirrorError>(match source {
            Source::Url(client) => restore_url(client, &wanted).await?.1,
            Source::Dir(repo) => {
                let (dir, wanted) = (repo.path().to_owned(), wanted.clone());
                off(move || restore_dir(&dir, &wanted)).await??.1
            }
        })
    };
    let (mut restored, before) = (std::pin::pin!(restored), progress.bytes);
    let folded = loop {
        tokio::select! {
            folded = restored.as_mut() => break folded.map_err(|error| {
                let _ = fs::remove_file(&draft);
                match error {
                    MirrorError::Restore(error) if error.is_data() => MirrorError::SourceRestore(error),
                    error => error,
                }
            })?,
            () = sleep(BASE_PROGRESS_EVERY) => {
                progress.bytes = before + fs::metadata(&growing).map_or(0, |found| found.len());
                told(Event::Moved(*progress));
            }
        }
    };
    progress.bytes = before + folded.bytes;
    let last = last_commit(source, extent, folded.frame, mirror.commit_bytes_max).await?;
    let (generation, base) = (extent.generation, extent.base);
    Ok(Built { draft, at: Position { generation, next: Offset(folded.frame.0 + 1), last, base } })
}

/// Makes the draft of a file that is there, without a byte: what is built takes its owner and mode from it.
fn begin_draft(draft: &Path, path: &Path) -> Result<(), MirrorError> {
    let Ok(before) = fs::metadata(path) else {
        return Ok(());
    };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    made.and_then(|file| give_owner(&file, &before, path)).map_err(|error| at(path, error))
}

/// The commit that ends with a frame.
async fn last_commit(
    source: &Source,
    extent: &Extent,
    frame: Offset,
    max: u64,
) -> Result<Option<LastCommit>, MirrorError> {
    if let Source::Url(client) = source {
        let status = client.status().await?;
        let found = positions(&status)?;
        // The database may be the answer of another service than the one that was asked before.
        others::check_log(Uuid::parse_str(&status.id).ok(), extent.log)?;
        others::check_base(named_base(&status, extent.generation)?, extent.base)?;
        if let (true, Some(last)) = (found.generation == extent.generation, found.last_commit)
            && last.offset.0 + u64::from(last.entries) == frame.0 + 1
        {
            return Ok(Some(last));
        }
    }
    if frame == Offset(0) {
        return Ok(None);
    }
    let Extent { generation, base, log, .. } = *extent;
    let reading = Reading { generation, from: frame, held: true, follow: false, base, log };
    let mut pieces = source.stream(reading, max);
    while let Some(piece) = pieces.recv().await {
        let Piece::Batch(batch) = piece? else { continue };
        let first = batch.runs().next().and_then(|run| run.commits().next());
        if let Some((_, commit)) = first {
            // The frames of a WAL do not say which they are: the commit that holds this one, its last, was asked for.
            let offset = Offset((frame.0 + 1).saturating_sub(u64::from(commit.entries)));
            return Ok(Some(LastCommit { offset, ..LastCommit::from(&commit) }));
        }
    }
    Err(MirrorError::Interrupted(format!("the source does not show the transaction that ends with frame {frame}")))
}

/// Gives what was built its name. Returns the file, open, and where what had the name before was set aside. Blocks.
///
/// # Errors
/// When the disk fails. What was there is still there then, under its name or aside.
pub(super) fn install(
    path: &Path,
    built: Built,
    store: RecordFile,
    record: FileRecord,
    instead: &Instead,
) -> Result<(Kept, Option<PathBuf>), MirrorError> {
    let failed = |error| at(path, error);
    if let Ok(before) = fs::metadata(path) {
        // Those who may read the file may read the one in its place.
        let draft = fs::File::open(&built.draft).map_err(failed)?;
        give_owner(&draft, &before, path).map_err(failed)?;
    }
    let meanwhile = Instead::touched("while it was made again");
    let instead = match instead {
        // It was not locked while that was built.
        Instead::Ours if !is_unchanged(path, &record) => &meanwhile,
        instead => instead,
    };
    // What is set aside is none of ours from here on, also while it still has the file's name.
    let record = match instead.reason() {
        Some(_) => FileRecord { now: None, mark: None, ..record },
        None => record,
    };
    let sum = prepare(&built.draft, record.key).map_err(failed)?;
    let now = FileState { at: built.at, sum };
    let (mut store, noted) = (store, FileRecord { upcoming: Some(now), ..record });
    store.store(&noted)?;
    let aside = make_room(path, instead).map_err(failed)?;
    let file = ReadReplicaFile::replace(path, &built.draft).map_err(of_file)?;
    let mut kept = Kept::new(file, store, noted, now, false)?;
    kept.settle()?;
    Ok((kept, aside))
}

/// Whether a file that was to be replaced is still the one that it was when that was decided: without a byte, or in a state that
/// the record names. Where the record does not say what the file looks like in that state, all of it is read.
fn is_unchanged(path: &Path, record: &FileRecord) -> bool {
    if record.now.is_none() {
        return is_blank(path) || path.symlink_metadata().is_err();
    }
    match ReadReplicaFile::open(path) {
        Ok(Some(file)) => state_of(&file, record).is_ok_and(|state| state.is_some()),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Makes a restored database one of exactly the pages that SQLite sees, with a WAL, and syncs it. Returns the sum of its pages.
fn prepare(draft: &Path, key: u64) -> io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(draft)?;
    let bytes = file.metadata()?.len();
    let mut head = vec![0; HEADER_LEN];
    let count = crate::repo::read_at(&file, &mut head, 0)?;
    let found = seen(&head[..count], bytes).map_err(io::Error::other)?;
    let found = found.ok_or_else(|| io::Error::other("what the source holds is no database that SQLite opens"))?;
    found.state(&mut head, 0);
    with_a_wal(&mut head);
    file.write_all_at(&head, 0)?;
    file.set_len(found.bytes())?;
    file.sync_all()?;
    sum_of(key, found.page_size, found.pages, |page, content| {
        file.read_exact_at(content, u64::from(page - 1) * u64::from(found.page_size))
    })
}

/// Takes what has the name of the file away, and what SQLite keeps beside it. Readers that have it open keep it.
fn make_room(path: &Path, instead: &Instead) -> io::Result<Option<PathBuf>> {
    let keep = *instead != Instead::Ours;
    let aside = aside_path(path, &[])?;
    let mut kept = false;
    if keep && path.symlink_metadata().is_ok() {
        // The name is never without a file; where there are no hard links it is for a moment.
        fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside))?;
        kept = true;
    }
    if keep {
        kept |= move_beside(path, &aside)?;
    }
    for ending in [WAL, SHM, JOURNAL].iter().filter(|_| !keep) {
        match fs::remove_file(beside(path, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    sync_dir(path)?;
    Ok(kept.then_some(aside))
}

/// Removes what attempts that ended left of drafts. To be called by the one who has the record.
fn remove_drafts(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), beside(path, DRAFT).file_name().map(ToOwned::to_owned)) else {
        return;
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(name.as_encoded_bytes())) {
        if let Err(error) = fs::remove_file(entry.path()) {
            log::warn!("{}: it is left of an attempt that ended: {error}", entry.path().display());
        }
    }
}
