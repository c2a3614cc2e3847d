//! The service: a listener, the API behind it, and an orderly end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::connections::{Connections, connections_max};
use crate::http::{App, Door, Routing, Timeouts, router};
use crate::limits::{ACCEPT_RETRY, BASE_SUMS_EVERY, CONNECTION_BUFFER, KEEPALIVE_IDLE, LOAD_AGAIN_EVERY};
use crate::mirror::{Checkpoints, Registry, Uploads};
use crate::sync::libsql::LibSql;
#[cfg(feature = "turso")]
use crate::sync::turso::sql::{Sql, SqlSettings};
use crate::token::Token;
#[cfg(feature = "turso")]
use crate::worker::{SqlService, WorkerSettings, Workers};

/// A service that listens and is ready to [`run`](Server::run).
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    app: App,
    connections_max: usize,
    routing: Routing,
    token: Option<Token>,
}

impl Server {
    /// Binds `listen` (port 0 takes a free one).
    ///
    /// # Errors
    /// When the address cannot be had, or the system has no thread to spare.
    pub async fn bind(
        listen: &str,
        registry: Arc<Registry>,
        timeouts: Timeouts,
        connections_max: usize,
    ) -> io::Result<Server> {
        Server::on(TcpListener::bind(listen).await?, registry, timeouts, connections_max)
    }

    /// The same on a socket that is bound.
    ///
    /// # Errors
    /// When the system has no thread to spare.
    pub fn on(
        listener: TcpListener,
        registry: Arc<Registry>,
        timeouts: Timeouts,
        connections_max: usize,
    ) -> io::Result<Server> {
        let libsql = Arc::new(LibSql::new(registry.clone()));
        let checkpoints = Checkpoints::start(&registry, registry.settings().checkpoint_concurrency);
        #[cfg(feature = "turso")]
        let engines = Arc::new(crate::engine::Engines::new(registry.clone()));
        let app = App {
            #[cfg(feature = "turso")]
            sql: SqlService::here(Arc::new(Sql::with(engines, sql_settings(&timeouts))?)),
            registry,
            checkpoints: Mutex::new(Some(checkpoints)),
            uploads: Uploads::default(),
            libsql,
            timeouts,
            instance: uuid::Uuid::new_v4().to_string(),
        };
        Ok(Server { listener, app, connections_max, routing: Routing::default(), token: None })
    }

    /// Lets in only who has the token; everybody when there is none. `/health` stays open.
    #[must_use]
    pub fn with_token(self, token: Option<Token>) -> Server {
        Server { token, ..self }
    }

    /// Runs SQL in processes of its own, and none of it in this one: a statement that takes all memory, or overflows its
    /// stack, ends such a process then. The logs must be in a directory of the system.
    #[cfg(feature = "turso")]
    #[must_use]
    pub fn with_sql_workers(mut self, workers: WorkerSettings) -> Server {
        let sql = sql_settings(&self.app.timeouts);
        let workers = Workers::new(self.app.registry.clone(), workers, sql);
        self.app.sql = SqlService::in_workers(Arc::new(workers));
        self
    }

