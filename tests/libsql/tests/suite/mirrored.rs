//! Replicas made by `logmirror mirror` are replicas to the client too.

use anyhow::{Result, ensure};
use real_client::{Outcome, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_replica_is_opened_synced_written_and_pushed() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.insert("first", 10).await?;
    first.insert_at_once("first", 300).await?;
    let Outcome::Pushed(_) = first.sync().await? else { panic!("nothing was pushed") };
    scene.mirror_to("mirrored")?;

    let mirrored = scene.replica("mirrored").await?;
    ensure!(mirrored.rows().await? == first.rows().await?);
    mirrored.check_integrity().await?;
    first.insert("first", 3).await?;
    first.must(Outcome::Pushed(3)).await?;
    mirrored.must(Outcome::Pulled).await?;
    mirrored.insert("mirrored", 2).await?;
    mirrored.insert_at_once("mirrored", 200).await?;
    let Outcome::Pushed(_) = mirrored.sync().await? else { panic!("nothing was pushed") };
    ensure!(scene.frames().await? == mirrored.frames()?);
    first.must(Outcome::Pulled).await?;
    ensure!(first.rows().await? == mirrored.rows().await?);
    first.check_integrity().await?;
    scene.a_fresh_replica_has(&first.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_the_client_is_refreshed_by_a_mirror() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.must(Outcome::Pushed(2)).await?;
    scene.mirror_to("second")?;
    first.insert("first", 5).await?;
    first.must(Outcome::Pushed(5)).await?;
    scene.mirror_to("second")?;
    let second = scene.replica("second").await?;
    ensure!(second.rows().await? == first.rows().await?);
    // Nothing is left to pull, and nothing to push.
    second.wire.requests();
    second.must(Outcome::Pulled).await?;
    ensure!(second.wire.requests() == ["GET /sync/1/8/136"]);
    second.check_integrity().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirrored_replica_of_a_later_generation_writes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.insert("first", 5).await?;
    first.must(Outcome::Pushed(7)).await?;
    scene.mirror_to("mirrored")?;
    scene.roll_over().await?;
    scene.mirror_to("mirrored")?;
    let mirrored = scene.replica("mirrored").await?;
    ensure!(mirrored.rows().await? == first.rows().await?);
    mirrored.insert("mirrored", 2).await?;
    mirrored.must(Outcome::Pushed(2)).await?;
    first.must(Outcome::Pulled).await?;
    ensure!(first.rows().await? == mirrored.rows().await?);
    scene.a_fresh_replica_has(&first.rows().await?).await
}
