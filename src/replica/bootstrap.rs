//! A replica from nothing. Owns: the order of steps that lets a crash repeat them harmlessly: both databases are made under
//! names of their own, synced, and named; what says that there is a replica comes last.

use std::io::{self, IoSlice};
use std::sync::Arc;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::Tell;
use super::error::ReplicaError;
use super::files::{Files, Held};
use super::info::Info;
use super::options::Options;
use super::pull::mark_of;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader};
use crate::limits::REPLICA_PIECES_UNDER_WAY;
use crate::repo::RepoFile;
use crate::sqlite::btree::PAGE_LEN;
use crate::sync::{FRAME_LEN, Range, Remote, Streamed, SyncError};

/// The two databases in the making.
struct Parts {
    files: Files,
    both: [Arc<dyn RepoFile>; 2],
    names: [String; 2],
    held: Held,
}

impl Parts {
    /// Empty ones, with what an earlier attempt left gone.
    fn create(files: &Files) -> Result<Parts, ReplicaError> {
        let names = [files.synced(), files.draft()].map(|name| format!("{name}.part"));
        let draft = &names[1];
        // Whoever is at it now has it locked, and keeps it so under its new name.
        if files.is_there(draft)? {
            drop(files.hold(draft)?);
        }
        let create = |name: &String| {
            files.remove(name)?;
            files.dir.create(name).map_err(ReplicaError::io("making", name))
        };
        let both = [create(&names[0])?, create(&names[1])?];
        let held = files.hold(draft)?;
        Ok(Parts { files: files.clone(), both, names, held })
    }

    fn write(both: &[Arc<dyn RepoFile>; 2], bytes: &[u8], at: u64) -> io::Result<()> {
        both.iter().try_for_each(|file| file.write_at(&mut [IoSlice::new(bytes)], at))
    }

    /// Names them, so that only their info is missing. A WAL or journal of that name would be taken for theirs.
    fn install(self) -> Result<Held, ReplicaError> {
        let Parts { files, both: [synced, draft], names, held } = self;
        let sync = |file: &Arc<dyn RepoFile>, name: &String| file.sync().map_err(ReplicaError::io("syncing", name));
        let synced = std::thread::scope(|scope| {
            let other = scope.spawn(|| sync(&draft, &names[1]));
            let one = sync(&synced, &names[0]);
            one.and(other.join().unwrap_or_else(|_| Err(ReplicaError::Interrupted("a sync was interrupted".into()))))
        });
        synced?;
        for database in [files.synced(), files.draft()] {
            for ending in ["-wal", "-shm", "-journal"] {
                files.remove(&format!("{database}{ending}"))?;
            }
        }
        files.forget_pushed(None)?;
        let dir = files.dir.place();
        files.dir.sync_dir().map_err(ReplicaError::io("syncing", &dir))?;
        for (part, name) in names.iter().zip([files.synced(), files.draft()]) {
            files.dir.rename(part, &name).map_err(ReplicaError::io("naming", &name))?;
        }
        files.dir.sync_dir().map_err(ReplicaError::io("syncing", &dir))?;
        Ok(held)
    }
}

/// Makes a replica of all that the remote has, telling of bytes as they come. There must be none.
///
/// # Errors
/// When the remote or a file fails. Trying again starts over.
pub(super) async fn bootstrap(
    remote: &Remote,
    files: &Files,
    options: &Options,
    tell: &Arc<Tell>,
) -> Result<(Info, Held), ReplicaError> {
    let mut generation = remote.info().await?.unwrap_or(1);
    let mut until = u32::MAX;
    let (parts, made) = loop {
        let ours = files.clone();
        let parts = blocking(move || Parts::create(&ours)).await?;
        match fill(remote, &parts, Wanted { generation, until, batch: options.wal_pull_batch_size }, tell).await {
            Ok(Filled::Whole(frame, last)) => break (parts, (frame, last)),
            // What is behind the last commit is an unfinished transaction: once more, without.
            Ok(Filled::Cut { after }) => until = after,
            // Only the current generation is exported, and it may have ended meanwhile.
            Err(ReplicaError::Remote(SyncError::Status { status: 404 | 410, .. }))
                if remote.info().await?.is_some_and(|current| current > generation) =>
            {
                (generation, until) = (remote.info().await?.unwrap_or(1), u32::MAX);
            }
            Err(error) => return Err(error),
        }
    };
    let (frame, last_frame) = made;
    let client = format!("{}-{}", options.client_name, Uuid::new_v4());
    let info = Info::new(client, generation, frame, last_frame);
    let (ours, stored) = (files.clone(), info.clone());
    let held = blocking(move || {
        let held = parts.install()?;
        stored.store(&*ours.dir, &ours.info())?;
        Ok(held)
    });
    Ok((info, held.await?))
}

