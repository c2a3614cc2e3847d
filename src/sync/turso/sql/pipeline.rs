//! A pipeline, from its body to its answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::answer::{Outcome, PipelineAnswer, Response};
use super::batch::{self, Foreseen, NeedsTurn, Ran};
use super::execute::Runner;
use super::request::{self, Pipeline, Request};
use super::streams::{Stream, Taken};
use super::threads::panicked;
use super::{MemoryShare, Sql, numbers, whole};
use crate::limits::SQL_ROWS_AT_ONCE;
use crate::mirror::Error;

/// How far a pipeline came on the thread that got it.
pub(crate) enum AtOnce {
    /// To its end.
    Ended(Result<Bytes, Error>),
    /// It may have to wait; the rest of it.
    GoesOn(BoxFuture<'static, Result<Bytes, Error>>),
}

/// A pipeline that has begun.
struct Begun {
    taken: Taken,
    stream: Stream,
    /// The stream is a new one.
    new: bool,
    /// It is kept for a call after this one.
    lasting: bool,
    /// Nothing is lost if it gets another connection before it runs.
    fresh: bool,
    requests: Vec<Request>,
    share: MemoryShare,
    foreseen: Foreseen,
    since: Instant,
    /// Bytes of its body.
    came: usize,
}

/// What ran of a pipeline without waiting; none if nothing did.
type First = Option<Result<Ran, NeedsTurn>>;

impl Begun {
    /// Runs its requests. Blocks.
    fn run(&mut self) -> Result<Ran, NeedsTurn> {
        let Stream { session, transaction, turn, stored, .. } = &mut self.stream;
        let runner = Runner { session, transaction, may_write: turn.is_some() };
        batch::run(runner, &self.requests, stored, &mut self.share)
    }
}

impl Sql {
    pub(super) async fn run_pipeline(
        self: Arc<Self>,
        log: String,
        (body, share): (Bytes, MemoryShare),
        lasting: bool,
    ) -> Result<Bytes, Error> {
        let (sql, name) = (self.clone(), log.clone());
        // All that need not wait in one go: each way to another thread costs as much as a small statement.
        let begin = move || sql.begin_pipeline(&name, (&body, share), lasting);
        let (call, first) = self.threads.run_for(&log, begin).await??;
        self.go_on(call, first).await
    }

    /// As [`pipeline`](Self::pipeline), on this thread, which must have the stack for that; in the context of a runtime. An answer that
    /// holds if what it committed becomes durable is handed to `offer`, in the task that goes on, before that is appended.
    pub(crate) fn pipeline_at_once(
        self: &Arc<Self>,
        log: &str,
        (body, lasting): (Bytes, bool),
        offer: impl FnOnce(&Bytes) + Send + 'static,
    ) -> AtOnce {
        let mut share = self.share(log);
        let covered = share.cover(body.len()).now_or_never();
        let begin = || self.begin_pipeline(log, (&body, share), lasting);
        let begun = match covered {
            Some(Ok(())) => self.threads.run_here(log, begin),
            Some(Err(error)) => return AtOnce::Ended(Err(error)),
            None => None,
        };
        let sql = self.clone();
        match begun {
            Some(Ok(Ok((call, Some(Ok(ran)))))) => {
                let ends = async move { sql.end(call, ran, offer).await };
                let ends = AssertUnwindSafe(ends).catch_unwind();
                AtOnce::GoesOn(ends.map(|ended| ended.unwrap_or_else(|_| Err(panicked()))).boxed())
            }
            Some(Ok(Ok((call, first)))) => AtOnce::GoesOn(whole(sql.go_on(call, first)).boxed()),
            Some(Ok(Err(error)) | Err(error)) => AtOnce::Ended(Err(error)),
            None => {
                let log = log.to_owned();
                let all = async move {
                    let mut share = sql.share(&log);
                    share.cover(body.len()).await?;
                    sql.run_pipeline(log, (body, share), lasting).await
                };
                AtOnce::GoesOn(whole(all).boxed())
            }
        }
    }

    /// What a pipeline does before it has to wait for anything: with luck, all that it does on its stream. Blocks.
    fn begin_pipeline(
        &self,
        log: &str,
        (body, share): (&Bytes, MemoryShare),
        lasting: bool,
    ) -> Result<(Begun, First), Error> {
        let since = Instant::now();
        let Pipeline { baton, requests } = request::read(body)?;
        let foreseen = Foreseen::of(&requests);
        if foreseen.pushes {
            batch::check_pushed(&requests)?;
        }
        let new = baton.is_none();
        let (taken, mut stream, opened) = self.stream(log, baton.as_deref(), &foreseen)?;
        // With the session came all that others appended.
        let ready = opened && (!foreseen.writes || self.turned(&mut stream));
        let fresh = opened || stream.is_fresh_for(&foreseen);
        stream.expects(&foreseen);
        let (lasting, came) = (lasting || !new, body.len());
        let mut begun = Begun { taken, stream, new, lasting, fresh, requests, share, foreseen, since, came };
        let first = ready.then(|| begun.run());
        Ok((begun, first))
    }

