//! The API over HTTP. Each handler parses, makes one call, and replies; only `reply` names status codes.

mod append;
mod body;
mod checkpoint;
mod conditional;
mod door;
mod encryption;
mod generations;
mod libsql;
mod metrics;
mod native;
mod pace;
mod paths;
mod range;
mod reply;
mod request_log;
mod route;
#[cfg(feature = "turso")]
mod turso;
mod unread;
mod upload;
mod writers;

pub(crate) use door::Door;
pub use paths::{App, Timeouts, router};
pub use request_log::REQUESTS;
pub use route::Routing;
