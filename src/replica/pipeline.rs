//! SQL on the remote (`/v2/pipeline`): one transaction over several requests. Source: `specs/turso-sync.md`, section 3.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::catalog::{BOOKKEEPING, Reached};
use super::change::Statement;
use super::error::ReplicaError;
use super::judge::Failure;
use crate::limits::REPLICA_ANSWER_BYTES_MAX;
use crate::sync::turso::Value;
use crate::sync::{Remote, SyncError};

/// Makes the bookkeeping table where there is none.
pub(super) const MAKE_BOOKKEEPING: &str = "CREATE TABLE IF NOT EXISTS turso_sync_last_change_id (client_id TEXT PRIMARY KEY, pull_gen INTEGER, change_id INTEGER)";

/// Says in it where a client is: its name and two numbers.
pub(super) const SET_BOOKKEEPING: &str = "INSERT INTO turso_sync_last_change_id(client_id, pull_gen, change_id) VALUES (?, ?, ?) \
     ON CONFLICT(client_id) DO UPDATE SET pull_gen = excluded.pull_gen, change_id = excluded.change_id";

/// A statement in a batch.
#[derive(Serialize)]
struct Step<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<serde_json::Value>,
    stmt: Stmt<'a>,
}

#[derive(Serialize)]
struct Stmt<'a> {
    sql: &'a str,
    args: &'a [Value],
    want_rows: bool,
}

#[derive(Deserialize)]
struct Answer {
    baton: Option<String>,
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    response: Option<Response>,
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Response {
    result: Option<BatchResult>,
}

#[derive(Deserialize)]
struct BatchResult {
    step_results: Vec<Option<Ran>>,
    step_errors: Vec<Option<Told>>,
}

#[derive(Deserialize)]
struct Ran {
    affected_row_count: u64,
    #[serde(default)]
    rows: Vec<Vec<Value>>,
}

#[derive(Deserialize)]
struct Told {
    message: String,
    code: Option<String>,
}

impl From<Told> for Failure {
    fn from(told: Told) -> Failure {
        Failure { code: told.code.unwrap_or_default(), message: told.message }
    }
}

impl Failure {
    fn too_large(&self) -> Option<ReplicaError> {
        self.is_of_the_size().then(|| ReplicaError::TooLarge { what: None, error: self.message.clone() })
    }
}

/// What became of a step: the rows it changed and those it found; nothing when it was skipped.
type Stepped = Option<Result<(u64, Vec<Vec<Value>>), Failure>>;

/// A transaction that is open on the remote. Dropped, it is rolled back there after a while.
pub(super) struct Transaction<'a> {
    remote: &'a Remote,
    baton: Option<String>,
    /// Where the client was when it began; nothing when the remote did not know it.
    pub(super) reached: Option<Reached>,
}

/// Runs a batch; with `ends` nothing of it is to be open afterwards.
async fn run(
    remote: &Remote,
    baton: &mut Option<String>,
    steps: &[Step<'_>],
    ends: bool,
) -> Result<Vec<Stepped>, ReplicaError> {
    let mut requests = vec![json!({"type": "batch", "batch": {"steps": steps}})];
    requests.extend(ends.then(|| json!({"type": "close"})));
    let call = serde_json::to_vec(&json!({"baton": baton, "requests": requests}));
    let call = call.map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
    let protocol = |reason: String| SyncError::Protocol { call: format!("SQL on {}", remote.url()), reason };
    let answer = remote.pipeline(Bytes::from(call), REPLICA_ANSWER_BYTES_MAX).await.map_err(|error| match error {
        SyncError::Status { status: 413, .. } => ReplicaError::TooLarge { what: None, error: error.to_string() },
        error => error.into(),
    })?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| protocol(error.to_string()))?;
    *baton = answer.baton;
    let mut results = answer.results.into_iter();
    let first = results.next().ok_or_else(|| protocol("no result".into()))?;
    if let Some(error) = first.error {
        let failure = Failure::from(error);
        return Err(failure.too_large().unwrap_or(ReplicaError::Ended(failure.message)));
    }
    let result = first.response.and_then(|response| response.result).ok_or_else(|| protocol("no result".into()))?;
    if result.step_results.len() != steps.len() || result.step_errors.len() != steps.len() {
        return Err(protocol(format!("another number of steps than {}", steps.len())).into());
    }
    let both = result.step_results.into_iter().zip(result.step_errors);
    let stepped = both.map(|(ran, error)| match (ran, error.map(Failure::from)) {
        (_, Some(failure)) => failure.too_large().map_or(Ok(Some(Err(failure))), Err),
        (Some(ran), None) => Ok(Some(Ok((ran.affected_row_count, ran.rows)))),
        (None, None) => Ok(None),
    });
    stepped.collect()
}

fn step<'a>(sql: &'a str, args: &'a [Value]) -> Step<'a> {
    Step { condition: None, stmt: Stmt { sql, args, want_rows: true } }
}

