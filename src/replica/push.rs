//! Local changes to the remote, as one transaction with what says that it was made.
//!
//! Before it is sent, what the draft is then is kept as pages, and changes are told from those: the application may write on. If the remote says later that this push was made, whatever
//! became of the answer, changes are told from those pages on; else from where they were told before.
//!
//! Where the remote takes no transaction of that size they go in several, each with what says that it was made, and half as
//! large as what was refused. They are found in the same order each time, and how many of them the remote has is known.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use super::Tell;
use super::catalog::{Catalog, Reached};
use super::change::Statement;
use super::difference::{Portion, statements};
use super::error::ReplicaError;
use super::image::differing;
use super::info::{Info, Mark, OnRemote, Parts};
use super::judge::{Verdict, judge};
use super::pipeline::{Transaction, settled};
use super::pull::{Fetched, Then, fetch, with};
use super::report::{Conflict, Doing, During};
use super::rows::{Differing, State};
use super::store::Store;
use crate::limits::{REPLICA_PUSH_BYTES, REPLICA_PUSH_STATEMENTS};
use crate::sqlite::image::Image;
use crate::sync::Remote;

/// What a push did.
#[derive(Debug, Default)]
pub(super) struct PushedChanges {
    pub(super) changes: u64,
    /// Whether there was anything to push.
    pub(super) any: bool,
    /// Frames that came from the remote meanwhile.
    pub(super) frames: u64,
    /// The generation has ended meanwhile, or is gone: nothing was pushed, and what comes next has to be fetched first.
    pub(super) is_over: bool,
    /// There may be more to push, once what the remote has now was fetched.
    pub(super) is_part: bool,
}

/// How much the remote takes in one transaction, as far as it is known.
#[derive(Debug)]
pub(super) struct Capacity {
    /// Bytes of values that are sent in one.
    bytes: usize,
    /// Fewest of those that it refused.
    too_many: usize,
    /// What it said when there was but one change: that is given up.
    refused: Option<String>,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity { bytes: usize::MAX, too_many: usize::MAX, refused: None }
    }
}

/// What a push needs besides the changes.
pub(super) struct Channel<'a> {
    pub(super) remote: &'a Remote,
    pub(super) store: &'a Arc<Mutex<Store>>,
    pub(super) batch: u32,
    pub(super) tell: &'a Tell,
}

/// What may have to be pushed.
struct Draft {
    shared: Image,
    /// What was pushed before, on top of it.
    pushed: Option<(Image, RoaringBitmap)>,
    /// The number under which it is kept.
    number: i64,
    draft: Image,
    now: Mark,
    /// Where the draft differs from what the remote has of it.
    differing: RoaringBitmap,
    /// Changes that the remote has already, of those found first.
    done: u64,
    /// The number of `pushed`.
    from: Option<i64>,
    /// What there is on the remote.
    there: Catalog,
}

impl Store {
    /// Takes note of whether the last push was made, once it cannot be made any more if it was not.
    fn settle_push(&mut self, reached: Option<Reached>) -> Result<(), ReplicaError> {
        let made = Some(Reached { pull_gen: self.info.pull_gen, change_id: self.info.change_id }) == reached;
        let pushed = if made { Some(self.info.change_id) } else { self.info.pushed };
        let is_made = if made { "was made" } else { "was not made" };
        log::info!("{}: push {}, whose answer was lost, {is_made}", self.files.name(), self.info.change_id);
        let parts = if made { self.info.parts_of_push } else { self.info.parts };
        let mut info = Info { pushed, parts, parts_of_push: None, push_in_doubt: false, ..self.info.clone() };
        let of_push = std::mem::take(&mut info.of_push);
        info.untold.extend(of_push.into_iter().filter(|_| made));
        self.store(info)
    }

