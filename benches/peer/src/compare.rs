//! The comparison: the same log copied by everyone in turn, round after round.
//!
//! Every target is fresh, and the machine is settled before the clock starts, so nobody pays for the run before. What logmirror wrote is compared with the source, byte for byte, after the clock has stopped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::files;
use crate::http::download;
use crate::machine;
use crate::nginx::{Nginx, Sending};
use crate::ours::{Logmirror, Server};
use crate::published;
use crate::report::{Report, Run};
use crate::tuned::Tuned;
use crate::{Plan, Shape};

/// Downloads in one round; each is a sample, since one takes but a moment.
const DOWNLOADS: usize = 5;
const LOG: &str = "x";

/// What to compare, and where.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// A directory for the logs and their copies, with nothing else in it.
    pub dir: PathBuf,
    /// Bytes of each log.
    pub bytes: u64,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// How often everyone has a turn.
    pub rounds: usize,
    /// The program to measure; without it only the peers run.
    pub logmirror: Option<Logmirror>,
}

impl Comparison {
    /// Compare on a log of this shape. Progress goes to stderr.
    pub fn run(&self, shape: Shape) -> Result<Report> {
        let source = self.dir.join(format!("source-{}", shape.name()));
        files::remove(&source)?;
        eprintln!("shape {}: write {} MB", shape.name(), self.bytes / 1_000_000);
        let plan = Plan { shape, bytes: self.bytes, segment_bytes: self.segment_bytes };
        plan.write(&source)?;
        files::warm(&source)?;

        let mut report = Report::new(shape, files::segment_bytes(&source)?);
        for round in 1..=self.rounds {
            eprintln!("shape {}: round {round} of {}", shape.name(), self.rounds);
            self.peers(&source, &mut report)?;
            if let Some(logmirror) = &self.logmirror {
                self.ours(logmirror, &source, &mut report)?;
            }
        }
        files::remove(&source)?;
        Ok(report)
    }

    fn peers(&self, source: &Path, report: &mut Report) -> Result<()> {
        let options = published::options(self.segment_bytes);
        self.timed(report, Run::Raw, source, |to| files::raw_copy(source, to))?;
        self.timed(report, Run::Published, source, |to| {
            published::mirror(published::repo(source)?, published::repo(to)?, 0, options)
        })?;
        self.timed(report, Run::Tuned, source, |to| {
            published::mirror(Tuned::open(source)?, Tuned::open(to)?, 0, options)
        })
    }

    fn ours(&self, logmirror: &Logmirror, source: &Path, report: &mut Report) -> Result<()> {
        self.timed(report, Run::Dir, source, |to| logmirror.mirror(source, to))?;

        let data = self.dir.join("data");
        files::remove(&data)?;
        machine::settle(report.bytes());
        let server = logmirror.serve(&data)?;
        let url = server.log_url(LOG);

        let start = Instant::now();
        logmirror.mirror(source, &url)?;
        report.add(Run::Push, report.bytes(), start.elapsed());
        files::ensure_same(source, &server.log_dir(LOG)?)?;

        self.timed(report, Run::Pull, source, |to| logmirror.mirror(&url, to))?;
        downloads(&server, report)?;

        report.add_peak_memory(server.peak_memory()?);
        server.stop()?;
        files::remove(&data)
    }

    /// Time a copy of the whole log into a fresh directory, check the copy, and remove it.
    fn timed(
        &self,
        report: &mut Report,
        run: Run,
        source: &Path,
        copy: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let target = self.dir.join("target");
        files::remove(&target)?;
        machine::settle(report.bytes());

        let start = Instant::now();
        copy(&target).with_context(|| run.label())?;
        report.add(run, report.bytes(), start.elapsed());

        files::ensure_same(source, &target).with_context(|| run.label())?;
        files::remove(&target)
    }
}

/// Download the first segment from the server, then the server's own file from nginx: a copy of it may lie in the page
/// cache in smaller pieces, which alone makes nginx slower.
fn downloads(server: &Server, report: &mut Report) -> Result<()> {
    let dir = server.log_dir(LOG)?;
    let segments = files::segments(&dir)?;
    let [first, _, ..] = segments.as_slice() else {
        report.note("no downloads: the log has no sealed segment, use more --bytes");
        return Ok(());
    };
    let bytes = first.metadata()?.len();
    machine::settle(0);

    let ours = format!("/logs/{LOG}/segments/0");
    repeat(report, Run::Get, bytes, || download(server.address(), &ours))?;

    let theirs = format!("/{}", first.file_name().unwrap_or_default().display());
    for (run, sending) in [(Run::Nginx, Sending::Sendfile), (Run::NginxCopy, Sending::Copy)] {
        let Some(nginx) = Nginx::start(&dir, sending)? else {
            report.note("no downloads from nginx: it is not on PATH");
            return Ok(());
        };
        repeat(report, run, bytes, || download(nginx.address(), &theirs))?;
    }
    Ok(())
}

fn repeat(report: &mut Report, run: Run, bytes: u64, mut get: impl FnMut() -> Result<u64>) -> Result<()> {
    // The first one only warms the caches.
    for counts in (0..=DOWNLOADS).map(|i| i > 0) {
        let start = Instant::now();
        let got = get()?;
        anyhow::ensure!(got == bytes, "{}: {got} bytes, not {bytes}", run.label());
        if counts {
            report.add(run, bytes, start.elapsed());
        }
    }
    Ok(())
}