/// A step that is skipped when the transaction is not open any more.
fn inside<'a>(sql: &'a str, args: &'a [Value]) -> Step<'a> {
    let condition = json!({"type": "not", "cond": {"type": "is_autocommit"}});
    Step { condition: Some(condition), stmt: Stmt { sql, args, want_rows: false } }
}

/// What must have been done.
fn done(stepped: Stepped, sql: &str) -> Result<Vec<Vec<Value>>, ReplicaError> {
    match stepped {
        Some(Ok((_, rows))) => Ok(rows),
        Some(Err(failure)) => Err(ReplicaError::Statement { sql: sql.to_owned(), error: failure.message }),
        None => Err(ReplicaError::Ended(format!("{sql:?} was not run"))),
    }
}

fn reached_in(rows: Vec<Vec<Value>>) -> Option<Reached> {
    match rows.into_iter().next()?.as_slice() {
        [Value::Integer(pull_gen), Value::Integer(change_id)] => {
            Some(Reached { pull_gen: *pull_gen, change_id: *change_id })
        }
        _ => None,
    }
}

fn ask() -> String {
    format!("SELECT pull_gen, change_id FROM {BOOKKEEPING} WHERE client_id = ?")
}

/// Where a client is, once every transaction that it may still have under way there has come to its end: one that writes
/// has to wait for those before.
pub(super) async fn settled(remote: &Remote, client: &str) -> Result<Option<Reached>, ReplicaError> {
    let (args, ask) = ([Value::Text(client.to_owned())], ask());
    let steps = [step("BEGIN IMMEDIATE", &[]), step(&ask, &args), step("ROLLBACK", &[])];
    let mut stepped = run(remote, &mut None, &steps, true).await?.into_iter();
    done(stepped.next().flatten(), "BEGIN IMMEDIATE")?;
    match stepped.next().flatten() {
        // Nobody has pushed anything yet.
        Some(Err(failure)) if failure.message.to_lowercase().contains("no such table") => Ok(None),
        answer => Ok(reached_in(done(answer, &ask)?)),
    }
}

impl<'a> Transaction<'a> {
    /// Begins one; nobody else writes until it ends.
    pub(super) async fn begin(remote: &'a Remote, client: &str) -> Result<Transaction<'a>, ReplicaError> {
        let (args, ask) = ([Value::Text(client.to_owned())], ask());
        // What the draft did not check is not refused here. A remote that knows no such thing has nothing to switch off.
        let unchecked = step("PRAGMA foreign_keys = OFF", &[]);
        let steps = [unchecked, step("BEGIN IMMEDIATE", &[]), inside(MAKE_BOOKKEEPING, &[]), step(&ask, &args)];
        let mut baton = None;
        let mut stepped = run(remote, &mut baton, &steps, false).await?.into_iter().skip(1);
        done(stepped.next().flatten(), "BEGIN IMMEDIATE")?;
        done(stepped.next().flatten(), MAKE_BOOKKEEPING)?;
        let reached = reached_in(done(stepped.next().flatten(), &ask)?);
        if baton.is_none() {
            return Err(ReplicaError::Unsupported("the remote keeps no transaction open between two requests"));
        }
        Ok(Transaction { remote, baton, reached })
    }

    /// Runs statements, each of which may fail by itself.
    pub(super) async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Result<u64, Failure>>, ReplicaError> {
        let steps: Vec<_> = statements.iter().map(|statement| inside(&statement.sql, &statement.args)).collect();
        let stepped = run(self.remote, &mut self.baton, &steps, false).await?;
        let skipped = || ReplicaError::Ended("a statement ended the transaction".into());
        stepped.into_iter().map(|step| Ok(step.ok_or_else(skipped)?.map(|(changed, _)| changed))).collect()
    }

    /// Says where the client is now, and commits.
    pub(super) async fn commit(mut self, client: &str, reached: Reached) -> Result<(), ReplicaError> {
        let numbers = [reached.pull_gen, reached.change_id].map(Value::Integer);
        let args: Vec<Value> = std::iter::once(Value::Text(client.to_owned())).chain(numbers).collect();
        let steps = [inside(SET_BOOKKEEPING, &args), inside("COMMIT", &[])];
        let mut stepped = run(self.remote, &mut self.baton, &steps, true).await?.into_iter();
        done(stepped.next().flatten(), SET_BOOKKEEPING)?;
        done(stepped.next().flatten(), "COMMIT").map(drop)
    }

    /// Gives it up.
    pub(super) async fn roll_back(mut self) {
        let rolled_back = run(self.remote, &mut self.baton, &[inside("ROLLBACK", &[])], true).await;
        if let Err(error) = rolled_back {
            log::debug!("a transaction was not rolled back, which the remote does by itself: {error}");
        }
    }
}
