//! Whether what a server sends is one log: the base, and each frame the one that follows those before it. Owns: what is known of
//! that log, and that an answer which does not fit is asked for a second time on a new connection. Stores nothing.
//!
//! A service of logmirror says with each answer of which log it is, from which base that starts and which WAL header its checksums
//! follow from ([`WalFacts`]). A checksum covers all frames before it, and what it is after the frames of a replica follows from
//! the replica's own WAL, so nothing needs to be remembered but the log and its base. Servers that say nothing of the kind send
//! frames whose checksums follow from anything, or zeros in their place: what they send twice is taken as it is. A server that said it
//! once, in this run or to the replica that is held, must say it with each answer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ahead::Ahead;
use super::error::SyncError;
use super::links::Links;
use super::local::LocalLog;
use super::push_mark::digest_of;
use super::remote::{Pulled, Range, Remote, Said};
use super::wal_facts::WalFacts;
use super::{FRAME_LEN, Position, metadata};
use crate::format::database::{self, VERSIONS};
use crate::format::wal::{Chain, FrameHeader, WalHeader, WalStart};
use crate::limits::{LIBSQL_PAGE_SIZE, READ_BLOCK, SYNC_BATCH};
use crate::segment::base::BaseDigest;
use crate::sqlite::DatabaseError;

/// The log, and the base in it, that a replica was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    log: String,
    generation: u32,
    base: Option<BaseDigest>,
    /// Whether the replica was not compared with that base yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unproven: bool,
}

impl Origin {
    /// Whether a replica in that generation must be compared with the base.
    pub(super) fn is_unproven_in(&self, generation: u32) -> bool {
        self.unproven && self.generation == generation
    }
}

/// What the server said of its log so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Unknown,
    Nothing,
    Facts,
}

/// The checksum of the server after a frame.
#[derive(Clone, Copy, Debug)]
struct Run {
    generation: u32,
    frame: u32,
    at: WalStart,
}

/// Why an answer is not believed.
#[derive(Debug)]
enum Flaw {
    /// It does not say of which log it is, as others did.
    Silent,
    /// It contradicts itself, or what was said before.
    Answer(String),
    /// It is of another log, or of one with another base.
    Log(String, String),
    /// This frame does not follow those before it.
    Frame(u32, String),
    /// This frame of a server that says nothing does not follow the one before it; what was received.
    Link(u32, Bytes),
    /// The log ends here, before what was received of it.
    Short(u64),
}

/// A server whose answers are checked.
#[derive(Debug)]
pub(super) struct Continuity {
    remote: Remote,
    says: Says,
    origin: Option<Origin>,
    run: Option<Run>,
    /// What was said last.
    last: Option<WalFacts>,
    /// Of frames of which nothing was said.
    links: Links,
    ahead: Ahead,
}

impl Continuity {
    pub(super) fn new(remote: Remote) -> Continuity {
        Continuity {
            remote,
            says: Says::Unknown,
            origin: None,
            run: None,
            last: None,
            links: Links::default(),
            ahead: Ahead::default(),
        }
    }

    /// The server, whose answers are not checked.
    pub(super) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// What is known of the log.
    pub(super) fn origin(&self) -> Option<Origin> {
        self.origin.clone()
    }

    /// What is known of the log that a replica was made from.
    pub(super) fn expect(&mut self, origin: Option<Origin>) {
        if origin.is_some() {
            self.says = Says::Facts;
        }
        (self.origin, self.run, self.last) = (origin, None, None);
    }

    /// The server may be another one, or have other data, when it is asked again: only what the replica holds counts then.
    pub(super) fn again(&mut self) {
        (self.run, self.last) = (None, None);
        (self.links, self.ahead) = (Links::default(), Ahead::default());
    }

