//! A replica as an application has it: a database with a sync URL, tables, rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::client::HttpConnector;
use libsql::{Builder, Connection, Database};

use crate::{FRAME_BYTES, Wire};

/// Longer than all retries of a client together.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
const WAL_HEADER_BYTES: u64 = 32;

/// A row of the one table: its number, who wrote it, and what.
pub type Row = (i64, String, String);

/// How a sync ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This many frames were pushed.
    Pushed(u64),
    /// The replica has what the server has.
    Pulled,
    /// The server could not be reached; the client calls that a success.
    Offline,
    /// The server said "conflict".
    Conflict,
}

/// A synced database that is open, and its way to the server.
pub struct Replica {
    /// Its way to the server.
    pub wire: Wire,
    path: PathBuf,
    database: Database,
    connection: Connection,
}

/// The client is built without TLS, so that it brings no certificates; this is what it would use for `http:` anyway.
pub fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

impl Replica {
    /// Open the database at `path`, with `batch` frames in a push or the client's own number.
    pub(crate) async fn open(
        path: PathBuf,
        wire: Wire,
        url: String,
        token: &str,
        batch: Option<u32>,
    ) -> libsql::Result<Self> {
        let mut builder = Builder::new_synced_database(&path, url, token.to_owned()).connector(connector());
        if let Some(batch) = batch {
            builder = builder.set_push_batch_size(batch);
        }
        let database = builder.build().await?;
        let connection = database.connect()?;
        Ok(Self { wire, path, database, connection })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Close it, and give back its way to the server.
    pub fn close(self) -> Wire {
        self.wire
    }

    /// Create the table.
    pub async fn create(&self) -> Result<()> {
        self.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT NOT NULL, what TEXT NOT NULL)").await
    }

    /// Insert `count` short rows, each in a transaction of its own.
    pub async fn insert(&self, who: &str, count: u32) -> Result<()> {
        for n in 1..=count {
            self.execute(&format!("INSERT INTO t(who, what) VALUES ('{who}', 'row {n} of {who}')")).await?;
        }
        Ok(())
    }

    /// Insert `count` rows of a page each in one transaction.
    pub async fn insert_at_once(&self, who: &str, count: u32) -> Result<()> {
        self.execute(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO t(who, what) SELECT '{who}', printf('%-3900s', 'row ' || i || ' of {who}') FROM n"
        ))
        .await
    }

    /// Run one statement.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.connection.execute(sql, ()).await.with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// All rows.
    pub async fn rows(&self) -> Result<Vec<Row>> {
        rows(&self.connection).await
    }

    /// All values of the first column.
    pub async fn texts(&self, sql: &str) -> Result<Vec<String>> {
        texts(&self.connection, sql).await
    }

    /// Fail unless SQLite finds the database sound.
    pub async fn check_integrity(&self) -> Result<()> {
        let verdict = self.texts("PRAGMA integrity_check").await?;
        ensure!(verdict == ["ok"], "{verdict:?}");
        Ok(())
    }

    /// Frames in the local WAL.
    pub fn frames(&self) -> Result<u64> {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        let bytes = fs::metadata(wal)?.len();
        Ok(bytes.saturating_sub(WAL_HEADER_BYTES) / FRAME_BYTES)
    }

    /// Sync once.
    pub async fn sync(&self) -> Result<Outcome> {
        let seen = self.wire.count();
        match self.try_sync().await? {
            Ok(0) => Ok(Outcome::Offline),
            Ok(frames) => {
                let pushed = self.wire.requests_since(seen).iter().any(|request| request.starts_with("POST "));
                if pushed { Ok(Outcome::Pushed(frames)) } else { Ok(Outcome::Pulled) }
            }
            Err(error) if error.to_string().contains("server returned a conflict") => Ok(Outcome::Conflict),
            Err(error) => bail!("sync failed: {error}"),
        }
    }

    /// Sync once, and fail unless it ends as `expected`.
    pub async fn must(&self, expected: Outcome) -> Result<()> {
        let outcome = self.sync().await?;
        ensure!(outcome == expected, "a sync was to end as {expected:?} and ended as {outcome:?}");
        Ok(())
    }

    /// Sync once, and return the number of frames or the client's own error.
    pub async fn try_sync(&self) -> Result<libsql::Result<u64>> {
        let synced = tokio::time::timeout(SYNC_TIMEOUT, self.database.sync()).await.context("a sync does not end")?;
        Ok(synced.map(|synced| synced.frames_synced() as u64))
    }
}

/// All rows of the table.
pub async fn rows(connection: &Connection) -> Result<Vec<Row>> {
    let mut found = connection.query("SELECT id, who, what FROM t ORDER BY id", ()).await?;
    let mut rows = Vec::new();
    while let Some(row) = found.next().await? {
        rows.push((row.get(0)?, row.get(1)?, row.get(2)?));
    }
    Ok(rows)
}

/// All values of the first column.
pub async fn texts(connection: &Connection, sql: &str) -> Result<Vec<String>> {
    let mut found = connection.query(sql, ()).await?;
    let mut texts = Vec::new();
    while let Some(row) = found.next().await? {
        texts.push(row.get(0)?);
    }
    Ok(texts)
}
