//! Reading a log of a service: as one stream; or, where something between holds that back, in ranges that end.

use futures::TryStreamExt;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::batching;
use super::failure::MirrorError;
use super::others;
use super::silence::{Silence, Verdict};
use super::source::{Out, Piece, Reading};
use crate::api::{LastCommit, LogState, LogStatus};
use crate::client::{Client, ClientError, Commits, named_base};
use crate::format::{Commit, LogFormat};
use crate::limits::{COMMIT_HELD_MAX, FOLLOW_POLL, HELD_BACK_AFTER, LIVE_EARLY};
use crate::offset::Offset;
use crate::repo::temporary_dir;
use crate::stream::{Batch, BatchError, Batcher, LargeCommits, Tail};

/// How a stream of commits went.
enum Ended {
    /// It ended, or the other end is gone.
    Over,
    /// It brings nothing of what the service says is durable.
    HeldBack,
    /// It brought something, and then no more of what the service says is durable.
    Silent,
}

/// What was read of a log: what is read next must continue it, whichever server answers.
#[derive(Clone, Copy, Debug)]
struct ReadSoFar {
    /// The offset after it.
    next: Offset,
    /// Its last commit; none before one was received.
    last: Option<LastCommit>,
    /// The log that it is of, once that is known.
    log: Option<Uuid>,
}

impl ReadSoFar {
    /// That a status is of the same log.
    ///
    /// # Errors
    /// [`ClientError::OtherContent`]
    fn check(&mut self, status: &LogStatus) -> Result<(), ClientError> {
        let found = Uuid::parse_str(&status.id).ok();
        others::check_log(found, self.log)?;
        self.log = self.log.or(found);
        Ok(())
    }
}

/// Reads what is wanted into `out`, until `out` is closed.
pub(super) async fn read(client: &Client, reading: Reading, max: u64, out: &Out) -> Result<(), MirrorError> {
    // Whatever is awaited: a source that is idle would keep its connection open.
    tokio::select! {
        () = out.closed() => Ok(()),
        ended = read_all(client, reading, max, out) => ended,
    }
}

async fn read_all(client: &Client, reading: Reading, max: u64, out: &Out) -> Result<(), MirrorError> {
    let mut so_far = ReadSoFar { next: reading.from, last: None, log: reading.log };
    let mut was_short = false;
    loop {
        let (from, since) = (so_far.next, Instant::now());
        match stream(client, &Reading { from, ..reading }, &mut so_far, max, out).await? {
            Ended::Over => {
                let _ = out.send(Ok(Piece::End(Tail::Clean))).await;
                return Ok(());
            }
            // One after the other: that is no connection that was lost.
            Ended::Silent if was_short && since.elapsed() < LIVE_EARLY => break,
            Ended::Silent => {
                was_short = since.elapsed() < LIVE_EARLY;
                log::info!(
                    "{}: nothing was received of commits that have been durable there for {} s: the connection is taken to be lost, \
                     and the stream is opened again",
                    client.url(),
                    HELD_BACK_AFTER.as_secs()
                );
            }
            Ended::HeldBack => break,
        }
    }
    log::warn!(
        "{}: a proxy between us and the service seems to hold back what it streams (nothing was received of commits \
             that have been durable there for {} s): asking for what is new every {} ms instead",
        client.url(),
        HELD_BACK_AFTER.as_secs(),
        FOLLOW_POLL.as_millis()
    );
    let once = Reading { follow: false, ..reading };
    loop {
        let from = so_far.next;
        stream(client, &Reading { from, ..once }, &mut so_far, max, out).await?;
        if so_far.next > from {
            continue;
        }
        let status = client.status().await?;
        so_far.check(&status)?;
        // A generation that has ended gets no more commits; another one may hold what is new.
        if status.generation.is_some_and(|current| current != reading.generation) {
            let _ = out.send(Ok(Piece::End(Tail::Clean))).await;
            return Ok(());
        }
        sleep(FOLLOW_POLL).await;
    }
}