    /// More ways to reach a log than `/logs/NAME`.
    #[must_use]
    pub fn with_routing(self, routing: Routing) -> Server {
        Server { routing, ..self }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the socket cannot be asked.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes; then takes no more connections, ends streams without end, gives the rest of the
    /// requests a while, and makes everything taken durable.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let app = Arc::new(self.app);
        let counters = app.registry.counters().clone();
        let door = Arc::new(Door::new(router(app.clone()), self.routing, self.token, counters));
        let graceful = GracefulShutdown::new();
        let (phases, phase) = watch::channel(Phase::Serving);
        let closed = app.registry.counters().connections_closed.clone();
        let connections = Connections::new(connections_max(self.connections_max), closed);
        let mut loading = JoinSet::new();
        loading.spawn(load_again(app.registry.clone()));
        loading.spawn(make_base_sums(app.registry.clone()));
        let Timeouts { header, stall, drain, .. } = app.timeouts;
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(header).max_buf_size(CONNECTION_BUFFER);
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &connections) => accepted,
                () = &mut stop => break,
            };
            let (stream, peer, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: those who have one will give it back.
                    log::warn!("cannot accept a connection: {error}");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            prepare(&stream);
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(stall));
            let (door, asked) = (door.clone(), Arc::new(AtomicBool::new(false)));
            let open = connections.open_one(place);
            let counted = open.connection.clone();
            let cut_off = cut_off(phase.clone(), asked.clone());
            let service = service_fn(move |request| {
                asked.store(true, Ordering::Relaxed);
                let (door, counted) = (door.clone(), counted.request());
                async move { Ok::<_, Infallible>(door.answer(request, peer).await.map(|body| counted.body(body))) }
            });
            let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        log::debug!("a connection ended: {error}");
                    },
                    () = cut_off => {}
                    () = open.connection.closed() => {}
                }
                drop(open);
            });
        }
        drop(self.listener);
        loading.abort_all();
        phases.send_replace(Phase::Draining);
        app.registry.begin_stop();
        if timeout(drain, graceful.shutdown()).await.is_err() {
            log::warn!("some requests did not end within {} s and were cut off", drain.as_secs());
        }
        phases.send_replace(Phase::Over);
        let checkpoints = app.checkpoints.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(checkpoints) = checkpoints {
            checkpoints.stop().await;
        }
        let registry = app.registry.clone();
        if tokio::task::spawn_blocking(move || registry.stop()).await.is_err() {
            log::error!("stopping the writers failed");
        }
    }
}

#[cfg(feature = "turso")]
fn sql_settings(timeouts: &Timeouts) -> SqlSettings {
    let (stream_idle, statement_time_max) = (timeouts.stream, timeouts.statement);
    SqlSettings { stream_idle, statement_time_max, ..SqlSettings::default() }
}

/// How far a service is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    /// Requests may end; nothing else is waited for.
    Draining,
    Over,
}

/// Completes when a connection is to be dropped: one that never asked for anything, when the service drains; any, when
/// that is over.
async fn cut_off(mut phase: watch::Receiver<Phase>, asked: Arc<AtomicBool>) {
    let cut_off = |phase: &Phase| match phase {
        Phase::Serving => false,
        Phase::Draining => !asked.load(Ordering::Relaxed),
        Phase::Over => true,
    };
    // A service that is gone without a word is over too.
    let _ = phase.wait_for(cut_off).await;
}

/// Waits for a connection, then for a place: above the limit one client waits here, the others in the backlog.
async fn accept(
    listener: &TcpListener,
    connections: &Connections,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, connections.place().await))
}

/// Reads `log.json` again, now and then, of logs of which it could not be read.
async fn load_again(registry: Arc<Registry>) {
    loop {
        sleep(LOAD_AGAIN_EVERY).await;
        let registry = registry.clone();
        if tokio::task::spawn_blocking(move || registry.load_again()).await.is_err() {
            log::error!("reading log.json again failed");
        }
    }
}

/// Makes the checksums of bases that have none.
async fn make_base_sums(registry: Arc<Registry>) {
    loop {
        let making = registry.clone();
        if tokio::task::spawn_blocking(move || making.make_base_sums()).await.is_err() {
            log::error!("making the checksums of bases failed");
        }
        sleep(BASE_SUMS_EVERY).await;
    }
}

/// Small acks go out at once, and a peer that vanished is noticed even when nothing is sent to it.
fn prepare(stream: &TcpStream) {
    let prepared = stream.set_nodelay(true).and_then(|()| {
        set_socket_keepalive(stream, true)?;
        Ok(set_tcp_keepidle(stream, KEEPALIVE_IDLE)?)
    });
    if let Err(error) = prepared {
        log::debug!("a connection was not prepared: {error}");
    }
}
