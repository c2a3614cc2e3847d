//! What every client shows.

use anyhow::{Result, bail, ensure};

use crate::{Checks, Driver, Failure, Value};

const INTEGERS: [i64; 6] = [i64::MIN, -1, 0, 1, (1 << 53) + 1, i64::MAX];
const FLOATS: [f64; 6] = [0.1, -1.5, 1e300, 5e-324, f64::MAX, f64::EPSILON];
const ROWS: i64 = 10_000;

fn failed<T>(outcome: Result<T, Failure>) -> Result<Failure> {
    match outcome {
        Ok(_) => bail!("this must not work"),
        Err(failure) => Ok(failure),
    }
}

/// All checks with one client.
pub(crate) async fn run<D: Driver>(checks: &mut Checks) {
    checks.check("values of every kind", async |url| values::<D>(&url).await).await;
    checks.check("text with all of Unicode", async |url| unicode::<D>(&url).await).await;
    checks.check("errors of constraints, and the connection stays usable", async |url| errors::<D>(&url).await).await;
    checks.check("a batch is whole or not there", async |url| batch::<D>(&url).await).await;
    checks.check("transactions of two connections lose no update", async |url| transactions::<D>(&url).await).await;
    checks.check("AUTOINCREMENT gives no key twice, and cascades", async |url| keys::<D>(&url).await).await;
    checks.check("10,000 rows in one result", async |url| many::<D>(&url).await).await;
    checks.check("a schema made twice, and changed by another", async |url| schema::<D>(&url).await).await;
}

async fn values<D: Driver>(url: &str) -> Result<()> {
    let (mut db, mut other) = (D::open(url).await?, D::open(url).await?);
    db.run("CREATE TABLE v(id INTEGER PRIMARY KEY, i INTEGER, r REAL, b BLOB, n, t TEXT)", vec![]).await?;
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut sent = Vec::new();
    for (integer, real) in INTEGERS.into_iter().zip(FLOATS) {
        let blob = Value::Blob(if integer < 0 { Vec::new() } else { every_byte.clone() });
        let row = vec![Value::Integer(integer), Value::Real(real), blob, Value::Null, Value::Text(String::new())];
        ensure!(db.run("INSERT INTO v(i, r, b, n, t) VALUES (?, ?, ?, ?, ?)", row.clone()).await? == 1, "changes");
        sent.push(row);
    }
    let found = other.rows("SELECT i, r, b, n, t FROM v ORDER BY id").await?;
    ensure!(found == sent, "{found:?}");
    Ok(())
}

async fn unicode<D: Driver>(url: &str) -> Result<()> {
    let mut db = D::open(url).await?;
    let text: String = ('\u{1}'..=char::MAX).collect();
    db.run("CREATE TABLE t(v TEXT)", vec![]).await?;
    db.run("INSERT INTO t VALUES (?)", vec![Value::Text(text.clone())]).await?;
    let length = Value::Integer(i64::try_from(text.chars().count())?);
    ensure!(db.rows("SELECT v, length(v) FROM t").await? == [[Value::Text(text), length]], "another text");
    Ok(())
}

async fn errors<D: Driver>(url: &str) -> Result<()> {
    let mut db = D::open(url).await?;
    db.run("CREATE TABLE p(id INTEGER PRIMARY KEY, c INT NOT NULL CHECK (c > 0))", vec![]).await?;
    db.run("CREATE TABLE k(p INT REFERENCES p(id))", vec![]).await?;
    db.run("INSERT INTO p VALUES (1, 1)", vec![]).await?;
    for (sql, says) in [
        ("INSERT INTO p VALUES (1, 1)", "UNIQUE"),
        ("INSERT INTO p VALUES (2, NULL)", "NOT NULL"),
        ("INSERT INTO p VALUES (2, 0)", "CHECK"),
        ("INSERT INTO k VALUES (7)", "FOREIGN KEY"),
    ] {
        let failure = failed(db.run(sql, vec![]).await)?;
        ensure!(failure.is_constraint && failure.message.contains(says), "{sql}: {failure:?}");
    }
    for sql in ["SELECT * FROM nowhere", "SELCT 1"] {
        let failure = failed(db.rows(sql).await)?;
        ensure!(!failure.is_constraint, "{sql}: {failure:?}");
    }
    ensure!(db.rows("SELECT count(*) FROM p").await? == [[Value::Integer(1)]], "rows");
    Ok(())
}

