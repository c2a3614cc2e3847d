//! A log as another process of the service sees it: [`LogUpdate`]s say what is durable of it, its files are read directly.
//!
//! The process that owns the log keeps a [`LogUpdates`] for each process that it sends updates to, and sends in each what changed
//! since the one before. They are numbered: those of one log must be [taken in](LogUpdate::apply) in the order in which they
//! were made.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::error::Error;
use super::log::{Log, Meta, State, View};
use super::writers::Writers;
use crate::format::Framing;
use crate::format::wal::Chain;
use crate::offset::{Epoch, Generation, Offset};
use crate::repo::{ReadOnlyRepo, Repo};
use crate::stream::SegmentInfo;

/// What changed of a log since the last update.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LogUpdate {
    name: String,
    /// That of the one before, if nothing has changed.
    number: u64,
    /// The number of the one before; 0 if the receiver need not have one.
    after: u64,
    change: Change,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Change {
    Nothing,
    /// Only that more frames are durable.
    Growth(Growth),
    #[serde(with = "as_json")]
    More(Box<WholeLog>),
}

/// How far the open segment of a WAL is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Growth {
    end: Offset,
    bytes: u64,
    /// The checksum up to there.
    chain: [u8; 8],
}

/// All of a log, but for what the receiver has.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct WholeLog {
    /// Which log it is, if that is new to the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<LogIdentity>,
    /// Who may write it: as `log.json` says it.
    writers: Writers,
    /// How many of the sealed segments that the receiver knows are still so.
    kept: usize,
    /// Those after them.
    sealed: Vec<SegmentUpdate>,
    head: Option<SegmentUpdate>,
    first: Offset,
    durable: Offset,
    epoch: Epoch,
    framing: String,
    state: LogCondition,
    opened: bool,
    cut_short: bool,
    openings: u64,
    foreign_keys: bool,
}

