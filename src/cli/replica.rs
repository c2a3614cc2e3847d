//! `logmirror replica`: an offline-first replica.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use logmirror::limits;
use logmirror::replica::{Action, Options, Rounds};

use super::access::AccessArgs;
use super::exit::{Exit, with_causes};
use super::output;
use super::rounds::Teller;

/// Keep an offline-first replica: bring the changes of a database here to a remote, and the remote's home
///
/// P-draft is the database: while this command is not at it, any program may use it with SQLite or Turso, without a
/// network. If there is no replica at P it is made of all that the remote has.
///
/// A change that meets with what others did is a conflict: what was done about it is told, a line each, and the exit code is
/// still 0. 1 means that the data is at fault, or that status found no replica; 2 usage, also a wrong token;
/// 3 disk, network, or that the draft is in use.
#[derive(Args)]
pub(crate) struct ReplicaArgs {
    /// Path of the replica: its files are P-draft, P-synced and P-info, with the WALs of the first two
    #[arg(value_name = "P")]
    path: PathBuf,
    /// URL of the remote: http://HOST/logs/NAME, or what other servers call their sync URL; also libsql+http://,
    /// libsql+https:// and libsql://
    url: String,
    /// What to do
    #[arg(value_enum, default_value_t = Action::Sync)]
    action: Action,
    /// Do it again and again with this pause, as in 500ms, 5s, 2m or 1h, until stopped by SIGTERM or SIGINT (exit code 0).
    /// The replica is closed in the pause, so that programs may open P-draft; what may pass, as a network that is away or
    /// a draft in use, is told and tried again
    #[arg(long, value_name = "PAUSE", value_parser = pause)]
    every: Option<Duration>,
    /// Tell what came of each round as one JSON object a line
    #[arg(long)]
    json: bool,
    /// Set the files of the replica aside, changes that were not pushed included, and make it anew
    #[arg(long)]
    rebuild: bool,
    /// If the replica is made now and the remote cannot be reached, make an empty one: programs can write it, and what the
    /// remote has comes with the first pull, push or sync that reaches it
    #[arg(long)]
    start_offline: bool,
    /// What the name under which the remote knows this replica starts with; used when it is made
    #[arg(long, value_name = "NAME", default_value_t = Options::default().client_name)]
    client_name: String,
    /// Frames in one request
    #[arg(long, value_name = "FRAMES", default_value_t = limits::REPLICA_PULL_BATCH, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: ReplicaArgs) -> Exit {
    let ReplicaArgs { path, url, action, every, json, rebuild, start_offline, client_name, batch, access } = args;
    if rebuild && action == Action::Status {
        return Exit::Usage.because("--rebuild makes the replica anew, and status only looks at it");
    }
    let remote = match access.remote(&url) {
        Ok(remote) => remote,
        Err(exit) => return exit,
    };
    if every.is_some() {
        output::end_promptly();
    }
    let options = Options { client_name, wal_pull_batch_size: batch, start_offline, rebuild, ..Options::default() };
    let rounds = Rounds { path, remote, options, action, every };
    let teller = Arc::new(Teller::new(action, json));
    let watch = teller.clone();
    let result = super::block_on(async {
        let stop = super::asked_to_stop()?;
        tokio::select! {
            result = logmirror::replica::run(&rounds, Arc::new(move |event| watch.tell(&event))) => Ok(Some(result)),
            () = stop => Ok(None),
        }
    });
    let (exit, text) = match result {
        Err(exit) | Ok(Err(exit)) => return exit,
        Ok(Ok(Some(Ok(())))) => return Exit::Done,
        // Rounds that go on for ever have no other end.
        Ok(Ok(None)) if every.is_some() => {
            teller.ends();
            return Exit::Done;
        }
        Ok(Ok(None)) => (Exit::Io, "interrupted: what was not done is done the next time".to_owned()),
        Ok(Ok(Some(Err(error)))) if error.is_usage() => (Exit::Usage, with_causes(&error)),
        Ok(Ok(Some(Err(error)))) if error.is_data() => (Exit::Data, with_causes(&error)),
        Ok(Ok(Some(Err(error)))) => (Exit::Io, with_causes(&error)),
    };
    teller.ends();
    exit.because_code(exit.code(), text, serde_json::json!({"action": action}))
}

/// A number with a unit, or of seconds.
fn pause(text: &str) -> Result<Duration, String> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let pause = ms.zip(number.parse::<u64>().ok()).and_then(|(ms, number)| number.checked_mul(ms));
    match pause {
        Some(ms @ 1..) => Ok(Duration::from_millis(ms)),
        _ => Err("it must be a number above 0 with ms, s, m or h, as in 5s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_unit_or_is_of_seconds() {
        let ms = |text| pause(text).ok().map(|pause| pause.as_millis());
        assert_eq!(["500ms", "5s", "7", "2m", "1h"].map(ms), [500, 5000, 7000, 120_000, 3_600_000].map(Some));
        for wrong in ["", "s", "0s", "-1s", "1.5s", "5 s", "5S", "1d", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(pause(wrong).is_err(), "{wrong}");
        }
    }
}
