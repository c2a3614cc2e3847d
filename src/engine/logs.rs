//! [`Logs`]: what an engine needs of the logs, in the process that owns them or in another.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::limits::SQL_TRANSACTION_BYTES_MAX;
use crate::mirror::{Error, Log, Registry, Settings, Writer};
use crate::offset::Offset;

/// The logs whose databases are opened. Their files are read directly; only the process that owns the logs appends to them.
pub trait Logs: Send + Sync {
    /// The log of that name, in its current generation.
    ///
    /// # Errors
    /// When there is none.
    fn get(&self, name: &str) -> Result<Arc<Log>, Error>;

    /// Bytes of the largest transaction that is kept in memory.
    fn transaction_bytes_max(&self) -> u64;

    /// Makes what `log` says of its durable end at least as new as this call.
    fn renew<'a>(&'a self, log: &'a Arc<Log>) -> BoxFuture<'a, Result<(), Error>>;

    /// Appends whole transactions to a log that ends before `at`; with their header where that is none. After Ok they are
    /// durable, and `log` says so.
    ///
    /// # Errors
    /// As those of [`Registry::append_whole`]. The log took none of it, unless that is [`Error::InDoubt`].
    fn append<'a>(&'a self, log: &'a Arc<Log>, at: Option<Offset>, bytes: Bytes) -> BoxFuture<'a, Result<(), Error>>;
}

/// Bytes of the largest transaction that an engine keeps in memory.
pub(crate) fn transaction_bytes_max(settings: &Settings) -> u64 {
    SQL_TRANSACTION_BYTES_MAX.min(settings.commit_bytes_max).min(settings.memory_max / 4)
}

impl Logs for Registry {
    fn get(&self, name: &str) -> Result<Arc<Log>, Error> {
        Registry::get(self, name)
    }

    fn transaction_bytes_max(&self) -> u64 {
        transaction_bytes_max(self.settings())
    }

    fn renew<'a>(&'a self, _log: &'a Arc<Log>) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn append<'a>(&'a self, log: &'a Arc<Log>, at: Option<Offset>, bytes: Bytes) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let share = self.reserve(bytes.len() as u64).await?;
            self.append_whole(log, at, (vec![bytes], share), Writer::Client).await.map(drop)
        })
    }
}
