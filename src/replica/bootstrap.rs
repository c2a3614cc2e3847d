//! A replica from nothing. Owns: the order of steps that lets a crash repeat them harmlessly: both databases are made under
//! names of their own, synced, and named; what says that there is a replica comes last.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::Tell;
use super::error::ReplicaError;
use super::files::{Files, Held};
use super::info::{Info, Remotely};
use super::options::Options;
use super::pull::mark_of;
use super::updates;
use crate::format::database::{self, DatabaseHeader};
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader};
use crate::limits::{REPLICA_PIECES_UNDER_WAY, REPLICA_STORE_BYTES};
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
        let held = files.hold(draft)?.and(files.hold(&names[0])?);
        Ok(Parts { files: files.clone(), both, names, held })
    }

    /// Leaves nothing of them.
    fn remove(self) -> Result<(), ReplicaError> {
        self.names.iter().try_for_each(|name| self.files.remove(name))
    }

    /// The same, with a database without a table in each.
    fn create_empty(files: &Files) -> Result<Parts, ReplicaError> {
        let parts = Parts::create(files)?;
        let page = database::empty(PAGE_LEN as u32);
        for (file, name) in parts.both.iter().zip(&parts.names) {
            file.write_at(&mut [IoSlice::new(&page)], 0).map_err(ReplicaError::io("writing", name))?;
        }
        Ok(parts)
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
        files.forget_pushed(&[])?;
        let dir = files.dir.place();
        files.dir.sync_dir().map_err(ReplicaError::io("syncing", &dir))?;
        // The draft comes last: one without the other would be taken for an application's.
        for (part, name) in names.iter().zip([files.synced(), files.draft()]) {
            files.dir.rename(part, &name).map_err(ReplicaError::io("naming", &name))?;
            files.dir.sync_dir().map_err(ReplicaError::io("syncing", &dir))?;
        }
        Ok(held)
    }
}

/// Makes a replica of all that the remote has, telling of bytes as they come. There must be none. Where the remote speaks
/// only of updates, or cannot be reached and the options allow for that, it is an empty one, and what the remote has comes
/// with the first fetch.
///
/// # Errors
/// When the remote or a file fails. Trying again starts over.
pub(super) async fn bootstrap(
    remote: &Remote,
    files: &Files,
    options: &Options,
    tell: &Arc<Tell>,
) -> Result<(Info, Held), ReplicaError> {
    let (ours, of_none) = (files.clone(), files.clone());
    let create = move || Parts::create(&ours);
    let create_empty = move || Parts::create_empty(&of_none);
    let client = format!("{}-{}", options.client_name, Uuid::new_v4());
    let making = Making { create, files: |parts: &Parts| &parts.both[..], remove: Parts::remove };
    let (parts, info) = match download(remote, options.wal_pull_batch_size, tell, making).await {
        Ok((parts, Remotely { generation, frame, last_frame }, base)) => {
            log::info!("{}: made of generation {generation} of the remote, up to frame {frame}", files.name());
            (parts, Info { base: Some(base), ..Info::new(client, generation, frame, last_frame) })
        }
        Err(ReplicaError::Remote(SyncError::Status { status: 404, .. })) if updates::are_spoken(remote).await => {
            log::info!("{}: made for a remote that speaks of updates only", files.name());
            (blocking(create_empty).await?, Info { revision: Some(String::new()), ..Info::new(client, 1, 0, None) })
        }
        Err(ReplicaError::Remote(error)) if options.start_offline && error.is_transient() => {
            log::warn!("{}: made empty, since the remote cannot be reached: {error}", files.name());
            (blocking(create_empty).await?, Info { unmade: true, ..Info::new(client, 1, 0, None) })
        }
        Err(error) => return Err(error),
    };
    let (ours, stored) = (files.clone(), info.clone());
    let held = blocking(move || {
        let held = parts.install()?;
        stored.store(&*ours.dir, &ours.info())?;
        Ok(held)
    });
    Ok((info, held.await?))
}

/// The remote's state now, in `file`, which `create` makes empty, and `remove` removes after an error.
///
/// # Errors
/// As of [`bootstrap`].
pub(super) async fn refetch(
    remote: &Remote,
    batch: u32,
    tell: &Arc<Tell>,
    create: impl Fn() -> Result<[Arc<dyn RepoFile>; 1], ReplicaError> + Clone + Send + 'static,
    remove: impl FnOnce() -> Result<(), ReplicaError> + Send + 'static,
) -> Result<(Arc<dyn RepoFile>, Remotely), ReplicaError> {
    let making = Making { create, files: |file: &[_; 1]| &file[..], remove: |_| remove() };
    let ([file], remotely, _) = download(remote, batch, tell, making).await?;
    Ok((file, remotely))
}

