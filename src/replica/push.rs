//! Local changes to the remote, as one transaction with what says that it was made.
//!
//! Before it is sent, what the draft is then is kept as pages, and changes are told from those: the application may write on. If the remote says later that this push was made, whatever
//! became of the answer, changes are told from those pages on; else from where they were told before.

use std::sync::{Arc, Mutex};

use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use super::Tell;
use super::catalog::{Catalog, Reached};
use super::change::Statement;
use super::difference::statements;
use super::error::ReplicaError;
use super::info::{Info, Mark};
use super::judge::{Verdict, judge};
use super::pipeline::{Transaction, settled};
use super::pull::{Fetched, Then, fetch, with};
use super::report::{Conflict, During};
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
    draft: Image,
    now: Mark,
    /// Where the draft differs from what the remote has of it.
    differing: RoaringBitmap,
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
        let mut info = Info { pushed, push_in_doubt: false, ..self.info.clone() };
        let of_push = std::mem::take(&mut info.of_push);
        info.untold.extend(of_push.into_iter().filter(|_| made));
        self.store(info)
    }

    /// What may have to be pushed, kept for the next push; `None` when nothing has.
    fn to_push(&self) -> Result<Option<Draft>, ReplicaError> {
        let shared = self.shared()?;
        let pushed = self.info.pushed.map(|change_id| self.pushed(&shared, change_id)).transpose()?;
        let base = pushed.as_ref().map_or((&shared, None), |(image, pages)| (image, Some(pages)));
        let change_id = self.info.change_id + 1;
        let found = self.draft.look(|draft, now| {
            if now.salts != [0; 2] && self.info.clean == Some(now) {
                return Ok(None);
            }
            let differing = self.differing(base, (draft, now))?;
            if !differing.is_empty() {
                let pages = pushed.as_ref().map_or(differing.clone(), |(_, pushed)| pushed | &differing);
                self.keep_pushed(change_id, draft, &pages)?;
            }
            Ok(Some((now, differing)))
        })?;
        let Some((now, differing)) = found else { return Ok(None) };
        // From here on the draft may change: what was kept of it is what is pushed.
        let draft = if differing.is_empty() { shared.clone() } else { self.pushed(&shared, change_id)?.0 };
        let upstream = self.synced.image(self.info.in_wal());
        let upstream = upstream.map_err(ReplicaError::io("reading", &self.files.synced()))?;
        let there = Catalog::of(&upstream)?;
        Ok(Some(Draft { shared, pushed, draft, now, differing, there }))
    }

    /// Takes note that the draft has no changes, as of then.
    fn is_clean(&mut self, now: Mark) -> Result<(), ReplicaError> {
        // Without a WAL it could not be told from what others make of it.
        let now = if now.salts == [0; 2] { self.draft.mark_anew(now)? } else { Some(now) };
        log::debug!("{}: nothing to push", self.files.name());
        if let Some(now) = now {
            self.store(Info { clean: Some(now), ..self.info.clone() })?;
        }
        self.files.forget_pushed(self.info.pushed)
    }

    /// Takes note of a push that is about to be made. Its number.
    fn begin_push(&mut self) -> Result<i64, ReplicaError> {
        let change_id = self.info.change_id + 1;
        log::debug!("{}: push {change_id} begins", self.files.name());
        self.store(Info { change_id, push_in_doubt: true, of_push: Vec::new(), ..self.info.clone() })?;
        Ok(change_id)
    }

    /// Takes note that a push was made.
    fn end_push(&mut self, change_id: i64, now: Mark, changes: u64) -> Result<(), ReplicaError> {
        let conflicts = self.info.of_push.len();
        log::info!("{}: push {change_id} made: {changes} changes, {conflicts} conflicts", self.files.name());
        let clean = Some(now).filter(|now| now.salts != [0; 2]);
        let mut info = Info { pushed: Some(change_id), push_in_doubt: false, clean, ..self.info.clone() };
        let of_push = std::mem::take(&mut info.of_push);
        info.untold.extend(of_push);
        self.store(info)?;
        self.files.forget_pushed(Some(change_id))
    }
}

/// Tells the statements that make the changes, as they are found.
fn changes(draft: &Draft, take: &mut dyn FnMut(Statement) -> Result<(), ReplicaError>) -> Result<(), ReplicaError> {
    if draft.differing.is_empty() {
        return Ok(());
    }
    let before = draft.pushed.as_ref().map_or(&draft.shared, |(image, _)| image);
    let catalogs = [Catalog::of(before)?, Catalog::of(&draft.draft)?];
    let states = [State { pages: before, catalog: &catalogs[0] }, State { pages: &draft.draft, catalog: &catalogs[1] }];
    let shared_catalog = draft.pushed.is_some().then(|| Catalog::of(&draft.shared)).transpose()?;
    let shared = shared_catalog.as_ref().map(|catalog| State { pages: &draft.shared, catalog });
    let differing = Differing::of(draft.differing.clone(), states)?;
    statements((states[0], states[1]), &differing, shared, &draft.there, take)
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
    /// There are no more.
    All,
}