    /// What may have to be pushed, kept for the next push; `None` when nothing has.
    fn to_push(&self) -> Result<Option<Draft>, ReplicaError> {
        let shared = self.shared()?;
        let OnRemote { base: from, unfinished } = self.info.on_remote();
        let pushed = from.map(|number| self.pushed(&shared, number)).transpose()?;
        let base = pushed.as_ref().map_or((&shared, None), |(image, pages)| (image, Some(pages)));
        let (number, done) = unfinished.map_or((self.info.change_id + 1, 0), |(parts, done)| (parts.to, done));
        let (draft, now, differing) = if let Some((Parts { now, .. }, _)) = unfinished {
            let (draft, pages) = self.pushed(&shared, number)?;
            let pages = pushed.as_ref().map_or(pages.clone(), |(_, pushed)| pushed | &pages);
            let differing = differing(base.0, &draft, Some(&pages))?;
            (draft, now, differing)
        } else {
            let found = self.draft.look(|draft, now| {
                if now.salts != [0; 2] && self.info.clean == Some(now) {
                    return Ok(None);
                }
                let differing = self.differing(base, (draft, now))?;
                if !differing.is_empty() {
                    let pages = pushed.as_ref().map_or(differing.clone(), |(_, pushed)| pushed | &differing);
                    self.keep_pushed(number, draft, &pages)?;
                }
                Ok(Some((now, differing)))
            })?;
            let Some((now, differing)) = found else { return Ok(None) };
            // What the remote has and a power loss takes from the draft would be taken for removed.
            self.draft.sync()?;
            // From here on the draft may change: what was kept of it is what is pushed.
            let draft = if differing.is_empty() { shared.clone() } else { self.pushed(&shared, number)?.0 };
            (draft, now, differing)
        };
        let upstream = self.synced.image(self.info.in_wal());
        let upstream = upstream.map_err(ReplicaError::io("reading", &self.files.synced()))?;
        let there = Catalog::of(&upstream)?;
        Ok(Some(Draft { shared, pushed, number, draft, now, differing, done, from, there }))
    }

    /// Takes note that the draft has no changes, as of then.
    fn is_clean(&mut self, now: Mark) -> Result<(), ReplicaError> {
        if let Some(parts) = self.info.parts.filter(|parts| parts.done.is_some()) {
            let (parts, clean) = (Some(Parts { done: None, ..parts }), Some(now).filter(|now| now.salts != [0; 2]));
            self.store(Info { parts, clean, ..self.info.clone() })?;
            return self.files.forget_pushed(&self.info.images());
        }
        // Without a WAL it could not be told from what others make of it.
        let now = if now.salts == [0; 2] { self.draft.mark_anew(now)? } else { Some(now) };
        log::debug!("{}: nothing to push", self.files.name());
        if let Some(now) = now {
            self.store(Info { clean: Some(now), ..self.info.clone() })?;
        }
        self.files.forget_pushed(&self.info.images())
    }

    /// Takes note of a push that is about to be made. Its number.
    fn begin_push(&mut self) -> Result<i64, ReplicaError> {
        let change_id = self.info.change_id + 1;
        log::debug!("{}: push {change_id} begins", self.files.name());
        let (of_push, parts_of_push) = (Vec::new(), None);
        self.store(Info { change_id, push_in_doubt: true, of_push, parts_of_push, ..self.info.clone() })?;
        Ok(change_id)
    }

    /// Takes note that a push was made.
    fn end_push(&mut self, change_id: i64, now: Mark, changes: u64) -> Result<(), ReplicaError> {
        let conflicts = self.info.of_push.len();
        log::info!("{}: push {change_id} made: {changes} changes, {conflicts} conflicts", self.files.name());
        let parts = self.info.parts_of_push;
        let is_all = parts.is_none_or(|parts| parts.done.is_none());
        let clean = Some(now).filter(|now| is_all && now.salts != [0; 2]);
        let pushed = Some(change_id);
        let mut info = Info { pushed, parts, parts_of_push: None, push_in_doubt: false, clean, ..self.info.clone() };
        let of_push = std::mem::take(&mut info.of_push);
        info.untold.extend(of_push);
        self.store(info)?;
        self.files.forget_pushed(&self.info.images())
    }
}