    /// All of a pipeline after its beginning.
    async fn go_on(self: Arc<Self>, mut call: Begun, first: First) -> Result<Bytes, Error> {
        let ran = match first {
            Some(Ok(ran)) => ran,
            first => {
                let (writes, fresh) = (call.foreseen.writes || first.is_some(), call.fresh && first.is_none());
                call.stream = self.ready(call.stream, writes, fresh).await?;
                loop {
                    let log = call.taken.log.clone();
                    let work = move || {
                        let ran = call.run();
                        (call, ran)
                    };
                    let ran;
                    (call, ran) = self.threads.run_for(&log, work).await?;
                    match ran {
                        Ok(ran) => break ran,
                        Err(NeedsTurn) => call.stream = self.ready(call.stream, true, false).await?,
                    }
                }
            }
        };
        self.end(call, ran, |_| ()).await
    }

    /// Has durable what a pipeline committed, and answers. `offer` is as for [`pipeline_at_once`](Self::pipeline_at_once).
    async fn end(
        &self,
        call: Begun,
        Ran { outcomes, closed }: Ran,
        offer: impl FnOnce(&Bytes),
    ) -> Result<Bytes, Error> {
        let Begun { taken, mut stream, new, lasting, share, foreseen, since, came, .. } = call;
        stream.locks |= foreseen.locks;
        let (count, (rows, failed), log) = (outcomes.len(), counts(&outcomes), taken.log.clone());
        let ends = closed || !lasting && stream.is_plain_without_turn();
        let answer = |baton| {
            let answer = PipelineAnswer { baton, base_url: None, results: outcomes };
            self.written(answer, rows, share)
        };
        let (frame, written) = if ends {
            let written = answer(None).await;
            if let Ok(written) = &written {
                offer(written);
            }
            stream = self.settled(stream).await?;
            let frame = stream.session.frame();
            if new && !foreseen.personal && stream.is_plain() {
                // Its connection goes to the next one; that blocks nobody.
                stream.session.spare();
                drop(stream);
            } else {
                self.threads.end_later(stream);
                if !new {
                    taken.close();
                }
            }
            (frame, written)
        } else {
            stream = self.settled(stream).await?;
            let frame = stream.session.frame();
            let baton = self.streams.park(taken, stream);
            (frame, answer(Some(baton)).await)
        };
        let stored = |error: Error| Error::Aborted(format!("{error}; what this committed is stored"));
        let written = written.map_err(stored)?;
        let (sent, ms) = (written.len(), since.elapsed().as_secs_f64() * 1000.0);
        log::debug!(
            "POST /logs/{log}: pipeline of {count} requests up to frame {frame}, {rows} rows, {failed} failed, \
             {came} bytes in, {sent} out, {ms:.1} ms"
        );
        Ok(written)
    }

    /// An answer as JSON; a large one is written where that may take long. Gives up its share of memory.
    async fn written(&self, answer: PipelineAnswer, rows: usize, share: MemoryShare) -> Result<Bytes, Error> {
        let write = move || {
            let mut written = Vec::with_capacity(256);
            let outcome = numbers::write(&mut written, &answer);
            drop(share);
            outcome.map(|()| Bytes::from(written))
        };
        let written = if rows <= SQL_ROWS_AT_ONCE { write() } else { self.threads.run(write).await? };
        written.map_err(|error| Error::Unavailable(format!("the answer was not written: {error}")))
    }
}

/// Rows in an answer, and what failed in it.
fn counts(outcomes: &[Outcome]) -> (usize, usize) {
    outcomes.iter().fold((0, 0), |(rows, failed), outcome| match outcome {
        Outcome::Error { .. } => (rows, failed + 1),
        Outcome::Ok { response: Response::Execute { result } } => (rows + result.rows.len(), failed),
        Outcome::Ok { response: Response::Batch { result } } => {
            let more: usize = result.step_results.iter().flatten().map(|result| result.rows.len()).sum();
            (rows + more, failed + result.step_errors.iter().flatten().count())
        }
        Outcome::Ok { .. } => (rows, failed),
    })
}
