//! The client's metadata file says something else than the server.

use anyhow::{Result, ensure};
use real_client::{Metadata, Outcome, Replica, Scene};

/// A closed replica with 12 confirmed frames and 2 that are new.
async fn twelve_and_two(scene: &Scene) -> Result<()> {
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    ensure!(Metadata::read(writer.path())? == Metadata { frame: 12, generation: 1 });
    writer.insert("writer", 2).await?;
    Ok(())
}

async fn reopen_at(scene: &Scene, frame: u32) -> Result<Replica> {
    Metadata { frame, generation: 1 }.write(&scene.database("writer")?)?;
    scene.replica("writer").await
}

/// The replica has pushed all, and knows it.
async fn all_is_well(scene: &Scene, writer: &Replica) -> Result<()> {
    ensure!(scene.frames().await? == 14);
    ensure!(Metadata::read(writer.path())? == Metadata { frame: 14, generation: 1 });
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_ahead_of_the_server_is_led_back() -> Result<()> {
    let scene = Scene::new().await?;
    twelve_and_two(&scene).await?;
    let writer = reopen_at(&scene, 13).await?;
    writer.must(Outcome::Pushed(2)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/14/15", "POST /sync/1/13/15"]);
    all_is_well(&scene, &writer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_far_ahead_is_up_to_date_until_it_is_led_back() -> Result<()> {
    let scene = Scene::new().await?;
    twelve_and_two(&scene).await?;
    let writer = reopen_at(&scene, 1_000_000).await?;
    writer.must(Outcome::Pulled).await?;
    ensure!(scene.frames().await? == 12);
    writer.close();
    let writer = reopen_at(&scene, 12).await?;
    writer.must(Outcome::Pushed(2)).await?;
    all_is_well(&scene, &writer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_behind_the_server_sends_known_frames_again() -> Result<()> {
    for frame in [0, 1, 5, 11] {
        let scene = Scene::new().await?;
        twelve_and_two(&scene).await?;
        let writer = reopen_at(&scene, frame).await?;
        writer.must(Outcome::Pushed(u64::from(14 - frame))).await?;
        ensure!(writer.wire.requests() == [format!("POST /sync/1/{}/15", frame + 1)]);
        all_is_well(&scene, &writer).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_behind_with_nothing_new_sends_known_frames_again() -> Result<()> {
    let scene = Scene::new().await?;
    twelve_and_two(&scene).await?;
    let writer = scene.replica("writer").await?;
    writer.must(Outcome::Pushed(2)).await?;
    writer.close();
    // In batches that end before the end of the log: each is answered with its own end.
    Metadata { frame: 3, generation: 1 }.write(&scene.database("writer")?)?;
    let writer = scene.replica_with_batches_of(4, "writer").await?;
    writer.must(Outcome::Pushed(11)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/4/8", "POST /sync/1/8/12", "POST /sync/1/12/15"]);
    all_is_well(&scene, &writer).await
}
