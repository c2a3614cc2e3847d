//! The API over HTTP. Each handler parses, makes one call, and replies; only `reply` names status codes.

mod append;
mod door;
mod metrics;
mod native;
mod paths;
mod range;
mod reply;
mod route;

pub(crate) use door::Door;
pub use paths::{App, Timeouts, router};
pub use route::Routing;
