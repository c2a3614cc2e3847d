//! A commitlog that is written, pushed to the service and followed from there all the while.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::commitlog::{end, ensure_holds, expected};
use logmirror_e2e_support::process::{Process, Program};
use logmirror_e2e_support::random::Random;
use logmirror_e2e_support::source::{Load, Source};
use logmirror_e2e_support::wait_for;

const LOAD: Load = Load { bytes_per_second: 200_000, commit_bytes_max: 20_000, segment_bytes: 16 << 20 };
const END_WAIT: Duration = Duration::from_secs(60);

/// The writer, and both mirrors.
pub struct Commitlog {
    source: Source,
    mirrors: [Process; 2],
    from: PathBuf,
    copy: PathBuf,
}

impl Commitlog {
    /// Starts all three; their files are in `dir`.
    pub fn start(program: &Program, address: &str, dir: &Path, seed: u64) -> Result<Commitlog> {
        let (from, copy) = (dir.join("source"), dir.join("copy"));
        std::fs::create_dir(&from)?;
        let source = Source::start(&from, LOAD, Random::new(seed, u64::MAX))?;
        let url = format!("http://{address}/logs/commits");
        let mirror = |from: &str, to: &str, label| program.start(&["mirror", from, to, "--follow"], dir, label);
        let push = mirror(text(&from)?, &url, "push")?;
        let held = || {
            let status = logmirror_e2e_support::http::get(address, "/logs/commits", Duration::from_secs(5));
            Ok(status.ok().filter(|status| status["durable"].as_u64() > Some(0)))
        };
        wait_for("the commitlog in the service", END_WAIT, held)?;
        let follow = mirror(&url, text(&copy)?, "follow")?;
        Ok(Commitlog { source, mirrors: [push, follow], from, copy })
    }

    /// Ends the writer. After Ok the copy is what it wrote, and no mirror ended; how many bytes that is.
    pub fn finish(mut self) -> Result<u64> {
        let did = self.source.finish()?;
        let source = end(&self.from)?;
        let copied = wait_for("the copy of the commitlog", END_WAIT, || {
            Ok((self.copy.is_dir() && end(&self.copy)?.next == source.next).then_some(()))
        });
        copied.with_context(|| format!("{}; {}", self.mirrors[0].errors(), self.mirrors[1].errors()))?;
        for mirror in &mut self.mirrors {
            let exited = mirror.exited()?;
            ensure!(exited.is_none(), "a mirror ended: {exited:?}; {}", mirror.errors());
        }
        ensure_holds(&expected(&self.from)?, &self.copy)?;
        Ok(did.bytes)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
