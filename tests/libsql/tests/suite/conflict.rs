//! Two histories never become one.

use std::sync::Arc;

use anyhow::{Result, ensure};
use real_client::{BATCH_BYTES, Cut, Outcome, Scene};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_from_one_state_the_second_gets_a_conflict() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    let second = scene.replica("second").await?;
    first.create().await?;
    first.must(Outcome::Pushed(2)).await?;
    second.must(Outcome::Pulled).await?;

    first.insert("first", 3).await?;
    second.insert("second", 5).await?;
    first.must(Outcome::Pushed(3)).await?;
    second.must(Outcome::Conflict).await?;
    // It stays one, and the rows stay with the replica.
    second.must(Outcome::Conflict).await?;
    ensure!(second.rows().await?.len() == 5);
    ensure!(scene.frames().await? == 5);
    scene.a_fresh_replica_has(&first.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rows_on_two_replicas_from_one_state_are_one_history() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    let second = scene.replica("second").await?;
    first.create().await?;
    first.must(Outcome::Pushed(2)).await?;
    second.must(Outcome::Pulled).await?;

    first.insert("both", 3).await?;
    second.insert("both", 4).await?;
    first.must(Outcome::Pushed(3)).await?;
    second.must(Outcome::Pushed(4)).await?;
    ensure!(scene.frames().await? == 6);
    scene.a_fresh_replica_has(&second.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn four_racing_replicas_have_exactly_one_winner_and_nothing_mixes() -> Result<()> {
    // As many full batches and a part, in each order; none of them fits into one batch.
    for rows in [[150, 200, 300, 400], [400, 300, 200, 150], [260, 260, 260, 260]] {
        let scene = Scene::new().await?;
        let founder = scene.replica("founder").await?;
        founder.create().await?;
        founder.insert("founder", 10).await?;
        founder.must(Outcome::Pushed(12)).await?;

        let start = Arc::new(Barrier::new(rows.len()));
        let mut race = JoinSet::new();
        for (n, rows) in rows.into_iter().enumerate() {
            let who = format!("racer-{n}");
            let racer = scene.replica(&who).await?;
            racer.must(Outcome::Pulled).await?;
            racer.insert_at_once(&who, rows).await?;
            let start = start.clone();
            race.spawn(async move {
                start.wait().await;
                let outcome = racer.sync().await;
                (racer, outcome)
            });
        }
        let mut winners = Vec::new();
        for (racer, outcome) in race.join_all().await {
            match outcome? {
                Outcome::Pushed(_) => winners.push(racer),
                Outcome::Conflict => racer.must(Outcome::Conflict).await?,
                other => panic!("a racer ended as {other:?}"),
            }
        }
        let [winner] = &winners[..] else { panic!("{} winners", winners.len()) };
        ensure!(scene.frames().await? == winner.frames()?);
        scene.a_fresh_replica_has(&winner.rows().await?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_wiped_and_fed_by_another_is_a_conflict() -> Result<()> {
    let mut scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.insert("first", 10).await?;
    first.must(Outcome::Pushed(12)).await?;

    scene.wipe().await?;
    let second = scene.replica("second").await?;
    second.create().await?;
    second.insert("second", 3).await?;
    second.must(Outcome::Pushed(5)).await?;

    // The server asks for 6 and gets 6 to 14: no gap, no overlap, and yet another history.
    first.insert("first", 2).await?;
    first.wire.requests();
    first.must(Outcome::Conflict).await?;
    ensure!(first.wire.requests() == ["POST /sync/1/13/15", "POST /sync/1/6/15"]);
    first.must(Outcome::Conflict).await?;
    ensure!(scene.frames().await? == 5);
    scene.a_fresh_replica_has(&second.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_first_batches_were_forgotten_is_a_conflict_once_another_came() -> Result<()> {
    let mut scene = Scene::new().await?;
    let slow = scene.replica("slow").await?;
    let quick = scene.replica("quick").await?;
    quick.create().await?;
    quick.must(Outcome::Pushed(2)).await?;
    slow.must(Outcome::Pulled).await?;

    // The server has staged one batch, and forgets it.
    slow.insert_at_once("slow", 300).await?;
    slow.wire.cut(Cut::Requests(BATCH_BYTES * 3 / 2));
    slow.must(Outcome::Offline).await?;
    slow.wire.mend()?;
    scene.kill()?;
    scene.boot()?;
    quick.insert("quick", 1).await?;
    quick.must(Outcome::Pushed(1)).await?;

    // The client goes on behind the confirmed batch; the server asks for 4.
    slow.wire.requests();
    slow.must(Outcome::Conflict).await?;
    ensure!(slow.wire.requests() == ["POST /sync/1/131/259", "POST /sync/1/4/132"]);
    ensure!(scene.frames().await? == 3);
    scene.a_fresh_replica_has(&quick.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_first_batches_are_staged_is_a_conflict_once_another_came() -> Result<()> {
    let scene = Scene::new().await?;
    let slow = scene.replica("slow").await?;
    let quick = scene.replica("quick").await?;
    quick.create().await?;
    quick.must(Outcome::Pushed(2)).await?;
    slow.must(Outcome::Pulled).await?;

    slow.insert_at_once("slow", 300).await?;
    slow.wire.cut(Cut::Requests(BATCH_BYTES * 3 / 2));
    slow.must(Outcome::Offline).await?;
    slow.wire.mend()?;
    // What is staged is nobody's to pull.
    ensure!(scene.frames().await? == 2);
    quick.must(Outcome::Pulled).await?;
    quick.insert("quick", 1).await?;
    quick.must(Outcome::Pushed(1)).await?;

    slow.must(Outcome::Conflict).await?;
    slow.must(Outcome::Conflict).await?;
    ensure!(scene.frames().await? == 3);
    scene.a_fresh_replica_has(&quick.rows().await?).await
}