/// Pushes what the draft has and the remote has not.
///
/// # Errors
/// When the remote or a file fails. Whether the push was made is found out by [`make_certain`] then.
pub(super) async fn push(channel: &Channel<'_>) -> Result<PushedChanges, ReplicaError> {
    let store = channel.store;
    let Some(draft) = with(store, |store| store.to_push()).await? else {
        return Ok(PushedChanges::default());
    };
    let draft = Arc::new(draft);
    let (tell, mut found) = mpsc::channel(REPLICA_PUSH_STATEMENTS);
    let of = draft.clone();
    let finding = tokio::task::spawn_blocking(move || {
        let gone = |_| ReplicaError::Interrupted("the push was given up".into());
        changes(&of, &mut |statement| tell.blocking_send(Found::Statement(statement)).map_err(gone))?;
        tell.blocking_send(Found::All).map_err(gone)
    });
    let pushed = match found.recv().await {
        Some(Found::Statement(first)) => send(channel, &draft, first, &mut found).await.map(Some),
        Some(Found::All) => Ok(None),
        None => Err(cut_short()),
    };
    drop(found);
    let finding = finding.await.map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
    match (pushed, finding) {
        (Err(ReplicaError::Interrupted(_)), Err(cause)) => Err(cause),
        (Err(error), _) => Err(error),
        (Ok(Some(pushed)), _) => Ok(pushed),
        (Ok(None), _) => {
            let now = draft.now;
            with(store, move |store| store.is_clean(now)).await?;
            Ok(PushedChanges::default())
        }
    }
}

fn cut_short() -> ReplicaError {
    ReplicaError::Interrupted("the search for changes was cut short".into())
}

async fn send(
    channel: &Channel<'_>,
    draft: &Arc<Draft>,
    first: Statement,
    found: &mut mpsc::Receiver<Found>,
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
    let sent = match fetch(channel.remote, store, channel.batch, channel.tell).await {
        Ok(Fetched { then: Then::NextGeneration | Then::FetchWhole, frames }) => {
            transaction.roll_back().await;
            return Ok(PushedChanges { frames, is_over: true, ..PushedChanges::default() });
        }
        Ok(fetched) => send_all(&mut transaction, first, found).await.map(|(changes, conflicts)| {
            let any = changes > 0 || !conflicts.is_empty();
            (PushedChanges { changes, any, frames: fetched.frames, is_over: false }, conflicts)
        }),
        Err(error) => Err(error),
    };
    let (pushed, conflicts) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            transaction.roll_back().await;
            return Err(error);
        }
    };
    if !conflicts.is_empty() {
        // Before it is made: whoever finds out later that it was has to tell of them.
        let of_push = conflicts.clone();
        with(store, move |store| store.store(Info { of_push, ..store.info.clone() })).await?;
    }
    transaction.commit(client, Reached { pull_gen: info.pull_gen, change_id }).await?;
    let (now, changes) = (draft.now, pushed.changes);
    with(store, move |store| store.end_push(change_id, now, changes)).await?;
    Ok(pushed)
}

async fn send_all(
    transaction: &mut Transaction<'_>,
    first: Statement,
    found: &mut mpsc::Receiver<Found>,
) -> Result<(u64, Vec<Conflict>), ReplicaError> {
    let (mut changes, mut conflicts) = (0, Vec::new());
    let (mut batch, mut is_all, mut held_back) = (Vec::new(), false, None);
    let give_up = |statement: &Statement| {
        let conflict = |error| Conflict { during: During::Push, about: statement.about.clone(), error };
        statement.too_large().map(conflict)
    };
    match give_up(&first) {
        Some(conflict) => conflicts.push(conflict),
        None => batch.push(first),
    }
    let mut bytes: usize = batch.iter().map(Statement::weight).sum();
    // What is told of a statement that is done instead of another.
    let mut told: Vec<Option<Conflict>> = Vec::new();
    loop {
        while !is_all && held_back.is_none() && batch.len() < REPLICA_PUSH_STATEMENTS && bytes < REPLICA_PUSH_BYTES {
            match found.recv().await.ok_or_else(cut_short)? {
                Found::All => is_all = true,
                Found::Statement(statement) if let Some(conflict) = give_up(&statement) => conflicts.push(conflict),
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
                    changes += 1;
                    conflicts.extend(told);
                }
                Verdict::GivenUp(conflict) => conflicts.push(conflict),
                Verdict::Otherwise(otherwise, _) if let Some(conflict) = give_up(&otherwise) => {
                    conflicts.push(conflict)
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
                None if is_all => return Ok((changes, conflicts)),
                None => {}
            }
        }
        bytes = others.iter().map(Statement::weight).sum();
        (batch, told) = (others, told_of_others);
    }
}