/// Tells the statements that make the changes the remote has not, as they are found, until their values have so many bytes.
/// How many changes it has then; all if there is no number.
fn changes(
    draft: &Draft,
    bytes: usize,
    take: &mut dyn FnMut(Statement) -> Result<(), ReplicaError>,
) -> Result<Option<u64>, ReplicaError> {
    if draft.differing.is_empty() {
        return Ok(None);
    }
    let before = draft.pushed.as_ref().map_or(&draft.shared, |(image, _)| image);
    let catalogs = [Catalog::of(before)?, Catalog::of(&draft.draft)?];
    let states = [State { pages: before, catalog: &catalogs[0] }, State { pages: &draft.draft, catalog: &catalogs[1] }];
    let shared_catalog = draft.pushed.is_some().then(|| Catalog::of(&draft.shared)).transpose()?;
    let shared = shared_catalog.as_ref().map(|catalog| State { pages: &draft.shared, catalog });
    let differing = Differing::of(draft.differing.clone(), states)?;
    let mut portion = Portion::after(draft.done, bytes);
    statements((states[0], states[1]), &differing, shared, &draft.there, &mut portion, take)?;
    Ok(portion.end())
}

/// Makes sure that it is known whether the last push was made.
///
/// # Errors
/// When the remote cannot be asked.
pub(super) async fn make_certain(remote: &Remote, store: &Arc<Mutex<Store>>) -> Result<(), ReplicaError> {
    let in_doubt = |store: &mut Store| Ok(store.info.push_in_doubt.then(|| store.info.client_unique_id.clone()));
    let Some(client) = with(store, in_doubt).await? else { return Ok(()) };
    let reached = settled(remote, &client).await?;
    with(store, move |store| store.settle_push(reached)).await
}

/// What the search for changes tells.
enum Found {
    Statement(Statement),
    /// There are no more, or no more are to be pushed now: how many changes the remote has then.
    End(Option<u64>),
}

/// What was sent of a push.
#[derive(Default)]
struct Sent {
    changes: u64,
    conflicts: Vec<Conflict>,
    /// Of the values.
    bytes: usize,
    /// Statements about rows.
    rows: u64,
    /// The tables.
    tables: BTreeSet<String>,
    /// How many changes the remote has then; all if there is no number.
    done: Option<u64>,
}

/// Pushes what the draft has and the remote has not, or as much of that as the remote takes in one transaction.
///
/// # Errors
/// When the remote or a file fails. Whether the push was made is found out by [`make_certain`] then.
pub(super) async fn push(channel: &Channel<'_>, capacity: &mut Capacity) -> Result<PushedChanges, ReplicaError> {
    loop {
        let mut sent = Sent::default();
        match attempt(channel, capacity, &mut sent).await {
            Err(ReplicaError::TooLarge { error, .. }) => {
                let Sent { bytes, tables, rows, .. } = &sent;
                let tables: Vec<_> = tables.iter().map(|name| format!("{name:?}")).collect();
                let what = format!("the changes of {}, with {bytes} bytes of values", tables.join(", "));
                let is_least = capacity.bytes <= 1;
                if is_least && (capacity.refused.is_some() || *rows != 1) {
                    return Err(ReplicaError::TooLarge { what: Some(what), error });
                }
                log::info!("the remote takes no transaction as large as {what}: {error}");
                capacity.refused = is_least.then_some(error);
                capacity.bytes = if *rows > 1 { (bytes / 2).min(capacity.bytes / 2).max(1) } else { 1 };
                if *rows > 1 {
                    capacity.too_many = capacity.too_many.min(*bytes);
                }
                make_certain(channel.remote, channel.store).await?;
            }
            pushed => {
                // A row that was too large alone makes no others small.
                capacity.refused = None;
                capacity.bytes = capacity.bytes.saturating_mul(2).min(capacity.too_many / 2).max(1);
                return pushed;
            }
        }
    }
}

