//! SQL over HTTP is one more writer of the log: replicas pull what it wrote, and it reads what they pushed.

use anyhow::{Result, ensure};
use libsql::Builder;
use real_client::{Outcome, Replica, Scene, TOKEN, connector, rows};

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT NOT NULL, what TEXT NOT NULL)";

async fn insert(scene: &Scene, count: u32) -> Result<()> {
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO t(who, what) SELECT 'http', printf('%-3900s', 'row ' || i) FROM n"
    );
    scene.sql(&insert).await?;
    Ok(())
}

async fn agree(scene: &Scene, replica: &Replica, count: usize) -> Result<()> {
    let found = replica.rows().await?;
    ensure!(found.len() == count, "{} rows instead of {count}", found.len());
    ensure!(found == scene.rows().await?, "the replica and SQL over HTTP read different rows");
    replica.check_integrity().await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_pull_what_was_written_by_sql_over_http() -> Result<()> {
    let scene = Scene::new().await?;
    let early = scene.replica("early").await?;
    early.must(Outcome::Pulled).await?;
    scene.sql(CREATE).await?;
    insert(&scene, 300).await?;
    scene.sql("DELETE FROM t WHERE id % 3 = 0").await?;
    early.must(Outcome::Pulled).await?;
    agree(&scene, &early, 200).await?;

    insert(&scene, 7).await?;
    early.must(Outcome::Pulled).await?;
    agree(&scene, &early, 207).await?;
    scene.a_fresh_replica_has(&early.rows().await?).await?;

    let wire = scene.wire()?;
    let builder = Builder::new_remote_replica(scene.database("remote")?, scene.url(&wire), TOKEN.to_owned());
    let remote = builder.connector(connector()).build().await?;
    remote.sync().await?;
    ensure!(rows(&remote.connect()?).await? == early.rows().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_and_sql_over_http_take_turns() -> Result<()> {
    let mut scene = Scene::new().await?;
    let replica = scene.replica("replica").await?;
    replica.create().await?;
    let mut expected = 0;
    for turn in 0..4 {
        replica.insert("replica", 2).await?;
        replica.insert_at_once("replica", 150 * turn + 1).await?;
        let Outcome::Pushed(_) = replica.sync().await? else { panic!("nothing was pushed in turn {turn}") };
        expected += 3 + 150 * turn as usize;
        agree(&scene, &replica, expected).await?;
        insert(&scene, 5).await?;
        expected += 5;
        if turn == 2 {
            scene.stop()?;
            scene.boot()?;
        }
        replica.must(Outcome::Pulled).await?;
        agree(&scene, &replica, expected).await?;
    }
    scene.a_fresh_replica_has(&replica.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_wrote_beside_sql_over_http_gets_a_conflict_and_mixes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let replica = scene.replica("replica").await?;
    replica.create().await?;
    replica.must(Outcome::Pushed(2)).await?;
    replica.insert("replica", 1).await?;
    insert(&scene, 1).await?;
    replica.must(Outcome::Conflict).await?;
    let held = scene.rows().await?;
    ensure!(held.len() == 1 && held[0].1 == "http");
    scene.a_fresh_replica_has(&held).await
}
