//! [`Threads`]: where SQL runs. Not on the threads of the service: the engine recurses, and a stack that overflows ends the
//! process.

use tokio::runtime::{Builder, Runtime};

use crate::limits::{SQL_STACK_BYTES, SQL_THREADS_MAX};
use crate::mirror::Error;

/// Threads with large stacks, started when needed.
#[derive(Debug)]
pub(super) struct Threads {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    /// # Errors
    /// When the system has no thread to spare.
    pub(super) fn new() -> std::io::Result<Threads> {
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(SQL_THREADS_MAX);
        runtime.thread_stack_size(SQL_STACK_BYTES).thread_name("sql").enable_all();
        Ok(Threads { runtime: Some(runtime.build()?) })
    }

    /// Runs work that may block.
    ///
    /// # Errors
    /// When it panicked, as the engine may.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let Some(runtime) = &self.runtime else {
            return Err(Error::Unavailable("the service shuts down".into()));
        };
        runtime.spawn_blocking(work).await.map_err(|error| {
            log::error!("the SQL engine failed: {error}");
            Error::Unavailable("the SQL engine failed over this call: see the log of the service".into())
        })
    }

    /// Drops something where that may block, and waits for nothing.
    pub(super) fn end_later<T: Send + 'static>(&self, thing: T) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn_blocking(move || drop(thing));
        }
    }

    /// Drops something where that may block, and waits for it.
    pub(super) async fn end<T: Send + 'static>(&self, thing: T) {
        let _is_logged = self.run(move || drop(thing)).await;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
