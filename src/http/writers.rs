//! Who writes a log: `/logs/N/source`, `/logs/N/promote`, and the name that a mirror gives with what it sends.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::body;
use super::native::{Parsed, blocking, described, parse, query};
use super::paths::App;
use super::reply::Failure;
use crate::api::{FOLLOWER_FIELD, LogSource, LogStatus, SOURCE_FIELD};
use crate::mirror::{Error, Writer};

/// Bytes of the name of such a process, at most.
const FOLLOWER_MAX: usize = 64;

/// Whose commits or base a request brings.
pub(super) fn writer_of(headers: &HeaderMap) -> Result<Writer, Error> {
    let Some(field) = headers.get(SOURCE_FIELD) else {
        return Ok(Writer::Unnamed);
    };
    let text = field.to_str().ok().and_then(|text| percent_decode_str(text).decode_utf8().ok());
    let source = text.ok_or_else(|| Error::Invalid(format!("{SOURCE_FIELD} must be percent-encoded UTF-8")))?;
    Ok(Writer::Mirror { source: source.into_owned(), follower: follower_of(headers) })
}

/// The process that follows what a request brings something of.
fn follower_of(headers: &HeaderMap) -> Option<String> {
    let field = headers.get(FOLLOWER_FIELD)?.to_str().ok()?;
    Some(field.to_owned()).filter(|field| field.len() <= FOLLOWER_MAX)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceQuery {
    #[serde(default)]
    adopt: bool,
}

/// Notes what a mirror feeds the log from, and how far that was read.
pub(super) async fn set_source(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    request: Request,
) -> Result<Json<LogStatus>, Failure> {
    let name = parse(name)?;
    let SourceQuery { adopt } = query(request.uri())?;
    let example = r#"{"identity":"host:/srv/app.db","generation":1,"offset":1,"salts":[1,2],"frames":0,"checksum":"0123456789abcdef","log_checksum":"0123456789abcdef"}"#;
    let follower = follower_of(request.headers());
    let source: LogSource = body::json(request, app.timeouts.header, example).await?;
    let registry = app.registry.clone();
    let log = blocking(move || registry.set_source(&name, source, adopt, follower.as_deref())).await?;
    Ok(Json(described(&app, &log)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Hands the log over to its clients.
pub(super) async fn promote(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Json<LogStatus>, Failure> {
    let (name, Nothing {}, registry) = (parse(name)?, query(&uri)?, app.registry.clone());
    let log = blocking(move || registry.promote(&name)).await?;
    Ok(Json(described(&app, &log)))
}
