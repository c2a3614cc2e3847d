//! [`SqlService`]: SQL for a service, wherever it runs.

use std::sync::Arc;

use bytes::Bytes;

use super::pool::Workers;
use crate::mirror::Error;
use crate::sync::turso::TouchedPages;
use crate::sync::turso::sql::{Memory, MemoryShare, Pieces, Sql, whole};

/// SQL over HTTP, for all logs of a service.
#[derive(Debug)]
pub struct SqlService {
    executor: Executor,
    memory: Memory,
}

#[derive(Debug)]
enum Executor {
    Here(Arc<Sql>),
    Workers(Arc<Workers>),
}

impl SqlService {
    /// In this process: a statement that takes all memory, or overflows its stack, ends it.
    #[must_use]
    pub fn here(sql: Arc<Sql>) -> SqlService {
        SqlService { executor: Executor::Here(sql), memory: Memory::new() }
    }

    /// In processes of its own.
    #[must_use]
    pub fn in_workers(workers: Arc<Workers>) -> SqlService {
        SqlService { executor: Executor::Workers(workers), memory: Memory::new() }
    }

    /// A share of the memory for a body that is for `log`, and its answer; of nothing yet.
    #[must_use]
    pub fn share(&self, log: &str) -> MemoryShare {
        match &self.executor {
            Executor::Here(sql) => sql.share(log),
            Executor::Workers(_) => self.memory.share(log),
        }
    }

    /// As [`Sql::pipeline`].
    ///
    /// # Errors
    /// As that; [`Error::Aborted`] when the worker that ran it has ended.
    pub async fn pipeline(&self, log: &str, body: Bytes, share: MemoryShare, lasting: bool) -> Result<Bytes, Error> {
        match &self.executor {
            Executor::Here(sql) => sql.pipeline(log, (body, share), lasting).await,
            Executor::Workers(workers) => workers.pipeline(log, (body, share), lasting).await,
        }
    }

    /// As [`Sql::cursor`].
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub async fn cursor(&self, log: &str, body: Bytes, share: MemoryShare) -> Result<Pieces, Error> {
        match &self.executor {
            Executor::Here(sql) => sql.cursor(log, body, share).await,
            Executor::Workers(workers) => {
                let (workers, log) = (workers.clone(), log.to_owned());
                whole(async move { workers.cursor(&log, (body, share)).await }).await
            }
        }
    }

    /// As [`Sql::touched`].
    ///
    /// # Errors
    /// As that; [`Error::Aborted`] when the worker that ran it has ended.
    pub async fn touched(&self, log: &str, query: String) -> Result<TouchedPages, Error> {
        match &self.executor {
            Executor::Here(sql) => sql.touched(log, query).await,
            Executor::Workers(workers) => {
                let mut share = self.memory.share(log);
                share.cover(query.len()).await?;
                workers.touched(log, (query.into(), share)).await
            }
        }
    }
}