/// What a remote's state is brought into.
struct Making<T, C, R> {
    /// Makes it, anew for each attempt.
    create: C,
    files: fn(&T) -> &[Arc<dyn RepoFile>],
    /// Removes it after an error.
    remove: R,
}

/// Brings the remote's state into the files of what is made, with the digest of the base it was made of. After an error they
/// are gone.
async fn download<T: Send + 'static>(
    remote: &Remote,
    batch: u32,
    tell: &Arc<Tell>,
    making: Making<
        T,
        impl Fn() -> Result<T, ReplicaError> + Clone + Send + 'static,
        impl FnOnce(T) -> Result<(), ReplicaError> + Send + 'static,
    >,
) -> Result<(T, Remotely, String), ReplicaError> {
    let mut generation = remote.info().await?.unwrap_or(1);
    let mut until = u32::MAX;
    loop {
        let made = blocking(making.create.clone()).await?;
        let filled = fill(remote, (making.files)(&made), Wanted { generation, until, batch }, tell).await;
        let error = match filled {
            Ok(Filled::Whole { frame, last_frame, base }) => {
                return Ok((made, Remotely { generation, frame, last_frame }, base));
            }
            // What is behind the last commit is an unfinished transaction: once more, without.
            Ok(Filled::Cut { after }) => {
                until = after;
                continue;
            }
            Err(error) => error,
        };
        // Only the current generation is exported, and it may have ended meanwhile.
        if matches!(error, ReplicaError::Remote(SyncError::Status { status: 404 | 410, .. }))
            && let Ok(Some(current)) = remote.info().await
            && current > generation
        {
            (generation, until) = (current, u32::MAX);
            continue;
        }
        blocking(move || (making.remove)(made)).await?;
        return Err(error);
    }
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
    /// Up to this frame, and what tells it from others; the digest of the base, empty without one.
    Whole { frame: u32, last_frame: Option<u32>, base: String },
    /// Frames came after this one, which ended the last transaction.
    Cut { after: u32 },
}

/// What comes from the remote.
enum Piece {
    /// A part of the base, and the byte it starts at.
    Base(Bytes, u64),
    Frames(Bytes),
    /// The base is whole, and has so many bytes.
    BaseEnds(u64),
}

async fn fill(
    remote: &Remote,
    files: &[Arc<dyn RepoFile>],
    wanted: Wanted,
    tell: &Arc<Tell>,
) -> Result<Filled, ReplicaError> {
    let (to_write, mut pieces) = mpsc::channel(REPLICA_PIECES_UNDER_WAY);
    let files = files.to_vec();
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = Writer::new(&files)?;
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Base(piece, at) => writer.write(&mut [IoSlice::new(&piece)], at)?,
                Piece::BaseEnds(bytes) => files.iter().take(1).try_for_each(|file| check(file, bytes))?,
                Piece::Frames(frames) => writer.frames(&frames)?,
            }
        }
        writer.end()
    });
    let streamed = stream(remote, wanted, tell, to_write).await;
    let written = writing.await.map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
    // What ended the thread is the cause of what ended the stream.
    let (written, base) = (written?, streamed?);
    let ended = written.commit.map_or(0, |(frame, _)| frame);
    if written.frames > ended {
        return Ok(Filled::Cut { after: ended });
    }
    Ok(Filled::Whole { frame: ended, last_frame: written.last, base })
}

/// Sends all that comes to the thread that writes. The digest of the base, empty without one.
async fn stream(
    remote: &Remote,
    wanted: Wanted,
    tell: &Arc<Tell>,
    to_write: mpsc::Sender<Piece>,
) -> Result<String, ReplicaError> {
    let (told, sender) = (tell.clone(), to_write.clone());
    let gone = || SyncError::Interrupted("the new replica cannot be written".into());
    let write = move |piece: Bytes, at| {
        told(piece.len() as u64);
        sender.blocking_send(Piece::Base(piece, at)).map_err(|_| gone())
    };
    let (bytes, digest) = remote.export_with_digest(wanted.generation, write).await?;
    to_write.send(Piece::BaseEnds(bytes)).await.map_err(|_| gone())?;
    frames(remote, wanted, &**tell, to_write).await?;
    Ok(if bytes > 0 { digest.to_string() } else { String::new() })
}

/// Writes all files alike.
struct Writer<'a> {
    files: &'a [Arc<dyn RepoFile>],
    /// Those who sync them while they grow, so that little is left to do in the end.
    syncers: Vec<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
    unsynced: usize,
    written: Written,
}

/// What the thread that writes has found.
#[derive(Default)]
struct Written {
    frames: u32,
    /// The last that ended a transaction, and the size of the database there.
    commit: Option<(u32, u32)>,
    last: Option<u32>,
}

