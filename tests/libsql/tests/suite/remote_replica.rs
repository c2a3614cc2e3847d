//! `new_remote_replica`: it asks `/info` whether the server speaks this protocol, and then only pulls. That of 0.9.1
//! asks for `/sync/0/0/0`, and falls back to gRPC.

use anyhow::{Result, ensure};
use libsql::Builder;
use real_client::{Outcome, Scene, TOKEN, connector, rows};

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_replica_pulls() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.insert_at_once("writer", 200).await?;
    let Outcome::Pushed(_) = writer.sync().await? else { panic!("nothing was pushed") };

    let wire = scene.wire()?;
    let path = scene.database("remote")?;
    let builder = Builder::new_remote_replica(path, scene.url(&wire), TOKEN.to_owned());
    let remote = builder.connector(connector()).build().await?;
    ensure!(wire.requests() == ["GET /info"]);
    remote.sync().await?;
    let connection = remote.connect()?;
    ensure!(rows(&connection).await? == writer.rows().await?);

    writer.insert("writer", 3).await?;
    writer.must(Outcome::Pushed(3)).await?;
    remote.sync().await?;
    ensure!(rows(&connection).await? == writer.rows().await?);
    ensure!(wire.requests().iter().all(|request| request.starts_with("GET ")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_replica_with_a_wrong_token_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let wire = scene.wire()?;
    let builder = Builder::new_remote_replica(scene.database("remote")?, scene.url(&wire), "wrong".to_owned());
    let refused = builder.connector(connector()).build().await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("Unauthorized")));
    Ok(())
}
