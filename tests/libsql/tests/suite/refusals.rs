//! A metadata file that 0.10.0 refuses: the way on is to delete the replica's files and begin anew.

use std::fs;

use anyhow::{Result, ensure};
use real_client::{Damage, Metadata, Outcome, Scene, TOKEN};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_refused_for_its_metadata_is_rebuilt_after_its_files_are_deleted() -> Result<()> {
    for damage in Damage::ALL {
        let scene = Scene::new().await?;
        let writer = scene.replica("writer").await?;
        writer.create().await?;
        writer.insert("writer", 10).await?;
        writer.must(Outcome::Pushed(12)).await?;
        let rows = writer.rows().await?;
        let path = writer.path().to_owned();
        let wire = writer.close();
        wire.requests();

        damage.apply(&path)?;
        let refused = scene.try_replica("writer", wire, TOKEN).await?;
        ensure!(refused.is_err(), "{damage:?} was not refused");

        scene.forget("writer")?;
        let writer = scene.replica("writer").await?;
        writer.must(Outcome::Pulled).await?;
        ensure!(writer.rows().await? == rows, "{damage:?}");
        writer.insert("writer", 1).await?;
        writer.must(Outcome::Pushed(1)).await?;
        scene.a_fresh_replica_has(&writer.rows().await?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_its_metadata_is_rebuilt_after_its_files_are_deleted() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    let rows = writer.rows().await?;
    let path = writer.path().to_owned();
    writer.close();

    fs::remove_file(Metadata::path(&path))?;
    let Err(error) = scene.try_replica("writer", scene.wire()?, TOKEN).await? else { panic!("it was not refused") };
    ensure!(error.to_string().contains("invalid local state"), "{error}");
    scene.forget("writer")?;
    let writer = scene.replica("writer").await?;
    writer.must(Outcome::Pulled).await?;
    ensure!(writer.rows().await? == rows);
    Ok(())
}
