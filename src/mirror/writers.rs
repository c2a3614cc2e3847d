//! Who writes a WAL log: the mirror that feeds it, or its clients by SQL and the sync protocols. Never both: what clients wrote
//! would be taken back by the next comparison of the mirror, and what the mirror wrote would be a fork to them.

use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::error::Error;
use super::generation::check_wal;
use super::log::{Log, Meta};
use super::registry::Registry;
use super::shard::Message;
use crate::api::LogSource;
use crate::limits::SOURCE_IDENTITY_BYTES_MAX;
use crate::offset::Offset;

/// What a log knows of its writers: a part of `log.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Writers {
    /// What the mirror feeds it from that is its only writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<LogSource>,
    /// What it was fed from before it was handed over to its clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) promoted_from: Option<String>,
}

/// Somebody who appends to a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Writer {
    /// A client, by SQL or a sync protocol.
    Client,
    /// A sender of raw commits that does not say where they come from.
    #[default]
    Unnamed,
    /// The mirror of a source.
    Mirror {
        /// The identity of the source.
        source: String,
        /// A name of the process that follows it, and comes back when its stream ends; none for one that does not.
        follower: Option<String>,
    },
}

impl Writers {
    fn admit(&self, log_name: &str, writer: &Writer) -> Result<(), Error> {
        let log = || log_name.to_owned();
        if let Some(source) = &self.source {
            let is_of_source = matches!(writer, Writer::Mirror { source: named, .. } if *named == source.identity);
            let source_identity = || source.identity.clone();
            return match writer {
                _ if is_of_source => Ok(()),
                Writer::Mirror { source: named, .. } => {
                    Err(Error::TakenOver { log: log(), source_identity: source_identity(), loser: named.clone() })
                }
                _ => Err(Error::Mirrored { log: log(), source_identity: source_identity() }),
            };
        }
        match &self.promoted_from {
            Some(from) if *writer != Writer::Client => Err(Error::Promoted { log: log(), from: from.clone() }),
            _ => Ok(()),
        }
    }
}

impl Log {
    pub(super) fn writers(&self) -> Writers {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_writers(&self, writers: Writers) {
        *self.writers.lock().unwrap_or_else(PoisonError::into_inner) = writers;
    }

    /// What a mirror feeds it from, if one does.
    #[must_use]
    pub fn source(&self) -> Option<LogSource> {
        self.writers().source
    }

    /// That its base is still to come, in words; none for a log that holds a database.
    pub(super) fn awaited_base(&self) -> Option<String> {
        let LogSource { identity, .. } = self.source().filter(|source| source.awaits_base)?;
        Some(format!(
            "log {:?} holds no database yet: its base is to come from the mirror of {identity}; run that, or wait for it, or end \
             the wait with `logmirror promote URL`: the log is empty then, and takes writers of every kind",
            self.name()
        ))
    }

    /// Whether `writer` may write now. What it appends is asked again, in the order in which it is stored.
    ///
    /// # Errors
    /// [`Error::Mirrored`], [`Error::Promoted`].
    pub fn admit(&self, writer: &Writer) -> Result<(), Error> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).admit(self.name(), writer)
    }

    /// Makes a source the one that feeds it, if it ends where that says, at `next`. Only its shard may: nothing is appended meanwhile.
    pub(super) fn claim(&self, source: &LogSource, next: Offset) -> Result<(), Error> {
        if source.offset != next {
            return Err(Error::Gap { expected: next, found: source.offset });
        }
        self.set_writers(Writers { source: Some(source.clone()), promoted_from: None });
        Ok(())
    }
}