    /// The same, and it is asked on new connections.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn on_new_connections(&mut self) -> Result<(), SyncError> {
        self.again();
        self.remote = self.remote.on_new_connections()?;
        Ok(())
    }

    /// The last frame of a generation, if that is the one of which something was said last.
    pub(super) fn end_in(&self, generation: u32) -> Option<u32> {
        let last = self.last.as_ref().filter(|last| last.generation == u64::from(generation))?;
        Some(u32::try_from(last.end).unwrap_or(u32::MAX))
    }

    /// The current generation of the server; `None` when it is too old to say, and knows only one.
    ///
    /// # Errors
    /// As [`Remote::info`], and when the answer is not believed twice.
    pub(super) async fn info(&mut self) -> Result<Option<u32>, SyncError> {
        self.expect(None);
        let (mut remote, mut before) = (self.remote.clone(), None);
        loop {
            let (generation, said) = remote.info_with_facts().await?;
            if generation.is_none() && (self.says != Says::Facts || before.is_some()) {
                // The first servers gave out frames, unless this is no such server at all, or has no such log.
                let seed = |header: WalHeader| async move { Ok(header.seed()) };
                match self.pull(Range { generation: 1, start: 1, end: 2 }, seed).await {
                    Err(error) if self.says != Says::Facts || !error.is_pruned() => return Err(error),
                    _ => {}
                }
            }
            let flaw = match (generation, self.facts(said, generation, before.as_ref())) {
                (_, Err(flaw)) => flaw,
                (Some(generation), Ok(Some(facts))) if facts.current != u64::from(generation) => contradiction("/info"),
                (generation, Ok(facts)) => {
                    self.believe(facts);
                    return Ok(generation);
                }
            };
            remote = self.second(flaw, &mut before, Range { generation: generation.unwrap_or(1), start: 1, end: 1 })?;
        }
    }

    /// As [`Remote::export`]; `write` may be called for the same bytes again, and bytes after the length do not count.
    ///
    /// # Errors
    /// As [`Remote::export`], and when the answer is not believed twice.
    pub(super) async fn export<W>(&mut self, generation: u32, write: W) -> Result<u64, SyncError>
    where
        W: Fn(Bytes, u64) -> Result<(), SyncError> + Clone + Send + 'static,
    {
        let (mut remote, mut before) = (self.remote.clone(), None);
        loop {
            let exported = remote.export_with_facts(generation, write.clone()).await?;
            let found = exported.found;
            let flaw = match (exported.is_as_promised(), self.facts(exported.said, Some(generation), before.as_ref())) {
                (Err(reason), _) => Flaw::Answer(reason),
                (_, Err(flaw)) => flaw,
                (_, Ok(Some(facts))) if facts.base.is_some_and(|base| base != found) => {
                    Flaw::Answer("the export is not the base that the answer says it is".into())
                }
                (_, Ok(None)) if exported.bytes == 0 && generation > 1 => Flaw::Answer(
                    "the export has no byte, and a later generation than the first starts from a database".into(),
                ),
                (Ok(()), Ok(facts)) => {
                    self.believe(facts);
                    return Ok(exported.bytes);
                }
            };
            remote = self.second(flaw, &mut before, Range { generation, start: 1, end: 1 })?;
        }
    }

    /// Asks for frames that go on from what `ours` says is the checksum, under a header, after the frames before them.
    ///
    /// # Errors
    /// As [`Remote::pull`]; [`SyncError::Broken`] and [`SyncError::AnotherLog`] when the answer is not believed twice.
    pub(super) async fn pull<F>(&mut self, range: Range, ours: impl Fn(WalHeader) -> F) -> Result<Pulled, SyncError>
    where
        F: Future<Output = Result<Chain, SyncError>>,
    {
        let (mut remote, mut before) = (self.remote.clone(), None);
        let mut asked = self.ahead.take(range).await;
        loop {
            let (pulled, said) = match asked.take() {
                Some(answer) => answer?,
                None => remote.pull_with_facts(range).await?,
            };
            if range.start == 1 {
                self.take_first_base(&said);
            }
            let is_first_said = self.origin.is_none();
            let flaw = match self.facts(said, Some(range.generation), before.as_ref()) {
                Err(flaw) => flaw,
                Ok(None) => match self.linked(&pulled, range, before.as_ref()) {
                    Ok(()) => return Ok(pulled),
                    Err(flaw) => flaw,
                },
                Ok(Some(facts)) => {
                    let chain = match facts.wal {
                        None => Ok(None),
                        Some(WalStart { header, .. }) => match self.run_to(range, header) {
                            Some(known) => known.map(Some),
                            None => Ok(Some(ours(header).await?)),
                        },
                    };
                    match chain.and_then(|chain| self.check(&pulled, range, &facts, chain)) {
                        Ok(run) => {
                            self.run = run.or(self.run);
                            self.believe(Some(facts));
                            if let Some(origin) = self.origin.as_mut().filter(|_| is_first_said && range.start == 1) {
                                // Nothing was said with the base.
                                origin.unproven = true;
                            }
                            return Ok(pulled);
                        }
                        // A log that lost its end is another matter, unless it says that it goes on elsewhere.
                        Err(Flaw::Short(_)) if before.is_some() && facts.current == facts.generation => {
                            self.believe(Some(facts));
                            return Ok(pulled);
                        }
                        Err(flaw) => flaw,
                    }
                }
            };
            remote = self.second(flaw, &mut before, range)?;
        }
    }

    /// Asks for frames that will be wanted next, if the server is known to have some of them.
    pub(super) fn ask_ahead(&mut self, range: Range) {
        let of_generation = self.last.as_ref().filter(|last| last.generation == u64::from(range.generation));
        if of_generation.is_some_and(|last| last.end >= u64::from(range.start)) {
            self.ahead.ask(&self.remote, range);
        }
    }

    /// The generation ended where the replica is, which is about to go on in the next one.
    pub(super) fn ended(&mut self) {
        let next = self.last.take().and_then(|facts| facts.next);
        self.run = None;
        if let Some(origin) = &mut self.origin {
            (origin.generation, origin.base) = (origin.generation.saturating_add(1), next);
            origin.unproven = true;
        }
    }

    /// The base that the replica's generation starts from, if the replica was not compared with it yet and it is known.
    pub(super) fn unproven(&self) -> Option<BaseDigest> {
        self.origin.as_ref().filter(|origin| origin.unproven)?.base
    }

    /// The replica is that base.
    pub(super) fn proved(&mut self) {
        if let Some(origin) = &mut self.origin {
            origin.unproven = false;
        }
    }

    /// A log that had no base, and of which no frame was received, may have been given one: the replica is compared with that.
    fn take_first_base(&mut self, said: &Said) {
        let (Some(Ok(facts)), Some(origin)) = (said, &mut self.origin) else { return };
        let is_unset = origin.base == Some(BaseDigest::of(&database::empty(LIBSQL_PAGE_SIZE)));
        let is_same = origin.log == facts.log && u64::from(origin.generation) == facts.generation;
        if is_unset && is_same && facts.base.is_some_and(|base| origin.base != Some(base)) {
            log::info!("{}: the log was given its first base", self.remote.url());
            (origin.base, origin.unproven) = (facts.base, true);
            (self.run, self.last) = (None, None);
        }
    }

    /// What is said with an answer, if it can be of the log that this is about.
    fn facts(&mut self, said: Said, generation: Option<u32>, before: Option<&Flaw>) -> Result<Option<WalFacts>, Flaw> {
        let facts = match said {
            None if self.says == Says::Facts => return Err(Flaw::Silent),
            None => {
                if self.says != Says::Nothing {
                    log::info!(
                        "{}: the server does not say which checksums its frames follow from: what it sends is taken as it is",
                        self.remote.url()
                    );
                }
                self.says = Says::Nothing;
                return Ok(None);
            }
            Some(facts) => facts.map_err(Flaw::Answer)?,
        };
        self.says = Says::Facts;
        if generation.is_some_and(|asked| u64::from(asked) != facts.generation) {
            let (asked, found) = (generation.unwrap_or_default(), facts.generation);
            return Err(Flaw::Answer(format!("it is of generation {found}, not of {asked}")));
        }
        let Some(origin) = self.origin.as_ref().filter(|origin| u64::from(origin.generation) == facts.generation)
        else {
            return Ok(Some(facts));
        };
        let equal = origin.base.zip(facts.base).map(|(ours, theirs)| ours == theirs);
        let named = |base: Option<BaseDigest>| base.map_or("unknown".to_owned(), |base| base.to_string());
        // A log that was brought back from a copy has another id and the same frames.
        let persists = matches!(before, Some(Flaw::Log(log, _)) if *log == facts.log);
        if equal == Some(false) || origin.log != facts.log && !(persists && equal == Some(true)) {
            let reason = format!(
                "log {} with the base {} was expected, and log {} with the base {} found",
                origin.log,
                named(origin.base),
                facts.log,
                named(facts.base)
            );
            return Err(Flaw::Log(facts.log, reason));
        }
        Ok(Some(facts))
    }

    /// Whether frames of which nothing is said follow each other as far as they say so themselves, or are the same when they are
    /// asked for again.
    fn linked(&mut self, pulled: &Pulled, range: Range, before: Option<&Flaw>) -> Result<(), Flaw> {
        let Pulled::Frames(frames) = pulled else { return Ok(()) };
        let Some(frame) = self.links.take(range.generation, range.start, frames) else { return Ok(()) };
        if !matches!(before, Some(Flaw::Link(_, first)) if first == frames) {
            return Err(Flaw::Link(frame, frames.clone()));
        }
        log::warn!(
            "{}: the server sends frame {frame} of generation {} twice so that it does not follow the one before it: it is taken",
            self.remote.url(),
            range.generation
        );
        self.links.take_anyway(range.generation, range.start, frames);
        Ok(())
    }

    /// Notes what an answer that fits says.
    fn believe(&mut self, facts: Option<WalFacts>) {
        let Some(facts) = facts else { return };
        let generation = u32::try_from(facts.generation).unwrap_or(u32::MAX);
        let of_origin = self.origin.as_ref().filter(|origin| origin.generation == generation);
        if let Some(origin) = of_origin.filter(|origin| origin.log != facts.log) {
            log::warn!(
                "{}: log {} has the same base and frames as {} had: following it from now on",
                self.remote.url(),
                facts.log,
                origin.log
            );
        }
        let base = of_origin.and_then(|origin| origin.base).or(facts.base);
        let unproven = of_origin.is_some_and(|origin| origin.unproven);
        self.origin = Some(Origin { log: facts.log.clone(), generation, base, unproven });
        self.last = Some(facts);
    }

    /// The checksum before a range, where that was received last.
    fn run_to(&self, range: Range, header: WalHeader) -> Option<Result<Chain, Flaw>> {
        if range.start == 1 {
            return Some(Ok(header.seed()));
        }
        let run = self.run.filter(|run| (run.generation, run.frame + 1) == (range.generation, range.start))?;
        Some(match run.at.header == header {
            true => Ok(run.at.chain),
            false => Err(Flaw::Answer("it is of a WAL with another header than the answer before".into())),
        })
    }

    /// Checks an answer whose frames go on from `ours`; where they lead.
    fn check(&self, pulled: &Pulled, range: Range, facts: &WalFacts, ours: Option<Chain>) -> Result<Option<Run>, Flaw> {
        let (start, generation) = (range.start, range.generation);
        let frames = match pulled {
            Pulled::Frames(frames) => frames,
            Pulled::Nothing(current) if u64::from(*current) != facts.current => {
                return Err(contradiction("the number of the current generation"));
            }
            Pulled::Nothing(_) if u64::from(start) <= facts.end => {
                return Err(Flaw::Answer(format!("it has no frame {start}, and says that it ends at {}", facts.end)));
            }
            Pulled::Nothing(_) if u64::from(start) - 1 > facts.end => return Err(Flaw::Short(facts.end)),
            Pulled::Nothing(_) => {
                return match (facts.chain_after(facts.end), ours) {
                    (Some(theirs), Some(ours)) if theirs != ours => {
                        Err(Flaw::Frame(start - 1, "its checksum is another one on the server".into()))
                    }
                    _ => Ok(None),
                };
            }
        };
        let (Some(WalStart { header, .. }), Some(mut chain)) = (facts.wal, ours) else {
            return Err(Flaw::Answer("it has frames, and says that there are none".into()));
        };
        let before = self.last.as_ref().filter(|last| last.generation == facts.generation && last.log == facts.log);
        if let Some(before) = before.filter(|before| before.end > facts.end) {
            return Err(Flaw::Answer(format!(
                "it says that the log ends at {}, and the answer before at {}",
                facts.end, before.end
            )));
        }
        let said = [Some(facts), before];
        let mut last = start - 1;
        for (number, frame) in (start..).zip(frames.chunks_exact(FRAME_LEN)) {
            let Some((head, page)) = frame.split_first_chunk() else { break };
            chain = header.check(chain, head, page).map_err(|error| Flaw::Frame(number, error.to_string()))?.chain;
            let expected = said.into_iter().flatten().filter_map(|facts| facts.chain_after(number.into()));
            if expected.into_iter().any(|expected| expected != chain) {
                return Err(Flaw::Frame(number, "its checksum is another one than the server says".into()));
            }
            last = number;
        }
        if u64::from(last) > facts.end {
            return Err(Flaw::Answer(format!("it has frame {last}, and says that it ends at {}", facts.end)));
        }
        Ok(Some(Run { generation, frame: last, at: WalStart { header, chain } }))
    }

    /// The server, over a new connection, after the first flaw of an answer.
    ///
    /// # Errors
    /// That flaw, when it is the second.
    fn second(&self, flaw: Flaw, before: &mut Option<Flaw>, range: Range) -> Result<Remote, SyncError> {
        let Range { generation, .. } = range;
        let url = self.remote.url();
        if before.is_none() {
            let reason = flaw.reason();
            log::warn!(
                "{url}: an answer about generation {generation} is not believed: {reason}; asking again on a new connection"
            );
            *before = Some(flaw);
            return self.remote.on_new_connections();
        }
        Err(match flaw {
            Flaw::Link(frame, _) => {
                let reason = "its checksum does not go on from the one before, and it is another one each time".into();
                SyncError::Broken { url: url.to_string(), generation, frame, reason }
            }
            Flaw::Frame(frame, reason) => SyncError::Broken { url: url.to_string(), generation, frame, reason },
            Flaw::Log(_, reason) => SyncError::AnotherLog { url: url.to_string(), generation, reason },
            Flaw::Silent => SyncError::Silent { url: url.to_string(), generation },
            flaw => SyncError::Protocol {
                call: url.to_string(),
                reason: format!(
                    "{} (asked twice about generation {generation}, the second time on a new connection)",
                    flaw.reason()
                ),
            },
        })
    }
}

