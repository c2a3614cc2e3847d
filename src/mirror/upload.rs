//! [`Uploads`]: commits or a base that are received in parts, each a request of its own, because something between the
//! sender and us takes no large ones. Nothing of an upload is checked or visible before it is whole.
//!
//! ```text
//! DATA/logs/NAME/0000000001.UUID.draft/upload     the parts so far; removed when the log is opened
//! ```

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard as Turn;
use tokio::task::AbortHandle;

use super::error::Error;
use super::generation::Draft;
use crate::api::AppendOutcome;
use crate::limits::{UPLOAD_EVICT_AFTER, UPLOAD_ID_BYTES_MAX, UPLOAD_IDLE, UPLOADS_MAX, UPLOADS_PER_LOG_MAX};
use crate::repo::RepoFile;

/// Whose upload it is: the log, and the name that the sender gave to the upload.
type Key = (String, String);

/// All uploads of a service that are not over, and the answers of those that were lately.
#[derive(Debug, Default)]
pub struct Uploads {
    all: Arc<Mutex<HashMap<Key, Arc<Upload>>>>,
}

/// One upload. Its parts are taken one after the other.
#[derive(Debug)]
pub struct Upload {
    state: Arc<tokio::sync::Mutex<Progress>>,
    /// When a part of it was last received.
    touched: Mutex<Instant>,
    /// What removes it when it is idle; ends with it.
    reaper: OnceLock<AbortHandle>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.get() {
            reaper.abort();
        }
    }
}

/// How far an upload is.
#[derive(Debug)]
pub enum Progress {
    /// No part was received.
    Empty,
    /// Parts up to a byte were.
    Staged(Staged),
    /// It was whole.
    Done(LastPart, Option<AppendOutcome>),
}

/// The part that made an upload whole. The same part again gets the same answer, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastPart {
    /// Where the upload goes: its first offset, or its generation.
    pub goal: u64,
    /// Its first byte in the upload.
    pub at: u64,
    /// How many bytes the upload has.
    pub total: u64,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

/// What was received of an upload. Its files are removed when it is dropped, which blocks.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Where it is.
    pub draft: Arc<Draft>,
    /// Its bytes.
    pub file: Arc<dyn RepoFile>,
    /// How many bytes were received from the first on.
    pub received: u64,
}

impl Uploads {
    /// The upload `id` of `log`, which names it and never another one. It may be new. Belongs to a runtime, whose blocking threads
    /// remove the files of uploads that are given up for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that cannot be one, [`Error::Unavailable`] when too many are under way.
    pub fn get(&self, log: &str, id: &str) -> Result<Arc<Upload>, Error> {
        let is_of_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if id.is_empty() || id.len() > UPLOAD_ID_BYTES_MAX || !id.bytes().all(is_of_id) {
            let text = format!("an upload has a name of 1 to {UPLOAD_ID_BYTES_MAX} letters, digits, '-', '_' and '.'");
            return Err(Error::Invalid(text));
        }
        let key = (log.to_owned(), id.to_owned());
        let mut all = lock(&self.all);
        if let Some(upload) = all.get(&key) {
            upload.touch();
            return Ok(upload.clone());
        }
        let mut given_up: Vec<_> = all.extract_if(|_, upload| upload.idle() >= UPLOAD_IDLE).collect();
        let mut is_full = false;
        while all.len() >= UPLOADS_MAX || all.keys().filter(|(of, _)| of == log).count() >= UPLOADS_PER_LOG_MAX {
            let in_log = all.keys().filter(|(of, _)| of == log).count() >= UPLOADS_PER_LOG_MAX;
            let candidates = all.iter().filter(|((of, _), _)| !in_log || of == log);
            // Those without bytes first: a sender of parts that are refused takes nobody's place.
            let oldest = candidates.max_by_key(|(_, upload)| (upload.is_without_bytes(), upload.idle()));
            let oldest = oldest.filter(|(_, upload)| upload.is_without_bytes() || upload.idle() >= UPLOAD_EVICT_AFTER);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                is_full = true;
                break;
            };
            given_up.extend(all.remove_entry(&oldest));
        }
        let state = Arc::new(tokio::sync::Mutex::new(Progress::Empty));
        let upload = Arc::new(Upload { state, touched: Mutex::new(Instant::now()), reaper: OnceLock::new() });
        if !is_full {
            all.insert(key.clone(), upload.clone());
        }
        drop(all);
        if !given_up.is_empty() {
            tokio::task::spawn_blocking(move || drop(given_up));
        }
        if is_full {
            return Err(Error::Unavailable("too many uploads are under way".into()));
        }
        self.forget_when_idle(key, &upload);
        Ok(upload)
    }

    /// Removes the upload, and what was received of it, when no part is received for too long.
    fn forget_when_idle(&self, key: Key, upload: &Arc<Upload>) {
        let (all, idle) = (Arc::downgrade(&self.all), Arc::downgrade(upload));
        let reaper = tokio::spawn(async move {
            let mut wait = UPLOAD_IDLE;
            loop {
                tokio::time::sleep(wait).await;
                let (Some(all), Some(upload)) = (all.upgrade(), idle.upgrade()) else { return };
                match UPLOAD_IDLE.checked_sub(upload.idle()).filter(|left| !left.is_zero()) {
                    Some(left) => wait = left,
                    None => {
                        let removed = lock(&all).remove(&key);
                        tokio::task::spawn_blocking(move || drop((removed, upload)));
                        log::info!("upload {} was given up: no part of it for {} s", key.1, UPLOAD_IDLE.as_secs());
                        return;
                    }
                }
            }
        });
        upload.reaper.get_or_init(|| reaper.abort_handle());
    }
}

impl Upload {
    /// How far it is, for one part at a time.
    pub async fn turn(&self) -> Turn<Progress> {
        self.state.clone().lock_owned().await
    }

    /// Whether nothing of it is on disk, and no part of it is being taken.
    fn is_without_bytes(&self) -> bool {
        self.state.try_lock().is_ok_and(|state| !matches!(*state, Progress::Staged(_)))
    }

    /// Records that something of it was received.
    pub fn touch(&self) {
        *self.touched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Staged {
    /// Takes bytes that start at byte `at` of the upload. Those that are here already must be the same. Blocks.
    ///
    /// # Errors
    /// [`Error::PartMissing`] when bytes before them are missing, [`Error::Invalid`] for others than are here,
    /// [`Error::Unavailable`] when they cannot be written.
    pub fn write(&mut self, bytes: &Bytes, at: u64) -> Result<(), Error> {
        let here = self.received.checked_sub(at).ok_or(Error::PartMissing { received: self.received })?;
        let (again, new) = bytes.split_at(usize::try_from(here).unwrap_or(usize::MAX).min(bytes.len()));
        let failed = |error: io::Error| Error::Unavailable(format!("cannot store the part: {error}"));
        let mut held = vec![0; again.len()];
        let mut read = 0;
        while read < held.len() {
            match self.file.read_at(&mut held[read..], at + read as u64).map_err(failed)? {
                0 => break,
                count => read += count,
            }
        }
        if held != again {
            return Err(Error::Invalid(
                "other bytes were sent for this part before: another upload needs another name".into(),
            ));
        }
        if new.is_empty() {
            return Ok(());
        }
        self.file.write_at(&mut [IoSlice::new(new)], self.received).map_err(failed)?;
        self.received += new.len() as u64;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
