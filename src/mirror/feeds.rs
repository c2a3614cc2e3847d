//! Which mirrors feed the logs of a service now: streams of theirs that are open, and when the last one of a mirror that follows
//! ended. Another source takes such a log over only where that is meant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::writers::Writer;
use crate::limits::FED_WITHIN;

/// The feeds of all logs, by the name of the log.
#[derive(Debug, Default)]
pub(super) struct Feeds(Mutex<HashMap<String, Fed>>);

/// What feeds one log.
#[derive(Debug)]
struct Fed {
    source: String,
    /// The process that follows it, where one does.
    follower: Option<String>,
    /// One is held here, and one by each stream that is open. Another source that takes the log over has others.
    streams: Arc<()>,
    /// When the last stream of a mirror that follows ended; such a mirror opens another one.
    followed: Option<Instant>,
}

impl Fed {
    fn is_open(&self) -> bool {
        Arc::strong_count(&self.streams) > 1
    }

    fn is_over(&self) -> bool {
        !self.is_open() && self.followed.is_none_or(|ended| ended.elapsed() > FED_WITHIN)
    }
}

/// A stream of a mirror into a log, which is open until this is dropped.
#[derive(Debug)]
pub(super) struct OpenFeed {
    feeds: Arc<Feeds>,
    log: String,
    stream: Arc<()>,
    follows: bool,
}

impl Feeds {
    fn locked(&self) -> MutexGuard<'_, HashMap<String, Fed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `writer` sends something to a log from here on; none for one that is no mirror.
    pub(super) fn open(self: &Arc<Self>, log: &str, writer: &Writer) -> Option<OpenFeed> {
        let Writer::Mirror { source, follower } = writer else {
            return None;
        };
        let mut fed = self.locked();
        fed.retain(|_, fed| !fed.is_over());
        let new =
            || Fed { source: source.clone(), follower: follower.clone(), streams: Arc::default(), followed: None };
        let entry = fed.entry(log.to_owned()).or_insert_with(new);
        if entry.source != *source {
            *entry = new();
        }
        entry.follower = follower.clone().or(entry.follower.take());
        let stream = entry.streams.clone();
        Some(OpenFeed { feeds: self.clone(), log: log.to_owned(), stream, follows: follower.is_some() })
    }

    /// How long ago `source` fed a log last, if it does so still: zero while a stream of it is open. What the process `by` follows
    /// does not count.
    pub(super) fn since(&self, log: &str, source: &str, by: Option<&str>) -> Option<Duration> {
        let fed = self.locked();
        let is_by = |fed: &Fed| by.is_some() && fed.follower.as_deref() == by;
        let entry = fed.get(log).filter(|fed| fed.source == source && !fed.is_over() && !is_by(fed))?;
        Some(if entry.is_open() {
            Duration::ZERO
        } else {
            entry.followed.map_or(Duration::ZERO, |ended| ended.elapsed())
        })
    }
}

impl Drop for OpenFeed {
    fn drop(&mut self) {
        // Another source may have taken the log over since, or this one again.
        let is_of_it = |fed: &&mut Fed| Arc::ptr_eq(&fed.streams, &self.stream);
        if let Some(fed) = self.feeds.locked().get_mut(&self.log).filter(is_of_it).filter(|_| self.follows) {
            fed.followed = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_fed_while_a_stream_is_open_and_for_a_while_after_that_of_a_follower() {
        let feeds = Arc::new(Feeds::default());
        let mirror = |source: &str, follower: Option<&str>| Writer::Mirror {
            source: source.to_owned(),
            follower: follower.map(str::to_owned),
        };
        assert!(feeds.open("app", &Writer::Client).is_none() && feeds.since("app", "a", None).is_none());
        let once = feeds.open("app", &mirror("a", None));
        assert_eq!(feeds.since("app", "a", None), Some(Duration::ZERO));
        assert!(feeds.since("app", "b", None).is_none() && feeds.since("other", "a", None).is_none());
        drop(once);
        assert!(feeds.since("app", "a", None).is_none(), "a copy that has ended comes back only when it is wanted");
        drop(feeds.open("app", &mirror("a", Some("1"))));
        assert!(feeds.since("app", "a", None).is_some());
        // The same process follows something else.
        assert!(feeds.since("app", "a", Some("1")).is_none() && feeds.since("app", "a", Some("2")).is_some());
        // Another one that took it over is what feeds it now.
        let other = feeds.open("app", &mirror("b", Some("2")));
        assert!(feeds.since("app", "a", None).is_none() && feeds.since("app", "b", None).is_some());
        drop(other);
    }

    #[test]
    fn a_stream_of_before_a_takeover_ends_none_that_was_opened_after_it() {
        let feeds = Arc::new(Feeds::default());
        let mirror = |source: &str| Writer::Mirror { source: source.to_owned(), follower: Some("1".to_owned()) };
        let before = feeds.open("app", &mirror("a"));
        let between = feeds.open("app", &mirror("b"));
        let now = feeds.open("app", &mirror("a"));
        drop((before, between));
        assert_eq!(feeds.since("app", "a", None), Some(Duration::ZERO), "a stream is open");
        drop(now);
        assert!(feeds.since("app", "a", None).is_some_and(|since| since > Duration::ZERO));
    }
}