impl Flaw {
    fn reason(&self) -> String {
        match self {
            Flaw::Silent => "it does not say of which log it is, as other answers did".into(),
            Flaw::Answer(reason) | Flaw::Log(_, reason) => reason.clone(),
            Flaw::Frame(frame, reason) => format!("frame {frame} does not follow those before it: {reason}"),
            Flaw::Link(frame, _) => format!("the checksum in frame {frame} does not go on from the one before"),
            Flaw::Short(end) => format!("it ends at frame {end}, before what it has sent"),
        }
    }
}

fn contradiction(what: &str) -> Flaw {
    Flaw::Answer(format!("{what} is not what the same answer says of its log"))
}

/// Asks for frames that should be those of this digest, and a second time, on a new connection, when they are not. An end of the
/// log is expected where no digest is, or where `may_end`.
///
/// # Errors
/// As [`Remote::pull`].
pub(super) async fn pull_expected(
    remote: &Remote,
    range: Range,
    digest: Option<&str>,
    may_end: bool,
) -> Result<Pulled, SyncError> {
    let pulled = remote.pull(range).await?;
    let is_expected = match &pulled {
        Pulled::Frames(frames) => digest == Some(&digest_of(frames)),
        Pulled::Nothing(_) => may_end,
    };
    if is_expected {
        return Ok(pulled);
    }
    log::warn!("{}: {range} are not what was pushed: asking again on a new connection", remote.url());
    remote.on_new_connections()?.pull(range).await
}