async fn attempt(channel: &Channel<'_>, capacity: &Capacity, sent: &mut Sent) -> Result<PushedChanges, ReplicaError> {
    let store = channel.store;
    let Some(draft) = with(store, |store| store.to_push()).await? else {
        return Ok(PushedChanges::default());
    };
    let draft = Arc::new(draft);
    let (tell, mut found) = mpsc::channel(REPLICA_PUSH_STATEMENTS);
    let (of, bytes) = (draft.clone(), capacity.bytes);
    let finding = tokio::task::spawn_blocking(move || {
        let gone = |_| ReplicaError::Interrupted("the push was given up".into());
        let end = changes(&of, bytes, &mut |statement| tell.blocking_send(Found::Statement(statement)).map_err(gone))?;
        tell.blocking_send(Found::End(end)).map_err(gone)
    });
    let pushed = match found.recv().await {
        Some(Found::Statement(first)) => {
            let mut search = Search { first: Some(first), found: &mut found, refused: capacity.refused.as_deref() };
            send(channel, &draft, &mut search, sent).await.map(Some)
        }
        Some(Found::End(_)) => Ok(None),
        None => Err(cut_short()),
    };
    drop(found);
    let finding = finding.await.map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
    match (pushed, finding) {
        (Err(ReplicaError::Interrupted(_)), Err(cause)) => Err(cause),
        (Err(error), _) => Err(error),
        (Ok(Some(pushed)), _) => Ok(pushed),
        (Ok(None), _) => {
            let (now, is_part) = (draft.now, draft.done > 0);
            with(store, move |store| store.is_clean(now)).await?;
            Ok(PushedChanges { is_part, ..PushedChanges::default() })
        }
    }
}

fn cut_short() -> ReplicaError {
    ReplicaError::Interrupted("the search for changes was cut short".into())
}

/// Statements, as they are found.
struct Search<'a> {
    first: Option<Statement>,
    found: &'a mut mpsc::Receiver<Found>,
    /// Why rows are given up.
    refused: Option<&'a str>,
}

impl Search<'_> {
    async fn next(&mut self) -> Result<Found, ReplicaError> {
        match self.first.take() {
            Some(first) => Ok(Found::Statement(first)),
            None => self.found.recv().await.ok_or_else(cut_short),
        }
    }

    /// Why a statement is given up before it is sent.
    fn given_up(&self, statement: &Statement) -> Option<Conflict> {
        let refused = || {
            let error = self.refused.filter(|_| statement.about.doing != Doing::Schema)?;
            let bytes = statement.bytes();
            Some(format!("the remote takes no transaction with this change alone, of {bytes} bytes: {error}"))
        };
        let error = statement.too_large().or_else(refused)?;
        Some(Conflict { during: During::Push, about: statement.about.clone(), error })
    }
}

