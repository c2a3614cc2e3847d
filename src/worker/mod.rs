//! SQL in processes of its own. What a statement does to the process that runs it (all memory taken, the stack overflown, a loop
//! without an end) ends a worker and never the service.
//!
//! A worker is a program that calls [`run_worker`], connected to the service by a pair of sockets. It reads the files of the logs
//! itself; the service is the only one that appends to them, and sends with each call what is durable of the log. A usual call is
//! a packet, and runs on the thread that receives it. Owns the messages, the processes, and which worker runs what; knows no HTTP.

mod call_threads;
mod connection;
mod descriptors;
mod logs;
mod packets;
mod pool;
mod process;
mod run;
mod service;
mod wire;
mod wire_error;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mirror::Error;
pub use pool::{WorkerProgram, WorkerSettings, Workers};
pub use run::run_worker;
pub use service::SqlService;

/// What a mutex guards, also after a panic of another thread that held it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error for a call whose worker has ended before the call began.
fn just_ended() -> Error {
    Error::Unavailable("the SQL worker has just ended: try again".into())
}