/// The checksum that a log with this header has after the first `frame` frames of another.
///
/// # Errors
/// When they cannot be read.
pub(super) fn chain_after(log: &LocalLog, frame: u32, header: WalHeader) -> Result<Chain, DatabaseError> {
    let Some(own) = log.header().filter(|_| frame > 0) else {
        return Ok(header.seed());
    };
    if own.big_endian == header.big_endian {
        let last = log.batch(frame, frame.saturating_add(1))?;
        let chain = last.first_chunk().map(FrameHeader::decode).map(|head| head.chain).unwrap_or_default();
        return Ok(header.chain_like(frame.into(), WalStart { header: own, chain }));
    }
    let (mut chain, mut start) = (header.seed(), 1);
    while start <= frame {
        let end = start.saturating_add(SYNC_BATCH).min(frame.saturating_add(1));
        for bytes in log.batch(start, end)?.chunks_exact(FRAME_LEN) {
            if let Some((head, page)) = bytes.split_first_chunk() {
                chain = chain.over_frame(head, page, header.big_endian);
            }
        }
        start = end;
    }
    Ok(chain)
}

/// Whether a database file is the base with this digest: a base that is not in WAL mode is the same in a replica, which is. Blocks.
///
/// # Errors
/// When it cannot be read.
pub(super) fn is_base(file: &File, expected: BaseDigest) -> io::Result<bool> {
    Ok(digest_of_file(file, None)? == expected || digest_of_file(file, Some(ROLLBACK_VERSIONS))? == expected)
}

