//! `logmirror serve`: the service.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use logmirror::config::{Config, Layer};
use logmirror::mirror::Registry;
use logmirror::repo::FsRepo;
use logmirror::server::Server;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::exit::Exit;

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
    let config = match Config::resolve(args.settings, args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return Exit::Usage.because(error),
    };
    raise_open_files_limit();
    let place = config.data.display().to_string();
    let data = match FsRepo::create(&config.data) {
        Ok(data) => Arc::new(data),
        Err(error) => return Exit::Io.because_of(place, error),
    };
    let registry = match Registry::open(data, config.settings) {
        Ok(registry) => Arc::new(registry),
        Err(error) => return Exit::Io.because_of(place, error),
    };
    super::block_on(serve(config, registry)).unwrap_or_else(|exit| exit)
}

async fn serve(config: Config, registry: Arc<Registry>) -> Exit {
    let server = Server::bind(&config.listen, registry.clone(), config.timeouts, config.connections_max).await;
    let server = match server.and_then(|server| Ok((server.address()?, server))) {
        Ok((address, server)) => {
            let server = server.with_token(config.token).with_routing(config.routing);
            let mut out = std::io::stdout();
            if writeln!(out, "listening on http://{address}").and_then(|()| out.flush()).is_err() {
                log::debug!("nobody reads our standard output");
            }
            log::info!("{} logs in {}", registry.logs().len(), config.data.display());
            server
        }
        Err(error) => return Exit::Io.because_of(config.listen, error),
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

/// A log in use has its segment and index open, and a client its socket: the soft limit of 1,024 would be met soon.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit on open files stays as it is: {error}");
    }
}
