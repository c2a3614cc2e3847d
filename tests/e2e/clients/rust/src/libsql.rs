//! The crate `libsql`, in two versions, as the client of a remote database.

macro_rules! driver {
    ($module:ident, $theirs:ident) => {
        pub(crate) mod $module {
            use anyhow::Result;
            use $theirs::{Builder, Error, TransactionBehavior, Value as Theirs};

            use crate::{Driver, Failure, Value};

            pub(crate) struct Connection($theirs::Connection);

            impl From<Error> for Failure {
                fn from(error: Error) -> Failure {
                    let message = error.to_string();
                    // The server's code is in the text only.
                    Failure { is_constraint: message.contains("constraint"), message }
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
                    let connector = crate::libsql::connector();
                    let database = Builder::new_remote(url.into(), "none".into()).connector(connector).build().await?;
                    Ok(Connection(database.connect()?))
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
                    self.0.execute_transactional_batch(&statements.join(";")).await?;
                    Ok(())
                }

                async fn add(&mut self, commits: bool) -> Result<(), Failure> {
                    let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate).await?;
                    let mut rows = transaction.query("SELECT n FROM c", ()).await?;
                    let row = rows.next().await?.ok_or(Error::QueryReturnedNoRows)?;
                    let found = row.get::<i64>(0)?;
                    drop(rows);
                    transaction.execute("UPDATE c SET n = ?", [found + 1]).await?;
                    if commits {
                        transaction.commit().await?
                    } else {
                        transaction.rollback().await?
                    }
                    Ok(())
                }
            }
        }
    };
}

driver!(v0_9, libsql_0_9);
driver!(v0_10, libsql_0_10);

/// Without TLS: the service speaks plain HTTP.
pub(crate) fn connector() -> hyper::client::HttpConnector {
    hyper::client::HttpConnector::new()
}
