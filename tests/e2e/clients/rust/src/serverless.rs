//! The crate `turso_serverless`.

use anyhow::Result;
use turso_serverless::{Builder, Error, TransactionBehavior, Value as Theirs};

use crate::{Driver, Failure, Value};

pub(crate) struct Connection(turso_serverless::Connection);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        let cause = if let Error::BatchStatementFailed { error, .. } = error { *error } else { error };
        Failure { is_constraint: matches!(cause, Error::Constraint(_)), message }
    }
}

fn theirs(value: Value) -> Theirs {
    match value {
        Value::Null => Theirs::Null,
        Value::Integer(integer) => Theirs::Integer(integer),
        Value::Real(real) => Theirs::Real(real),
        Value::Text(text) => Theirs::Text(text),
        Value::Blob(blob) => Theirs::Blob(blob),
    }
}

fn ours(value: Theirs) -> Value {
    match value {
        Theirs::Null => Value::Null,
        Theirs::Integer(integer) => Value::Integer(integer),
        Theirs::Real(real) => Value::Real(real),
        Theirs::Text(text) => Value::Text(text),
        Theirs::Blob(blob) => Value::Blob(blob),
    }
}

impl Driver for Connection {
    async fn open(url: &str) -> Result<Connection> {
        Ok(Connection(Builder::new_remote(url).build().await?.connect()?))
    }

    async fn run(&mut self, sql: &str, args: Vec<Value>) -> Result<u64, Failure> {
        Ok(self.0.execute(sql, args.into_iter().map(theirs).collect::<Vec<_>>()).await?)
    }

    async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Value>>, Failure> {
        let (mut rows, mut found) = (self.0.query(sql, ()).await?, Vec::new());
        while let Some(row) = rows.next().await? {
            let values = (0..row.column_count()).map(|at| row.get_value(at).map(ours));
            found.push(values.collect::<Result<_, _>>()?);
        }
        Ok(found)
    }

    async fn whole(&mut self, statements: &[&str]) -> Result<(), Failure> {
        self.0.transactional_batch(statements.iter().copied(), TransactionBehavior::Immediate).await?;
        Ok(())
    }

    async fn add(&mut self, commits: bool) -> Result<(), Failure> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate).await?;
        let row = transaction.query("SELECT n FROM c", ()).await?.next().await?.ok_or(Error::QueryReturnedNoRows)?;
        transaction.execute("UPDATE c SET n = ?", (row.get::<i64>(0)? + 1,)).await?;
        if commits {
            transaction.commit().await?
        } else {
            transaction.rollback().await?
        }
        Ok(())
    }
}
