//! `GET /metrics`: where every log stands, as Prometheus text.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::paths::App;
use super::reply::Failure;
use crate::api::{LogState, LogStatus};
use crate::mirror::{Checkpoints, Error};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    log: String,
}

type PerLog = Family<Labels, Gauge<u64, AtomicU64>>;

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let logs: Vec<LogStatus> = app.registry.logs().iter().map(|log| log.status()).collect();
    let mut registry = Registry::with_prefix("logmirror");
    let mut gauge = |name: &str, help: &str, unit: Option<Unit>, value: fn(&LogStatus) -> Option<u64>| {
        let family = PerLog::default();
        // A position that is not known has no sample.
        for (log, value) in logs.iter().filter_map(|log| Some((log, value(log)?))) {
            family.get_or_create(&Labels { log: log.log.clone() }).set(value);
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    };
    gauge("durable_offset", "Offset after the last durable commit", None, |log| log.durable.map(|at| at.0));
    gauge("appended_offset", "Offset after the last commit appended", None, |log| log.next.map(|at| at.0));
    gauge("first_offset", "First offset of the log", None, |log| log.first.map(|at| at.0));
    gauge("epoch", "Term of the last durable commit", None, |log| log.epoch.map(|epoch| epoch.0));
    gauge("segments", "Segments of the log", None, |log| log.segments);
    gauge("log_size", "Durable bytes of the log", Some(Unit::Bytes), |log| log.bytes);
    gauge("usable", "1 while the log can be written and read", None, |log| Some(u64::from(log.state == LogState::Ok)));
    gauge("base_unproven", "1 while nothing vouches for the base of the log", None, |log| {
        log.base.as_ref().map(|base| u64::from(base.unproven))
    });
    app.registry.counters().register(&mut registry);
    let checkpoints = app.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((succeeded, failed, alarms)) = checkpoints.as_ref().map(Checkpoints::counts) {
        let mut number = |name: &str, help: &str, value: u64| {
            let gauge = Gauge::<u64, AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        };
        number("checkpoints_succeeded", "Checkpoints by policy that ended well", succeeded);
        number("checkpoints_failed", "Checkpoints by policy that failed", failed);
        number("checkpoint_alarms", "Logs whose checkpoints fail over and over", alarms);
    }
    drop(checkpoints);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| Error::Unavailable(format!("metrics: {error}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
