//! [`Store`]: the files of an open replica, and the state that they are in together.

use roaring::RoaringBitmap;

use super::Status;
use super::catalog::reached;
use super::draft::Draft;
use super::error::ReplicaError;
use super::files::{Files, Held};
use super::image::differing;
use super::info::{Info, Mark};
use super::pull::Taken;
use super::report::Conflict;
use super::synced::Synced;
use crate::limits::REPLICA_FOLD_FRAMES;
use crate::sqlite::image::Image;

/// How often the draft was pulled, as it says itself: as often as the info says, or as it was to be once the pull that was
/// interrupted is complete.
fn pulled(files: &Files, info: &Info, draft: &Draft) -> Result<i64, ReplicaError> {
    let said = draft.look(|draft, _| reached(draft, &info.client_unique_id))?;
    let (draft, file) = (files.draft(), files.info());
    if said.is_none() && info.draft_is_named {
        let what = format!("{draft} is another database than the one that was made with {file}");
        return Err(ReplicaError::Mismatch { what });
    }
    let said = said.map_or(0, |reached| reached.pull_gen);
    let rebasing = info.rebasing.as_ref().map(|rebasing| rebasing.pull_gen);
    if said == info.pull_gen || Some(said) == rebasing {
        return Ok(said);
    }
    let what = format!("{draft} says that it was pulled {said} times, {file} that it was {}", info.pull_gen);
    Err(ReplicaError::Mismatch { what })
}

/// An open replica.
pub(super) struct Store {
    pub(super) files: Files,
    pub(super) info: Info,
    pub(super) synced: Synced,
    pub(super) draft: Draft,
    pub(super) taken: Taken,
    /// A file could not be written, so it is not known what the info says on the disk, or whether the draft is what the
    /// info says.
    pub(super) failed: bool,
}

impl Store {
    /// Opens the files of a replica that was made. What a crash left undone is done.
    ///
    /// # Errors
    /// [`ReplicaError::Missing`], [`ReplicaError::Unfinished`], [`ReplicaError::Mismatch`]; when a file fails.
    pub(super) fn open(files: Files, info: Info, held: Held) -> Result<Store, ReplicaError> {
        if files.has_hot_journal()? {
            return Err(ReplicaError::Unfinished { draft: files.draft(), journal: files.journal() });
        }
        Store::with(files, info, |files| Draft::open(files, held))
    }

