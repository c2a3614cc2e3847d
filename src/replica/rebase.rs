//! The draft onto what came from the remote: local changes are replayed on top of it in `P-synced`, and the pages that come
//! of that are put under what the application sees, in one transaction of the draft.
//!
//! What is written to the draft is all or nothing, and says itself that it was: the bookkeeping table in it counts how often
//! this was done. So the info may be a step behind the draft, and never ahead of it. From the moment in which the draft may
//! be ahead nothing else is done with the replica until the info says so too: after an error it has to be opened again.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use roaring::RoaringBitmap;

use super::catalog::{Catalog, Reached, reached};
use super::change::Statement;
use super::difference::{Portion, statements};
use super::draft;
use super::error::ReplicaError;
use super::image::differing;
use super::info::{Info, Mark, OnRemote, Rebasing};
use super::judge::{Verdict, judge};
use super::pipeline::{MAKE_BOOKKEEPING, SET_BOOKKEEPING};
use super::report::{Conflict, Doing, During};
use super::rows::{Differing, State};
use super::store::Store;
use crate::sqlite::btree::{PAGE_LEN, Pages};
use crate::sqlite::image::Image;
use crate::sync::turso::Value;

/// Where page 1 counts changes of the schema.
const COOKIE_AT: usize = 40;

/// What came of a replay.
struct Replayed {
    conflicts: Vec<Conflict>,
    /// Changes that were replayed, those in conflict included.
    changes: u64,
}

impl Store {
    /// Brings the draft to what the remote had when it was fetched last, with the changes on top that the remote does not
    /// have. Those that could not be made there are to be told.
    ///
    /// # Errors
    /// When a file or the engine fails: the draft is as it was and this can be tried again, or the replica is latched
    /// ([`ReplicaError::Latched`]) and opening it again finds out whether all of it was done.
    pub(super) fn rebase(&mut self, patience: Duration) -> Result<(), ReplicaError> {
        if self.info.synced_wal_match_watermark == self.info.synced_frame_no {
            return Ok(());
        }
        self.usable()?;
        // What a replay that failed has left must not be taken for the remote's.
        let file = self.files.synced();
        self.synced.reset(self.info.in_wal()).map_err(ReplicaError::io("cutting", &file))?;
        let io = |store: &Store| ReplicaError::io("reading", &store.files.synced());
        let upstream = self.synced.image(self.info.in_wal()).map_err(io(self))?;
        let reached = reached(&upstream, &self.info.client_unique_id)?;
        let pushed = self.pushed_there(reached)?;
        let mut locked = self.draft.lock(patience)?;
        let (ours, now) = locked.now()?;
        let shared = self.shared()?;
        let replayed = self.replay(&upstream, (&shared, pushed), (&ours, now))?;

        let scratch = self.synced.with_scratch().map_err(io(self))?;
        let result = self.synced.image(scratch).map_err(io(self))?;
        let replayed_pages: BTreeSet<u32> = self
            .synced
            .heads(self.info.in_wal(), scratch)
            .map_err(io(self))?
            .into_iter()
            .map(|head| head.page)
            .collect();
        let came = self.info.synced_wal_match_watermark.saturating_sub(self.info.folded);
        let came = self.synced.heads(u64::from(came), self.info.in_wal()).map_err(io(self))?;
        let touched = self.touched(now)?.map(|touched| {
            came.iter().fold(touched, |mut pages, head| {
                pages.insert(head.page);
                pages
            })
        });

        let (pull_gen, conflicts) = (self.info.pull_gen + 1, replayed.conflicts);
        log::info!(
            "{}: bringing frame {} of generation {} into the draft, with {} local changes on top, {} of them in conflict",
            self.files.name(),
            self.info.synced_frame_no,
            self.info.synced_generation,
            replayed.changes,
            conflicts.len()
        );
        let rebasing = Rebasing { pull_gen, frame: self.info.synced_frame_no, conflicts };
        let info = Info { rebasing: Some(rebasing), ..self.info.clone() };
        self.failed = true;
        info.store(&*self.files.dir, &self.files.info())?;
        let mut page = [0; PAGE_LEN];
        for number in &differing(&ours, &upstream, touched.as_ref())? {
            if number <= upstream.count() && number > 1 && !replayed_pages.contains(&number) {
                upstream.read(number, &mut page)?;
                locked.write(number, &page, 0)?;
            }
        }
        let matches = locked.frame();
        for number in replayed_pages.range(2..).filter(|number| **number <= result.count()) {
            result.read(*number, &mut page)?;
            locked.write(*number, &page, 0)?;
        }
        // Above that of the draft and of the result, so that whatever was compiled before is compiled anew.
        result.read(1, &mut page)?;
        let cookie = cookie(&page).max(first_cookie(&ours)?).wrapping_add(1);
        page[COOKIE_AT..COOKIE_AT + 4].copy_from_slice(&cookie.to_be_bytes());
        locked.write(1, &page, result.count())?;
        let end = locked.end()?;

        let matches = Mark { frame: matches, ..end };
        let info = info.rebased(Some(matches), (replayed.changes == 0).then_some(end));
        self.replace(info)?;
        log::debug!("{}: the draft was changed as a whole, up to frame {} of its WAL", self.files.name(), end.frame);
        self.synced.reset(self.info.in_wal()).map_err(ReplicaError::io("cutting", &file))?;
        self.files.forget_pushed(&[])
    }

