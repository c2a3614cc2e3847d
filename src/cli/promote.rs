//! `logmirror promote`: hand a log over to its clients.

use std::io::Write;

use clap::Args;
use logmirror::api::LogStatus;
use logmirror::client::without_secrets;

use super::access::AccessArgs;
use super::exit::{Exit, printed};

/// Hand a log of a service over from the mirror that feeds it to its clients, which may write it from then on; no mirror does
/// any more
#[derive(Args)]
pub(crate) struct PromoteArgs {
    /// URL of the log (http://HOST/logs/NAME)
    url: String,
    /// Print the status of the log as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: PromoteArgs) -> Exit {
    let client = match args.access.client(&args.url) {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let status = match super::block_on(client.promote()) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Exit::of(&error).because_of(without_secrets(&args.url), error),
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout();
    let written = match args.json {
        true => serde_json::to_writer(&mut out, &status).map_err(Into::into).and_then(|()| writeln!(out)),
        false => writeln!(out, "{}", in_words(&without_secrets(&args.url), &status)),
    };
    printed(written.map(|()| Exit::Done))
}

/// Who writes a log from now on.
pub(super) fn in_words(url: &str, status: &LogStatus) -> String {
    match (&status.promoted_from, status.durable) {
        (Some(from), Some(durable)) => {
            format!("{url}: clients write it from offset {durable} on; it follows {from} no more")
        }
        (Some(from), None) => format!("{url}: clients write it; it follows {from} no more"),
        (None, _) => format!("{url}: no mirror feeds it, clients write it"),
    }
}
