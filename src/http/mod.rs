//! The API over HTTP. Each handler parses, makes one call, and replies; only `reply` names status codes.

mod append;
mod generations;
mod libsql;
mod metrics;
mod native;
mod paths;
mod range;
mod reply;

pub use paths::{App, Timeouts, router};
