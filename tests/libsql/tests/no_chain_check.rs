//! What the check of the senders' checksums is for: without it, two histories become one and nobody is told.
//!
//! Needs `LOGMIRROR_BIN_NO_CHAIN`, a program built with `--features unsafe-no-chain-check`, and fails without. Each test
//! here is one of `suite/conflict.rs` with that program.

use anyhow::{Result, ensure};
use real_client::{BATCH_BYTES, Cut, Outcome, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_check_a_wiped_server_mixes_two_histories() -> Result<()> {
    let mut scene = Scene::without_chain_check().await?;
    let first = scene.replica("first").await?;
    first.create().await?;
    first.insert("first", 10).await?;
    first.must(Outcome::Pushed(12)).await?;

    scene.wipe().await?;
    let second = scene.replica("second").await?;
    second.execute("CREATE TABLE seconds_own(id INTEGER PRIMARY KEY, who TEXT NOT NULL, what TEXT NOT NULL)").await?;
    second.execute("INSERT INTO seconds_own(who, what) VALUES ('second', 'confirmed')").await?;
    second.must(Outcome::Pushed(3)).await?;

    first.insert("first", 2).await?;
    first.must(Outcome::Pushed(11)).await?;
    ensure!(scene.frames().await? == 14);
    // The second's table, full of the first's rows; the second's row, which was confirmed, is gone.
    let fresh = scene.fresh_replica().await?;
    ensure!(fresh.texts("SELECT name FROM sqlite_schema").await? == ["seconds_own"]);
    ensure!(fresh.texts("SELECT DISTINCT who FROM seconds_own").await? == ["first"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_check_a_transaction_whose_first_batches_were_forgotten_mixes_two_histories() -> Result<()> {
    let mut scene = Scene::without_chain_check().await?;
    let slow = scene.replica("slow").await?;
    let quick = scene.replica("quick").await?;
    quick.create().await?;
    quick.must(Outcome::Pushed(2)).await?;
    slow.must(Outcome::Pulled).await?;

    slow.insert_at_once("slow", 300).await?;
    slow.wire.cut(Cut::Requests(BATCH_BYTES * 3 / 2));
    slow.must(Outcome::Offline).await?;
    slow.wire.mend()?;
    scene.kill()?;
    scene.boot()?;
    quick.insert("quick", 1).await?;
    quick.must(Outcome::Pushed(1)).await?;

    let Outcome::Pushed(_) = slow.sync().await? else { panic!("the check is on after all") };
    ensure!(scene.frames().await? == slow.frames()?);
    // The transaction went in without its first frame, and not even SQLite can read what came of it.
    let fresh = scene.fresh_replica().await?;
    ensure!(fresh.texts("PRAGMA integrity_check").await? != ["ok"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_check_a_racer_that_lost_gets_in_when_it_tries_again() -> Result<()> {
    let scene = Scene::without_chain_check().await?;
    let slow = scene.replica("slow").await?;
    let quick = scene.replica("quick").await?;
    quick.create().await?;
    quick.must(Outcome::Pushed(2)).await?;
    slow.must(Outcome::Pulled).await?;

    slow.insert_at_once("slow", 300).await?;
    slow.wire.cut(Cut::Requests(BATCH_BYTES * 3 / 2));
    slow.must(Outcome::Offline).await?;
    slow.wire.mend()?;
    quick.insert("quick", 1).await?;
    quick.must(Outcome::Pushed(1)).await?;

    // What was staged may yet end in a conflict, but then it is forgotten, and the server asks for 4.
    let mut outcome = slow.sync().await?;
    if outcome == Outcome::Conflict {
        outcome = slow.sync().await?;
    }
    let Outcome::Pushed(_) = outcome else { panic!("the check is on after all: {outcome:?}") };
    let fresh = scene.fresh_replica().await?;
    ensure!(fresh.texts("PRAGMA integrity_check").await? != ["ok"]);
    Ok(())
}
