//! Requests for databases that only the client can read, which no log here is: to answer them as any other would store in the
//! clear what its owner takes to be encrypted.

use axum::extract::Request;
use axum::http::header::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::libsql::not_taken_for_an_end;
use super::reply::Failure;
use crate::mirror::Error;

/// With these a client says that it encrypts.
const FIELDS: [&str; 2] = ["x-turso-encryption-key", "x-turso-encryption-cipher"];

/// Refuses a request whose sender encrypts.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn refuse(headers: &HeaderMap) -> Result<(), Error> {
    match FIELDS.into_iter().find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::Invalid(format!("databases are not encrypted here: this service takes no {name}"))),
    }
}

/// Refuses it for a route.
pub(super) async fn refused(request: Request, next: Next) -> Response {
    match refuse(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Failure::from(error).into_response(),
    }
}

/// The same for pulls of the libSQL sync protocol.
pub(super) async fn refused_pull(request: Request, next: Next) -> Response {
    match refuse(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Failure::from(not_taken_for_an_end(error)).into_response(),
    }
}
