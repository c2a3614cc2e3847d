//! `logmirror repair`: let a damaged log go on from the end of what is sound.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use logmirror::mirror::accept_loss;

use super::exit::{Exit, printed};

/// Let a log that is damaged, or shorter than its durable mark, go on from the end of what is sound. The service must not run
#[derive(Args)]
pub(crate) struct RepairArgs {
    /// Directory of the log (DATA/logs/NAME)
    dir: PathBuf,
    /// Do it: what is after that end is missing from here on. It is kept in aside/TIME-lost, with a record of what is missing
    #[arg(long)]
    accept_loss: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RepairArgs) -> Exit {
    let place = args.dir.display();
    let loss = match accept_loss(&args.dir, args.accept_loss) {
        Ok(loss) => loss,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Exit::Usage.because(error),
        Err(error) => return Exit::Io.because_of(place, error),
    };
    let mut out = io::stdout();
    let Some(loss) = loss else {
        let told = if args.json { writeln!(out, "null") } else { writeln!(out, "{place}: nothing to repair") };
        return printed(told.map(|()| Exit::Done));
    };
    let exit = if args.accept_loss { Exit::Done } else { Exit::Data };
    let told = if args.json {
        serde_json::to_writer(&mut out, &loss).map_err(Into::into).and_then(|()| writeln!(out))
    } else {
        let to = loss.to.filter(|to| *to > loss.from).map_or("the end".to_owned(), |to| to.to_string());
        let (from, reason, files) = (loss.from, &loss.reason, loss.aside.join(", "));
        let files = if files.is_empty() { "no file".to_owned() } else { files };
        match args.accept_loss {
            true => writeln!(
                out,
                "{place}: {reason}: offsets {from} to {to} are missing, set aside: {files}; the log goes on with {from}"
            ),
            false => writeln!(
                out,
                "{place}: {reason}: offsets {from} to {to} would be missing, set aside: {files}; nothing was changed, --accept-loss does it"
            ),
        }
    };
    printed(told.map(|()| exit))
}
