//! A sink while it is being fed.

use tokio::sync::{mpsc, oneshot, watch};

use super::failure::MirrorError;
use super::feed_dir::{ToWriter, write};
use super::feed_url;
use crate::client::Client;
use crate::limits::BATCHES_UNDER_WAY;
use crate::offset::Offset;
use crate::stream::{AppendError, Batch, MirrorRecord, StreamWriter};

/// A sink that is being fed. It runs by itself; [`send`](Feeding::send) waits only while too much is under way.
#[derive(Debug)]
pub(super) struct Feeding {
    input: Input,
    durable: watch::Receiver<Offset>,
    /// None once it was heard.
    ended: Option<oneshot::Receiver<Result<Offset, MirrorError>>>,
}

#[derive(Debug)]
enum Input {
    Dir(mpsc::Sender<ToWriter>),
    Url(mpsc::Sender<Batch>),
}

impl Feeding {
    /// Feeds the directory `place`. `left` is called with its record, as it was written last, when the writer has ended.
    pub(super) fn dir(
        writer: StreamWriter,
        place: String,
        left: impl FnOnce(MirrorRecord) + Send + 'static,
    ) -> Feeding {
        let (input, messages) = mpsc::channel(BATCHES_UNDER_WAY);
        let (told, durable) = watch::channel(writer.durable());
        let (end, ended) = oneshot::channel();
        // Weak, so that the channel closes when the feeder is gone.
        let back = input.downgrade();
        tokio::task::spawn_blocking(move || {
            let written = write(writer, messages, back, &told, left);
            let _nobody_waits = end.send(written.map_err(|error| in_place(&place, error)));
        });
        Feeding { input: Input::Dir(input), durable, ended: Some(ended) }
    }

    pub(super) fn url(client: Client, from: Offset) -> Feeding {
        let (input, batches) = mpsc::channel(BATCHES_UNDER_WAY);
        let (told, durable) = watch::channel(from);
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let place = client.url().to_string();
            let fed = feed_url::feed(client, from, batches, &told).await;
            let _nobody_waits = end.send(fed.map_err(|error| error.of_sink(&place)));
        });
        Feeding { input: Input::Url(input), durable, ended: Some(ended) }
    }

    /// Everything before this offset is durable in the sink.
    pub(super) fn durable(&self) -> watch::Receiver<Offset> {
        self.durable.clone()
    }

    /// Hands over a batch; false when the sink has ended, and [`end`](Self::end) says why.
    pub(super) async fn send(&mut self, batch: Batch) -> bool {
        match &self.input {
            Input::Dir(input) => input.send(ToWriter::Batch(batch)).await.is_ok(),
            Input::Url(input) => input.send(batch).await.is_ok(),
        }
    }

    /// Has a directory looked at for the writes of other processes, unless it is being written; one that was written ends.
    pub(super) fn look(&self) {
        if let Input::Dir(input) = &self.input {
            // One that is full of batches looks before it writes.
            let _ = input.try_send(ToWriter::Look);
        }
    }

    /// Returns when the sink has ended by itself.
    pub(super) async fn failed(&mut self) -> MirrorError {
        let ended = match &mut self.ended {
            Some(ended) => ended.await.unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        };
        self.ended = None;
        ended.err().unwrap_or_else(|| MirrorError::Interrupted("the sink ended the stream".into()))
    }

    /// Ends the stream and waits until all of it is durable. Returns where that ends.
    pub(super) async fn end(self) -> Result<Offset, MirrorError> {
        match self.input {
            Input::Dir(input) => {
                // A writer that is gone has said why.
                let _ = input.send(ToWriter::End).await;
            }
            Input::Url(input) => drop(input),
        }
        match self.ended {
            Some(ended) => ended.await.unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        }
    }
}

/// An error of the disk says nothing of where.
fn in_place(place: &str, error: MirrorError) -> MirrorError {
    match error {
        MirrorError::Append(AppendError::Poisoned { cause }) => {
            AppendError::Poisoned { cause: format!("{place}: {cause}").into() }.into()
        }
        error => error,
    }
}

fn gone() -> MirrorError {
    MirrorError::Interrupted("the sink is gone".into())
}
