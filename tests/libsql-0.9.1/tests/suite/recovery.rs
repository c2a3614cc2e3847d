//! A metadata file that 0.9.1 cannot read: it begins at frame 1, and the server must take what it knows.

use std::fs;

use anyhow::{Result, ensure};
use real_client::{Damage, Metadata, Outcome, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_metadata_is_lost_sends_the_whole_log_again() -> Result<()> {
    for damage in Damage::ALL.map(Some).into_iter().chain([None]) {
        let scene = Scene::new().await?;
        let writer = scene.replica("writer").await?;
        writer.create().await?;
        writer.insert("writer", 10).await?;
        writer.must(Outcome::Pushed(12)).await?;
        let path = writer.path().to_owned();
        writer.close();

        match damage {
            Some(damage) => damage.apply(&path)?,
            None => fs::remove_file(Metadata::path(&path))?,
        }
        let writer = scene.replica("writer").await?;
        writer.insert("writer", 1).await?;
        writer.must(Outcome::Pushed(13)).await?;
        ensure!(writer.wire.requests() == ["POST /sync/1/1/14"], "{damage:?}");
        ensure!(scene.frames().await? == 13);
        ensure!(Metadata::read(&path)? == Metadata { frame: 13, generation: 1 }, "{damage:?}");
        scene.a_fresh_replica_has(&writer.rows().await?).await?;
    }
    Ok(())
}
