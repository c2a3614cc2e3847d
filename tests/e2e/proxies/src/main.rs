//! logmirror through nginx, HAProxy and Varnish: a push and a follower with one commit a second, a large push beside curl
//! with bodies of the same size, and many small pushes, none of which may hang.

mod proxy;
mod sink;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use logmirror_e2e_support::commitlog::{SEGMENT_HEADER, encode, ensure_holds, expected, segment_name};
use logmirror_e2e_support::http::get;
use logmirror_e2e_support::process::{Process, Program, free_address};
use logmirror_e2e_support::wait_for;

use proxy::{Kind, Proxy};

/// Longest time from the write of a commit until it is durable in the service, and from then to a follower's file.
const PUSH_LAG_MAX: Duration = Duration::from_secs(5);
const FOLLOW_LAG_MAX: Duration = Duration::from_secs(2);
/// What a push must reach of curl's speed.
const SHARE_OF_CURL: f64 = 0.8;
/// A small push that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// Bodies of curl's requests: what nginx takes with its defaults.
const BODY_BYTES: usize = 1 << 20;

struct Plan {
    proxies: &'static [Kind],
    lag_commits: u64,
    hang_runs: u32,
    large_bytes: Option<usize>,
}

const QUICK: Plan =
    Plan { proxies: &[Kind::Nginx, Kind::NginxUnbuffered], lag_commits: 6, hang_runs: 3, large_bytes: None };
const ALL: Plan = Plan {
    proxies: &[Kind::Nginx, Kind::NginxUnbuffered, Kind::Haproxy, Kind::Varnish],
    lag_commits: 20,
    hang_runs: 50,
    large_bytes: Some(700_000_000),
};

