//! `logmirror sql-worker`: a process of a service, for SQL. Only `logmirror serve` starts it.

use std::io::{self, Write};

use clap::Args;
use env_logger::{Builder, WriteStyle};
use log::LevelFilter;
use logmirror::worker::run_worker;

use super::exit::Exit;

/// Run SQL for the service that started this
#[derive(Args)]
pub(crate) struct SqlWorkerArgs {
    /// Least level of what is logged
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::Info)]
    level: LevelFilter,
}

pub(crate) fn run(args: &SqlWorkerArgs) -> Exit {
    // The service reads these lines, and writes them as its own.
    let mut builder = Builder::new();
    builder.filter(None, args.level.min(LevelFilter::Warn)).filter(Some("logmirror"), args.level);
    builder.write_style(WriteStyle::Never);
    builder.format(|out, record| {
        let text = record.args().to_string().replace(['\n', '\r'], " ");
        writeln!(out, "{} {text}", record.level())
    });
    builder.init();
    match run_worker() {
        Ok(()) => Exit::Done,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Exit::Usage.because(error),
        Err(error) => Exit::Io.because(error),
    }
}
