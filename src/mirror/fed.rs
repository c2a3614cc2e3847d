//! What a sink notes of the database that feeds it: which one, and how far it was read. Only with it a mirror that was restarted
//! knows that it missed nothing: the frames of a log have salts of their own.

use std::io;
use std::path::Path;

use super::database::off;
use super::failure::MirrorError;
use super::sink::Sink;
use super::standing::Standing;
use crate::api::LogSource;
use crate::client::ClientError;
use crate::format::wal::{Chain, FIRST_FRAME, WalStart};
use crate::limits::JSON_BYTES_MAX;
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, read_small, replace};
use crate::sqlite::WalPosition;

/// The file beside the mirror record that says it in a directory.
const FILE: &str = ".logmirror-source";

/// The note that after so many frames of a WAL, with the checksum `theirs`, the log is at `offset` with the checksum `ours`.
pub(super) fn note(
    (identity, generation): (&str, Generation),
    at: &WalPosition,
    (theirs, ours): (Chain, Chain),
    offset: Offset,
) -> LogSource {
    LogSource {
        identity: identity.to_owned(),
        generation,
        offset,
        salts: at.salts,
        frames: at.frames,
        checksum: format!("{:016x}", theirs.number()),
        log_checksum: format!("{:016x}", ours.number()),
        awaits_base: false,
    }
}

/// The note that a database feeds the log from `offset` on, of whose WAL nothing is known.
pub(super) fn name(identity: &str, generation: Generation, offset: Offset) -> LogSource {
    let nowhere = WalPosition { salts: [0, 0], frames: 0, chain: Chain::default() };
    note((identity, generation), &nowhere, (Chain::default(), Chain::default()), offset)
}

/// The note of a source that is to bring the first base of a log.
pub(super) fn awaited(identity: &str, generation: Generation) -> LogSource {
    LogSource { awaits_base: true, ..name(identity, generation, FIRST_FRAME) }
}

/// The position in the WAL of the source that stands for the end of the sink, if what was noted tells.
pub(super) fn position(noted: &LogSource, standing: &Standing) -> Option<WalPosition> {
    let (theirs, ours) = (chain(&noted.checksum)?, chain(&noted.log_checksum)?);
    if noted.generation != standing.generation || noted.salts == [0, 0] {
        return None;
    }
    let since = standing.next.0.checked_sub(noted.offset.0)?;
    let chain = match standing.end {
        // The same frames followed on both sides: what the sums differ by was carried along.
        Some(WalStart { header, chain }) => {
            // Before its first frame a log has the checksum of its header, whichever it took.
            let ours = if noted.offset == FIRST_FRAME { header.seed() } else { ours };
            chain.minus(ours.minus(theirs).carried(since * (8 + u64::from(header.page_size))))
        }
        None if since == 0 => theirs,
        None => return None,
    };
    Some(WalPosition { salts: noted.salts, frames: noted.frames.checked_add(since)?, chain })
}

/// The note for the generation that follows one whose frames are all folded into its base, where that ended at `next` with the
/// checksum and header `end`: the same position in the WAL of the source, and the checksum that the generation before ended with.
/// Where the position is not known, the note says nothing of the WAL.
pub(super) fn rolled(noted: &LogSource, (generation, next, end): (Generation, Offset, WalStart)) -> LogSource {
    let standing = Standing { generation, next, end: Some(end), based: true, ..Standing::NONE };
    let following = Generation(generation.0.saturating_add(1));
    let carried = match position(noted, &standing) {
        Some(at) => note((&noted.identity, following), &at, (at.chain, end.chain), FIRST_FRAME),
        None => name(&noted.identity, following, FIRST_FRAME),
    };
    LogSource { log_checksum: format!("{:016x}", end.chain.number()), ..carried }
}

/// The checksum that the generation before ended with, if the note is of a generation that was folded from it and has no frame.
pub(super) fn folded(noted: &LogSource) -> Option<Chain> {
    chain(&noted.log_checksum).filter(|_| noted.offset == FIRST_FRAME)
}

fn chain(text: &str) -> Option<Chain> {
    u64::from_str_radix(text, 16).ok().map(Chain::from_number)
}

impl Sink {
    /// What it notes of the database that feeds it.
    pub(super) async fn source(&self) -> Result<Option<LogSource>, MirrorError> {
        match self {
            Sink::Url(client) => Ok(client.find().await?.and_then(|status| status.source)),
            Sink::Dir(dir) => {
                let path = dir.path().to_owned();
                off(move || read(&path).map_err(|error| at(&path, error))).await?
            }
        }
    }

    /// Refuses a log that was handed over to its clients, unless it is to be taken from them, by a database or a log.
    pub(super) async fn admits_mirrors(&self, adopt: bool, is_log: bool) -> Result<(), MirrorError> {
        let Sink::Url(client) = self else {
            return Ok(());
        };
        match client.find().await?.and_then(|status| status.promoted_from) {
            Some(from) if !adopt => {
                let adoption = match is_log {
                    false => {
                        "give --adopt to take it from them: what they wrote stays in its last generation, as long as its policy keeps that"
                    }
                    true => {
                        "give --adopt to take it from them, which works as long as they wrote nothing, and once SRC is in a later \
                         generation than this: what they wrote stays in that, as long as its policy keeps it"
                    }
                };
                Err(MirrorError::Promoted { place: client.url().to_string(), from, adoption })
            }
            _ => Ok(()),
        }
    }

    /// Notes which database feeds it, and how far that was read. After Ok it is durable.
    pub(super) async fn note_source(&self, source: &LogSource) -> Result<(), MirrorError> {
        self.put_source(source, false).await
    }

    /// The same of a source that may not have fed it before, which is reported; with `adopt` also where the log was handed over to
    /// its clients, or is fed from another source now.
    pub(super) async fn claim(&self, source: &LogSource, adopt: bool) -> Result<(), MirrorError> {
        let before = self.source().await?.map(|before| before.identity);
        self.put_source(source, adopt).await?;
        if let Some(before) = before.filter(|before| *before != source.identity) {
            let (place, now) = (self.place(), &source.identity);
            log::warn!("{place}: taken over: it was fed from {before}, and is fed from {now} from here on");
        }
        Ok(())
    }

    async fn put_source(&self, source: &LogSource, adopt: bool) -> Result<(), MirrorError> {
        match self {
            Sink::Url(client) => match client.set_source(source, adopt).await {
                // Of a version that knows no such thing: its pages will be compared after a restart.
                Err(ClientError::Refused { status, .. }) if status == 404 || status == 405 => Ok(()),
                // What was sent is ours and makes sense.
                Err(error @ ClientError::Refused { status: 400, .. }) => Err(MirrorError::Interrupted(format!(
                    "the note of the source changed on its way to the sink: {error}"
                ))),
                noted => Ok(noted.map(drop)?),
            },
            Sink::Dir(dir) => {
                let (path, source) = (dir.path().to_owned(), source.clone());
                off(move || write(&path, &source).map_err(|error| at(&path, error))).await?
            }
        }
    }
}

fn at(path: &Path, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: path.display().to_string(), error }
}

fn read(path: &Path) -> io::Result<Option<LogSource>> {
    let repo = match FsRepo::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        repo => repo?,
    };
    // What cannot be read is as good as none: pages are compared then.
    Ok(read_small(&repo, FILE, JSON_BYTES_MAX as u64)?.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn write(path: &Path, source: &LogSource) -> io::Result<()> {
    replace(&FsRepo::open(path)?, FILE, &serde_json::to_vec_pretty(source)?)
}