fn main() -> ExitCode {
    let plan = match std::env::args().nth(1).as_deref() {
        Some("quick") => QUICK,
        Some("small") => Plan { large_bytes: None, ..ALL },
        Some("large") => Plan { proxies: &[], ..ALL },
        None => ALL,
        Some(other) => {
            eprintln!("usage: run [quick|small|large], not {other:?}");
            return ExitCode::from(2);
        }
    };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/run-{}", std::process::id()));
    match run(&plan, &dir) {
        Ok(()) => {
            let _ = std::fs::remove_dir_all(&dir);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed: {error:#}\nwhat the processes printed is in {}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let program = Program::find()?;
    let service = Service::start(&program, dir)?;
    for kind in plan.proxies {
        let proxy = Proxy::start(*kind, &service.address, dir)?;
        let setting = Setting { program: &program, service: &service, proxy: &proxy, kind: *kind, dir };
        setting.lag(plan.lag_commits)?;
        // HAProxy and Varnish have nothing in this that nginx has not.
        let runs = if matches!(kind, Kind::Nginx | Kind::NginxUnbuffered) { plan.hang_runs } else { 3 };
        setting.many_pushes(runs)?;
    }
    if let Some(bytes) = plan.large_bytes {
        let proxy = Proxy::start(Kind::Nginx, &service.address, dir)?;
        let setting = Setting { program: &program, service: &service, proxy: &proxy, kind: Kind::Nginx, dir };
        setting.beside_curl(bytes)?;
    }
    Ok(())
}

struct Service {
    address: String,
    _process: Process,
}

impl Service {
    fn start(program: &Program, dir: &Path) -> Result<Service> {
        let address = free_address()?;
        let data = dir.join("data").display().to_string();
        let mut process = program.start(&["serve", "--listen", &address, "--data", &data], dir, "serve")?;
        process.listening(Duration::from_secs(30))?;
        Ok(Service { address, _process: process })
    }

    /// How far a log is durable; 0 while it is not there.
    fn durable(&self, log: &str) -> u64 {
        let status = get(&self.address, &format!("/logs/{log}"), SECOND);
        status.ok().and_then(|status| status["durable"].as_u64()).unwrap_or(0)
    }
}

/// One proxy in front of the service.
struct Setting<'a> {
    program: &'a Program,
    service: &'a Service,
    proxy: &'a Proxy,
    kind: Kind,
    dir: &'a Path,
}

impl Setting<'_> {
    fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.proxy.address)
    }

    /// One commit a second, pushed and followed through the proxy.
    fn lag(&self, count: u64) -> Result<()> {
        let log = format!("lag-{}", self.kind.name());
        let (source, copy) = (self.fresh(&format!("{log}-source"))?, self.dir.join(format!("{log}-copy")));
        let mut file = segment(&source)?;
        let (from, to) = (source.display().to_string(), copy.display().to_string());
        let url = self.url(&log);
        let _push = self.program.start(&["mirror", &from, &url, "--follow"], self.dir, &format!("{log}-push"))?;
        let (written, writes) = mpsc::channel();
        let writer = std::thread::spawn(move || -> Result<()> {
            for offset in 0..count {
                let mut commit = Vec::new();
                encode(&mut commit, offset, 0, 1, &[offset as u8; 100]);
                file.write_all(&commit)?;
                written.send((offset, Instant::now()))?;
                std::thread::sleep(SECOND);
            }
            Ok(())
        });
        let limit = Duration::from_secs(30);
        wait_for("the log", limit, || Ok((self.service.durable(&log) > 0).then_some(())))?;
        let _follow = self.program.start(&["mirror", &url, &to, "--follow"], self.dir, &format!("{log}-follow"))?;
        let copied = copy.join(segment_name(0));
        let (mut push_lag, mut follow_lag) = (Duration::ZERO, Duration::ZERO);
        let mut bytes = SEGMENT_HEADER.len() as u64;
        for (offset, written) in writes {
            bytes += 126;
            let durable = || Ok((self.service.durable(&log) > offset).then(Instant::now));
            let durable = wait_for("a commit in the service", limit, durable)?;
            let copied = || Ok(std::fs::metadata(&copied).is_ok_and(|file| file.len() >= bytes).then(Instant::now));
            let copied = wait_for("a commit at the follower", limit, copied)?;
            push_lag = push_lag.max(durable - written);
            // The first ones wait for the follower to start.
            if offset > 3 {
                follow_lag = follow_lag.max(copied - durable);
            }
        }
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        println!(
            "{}: {count} commits, one a second: at most {} ms until durable, then {} ms to the follower",
            self.kind.name(),
            push_lag.as_millis(),
            follow_lag.as_millis()
        );
        ensure!(push_lag < PUSH_LAG_MAX, "the push is {push_lag:?} behind, more than {PUSH_LAG_MAX:?}");
        ensure!(follow_lag < FOLLOW_LAG_MAX, "the follower is {follow_lag:?} behind, more than {FOLLOW_LAG_MAX:?}");
        Ok(())
    }

    /// Pushes of 8 MB, one of whose commits is larger than what nginx takes, and a copy back.
    fn many_pushes(&self, runs: u32) -> Result<()> {
        let source = self.fresh(&format!("small-{}", self.kind.name()))?;
        let mut file = segment(&source)?;
        write_commits(&mut file, 0, 300, 20_000)?;
        write_commits(&mut file, 300, 1, 2_000_000)?;
        let from = source.display().to_string();
        let mut longest = Duration::ZERO;
        for run in 0..runs {
            let log = format!("small-{}-{run}", self.kind.name());
            let start = Instant::now();
            let status = self.program.run(&["mirror", &from, &self.url(&log)], self.dir, &log, HANG)?;
            ensure!(status.success(), "{log} ended with {status}");
            ensure!(self.service.durable(&log) == 301, "{log} is durable up to {}", self.service.durable(&log));
            longest = longest.max(start.elapsed());
            if run == 0 {
                let copy = self.dir.join(format!("{log}-copy"));
                let to = copy.display().to_string();
                let status = self.program.run(&["mirror", &self.url(&log), &to], self.dir, &log, HANG)?;
                ensure!(status.success(), "the copy of {log} ended with {status}");
                ensure_holds(&expected(&source)?, &copy)?;
            }
        }
        println!(
            "{}: {runs} pushes of 8 MB ended well, the longest after {} ms",
            self.kind.name(),
            longest.as_millis()
        );
        Ok(())
    }

    /// A large push beside curl: as many bytes in bodies of [`BODY_BYTES`] through the same kind of proxy to a sink that syncs
    /// each. Three rounds in turn, the medians count.
    fn beside_curl(&self, bytes: usize) -> Result<()> {
        let (source, commit) = (self.fresh("large")?, 4_000);
        let mut file = segment(&source)?;
        let commits = (bytes / (commit + 26)) as u64;
        write_commits(&mut file, 0, commits, commit)?;
        let total = file.metadata()?.len();
        let sink = sink::start(self.dir)?;
        let to_sink = Proxy::start(Kind::Nginx, &sink, self.dir)?;
        let (mut ours, mut curls) = (Vec::new(), Vec::new());
        for round in 0..3 {
            curls.push(self.curl(total as usize, &to_sink.address)?.as_secs_f64());
            let (from, log) = (source.display().to_string(), format!("large-{round}"));
            let start = Instant::now();
            let limit = Duration::from_secs(600);
            let status = self.program.run(&["mirror", &from, &self.url(&log)], self.dir, &log, limit)?;
            ours.push(start.elapsed().as_secs_f64());
            ensure!(status.success() && self.service.durable(&log) == commits, "{log} ended with {status}");
        }
        let speed = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            total as f64 / 1e6 / times[times.len() / 2]
        };
        let (ours, curl) = (speed(&mut ours), speed(&mut curls));
        let share = ours / curl;
        println!(
            "nginx: a push of {} MB at {ours:.0} MB/s, curl at {curl:.0} MB/s: {share:.2} of it",
            total / 1_000_000
        );
        ensure!(share >= SHARE_OF_CURL, "less than {SHARE_OF_CURL} of curl");
        Ok(())
    }

    fn curl(&self, bytes: usize, address: &str) -> Result<Duration> {
        let body = self.dir.join("body");
        std::fs::write(&body, vec![7; BODY_BYTES])?;
        let one = format!("url=http://{address}/\ndata-binary=@{}\noutput=/dev/null\nheader=Expect:\n", body.display());
        let config = self.dir.join("curl");
        std::fs::write(&config, vec![one; bytes.div_ceil(BODY_BYTES)].join("next\n"))?;
        let start = Instant::now();
        let status =
            Command::new("curl").args(["--silent", "--fail", "--config"]).arg(&config).status().context("curl")?;
        if !status.success() {
            bail!("curl ended with {status}");
        }
        Ok(start.elapsed())
    }

    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// The first segment of a directory, open for appending, with its header.
fn segment(dir: &Path) -> Result<File> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join(segment_name(0)))?;
    file.write_all(&SEGMENT_HEADER)?;
    Ok(file)
}

fn write_commits(file: &mut File, first: u64, count: u64, bytes: usize) -> Result<()> {
    let mut block = Vec::new();
    for offset in first..first + count {
        encode(&mut block, offset, 0, 1, &vec![offset as u8; bytes]);
        if block.len() > 1 << 20 {
            file.write_all(&block)?;
            block.clear();
        }
    }
    Ok(file.write_all(&block)?)
}
