//! `logmirror repair`: let a damaged log go on from the end of what is sound.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use logmirror::mirror::{NewDescription, accept_loss, describe_again, on_opening};
use logmirror::segment::base::BaseFault;

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
    match describe_again(&args.dir, args.accept_loss) {
        Ok(None) => {}
        Ok(Some(described)) => {
            let told = tell_description(args, &described);
            if !args.accept_loss || told.is_err() {
                return printed(told.map(|()| Exit::Data));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Exit::Usage.because(error),
        Err(error) => return Exit::Io.because_of(place, error),
    }
    let loss = match accept_loss(&args.dir, args.accept_loss) {
        Ok(loss) => loss,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Exit::Usage.because(error),
        Err(error) if BaseFault::of(&error).is_some() => return Exit::Data.because(base_advice(&error)),
        Err(error) => return Exit::Io.because_of(place, error),
    };
    let mut out = io::stdout();
    let Some(loss) = loss else {
        let told = if args.json {
            writeln!(out, "null")
        } else {
            match on_opening_of(&args.dir) {
                Some(text) => writeln!(out, "{place}: nothing to repair; the service, when it starts, {text}"),
                None => writeln!(out, "{place}: nothing to repair"),
            }
        };
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
            true if loss.lossless => {
                writeln!(out, "{place}: {reason}: set aside: {files}; nothing is missing, the log ends with {from}")
            }
            false if loss.lossless => writeln!(
                out,
                "{place}: {reason}: {files}: the log is whole without; nothing was changed, --accept-loss sets it aside"
            ),
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

/// What to do about a base: nobody but its source, or a copy, knows what it was.
fn base_advice(error: &io::Error) -> String {
    let what = match BaseFault::of(error) {
        Some(BaseFault::Sums { .. }) => "put base.sums back, or remove it: the service makes it again",
        _ => "put base.db back from a backup or another mirror of this log",
    };
    format!(
        "{error}: repair cannot make up what it was, and changed nothing: {what}, or mirror the source into a new log"
    )
}

fn tell_description(args: &RepairArgs, described: &NewDescription) -> io::Result<()> {
    let mut out = io::stdout();
    if args.json {
        serde_json::to_writer(&mut out, described)?;
        return writeln!(out);
    }
    let NewDescription { reason, format, generation, first, id, .. } = described;
    let (verb, end) = match args.accept_loss {
        true => ("was", ""),
        false => ("can be", "; nothing was changed, --accept-loss does it"),
    };
    let id = if args.accept_loss { format!("the new id {id}") } else { "a new id".to_owned() };
    writeln!(
        out,
        "{reason}: it {verb} written again from the files: a {format}, generation {generation}, first offset {first}, with {id} and \
         no checkpoint policy{end}"
    )
}

/// What a service would do with the current generation of the log in `dir`.
fn on_opening_of(dir: &Path) -> Option<String> {
    let found = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.filter(|path| path.is_dir()).find_map(|path| on_opening(&path).ok().flatten())
}
