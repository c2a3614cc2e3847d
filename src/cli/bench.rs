//! `logmirror bench`: a load on a service, beside what the disk here would allow.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use logmirror::client::HttpOptions;
use logmirror::load::{self, Ceilings, Latency, Load, LoadError, Report};
use serde_json::json;

use super::access::AccessArgs;
use super::exit::Exit;

/// Put a load on a service and say what it takes; the logs it makes are named after the URL given and stay
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// URL of a log that does not exist, as a prefix: http://HOST/logs/bench makes bench-PID-0, bench-PID-1 …
    url: String,
    /// Writers, each with a log of its own
    #[arg(long, default_value_t = 1)]
    writers: usize,
    /// Followers, shared out over the logs
    #[arg(long, default_value_t = 1)]
    followers: usize,
    /// Bytes of records in a commit
    #[arg(long, default_value_t = 100)]
    record_bytes: usize,
    /// Commits sent in one piece
    #[arg(long, default_value_t = 1)]
    piece_commits: usize,
    /// Commits a writer may have under way without an ack
    #[arg(long, default_value_t = 8192)]
    window_commits: usize,
    /// How long
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Directory whose disk is measured for the ceilings [default: the one for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

pub(crate) fn run(args: &BenchArgs) -> Exit {
    if args.writers == 0 || args.piece_commits == 0 || args.window_commits == 0 {
        return Exit::Usage.because("--writers, --piece-commits and --window-commits must be at least 1");
    }
    let url = match args.access.place(&args.url) {
        Ok(url) => url,
        Err(exit) => return exit,
    };
    let http = match args.access.http() {
        Ok(http) => http,
        Err(exit) => return exit,
    };
    let result =
        super::block_on(measure(&url, &http, args)).and_then(|result| result.map_err(|error| Exit::Io.because(error)));
    let (report, lockstep, ceilings) = match result {
        Ok(result) => result,
        Err(exit) => return exit,
    };
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let line = json!({"load": report, "lockstep_commits_per_second": lockstep, "ceilings": ceilings});
        writeln!(out, "{line}")
    } else {
        print(&mut out, &report, lockstep, ceilings)
    };
    if written.is_err() { Exit::Io } else { Exit::Done }
}

async fn measure(url: &str, http: &HttpOptions, args: &BenchArgs) -> Result<(Report, f64, Ceilings), LoadError> {
    let short = Duration::from_secs(args.seconds.clamp(1, 2));
    let base = format!("{url}-{}", std::process::id());
    let lockstep = load::lockstep(&format!("{base}-lockstep"), http, args.record_bytes, short).await?;
    let load = Load {
        writers: args.writers,
        followers: args.followers,
        record_bytes: args.record_bytes,
        piece_commits: args.piece_commits,
        window_commits: args.window_commits,
        time: Duration::from_secs(args.seconds),
    };
    let report = load::run(&base, http, load).await?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let ceilings = load::ceilings(&dir, args.record_bytes, short)?;
    Ok((report, lockstep, ceilings))
}

fn print(mut out: impl Write, report: &Report, lockstep: f64, ceilings: Ceilings) -> std::io::Result<()> {
    let Report { commits, commits_per_second, mb_per_second, ack, follow_lag } = report;
    writeln!(out, "live          {commits_per_second:>12.0} commits/s  {mb_per_second:.1} MB/s  ({commits} durable)")?;
    let ratio = commits_per_second / lockstep;
    writeln!(out, "lockstep      {lockstep:>12.0} commits/s  one commit a request; live is {ratio:.1} times that")?;
    let Ceilings { fdatasync_per_second, raw_mb_per_second } = ceilings;
    writeln!(out, "ceiling       {fdatasync_per_second:>12.0} commits/s  each with its own fdatasync, no network")?;
    writeln!(out, "ceiling       {raw_mb_per_second:>12.0} MB/s       plain write, one fdatasync")?;
    for (name, latency) in [("ack", ack), ("follow lag", follow_lag)] {
        let Latency { p50_ms, p99_ms, max_ms, count } = latency;
        writeln!(out, "{name:13} p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.2} ms over {count} pieces")?;
    }
    Ok(())
}