    /// What the remote has of ours on top of what the draft was made from.
    fn pushed_there(&self, reached: Option<Reached>) -> Result<OnRemote, ReplicaError> {
        let info = &self.info;
        let copied = || ReplicaError::Copied { client: info.client_unique_id.clone() };
        match reached {
            Some(reached) if reached.pull_gen > info.pull_gen => Err(ReplicaError::Mismatch {
                what: format!(
                    "the remote says that this replica was pulled {} times, and it was {}",
                    reached.pull_gen, info.pull_gen
                ),
            }),
            Some(Reached { pull_gen, change_id }) if pull_gen == info.pull_gen && change_id > 0 => {
                if change_id > info.change_id {
                    return Err(copied());
                }
                let is_last = Some(change_id) == info.pushed;
                Ok(if is_last { info.on_remote() } else { OnRemote { base: Some(change_id), unfinished: None } })
            }
            // Its changes would be made a second time.
            _ if info.pushed.is_some() => Err(ReplicaError::Diverged {
                what: format!("push {} of {}, which it had taken, is gone", info.change_id, info.client_unique_id),
            }),
            _ => Ok(OnRemote { base: None, unfinished: None }),
        }
    }

    /// Makes the changes on top of what the remote has, in `P-synced`, where the engine does not find anything but frames
    /// that count.
    fn replay(
        &self,
        upstream: &Image,
        (shared, there): (&Image, OnRemote),
        (ours, now): (&Image, Mark),
    ) -> Result<Replayed, ReplicaError> {
        let kept = |number: Option<i64>| number.map(|number| self.pushed(shared, number)).transpose();
        let base = kept(there.base)?;
        let unfinished = kept(there.unfinished.map(|(parts, _)| parts.to))?;
        let shared_catalog = (base.is_some() || unfinished.is_some()).then(|| Catalog::of(shared)).transpose()?;
        let shared_state = shared_catalog.as_ref().map(|catalog| State { pages: shared, catalog });
        let of =
            |kept: &Option<(Image, RoaringBitmap)>| kept.as_ref().map(|(image, pages)| (image.clone(), pages.clone()));
        let (mut before, mut overlay) = of(&base).map_or((shared.clone(), None), |(image, pages)| (image, Some(pages)));
        let mut upstream = Catalog::of(upstream)?;
        let mut target = Target::open(self)?;
        let mut step =
            |[before, after]: [&Image; 2], pages: RoaringBitmap, skip: u64, shared, upstream: &mut Catalog| {
                if pages.is_empty() {
                    return Ok(());
                }
                let catalogs = [Catalog::of(before)?, Catalog::of(after)?];
                let [old, new] =
                    [State { pages: before, catalog: &catalogs[0] }, State { pages: after, catalog: &catalogs[1] }];
                let differing = Differing::of(pages, [old, new])?;
                let mut portion = Portion::after(skip, usize::MAX);
                statements((old, new), &differing, shared, upstream, &mut portion, &mut |statement| {
                    target.run(&statement)
                })?;
                let [old, new] = catalogs;
                upstream.indexes.extend(new.indexes.into_iter().filter(|(name, _)| !old.indexes.contains_key(name)));
                Ok::<_, ReplicaError>(())
            };
        // The push that is under way is finished first: what follows is compared from there on.
        if let (Some((image, pages)), Some((_, done))) = (of(&unfinished), there.unfinished) {
            let differing = differing(&before, &image, Some(&overlay.map_or(pages.clone(), |before| before | &pages)))?;
            let shared = shared_state.filter(|_| base.is_some());
            step([&before, &image], differing, done, shared, &mut upstream)?;
            (before, overlay) = (image, Some(pages));
        }
        let pages = self.differing((&before, overlay.as_ref()), (ours, now))?;
        step([&before, ours], pages, 0, shared_state, &mut upstream)?;
        target.commit(&self.info.client_unique_id, Reached { pull_gen: self.info.pull_gen + 1, change_id: 0 })
    }
}

