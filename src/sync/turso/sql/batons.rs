//! [`Baton`]: what a client names a stream by, for one call; and [`GoneStreams`]: what is remembered of streams that ended, so
//! that a baton of theirs is answered with what became of them, or goes on where nothing was lost.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::limits::{SQL_GONE_MAX, SQL_GONE_PER_LOG_MAX, SQL_GONE_TIME_MAX};

/// The name of a stream, and a secret that is good for its next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Baton {
    pub(super) stream: Uuid,
    pub(super) secret: Uuid,
}

impl Baton {
    /// For the next call on a stream. It cannot be guessed.
    pub(super) fn next(stream: Uuid) -> Baton {
        Baton { stream, secret: Uuid::new_v4() }
    }

    /// Reads what a client sent; none when it is no baton of ours.
    pub(super) fn read(text: &str) -> Option<Baton> {
        let (stream, secret) = text.split_at_checked(text.len() / 2)?;
        let part = |part: &str| Uuid::try_parse(part).ok().filter(|_| part.len() == uuid::fmt::Simple::LENGTH);
        Some(Baton { stream: part(stream)?, secret: part(secret)? })
    }
}

impl fmt::Display for Baton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.stream.simple(), self.secret.simple())
    }
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gone {
    /// Nothing was open in it. A call with this secret goes on with a new connection, where `forgot` says that the counts of
    /// its last statements (`changes()`, `last_insert_rowid()`) are lost.
    Idle { secret: Uuid, forgot: bool },
    /// Its client closed it.
    Closed,
    /// A transaction was open in it for so long between two calls, and was rolled back.
    RolledBack(Duration),
    /// It was unused for so long, and had SQL texts, settings or temporary tables of its own.
    Expired(Duration),
    /// Its last call failed in a way that ended it.
    Failed,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // One with this secret goes on: the caller has another one.
            Gone::Idle { .. } => f.write_str(OTHER),
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
        }
    }
}

/// Of a baton that is not the one for the next call on its stream.
pub(super) const OTHER: &str = "this baton is not the one of the last answer on its stream: it was used before, or is damaged; each is good for one call";

/// Streams that ended, for [`SQL_GONE_TIME_MAX`] and [`SQL_GONE_PER_LOG_MAX`] a log, those that were closed apart from those that
/// were not: a client that closes its streams makes many, and comes back to none.
#[derive(Debug, Default)]
pub(super) struct GoneStreams {
    logs: HashMap<String, [Ring; 2]>,
    count: usize,
}

/// In the order in which they ended.
#[derive(Debug, Default)]
struct Ring {
    order: VecDeque<(Instant, Uuid)>,
    gone: HashMap<Uuid, Gone>,
}

impl Ring {
    fn remove(&mut self, stream: Uuid) -> Option<Gone> {
        let gone = self.gone.remove(&stream)?;
        self.order.retain(|(_, other)| *other != stream);
        Some(gone)
    }

    /// Forgets the first ones until `enough` says so; returns how many.
    fn forget(&mut self, enough: impl Fn(usize, Duration) -> bool) -> usize {
        let before = self.order.len();
        while let Some((since, stream)) = self.order.front().copied()
            && !enough(self.order.len(), since.elapsed())
        {
            self.order.pop_front();
            self.gone.remove(&stream);
        }
        before - self.order.len()
    }
}

impl GoneStreams {
    /// Remembers a stream of a log.
    pub(super) fn remember(&mut self, log: &str, stream: Uuid, gone: Gone) {
        let rings = match self.logs.get_mut(log) {
            Some(rings) => rings,
            None => self.logs.entry(log.to_owned()).or_default(),
        };
        let ring = &mut rings[usize::from(gone == Gone::Closed)];
        ring.order.push_back((Instant::now(), stream));
        ring.gone.insert(stream, gone);
        self.count += 1;
        self.count -= ring.forget(|count, age| count <= SQL_GONE_PER_LOG_MAX && age < SQL_GONE_TIME_MAX);
        if self.count > SQL_GONE_MAX {
            self.forget_one();
        }
    }

    /// Takes what is remembered of a stream that may go on under this baton; what became of another one stays.
    pub(super) fn take(&mut self, log: &str, baton: Baton) -> Option<Gone> {
        let rings = self.logs.get_mut(log)?;
        for ring in rings.iter_mut() {
            self.count -= ring.forget(|_, age| age < SQL_GONE_TIME_MAX);
        }
        let goes_on = |gone: &Gone| matches!(gone, Gone::Idle { secret, .. } if *secret == baton.secret);
        let ring = rings.iter_mut().find(|ring| ring.gone.contains_key(&baton.stream))?;
        let gone = *ring.gone.get(&baton.stream)?;
        if goes_on(&gone) {
            ring.remove(baton.stream);
            self.count -= 1;
        }
        Some(gone)
    }

    /// Forgets the first one of the log that has most.
    fn forget_one(&mut self) {
        let rings = self.logs.values_mut().flatten();
        let Some(most) = rings.max_by_key(|ring| ring.order.len()) else { return };
        let length = most.order.len();
        self.count -= most.forget(|count, _| count < length);
        self.logs.retain(|_, rings| rings.iter().any(|ring| !ring.order.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(secret: Uuid) -> Gone {
        Gone::Idle { secret, forgot: false }
    }

    #[test]
    fn a_baton_is_read_as_it_was_written_and_nothing_else_is() {
        let baton = Baton::next(Uuid::new_v4());
        assert_eq!(Baton::read(&baton.to_string()), Some(baton));
        let hyphens = format!("{}{}", baton.stream, baton.secret);
        for text in ["", "nix", "ä", &baton.stream.to_string(), &hyphens, &format!("{baton}0")] {
            assert_eq!(Baton::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_stream_goes_on_once_and_only_on_its_log_with_its_secret() {
        let mut gone = GoneStreams::default();
        let baton = Baton::next(Uuid::new_v4());
        gone.remember("a", baton.stream, idle(baton.secret));
        assert_eq!(gone.take("b", baton), None);
        assert_eq!(gone.take("a", Baton::next(baton.stream)), Some(idle(baton.secret)));
        assert_eq!(gone.take("a", baton), Some(idle(baton.secret)));
        assert_eq!(gone.take("a", baton), None);
        assert_eq!(gone.count, 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_closing_drives_nothing_else_out() {
        let mut gone = GoneStreams::default();
        let kept = Baton::next(Uuid::new_v4());
        gone.remember("a", kept.stream, idle(kept.secret));
        for _ in 0..SQL_GONE_PER_LOG_MAX + 10 {
            gone.remember("a", Uuid::new_v4(), Gone::Closed);
        }
        assert_eq!(gone.count, SQL_GONE_PER_LOG_MAX + 1);
        for log in 0..=SQL_GONE_MAX / SQL_GONE_PER_LOG_MAX {
            for _ in 0..SQL_GONE_PER_LOG_MAX {
                gone.remember(&format!("{log}"), Uuid::new_v4(), Gone::Failed);
            }
        }
        assert_eq!(gone.count, SQL_GONE_MAX);
        assert_eq!(gone.take("a", kept), Some(idle(kept.secret)));
        let held: usize = gone.logs.values().flatten().map(|ring| ring.gone.len()).sum();
        assert_eq!(held, gone.count);
    }
}
