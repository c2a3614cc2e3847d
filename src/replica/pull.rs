//! Frames of the remote into `P-synced`. Owns: whether they go on from what is there, and how far it is known to be.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::bootstrap::blocking;
use super::error::ReplicaError;
use super::info::Info;
use super::store::Store;
use super::updates;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader};
use crate::limits::REPLICA_STORE_BYTES;
use crate::sync::{FRAME_LEN, Range, Remote, Streamed, SyncError};

/// What tells a frame from another at its place: what is the same of it on all replicas.
pub(super) fn mark_of(frame: &[u8]) -> u32 {
    let (head, page) = frame.split_at(frame.len().min(FRAME_HEADER_LEN));
    crc32c::crc32c_append(crc32c::crc32c(&head[..head.len().min(8)]), page)
}

/// What the remote had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    /// Frames that are new.
    pub(super) frames: u64,
    pub(super) then: Then,
}

/// What has to be done after a fetch before there is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing: all is there.
    Nothing,
    /// The generation has ended, all of it is there, and there is a next one.
    NextGeneration,
    /// The remote has no frames any more that go on from what is there: its state has to be fetched whole.
    FetchWhole,
}

/// Frames taken and not yet counted.
#[derive(Debug, Default)]
pub(super) struct Taken {
    bytes: usize,
    /// Frames since the last that counts.
    frames: u32,
    /// Those up to the last that ends a transaction, and what tells it from others.
    ended: Option<(u32, u32)>,
}

impl Store {
    /// Writes frames that go on from what was taken before.
    pub(super) fn take(&mut self, frames: &[u8]) -> Result<(), ReplicaError> {
        for frame in frames.chunks_exact(FRAME_LEN) {
            let head = frame.first_chunk().map_or(FrameHeader::decode(&[0; FRAME_HEADER_LEN]), FrameHeader::decode);
            self.taken.frames += 1;
            if !head.is_possible() {
                let frame = self.info.synced_frame_no.saturating_add(self.taken.frames);
                let reason = format!("frame {frame} is of page {} of {}", head.page, head.size);
                return Err(SyncError::Protocol { call: "reading frames".into(), reason }.into());
            }
            if head.size > 0 {
                self.taken.ended = Some((self.taken.frames, mark_of(frame)));
            }
        }
        let file = self.files.synced();
        self.synced.append(frames).map_err(ReplicaError::io("writing", &file))?;
        self.taken.bytes += frames.len();
        if self.taken.bytes >= REPLICA_STORE_BYTES { self.keep() } else { Ok(()) }
    }

    /// Counts the transactions that were taken whole. After Ok they survive power loss.
    pub(super) fn keep(&mut self) -> Result<(), ReplicaError> {
        if self.taken.ended.is_none() { Ok(()) } else { self.keep_with(|info| info) }
    }

    /// The same with something else that the info says from then on.
    pub(super) fn keep_with(&mut self, also: impl FnOnce(Info) -> Info) -> Result<(), ReplicaError> {
        let mut info = self.info.clone();
        let ended = self.taken.ended.take();
        if let Some((frames, mark)) = ended {
            let file = self.files.synced();
            self.synced.sync().map_err(ReplicaError::io("syncing", &file))?;
            info.synced_frame_no = info.synced_frame_no.saturating_add(frames);
            info.last_frame = Some(mark);
        }
        self.store(also(info))?;
        self.taken.frames -= ended.map_or(0, |(frames, _)| frames);
        self.taken.bytes = 0;
        Ok(())
    }

    /// Makes sure that the generation starts from the database that it started from, where no frame can tell.
    fn compare_base(&mut self, there: &str) -> Result<(), ReplicaError> {
        match &self.info.base {
            _ if self.info.synced_frame_no > 0 => Ok(()),
            Some(ours) if ours == there => Ok(()),
            Some(_) => {
                let generation = self.info.synced_generation;
                let what = format!("generation {generation} starts from another database there");
                Err(ReplicaError::Diverged { what })
            }
            None => self.store(Info { base: Some(there.to_owned()), ..self.info.clone() }),
        }
    }

    fn note_fetched(&self, fetched: Fetched) {
        let (name, frames) = (self.files.name(), fetched.frames);
        let (last, generation) = (self.info.synced_frame_no, self.info.synced_generation);
        let level = if frames > 0 { log::Level::Info } else { log::Level::Debug };
        log::log!(
            level,
            "{name}: {frames} new frames of the remote, which is at frame {last} of generation {generation}"
        );
    }

    /// Forgets the start of a transaction whose end did not come.
    pub(super) fn cut(&mut self) -> Result<(), ReplicaError> {
        if self.taken.frames > 0 || self.synced.frames() != self.info.in_wal() {
            let file = self.files.synced();
            self.synced.reset(self.info.in_wal()).map_err(ReplicaError::io("cutting", &file))?;
        }
        self.taken = Taken::default();
        Ok(())
    }
}

