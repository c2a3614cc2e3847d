//! The way into a sink: closed while what the sink holds is compared with the source, and opened once that is done.

use tokio::sync::watch;

use super::database::off;
use super::failure::MirrorError;
use super::feeding::Feeding;
use super::missing::Warning;
use super::relay::Relay;
use super::run::Event;
use super::sink::{OpenSink, Sink, SinkStatus};
use crate::api::LogSource;
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};
use crate::stream::{Batch, Part};

/// A sink that is opened for writing when there is something to write, or something of ours to cut.
pub(super) struct Delivery<'a> {
    sink: &'a Sink,
    status: Option<SinkStatus>,
    format: LogFormat,
    generation: Generation,
    /// Headers that came before the sink was opened.
    early: Vec<Part>,
    feeding: Option<Feeding>,
    /// Whether it was compared, and is not opened before there is something to write: it has no mirror record yet.
    unclaimed: bool,
    /// What is noted in the sink when it is opened.
    relay: Option<Relay>,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(sink: &'a Sink, status: SinkStatus, format: LogFormat, generation: Generation) -> Delivery<'a> {
        let (early, feeding, unclaimed, relay) = (Vec::new(), None, false, None);
        Delivery { sink, status: Some(status), format, generation, early, feeding, unclaimed, relay }
    }

    /// The same of a sink that is a copy of another log, which it notes when it is opened.
    pub(super) fn of_relay(self, relay: Option<Relay>) -> Delivery<'a> {
        Delivery { relay, ..self }
    }

    /// Whether the sink holds a log already, be it empty.
    pub(super) fn has_log(&self) -> bool {
        self.status.as_ref().is_none_or(|status| status.next().is_some())
    }

    /// Whether the sink is a directory with a base, which nobody else may give frames to from now on.
    pub(super) fn has_base(&self) -> bool {
        matches!(&self.status, Some(SinkStatus::Dir(Some(found))) if found.based)
    }

    /// Opens the sink once it was compared; but one without a mirror record only when there is something to write.
    pub(super) async fn compared(&mut self, told: &mut impl FnMut(Event)) -> Result<(), MirrorError> {
        self.unclaimed = match (self.sink, &self.status) {
            (Sink::Dir(dir), Some(SinkStatus::Dir(Some(found)))) => dir.is_unclaimed(found),
            _ => false,
        };
        if self.unclaimed { Ok(()) } else { self.open(None, told).await }
    }

    /// Opens the sink, if it is not open. `first` is where a log that is created starts.
    pub(super) async fn open(
        &mut self,
        first: Option<Offset>,
        told: &mut impl FnMut(Event),
    ) -> Result<(), MirrorError> {
        let Some(status) = self.status.take() else {
            return Ok(());
        };
        // Before the first byte: a log takes what it is sent from what feeds it only.
        if let (Some(relay), Some(next)) = (&self.relay, status.next()) {
            relay.note(self.sink, self.generation, next).await.map_err(|error| self.sink.own(error))?;
        }
        let opened = self.sink.open(status, self.format, self.generation, first).await;
        let OpenSink { feeding, cut, emptied, refetched } = opened.map_err(|error| self.sink.own(error))?;
        let durable = *feeding.durable().borrow();
        told(Event::Opened { durable });
        self.feeding = Some(feeding);
        if let Some((from, to)) = refetched {
            told(Event::Refetched { from, to });
        }
        if let Some(durable) = emptied {
            told(Event::Emptied { durable });
        }
        if let Some(cut) = cut {
            told(Event::Cut(cut));
        }
        Ok(())
    }

    /// Hands over a batch, opening the sink for its first commit; false when the sink has ended, and
    /// [`failed`](Self::failed) says why.
    pub(super) async fn send(&mut self, batch: Batch, told: &mut impl FnMut(Event)) -> Result<bool, MirrorError> {
        let first = batch.runs().next().map(|run| run.first);
        if self.feeding.is_none() && first.is_none() {
            self.early.extend(batch.parts);
            return Ok(true);
        }
        self.open(first, told).await?;
        let Some(feeding) = &mut self.feeding else {
            return Ok(false);
        };
        let parts = std::mem::take(&mut self.early).into_iter().chain(batch.parts).collect();
        Ok(feeding.send(Batch { parts }).await)
    }

    /// Everything before this offset is durable in the sink; none while it is not open.
    pub(super) fn durable(&self) -> Option<watch::Receiver<Offset>> {
        self.feeding.as_ref().map(Feeding::durable)
    }

    /// Checks that an open sink is still where it was, with its base, also while there is nothing to write.
    ///
    /// # Errors
    /// [`MirrorError::Away`]. What another process has written ends the sink, and [`failed`](Self::failed) says so.
    pub(super) async fn look(&self) -> Result<(), MirrorError> {
        if let (Sink::Dir(dir), Some(feeding)) = (self.sink, &self.feeding) {
            let dir = dir.clone();
            off(move || dir.is_present().and_then(|()| dir.check_base())).await??;
            feeding.look();
        }
        self.report_unclaimed();
        Ok(())
    }

    /// Says that a sink without a mirror record holds all that the source has, so that nothing was written.
    pub(super) fn report_unclaimed(&self) {
        if let (Sink::Dir(dir), Some(SinkStatus::Dir(Some(found)))) = (self.sink, &self.status)
            && self.unclaimed
        {
            dir.report_unclaimed(found);
        }
    }

    /// What is to be known of a directory that is the sink, while it is open.
    pub(super) async fn warning(&self) -> Result<Option<Warning>, MirrorError> {
        match (self.sink, &self.feeding) {
            (Sink::Dir(_), Some(_)) => self.sink.warning().await,
            _ => Ok(None),
        }
    }

    /// Notes in the sink which database feeds it, and how far that was read. After Ok it is durable.
    ///
    /// # Errors
    /// When the sink cannot be reached or written, or has ended by itself meanwhile.
    pub(super) async fn note_source(&mut self, source: &LogSource) -> Result<(), MirrorError> {
        let sink = self.sink;
        tokio::select! {
            // A service that rolls the log over answers only after that.
            error = self.failed() => Err(error),
            noted = sink.note_source(source) => noted.map_err(|error| sink.own(error)),
        }
    }

    /// Returns when an open sink has ended by itself.
    pub(super) async fn failed(&mut self) -> MirrorError {
        match &mut self.feeding {
            Some(feeding) => feeding.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the stream and waits until all of it is durable. Returns where that ends; none when the sink was never opened.
    pub(super) async fn end(self) -> Result<Option<Offset>, MirrorError> {
        match self.feeding {
            Some(feeding) => feeding.end().await.map(Some),
            None => Ok(None),
        }
    }
}
