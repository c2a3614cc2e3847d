//! [`Connections`]: how many connections a service has at once, and which idle one goes when another client waits.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use hyper::body::{Body as _, Frame, SizeHint};
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::{
    ALL_BUSY_AFTER, ALL_BUSY_EVERY, FILES_OWN, FILES_PER_CONNECTION, FILES_RESERVED_MAX, IDLE_BEFORE_CLOSED,
    MAKE_ROOM_EVERY,
};

/// How many connections there may be at once: what is wanted, or what the limit of open files allows. Each may have a file
/// of the log it reads open besides its socket, or the files of a log that it appends to.
pub(crate) fn connections_max(wanted: usize) -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else {
        return wanted;
    };
    let each_appends = files.saturating_sub(FILES_OWN) / FILES_PER_CONNECTION;
    let most_read = files.saturating_sub(FILES_RESERVED_MAX) / 2;
    let allowed = usize::try_from(each_appends.max(most_read)).unwrap_or(usize::MAX).max(1);
    if allowed < wanted {
        log::warn!("{allowed} connections at once, not {wanted}: the process may open {files} files (ulimit -n)");
    }
    allowed.min(wanted)
}

/// The connections of a service.
#[derive(Debug)]
pub(crate) struct Connections {
    places: Arc<Semaphore>,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    opened: AtomicU64,
    max: usize,
    /// When it was last reported that clients wait.
    reported: Mutex<Option<Instant>>,
    closed: prometheus_client::metrics::counter::Counter,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Requests whose answers have not ended.
    requests: AtomicUsize,
    /// Since when it has none.
    idle_since: Mutex<Instant>,
    close: Notify,
}

impl Connections {
    /// At most `max` at once; `closed` counts those that were closed to make room.
    pub(crate) fn new(max: usize, closed: prometheus_client::metrics::counter::Counter) -> Arc<Connections> {
        let places = Arc::new(Semaphore::new(max));
        let (open, reported) = (Mutex::default(), Mutex::default());
        Arc::new(Connections { places, open, opened: AtomicU64::new(0), max, reported, closed })
    }

    /// Waits for a place for another connection. While there is none, connections that have been idle for a moment are
    /// closed, the longest idle first: clients that ask for nothing never keep others out.
    pub(crate) async fn place(&self) -> OwnedSemaphorePermit {
        let since = Instant::now();
        loop {
            let place = self.places.clone().acquire_owned();
            if let Ok(Ok(place)) = timeout(Duration::ZERO, place).await {
                return place;
            }
            self.close_idle();
            if let Ok(Ok(place)) = timeout(MAKE_ROOM_EVERY, self.places.clone().acquire_owned()).await {
                return place;
            }
            if since.elapsed() >= ALL_BUSY_AFTER {
                self.report_all_busy();
            }
        }
    }

    /// Reports, now and then, that clients wait.
    fn report_all_busy(&self) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_none_or(|at| at.elapsed() >= ALL_BUSY_EVERY) {
            *reported = Some(Instant::now());
            log::warn!(
                "all {} connections are busy: new clients wait until one ends (--connections-max, ulimit -n)",
                self.max
            );
        }
    }

    fn close_idle(&self) {
        let open = self.open();
        let idle = open.values().filter_map(|connection| Some((connection.idle_for()?, connection)));
        if let Some((for_long, connection)) = idle.max_by_key(|(idle, _)| *idle)
            && for_long >= IDLE_BEFORE_CLOSED
        {
            log::debug!("a connection that was idle for {} ms is closed to make room", for_long.as_millis());
            self.closed.inc();
            connection.close.notify_one();
        }
    }

    /// Registers a connection until the guard is dropped.
    pub(crate) fn open_one(self: &Arc<Self>, place: OwnedSemaphorePermit) -> OpenConnection {
        let id = self.opened.fetch_add(1, Ordering::Relaxed);
        let idle_since = Mutex::new(Instant::now());
        let connection = Arc::new(Connection { requests: AtomicUsize::new(0), idle_since, close: Notify::new() });
        self.open().insert(id, connection.clone());
        OpenConnection { all: self.clone(), id, connection, _place: place }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// For how long it has been idle; none while it has requests.
    fn idle_for(&self) -> Option<Duration> {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.requests.load(Ordering::Acquire) == 0).then(|| since.elapsed())
    }

    /// Completes when it should be closed.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Counts a request until its answer's body, which carries the guard, is dropped.
    pub(crate) fn request(self: &Arc<Self>) -> Request {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Request(self.clone())
    }
}

/// A connection that is open; it gives its place back when dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    all: Arc<Connections>,
    id: u64,
    pub(crate) connection: Arc<Connection>,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.all.open().remove(&self.id);
    }
}

/// A request whose answer has not ended.
#[derive(Debug)]
pub(crate) struct Request(Arc<Connection>);

impl Request {
    /// The body of its answer.
    pub(crate) fn body(self, body: Body) -> Body {
        if body.is_end_stream() { body } else { Body::new(Answering { body, _request: self }) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body that keeps its request counted.
struct Answering {
    body: Body,
    _request: Request,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