/// Brings what the remote has and `P-synced` has not, until it says that there is no more in the generation.
///
/// # Errors
/// When the remote or a file fails; transactions that came whole are kept. [`ReplicaError::Diverged`] when the remote's
/// history is another.
pub(super) async fn fetch(
    remote: &Remote,
    store: &Arc<Mutex<Store>>,
    batch: u32,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<Fetched, ReplicaError> {
    let mut fetched = Fetched { frames: 0, then: Then::Nothing };
    with(store, Store::cut).await?;
    let (is_unmade, revision) = with(store, |store| Ok((store.info.unmade, store.info.revision.clone()))).await?;
    if is_unmade {
        return Ok(Fetched { then: Then::FetchWhole, ..fetched });
    }
    if let Some(revision) = revision {
        fetched.frames = updates::fetch(remote, store, revision, tell).await?;
        note(store, fetched).await?;
        return Ok(fetched);
    }
    loop {
        let (info, begun, file) =
            with(store, |store| Ok((store.info.clone(), store.taken.frames, store.files.info()))).await?;
        let (generation, last) = (info.synced_generation, info.synced_frame_no);
        let start = last.saturating_add(begun).saturating_add(1);
        let end = start.saturating_add(batch.max(1));
        let streamed = match remote.stream_with_base(Range { generation, start, end }).await {
            Ok((streamed, Some(base))) => {
                with(store, move |store| store.compare_base(&base.to_string())).await?;
                Ok(streamed)
            }
            streamed => streamed.map(|(streamed, _)| streamed),
        };
        let mut stream = match streamed {
            // Generations are deleted from the oldest on.
            Err(error @ SyncError::Status { status: 404 | 410, .. }) => match remote.info().await? {
                Some(current) if current > generation => return Ok(Fetched { then: Then::FetchWhole, ..fetched }),
                Some(current) if current < generation => return Err(ahead(&info, &file, current)),
                _ => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
            Ok(Streamed::Frames(stream)) => stream,
            Ok(Streamed::Nothing { generation: current, max_frame_no }) => {
                if current < generation {
                    return Err(ahead(&info, &file, current));
                }
                if let Some(max) = max_frame_no.filter(|max| *max < last) {
                    let what = format!(
                        "{file} says frame {last} of generation {generation}, which ends at frame {max} on the remote"
                    );
                    return Err(ReplicaError::Diverged { what });
                }
                if current > generation {
                    if fetched.frames == 0 && begun == 0 && last > 0 {
                        compare(remote, &info, &file).await?;
                    }
                    fetched.then = Then::NextGeneration;
                }
                with(store, Store::cut).await?;
                note(store, fetched).await?;
                return Ok(fetched);
            }
        };
        if fetched.frames == 0 && begun == 0 && last > 0 {
            compare(remote, &info, &file).await?;
        }
        let mut came = 0_u64;
        let streamed = loop {
            match stream.next().await {
                Ok(Some(piece)) => {
                    came += (piece.len() / FRAME_LEN) as u64;
                    tell(piece.len() as u64);
                    take(store, piece).await?;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // A transaction may be larger than a batch: only where no more comes is its start forgotten.
        let is_last = streamed.is_err() || came == 0;
        let after = with(store, move |store| {
            store.keep()?;
            if is_last {
                store.cut()?;
            }
            Ok(u64::from(store.info.synced_frame_no))
        });
        fetched.frames += after.await? - u64::from(last);
        streamed?;
        if is_last {
            note(store, fetched).await?;
            return Ok(fetched);
        }
    }
}

async fn note(store: &Arc<Mutex<Store>>, fetched: Fetched) -> Result<(), ReplicaError> {
    let noted = with(store, move |store| {
        store.note_fetched(fetched);
        Ok(())
    });
    noted.await
}

async fn take(store: &Arc<Mutex<Store>>, piece: Bytes) -> Result<(), ReplicaError> {
    with(store, move |store| store.take(&piece)).await
}

/// The replica is in a later generation than the remote.
fn ahead(info: &Info, file: &str, current: u32) -> ReplicaError {
    let (generation, last) = (info.synced_generation, info.synced_frame_no);
    let what = format!("{file} says generation {generation}, frame {last}, and the remote is at generation {current}");
    ReplicaError::Diverged { what }
}

/// Makes sure that the last frame that is here is the remote's, before any is put on top of it, or a generation follows.
async fn compare(remote: &Remote, info: &Info, file: &str) -> Result<(), ReplicaError> {
    let (generation, last) = (info.synced_generation, info.synced_frame_no);
    let range = Range { generation, start: last, end: last.saturating_add(1) };
    let theirs = match remote.stream(range).await? {
        Streamed::Frames(mut stream) => stream.next().await?,
        Streamed::Nothing { .. } => None,
    };
    if theirs.as_deref().map(mark_of) == info.last_frame {
        return Ok(());
    }
    let there = match theirs.as_deref().and_then(|frame| frame.first_chunk()) {
        Some(head) => format!("is another one on the remote, of page {}", FrameHeader::decode(head).page),
        None => "is not on the remote".to_owned(),
    };
    let what = format!("{file} says frame {last} of generation {generation}, which {there}");
    Err(ReplicaError::Diverged { what })
}

/// Runs work on the files where it holds nobody up.
pub(super) async fn with<T: Send + 'static>(
    store: &Arc<Mutex<Store>>,
    work: impl FnOnce(&mut Store) -> Result<T, ReplicaError> + Send + 'static,
) -> Result<T, ReplicaError> {
    let store = store.clone();
    blocking(move || work(&mut store.lock().unwrap_or_else(PoisonError::into_inner))).await
}
