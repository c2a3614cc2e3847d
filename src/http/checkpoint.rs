//! `/logs/N/checkpoint`: roll a log over, or say when it is rolled over by itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Uri;
use serde::Deserialize;

use super::body;
use super::native::{Parsed, blocking, described, parse, query};
use super::paths::App;
use super::reply::Failure;
use crate::api::{CheckpointOutcome, CheckpointPolicy, LogStatus};

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
    let example = r#"{"policy":"keep"} or {"policy":"roll","frames":20000,"keep":2}"#;
    let policy: CheckpointPolicy = body::json(request, app.timeouts.header, example).await?;
    let registry = app.registry.clone();
    let log = blocking(move || {
        let log = registry.set_policy(&name, policy)?;
        registry.prune_now(&name);
        Ok(log)
    });
    let log = log.await?;
    Ok(Json(described(&app, &log)))
}
