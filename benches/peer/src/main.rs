//! `peer`: write logs with the published SpacetimeDB commitlog, and compare logmirror with it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use logmirror_peer::compare::Comparison;
use logmirror_peer::ours::Logmirror;
use logmirror_peer::{Plan, Shape};

/// 700 MiB: long enough that starting a process does not count.
const BYTES: u64 = 700 << 20;
const SEGMENT_BYTES: u64 = 256 << 20;

/// logmirror beside the published SpacetimeDB commitlog
#[derive(Parser)]
#[command(name = "peer")]
enum Peer {
    /// Write a log with the published writer
    Gen {
        /// Directory of the log; a log that is there is continued
        dir: PathBuf,
        /// What a commit looks like
        #[arg(long)]
        shape: Shape,
        /// Bytes of commits to write
        #[arg(long, default_value_t = BYTES)]
        bytes: u64,
        /// Size at which the next segment starts
        #[arg(long, default_value_t = SEGMENT_BYTES)]
        segment_bytes: u64,
    },
    /// Measure logmirror, the published stream writer, a raw copy and nginx in turn
    Compare(Compare),
}

#[derive(Args)]
struct Compare {
    /// Bytes of each log
    #[arg(long, default_value_t = BYTES)]
    bytes: u64,
    /// Where the logs and their copies go for the time being; must be a real disk [default: the system's]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How often everyone has a turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The program to measure [default: $LOGMIRROR_BIN, then ../../target/release/logmirror]
    #[arg(long)]
    logmirror: Option<PathBuf>,
    /// Measure the peers without logmirror
    #[arg(long, conflicts_with = "logmirror")]
    peers_only: bool,
    /// Only this shape
    #[arg(long)]
    shape: Option<Shape>,
    /// End with the whole result as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Compare {
    fn run(self) -> Result<()> {
        let logmirror = match self.peers_only {
            true => None,
            false => Some(Logmirror::find(self.logmirror)?),
        };
        let parent = self.dir.unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("logmirror-peer-")
            .tempdir_in(&parent)
            .with_context(|| format!("create a directory in {}", parent.display()))?;
        let comparison = Comparison {
            dir: dir.path().to_owned(),
            bytes: self.bytes,
            // Half, so that there is a sealed segment to download.
            segment_bytes: SEGMENT_BYTES.min(self.bytes / 2),
            rounds: self.rounds.into(),
            logmirror,
        };

        let mut reports = Vec::new();
        for shape in self.shape.map_or(vec![Shape::A, Shape::B], |shape| vec![shape]) {
            let report = comparison.run(shape)?;
            println!("{report}");
            reports.push(report.to_json());
        }
        if self.json {
            println!("{}", serde_json::json!({ "rounds": self.rounds, "shapes": reports }));
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    match Peer::parse() {
        Peer::Gen { dir, shape, bytes, segment_bytes } => Plan { shape, bytes, segment_bytes }.write(&dir),
        Peer::Compare(arguments) => arguments.run(),
    }
}
