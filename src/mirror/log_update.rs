//! A log as another process of the service sees it: [`LogUpdate`]s say what is durable of it, its files are read directly.
//!
//! The process that owns the log keeps a [`LogUpdates`] for each process that it sends updates to, and sends in each what changed
//! since the one before. They are numbered: those of one log must be [taken in](LogUpdate::apply) in the order in which they
//! were made. The next one of a log that was said to be [unused](LogUpdate::unused) has all of it: the receiver may have forgotten it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::error::Error;
use super::log::{Log, Meta, State, View};
use super::writers::Writers;
use crate::format::Framing;
use crate::format::wal::Chain;
use crate::limits::LOG_UNUSED;
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
    /// Logs that are deleted or were not used for long, and the number of the last update of each.
    unused: Vec<(String, u64)>,
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
    /// It is the one of the update with this number; 0 if it is another one.
    same_as: u64,
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
#[derive(Debug)]
pub(crate) struct LogUpdates {
    sent: HashMap<String, SentLog>,
    /// How many were made.
    made: u64,
    /// A log of which none was made for so long is said to be unused.
    unused_after: Duration,
    /// When it was last seen which are.
    seen: Instant,
}

impl Default for LogUpdates {
    fn default() -> LogUpdates {
        LogUpdates::new(LOG_UNUSED)
    }
}

#[derive(Debug)]
struct SentLog {
    /// Not held, so that its generation can be deleted.
    log: Weak<Log>,
    number: u64,
    made: Instant,
    /// It was said that it is unused.
    is_unused: bool,
    writers: Writers,
    foreign_keys: bool,
    view: View,
}

impl SentLog {
    /// What to send where the log is so now and was so `before`, if that is short.
    fn change(&self, before: &SentLog) -> Option<Change> {
        let (was, is) = (Growth::of(&before.view)?, Growth::of(&self.view)?);
        let same = !before.is_unused
            && Weak::ptr_eq(&before.log, &self.log)
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
    /// For a process that knows nothing yet. A log of which no update was made for `unused_after` is said to be unused.
    pub(crate) fn new(unused_after: Duration) -> LogUpdates {
        LogUpdates { sent: HashMap::new(), made: 0, unused_after, seen: Instant::now() }
    }

    /// The logs but `log` that are unused, and are not said to be so yet.
    fn unused(&mut self, log: &str) -> Vec<(String, u64)> {
        if self.seen.elapsed() < self.unused_after / 10 {
            return Vec::new();
        }
        self.seen = Instant::now();
        let mut unused = Vec::new();
        for (name, sent) in self.sent.iter_mut().filter(|(name, sent)| *name != log && !sent.is_unused) {
            sent.is_unused = sent.log.strong_count() == 0 || sent.made.elapsed() >= self.unused_after;
            if sent.is_unused {
                unused.push((name.clone(), sent.number));
            }
        }
        self.sent.retain(|name, sent| name == log || sent.log.strong_count() > 0);
        unused
    }

    /// The update by which the receiver knows of `log` what is durable of it now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when its files cannot be opened by a path.
    pub(crate) fn next(&mut self, log: &Arc<Log>) -> Result<LogUpdate, Error> {
        let unused = self.unused(log.name());
        let before = self.sent.get_mut(log.name());
        let after = before.as_ref().map_or(0, |sent| if sent.is_unused { 0 } else { sent.number });
        let (name, number) = (log.name().to_owned(), self.made + 1);
        let now = SentLog {
            log: Arc::downgrade(log),
            number,
            made: Instant::now(),
            is_unused: false,
            writers: log.writers(),
            foreign_keys: log.foreign_keys(),
            view: log.view(),
        };
        let change = match before.as_ref().and_then(|before| now.change(before)) {
            Some(change) => change,
            None => Change::More(Box::new(WholeLog::of(log, &now, before.as_deref())?)),
        };
        if let (Change::Nothing, Some(before)) = (&change, before) {
            before.made = now.made;
            return Ok(LogUpdate { name, number: after, after, change, unused });
        }
        self.made = number;
        self.sent.insert(name.clone(), now);
        Ok(LogUpdate { name, number, after, change, unused })
    }
}

/// How many segments at the start are the same.
fn kept(before: &Arc<[SegmentInfo]>, now: &Arc<[SegmentInfo]>) -> usize {
    if Arc::ptr_eq(before, now) {
        return now.len();
    }
    before.iter().zip(now.iter()).take_while(|(before, now)| before == now).count()
}

fn directory(log: &Log) -> Result<&Path, Error> {
    log.repo()
        .path()
        .ok_or_else(|| Error::Unavailable("the files of this log are not in a directory of the system".into()))
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

    /// Logs that the receiver may forget, if nothing there uses them, and the number of its last update of each is this.
    pub(crate) fn unused(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.unused)
    }

    /// The log after the update, where `known` is what the receiver had as of the update with a number. Another generation is
    /// another log.
    ///
    /// # Errors
    /// When its directory cannot be opened, or the update does not follow the one before.
    pub(crate) fn apply(self, (number, known): (u64, Option<Arc<Log>>)) -> Result<Arc<Log>, Error> {
        let known = match self.change {
            Change::More(whole) => return whole.apply(self.name, (number, known)),
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
    /// Of a log as it is now, for a receiver that got what is `before`.
    fn of(log: &Arc<Log>, now: &SentLog, before: Option<&SentLog>) -> Result<WholeLog, Error> {
        let view = &now.view;
        let same = before.filter(|before| Weak::ptr_eq(&before.log, &now.log));
        let same_as = same.map_or(0, |sent| sent.number);
        let known = same.filter(|sent| !sent.is_unused);
        let kept = match known {
            Some(known) if known.view.openings == view.openings => kept(&known.view.sealed, &view.sealed),
            _ => 0,
        };
        let identity = match known {
            Some(_) => None,
            None => Some(LogIdentity { dir: directory(log)?.to_owned(), meta: log.described(), same_as }),
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

    fn apply(self, name: String, (number, known): (u64, Option<Arc<Log>>)) -> Result<Arc<Log>, Error> {
        let identity = self.identity.filter(|identity| known.is_none() || identity.same_as != number);
        let log = match identity {
            Some(LogIdentity { dir, meta, .. }) => {
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
