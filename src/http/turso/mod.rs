//! The Turso sync protocol over HTTP, under a log's URL: what its calls have in common.

pub(super) mod pull;
pub(super) mod sql;

use std::sync::Arc;

use axum::Router;

use super::paths::App;

/// Its routes.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().merge(pull::routes()).merge(sql::routes())
}