/// As text, whatever the format around it: some of it leaves out what is not there.
mod as_json {
    use serde::de::{DeserializeOwned, Error as _};
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&serde_json::to_string(value).map_err(S::Error::custom)?)
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LogIdentity {
    /// The directory of its generation.
    dir: PathBuf,
    meta: Meta,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SegmentUpdate(Offset, Offset, u64, String, bool);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum LogCondition {
    Ok,
    Failed(String),
    Damaged(String),
    Ended(Generation),
}

impl From<&SegmentInfo> for SegmentUpdate {
    fn from(info: &SegmentInfo) -> SegmentUpdate {
        SegmentUpdate(info.start, info.end, info.bytes, info.framing.to_string(), info.compressed)
    }
}

impl SegmentUpdate {
    fn info(&self) -> Result<SegmentInfo, Error> {
        let SegmentUpdate(start, end, bytes, framing, compressed) = self;
        Ok(SegmentInfo { start: *start, end: *end, bytes: *bytes, framing: parse(framing)?, compressed: *compressed })
    }
}

fn parse(framing: &str) -> Result<Framing, Error> {
    framing.parse().map_err(|error| Error::Unavailable(format!("an update of a log has no framing: {error}")))
}

/// What one other process knows of the logs.
#[derive(Debug, Default)]
pub(crate) struct LogUpdates {
    sent: HashMap<String, SentLog>,
    /// How many were made.
    made: u64,
}

#[derive(Debug)]
struct SentLog {
    /// Not held, so that its generation can be deleted.
    log: Weak<Log>,
    number: u64,
    writers: Writers,
    foreign_keys: bool,
    view: View,
}

impl SentLog {
    /// What to send where the log is so now and was so `before`, if that is short.
    fn change(&self, before: &SentLog) -> Option<Change> {
        let (was, is) = (Growth::of(&before.view)?, Growth::of(&self.view)?);
        let same = Weak::ptr_eq(&before.log, &self.log)
            && (&before.writers, before.foreign_keys) == (&self.writers, self.foreign_keys)
            && is_grown(&before.view, &self.view);
        let change = || if was == is { Change::Nothing } else { Change::Growth(is) };
        same.then(change)
    }
}

/// Whether `now` differs from `before` in its [`Growth`] only.
fn is_grown(before: &View, now: &View) -> bool {
    let header = |view: &View| match view.framing {
        Framing::Wal(Some(start)) => Some(start.header),
        _ => None,
    };
    let segment = |head: SegmentInfo| SegmentInfo { end: Offset::ZERO, bytes: 0, ..head };
    let rest = |view: &View| {
        let View { first, head, epoch, opened, cut_short, openings, .. } = view;
        (*first, head.map(segment), *epoch, *opened, *cut_short, *openings, header(view))
    };
    rest(before) == rest(now)
        && Arc::ptr_eq(&before.sealed, &now.sealed)
        && (&before.state, &now.state) == (&State::Ok, &State::Ok)
}

impl Growth {
    /// That of a WAL with frames in its open segment.
    fn of(view: &View) -> Option<Growth> {
        match (view.framing, view.head) {
            (Framing::Wal(Some(start)), Some(head)) if head.end == view.durable => {
                Some(Growth { end: head.end, bytes: head.bytes, chain: start.chain.encode() })
            }
            _ => None,
        }
    }

    fn apply(self, view: &mut View) {
        let Growth { end, bytes, chain } = self;
        view.durable = end;
        if let Some(head) = &mut view.head {
            (head.end, head.bytes) = (end, bytes);
        }
        if let Framing::Wal(Some(start)) = &mut view.framing {
            start.chain = Chain::decode(chain);
        }
    }
}

impl LogUpdates {
    /// The update by which the receiver knows of `log` what is durable of it now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when its files cannot be opened by a path.
    pub(crate) fn next(&mut self, log: &Arc<Log>) -> Result<LogUpdate, Error> {
        let before = self.sent.get(log.name());
        let after = before.map_or(0, |sent| sent.number);
        let number = self.made + 1;
        let (writers, foreign_keys) = (log.writers(), log.foreign_keys());
        let now = SentLog { log: Arc::downgrade(log), number, writers, foreign_keys, view: log.view() };
        let change = match before.and_then(|before| now.change(before)) {
            Some(Change::Nothing) => {
                return Ok(LogUpdate { name: log.name().to_owned(), number: after, after, change: Change::Nothing });
            }
            Some(change) => change,
            None => {
                let known = before.filter(|before| Weak::ptr_eq(&before.log, &now.log));
                let (is_new, whole) = (known.is_none(), WholeLog::of(log, &now, known)?);
                if is_new {
                    self.sent.retain(|_, sent| sent.log.strong_count() > 0);
                }
                Change::More(Box::new(whole))
            }
        };
        self.made = number;
        self.sent.insert(log.name().to_owned(), now);
        Ok(LogUpdate { name: log.name().to_owned(), number, after, change })
    }
}

/// How many segments at the start are the same.
fn kept(before: &Arc<[SegmentInfo]>, now: &Arc<[SegmentInfo]>) -> usize {
    if Arc::ptr_eq(before, now) {
        return now.len();
    }
    before.iter().zip(now.iter()).take_while(|(before, now)| before == now).count()
}

fn directory(log: &Log) -> Result<PathBuf, Error> {
    let path = log.repo().path().map(PathBuf::from);
    path.ok_or_else(|| Error::Unavailable("the files of this log are not in a directory of the system".into()))
}

impl LogUpdate {
    /// The log that it is about.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its number, and that of the one before for the same log; 0 for none.
    pub(crate) fn numbers(&self) -> (u64, u64) {
        (self.number, self.after)
    }

    /// The log after the update, where `known` is what the receiver had. Another generation is another log.
    ///
    /// # Errors
    /// When its directory cannot be opened, or the update does not follow the one before.
    pub(crate) fn apply(self, known: Option<Arc<Log>>) -> Result<Arc<Log>, Error> {
        let known = match self.change {
            Change::More(whole) => return whole.apply(self.name, known),
            _ => known.ok_or_else(|| unknown(&self.name))?,
        };
        if let Change::Growth(growth) = self.change {
            known.publish(|view| growth.apply(view));
        }
        Ok(known)
    }
}

fn unknown(name: &str) -> Error {
    Error::Unavailable(format!("nothing is known of log {name:?}"))
}

impl WholeLog {
    fn of(log: &Arc<Log>, now: &SentLog, known: Option<&SentLog>) -> Result<WholeLog, Error> {
        let view = &now.view;
        let kept = match known {
            Some(known) if known.view.openings == view.openings => kept(&known.view.sealed, &view.sealed),
            _ => 0,
        };
        let identity = match known {
            Some(_) => None,
            None => Some(LogIdentity { dir: directory(log)?, meta: log.described() }),
        };
        Ok(WholeLog {
            identity,
            writers: now.writers.clone(),
            kept,
            sealed: view.sealed[kept..].iter().map(SegmentUpdate::from).collect(),
            head: view.head.as_ref().map(SegmentUpdate::from),
            first: view.first,
            durable: view.durable,
            epoch: view.epoch,
            framing: view.framing.to_string(),
            state: match &view.state {
                State::Ok => LogCondition::Ok,
                State::Failed(cause) => LogCondition::Failed(cause.as_ref().to_owned()),
                State::Damaged(cause) => LogCondition::Damaged(cause.as_ref().to_owned()),
                State::Ended(next) => LogCondition::Ended(*next),
            },
            opened: view.opened,
            cut_short: view.cut_short,
            openings: view.openings,
            foreign_keys: now.foreign_keys,
        })
    }

    fn apply(self, name: String, known: Option<Arc<Log>>) -> Result<Arc<Log>, Error> {
        let log = match self.identity {
            Some(LogIdentity { dir, meta }) => {
                let repo = ReadOnlyRepo::open(dir).map_err(|error: io::Error| {
                    Error::Unavailable(format!("the directory of the log cannot be opened: {error}"))
                })?;
                let repo: Arc<dyn Repo> = Arc::new(repo);
                if let Some(before) = known {
                    // What still uses that must learn that it is not the log any more.
                    before.publish(|view| view.state = State::Ended(meta.generation));
                }
                // Nothing is ever sent to a writer thread.
                let (queue, _) = mpsc::channel(1);
                Arc::new(Log::new(name, meta, (repo.clone(), repo), (0, queue.downgrade())))
            }
            None => known.ok_or_else(|| unknown(&name))?,
        };
        log.set_writers(self.writers);
        log.set_foreign_keys(self.foreign_keys);
        let known = log.view().sealed;
        let sealed = match known.get(..self.kept) {
            None => return Err(Error::Unavailable("an update of a log does not follow the one before".into())),
            Some(kept) if kept.len() == known.len() && self.sealed.is_empty() => known,
            Some(kept) => {
                let added = self.sealed.iter().map(SegmentUpdate::info);
                kept.iter().copied().map(Ok).chain(added).collect::<Result<Vec<_>, Error>>()?.into()
            }
        };
        let head = self.head.as_ref().map(SegmentUpdate::info).transpose()?;
        let framing = parse(&self.framing)?;
        let state = match self.state {
            LogCondition::Ok => State::Ok,
            LogCondition::Failed(cause) => State::Failed(cause.into()),
            LogCondition::Damaged(cause) => State::Damaged(cause.into()),
            LogCondition::Ended(next) => State::Ended(next),
        };
        log.publish(|view| {
            *view = View {
                first: self.first,
                sealed,
                head,
                durable: self.durable,
                acknowledged: view.acknowledged,
                epoch: self.epoch,
                last: None,
                framing,
                state,
                opened: self.opened,
                cut_short: self.cut_short,
                damage: None,
                openings: self.openings,
            };
        });
        Ok(log)
    }
}