async fn batch<D: Driver>(url: &str) -> Result<()> {
    let mut db = D::open(url).await?;
    db.whole(&["CREATE TABLE t(id INTEGER PRIMARY KEY)", "INSERT INTO t VALUES (1)"]).await?;
    failed(db.whole(&["INSERT INTO t VALUES (2)", "INSERT INTO t VALUES (1)"]).await)?;
    let found = D::open(url).await?.rows("SELECT id FROM t").await?;
    ensure!(found == [[Value::Integer(1)]], "{found:?}");
    Ok(())
}

async fn transactions<D: Driver>(url: &str) -> Result<()> {
    let (mut db, mut other) = (D::open(url).await?, D::open(url).await?);
    db.run("CREATE TABLE c(n INT)", vec![]).await?;
    db.run("INSERT INTO c VALUES (0)", vec![]).await?;
    let task = tokio::spawn(async move {
        for at in 0..20 {
            other.add(at % 2 == 0).await?;
        }
        Ok::<(), anyhow::Error>(())
    });
    for _ in 0..10 {
        db.add(true).await?;
    }
    task.await??;
    let found = db.rows("SELECT n FROM c").await?;
    ensure!(found == [[Value::Integer(20)]], "{found:?}");
    Ok(())
}

async fn keys<D: Driver>(url: &str) -> Result<()> {
    let mut db = D::open(url).await?;
    for sql in [
        "CREATE TABLE p(id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)",
        "CREATE TABLE k(p INT REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE)",
        "INSERT INTO p(v) VALUES ('a'), ('b')",
        "INSERT INTO k VALUES (1), (2)",
        "DELETE FROM p WHERE id = 2",
        "INSERT INTO p(v) VALUES ('c')",
        "UPDATE p SET id = 9 WHERE id = 1",
    ] {
        db.run(sql, vec![]).await?;
    }
    let found = db.rows("SELECT id FROM p ORDER BY id").await?;
    ensure!(found == [[Value::Integer(3)], [Value::Integer(9)]], "{found:?}");
    let found = db.rows("SELECT p FROM k").await?;
    ensure!(found == [[Value::Integer(9)]], "{found:?}");
    Ok(())
}

async fn many<D: Driver>(url: &str) -> Result<()> {
    let mut db = D::open(url).await?;
    db.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", vec![]).await?;
    for from in (0..ROWS).step_by(500) {
        let rows: Vec<String> = (from..from + 500).map(|id| format!("({id}, 'row {id}')")).collect();
        db.run(&format!("INSERT INTO t VALUES {}", rows.join(",")), vec![]).await?;
    }
    let found = db.rows("SELECT id, v FROM t ORDER BY id").await?;
    let expected: Vec<_> = (0..ROWS).map(|id| vec![Value::Integer(id), Value::Text(format!("row {id}"))]).collect();
    ensure!(found == expected, "{} rows", found.len());
    Ok(())
}

async fn schema<D: Driver>(url: &str) -> Result<()> {
    let (mut db, mut other) = (D::open(url).await?, D::open(url).await?);
    for _ in 0..2 {
        db.run("CREATE TABLE IF NOT EXISTS t(v)", vec![]).await?;
        db.run("CREATE INDEX IF NOT EXISTS t_v ON t(v)", vec![]).await?;
    }
    failed(db.run("CREATE TABLE t(x)", vec![]).await)?;
    db.run("INSERT INTO t VALUES (1)", vec![]).await?;
    ensure!(db.rows("SELECT * FROM t").await? == [[Value::Integer(1)]], "one column");
    other.run("ALTER TABLE t ADD COLUMN w DEFAULT 2", vec![]).await?;
    ensure!(db.rows("SELECT * FROM t").await? == [[Value::Integer(1), Value::Integer(2)]], "two columns");
    Ok(())
}
