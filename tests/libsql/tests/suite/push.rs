//! Rows go to the server.

use anyhow::{Context, Result, ensure};
use real_client::{BATCH_BYTES, Cut, Outcome, Scene};

use crate::version::BOOTSTRAP;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_fails_and_writes_nothing() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    for token in ["", "wrong", "sesam", "sesames"] {
        let error = match scene.try_replica("intruder", scene.wire()?, token).await? {
            Err(error) => error,
            Ok(intruder) => {
                intruder.create().await?;
                let Err(error) = intruder.try_sync().await? else { panic!("token {token:?} was good enough") };
                error
            }
        };
        ensure!(error.to_string().contains("401"), "{error}");
        scene.forget("intruder")?;
    }
    // A replica that had the right one: its push and its pull.
    let reader = scene.replica("reader").await?;
    reader.must(Outcome::Pulled).await?;
    for (replica, request) in [(writer, "POST /sync/1/1/3"), (reader, "GET /sync/1/1/")] {
        let path = replica.path().to_owned();
        let name = path.parent().and_then(|parent| parent.file_name()).and_then(|name| name.to_str());
        let name = name.context("a replica has a name")?;
        replica.close();
        let replica = scene.try_replica(name, scene.wire()?, "wrong").await??;
        let Err(error) = replica.try_sync().await? else { panic!("a wrong token was good enough for {request}") };
        ensure!(error.to_string().contains("401"), "{error}");
        let requests = replica.wire.requests();
        ensure!(requests.len() == 1 && requests[0].starts_with(request), "{requests:?}");
    }
    ensure!(scene.frames().await? == 0);
    let writer = scene.replica("writer").await?;
    writer.must(Outcome::Pushed(2)).await?;
    ensure!(scene.frames().await? == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_token_takes_clients_without_one() -> Result<()> {
    let scene = Scene::without_token().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 3).await?;
    writer.must(Outcome::Pushed(5)).await?;
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_replica_pushes_its_rows_in_one_request() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    ensure!(writer.wire.requests() == BOOTSTRAP);
    writer.must(Outcome::Pushed(12)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/1/13"]);
    ensure!(scene.frames().await? == 12);
    writer.must(Outcome::Pulled).await?;
    ensure!(scene.frames().await? == 12);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_replica_pushes_only_what_is_new() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    writer.close();
    let writer = scene.replica("writer").await?;
    writer.insert("writer", 2).await?;
    writer.must(Outcome::Pushed(2)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/13/15"]);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_several_batches_arrives_whole() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    // More than SQLite's page cache of 2,000 KiB: it writes to the WAL before it commits, and some pages again.
    writer.insert_at_once("writer", 1000).await?;
    let frames = writer.frames()?;
    ensure!(frames > 7 * 128, "{frames} frames are no large transaction");
    writer.must(Outcome::Pushed(frames)).await?;
    ensure!(scene.frames().await? == frames);
    let rows = writer.rows().await?;
    ensure!(rows.len() == 1000);
    scene.a_fresh_replica_has(&rows).await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_batches_arrive_whole() -> Result<()> {
    let scene = Scene::new().await?;
    for batch in [1, 2, 7] {
        let writer = scene.replica_with_batches_of(batch, &format!("by-{batch}")).await?;
        if batch == 1 {
            writer.create().await?;
        } else {
            writer.must(Outcome::Pulled).await?;
        }
        let known = scene.frames().await?;
        writer.insert("small", 3).await?;
        writer.insert_at_once("large", 20).await?;
        writer.wire.requests();
        let frames = writer.frames()?;
        writer.must(Outcome::Pushed(frames - known)).await?;
        let starts = (known + 1..=frames).step_by(batch as usize);
        let pushes: Vec<_> = starts
            .map(|start| format!("POST /sync/1/{start}/{}", (start + u64::from(batch)).min(frames + 1)))
            .collect();
        ensure!(writer.wire.requests() == pushes);
        ensure!(scene.frames().await? == frames);
        scene.a_fresh_replica_has(&writer.rows().await?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_ends_in_a_slash_works() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica_with_slash("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.must(Outcome::Pushed(12)).await?;
    let requests = writer.wire.requests();
    ensure!(requests.contains(&"POST //sync/1/1/13".to_owned()), "{requests:?}");
    let reader = scene.replica_with_slash("reader").await?;
    reader.must(Outcome::Pulled).await?;
    ensure!(reader.rows().await? == writer.rows().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_cut_off_anywhere_is_completed_by_the_next() -> Result<()> {
    let cuts = [
        // In the first head, behind it, in the first body.
        Cut::Requests(20),
        Cut::Requests(400),
        Cut::Requests(BATCH_BYTES / 2),
        // In the second and the third body, inside a transaction that began in the first.
        Cut::Requests(BATCH_BYTES * 3 / 2),
        Cut::Requests(BATCH_BYTES * 5 / 2),
        // The server has stored or staged a batch, and the client does not hear of it.
        Cut::Answer { nth: 1, keep: 0 },
        Cut::Answer { nth: 2, keep: 0 },
        Cut::Answer { nth: 3, keep: 20 },
    ];
    for (cut, reopen) in cuts.into_iter().flat_map(|cut| [(cut, false), (cut, true)]) {
        let scene = Scene::new().await?;
        let writer = scene.replica("writer").await?;
        writer.create().await?;
        writer.insert("small", 60).await?;
        writer.insert_at_once("large", 300).await?;
        writer.insert("small", 60).await?;
        let frames = writer.frames()?;
        writer.wire.cut(cut);
        // A connection that ends inside an answer is an error, one that ends before it is "offline".
        let cut_off = writer.try_sync().await?;
        ensure!(!matches!(cut_off, Ok(1..)), "{cut:?}: {cut_off:?}");
        writer.wire.mend()?;
        ensure!(scene.frames().await? < frames, "{cut:?}");

        // The Database object remembers what was confirmed before the cut; a reopened one has only the file.
        let writer = if reopen {
            writer.close();
            scene.replica("writer").await?
        } else {
            writer
        };
        let Outcome::Pushed(_) = writer.sync().await? else { panic!("{cut:?}: the second push was none") };
        ensure!(scene.frames().await? == frames, "{cut:?}");
        writer.must(Outcome::Pulled).await?;
        scene.a_fresh_replica_has(&writer.rows().await?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_last_answer_was_lost_may_be_repeated() -> Result<()> {
    let scene = Scene::new().await?;
    let writer = scene.replica("writer").await?;
    writer.create().await?;
    writer.insert("writer", 10).await?;
    writer.wire.cut(Cut::Answer { nth: 1, keep: 0 });
    writer.must(Outcome::Offline).await?;
    writer.wire.mend()?;
    ensure!(scene.frames().await? == 12);
    writer.wire.requests();
    writer.must(Outcome::Pushed(12)).await?;
    ensure!(writer.wire.requests() == ["POST /sync/1/1/13"]);
    ensure!(scene.frames().await? == 12);
    scene.a_fresh_replica_has(&writer.rows().await?).await
}
