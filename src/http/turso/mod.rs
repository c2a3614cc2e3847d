//! The Turso sync protocol over HTTP, under a log's URL: what its calls have in common.
//!
//! Browsers may call from anywhere: what they need is to be told so (CORS), also in what they ask before a call, which
//! carries no token.

pub(super) mod pull;
pub(super) mod sql;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CONTENT_ENCODING, HeaderMap,
    HeaderValue,
};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::options;

use super::encryption;
use super::paths::App;
use super::reply::{self, Failure};

/// What is asked of a log by this protocol.
const CALLS: [&str; 6] = ["pull-updates", "v2", "v2/pipeline", "v3", "v3/pipeline", "v3/cursor"];

/// Its routes.
pub(super) fn routes() -> Router<Arc<App>> {
    let preflights = CALLS.into_iter().fold(Router::new(), |routes, call| {
        routes.route(&format!("/logs/{{log}}/{call}"), options(|| async { reply::nothing() }))
    });
    preflights.merge(pull::routes()).merge(sql::routes()).route_layer(middleware::from_fn(common))
}

/// Whether this is a path of the protocol.
pub(super) fn is_call(path: &str) -> bool {
    let call = path.strip_prefix("/logs/").and_then(|path| path.split_once('/'));
    call.is_some_and(|(_log, call)| CALLS.contains(&call))
}

/// Lets browsers read an answer, whoever's page they show. No cookies are at stake: what is secret here is a token.
pub(super) fn allow_origins(fields: &mut HeaderMap) {
    fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
}

/// Whether the body is compressed, or something else than what it says.
fn is_encoded(request: &Request) -> bool {
    request
        .headers()
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// What every call gets.
async fn common(request: Request, next: Next) -> Response {
    let asked = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = match encryption::refuse(request.headers()) {
        Ok(()) if is_encoded(&request) => reply::unknown_encoding(),
        Ok(()) => next.run(request).await,
        Err(error) => Failure::from(error).into_response(),
    };
    let fields = response.headers_mut();
    allow_origins(fields);
    fields.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    // "*" does not stand for Authorization, so what was asked for is named.
    fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HeaderValue::from_static("*")));
    fields.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}