async fn send(
    channel: &Channel<'_>,
    draft: &Arc<Draft>,
    search: &mut Search<'_>,
    sent: &mut Sent,
) -> Result<PushedChanges, ReplicaError> {
    let store = channel.store;
    let (info, change_id) = with(store, move |store| {
        let change_id = store.begin_push()?;
        Ok((store.info.clone(), change_id))
    })
    .await?;
    let client = &info.client_unique_id;
    let mut transaction = Transaction::begin(channel.remote, client).await?;
    let last = transaction.reached.filter(|reached| reached.pull_gen >= info.pull_gen);
    if last != info.pushed.map(|change_id| Reached { pull_gen: info.pull_gen, change_id }) {
        transaction.roll_back().await;
        return Err(ReplicaError::Copied { client: client.clone() });
    }
    // From here on nobody else writes there. What is pushed comes right behind what is here now: no state of the remote that
    // has it not will be taken for a newer one.
    let fetched = match fetch(channel.remote, store, channel.batch, channel.tell).await {
        Ok(Fetched { then: Then::NextGeneration | Then::FetchWhole, frames }) => {
            transaction.roll_back().await;
            return Ok(PushedChanges { frames, is_over: true, ..PushedChanges::default() });
        }
        Ok(fetched) => send_all(&mut transaction, search, sent).await.map(|()| fetched),
        Err(error) => Err(error),
    };
    let frames = match fetched {
        Ok(fetched) => fetched.frames,
        Err(error) => {
            transaction.roll_back().await;
            return Err(error);
        }
    };
    let Sent { changes, done, .. } = *sent;
    let any = changes > 0 || !sent.conflicts.is_empty();
    let is_part = done.is_some() || draft.done > 0;
    let pushed = PushedChanges { changes, any, frames, is_over: false, is_part };
    let (from, to, now) = (draft.from, draft.number, draft.now);
    let parts_of_push = is_part.then_some(Parts { from, to, done, now });
    if is_part || !sent.conflicts.is_empty() {
        // Before it is made: whoever finds out later that it was has to know.
        let of_push = sent.conflicts.clone();
        with(store, move |store| store.store(Info { of_push, parts_of_push, ..store.info.clone() })).await?;
    }
    transaction.commit(client, Reached { pull_gen: info.pull_gen, change_id }).await?;
    with(store, move |store| store.end_push(change_id, now, changes)).await?;
    Ok(pushed)
}

impl Sent {
    fn note(&mut self, statement: &Statement) {
        self.bytes += statement.bytes();
        self.rows += u64::from(statement.about.doing != Doing::Schema);
        if !self.tables.contains(&statement.about.table) {
            self.tables.insert(statement.about.table.clone());
        }
    }
}

async fn send_all(
    transaction: &mut Transaction<'_>,
    search: &mut Search<'_>,
    sent: &mut Sent,
) -> Result<(), ReplicaError> {
    let (mut batch, mut is_all, mut held_back) = (Vec::new(), false, None);
    let mut bytes = 0;
    // What is told of a statement that is done instead of another.
    let mut told: Vec<Option<Conflict>> = Vec::new();
    loop {
        while !is_all && held_back.is_none() && batch.len() < REPLICA_PUSH_STATEMENTS && bytes < REPLICA_PUSH_BYTES {
            let found = search.next().await?;
            if let Found::Statement(statement) = &found {
                sent.note(statement);
            }
            match found {
                Found::End(done) => (is_all, sent.done) = (true, done),
                Found::Statement(statement) if let Some(conflict) = search.given_up(&statement) => {
                    sent.conflicts.push(conflict);
                }
                // What has to be done instead of the others comes before it: triggers that are made again must not fire.
                Found::Statement(statement) if statement.is_barrier_to(&batch) => held_back = Some(statement),
                Found::Statement(statement) => {
                    bytes += statement.weight();
                    batch.push(statement);
                }
            }
        }
        let (mut others, mut told_of_others) = (Vec::new(), Vec::new());
        told.resize(batch.len(), None);
        let outcomes = if batch.is_empty() { Vec::new() } else { transaction.run(&batch).await? };
        for ((statement, told), outcome) in batch.iter().zip(told).zip(outcomes) {
            match judge(During::Push, statement, outcome)? {
                Verdict::Done => {
                    sent.changes += 1;
                    sent.conflicts.extend(told);
                }
                Verdict::GivenUp(conflict) => sent.conflicts.push(conflict),
                Verdict::Otherwise(otherwise, _) if let Some(conflict) = search.given_up(&otherwise) => {
                    sent.conflicts.push(conflict)
                }
                Verdict::Otherwise(otherwise, conflict) => {
                    others.push(otherwise.into_owned());
                    told_of_others.push(Some(conflict));
                }
            }
        }
        if others.is_empty() {
            match held_back.take() {
                Some(statement) => {
                    others.push(statement);
                    told_of_others.push(None);
                }
                None if is_all => return Ok(()),
                None => {}
            }
        }
        bytes = others.iter().map(Statement::weight).sum();
        (batch, told) = (others, told_of_others);
    }
}
