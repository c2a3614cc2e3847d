//! `logmirror restore`: a database as of a transaction.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use logmirror::checkpoint::{FoldError, Folded, RestoreError, Wanted, draft_path, restore_dir, restore_url};
use logmirror::client::Client;
use logmirror::offset::{Generation, Offset};
use serde_json::{Value, json};

use super::access::AccessArgs;
use super::exit::{Exit, printed};
use super::place::is_url;
use super::stop::unless_stopped;

/// Write the database of a WAL log as of a transaction into a plain file that SQLite opens
#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// Directory of a log or of one generation, or URL of a log (http://HOST/logs/NAME)
    #[arg(value_name = "DIR|URL")]
    source: String,
    /// The database file to make
    #[arg(value_name = "OUT.db")]
    out: PathBuf,
    /// The frame that ends the transaction [default: the last; 0: the start of the generation]
    #[arg(long, value_name = "FRAME")]
    to: Option<Offset>,
    /// The generation [default: the current one]
    #[arg(long, value_name = "G")]
    generation: Option<Generation>,
    /// Replace OUT.db if it exists and is a SQLite database
    #[arg(long)]
    force: bool,
    /// Leave out the tables that the SQL engine keeps for AUTOINCREMENT beside SQLite's own sqlite_sequence
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    access: AccessArgs,
    /// Tell the result, or what went wrong, as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: RestoreArgs) -> Exit {
    let RestoreArgs { source, out, to, generation, force, plain, access, json } = args;
    let client = match is_url(&source).then(|| access.client(&source)).transpose() {
        Ok(client) => client,
        Err(exit) => return exit,
    };
    let wanted = Wanted { to, generation, out, overwrite: force, plain };
    let result = super::block_on(async {
        let stop = super::asked_to_stop()?;
        tokio::select! {
            result = restore(source, client, wanted.clone()) => Ok(result),
            () = stop => interrupted(&wanted.out),
        }
    });
    match result {
        Ok(Ok(Ok((generation, folded)))) => {
            let told = unless_stopped(move || tell(&wanted.out, generation, &folded, json));
            told.map_or_else(|| Exit::Io.because("interrupted: the database was restored"), printed)
        }
        Ok(Ok(Err(error))) => failed(&error),
        Ok(Err(exit)) | Err(exit) => exit,
    }
}

async fn restore(
    source: String,
    client: Option<Client>,
    wanted: Wanted,
) -> Result<(Option<Generation>, Folded), RestoreError> {
    if let Some(client) = client {
        return restore_url(&client, &wanted).await;
    }
    let place = source.clone();
    let restoring = tokio::task::spawn_blocking(move || restore_dir(Path::new(&source), &wanted));
    match restoring.await {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        restored => {
            restored.unwrap_or_else(|error| Err(RestoreError::Io { place, error: std::io::Error::other(error) }))
        }
    }
}

/// The thread that writes cannot be told to stop: the process ends under it.
fn interrupted<T>(out: &Path) -> Result<T, Exit> {
    if let Ok(draft) = draft_path(out) {
        let _ = std::fs::remove_file(draft);
    }
    Exit::Io.because("interrupted: nothing was restored").at_once()
}

fn tell(out: &Path, generation: Option<Generation>, folded: &Folded, as_json: bool) -> std::io::Result<Exit> {
    let Folded { frame, page_size, bytes, torn } = folded;
    let mut stdout = std::io::stdout().lock();
    if as_json {
        let told = json!({"out": out.display().to_string(), "generation": generation, "frame": frame,
            "page_size": page_size, "bytes": bytes, "torn": torn});
        writeln!(stdout, "{told}")?;
    } else {
        let of = generation.map(|generation| format!(" of generation {generation}")).unwrap_or_default();
        writeln!(stdout, "{} is the database as of frame {frame}{of}: {bytes} bytes", out.display())?;
    }
    if *torn > 0 {
        eprintln!("note: the log ends in {torn} bytes that are no whole transaction, as a crash leaves them: left out");
    }
    Ok(Exit::Done)
}

fn failed(error: &RestoreError) -> Exit {
    let exit = match error {
        error if error.is_usage() => Exit::Usage,
        error if error.is_data() => Exit::Data,
        _ => Exit::Io,
    };
    let more = match error {
        RestoreError::Fold(FoldError::NotACommit { before, after, .. }) => json!({"before": before, "after": after}),
        _ => Value::Null,
    };
    match whole_up_to(error) {
        Some(last) => {
            let advice = match error {
                // It says what to do on the service.
                RestoreError::SourceDamaged { .. } => "",
                _ => "; put back what is missing from a sound copy, or mirror the source again",
            };
            let text = format!("{error}{advice}; --to {last} restores what is whole");
            exit.because_code(error.code(), text, more)
        }
        None => {
            let advice = match error {
                RestoreError::Fold(FoldError::NotACommit { after: None, .. }) => {
                    "; frames count from 1 in each generation, and --generation names an earlier one"
                }
                _ => "",
            };
            exit.because_code(error.code(), format_args!("{error}{advice}"), more)
        }
    }
}

/// The last transaction that a damaged log still has.
fn whole_up_to(error: &RestoreError) -> Option<Offset> {
    match error {
        RestoreError::Fold(FoldError::Lost { last, .. } | FoldError::Gap { last, .. }) => Some(*last),
        RestoreError::SourceDamaged { at: Some(at), .. } => at.0.checked_sub(1).map(Offset),
        RestoreError::Fold(error @ FoldError::Damaged { last, .. }) if error.is_data() => Some(*last),
        _ => None,
    }
}