/// Which frames are to come.
#[derive(Clone, Copy)]
struct Wanted {
    generation: u32,
    /// The last one.
    until: u32,
    /// How many at a time.
    batch: u32,
}

enum Filled {
    /// Up to this frame, and what tells it from others.
    Whole(u32, Option<u32>),
    /// Frames came after this one, which ended the last transaction.
    Cut { after: u32 },
}

/// What the thread that writes has found.
#[derive(Default)]
struct Written {
    frames: u32,
    /// The last that ended a transaction, and the size of the database there.
    commit: Option<(u32, u32)>,
    last: Option<u32>,
}

async fn fill(remote: &Remote, parts: &Parts, wanted: Wanted, tell: &Arc<Tell>) -> Result<Filled, ReplicaError> {
    let (both, told) = (parts.both.clone(), tell.clone());
    let write = move |piece: &[u8], at| {
        told(piece.len() as u64);
        Parts::write(&both, piece, at).map_err(|error| SyncError::Interrupted(format!("writing an export: {error}")))
    };
    let base = remote.export(wanted.generation, write).await?;
    let both = parts.both.clone();
    blocking(move || check(&both[0], base)).await?;
    let (to_write, mut pieces) = mpsc::channel::<bytes::Bytes>(REPLICA_PIECES_UNDER_WAY);
    let both = parts.both.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut written = Written::default();
        while let Some(piece) = pieces.blocking_recv() {
            pages(&both, &piece, &mut written)?;
        }
        if let Some((_, size)) = written.commit {
            for file in &both {
                let cut = file.truncate(u64::from(size) * PAGE_LEN as u64);
                cut.map_err(ReplicaError::io("cutting", "the new replica"))?;
            }
        }
        Ok::<_, ReplicaError>(written)
    });
    let streamed = frames(remote, wanted, &**tell, to_write).await;
    let written = writing.await.map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
    let (written, ()) = (written?, streamed?);
    let ended = written.commit.map_or(0, |(frame, _)| frame);
    if written.frames > ended {
        return Ok(Filled::Cut { after: ended });
    }
    Ok(Filled::Whole(ended, written.last))
}

/// Sends all frames to the thread that writes.
async fn frames(
    remote: &Remote,
    Wanted { generation, until, batch }: Wanted,
    tell: &Tell,
    to_write: mpsc::Sender<bytes::Bytes>,
) -> Result<(), ReplicaError> {
    let mut start = 1_u32;
    while start <= until {
        let (before, end) = (start, start.saturating_add(batch.max(1)).min(until.saturating_add(1)));
        let Streamed::Frames(mut stream) = remote.stream(Range { generation, start, end }).await? else {
            break;
        };
        while let Some(piece) = stream.next().await? {
            start = start.saturating_add((piece.len() / FRAME_LEN) as u32);
            tell(piece.len() as u64);
            if to_write.send(piece).await.is_err() {
                // What ended it is told by the thread.
                return Ok(());
            }
        }
        if start == before {
            let reason = "no frame, though it says there are some".to_owned();
            return Err(SyncError::Protocol { call: "reading frames".into(), reason }.into());
        }
    }
    Ok(())
}

/// Puts the pages of frames where they belong.
fn pages(both: &[Arc<dyn RepoFile>; 2], frames: &[u8], written: &mut Written) -> Result<(), ReplicaError> {
    for frame in frames.chunks_exact(FRAME_LEN) {
        let Some((head, page)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { continue };
        let head = FrameHeader::decode(head);
        written.frames += 1;
        if head.page == 0 {
            let reason = format!("frame {} is of page 0", written.frames);
            return Err(SyncError::Protocol { call: "reading frames".into(), reason }.into());
        }
        let at = u64::from(head.page - 1) * PAGE_LEN as u64;
        Parts::write(both, page, at).map_err(ReplicaError::io("writing", "the new replica"))?;
        if head.size > 0 {
            written.commit = Some((written.frames, head.size));
            written.last = Some(mark_of(frame));
        }
    }
    Ok(())
}

/// Makes sure that an export is a database with the pages of the protocol.
fn check(file: &Arc<dyn RepoFile>, bytes: u64) -> Result<(), ReplicaError> {
    if bytes == 0 {
        return Ok(());
    }
    let mut head = [0; crate::format::database::HEADER_LEN];
    let read = file.read_at(&mut head, 0).map_err(ReplicaError::io("reading", "the new replica"))?;
    match crate::format::database::check(&head[..read], bytes) {
        Ok(size) if size == PAGE_LEN as u32 => Ok(()),
        Ok(_) => Err(ReplicaError::Unsupported("the remote's database has pages of another size than 4096 bytes")),
        Err(reason) => Err(SyncError::Protocol { call: "reading an export".into(), reason }.into()),
    }
}

/// Runs work that waits for a disk where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ReplicaError::Interrupted(error.to_string())))
}
