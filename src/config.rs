//! Settings of the service: a flag wins over the environment, that over the file, that over the default.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;

use crate::format::name::is_log_name;
use crate::http::{Routing, Timeouts};
use crate::limits;
use crate::mirror::Settings;
use crate::token::{Secret, Token};

/// Where the service keeps its logs unless told otherwise.
pub const DATA_DEFAULT: &str = "./logmirror-data";
/// Where it listens unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7171";

/// One layer of settings: the flags with the environment, or the file. What it does not say is left to the next.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Layer {
    /// Directory with the logs [default: ./logmirror-data]
    #[arg(long, value_name = "DIR", env = "LOGMIRROR_DATA")]
    data: Option<PathBuf>,
    /// Address to listen on, or a port of 127.0.0.1; port 0 takes a free one [default: 127.0.0.1:7171]
    #[arg(long, value_name = "ADDR", env = "LOGMIRROR_LISTEN")]
    listen: Option<String>,
    /// Log bytes in memory at once, over all clients [default: 256MiB]
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_MEMORY_MAX")]
    memory_max: Option<ByteSize>,
    /// Largest commit taken [default: any]
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_COMMIT_BYTES_MAX")]
    commit_bytes_max: Option<ByteSize>,
    /// Threads that write; 0 for one a core, at most 4 [default: 0]
    #[arg(long, value_name = "N", env = "LOGMIRROR_WRITER_THREADS")]
    writer_threads: Option<usize>,
    /// From this length on a segment of a WAL is followed by another [default: 64MiB]
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_WAL_SEGMENT_BYTES")]
    wal_segment_bytes: Option<ByteSize>,
    /// Checkpoints at once, of logs whose policy asks for them [default: 2]
    #[arg(long, value_name = "N", env = "LOGMIRROR_CHECKPOINT_CONCURRENCY")]
    checkpoint_concurrency: Option<NonZeroUsize>,
    /// Processes that run SQL, so that no statement can end the service; 0 to run it in the service itself [default: one a processor,
    /// 4 at most]
    #[arg(long, value_name = "N", env = "LOGMIRROR_SQL_WORKERS")]
    sql_workers: Option<usize>,
    /// Memory of each of them, stacks included [default: 3GiB]
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_SQL_MEMORY_MAX")]
    sql_memory_max: Option<ByteSize>,
    /// Connections at once; more wait [default: 4096]
    #[arg(long, value_name = "N", env = "LOGMIRROR_CONNECTIONS_MAX")]
    connections_max: Option<usize>,
    /// Patience for the head of a request, also on an idle connection [default: 30]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_HEADER_TIMEOUT")]
    header_timeout: Option<u64>,
    /// Patience for more of an append between two commits; it ends well then [default: 900]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_IDLE_TIMEOUT")]
    idle_timeout: Option<u64>,
    /// Patience for the next bytes of a commit or of another body that has begun [default: 60]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_COMMIT_TIMEOUT")]
    commit_timeout: Option<u64>,
    /// Bytes a second that a commit must keep once it took longer than that [default: 16KiB]
    #[arg(long, value_name = "BYTES", env = "LOGMIRROR_MIN_RATE")]
    min_rate: Option<ByteSize>,
    /// Longest time that a statement of SQL may run, or the reader of a cursor take nothing [default: 60]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_STATEMENT_TIMEOUT")]
    statement_timeout: Option<u64>,
    /// Patience for a reader that takes nothing [default: 60]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_STALL_TIMEOUT")]
    stall_timeout: Option<u64>,
    /// Patience for requests under way at shutdown [default: 10]
    #[arg(long, value_name = "SECONDS", env = "LOGMIRROR_DRAIN_TIMEOUT")]
    drain_timeout: Option<u64>,
    /// Secret that every call but /health must bring along (Authorization: Bearer SECRET) [default: none, anybody may]
    #[arg(long, value_name = "SECRET", env = "LOGMIRROR_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// File with that secret, which then shows in no list of processes
    #[arg(long, value_name = "FILE", env = "LOGMIRROR_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Log that libSQL and Turso clients find at the root, without /logs/NAME [default: none]
    #[arg(long, value_name = "NAME", env = "LOGMIRROR_ROOT_LOG")]
    root_log: Option<String>,
    /// Let them find the log NAME at the root of the host NAME.anything, before --root-log [default: false]
    #[arg(long, value_name = "BOOL", env = "LOGMIRROR_HOST_ROUTING", num_args = 0..=1, default_missing_value = "true")]
    host_routing: Option<bool>,
}

