//! `logmirror serve`: the service.

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;

use clap::Args;
use logmirror::config::{Config, Layer};
use logmirror::limits::THREADS_SPARE;
use logmirror::mirror::Registry;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use logmirror::system_limits;
#[cfg(feature = "turso")]
use logmirror::worker::{WorkerProgram, WorkerSettings};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use super::exit::Exit;
use super::output;
use super::stop::can_start_threads;
use super::wrong_place;

/// Run the service: keep logs in a directory, take appends and serve them
#[derive(Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    settings: Layer,
    /// TOML file with the same settings
    #[arg(long, value_name = "FILE", env = "LOGMIRROR_CONFIG")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: ServeArgs) -> Exit {
    output::end_promptly();
    let config = match Config::resolve(args.settings, args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return Exit::Usage.because(error),
    };
    if let Some(wrong) = wrong_place::not_a_data_directory(&config.data) {
        return Exit::Usage.because(wrong);
    }
    raise_open_files_limit();
    if let Err(error) = system_limits::open_files_suffice(config.sql_workers) {
        return Exit::Io.because(error);
    }
    let place = config.data.display().to_string();
    let data = match FsRepo::create(&config.data) {
        Ok(data) => Arc::new(data),
        Err(error) => return Exit::Io.because(data_error(&place, &error)),
    };
    let registry = match Registry::open(data, config.settings) {
        Ok(registry) => Arc::new(registry),
        Err(error) => return Exit::Io.because(data_error(&place, &error)),
    };
    output::count_in(registry.counters().lines_dropped.clone());
    super::block_on(serve(config, registry)).unwrap_or_else(|exit| exit)
}

async fn serve(config: Config, registry: Arc<Registry>) -> Exit {
    let listener = TcpListener::bind(&config.listen).await;
    let (address, listener) = match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
        Ok(bound) => bound,
        Err(error) => return Exit::Io.because(listen_error(&config.listen, &error)),
    };
    // Before anything runs that would find none left meanwhile.
    let threads = can_start_threads(THREADS_SPARE + available_parallelism().map_or(1, NonZero::get));
    let on = |()| Server::on(listener, registry.clone(), config.timeouts, config.connections_max);
    let server = match threads.and_then(on) {
        Ok(server) => {
            let server = server.with_token(config.token).with_routing(config.routing);
            #[cfg(feature = "turso")]
            let server = match NonZero::new(config.sql_workers) {
                Some(count) => {
                    let memory_bytes_max = config.sql_memory_max;
                    server.with_sql_workers(WorkerSettings { program: worker_program(), count, memory_bytes_max })
                }
                None => server,
            };
            output::out().put(format!("listening on http://{address}"));
            log::info!("{} logs in {}", registry.logs().len(), config.data.display());
            server
        }
        Err(error) => {
            let what = system_limits::met(&error).unwrap_or_default();
            return Exit::Io.because(format_args!("the service cannot start its threads: {what} ({error})"));
        }
    };
    let stop = match super::asked_to_drain() {
        Ok(stop) => {
            async move {
                stop.await;
                log::info!("shutting down");
            }
        }
        Err(exit) => return exit,
    };
    server.run(stop).await;
    Exit::Done
}

/// This program, also when its file was replaced meanwhile: both ends must be of one version.
#[cfg(feature = "turso")]
fn worker_program() -> WorkerProgram {
    let args = ["sql-worker", "--level", log::max_level().as_str()].map(str::to_owned);
    WorkerProgram { path: "/proc/self/exe".into(), args: args.into() }
}

/// Why a data directory cannot be used, and what to do about it.
fn data_error(place: &str, error: &io::Error) -> String {
    if let Some(what) = system_limits::met(error) {
        return format!("{place}: {what} ({error})");
    }
    let what = match error.kind() {
        io::ErrorKind::WouldBlock => {
            "in use by another process: is another `logmirror serve` running on it? end that, or give another with --data"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "this user cannot write there: make it writable, or give another directory with --data"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "this is no directory, or lies below a file: give a directory with --data"
        }
        _ => return format!("{place}: {error}"),
    };
    format!("{place}: {what} ({error})")
}

/// Why an address cannot be listened on, and what to do about it.
fn listen_error(listen: &str, error: &io::Error) -> String {
    if let Some(what) = system_limits::met(error) {
        return format!("{listen}: cannot listen there: {what} ({error})");
    }
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there already, maybe another `logmirror serve`: end it, or give another address with --listen"
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address: give another with --listen",
        io::ErrorKind::PermissionDenied => "this user may not listen there: give a port from 1024 on with --listen",
        _ => return format!("{listen}: cannot listen there: {error}"),
    };
    format!("{listen}: {what} ({error})")
}

/// A log in use has its segment and index open, and a client its socket: the soft limit of 1,024 would be met soon.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit on open files stays as it is: {error}");
    }
}
