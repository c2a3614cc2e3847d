//! `logmirror checkpoint`: roll a WAL log over.

use std::io::Write;

use clap::Args;
use logmirror::client::without_secrets;

use super::access::AccessArgs;
use super::exit::{Exit, printed};
use super::place::is_url;

/// Fold the frames of a WAL log of a service into the base of a new generation
#[derive(Args)]
pub(crate) struct CheckpointArgs {
    /// URL of the log (http://HOST/logs/NAME)
    url: String,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Tell it as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: CheckpointArgs) -> Exit {
    if !is_url(&args.url) {
        let text = format!(
            "{}: only the log of a service is rolled over (http://HOST/logs/NAME): to bound a directory that a database feeds, mirror the \
             database to a service whose log has a policy, and that log into the directory; or start a new directory",
            args.url
        );
        return Exit::Usage.because(text);
    }
    let client = match args.access.client(&args.url) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let outcome = match super::block_on(client.checkpoint(args.dry_run)) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => return Exit::of(&error).because_of(without_secrets(&args.url), error),
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout();
    let told = match (args.json, outcome.done) {
        (true, _) => serde_json::to_writer(&mut out, &outcome).map_err(Into::into).and_then(|()| writeln!(out)),
        (false, true) => writeln!(out, "{} frames folded: generation {} begins", outcome.frames, outcome.next),
        (false, false) if outcome.frames == 0 => writeln!(out, "nothing to fold in generation {}", outcome.generation),
        (false, false) => {
            writeln!(out, "{} frames would be folded, and generation {} would begin", outcome.frames, outcome.next)
        }
    };
    printed(told.map(|()| Exit::Done))
}
