//! What an operator or a crash does to the server, and what the replicas make of it.

use anyhow::{Result, ensure};
use real_client::{BATCH_BYTES, Cut, Outcome, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_log_gets_every_row_again() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("small", 10).await?;
    writer.insert_at_once("large", 300).await?;
    let before = writer.frames()?;
    writer.must(Outcome::Pushed(before)).await?;

    scene.wipe().await?;
    // With nothing new the client only pulls, and finds itself up to date.
    writer.must(Outcome::Pulled).await?;
    ensure!(scene.frames().await? == 0);
    writer.insert("small", 1).await?;
    writer.wire.requests();
    let frames = writer.frames()?;
    writer.must(Outcome::Pushed(frames)).await?;
    let requests = writer.wire.requests();
    ensure!(requests[..2] == [format!("POST /sync/1/{}/{}", before + 1, frames + 1), "POST /sync/1/1/129".to_owned()]);
    ensure!(scene.frames().await? == frames);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_cut_to_a_prefix_gets_the_rest_again() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;

    let kept = scene.cut_to_transactions(4)?;
    ensure!(kept == 5 && scene.frames().await? == 5);
    writer.insert("writer", 1).await?;
    writer.wire.requests();
    writer.must(Outcome::Pushed(8)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/13/14", "POST /sync/1/6/14"]);
    ensure!(scene.frames().await? == 13);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_has_every_row_it_acknowledged() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    for (small, large) in [(10, 0), (1, 300), (0, 1)] {
        writer.insert("small", small).await?;
        writer.insert_at_once("large", large).await?;
        let Outcome::Pushed(_) = writer.sync().await? else { panic!("nothing was pushed") };
        scene.kill()?;
        scene.boot()?;
        ensure!(scene.frames().await? == writer.frames()?);
        scene.a_fresh_replica_has(&writer.rows().await?).await?;
        // A restarted server recognises the sender's history.
        writer.must(Outcome::Pulled).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_between_the_batches_of_a_transaction_gets_it_whole() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.must(Outcome::Pushed(2)).await?;
    writer.insert_at_once("writer", 300).await?;
    writer.wire.cut(Cut::Requests(BATCH_BYTES * 3 / 2));
    writer.must(Outcome::Offline).await?;
    writer.wire.mend()?;
    scene.kill()?;
    scene.boot()?;
    ensure!(scene.frames().await? == 2);
    let Outcome::Pushed(_) = writer.sync().await? else { panic!("nothing was pushed") };
    ensure!(scene.frames().await? == writer.frames()?);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}
