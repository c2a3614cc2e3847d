//! All routes in one table, and what every handler gets.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::map_request;
use axum::routing::{get, post, put};

use super::request_log::note_route;
use super::{append, checkpoint, generations, libsql, metrics, native, reply, writers};
use crate::limits::{self, JSON_BYTES_MAX};
use crate::mirror::{Checkpoints, Registry, Uploads};
use crate::sync::libsql::LibSql;

/// Patience with clients.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the head of a request, also on an idle connection, and for a small body.
    pub header: Duration,
    /// For the next byte of an append that stands on a boundary; the append ends well then.
    pub idle: Duration,
    /// Without a byte of a commit or another body that has begun; from then on it must also keep `min_rate`.
    pub commit: Duration,
    /// Bytes a second that a commit must keep once it took longer than `commit`.
    pub min_rate: NonZeroU64,
    /// For a reader to take any bytes at all.
    pub stall: Duration,
    /// For requests under way when the service shuts down.
    pub drain: Duration,
    /// For the next call on a stream of SQL; what is open in it is rolled back then.
    pub stream: Duration,
    /// For a statement of SQL to end.
    pub statement: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            header: limits::HEADER_TIMEOUT,
            idle: limits::IDLE_TIMEOUT,
            commit: limits::COMMIT_TIMEOUT,
            min_rate: limits::MIN_RATE,
            stall: limits::STALL_TIMEOUT,
            drain: limits::DRAIN_TIMEOUT,
            stream: limits::SQL_STREAM_IDLE,
            statement: limits::SQL_STATEMENT_TIME_MAX,
        }
    }
}

/// What every handler gets.
#[derive(Debug)]
pub struct App {
    /// The logs.
    pub registry: Arc<Registry>,
    /// Their checkpoints in the background; none once the service drains.
    pub checkpoints: Mutex<Option<Checkpoints>>,
    /// Commits and bases that are received in parts.
    pub uploads: Uploads,
    /// The libSQL sync protocol over them.
    pub libsql: Arc<LibSql>,
    /// SQL over them.
    #[cfg(feature = "turso")]
    pub sql: crate::worker::SqlService,
    /// Patience with clients.
    pub timeouts: Timeouts,
    /// Which running service this is: whoever reaches it by two URLs sees it.
    pub instance: String,
}

/// The API.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new();
    #[cfg(feature = "turso")]
    let routes = routes.merge(super::turso::routes());
    routes
        .route("/logs", get(native::list))
        .route("/logs/{log}", get(native::status).put(native::create))
        .route("/logs/{log}/commits", post(append::append).get(native::read))
        .route("/logs/{log}/segments", get(native::segments))
        .route("/logs/{log}/segments/{start}", get(native::segment))
        .route("/logs/{log}/checkpoint", post(checkpoint::roll).put(checkpoint::set_policy))
        .route("/logs/{log}/base", get(generations::read_base))
        .route("/logs/{log}/page-sums", get(generations::page_sums))
        .route("/logs/{log}/source", put(writers::set_source))
        .route("/logs/{log}/promote", post(writers::promote))
        .route("/logs/{log}/generations/{generation}", put(generations::start))
        .merge(libsql::routes())
        .route("/livez", get(native::livez))
        .route("/readyz", get(native::readyz))
        .route("/health", get(native::health))
        .route("/metrics", get(metrics::metrics))
        .fallback(reply::no_such_path)
        .method_not_allowed_fallback(reply::no_such_method)
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(map_request(note_route))
        .with_state(app)
}
