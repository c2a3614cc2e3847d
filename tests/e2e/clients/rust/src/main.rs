//! The checks of each client, one after the other, each on a log of its own. Prints a line of JSON for each.

mod checks;
mod libsql;
mod serverless;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

const CHECK_TIME_MAX: Duration = Duration::from_secs(60);

/// A value, as every client has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// A statement failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The client says that it was a constraint, by its own kinds or the server's code.
    pub(crate) is_constraint: bool,
    pub(crate) message: String,
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> anyhow::Error {
        anyhow::anyhow!(failure.message)
    }
}

/// One connection of a client.
pub(crate) trait Driver: Sized + Send + 'static {
    fn open(url: &str) -> impl Future<Output = Result<Self>> + Send;
    fn run(&mut self, sql: &str, args: Vec<Value>) -> impl Future<Output = Result<u64, Failure>> + Send;
    fn rows(&mut self, sql: &str) -> impl Future<Output = Result<Vec<Vec<Value>>, Failure>> + Send;
    /// Statements in one transaction: all of them, or none.
    fn whole(&mut self, statements: &[&str]) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Adds to `c.n` in a transaction that reads it first; committed, or rolled back.
    fn add(&mut self, commits: bool) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What a check is called with.
pub(crate) struct Checks {
    service: String,
    http: reqwest::Client,
    client: &'static str,
    version: &'static str,
    logs: usize,
}

impl Checks {
    /// Makes a log; returns its URL.
    async fn log(&mut self) -> Result<String> {
        self.logs += 1;
        let name = self.client.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let url = format!("{}/logs/rust-{name}-{}-{}", self.service, self.version.replace('.', "-"), self.logs);
        let answer = self.http.put(&url).body(r#"{"format":"wal"}"#).send().await?;
        ensure!(answer.status() == 201, "PUT {url}: {}", answer.status());
        Ok(url)
    }

    /// Runs a check; what it ends with is printed.
    pub(crate) async fn check(&mut self, check: &str, body: impl AsyncFnOnce(String) -> Result<()>) {
        let outcome = match self.log().await {
            Ok(url) => tokio::time::timeout(CHECK_TIME_MAX, body(url)).await.unwrap_or_else(|late| Err(late.into())),
            Err(error) => Err(error),
        };
        let error = outcome.err().map(|error| format!("{error:#}").chars().take(600).collect::<String>());
        let line = json!({"client": self.client, "version": self.version, "check": check, "error": error});
        println!("{line}");
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let service = std::env::var("LOGMIRROR_URL")?;
    let of =
        |client, version| Checks { service: service.clone(), http: reqwest::Client::new(), client, version, logs: 0 };
    checks::run::<serverless::Connection>(&mut of("turso_serverless (Rust)", "0.1.3")).await;
    checks::run::<libsql::v0_9::Connection>(&mut of("libsql 0.9 (Rust), remote", "0.9.30")).await;
    checks::run::<libsql::v0_10::Connection>(&mut of("libsql 0.10 (Rust), remote", "0.10.0")).await;
    Ok(())
}
