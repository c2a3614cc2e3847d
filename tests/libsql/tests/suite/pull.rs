//! Rows come from the server.

use anyhow::{Result, ensure};
use real_client::{Outcome, Scene};

use crate::version::{BOOTSTRAP, pulls};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_fresh_replica_pulls_all_rows() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.insert("first", 10).await?;
    first.must(Outcome::Pushed(12)).await?;

    let second = scene.replica("second").await?;
    second.must(Outcome::Pulled).await?;
    let mut expected: Vec<String> = BOOTSTRAP.iter().map(|&request| request.to_owned()).collect();
    expected.extend(pulls(1, 13));
    ensure!(second.wire.requests() == expected);
    ensure!(second.rows().await? == first.rows().await?);
    second.check_integrity().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_several_batches_is_pulled_whole() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    let second = scene.replica("second").await?;
    first.must(Outcome::Pushed(2)).await?;
    second.must(Outcome::Pulled).await?;
    first.insert_at_once("first", 400).await?;
    let frames = first.frames()?;
    first.must(Outcome::Pushed(frames - 2)).await?;

    second.wire.requests();
    second.must(Outcome::Pulled).await?;
    ensure!(second.wire.requests() == pulls(3, frames + 1));
    ensure!(second.rows().await? == first.rows().await?);
    second.check_integrity().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_take_turns() -> Result<()> {
    let scene = Scene::new().await?;
    let first = scene.replica("first").await?;
    let second = scene.replica("second").await?;
    first.create().await?;
    first.must(Outcome::Pushed(2)).await?;
    second.must(Outcome::Pulled).await?;
    for turn in 0..3 {
        for (writer, reader, who) in [(&second, &first, "second"), (&first, &second, "first")] {
            writer.insert(who, 2).await?;
            writer.insert_at_once(who, 150 * turn).await?;
            let Outcome::Pushed(_) = writer.sync().await? else { panic!("{who} pushed nothing in turn {turn}") };
            ensure!(scene.frames().await? == writer.frames()?);
            reader.must(Outcome::Pulled).await?;
            ensure!(reader.rows().await? == writer.rows().await?);
        }
    }
    first.check_integrity().await?;
    second.check_integrity().await?;
    scene.a_fresh_replica_has(&first.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_replica_of_an_empty_log_has_nothing_to_pull() -> Result<()> {
    let scene = Scene::new().await?;
    let reader = scene.replica("reader").await?;
    reader.must(Outcome::Pulled).await?;
    ensure!(reader.texts("SELECT name FROM sqlite_schema").await?.is_empty());
    reader.create().await?;
    reader.insert("reader", 1).await?;
    reader.must(Outcome::Pushed(3)).await?;
    scene.a_fresh_replica_has(&reader.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_offline_arrive_once_the_server_is_back() -> Result<()> {
    let mut scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.must(Outcome::Pushed(2)).await?;
    writer.close();

    // Connections refused; the replica is opened and written all the same.
    let mut writer = scene.replica_on("writer", scene.refusing_wire()?).await?;
    writer.insert("refused", 5).await?;
    writer.must(Outcome::Offline).await?;
    ensure!(scene.frames().await? == 2);
    writer.wire.listen()?;
    writer.must(Outcome::Pushed(5)).await?;
    ensure!(scene.frames().await? == 7);

    // Connections closed in use.
    scene.stop()?;
    writer.insert("closed", 5).await?;
    writer.must(Outcome::Offline).await?;
    scene.boot()?;
    writer.must(Outcome::Pushed(5)).await?;
    ensure!(scene.frames().await? == 12);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}
