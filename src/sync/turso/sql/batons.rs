//! [`Batons`]: what a client names a stream by, for one call; and [`GoneStreams`]: how streams ended, for those who come back.
//!
//! A baton says itself what would be lost with its stream: one with which nothing is lost goes on with a new connection, whatever
//! became of the stream, and of the process that ran it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::limits::SQL_GONE_MAX;

/// What is lost with a stream that ends before its next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// Nothing: another connection does as well.
    Nothing,
    /// The counts of its last statements (`changes()`, `last_insert_rowid()`).
    Counts,
    /// A transaction, stored SQL, settings or temporary tables.
    More,
}

impl Loss {
    const ALL: [Loss; 3] = [Loss::Nothing, Loss::Counts, Loss::More];
}

/// A baton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Baton {
    pub(super) stream: Uuid,
    /// How many there were for this stream before.
    pub(super) number: u64,
    pub(super) loss: Loss,
    /// Made by this process. One that was not has a stream here that only this baton leads to, with the number 0.
    pub(super) is_ours: bool,
}

/// Writes and reads the batons of a process.
///
/// One of its own that was never given out is none, and none is good for another log. Of one that another process made, nothing
/// can be known: it leads to nothing but a new stream, which its client can have without it.
///
/// ```text
/// | stream: 32 digits | process: 16 | number: 16 | loss: 1 | seal: 32 |
/// ```
#[derive(Debug)]
pub(super) struct Batons {
    process: u64,
    key: [Uuid; 2],
}

/// Digits before the seal.
const SEALED: usize = 65;

impl Batons {
    pub(super) fn new() -> Batons {
        Batons { process: Uuid::new_v4().as_u64_pair().0, key: [Uuid::new_v4(), Uuid::new_v4()] }
    }

    /// Cannot be guessed.
    fn seal(&self, log: &str, text: &str) -> Uuid {
        let [one, two] = self.key;
        let sum = [one.as_bytes(), two.as_bytes(), text.as_bytes(), log.as_bytes()]
            .into_iter()
            .fold(Sha256::new(), Digest::chain_update)
            .finalize();
        Uuid::from_bytes(sum.first_chunk().copied().unwrap_or_default())
    }

    /// A baton for a stream of `log`.
    pub(super) fn write(&self, log: &str, stream: Uuid, number: u64, loss: Loss) -> String {
        let text = format!("{}{:016x}{number:016x}{}", stream.simple(), self.process, loss as u8);
        let seal = self.seal(log, &text);
        format!("{text}{}", seal.simple())
    }

    /// Reads what a client of `log` sent; none when it is no baton.
    pub(super) fn read(&self, log: &str, text: &str) -> Option<Baton> {
        if !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let (sealed, seal) = text.split_at_checked(SEALED)?;
        let number = |from: usize| u64::from_str_radix(sealed.get(from..from + 16)?, 16).ok();
        let seal = Uuid::try_parse(seal).ok()?;
        let loss = *Loss::ALL.get(usize::from_str_radix(&sealed[64..], 16).ok()?)?;
        if number(32)? != self.process {
            return Some(Baton { stream: self.seal(log, text), number: 0, loss, is_ours: false });
        }
        let is_ours: bool = self.seal(log, sealed).as_bytes().ct_eq(seal.as_bytes()).into();
        let stream = Uuid::try_parse(&sealed[..32]).ok()?;
        is_ours.then_some(Baton { stream, number: number(48)?, loss, is_ours })
    }
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gone {
    /// Nothing was open in it: it goes on with a new connection.
    Idle,
    /// Its client closed it.
    Closed,
    /// A transaction was open in it for so long between two calls, and was rolled back.
    RolledBack(Duration),
    /// It was unused for so long, and had SQL texts, settings or temporary tables of its own.
    Expired(Duration),
    /// Its last call failed in a way that ended it.
    Failed,
    /// It was so long ago that nothing else is known of it.
    Forgotten,
    /// Its process ended, or it is of a log whose SQL another process runs.
    WithItsProcess,
}

/// What is lost with [`Loss::More`], where it is not known what there was.
const LOST: &str = "its stored SQL, settings and temporary tables are gone, and a transaction that was open in it is rolled back, \
                    unless a call with this baton committed it";

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::Idle => f.write_str("the stream of this baton has ended"),
            Gone::Closed => f.write_str("the stream of this baton was closed"),
            Gone::RolledBack(after) => write!(
                f,
                "the stream of this baton has ended: its transaction was left open for {:.1} s and was rolled back",
                after.as_secs_f64()
            ),
            Gone::Expired(after) => write!(
                f,
                "the stream of this baton has ended: it was unused for {:.1} s, and its stored SQL, settings and temporary \
                 tables are gone",
                after.as_secs_f64()
            ),
            Gone::Failed => f.write_str("the stream of this baton has ended: its last call failed"),
            Gone::Forgotten => write!(f, "the stream of this baton ended long ago: {LOST}"),
            Gone::WithItsProcess => {
                write!(f, "this baton is of another log, or the process that ran its stream has ended: then {LOST}")
            }
        }
    }
}

