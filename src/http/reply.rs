//! Answers: the one place that names status codes.

use axum::Json;
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::conditional::Validators;
use super::request_log::Refusal;
use crate::api::ErrorBody;
use crate::mirror::Error;
use crate::offset::Offset;

/// Asks nginx, and others that know it, to pass an answer on as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: &str = "1";

/// An error on its way out; an append's carries the durable end of the log.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) next: Option<Offset>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, next: None }
    }
}

impl From<(Error, Offset)> for Failure {
    fn from((error, next): (Error, Offset)) -> Self {
        Failure { error, next: Some(next) }
    }
}

impl Failure {
    /// The JSON of it.
    pub(super) fn body(&self) -> ErrorBody {
        let (error, message) = (self.error.code().to_owned(), self.error.to_string());
        let mut body = ErrorBody { error, message, next: self.next, ..ErrorBody::default() };
        match &self.error {
            Error::Gap { expected, .. } => body.next = Some(*expected),
            Error::Ahead { next, .. } => body.next = Some(*next),
            Error::Fork { at } | Error::StaleEpoch { at, .. } => body.at = Some(*at),
            Error::Pruned { first, .. } => body.first = Some(*first),
            // Its end is not where the current one goes on.
            Error::Ended { current, .. } => (body.next, body.generation) = (None, Some(*current)),
            Error::PartMissing { received } => body.received = Some(*received),
            Error::Corrupt { offset, .. } | Error::Truncated { offset, .. } => body.offset = *offset,
            _ => {}
        }
        body
    }
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::Invalid(_) => StatusCode::BAD_REQUEST,
        Error::NotFound(_) => StatusCode::NOT_FOUND,
        Error::Gap { .. }
        | Error::Fork { .. }
        | Error::OtherBase { .. }
        | Error::StaleEpoch { .. }
        | Error::Ahead { .. }
        | Error::Format(_)
        | Error::PartMissing { .. }
        | Error::Mirrored { .. }
        | Error::Fed { .. }
        | Error::TakenOver { .. }
        | Error::Promoted { .. }
        | Error::Ended { .. } => StatusCode::CONFLICT,
        Error::Pruned { .. } | Error::GenerationGone { .. } => StatusCode::GONE,
        Error::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Corrupt { .. } | Error::Truncated { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Error::Damaged(_) | Error::Aborted(_) => StatusCode::INTERNAL_SERVER_ERROR,
        Error::Unavailable(_) | Error::Failed(_) | Error::InDoubt(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = status(&self.error);
        let mut response = refused(status, self.body());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

/// An answer with an error, whose code and reason also go into the request's log line.
fn refused(status: StatusCode, body: ErrorBody) -> Response {
    let refusal = Refusal::from(&body);
    let mut response = (status, Json(body)).into_response();
    response.extensions_mut().insert(refusal);
    response
}

/// A new thing, or one that was there.
pub(super) fn created(new: bool, body: impl serde::Serialize) -> Response {
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    (status, Json(body)).into_response()
}

/// Something was taken that is not whole yet.
pub(super) fn accepted(body: impl serde::Serialize) -> Response {
    (StatusCode::ACCEPTED, Json(body)).into_response()
}

/// Nothing to say.
#[cfg(feature = "turso")]
pub(super) fn nothing() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Whether it works, and what is wrong.
pub(super) fn health(works: bool, problems: &[String]) -> Response {
    let status = if works { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match problems {
        [] => (status, "ok\n").into_response(),
        problems => (status, problems.join("\n") + "\n").into_response(),
    }
}

/// The client has it already.
pub(super) fn not_modified(validators: &Validators, cache: &'static str) -> Result<Response, Failure> {
    let cache = HeaderValue::from_static(cache);
    Ok((StatusCode::NOT_MODIFIED, [(ETAG, header(validators.etag())?), (CACHE_CONTROL, cache)]).into_response())
}

/// The body of a request is compressed.
#[cfg(feature = "turso")]
pub(super) fn unknown_encoding() -> Response {
    let text = "the body has a Content-Encoding: send it as it is, without compression";
    let failure = Failure::from(Error::Invalid(text.into()));
    let mut response = refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, failure.body());
    response.headers_mut().insert(axum::http::header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

/// The client wanted another one than there is.
pub(super) fn precondition_failed(etag: &str) -> Response {
    let error = Error::Invalid(format!("this is {etag}, and not what If-Match or If-Unmodified-Since asks for"));
    refused(StatusCode::PRECONDITION_FAILED, Failure::from(error).body())
}

/// An answer with what proxies and caches between us and the client must know: that it is passed on as it comes, and is
/// neither changed nor kept; unless the handler says otherwise, as for the segment that never changes. Where clients need
/// a token, what one was given is not for others.
pub(super) fn for_proxies(mut response: Response, needs_token: bool) -> Response {
    let fields = response.headers_mut();
    let cache = match fields.get(CACHE_CONTROL).and_then(|value| value.to_str().ok()) {
        Some(cache) if needs_token => format!("{}, no-transform", cache.replace("public", "private")),
        Some(cache) => format!("{cache}, no-transform"),
        None => {
            fields.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
            fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
            return response;
        }
    };
    if let Ok(cache) = HeaderValue::try_from(cache) {
        fields.insert(CACHE_CONTROL, cache);
    }
    response
}

/// Text made here as the value of a header. It can only fail for an id in `log.json` that we did not write.
pub(super) fn header(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text).map_err(|_| Error::Invalid(format!("{text:?} cannot stand in a header")).into())
}

/// No frame at the start of what was asked for: to clients of the libSQL protocol a 400 with a generation in it.
pub(super) fn nothing_to_pull(body: &serde_json::Value) -> Response {
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// A range that the file does not have.
pub(super) fn no_such_range(bytes: u64) -> Response {
    let range = HeaderValue::try_from(format!("bytes */{bytes}")).into_iter().map(|value| (CONTENT_RANGE, value));
    let headers: HeaderMap = range.collect();
    let error = Error::Invalid(format!("there is no such range in {bytes} bytes"));
    let mut response = refused(StatusCode::RANGE_NOT_SATISFIABLE, Failure::from(error).body());
    response.headers_mut().extend(headers);
    response
}

/// Part of a file.
pub(super) const PARTIAL: StatusCode = StatusCode::PARTIAL_CONTENT;

/// No token, or another one. Which of the two its sender knows anyhow.
pub(super) fn unauthorized(headers: &HeaderMap) -> Response {
    let what = if headers.contains_key(AUTHORIZATION) {
        "the token that was sent is not the one of this service"
    } else {
        "this service asks for a token, and none was sent"
    };
    let message = format!(
        "{what}: give it with --token-file FILE, LOGMIRROR_TOKEN, or in other clients as `Authorization: Bearer TOKEN`"
    );
    let body = ErrorBody { error: "unauthorized".to_owned(), message, ..ErrorBody::default() };
    let mut response = refused(StatusCode::UNAUTHORIZED, body);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

pub(super) async fn no_such_path(uri: Uri) -> Failure {
    // A client that resolves `v2/pipeline` against its URL loses the name of the log.
    let lost_name = uri.path().starts_with("/logs/v2/") || uri.path().starts_with("/logs/v3");
    let hint = if lost_name { "; this client needs the slash at the end of its URL: /logs/NAME/" } else { "" };
    Error::NotFound(format!("there is nothing at {}: a log is at /logs/NAME{hint}", uri.path())).into()
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let error = Error::Invalid(format!("{} does not take {method}", uri.path()));
    refused(StatusCode::METHOD_NOT_ALLOWED, Failure::from(error).body())
}
