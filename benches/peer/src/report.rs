//! What was measured on one log, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Shape;

/// Who did what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    /// Read, write, then sync, in one thread.
    Raw,
    /// The published stream writer over its own file repository.
    Published,
    /// The published stream writer over a repository with large buffers.
    Tuned,
    /// logmirror, directory to directory.
    Dir,
    /// logmirror, directory to its own service.
    Push,
    /// logmirror, from its own service to a directory.
    Pull,
    /// A sealed segment downloaded from logmirror.
    Get,
    /// The same file downloaded from nginx, which uses sendfile.
    Nginx,
    /// The same file downloaded from nginx, which reads and writes.
    NginxCopy,
}

impl Run {
    const ALL: [Run; 9] =
        [Run::Raw, Run::Published, Run::Tuned, Run::Dir, Run::Push, Run::Pull, Run::Get, Run::Nginx, Run::NginxCopy];

    /// Its line in the table.
    pub fn label(self) -> &'static str {
        match self {
            Run::Raw => "raw copy, then fdatasync",
            Run::Published => "published StreamWriter",
            Run::Tuned => "published StreamWriter, 1 MiB buffers",
            Run::Dir => "logmirror mirror dir dir",
            Run::Push => "logmirror mirror dir url",
            Run::Pull => "logmirror mirror url dir",
            Run::Get => "logmirror serve, GET segment",
            Run::Nginx => "nginx, GET segment, sendfile",
            Run::NginxCopy => "nginx, GET segment, sendfile off",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Run::Raw => "raw",
            Run::Published => "published",
            Run::Tuned => "tuned",
            Run::Dir => "dir",
            Run::Push => "push",
            Run::Pull => "pull",
            Run::Get => "get",
            Run::Nginx => "nginx",
            Run::NginxCopy => "nginx-copy",
        }
    }

    /// Whom it is measured against.
    fn peers(self) -> &'static [Run] {
        match self {
            Run::Raw | Run::Nginx | Run::NginxCopy => &[],
            Run::Published | Run::Tuned => &[Run::Raw],
            Run::Dir | Run::Push | Run::Pull => &[Run::Published, Run::Tuned, Run::Raw],
            Run::Get => &[Run::Nginx, Run::NginxCopy],
        }
    }
}

/// Throughput of every run over one log.
#[derive(Clone, Debug)]
pub struct Report {
    shape: Shape,
    bytes: u64,
    megabytes_per_second: BTreeMap<Run, Vec<f64>>,
    peak_memory: Option<u64>,
    notes: Vec<String>,
}

impl Report {
    /// Nothing measured yet, over a log of `bytes`.
    pub fn new(shape: Shape, bytes: u64) -> Self {
        Self { shape, bytes, megabytes_per_second: BTreeMap::new(), peak_memory: None, notes: Vec::new() }
    }

    /// Bytes in the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One more sample: so many bytes in so much time.
    pub fn add(&mut self, run: Run, bytes: u64, took: Duration) {
        let rate = bytes as f64 / 1e6 / took.as_secs_f64();
        self.megabytes_per_second.entry(run).or_default().push(rate);
    }

    /// The most memory the service held in one round.
    pub fn add_peak_memory(&mut self, bytes: u64) {
        self.peak_memory = self.peak_memory.max(Some(bytes));
    }

    /// Something the reader should know, once.
    pub fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.to_owned());
        }
    }

    /// The whole report, samples included.
    pub fn to_json(&self) -> Value {
        let mut medians = Map::new();
        let mut samples = Map::new();
        let mut ratios = Map::new();
        for (&run, rates) in &self.megabytes_per_second {
            medians.insert(run.key().to_owned(), json!(self.median(run)));
            samples.insert(run.key().to_owned(), json!(rates));
            for (peer, ratio) in self.ratios(run) {
                ratios.insert(format!("{}/{}", run.key(), peer.key()), json!(ratio));
            }
        }
        json!({
            "shape": self.shape.name(),
            "transactions_per_commit": self.shape.transactions(),
            "transaction_bytes": self.shape.transaction_bytes(),
            "log_bytes": self.bytes,
            "megabytes_per_second": medians,
            "ratios": ratios,
            "samples": samples,
            "serve_peak_memory_bytes": self.peak_memory,
            "notes": self.notes,
        })
    }

    fn median(&self, run: Run) -> Option<f64> {
        self.spread(run).map(|(_, median, _)| median)
    }

    /// The lowest rate, the median and the highest.
    fn spread(&self, run: Run) -> Option<(f64, f64, f64)> {
        let mut rates = self.megabytes_per_second.get(&run)?.clone();
        rates.sort_by(f64::total_cmp);
        let median = (rates[(rates.len() - 1) / 2] + rates[rates.len() / 2]) / 2.0;
        Some((*rates.first()?, median, *rates.last()?))
    }

    fn ratios(&self, run: Run) -> impl Iterator<Item = (Run, f64)> {
        run.peers().iter().filter_map(move |&peer| Some((peer, self.median(run)? / self.median(peer)?)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "shape {}: {} x {} bytes a commit, {:.0} MB; medians (and ranges)",
            self.shape.name(),
            self.shape.transactions(),
            self.shape.transaction_bytes(),
            self.bytes as f64 / 1e6
        )?;
        for run in Run::ALL {
            let Some((low, median, high)) = self.spread(run) else {
                continue;
            };
            write!(f, "  {:<38}{median:>5.0} MB/s ({low:>4.0} to {high:>4.0})", run.label())?;
            for (peer, ratio) in self.ratios(run) {
                write!(f, "   {ratio:.2} of {}", peer.key())?;
            }
            writeln!(f)?;
        }
        if let Some(bytes) = self.peak_memory {
            writeln!(f, "  logmirror serve held at most {:.0} MB", bytes as f64 / 1e6)?;
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let mut report = Report::new(Shape::A, 100_000_000);
        for seconds in [1, 2, 4] {
            report.add(Run::Raw, report.bytes(), Duration::from_secs(seconds));
        }
        report.add(Run::Dir, report.bytes(), Duration::from_secs(4));
        let json = report.to_json();
        assert_eq!(json["megabytes_per_second"]["raw"], 50.0);
        assert_eq!(json["ratios"]["dir/raw"], 0.5);
        assert!(json["ratios"].get("dir/published").is_none());
    }
}