/// The version numbers in the header of a database that is not in WAL mode.
const ROLLBACK_VERSIONS: [u8; 2] = [1, 1];

/// The digest of a database file, as if it had these version numbers.
fn digest_of_file(file: &File, versions: Option<[u8; 2]>) -> io::Result<BaseDigest> {
    let (mut digest, mut at, mut block) = (Sha256::new(), 0, vec![0; READ_BLOCK]);
    loop {
        match file.read_at(&mut block, at) {
            Ok(0) => return Ok(BaseDigest(digest.finalize().into())),
            Ok(count) => {
                if let (0, Some(versions)) = (at, versions) {
                    block[VERSIONS].copy_from_slice(&versions);
                }
                digest.update(&block[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[derive(Deserialize)]
struct Beside {
    origin: Origin,
    origin_hash: u32,
}

fn hash(origin: &[u8]) -> u32 {
    crc32fast::hash(origin)
}

/// The content of a metadata file, and in it the name of the log. libSQL's own client passes over keys that it does not know.
pub(super) fn with_origin(mut content: Vec<u8>, position: Position, origin: Option<&Origin>) -> Vec<u8> {
    let origin = origin.filter(|origin| origin.generation == position.generation);
    if let (Some(Ok(origin)), Some(b'}')) = (origin.map(serde_json::to_vec), content.last()) {
        content.pop();
        content.extend_from_slice(b",\"origin\":");
        content.extend_from_slice(&origin);
        content.extend_from_slice(format!(",\"origin_hash\":{}}}", hash(&origin)).as_bytes());
    }
    content
}

/// The log that the content of a metadata file names, if it can be believed.
pub(super) fn decode(content: &[u8]) -> Option<Origin> {
    let position = metadata::decode(content).ok()?;
    let Beside { origin, origin_hash } = serde_json::from_slice(content).ok()?;
    let written = serde_json::to_vec(&origin).ok()?;
    (hash(&written) == origin_hash && origin.generation == position.generation).then_some(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_it_was_written_and_libsql_reads_the_rest() {
        let position = Position { generation: 2, frame: 77 };
        for base in [None, Some(BaseDigest::of(b"a base"))] {
            let origin = Origin { log: "an id".into(), generation: 2, base, unproven: base.is_some() };
            let content = with_origin(metadata::encode(position), position, Some(&origin));
            assert_eq!(metadata::decode(&content).ok(), Some(position));
            assert_eq!(decode(&content), Some(origin.clone()));
            let changed = String::from_utf8_lossy(&content).replace("an id", "an ib");
            assert_eq!(decode(changed.as_bytes()), None);
            let next = Position { generation: 3, ..position };
            assert_eq!(with_origin(metadata::encode(next), next, Some(&origin)), metadata::encode(next));
        }
        assert_eq!(decode(&metadata::encode(position)), None);
    }
}