/// All settings, resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory with the logs.
    pub data: PathBuf,
    /// Address to listen on.
    pub listen: String,
    /// What the logs need to know.
    pub settings: Settings,
    /// Patience with clients.
    pub timeouts: Timeouts,
    /// Processes that run SQL; 0 when the service itself does.
    pub sql_workers: usize,
    /// Memory of each of them.
    pub sql_memory_max: u64,
    /// Connections at once.
    pub connections_max: usize,
    /// What clients must bring along; none lets everybody in.
    pub token: Option<Token>,
    /// How logs are reached besides `/logs/NAME`.
    pub routing: Routing,
}

impl Config {
    /// Resolves the flags over the file.
    ///
    /// # Errors
    /// What is wrong with a setting, for the one who made it.
    pub fn resolve(flags: Layer, file: Option<&Path>) -> Result<Config, String> {
        let path = file;
        let file = match file {
            None => Layer::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                toml::from_str(&text).map_err(|error| format!("{}{}", path.display(), in_file(&text, &error)))?
            }
        };
        // Where a setting was made, for the one who made it.
        let named = |key: &str, by_flag: bool, in_file: bool| match path {
            Some(path) if in_file && !by_flag => format!("{key} in {}", path.display()),
            _ => format!("--{key}"),
        };
        let seconds = |flag: Option<u64>, file: Option<u64>, default: Duration| {
            flag.or(file).map_or(default, Duration::from_secs)
        };
        let bytes = |flag: Option<ByteSize>, file: Option<ByteSize>, default: u64| {
            flag.or(file).map_or(default, |size| size.as_u64())
        };
        let defaults = Settings::default();
        let settings = Settings {
            memory_max: bytes(flags.memory_max, file.memory_max, defaults.memory_max),
            commit_bytes_max: bytes(flags.commit_bytes_max, file.commit_bytes_max, defaults.commit_bytes_max),
            checkpoint_concurrency: flags
                .checkpoint_concurrency
                .or(file.checkpoint_concurrency)
                .unwrap_or(defaults.checkpoint_concurrency),
            wal_segment_bytes: bytes(flags.wal_segment_bytes, file.wal_segment_bytes, defaults.wal_segment_bytes),
            writer_threads: flags.writer_threads.or(file.writer_threads).unwrap_or(defaults.writer_threads),
        };
        let connections_max = flags.connections_max.or(file.connections_max).unwrap_or(limits::CONNECTIONS_MAX);
        if connections_max == 0 {
            let named = named("connections-max", flags.connections_max.is_some(), true);
            return Err(format!("{named} must be at least 1"));
        }
        let in_the_file = |error: String| format!("{}: {}", shown(path), error.replace("--token", "token"));
        let token = match token(flags.token.as_ref(), flags.token_file.as_deref())? {
            None => token(file.token.as_ref(), file.token_file.as_deref()).map_err(in_the_file)?,
            token => token,
        };
        let root_log_named = named("root-log", flags.root_log.is_some(), true);
        let listen_named = named("listen", flags.listen.is_some(), file.listen.is_some());
        let listen = flags.listen.or(file.listen).unwrap_or_else(|| LISTEN_DEFAULT.into());
        let listen = address(&listen).map_err(|wrong| format!("{listen_named}: {wrong}"))?;
        let root_log = flags.root_log.or(file.root_log);
        if let Some(name) = root_log.as_ref().filter(|name| !is_log_name(name)) {
            return Err(format!("{root_log_named}: {name:?} cannot be the name of a log"));
        }
        let by_host = flags.host_routing.or(file.host_routing).unwrap_or_default();
        let patience = Timeouts::default();
        let min_rate = NonZeroU64::new(bytes(flags.min_rate, file.min_rate, patience.min_rate.get()));
        let min_rate = min_rate.ok_or("--min-rate must be at least 1")?;
        if flags.statement_timeout.or(file.statement_timeout) == Some(0) {
            let named = named("statement-timeout", flags.statement_timeout.is_some(), true);
            return Err(format!("{named} must be at least 1 s"));
        }
        let sql_workers = flags.sql_workers.or(file.sql_workers).unwrap_or_else(|| limits::sql_workers().get());
        if sql_workers > limits::SQL_WORKERS_ASKED_MAX {
            let (named, most) =
                (named("sql-workers", flags.sql_workers.is_some(), true), limits::SQL_WORKERS_ASKED_MAX);
            return Err(format!(
                "{named}: {sql_workers} processes are too many: {most} at most, as many as there are processors is best"
            ));
        }
        let half = (memory_of_machine() / 2).max(limits::WORKER_MEMORY_BYTES_MIN);
        let sql_memory_max =
            bytes(flags.sql_memory_max, file.sql_memory_max, limits::WORKER_MEMORY_BYTES_MAX.min(half));
        if sql_memory_max < limits::WORKER_MEMORY_BYTES_MIN {
            let (named, least) =
                (named("sql-memory-max", flags.sql_memory_max.is_some(), true), limits::WORKER_MEMORY_BYTES_MIN >> 20);
            return Err(format!(
                "{named} must be at least {least} MiB: a process that runs SQL needs that for its stacks"
            ));
        }
        if let Some(asked) = flags.sql_memory_max.or(file.sql_memory_max)
            && let all = memory_of_machine()
            && asked.as_u64() > all
        {
            let (named, all) = (named("sql-memory-max", flags.sql_memory_max.is_some(), true), all >> 20);
            return Err(format!(
                "{named}: {} MiB are more than this machine has ({all} MiB): a process that runs SQL would take all memory before it is \
                 stopped",
                asked.as_u64() >> 20
            ));
        }
        Ok(Config {
            data: flags.data.or(file.data).unwrap_or_else(|| DATA_DEFAULT.into()),
            listen,
            settings,
            timeouts: Timeouts {
                header: seconds(flags.header_timeout, file.header_timeout, patience.header),
                idle: seconds(flags.idle_timeout, file.idle_timeout, patience.idle),
                commit: seconds(flags.commit_timeout, file.commit_timeout, patience.commit),
                min_rate,
                stall: seconds(flags.stall_timeout, file.stall_timeout, patience.stall),
                statement: seconds(flags.statement_timeout, file.statement_timeout, patience.statement),
                drain: seconds(flags.drain_timeout, file.drain_timeout, patience.drain),
                ..patience
            },
            sql_workers,
            sql_memory_max,
            connections_max,
            token,
            routing: Routing { root_log, by_host },
        })
    }
}

