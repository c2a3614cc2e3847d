//! [`Summing`]: the sums of a base that is being written, made in a thread of their own. Owns that thread.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::sums::SumsWriter;

/// Blocks that wait to be summed. Then the writer waits too.
const WAITING_MAX: usize = 4;

/// See the [module](self). The thread ends soon after this is dropped, which does not wait for it.
#[derive(Debug)]
pub(super) struct Summing {
    blocks: Option<SyncSender<Bytes>>,
    thread: Option<JoinHandle<io::Result<SumsWriter>>>,
}

impl Summing {
    /// Goes on with `sums`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(mut sums: SumsWriter) -> io::Result<Summing> {
        let (blocks, waiting) = sync_channel::<Bytes>(WAITING_MAX);
        let sum = move || {
            for block in waiting {
                sums.push(&block)?;
            }
            Ok(sums)
        };
        let thread = thread::Builder::new().name("base-sums".into()).spawn(sum)?;
        Ok(Summing { blocks: Some(blocks), thread: Some(thread) })
    }

    /// The next bytes of the base. Blocks while too many wait.
    ///
    /// # Errors
    /// When bytes before them could not be summed; none are taken any more then.
    pub(super) fn push(&mut self, block: Bytes) -> io::Result<()> {
        match self.blocks.as_ref().map(|blocks| blocks.send(block)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.end().err().unwrap_or_else(ended)),
        }
    }

    /// The sums of all that was pushed.
    ///
    /// # Errors
    /// When some could not be summed.
    pub(super) fn finish(mut self) -> io::Result<SumsWriter> {
        self.end()
    }

    fn end(&mut self) -> io::Result<SumsWriter> {
        self.blocks = None;
        let thread = self.thread.take().ok_or_else(ended)?;
        thread.join().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> io::Error {
    io::Error::other("the sums of the base ended early")
}