/// Reads one answer into `out`, which goes on from what was read `so_far`, and adds what is in it to that.
async fn stream(
    client: &Client,
    reading: &Reading,
    so_far: &mut ReadSoFar,
    max: u64,
    out: &Out,
) -> Result<Ended, MirrorError> {
    // What is there now shows whether the answer is of the log, before any of it goes further.
    let status = client.status_of(reading.generation).await?;
    so_far.check(&status)?;
    others::check_base(named_base(&status, reading.generation)?, reading.base)?;
    let last_commit = status.last_commit.filter(|_| status.generation == Some(reading.generation));
    let mut silence = Silence::new(so_far.next);
    let Some(mut commits) = opened(client, reading, &mut silence, so_far.next).await? else {
        return Ok(Ended::HeldBack);
    };
    others::check_base(commits.base, reading.base)?;
    others::check_goes_on(commits.framing, reading.from, so_far.last)?;
    let is_named = commits.base.is_some();
    let mut batcher = batcher(&commits, reading.from, max);
    let mut is_first = true;
    loop {
        let chunk = match timeout(silence.patience(reading.follow), commits.try_next()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => {
                return Err(damage(client, reading, so_far.next).await.unwrap_or_else(|| error.into()));
            }
            Err(_elapsed) => match silence.verdict(client, reading, so_far.next).await? {
                Verdict::Idle => continue,
                Verdict::Ahead if is_first => return Ok(Ended::HeldBack),
                Verdict::Ahead => return Ok(Ended::Silent),
                Verdict::Over(what) => return Err(over(client, &what)),
            },
        };
        let Some(chunk) = chunk else { break };
        let mut batch = Batch::default();
        let sound = batching::push(&mut batcher, chunk, &mut batch).await;
        if is_first && let Some(first) = batch.runs().next().and_then(|run| run.commits().next()) {
            is_first = false;
            starts_at(&first.1, reading.from)?;
            if reading.follow && !is_named && reading.base.is_some() {
                // A service that does not say it beside the frames.
                let status = client.status_of(reading.generation).await?;
                so_far.check(&status)?;
                others::check_base(named_base(&status, reading.generation)?, reading.base)?;
            }
        }
        if let Some(last) = last_commit {
            others::check(&batch, last)?;
        }
        if let Some(run) = batch.runs().last() {
            (so_far.next, so_far.last) = (run.end, Some(LastCommit::from(&run.last)));
        }
        silence = Silence::new(so_far.next);
        if !batch.is_empty() && out.send(Ok(Piece::Batch(batch))).await.is_err() {
            return Ok(Ended::Over);
        }
        match sound {
            Ok(()) => {}
            Err(BatchError::Stream(error)) => {
                return Err(added(client, reading, so_far.next).await.unwrap_or(MirrorError::Received(error)));
            }
            Err(error @ BatchError::Spool { .. }) => {
                return Err(MirrorError::Spool { place: temporary_dir().display().to_string(), error });
            }
        }
    }
    let status = status_at_end(client, reading).await;
    if let Some(status) = &status
        && let Some(damaged) = damaged(client, reading, so_far.next, status).await
    {
        return Err(damaged);
    }
    // Who answered before may not be who answered with the commits.
    match status {
        Some(status) if !reading.follow => {
            so_far.check(&status)?;
            others::check_end(&status, (reading.generation, reading.base), so_far.last)?;
        }
        None if !reading.follow && reading.base.is_some() && !is_named => {
            return Err(MirrorError::Interrupted(
                "the service ended its answer, and then did not say what it is of".into(),
            ));
        }
        _ => {}
    }
    batcher.finish().map_err(MirrorError::Received)?;
    Ok(Ended::Over)
}

/// Opens a stream; `None` when something holds back all of the answer, also its head.
async fn opened(
    client: &Client,
    reading: &Reading,
    silence: &mut Silence,
    next: Offset,
) -> Result<Option<Commits>, MirrorError> {
    let opening = client.read_of(Some(reading.generation), reading.from, None, reading.follow);
    let mut opening = std::pin::pin!(opening);
    loop {
        match timeout(silence.patience(reading.follow), &mut opening).await {
            Ok(opened) => return Ok(Some(opened?)),
            Err(_elapsed) => match silence.verdict(client, reading, next).await? {
                Verdict::Idle => {}
                Verdict::Ahead => return Ok(None),
                Verdict::Over(what) => return Err(over(client, &what)),
            },
        }
    }
}