/// The token that two settings give, of which only one may be made.
///
/// # Errors
/// What is wrong with them, for the one who made them; never with what the token is.
pub fn token(secret: Option<&Secret>, file: Option<&Path>) -> Result<Option<Token>, String> {
    match (secret, file) {
        (Some(_), Some(_)) => Err("give a token or a token file (--token, --token-file), not both".into()),
        (Some(secret), None) => secret.token().map(Some).map_err(|error| format!("--token: {error}")),
        (None, Some(path)) => Token::read(path).map(Some).map_err(|error| format!("--token-file: {error}")),
        (None, None) => Ok(None),
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

/// An address to listen on: `HOST:PORT`, or only a port, which is one of this machine alone.
///
/// # Errors
/// What is wrong with it, and the form that was probably meant.
fn address(text: &str) -> Result<String, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(format!("127.0.0.1:{port}"));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no port, as {text}:7171 has"))?;
    if port.parse::<u16>().is_err() {
        return Err(format!("{text:?} has no port at its end, as 127.0.0.1:7171 has"));
    }
    if host.is_empty() {
        return Err(format!(
            "{text:?} has no address: 127.0.0.1:{port} for this machine, or 0.0.0.0:{port} for everybody"
        ));
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err(format!("{text:?}: an IPv6 address stands in brackets, as in [::1]:7171"));
    }
    Ok(text.to_owned())
}

/// An error of the file with its line and key, but without the value: that may be a token.
fn in_file(text: &str, error: &toml::de::Error) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return format!(": {}", error.message());
    };
    let line = before.matches('\n').count();
    let key =
        text.lines().nth(line).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim()).unwrap_or_default();
    let place = format!(", line {}", line + 1);
    let what = match meant(error.message()) {
        Some((unknown, meant)) => format!("unknown field `{unknown}`: is `{meant}` meant?"),
        None => error.message().to_owned(),
    };
    match key {
        "" => format!("{place}: {what}"),
        key => format!("{place}: {key}: {what}"),
    }
}

/// The setting that there is not, of an error that says so, and the one that was probably meant.
fn meant(message: &str) -> Option<(&str, &str)> {
    let mut names = message.strip_prefix("unknown field `")?.split('`').step_by(2);
    let unknown = names.next()?;
    let spelled = unknown.to_lowercase().replace('_', "-");
    let distances = names.map(|name| (strsim::damerau_levenshtein(&spelled, name), name));
    let (distance, name) = distances.min()?;
    (distance <= TYPING_ERRORS).then_some((unknown, name))
}

/// Letters in which a name may differ from the one that was meant.
const TYPING_ERRORS: usize = 2;

/// Bytes.
fn memory_of_machine() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(system.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        assert_eq!(address("7171"), Ok("127.0.0.1:7171".to_owned()));
        for right in ["127.0.0.1:0", "localhost:7171", "[::1]:7171", "0.0.0.0:80"] {
            assert_eq!(address(right), Ok(right.to_owned()));
        }
        for wrong in [":7171", "localhost", "127.0.0.1", "::1", "host:port", "70000", ""] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
