//! [`Files`]: waiting for files to read, when the process has as many open as it may.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc::WeakSender;
use tokio::time::{Instant, sleep};

use super::error::Error;
use super::shard::Message;
use crate::limits::FILES_RETRY;
use crate::repo::is_out_of_files;

/// Lends readers the files that logs have open which are not written just now.
#[derive(Debug)]
pub(super) struct Files {
    queues: Vec<WeakSender<Message>>,
}

impl Files {
    pub(super) fn new(queues: Vec<WeakSender<Message>>) -> Files {
        Files { queues }
    }

    /// What `work` returns, on a thread that may block. While the process can open no more files, idle writers close theirs
    /// and it is tried again, for `wait` at most.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there are still no files; otherwise as `work` says.
    pub(super) async fn opened<T: Send + 'static>(
        &self,
        wait: Duration,
        work: impl Fn() -> io::Result<Result<T, Error>> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let until = Instant::now() + wait;
        loop {
            let work = work.clone();
            let done = tokio::task::spawn_blocking(work).await;
            match done.unwrap_or_else(|_| Ok(Err(Error::Unavailable("a read was interrupted".into())))) {
                Ok(done) => return done,
                Err(error) if !is_out_of_files(&error) => return Err(error.into()),
                Err(error) if Instant::now() >= until => return Err(short(wait, &error)),
                Err(_) => {}
            }
            for queue in self.queues.iter().filter_map(WeakSender::upgrade) {
                // One that is full is busy, and asked again.
                let _ = queue.try_send(Message::LetGo);
            }
            sleep(FILES_RETRY).await;
        }
    }
}

fn short(wait: Duration, error: &io::Error) -> Error {
    Error::Unavailable(format!(
        "the service has as many files open as it may, for {} s now (ulimit -n): try again, or raise the limit: {error}",
        wait.as_secs()
    ))
}
