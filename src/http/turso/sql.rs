//! To come.

use std::sync::Arc;

use axum::Router;

use crate::http::paths::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
}
