//! The operator ends a generation. 0.9.1 cannot take part: it pushes its old frames into the new generation.

use anyhow::{Result, ensure};
use real_client::{Metadata, Outcome, Scene, Status};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_roll_over_an_old_replica_pulls_on_and_a_fresh_one_pulls() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    let idle = scene.replica("idle").await?;
    let behind = scene.replica("behind").await?;
    writer.create().await?;
    writer.insert("first", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    behind.must(Outcome::Pulled).await?;
    writer.insert_at_once("first", 200).await?;
    let Outcome::Pushed(_) = writer.sync().await? else { panic!("nothing was pushed") };
    let frames = writer.frames()?;
    let rows = writer.rows().await?;

    scene.roll_over().await?;
    ensure!(scene.status().await? == Status { frames: 0, generation: 2 });
    scene.a_fresh_replica_has(&rows).await?;
    let fresh = scene.fresh_replica().await?;
    ensure!(fresh.wire.requests() == ["GET /info", "GET /export/2", "GET /sync/2/1/129"]);

    writer.wire.requests();
    writer.must(Outcome::Pulled).await?;
    let requests = [format!("GET /sync/1/{}/{}", frames + 1, frames + 129), "GET /sync/2/1/129".to_owned()];
    ensure!(writer.wire.requests() == requests);
    ensure!(Metadata::read(writer.path())? == Metadata { frame: 0, generation: 2 });

    // Old frames are still there for those who had not all of them.
    behind.must(Outcome::Pulled).await?;
    ensure!(behind.rows().await? == rows);

    // The new generation is written by one that lived through the change, and by one that did not.
    writer.insert("second", 3).await?;
    writer.must(Outcome::Pushed(3)).await?;
    fresh.must(Outcome::Pulled).await?;
    ensure!(fresh.rows().await? == writer.rows().await?);
    fresh.insert_at_once("second", 200).await?;
    let Outcome::Pushed(_) = fresh.sync().await? else { panic!("nothing was pushed") };
    let rows = fresh.rows().await?;
    for reader in [writer, behind, idle] {
        reader.must(Outcome::Pulled).await?;
        ensure!(reader.rows().await? == rows);
        reader.check_integrity().await?;
    }
    ensure!(scene.status().await? == Status { frames: fresh.frames()?, generation: 2 });
    scene.a_fresh_replica_has(&rows).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_steps_through_several_generations() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    let reader = scene.replica("reader").await?;
    writer.create().await?;
    writer.must(Outcome::Pushed(2)).await?;
    reader.must(Outcome::Pulled).await?;
    for generation in 2..=4 {
        writer.insert("writer", 5).await?;
        writer.must(Outcome::Pushed(5)).await?;
        scene.roll_over().await?;
        ensure!(scene.status().await? == Status { frames: 0, generation });
        writer.must(Outcome::Pulled).await?;
    }
    scene.kill()?;
    scene.boot()?;
    reader.must(Outcome::Pulled).await?;
    ensure!(Metadata::read(reader.path())? == Metadata { frame: 0, generation: 4 });
    ensure!(reader.rows().await? == writer.rows().await?);
    reader.insert("reader", 1).await?;
    reader.must(Outcome::Pushed(1)).await?;
    scene.a_fresh_replica_has(&reader.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_for_a_generation_that_ended_are_a_conflict() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    let rows = writer.rows().await?;
    writer.insert("late", 1).await?;
    scene.roll_over().await?;
    writer.must(Outcome::Conflict).await?;
    writer.must(Outcome::Conflict).await?;
    ensure!(scene.status().await? == Status { frames: 0, generation: 2 });
    scene.a_fresh_replica_has(&rows).await
}