    /// The same beside others who have the draft open: it is only read, and changes can be pushed, but not brought into it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn beside(files: Files, info: Info, held: Held) -> Result<Store, ReplicaError> {
        Store::with(files, info, |files| Ok(Draft::beside(files, held)))
    }

    fn with(
        files: Files,
        info: Info,
        draft: impl FnOnce(&Files) -> Result<Draft, ReplicaError>,
    ) -> Result<Store, ReplicaError> {
        for name in [files.draft(), files.synced()] {
            if !files.is_there(&name)? {
                return Err(ReplicaError::Missing { file: name, there: files.info() });
            }
        }
        // Before anything is cut: an info that is not of this draft says nothing of the other files.
        let draft = draft(&files)?;
        let pulled = pulled(&files, &info, &draft)?;
        let what = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                ReplicaError::Missing { file: format!("{}-wal", files.synced()), there: files.info() }
            }
            std::io::ErrorKind::InvalidData => {
                ReplicaError::Mismatch { what: format!("{}-wal: {error}", files.synced()) }
            }
            _ => ReplicaError::io("opening", &files.synced())(error),
        };
        let synced = Synced::open(files.dir.clone(), &files.synced(), info.in_wal()).map_err(what)?;
        let mut store = Store { files, info, synced, draft, taken: Taken::default(), failed: false };
        if pulled != store.info.pull_gen {
            log::info!("{}: the pull that was interrupted was complete", store.files.name());
            let info = store.info.rebased(None, None);
            store.store(info)?;
        }
        let Info { synced_generation, synced_frame_no, synced_wal_match_watermark, pull_gen, .. } = &store.info;
        log::debug!(
            "{}: open at frame {synced_frame_no} of generation {synced_generation}; the draft is at frame \
             {synced_wal_match_watermark}, after {pull_gen} pulls",
            store.files.name()
        );
        Ok(store)
    }

    /// The same for one that was made just now, whose draft is the remote's state and nobody's yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_new(files: Files, info: Info, held: Held) -> Result<Store, ReplicaError> {
        let mut store = Store::open(files, info, held)?;
        let (_, now) = store.draft.now()?;
        if let Some(mark) = store.draft.mark_anew(now)? {
            // After the mark: the pages of that row are not the remote's.
            store.draft.name(&store.info.client_unique_id)?;
            let (_, named) = store.draft.now()?;
            let (draft_wal_match_watermark, clean) = (Some(mark), Some(named));
            store.store(Info { draft_wal_match_watermark, clean, draft_is_named: true, ..store.info.clone() })?;
        }
        Ok(store)
    }

    /// # Errors
    /// [`ReplicaError::Latched`] when a write failed after which the files are to be opened again.
    pub(super) fn usable(&self) -> Result<(), ReplicaError> {
        if self.failed { Err(ReplicaError::Latched { file: self.files.info() }) } else { self.draft.usable() }
    }

    /// Replaces the info. After an error nothing more is written until the replica is opened again.
    pub(super) fn store(&mut self, info: Info) -> Result<(), ReplicaError> {
        self.usable()?;
        self.replace(info)
    }

    /// The same whatever failed before, for those who make up for it. After an error nothing more is written until the
    /// replica is opened again.
    pub(super) fn replace(&mut self, info: Info) -> Result<(), ReplicaError> {
        self.failed = true;
        info.store(&*self.files.dir, &self.files.info())?;
        self.failed = false;
        self.info = info;
        Ok(())
    }

    /// Where the replica stands.
    pub(super) fn status(&self) -> Result<Status, ReplicaError> {
        let (_, now) = self.draft.now()?;
        let info = &self.info;
        Ok(Status {
            client_unique_id: info.client_unique_id.clone(),
            generation: info.synced_generation,
            frame: info.synced_frame_no,
            draft_frame: info.synced_wal_match_watermark,
            pulls: info.pull_gen,
            may_have_changes: now.salts == [0; 2] || info.clean != Some(now),
            push_in_doubt: info.push_in_doubt,
        })
    }

    /// The conflicts that nobody has been told of, which are told now.
    pub(super) fn tell(&mut self) -> Result<Vec<Conflict>, ReplicaError> {
        if self.info.untold.is_empty() {
            return Ok(Vec::new());
        }
        let mut info = self.info.clone();
        let untold = std::mem::take(&mut info.untold);
        self.store(info)?;
        Ok(untold)
    }

    /// What the draft was made from: the remote's state then.
    pub(super) fn shared(&self) -> Result<Image, ReplicaError> {
        let frame = self.info.synced_wal_match_watermark.saturating_sub(self.info.folded);
        self.synced.image(u64::from(frame)).map_err(ReplicaError::io("reading", &self.files.synced()))
    }

    /// The pages in which the draft may differ from what it was made from; `None` when any may.
    pub(super) fn touched(&self, now: Mark) -> Result<Option<RoaringBitmap>, ReplicaError> {
        let heads = self.draft.heads(self.info.draft_wal_match_watermark, now)?;
        Ok(heads.map(|heads| heads.into_iter().map(|head| head.page).collect()))
    }

    /// The pages in which the draft as of `now` differs from `base`, which is [`shared`](Self::shared) or a push on top.
    pub(super) fn differing(
        &self,
        base: (&Image, Option<&RoaringBitmap>),
        (draft, now): (&Image, Mark),
    ) -> Result<RoaringBitmap, ReplicaError> {
        let (base, pushed) = base;
        let touched = self.touched(now)?.map(|touched| pushed.map_or(touched.clone(), |pushed| &touched | pushed));
        differing(base, draft, touched.as_ref())
    }

    /// Puts the frames of `P-synced` into its database file when they have become many, and so with the draft. Nothing
    /// may be there that was not brought into the draft.
    pub(super) fn tidy(&mut self) -> Result<(), ReplicaError> {
        let info = &self.info;
        if info.synced_wal_match_watermark == info.synced_frame_no && info.in_wal() > REPLICA_FOLD_FRAMES {
            let (name, frames) = (self.files.synced(), info.in_wal());
            log::debug!("{}: folding {frames} frames of {name} into its database", self.files.name());
            let folded = Info { folded: info.synced_frame_no, ..info.clone() };
            self.fold_synced(folded)?;
        }
        if !self.draft.is_ours() {
            return Ok(());
        }
        let (_, now) = self.draft.now()?;
        if now.frame > REPLICA_FOLD_FRAMES {
            let (name, frames) = (self.files.draft(), now.frame);
            log::debug!("{}: folding {frames} frames of {name} into its database", self.files.name());
            let is_clean = self.info.clean == Some(now);
            // The numbers of its WAL are going to mean nothing.
            self.store(Info { draft_wal_match_watermark: None, clean: None, ..self.info.clone() })?;
            if self.draft.fold()? && is_clean {
                let (_, now) = self.draft.now()?;
                let clean = self.draft.mark_anew(now)?;
                self.store(Info { clean, ..self.info.clone() })?;
            }
        }
        Ok(())
    }

    /// Goes on with the next generation, in which the remote starts from where the one before ended.
    ///
    /// # Errors
    /// When a file fails; what was done is done again then.
    pub(super) fn next_generation(&mut self) -> Result<(), ReplicaError> {
        let info = Info {
            synced_generation: self.info.synced_generation.saturating_add(1),
            synced_frame_no: 0,
            folded: 0,
            last_frame: None,
            base: None,
            synced_wal_match_watermark: 0,
            ..self.info.clone()
        };
        let generation = info.synced_generation;
        self.fold_synced(info)?;
        log::info!("{}: going on in generation {generation} of the remote", self.files.name());
        Ok(())
    }

    pub(super) fn fold_synced(&mut self, folded: Info) -> Result<(), ReplicaError> {
        // Where a cut failed before, it is not known to hold what it should.
        self.cut()?;
        let file = self.files.synced();
        self.synced.fold().map_err(ReplicaError::io("folding", &file))?;
        self.store(folded)?;
        self.synced.reset(0).map_err(ReplicaError::io("cutting", &file))
    }
}
