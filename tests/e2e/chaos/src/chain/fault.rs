//! What is done to the chain, and how it is undone.

use std::fmt::{self, Display};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use logmirror_e2e_support::commitlog::segments;
use logmirror_e2e_support::random::Random;
use rustix::process::Signal;

use super::node::{Node, Role};
use crate::disk::Disk;

/// The kind of a fault that could not be done.
pub const NOTHING: &str = "nothing";

/// What can be done to a node.
#[derive(Clone, Copy)]
pub enum Fault {
    /// `kill -9`, and started again at once.
    Kill,
    /// `kill -9`, and started again later.
    Down,
    /// SIGSTOP.
    Stop,
    /// SIGTERM, and started again at once.
    Term,
    /// Its disk is full.
    Full,
    /// Its disk is read-only.
    ReadOnly,
    /// It may not read, or not write, some of its files.
    Permissions,
    /// Its log directory is renamed.
    Away,
}

/// A fault that is going on.
pub struct Active {
    /// The place of its node; one after the last for the source.
    pub target: usize,
    pub undo: Vec<Undo>,
    pub until: Instant,
}

/// What ends a fault.
pub enum Undo {
    Start,
    Continue,
    Free,
    Writable,
    Mode(PathBuf, u32),
    Back { from: PathBuf, to: PathBuf },
}

/// What was done, in words.
pub struct What {
    pub kind: &'static str,
    detail: String,
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.detail)
    }
}

fn what(kind: &'static str, detail: impl Into<String>) -> What {
    What { kind, detail: detail.into() }
}

impl Fault {
    /// One that can be done to a node of that role.
    pub fn draw(random: &mut Random, role: &Role) -> Fault {
        use Fault::{Away, Down, Full, Kill, Permissions, ReadOnly, Stop, Term};
        let possible: &[Fault] = match role {
            Role::Service { .. } => {
                &[Kill, Kill, Down, Stop, Term, Full, Full, ReadOnly, Permissions, Permissions, Away]
            }
            Role::Copy { .. } => &[Kill, Kill, Down, Stop, Term, Full, Full, ReadOnly, Permissions, Permissions],
            Role::Relay { .. } => &[Kill, Down, Stop, Term],
        };
        possible[random.within(0..possible.len() as u64) as usize]
    }

    /// Does it. What it returns undoes it.
    pub fn start(self, node: &mut Node, random: &mut Random) -> Result<(What, Vec<Undo>)> {
        match self {
            Fault::Kill => {
                node.kill()?;
                node.start()?;
                Ok((what("kill", ""), Vec::new()))
            }
            Fault::Down => {
                node.kill()?;
                Ok((what("down", ""), vec![Undo::Start]))
            }
            Fault::Stop => {
                node.signal(Signal::STOP)?;
                Ok((what("stop", ""), vec![Undo::Continue]))
            }
            Fault::Term if node.is_settled() => {
                node.terminate()?;
                node.start()?;
                Ok((what("terminate", ""), Vec::new()))
            }
            Fault::Term => Ok((what(NOTHING, "(not settled)"), Vec::new())),
            Fault::Full => full(node, random),
            Fault::ReadOnly => read_only(node),
            Fault::Permissions => permissions(node, random),
            // A service that starts without the directory has no such log, and its feeder would create another.
            Fault::Away if node.is_settled() => away(node),
            Fault::Away => Ok((what(NOTHING, "(not settled)"), Vec::new())),
        }
    }
}

fn full(node: &mut Node, random: &mut Random) -> Result<(What, Vec<Undo>)> {
    let disk = node.disk.as_ref().context("a node with a disk")?;
    disk.fill(random.within(0..128 << 10))?;
    let killed = random.one_in(3);
    if killed {
        node.kill()?;
        node.start()?;
    }
    Ok((what("full", if killed { "and killed" } else { "" }), vec![Undo::Free]))
}

