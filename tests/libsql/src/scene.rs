//! One service, one log, and the replicas around it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Program, Replica, Row, Server, Status, Upstream, Wire, cut_to_transactions};

/// The token of the service, unless it has none.
pub const TOKEN: &str = "sesame";
const LOG: &str = "app";

/// A running service with one empty log, and a directory for replicas.
pub struct Scene {
    home: TempDir,
    program: Program,
    token: &'static str,
    server: Option<Server>,
    upstream: Upstream,
}

impl Scene {
    /// A service that asks for [`TOKEN`].
    pub async fn new() -> Result<Self> {
        Self::start(Program::find()?, TOKEN).await
    }

    /// A service that asks for no token; the replicas send an empty one.
    pub async fn without_token() -> Result<Self> {
        Self::start(Program::find()?, "").await
    }

    /// A service that does not check the senders' checksums.
    pub async fn without_chain_check() -> Result<Self> {
        Self::start(Program::without_chain_check()?, TOKEN).await
    }

    async fn start(program: Program, token: &'static str) -> Result<Self> {
        let mut scene =
            Self { home: tempfile::tempdir()?, program, token, server: None, upstream: Upstream::default() };
        scene.boot()?;
        scene.server()?.create(LOG).await?;
        Ok(scene)
    }

    /// A replica, opened or made, with a wire of its own.
    pub async fn replica(&self, name: &str) -> Result<Replica> {
        self.replica_on(name, Wire::open(&self.upstream)?).await
    }

    /// A replica on a wire of [`Scene::refusing_wire`], or of another replica.
    pub async fn replica_on(&self, name: &str, wire: Wire) -> Result<Replica> {
        let url = self.url(&wire);
        Ok(Replica::open(self.database(name)?, wire, url, self.token, None).await?)
    }

    /// A replica that pushes `batch` frames at once.
    pub async fn replica_with_batches_of(&self, batch: u32, name: &str) -> Result<Replica> {
        let wire = Wire::open(&self.upstream)?;
        let url = self.url(&wire);
        Ok(Replica::open(self.database(name)?, wire, url, self.token, Some(batch)).await?)
    }

    /// A replica whose URL ends in a slash.
    pub async fn replica_with_slash(&self, name: &str) -> Result<Replica> {
        let wire = Wire::open(&self.upstream)?;
        let url = self.url(&wire) + "/";
        Ok(Replica::open(self.database(name)?, wire, url, self.token, None).await?)
    }

    /// What the client says when a replica is opened with another token, or by a client that cannot open it.
    pub async fn try_replica(&self, name: &str, wire: Wire, token: &str) -> Result<libsql::Result<Replica>> {
        let url = self.url(&wire);
        Ok(Replica::open(self.database(name)?, wire, url, token, None).await)
    }

    /// Make or refresh the database of a replica that is closed with `logmirror mirror`.
    pub fn mirror_to(&self, name: &str) -> Result<()> {
        let database = self.database(name)?;
        let sink = database.to_str().context("a path in UTF-8")?;
        self.program.mirror(&format!("libsql+http://{}/logs/{LOG}", self.server()?.address()), sink, self.token)
    }

    /// A wire to this service.
    pub fn wire(&self) -> Result<Wire> {
        Wire::open(&self.upstream)
    }

    /// A wire to this service that refuses connections until it is told to listen.
    pub fn refusing_wire(&self) -> Result<Wire> {
        Wire::refusing(&self.upstream)
    }

    /// The sync URL of the log over a wire.
    pub fn url(&self, wire: &Wire) -> String {
        format!("http://{}/logs/{LOG}", wire.address())
    }

    /// Where the database of a replica is.
    pub fn database(&self, name: &str) -> Result<PathBuf> {
        let directory = self.home.path().join("replicas").join(name);
        fs::create_dir_all(&directory)?;
        Ok(directory.join("app.db"))
    }

    /// Delete a closed replica with all its files.
    pub fn forget(&self, name: &str) -> Result<()> {
        Ok(fs::remove_dir_all(self.home.path().join("replicas").join(name))?)
    }

    /// Where the log stands.
    pub async fn status(&self) -> Result<Status> {
        self.server()?.status(LOG).await
    }

    /// Frames of the current generation.
    pub async fn frames(&self) -> Result<u64> {
        Ok(self.status().await?.frames)
    }

    /// Fail unless a replica made now has exactly these rows, and SQLite finds it sound.
    pub async fn a_fresh_replica_has(&self, rows: &[Row]) -> Result<()> {
        let fresh = self.fresh_replica().await?;
        fresh.check_integrity().await?;
        let found = fresh.rows().await?;
        ensure!(found == rows, "{} rows were expected, and {} others came", rows.len(), found.len());
        Ok(())
    }

    /// A replica made now that has pulled what there is.
    pub async fn fresh_replica(&self) -> Result<Replica> {
        let fresh = tempfile::Builder::new().prefix("fresh").tempdir_in(self.home.path())?.keep();
        let wire = self.wire()?;
        let url = self.url(&wire);
        let fresh = Replica::open(fresh.join("app.db"), wire, url, self.token, None).await?;
        fresh.must(crate::Outcome::Pulled).await?;
        Ok(fresh)
    }

    /// Start the service after [`Scene::stop`] or [`Scene::kill`].
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the service runs");
        let token = Some(self.token).filter(|token| !token.is_empty());
        let server = self.program.serve(&self.home.path().join("data"), token)?;
        self.upstream.set(Some(server.address()));
        self.server = Some(server);
        Ok(())
    }

    /// Stop the service in order.
    pub fn stop(&mut self) -> Result<()> {
        self.upstream.set(None);
        self.server.take().context("the service does not run")?.stop()
    }

    /// Kill the service as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.upstream.set(None);
        self.server.take().context("the service does not run")?.kill();
        Ok(())
    }

    /// The operator deletes the log and makes it anew.
    pub async fn wipe(&mut self) -> Result<()> {
        self.stop()?;
        fs::remove_dir_all(self.log_directory())?;
        self.boot()?;
        self.server()?.create(LOG).await
    }

    /// The operator cuts the log back to its first `keep` transactions, of which the frames are returned.
    pub fn cut_to_transactions(&mut self, keep: usize) -> Result<u64> {
        self.stop()?;
        let frames = cut_to_transactions(&self.log_directory().join("0000000001"), keep)?;
        self.program.accept_loss(&self.log_directory())?;
        self.boot()?;
        Ok(frames)
    }

    /// The operator ends the generation.
    pub async fn roll_over(&self) -> Result<()> {
        self.server()?.roll_over(LOG).await
    }

    /// Run a statement by plain HTTP; rows as they are on the wire.
    pub async fn sql(&self, sql: &str) -> Result<Vec<Vec<Value>>> {
        self.server()?.sql(LOG, sql).await
    }

    /// All rows, as SQL over HTTP has them.
    pub async fn rows(&self) -> Result<Vec<Row>> {
        let text = |value: &Value| value["value"].as_str().map(str::to_owned).with_context(|| format!("{value}"));
        let rows = self.sql("SELECT id, who, what FROM t ORDER BY id").await?;
        rows.iter().map(|row| Ok((text(&row[0])?.parse()?, text(&row[1])?, text(&row[2])?))).collect()
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("the service does not run")
    }

    fn log_directory(&self) -> PathBuf {
        self.home.path().join("data/logs").join(LOG)
    }
}