impl Writer<'_> {
    fn new(files: &[Arc<dyn RepoFile>]) -> Result<Writer<'_>, ReplicaError> {
        let syncer = |file: &Arc<dyn RepoFile>| {
            let (asked, asks) = sync_channel(1);
            let file = file.clone();
            let thread = thread::Builder::new().name("replica-sync".into());
            let thread = thread.spawn(move || asks.into_iter().try_for_each(|()| file.sync()));
            thread.map(|thread| (asked, thread)).map_err(ReplicaError::io("starting a thread for", "the new replica"))
        };
        let syncers = files.iter().map(syncer).collect::<Result<_, _>>()?;
        Ok(Writer { files, syncers, unsynced: 0, written: Written::default() })
    }

    fn write(&mut self, slices: &mut [IoSlice<'_>], at: u64) -> Result<(), ReplicaError> {
        for file in self.files {
            file.write_at(&mut slices.to_vec(), at).map_err(ReplicaError::io("writing", "the new replica"))?;
        }
        self.unsynced += slices.iter().map(|slice| slice.len()).sum::<usize>();
        if self.unsynced >= REPLICA_STORE_BYTES {
            self.unsynced = 0;
            for (asked, _) in &self.syncers {
                // One that is at it still will be asked again.
                let _is_busy = asked.try_send(());
            }
        }
        Ok(())
    }

    /// Puts the pages of frames where they belong, those that follow each other at once.
    fn frames(&mut self, frames: &[u8]) -> Result<(), ReplicaError> {
        let (mut run, mut first) = (Vec::new(), 0);
        for frame in frames.chunks_exact(FRAME_LEN) {
            let Some((head, page)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { continue };
            let head = FrameHeader::decode(head);
            self.written.frames += 1;
            if !head.is_possible() {
                let reason = format!("frame {} is of page {} of {}", self.written.frames, head.page, head.size);
                return Err(SyncError::Protocol { call: "reading frames".into(), reason }.into());
            }
            if head.size > 0 {
                self.written.commit = Some((self.written.frames, head.size));
                self.written.last = Some(mark_of(frame));
            }
            if u64::from(head.page) != u64::from(first) + run.len() as u64 {
                self.pages(&mut run, first)?;
                first = head.page;
            }
            run.push(IoSlice::new(page));
        }
        self.pages(&mut run, first)
    }

    fn pages(&mut self, run: &mut Vec<IoSlice<'_>>, first: u32) -> Result<(), ReplicaError> {
        if !run.is_empty() {
            self.write(run, u64::from(first.saturating_sub(1)) * PAGE_LEN as u64)?;
            run.clear();
        }
        Ok(())
    }

    /// Cuts off what is no part of the database, and ends the syncs under way.
    fn end(self) -> Result<Written, ReplicaError> {
        for (asked, thread) in self.syncers {
            drop(asked);
            let ended = thread.join().map_err(|_| ReplicaError::Interrupted("a sync was interrupted".into()))?;
            ended.map_err(ReplicaError::io("syncing", "the new replica"))?;
        }
        if let Some((_, size)) = self.written.commit {
            for file in self.files {
                let cut = file.truncate(u64::from(size) * PAGE_LEN as u64);
                cut.map_err(ReplicaError::io("cutting", "the new replica"))?;
            }
        }
        Ok(self.written)
    }
}

/// Sends all frames to the thread that writes.
async fn frames(
    remote: &Remote,
    Wanted { generation, until, batch }: Wanted,
    tell: &Tell,
    to_write: mpsc::Sender<Piece>,
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
            if to_write.send(Piece::Frames(piece)).await.is_err() {
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

/// Makes sure that an export is a database with the pages of the protocol.
fn check(file: &Arc<dyn RepoFile>, bytes: u64) -> Result<(), ReplicaError> {
    if bytes == 0 {
        return Ok(());
    }
    let mut head = [0; database::HEADER_LEN];
    let read = file.read_at(&mut head, 0).map_err(ReplicaError::io("reading", "the new replica"))?;
    match DatabaseHeader::of_file(&head[..read], bytes) {
        Ok(DatabaseHeader { page_size, .. }) if page_size as usize == PAGE_LEN => Ok(()),
        Ok(_) => Err(ReplicaError::Unsupported("the remote's database has pages of another size than 4096 bytes")),
        Err(reason) => {
            let reason = format!("this is no SQLite database: {reason}");
            Err(SyncError::Protocol { call: "reading an export".into(), reason }.into())
        }
    }
}

/// Runs work that waits for a disk where it holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ReplicaError::Interrupted(error.to_string())))
}