/// Of a baton that was good once.
pub(super) const USED: &str =
    "this baton was used before: it is good for one call, and each answer brings the next one";

/// The last [`SQL_GONE_MAX`] streams that ended under the eyes of a client.
#[derive(Debug, Default)]
pub(super) struct GoneStreams {
    order: VecDeque<Uuid>,
    gone: HashMap<Uuid, (u64, Gone)>,
}

impl GoneStreams {
    /// Remembers how a stream ended, and the number of the baton that its client had then.
    pub(super) fn remember(&mut self, stream: Uuid, number: u64, gone: Gone) {
        if self.gone.insert(stream, (number, gone)).is_some() {
            return;
        }
        self.order.push_back(stream);
        if self.order.len() > SQL_GONE_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.gone.remove(&first);
        }
    }

    /// What is remembered of a stream.
    pub(super) fn get(&self, stream: Uuid) -> Option<(u64, Gone)> {
        self.gone.get(&stream).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baton_is_read_as_it_was_written_and_nothing_else_is() {
        let (batons, stream) = (Batons::new(), Uuid::new_v4());
        for (number, loss) in [(1, Loss::Nothing), (2, Loss::Counts), (u64::MAX, Loss::More)] {
            let text = batons.write("a", stream, number, loss);
            assert_eq!(batons.read("a", &text), Some(Baton { stream, number, loss, is_ours: true }));
            assert_eq!(batons.read("b", &text), None);
            // Whatever is changed in it, it is not one of this process any more.
            for at in 0..text.len() {
                let other = if text[at..].starts_with('0') { "1" } else { "0" };
                let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                assert!(batons.read("a", &changed).is_none_or(|baton| !baton.is_ours), "{changed}");
            }
            for text in [String::new(), "nix".into(), "ä".repeat(49), text.to_uppercase(), format!("{text}0")] {
                assert_eq!(batons.read("a", &text), None, "{text}");
            }
        }
    }

    #[test]
    fn a_baton_of_another_process_leads_to_a_stream_that_no_other_baton_leads_to() {
        let (before, now, stream) = (Batons::new(), Batons::new(), Uuid::new_v4());
        let read = |number, loss| now.read("a", &before.write("a", stream, number, loss)).expect("a baton");
        let (one, two) = (read(1, Loss::Nothing), read(2, Loss::More));
        assert_eq!((one.number, one.loss, one.is_ours), (0, Loss::Nothing, false));
        assert_eq!((two.number, two.loss, two.is_ours), (0, Loss::More, false));
        assert_eq!(one, read(1, Loss::Nothing));
        assert!(one.stream != two.stream && one.stream != stream);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut gone = GoneStreams::default();
        let first = Uuid::new_v4();
        gone.remember(first, 1, Gone::Idle);
        gone.remember(first, 2, Gone::Closed);
        assert_eq!(gone.get(first), Some((2, Gone::Closed)));
        for _ in 0..SQL_GONE_MAX {
            gone.remember(Uuid::new_v4(), 1, Gone::Failed);
        }
        assert_eq!(gone.get(first), None);
        assert_eq!((gone.order.len(), gone.gone.len()), (SQL_GONE_MAX, SQL_GONE_MAX));
    }
}