impl Registry {
    /// Notes what feeds a WAL log, and how far it was read. From then on nobody else writes it. A source that did not feed it
    /// before must say that it ends where the log does. One that was handed over to its clients, and one that another source feeds
    /// now, is taken only with `adopt`, unless the process that `follower` names does so: it follows this one from here on. After Ok that survives power loss. Blocks.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no WAL log, [`Error::Ended`] when it is in another generation than that says,
    /// [`Error::Gap`] when it ends elsewhere, [`Error::Promoted`], [`Error::Fed`].
    pub fn set_source(
        &self,
        log_name: &str,
        source: LogSource,
        adopt: bool,
        follower: Option<&str>,
    ) -> Result<Arc<Log>, Error> {
        self.exclusively(log_name, || {
            let log = self.get(log_name)?;
            log.writable()?;
            check_wal(&log)?;
            check_identity(&source.identity)?;
            if source.generation != log.generation() {
                return Err(Error::Ended { generation: source.generation, current: log.generation() });
            }
            let before = log.writers();
            if let Some(from) = before.promoted_from.clone().filter(|_| !adopt) {
                return Err(Error::Promoted { log: log_name.to_owned(), from });
            }
            let is_known = before.source.as_ref().is_some_and(|known| known.identity == source.identity);
            let other = before.source.as_ref().filter(|_| !is_known).map(|other| other.identity.clone());
            if let Some(other) = &other
                && let Some(since) = self.feeds.since(log_name, other, follower).filter(|_| !adopt)
            {
                let (log, wanted) = (log_name.to_owned(), source.identity);
                return Err(Error::Fed { log, source_identity: other.clone(), wanted, since });
            }
            if !is_known {
                self.claim(&log, source.clone())?;
            }
            let identity = source.identity.clone();
            let writers = Writers { source: Some(source), promoted_from: None };
            let stored = self.store_meta(&log, &Meta { writers: writers.clone(), ..log.described() });
            match stored {
                Ok(()) => log.set_writers(writers),
                Err(error) => {
                    log.set_writers(before);
                    return Err(error);
                }
            }
            match other {
                Some(other) => log::warn!(
                    "{log_name}: taken over: it was fed from {other}, and is fed from {identity} from here on"
                ),
                None if !is_known => log::info!("{log_name}: a mirror of {identity} feeds it from here on"),
                None => {}
            }
            Ok(log)
        })
    }

    fn claim(&self, log: &Arc<Log>, source: LogSource) -> Result<(), Error> {
        let (reply, claimed) = oneshot::channel();
        let gone = || Error::Unavailable("the service is shutting down".into());
        let message = Message::Claim { log: log.clone(), source, reply };
        self.shards.queue(log).blocking_send(message).map_err(|_| gone())?;
        claimed.blocking_recv().map_err(|_| gone())?
    }

    /// Hands a WAL log over from the mirror that feeds it to its clients. From then on no mirror writes it, also not the one
    /// that is running. A log that no mirror feeds stays as it is; one whose first base never arrived is empty from then on, and
    /// takes writers of every kind. After Ok that survives power loss. Blocks.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no WAL log, and when `log.json` cannot be written.
    pub fn promote(&self, log_name: &str) -> Result<Arc<Log>, Error> {
        self.exclusively(log_name, || {
            let log = self.get(log_name)?;
            log.writable()?;
            check_wal(&log)?;
            if let Some(LogSource { identity, awaits_base, .. }) = log.source() {
                // Of a source that brought nothing there is nothing that it could contradict later.
                let writers = Writers { source: None, promoted_from: Some(identity).filter(|_| !awaits_base) };
                self.store_meta(&log, &Meta { writers: writers.clone(), ..log.described() })?;
                log.set_writers(writers);
                log::info!("{log_name}: handed over to its clients");
            }
            Ok(log)
        })
    }
}

/// That an identity can stand in a message and in a header.
fn check_identity(identity: &str) -> Result<(), Error> {
    if identity.is_empty() || identity.len() > SOURCE_IDENTITY_BYTES_MAX || identity.chars().any(char::is_control) {
        return Err(Error::Invalid(format!(
            "the identity of a source has 1 to {SOURCE_IDENTITY_BYTES_MAX} bytes, and no control characters"
        )));
    }
    Ok(())
}
