//! `/logs/N/checkpoint`: roll a log over, or say when it is rolled over by itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::Uri;
use serde::Deserialize;
use tokio::time::timeout;

use super::native::{Parsed, blocking, parse, query, with_checkpoints};
use super::paths::App;
use super::reply::Failure;
use crate::api::{CheckpointOutcome, CheckpointPolicy, LogStatus};
use crate::mirror::Error;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointQuery {
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn roll(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    uri: Uri,
) -> Result<Json<CheckpointOutcome>, Failure> {
    let (name, CheckpointQuery { dry_run }, registry) = (parse(name)?, query(&uri)?, app.registry.clone());
    Ok(Json(blocking(move || registry.checkpoint(&name, dry_run)).await?))
}

pub(super) async fn set_policy(
    State(app): State<Arc<App>>,
    name: Parsed<String>,
    request: Request,
) -> Result<Json<LogStatus>, Failure> {
    let name = parse(name)?;
    let body = timeout(app.timeouts.header, axum::body::Bytes::from_request(request, &()));
    let late = |_elapsed| Error::Invalid("the body did not come in time (--header-timeout)".into());
    let policy = body.await.map_err(late)?.map_err(|rejection| Error::Invalid(rejection.body_text()))?;
    let policy: CheckpointPolicy = serde_json::from_slice(&policy).map_err(|error| {
        let wanted = r#"{"policy":"keep"} or {"policy":"roll","frames":20000,"keep":2}"#;
        Error::Invalid(format!("{error}; wanted is {wanted}"))
    })?;
    let registry = app.registry.clone();
    let log = blocking(move || registry.set_policy(&name, policy)).await?;
    Ok(Json(with_checkpoints(&app, log.status())))
}
