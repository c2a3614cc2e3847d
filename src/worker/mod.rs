//! SQL in processes of its own. What a statement does to the process that runs it (all memory taken, the stack overflown, a loop
//! without an end) ends a worker and never the service.
//!
//! A worker is a program that calls [`run_worker`], connected to the service by a pair of sockets. It reads the files of the logs
//! itself; the service is the only one that appends to them, and sends with each call what is durable of the log. A usual call
//! goes over a lane: a socket of its own, whose thread runs it. Owns the messages, the processes, and which worker runs what; knows
//! no HTTP.

mod connection;
mod descriptors;
mod lane;
mod lanes;
mod logs;
mod pool;
mod process;
mod run;
mod service;
mod wire;
mod wire_error;

pub use pool::{WorkerProgram, WorkerSettings, Workers};
pub use run::run_worker;
pub use service::SqlService;
