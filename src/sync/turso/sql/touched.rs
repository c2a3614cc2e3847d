//! The pages that a query touches, for clients that begin with no more of a database than that.

use std::sync::Arc;
use std::time::Instant;

use turso_core::Connection;
use turso_parser::ast::{Cmd, Stmt};
use turso_parser::parser::Parser;

use super::answer::SqlError;
use super::execute::{Runner, Stopped};
use super::transaction::Transaction;
use super::{Sql, guard, whole};
use crate::engine::{Session, record_page_reads};
use crate::limits::{SQL_ATTEMPTS_MAX, WRITE_TURN_WAIT};
use crate::mirror::Error;
use crate::offset::Offset;
use crate::sync::turso::TouchedPages;

/// What every client reads when it opens a database: all of the schema, and the statistics by which queries are planned, where
/// there are some.
const SCHEMA: &str = "SELECT * FROM sqlite_schema";
/// See [`SCHEMA`].
const STATISTICS: &str = "SELECT tbl, idx, stat FROM sqlite_stat1";

impl Sql {
    /// The pages that a query reads, all in one durable state of the log. It runs to its end, and its rows are dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no single SELECT, would write, or fails; otherwise as [`pipeline`](Self::pipeline).
    pub async fn touched(self: &Arc<Self>, log: &str, query: String) -> Result<TouchedPages, Error> {
        let (sql, log) = (self.clone(), log.to_owned());
        whole(async move {
            let query: Arc<str> = query.into();
            let mut share = sql.share(&log);
            share.cover(query.len()).await?;
            let (since, mut attempts) = (Instant::now(), 1);
            loop {
                match sql.try_touched(&log, query.clone()).await {
                    // Its engine was closed under it, because others appended to the log.
                    Err(Error::Unavailable(_)) if attempts < SQL_ATTEMPTS_MAX && since.elapsed() < WRITE_TURN_WAIT => {
                        attempts += 1;
                    }
                    touched => return touched,
                }
            }
        })
        .await
    }

    async fn try_touched(self: &Arc<Self>, log: &str, query: Arc<str>) -> Result<TouchedPages, Error> {
        let (sql, name) = (self.clone(), log.to_owned());
        let work = move || {
            check(&query)?;
            // One of its own: what another has in its cache is not read.
            let stream = sql.open(&name, true, false)?;
            let touched = read(&stream.session, &query)?;
            Ok::<_, Error>((stream, touched))
        };
        let (stream, touched) = self.threads.run_for(log, work).await??;
        let settled = stream.session.settle().await;
        self.threads.end_later(stream);
        settled.map(|()| touched)
    }
}

fn refused(error: &SqlError) -> Error {
    Error::Invalid(format!("the query selector: {}", error.message))
}

/// # Errors
/// When it is not one SELECT.
fn check(query: &str) -> Result<(), Error> {
    guard::inspect(query).map_err(|error| refused(&error))?;
    match Parser::new(query.as_bytes()).next_cmd() {
        Ok(Some(Cmd::Stmt(Stmt::Select(_)))) => Ok(()),
        _ => Err(Error::Invalid("the query selector is no SELECT: it may only read".into())),
    }
}

/// Runs it in a transaction, which is left open: what the connection has seen is what it read. Blocks.
fn read(session: &Session, query: &str) -> Result<TouchedPages, Error> {
    let runner = Runner { session, transaction: &Transaction::default(), may_write: false };
    let connection = session.connection();
    // It reads the first page when it is made, and some of the schema.
    session.drop_cache();
    let (done, mut pages) = record_page_reads(|| {
        connection.execute("BEGIN").map_err(SqlError::from)?;
        let mut prepared = runner.prepare(query)?;
        if prepared.statement.parameters_count() > 0 {
            let text = "it has parameters, for which a pull has no arguments: write the values into it";
            return Err(SqlError::of("ARGS_INVALID", text).into());
        }
        while prepared.step(&runner)?.is_some() {}
        read_all(connection, SCHEMA)?;
        match read_all(connection, STATISTICS) {
            Err(Stopped::Failed(error)) if error.message.contains("no such table") => Ok(()),
            read => read,
        }
    });
    match done {
        Ok(()) => {}
        Err(Stopped::Failed(error)) => return Err(refused(&error)),
        Err(Stopped::NeedsTurn) => return Err(Error::Invalid("the query selector writes: it may only read".into())),
    }
    let (generation, frame) = session.seen()?;
    // Without it there is no database; the engine has its own copy of one that was never written.
    pages.insert(0);
    Ok(TouchedPages { generation, frame: Offset(frame), pages })
}

/// Reads what a query of ours finds.
fn read_all(connection: &Arc<Connection>, sql: &str) -> Result<(), Stopped> {
    let mut statement = connection.prepare(sql).map_err(SqlError::from)?;
    let step = |statement: &mut turso_core::Statement| {
        Ok::<_, SqlError>(statement.run_one_step_blocking(|| Ok(()), || Ok(()))?.is_some())
    };
    while step(&mut statement)? {}
    Ok(())
}