/// Why a stream that is silent is given up.
fn over(client: &Client, what: &str) -> MirrorError {
    MirrorError::Interrupted(format!(
        "{}: the connection is taken to be lost: it brought nothing for some time, while {what}",
        client.url()
    ))
}

/// That an answer starts with the commit that was asked for: the one that holds `from`.
///
/// # Errors
/// [`ClientError::NotFromService`]: the service never answers otherwise.
fn starts_at(first: &Commit, from: Offset) -> Result<(), ClientError> {
    if first.first <= from && from < first.end() {
        return Ok(());
    }
    let (first, end) = (first.first, first.end());
    let what = format!(
        "the answer to a request for the log from offset {from} on starts with the commit at offsets {first} to {end}"
    );
    Err(ClientError::NotFromService { what })
}

/// What is wrong with an answer whose bytes after `next` are not sound, when the service has no commit there: none of it sent
/// them. None when it may have sent them, or cannot be asked.
async fn added(client: &Client, reading: &Reading, next: Offset) -> Option<MirrorError> {
    let status = timeout(HELD_BACK_AFTER, client.status_of(reading.generation)).await.ok()?.ok()?;
    let is_end = status.state == LogState::Ok && status.durable.is_some_and(|durable| durable <= next);
    let what = format!("the answer went on after offset {next}, where the log ends");
    is_end.then(|| MirrorError::Client(ClientError::NotFromService { what }))
}

/// What the service says of an answer that ended or broke off at `next`: that the log is damaged there, so that nothing sound is
/// missing. None when it does not say so, or cannot be asked.
async fn damage(client: &Client, reading: &Reading, next: Offset) -> Option<MirrorError> {
    damaged(client, reading, next, &status_at_end(client, reading).await?).await
}

/// The status of what an answer was of, after that; none where the service does not answer.
async fn status_at_end(client: &Client, reading: &Reading) -> Option<LogStatus> {
    timeout(HELD_BACK_AFTER, client.status_of(reading.generation)).await.ok()?.ok()
}

async fn damaged(client: &Client, reading: &Reading, next: Offset, status: &LogStatus) -> Option<MirrorError> {
    if status.state != LogState::Damaged {
        return None;
    }
    let is_here = match &status.damage {
        Some(damage) => reading.from <= damage.offset && damage.offset <= next,
        // A refusal before the answer begins: there is nothing sound at `next`.
        None => {
            let again = client.read_of(Some(reading.generation), next, None, false);
            let answer = timeout(HELD_BACK_AFTER, again).await.ok()?;
            matches!(answer, Err(ClientError::Refused { body, .. }) if body.error == "corrupt-log")
        }
    };
    let reason = status.error.clone().unwrap_or_else(|| "no reason was given".to_owned());
    is_here.then(|| MirrorError::SourceDamaged { place: client.url().to_string(), next, reason })
}

fn batcher(commits: &Commits, from: Offset, max: u64) -> Batcher {
    // The frames of a WAL do not say which they are.
    let expected = (commits.framing.format() == LogFormat::Wal).then_some(from);
    Batcher::new(commits.framing, expected, max).keeping(LargeCommits::Temporary, COMMIT_HELD_MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::offset::Generation;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    #[test]
    fn a_reader_of_an_idle_source_ends_with_its_receiver() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = Client::new(&format!("http://{}/logs/app", listener.local_addr().unwrap())).unwrap();
            let (out, pieces) = mpsc::channel(1);
            let reading = Reading {
                generation: Generation::FIRST,
                from: Offset(0),
                held: false,
                follow: true,
                base: None,
                log: None,
            };
            let reader = tokio::spawn(async move { read(&client, reading, 1 << 20, &out).await });
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nlog-format-version: 1\r\ntransfer-encoding: chunked\r\n\r\n")
                .await
                .unwrap();
            drop(pieces);
            let ended = timeout(Duration::from_secs(10), reader).await;
            assert!(matches!(ended, Ok(Ok(Ok(())))), "{ended:?}");
        });
    }
}