fn cookie(page: &[u8; PAGE_LEN]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&page[COOKIE_AT..COOKIE_AT + 4]);
    u32::from_be_bytes(word)
}

fn first_cookie(image: &Image) -> Result<u32, ReplicaError> {
    let mut page = [0; PAGE_LEN];
    if image.count() > 0 {
        image.read(1, &mut page)?;
    }
    Ok(cookie(&page))
}

/// `P-synced` in the engine, in a transaction.
struct Target {
    connection: Arc<turso_core::Connection>,
    /// Statements by their text: there are few texts and many rows.
    prepared: HashMap<String, turso_core::Statement>,
    conflicts: Vec<Conflict>,
    ran: u64,
}

/// Texts whose statements are kept.
const PREPARED_MAX: usize = 64;

impl Target {
    fn open(store: &Store) -> Result<Target, ReplicaError> {
        let (database, _) = draft::open(&store.files, &store.files.synced())?;
        let connection = draft::connect(&database)?;
        // What is written here is scratch.
        connection.execute("PRAGMA synchronous = OFF")?;
        connection.execute("BEGIN IMMEDIATE")?;
        Ok(Target { connection, prepared: HashMap::new(), conflicts: Vec::new(), ran: 0 })
    }

    fn run(&mut self, statement: &Statement) -> Result<(), ReplicaError> {
        self.ran += 1;
        if let Some(error) = statement.too_large() {
            self.conflicts.push(Conflict { during: During::Pull, about: statement.about.clone(), error });
            return Ok(());
        }
        let outcome = self.try_run(&statement.sql, &statement.args);
        if statement.about.doing == Doing::Schema {
            self.prepared.clear();
        }
        match judge(During::Pull, statement, outcome.map_err(|error| (&error).into()))? {
            Verdict::Done => {}
            Verdict::GivenUp(conflict) => self.conflicts.push(conflict),
            Verdict::Otherwise(otherwise, conflict) => {
                let before = self.conflicts.len();
                self.run(&otherwise)?;
                if self.conflicts.len() == before {
                    self.conflicts.push(conflict);
                }
            }
        }
        Ok(())
    }

    fn try_run(&mut self, sql: &str, args: &[Value]) -> turso_core::Result<u64> {
        let mut statement = match self.prepared.remove(sql) {
            Some(statement) => statement,
            None => self.connection.prepare(sql)?,
        };
        for (number, value) in (1..).zip(args) {
            if let Some(number) = NonZero::new(number) {
                statement.bind_at(number, value.into())?;
            }
        }
        statement.run_ignore_rows()?;
        let changed = statement.n_change();
        statement.reset()?;
        if self.prepared.len() < PREPARED_MAX {
            self.prepared.insert(sql.to_owned(), statement);
        }
        Ok(u64::try_from(changed).unwrap_or(0))
    }

    fn commit(mut self, client: &str, reached: Reached) -> Result<Replayed, ReplicaError> {
        self.prepared.clear();
        let numbers = [reached.pull_gen, reached.change_id].map(Value::Integer);
        let args: Vec<Value> = std::iter::once(Value::Text(client.to_owned())).chain(numbers).collect();
        self.connection.execute(MAKE_BOOKKEEPING)?;
        self.try_run(SET_BOOKKEEPING, &args)?;
        self.prepared.clear();
        self.connection.execute("COMMIT")?;
        self.connection.close()?;
        Ok(Replayed { conflicts: self.conflicts, changes: self.ran })
    }
}
