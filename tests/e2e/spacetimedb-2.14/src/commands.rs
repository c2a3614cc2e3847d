//! The writing process: one command a line on its input, one line in answer.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use logmirror_e2e_support::random::Random;
use spacetimedb_commitlog::payload::Encode;
use spacetimedb_commitlog::repo::Fs;
use spacetimedb_commitlog::{Commitlog, Options};
use spacetimedb_paths::FromPathUnchecked as _;
use spacetimedb_paths::server::CommitLogDir;
use spacetimedb_sats::buffer::BufWriter;

/// How often a busy server flushes while it is under load.
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// A transaction: opaque bytes.
pub(crate) struct Record(pub(crate) Vec<u8>);

impl Encode for Record {
    fn encode_record<W: BufWriter>(&self, writer: &mut W) {
        writer.put_slice(&self.0);
    }
}

pub(crate) type Log = Commitlog<Record, Fs>;

pub(crate) fn open(dir: &Path, options: Options) -> Result<Log> {
    let path = CommitLogDir::from_path_unchecked(dir);
    Log::open(path, options, None).with_context(|| format!("SpacetimeDB opens {}", dir.display()))
}

/// Opens the log `DIR` with segments of `SEGMENT_BYTES`, `preallocate` or not, and takes commands until `exit`, or until
/// its input ends. As a server does, it holds `db.lock` beside the directory meanwhile.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [dir, segment_bytes, preallocate] = arguments else { bail!("usage: DIR SEGMENT_BYTES true|false") };
    let dir = Path::new(dir);
    let options = Options {
        max_segment_size: segment_bytes.parse()?,
        preallocate_segments: preallocate.parse()?,
        ..Options::default()
    };
    let lock = File::create(dir.with_file_name("db.lock"))?;
    ensure!(lock.try_lock().is_ok(), "db.lock is held by another process");
    let mut log = Some(open(dir, options)?);
    let seed = std::process::id();
    let mut random = Random::new(u64::from(seed), 1);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let open_log = log.as_ref().context("the log is open")?;
        match words[..] {
            ["append", count] => (0..count.parse()?).try_for_each(|_| append(open_log, &mut random))?,
            ["flush"] => drop(open_log.flush()?),
            ["sync"] => drop(open_log.flush_and_sync()?),
            ["load", ms] => load(open_log, &mut random, Duration::from_millis(ms.parse()?))?,
            ["compress"] => {
                let mut sealed = open_log.existing_segment_offsets()?;
                sealed.pop();
                open_log.compress_segments(&sealed)?;
            }
            ["reset_to", offset] => {
                let old = log.take().context("the log is open")?;
                log = Some(old.reset_to(offset.parse()?)?);
            }
            ["next"] => {}
            ["exit"] => break,
            _ => bail!("unknown command {line:?}"),
        }
        let next = log.as_ref().and_then(|log| log.max_committed_offset()).map_or(0, |last| last + 1);
        println!("{next}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// One commit of up to four transactions.
pub(crate) fn append(log: &Log, random: &mut Random) -> Result<()> {
    let next = log.max_committed_offset().map_or(0, |last| last + 1);
    let transactions: Vec<(u64, Record)> = (next..next + random.within(1..5))
        .map(|offset| {
            let bytes = random.within(1..1000);
            (offset, Record(random.bytes(bytes as usize)))
        })
        .collect();
    log.commit(transactions)?;
    Ok(())
}

/// Appends as a busy server does, so that the file ends inside a commit nearly all the time.
fn load(log: &Log, random: &mut Random, time: Duration) -> Result<()> {
    let start = Instant::now();
    let mut flushed = start;
    while start.elapsed() < time {
        append(log, random)?;
        if flushed.elapsed() > FLUSH_EVERY && random.one_in(2) {
            log.flush()?;
            flushed = Instant::now();
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