fn read_only(node: &mut Node) -> Result<(What, Vec<Undo>)> {
    let disk = node.disk.as_ref().context("a node with a disk")?;
    if disk.make_read_only()? {
        return Ok((what("read-only", "while it runs"), vec![Undo::Writable]));
    }
    // A file is open for writing, so the kernel refuses while the process runs.
    node.kill()?;
    let done = node.disk.as_ref().is_some_and(|disk| disk.make_read_only().is_ok_and(|done| done));
    node.start()?;
    Ok((what("read-only", if done { "at start" } else { "refused" }), vec![Undo::Writable]))
}

fn permissions(node: &mut Node, random: &mut Random) -> Result<(What, Vec<Undo>)> {
    let dir = node.holds().context("a node that holds a log")?;
    let mut candidates = vec![dir.clone()];
    if let Some((_, newest)) = segments(&dir)?.pop() {
        candidates.extend([newest.clone(), newest.with_extension("ofs")]);
    }
    if matches!(node.role, Role::Service { .. }) {
        candidates.extend(dir.parent().map(Path::to_owned));
    }
    candidates.retain(|path| path.exists());
    if candidates.is_empty() {
        return Ok((what(NOTHING, "(no files yet)"), Vec::new()));
    }
    let path = candidates.swap_remove(random.within(0..candidates.len() as u64) as usize);
    let undo = forbid(&path, random)?;
    // Files that are open stay so: often it has to open them again.
    let killed = !random.one_in(3);
    if killed {
        node.kill()?;
        node.start()?;
    }
    let detail = format!("{}{}", path.display(), if killed { " and killed" } else { "" });
    Ok((what("permissions", detail), vec![undo]))
}

/// Takes away the permission to write, or to read as well.
fn forbid(path: &Path, random: &mut Random) -> Result<Undo> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    let less = if random.one_in(2) { 0 } else { mode & 0o555 };
    fs::set_permissions(path, Permissions::from_mode(less))?;
    Ok(Undo::Mode(path.to_owned(), mode))
}

fn away(node: &mut Node) -> Result<(What, Vec<Undo>)> {
    let dir = node.holds().context("a node that holds a log")?;
    let log = dir.parent().context("its log")?;
    let logs = log.parent().context("its logs")?;
    if !log.exists() {
        return Ok((what(NOTHING, "(no log yet)"), Vec::new()));
    }
    let elsewhere = logs.with_file_name("away");
    fs::rename(log, &elsewhere)?;
    Ok((what("away", ""), vec![Undo::Back { from: elsewhere, to: log.to_owned() }]))
}

/// Makes the source, or its last segment, unreadable, or renames it for a while. The writer does not notice.
pub fn disturb_source(dir: &Path, random: &mut Random) -> Result<(What, Vec<Undo>)> {
    match random.within(0..3) {
        0 => {
            let elsewhere = dir.with_extension("away");
            fs::rename(dir, &elsewhere)?;
            Ok((what("source-away", ""), vec![Undo::Back { from: elsewhere, to: dir.to_owned() }]))
        }
        1 => Ok((what("source-permissions", "of the directory"), vec![forbid(dir, random)?])),
        _ => {
            let newest = segments(dir)?.pop().context("the source has a segment")?.1;
            Ok((what("source-permissions", "of a segment"), vec![forbid(&newest, random)?]))
        }
    }
}

impl Undo {
    /// Ends a fault of a node, or of the source.
    pub fn run(self, node: Option<&mut Node>) -> Result<()> {
        if let Undo::Mode(path, mode) = &self {
            return match fs::set_permissions(path, Permissions::from_mode(*mode)) {
                // An empty last segment of the source that was removed meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                done => done.with_context(|| format!("set the mode of {}", path.display())),
            };
        }
        if let Undo::Back { from, to } = &self {
            return fs::rename(from, to).with_context(|| format!("{} was made while it was away", to.display()));
        }
        let node = node.context("a fault of a node")?;
        match self {
            Undo::Start => node.start(),
            Undo::Continue => node.signal(Signal::CONT),
            Undo::Free => node.disk.as_ref().map_or(Ok(()), Disk::free),
            Undo::Writable => node.disk.as_ref().map_or(Ok(()), Disk::make_writable),
            Undo::Mode(..) | Undo::Back { .. } => Ok(()),
        }
    }
}
