//! A SQLite database of this machine as the source of a mirror: its file is the base of a generation, its transactions the frames.
//!
//! What keeps a wrong byte from being stored while the database is in use:
//!
//! - **The base** is read through a [`Snapshot`], whose locks keep SQLite from changing it, into a temporary file if it goes to a
//!   service: they are not held while a network is waited for. What does not heed them shows in
//!   `check`, which is asked after the last byte was read and before the stream of them ends: a base whose stream ends with
//!   an error is never given its name by the sink.
//! - **Frames** are verified on the way, each by the checksum that runs on from the header of its WAL. In the log they get
//!   checksums that run on from those of the log, through every reset of the source's WAL.
//! - **Going on** takes a proof that nothing was missed: the WAL of the sink's header with its checksum at the sink's last frame,
//!   or what the sink [notes](super::fed) of the source. Without it the pages that differ become one transaction, if the sink
//!   says that this database feeds it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::alone::Alone;
use super::base::{self, BaseStream, Blocks};
use super::base_copy::{BaseCopy, CopyError};
use super::base_due::Instead;
use super::confirmed;
use super::delivery::Delivery;
use super::distance::SharedWal;
use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::fed;
use super::live::{Live, Rest, goes_on};
use super::missing::Warning;
use super::outlet::{NO_STALL, Outlet, STALL};
use super::overlap::Overlap;
use super::ownership::source_identity;
use super::pump::pump;
use super::run::{Event, Progress};
use super::sink::{Sink, SinkStatus};
use super::source::{Piece, Pieces, Watch};
use super::standing::Standing;
use super::step::{Steps, may_be_rolled, step};
use crate::api::LogSource;
use crate::format::LogFormat;
use crate::format::database;
use crate::format::wal::{Chain, FIRST_FRAME, FRAME_HEADER_LEN, FrameHeader, WalHeader, WalStart};
use crate::limits::{BATCHES_UNDER_WAY, LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::offset::{Generation, Offset};
use crate::sqlite::names::{WAL, database_of_wal, looks_like_a_database};
use crate::sqlite::page_sums::PageSums;
use crate::sqlite::{
    DatabaseError, DatabaseUser, HardLinks, HeldDatabase, KnownWal, Snapshot, Verdict, WalPosition, command_of,
    each_difference, opener_of, user_of, warning_of_links,
};
use crate::stream::Tail;

/// Whether a path is that of a SQLite database, which an empty file is too, or by its name that of a WAL. Whether they are
/// sound shows when they are read.
#[must_use]
pub fn is_database(path: &Path) -> bool {
    find_database(path).unwrap_or(false)
}

/// The same; what cannot be read now may be a database, and is an error.
///
/// # Errors
/// When there is something at the path that cannot be read.
pub(super) fn find_database(path: &Path) -> io::Result<bool> {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound, PermissionDenied};
    if path.is_dir() {
        return Ok(false);
    }
    if path.to_str().is_some_and(|path| path.ends_with(WAL)) {
        return Ok(true);
    }
    match looks_like_a_database(path) {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | InvalidData) => Ok(false),
        Err(error) if error.kind() == PermissionDenied => {
            let text = format!("{error}: let this user read it, or run as the user of the application");
            Err(io::Error::new(PermissionDenied, text))
        }
        found => found,
    }
}

/// A database to mirror.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// Whether a log may be taken over that nothing says is fed from it: until it was, so that what happens to the database later, or a
    /// promotion of the log, is no reason to do it again.
    adopt: AtomicBool,
    /// Whether it has fed the sink.
    has_fed: AtomicBool,
    /// Where it ends, as last seen.
    wal: SharedWal,
    /// That no other mirror feeds the sink from it, by the name it has then and the id of the log.
    alone: Mutex<Option<((String, String), Alone)>>,
}

impl Database {
    pub(super) fn new(path: &Path, adopt: bool, wal: SharedWal) -> Database {
        Database {
            path: path.to_owned(),
            adopt: AtomicBool::new(adopt),
            has_fed: AtomicBool::new(false),
            wal,
            alone: Mutex::default(),
        }
    }

    fn adopts(&self) -> bool {
        self.adopt.load(Ordering::Relaxed)
    }

    pub(super) async fn snapshot(&self) -> Result<Arc<Snapshot>, MirrorError> {
        open(&self.path, None).await
    }

    /// That its file has other names, if it has.
    ///
    /// # Errors
    /// When what it holds is not found by its path.
    pub(super) async fn warning(&self) -> Result<Option<Warning>, MirrorError> {
        let path = self.path.clone();
        let found = off(move || warning_of_links(&path)).await??;
        Ok(found.map(|text| Warning { text, missing: None }))
    }

    /// What a sink notes as its source.
    fn identity(&self) -> String {
        identity(&self.path)
    }

    /// Makes sure that no other mirror feeds a service's log from it; true if that was not known before. The log is created.
    async fn claim(&self, sink: &Sink) -> Result<bool, MirrorError> {
        let held = || self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let Sink::Url(client) = sink else { return Ok(false) };
        let log = match client.find().await? {
            Some(found) if !found.id.is_empty() => found.id,
            _ => {
                sink.standing(true).await?;
                client.status().await?.id
            }
        };
        let name = (self.identity(), log);
        if held().as_ref().is_some_and(|(known, _)| *known == name) {
            return Ok(false);
        }
        // A log that was made again since is another one.
        *held() = None;
        let claimed = Alone::claim(&name.0, &name.1);
        let place = || client.url().to_string();
        *held() = Some((name, claimed.ok_or_else(|| MirrorError::FedByAnother { place: place() })?));
        Ok(true)
    }

    /// Reads it on a thread of its own.
    fn read(
        &self,
        mirror: &Mirror,
        snapshot: Arc<Snapshot>,
        (start, generation): (Start, Generation),
        watch: Option<Watch>,
        steps: Arc<Steps>,
    ) -> Pieces {
        let (out, pieces) = mpsc::channel(BATCHES_UNDER_WAY);
        // The base that was just given is all there is.
        let base =
            matches!(start.from, From::Position(None)).then(|| start.rest.unwrap_or_else(|| Rest::of(&snapshot)));
        let (at, sums, reason) = match start.from {
            From::Position(at) => (at, start.sums, "it was written while its base was sent".to_owned()),
            From::Pages { sums, reason } => (None, Some(*sums), reason),
        };
        let outlet = Outlet::new(
            (out.clone(), if mirror.follow { STALL } else { NO_STALL }),
            (generation, start.end, start.next),
            mirror.commit_bytes_max,
            sums,
            steps,
        );
        let live = Live {
            path: self.path.clone(),
            database: database_of(&self.path),
            links: HardLinks::default(),
            outlet,
            watch,
            at,
            committed: at,
            reason,
            identity: self.identity(),
            wal: self.wal.clone(),
            known: None,
            hold: mirror.hold,
            took: Duration::ZERO,
            seen: base,
            page_size: start.page_size,
            is_rollback_known: false,
            failing: None,
            gave_way: 0,
        };
        tokio::task::spawn_blocking(move || {
            let end = live.run(snapshot).map(|()| Piece::End(Tail::Clean));
            // The other end is gone when it has stopped for a reason of its own.
            let _ = out.blocking_send(end);
        });
        pieces
    }
}

/// What identifies the database that a path of it or of its WAL names: its host and path.
pub(super) fn identity(path: &Path) -> String {
    source_identity(&database_of(path))
}

/// The database that a path of it or of its WAL names.
pub(super) fn database_of(path: &Path) -> PathBuf {
    let path = database_of_wal(path).unwrap_or(path);
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Mirrors what is missing of a database, and then follows if that is wanted.
pub(super) async fn attempt(
    mirror: &Mirror,
    database: &Database,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let mut is_last = !mirror.release;
    // Of its WAL, from one look to the next. Another attempt reads all of it again: damage may have come to what was read.
    let mut known = None;
    loop {
        // Watch first: what is written between the look and the first wait must wake us.
        let watch = mirror.follow.then(|| watch(&database.path));
        let snapshot = open(&database.path, known.take()).await?;
        known = snapshot.known_wal().cloned();
        database.warning().await?.into_iter().for_each(|warning| told(Event::Warning(warning)));
        sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?;
        if database.claim(sink).await? {
            // What another mirror sent until now must be in the snapshot.
            continue;
        }
        let (mut start, mut generation, snapshot) = begin(database, snapshot, sink, progress, told).await?;
        database.adopt.store(false, Ordering::Relaxed);
        database.has_fed.store(true, Ordering::Relaxed);
        let snapshot = match snapshot {
            Some(snapshot) => snapshot,
            None => open(&database.path, known.take()).await?,
        };
        known = snapshot.known_wal().cloned();
        // What the sink holds may be new with this generation.
        let status = sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?;
        if let SinkStatus::Url(Some(now)) = &status
            && (now.generation, now.durable) != (generation, start.next)
        {
            log::debug!("the sink moved to offset {} of generation {} meanwhile", now.durable, now.generation);
            continue;
        }
        let mut delivery = Delivery::new(sink, status, LogFormat::Wal, generation);
        delivery.open(None, told).await?;
        if let Some(note) = start.claim.take() {
            sink.claim(&note, false).await?;
        }
        let (from, steps) = (start.next, Arc::<Steps>::default());
        steps.set_durable(from);
        progress.begin(Generation::FIRST, from);
        // Frames of another generation start over at the first.
        progress.counted.1 = progress.counted.1.min(from);
        told(Event::Started { from, held: true, source_bytes: bytes_left(&snapshot, &start) });
        let mut pieces = database.read(mirror, snapshot, (start, generation), watch, steps.clone());
        while let Err(error) = deliver(&mut pieces, delivery, progress, &steps, told).await.map_err(moved) {
            let Sink::Url(client) = sink else { return Err(error) };
            if !mirror.follow || !may_be_rolled(&error) {
                return Err(error);
            }
            let feeds = (&*database.identity(), generation);
            let Some((next, after)) = step(client, feeds, &error, &steps, &mut pieces, told).await? else {
                return Err(error);
            };
            log::info!("{}: the log was rolled over, going on in generation {next}", client.url());
            generation = next;
            let status = sink.status(Some(LogFormat::Wal)).await.map_err(|error| sink.own(error))?;
            delivery = Delivery::new(sink, status, LogFormat::Wal, generation);
            delivery.open(None, told).await?;
            // What is sent again was counted.
            let again = progress.counted.1.0.saturating_sub(after.0);
            progress.begin(Generation::FIRST, FIRST_FRAME);
            progress.counted.1 = Offset(FIRST_FRAME.0 + again);
            told(Event::Started { from: FIRST_FRAME, held: true, source_bytes: 0 });
        }
        if let Sink::Url(client) = sink {
            confirmed::check_end(client, generation, progress.durable).await?;
        }
        if mirror.release {
            is_in_no_use(&database.path, progress.durable).await?;
        }
        if !mirror.follow && is_last {
            return Ok(());
        }
        // What was committed before nobody had it open may have come after the look before.
        is_last = true;
        log::debug!("{}: asking what the sink holds", database.path.display());
    }
}

/// That no other process has a database open, which is copied up to `next`.
async fn is_in_no_use(path: &Path, next: Offset) -> Result<(), MirrorError> {
    let asking = path.to_owned();
    let user = move || {
        let Some(DatabaseUser { pid }) = user_of(&asking)? else { return Ok(None) };
        let pid = pid.or_else(|| opener_of(&asking));
        Ok::<_, DatabaseError>(Some((pid, pid.and_then(command_of))))
    };
    match off(user).await?? {
        Some((pid, command)) => Err(MirrorError::SourceInUse { path: database_of(path), pid, command, next }),
        None => Ok(()),
    }
}

/// What a mirror of ours that was killed has sent may be taken only after the next one asked where the log ends: it is no other
/// history, and shows when it asks again.
fn moved(error: MirrorError) -> MirrorError {
    match error {
        MirrorError::Refused(body) if body.error == "fork" => {
            MirrorError::Interrupted(format!("{}: asking again what the sink holds", body.message))
        }
        error => error,
    }
}

/// Delivers what a database hands over, until it ends or the sink does.
async fn deliver(
    pieces: &mut Pieces,
    mut delivery: Delivery<'_>,
    progress: &mut Progress,
    steps: &Steps,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let mut seen = |event| {
        if let Event::Moved(now) = &event {
            steps.set_durable(now.durable);
        }
        told(event);
    };
    let pumped = pump(pieces, &mut delivery, Overlap::default(), progress, &mut seen).await;
    // What came is sound and is kept, whatever became of the rest.
    let ended = delivery.end().await;
    if let Ok(Some(durable)) = &ended {
        // A directory without a frame says nothing of where it starts.
        progress.durable = (*durable).max(FIRST_FRAME);
        seen(Event::Moved(*progress));
    }
    pumped?;
    ended.map(drop)
}

/// Bytes of the frames of a snapshot that are to be sent.
fn bytes_left(snapshot: &Snapshot, start: &Start) -> u64 {
    let sent = match &start.from {
        From::Position(at) => at.map_or(0, |at| at.frames),
        From::Pages { .. } => snapshot.frames(),
    };
    snapshot.header().map_or(0, |header| snapshot.frames().saturating_sub(sent) * header.frame_len())
}

async fn open(path: &Path, known: Option<KnownWal>) -> Result<Arc<Snapshot>, MirrorError> {
    let path = path.to_owned();
    Ok(Arc::new(off(move || Snapshot::open_after(&path, known.as_ref())).await??))
}

/// Runs work that waits for a disk where it holds nobody up.
pub(super) async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MirrorError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| MirrorError::Interrupted(error.to_string()))
}

pub(super) fn watch(path: &Path) -> Watch {
    let path = database_of(path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Watch::new(dir, path.file_name())
}

/// How a sink goes on with a snapshot.
pub(super) struct Start {
    /// The frame to send first.
    pub(super) next: Offset,
    /// How the log goes on there; none where it starts with the header.
    pub(super) end: Option<WalStart>,
    /// The generation that must be given the snapshot's base before.
    pub(super) generation: Option<Generation>,
    /// In whose place that base is put.
    pub(super) instead: Instead,
    /// The base to give instead of the database file.
    made: Option<Vec<u8>>,
    /// Bytes of a page of the log in this generation.
    page_size: u32,
    /// The sums of the pages of the base that was given, and what the database was like then.
    sums: Option<PageSums>,
    rest: Option<Rest>,
    /// What the sink holds, and what goes on.
    from: From,
    /// What a directory is to note of its source once it is opened.
    claim: Option<LogSource>,
}

/// What is read first.
enum From {
    /// What follows this position in the WAL; with none, what follows the base.
    Position(Option<WalPosition>),
    /// The pages that differ from these.
    Pages { sums: Box<PageSums>, reason: String },
}

/// Finds out how a sink goes on with a snapshot. Changes nothing.
///
/// # Errors
/// When they do not fit each other.
pub(super) async fn find_start(
    source: &Database,
    snapshot: &Arc<Snapshot>,
    sink: &Sink,
    standing: &Standing,
) -> Result<Start, MirrorError> {
    let path = &source.path;
    let looking = snapshot.clone();
    if let Some(cut) = off(move || looking.cut()).await?? {
        return Err(DatabaseError::Cut { path: path.clone(), cut }.into());
    }
    let noted = sink.source().await.map_err(|error| sink.own(error))?;
    // A crash may have come before the note of a directory's new generation.
    let noted = noted.filter(|noted| {
        matches!(sink, Sink::Url(_)) || (noted.generation == standing.generation && !standing.is_of_log)
    });
    let ours = noted.as_ref().map_or(standing.is_recorded, |noted| noted.identity == source.identity());
    let page_size = snapshot.page_size().unwrap_or(LIBSQL_PAGE_SIZE);
    let go_on = |at| Start {
        next: standing.next,
        end: standing.end,
        generation: None,
        instead: Instead::Nothing,
        made: None,
        page_size,
        sums: None,
        rest: None,
        from: From::Position(at),
        claim: None,
    };
    let brings = |generation, instead| {
        let made = match snapshot.base_bytes() {
            Some(0) => Some(database::empty(LIBSQL_PAGE_SIZE)),
            Some(_) => None,
            None => Some(base_of_wal(path, snapshot)?),
        };
        let (next, end, generation) = (FIRST_FRAME, None, Some(generation));
        Ok::<_, MirrorError>(Start {
            next,
            end,
            generation,
            instead,
            made,
            page_size,
            sums: None,
            rest: None,
            from: From::Position(None),
            claim: None,
        })
    };
    let another = Generation(standing.generation.0.saturating_add(1));
    if let Some(fault) = &standing.base_fault {
        match sink {
            Sink::Dir(_) if !standing.based && standing.end.is_none() && (ours || source.adopts()) => {}
            Sink::Dir(_) if source.adopts() => return brings(another, Instead::All),
            Sink::Dir(dir) => {
                return Err(MirrorError::BaseLost { place: dir.path().to_owned(), fault: fault.clone() });
            }
            Sink::Url(_) if source.adopts() => return brings(another, Instead::Nothing),
            // It takes frames all the same, and the end of the mirror says that the log is not whole.
            Sink::Url(_) => {}
        }
    }
    if let Some(at) = noted.as_ref().and_then(|noted| fed::position(noted, standing)) {
        let looking = snapshot.clone();
        if off(move || goes_on(&looking, &at)).await?? && is_base_fitting(sink, standing, snapshot, &at).await? {
            return Ok(go_on(Some(at)));
        }
    }
    if let (Some(theirs), Some(header)) = (standing.end, snapshot.header())
        && theirs.header == header
    {
        let (looking, standing_there) = (snapshot.clone(), standing.clone());
        let fitting = move || {
            let at = fits(&looking, &standing_there, theirs.chain)?;
            Ok::<_, MirrorError>((at, goes_on(&looking, &at)?))
        };
        match off(fitting).await? {
            Ok((at, true)) if is_base_fitting(sink, standing, snapshot, &at).await? => return Ok(go_on(Some(at))),
            Ok(_) => {}
            // What damage has taken away is told as that.
            Err(error) => match damage(path, snapshot) {
                Some(damage) => return Err(damage),
                None if !ours && !source.adopts() => return Err(error),
                None => {}
            },
        }
    }
    if let (Some(_), Verdict::Header(error)) = (standing.end, snapshot.verdict()) {
        return Err(MirrorError::WalHeader { path: path.to_owned(), error: error.clone() });
    }
    if sink.is_unset(standing).await? {
        return brings(standing.generation, Instead::Nothing);
    }
    if snapshot.base_bytes() == Some(0) && snapshot.frames() == 0 && !source.adopts() {
        return Err(MirrorError::EmptySource { path: path.to_owned() });
    }
    let sums = match (sink.page_sums(standing, snapshot.page_size()).await, sink) {
        (Err(MirrorError::BaseDamaged { .. }), Sink::Dir(_)) if source.adopts() => {
            return brings(another, Instead::All);
        }
        // As one that lost its end.
        (Err(MirrorError::Restore(error)), Sink::Dir(_)) if source.adopts() && error.is_data() => {
            return brings(another, Instead::All);
        }
        (Err(MirrorError::BaseDamaged { fault, .. }), Sink::Dir(dir)) => {
            return Err(MirrorError::BaseLost { place: dir.path().to_owned(), fault: fault.to_string() });
        }
        (Err(error), _) if standing.base_fault.is_some() => return Err(with_adoption(sink.own(error))),
        (sums, _) => sums.map_err(|error| sink.own(error))?,
    };
    // Without a base to compare, the WAL must be the one that is there.
    if let Some(sums) = sums
        && snapshot.base_bytes().is_some_and(|bytes| bytes > 0)
    {
        let reason = "it was not known what was committed since this database was mirrored last".to_owned();
        if ours {
            return Ok(Start { from: From::Pages { sums: Box::new(sums), reason }, ..go_on(None) });
        }
        let looking = snapshot.clone();
        let (same, sums) = off(move || Ok::<_, DatabaseError>((is_same(&looking, &sums)?, sums))).await??;
        if same {
            if let (Sink::Url(client), None, false) = (sink, &noted, source.adopts()) {
                return Err(MirrorError::WrittenByClients { place: client.url().to_string() });
            }
            return Ok(Start { from: From::Pages { sums: Box::new(sums), reason }, ..go_on(None) });
        }
    }
    let (held, loser) = match &noted {
        Some(LogSource { identity, .. }) => {
            let lost = match source.has_fed.load(Ordering::Relaxed) && !ours {
                true => format!("was taken over from {}: it ", source.identity()),
                false => String::new(),
            };
            (
                format!("{lost}is fed from {identity}, and holds other pages"),
                format!(", and {identity} feeds it no more"),
            )
        }
        None => ("holds other pages, and nothing says that they came from this database".to_owned(), String::new()),
    };
    match sink {
        Sink::Dir(_) if ours || source.adopts() => brings(another, Instead::All),
        Sink::Dir(dir) => Err(MirrorError::OtherDatabase { place: dir.path().to_owned(), held }),
        Sink::Url(_) if ours || source.adopts() => brings(another, Instead::Nothing),
        Sink::Url(client) => Err(MirrorError::OtherDatabaseInLog { place: client.url().to_string(), held, loser }),
    }
}

/// What else can be done about a service's log whose base is damaged.
fn with_adoption(error: MirrorError) -> MirrorError {
    match error {
        MirrorError::SinkDamaged { place, reason } => {
            let reason = format!("{reason}; --adopt starts a new generation of it from SRC");
            MirrorError::SinkDamaged { place, reason }
        }
        error => error,
    }
}

/// Whether the base of a directory whose record names none is that of a sink which is at this position in the snapshot: the pages
/// that differ are those that the frames after it write.
async fn is_base_fitting(
    sink: &Sink,
    standing: &Standing,
    snapshot: &Arc<Snapshot>,
    at: &WalPosition,
) -> Result<bool, MirrorError> {
    if standing.unnamed_base.is_none() {
        return Ok(true);
    }
    let sums = match sink.page_sums(standing, snapshot.page_size()).await {
        Ok(Some(sums)) => sums,
        // What is wrong with the directory is reported where all of it is compared.
        Ok(None) | Err(MirrorError::Restore(_) | MirrorError::BaseDamaged { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let (looking, held) = (snapshot.clone(), at.frames);
    Ok(off(move || differs_after(&looking, &sums, held)).await??)
}

/// Whether the pages of a snapshot that differ from these are written by its frames after `held` of them.
fn differs_after(snapshot: &Snapshot, sums: &PageSums, held: u64) -> Result<bool, DatabaseError> {
    let mut written = BTreeSet::new();
    if let Some(header) = snapshot.header() {
        for frame in held..snapshot.frames() {
            let mut head = [0; FRAME_HEADER_LEN];
            snapshot.read_wal(header.byte_after(frame), &mut head)?;
            written.insert(FrameHeader::decode(&head).page);
        }
    }
    let mut others = false;
    each_difference(snapshot, sums, |page, _, _| {
        others |= !written.contains(&page);
        Ok::<_, DatabaseError>(())
    })?;
    snapshot.check()?;
    Ok(!others)
}

/// Whether the database of a snapshot has exactly these pages.
fn is_same(snapshot: &Snapshot, sums: &PageSums) -> Result<bool, DatabaseError> {
    let mut differ = false;
    let found = each_difference(snapshot, sums, |_, _, _| {
        differ = true;
        Ok::<_, DatabaseError>(())
    })?;
    snapshot.check()?;
    Ok(!differ && found.pages == sums.pages())
}

/// Brings the sink to where it can take what a snapshot holds, with a new generation if that needs one; and which one it is in. The
/// snapshot is returned unless its locks were let go.
async fn begin(
    source: &Database,
    snapshot: Arc<Snapshot>,
    sink: &Sink,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(Start, Generation, Option<Arc<Snapshot>>), MirrorError> {
    let path = &source.path;
    sink.admits_mirrors(source.adopts(), false).await?;
    let standing = sink.standing(true).await?;
    let mut start = find_start(source, &snapshot, sink, &standing).await?;
    let Some(generation) = start.generation else {
        if let (Sink::Dir(dir), Some(base)) = (sink, standing.unnamed_base) {
            // From now on its record names it.
            dir.record_base(base);
        }
        // From now on it is this database that feeds it.
        let noted = sink.source().await?;
        if noted.as_ref().is_none_or(|noted| noted.identity != source.identity()) {
            let note = match &start.from {
                From::Position(Some(at)) => {
                    let ours = standing.end.map_or(at.chain, |end| end.chain);
                    fed::note((&source.identity(), standing.generation), at, (at.chain, ours), standing.next)
                }
                _ => fed::name(&source.identity(), standing.generation, standing.next),
            };
            match sink {
                Sink::Url(_) => sink.claim(&note, source.adopts()).await?,
                // Once it is opened: until then it may be another process's.
                Sink::Dir(_) => start.claim = Some(note),
            }
        }
        return Ok((start, standing.generation, Some(snapshot)));
    };
    if let Sink::Url(_) = sink {
        // Before the base: nobody else writes meanwhile, and an attempt that ends right after it finds a log that is its own.
        let note = match generation == standing.generation {
            true => fed::awaited(&source.identity(), generation),
            false => fed::name(&source.identity(), standing.generation, standing.next),
        };
        sink.claim(&note, source.adopts()).await?;
    }
    let header = snapshot.header().filter(|_| snapshot.frames() > 0);
    let folding = snapshot.clone();
    let folded = off(move || folding.folded()).await??;
    start.rest = Some(Rest::of(&snapshot));
    let copied = match (&start.made, sink) {
        (None, Sink::Url(_)) => copied(snapshot.clone(), folded).await?,
        (None, Sink::Dir(_)) if folded > 0 => copied(snapshot.clone(), folded).await?,
        _ => None,
    };
    let is_completed = copied.as_ref().is_some_and(|copy| copy.at.is_some());
    let mut at = header.map(|header| WalPosition { salts: header.salts, frames: 0, chain: header.seed() });
    let snapshot = if let Some(copy) = copied {
        drop(snapshot);
        base::put(copy.stream(), generation, sink, start.instead, progress, told).await?;
        (start.sums, at) = (copy.sums, copy.at.or(at));
        None
    } else {
        let base = BaseStream::new(blocks(snapshot.clone(), start.made.take()));
        bring(&snapshot, base, generation, (sink, start.instead), progress, told).await?;
        Some(snapshot)
    };
    log::info!("{} starts generation {generation}", path.display());
    sink.note_source(&fed::name(&source.identity(), generation, FIRST_FRAME)).await?;
    if let (Some(at), Some(header)) = (at, header) {
        start.from = From::Position(Some(at));
        let note = fed::note((&source.identity(), generation), &at, (at.chain, header.seed()), FIRST_FRAME);
        if folded > 0 && !is_completed {
            log::warn!(
                "{}: frames up to {folded} may be in the database already, so this generation is only sure to be restored to \
                 frame {folded} and later",
                path.display()
            );
        }
        sink.note_source(&note).await?;
    }
    Ok((start, generation, snapshot))
}

/// A copy of the database file, for a sink that is far away; none where there is no room for one.
async fn copied(snapshot: Arc<Snapshot>, folded: u64) -> Result<Option<BaseCopy>, MirrorError> {
    let path = snapshot.path().to_owned();
    match off(move || BaseCopy::of(&snapshot, folded)).await? {
        Ok(copy) => Ok(Some(copy)),
        Err(CopyError::Database(error)) => Err(error.into()),
        Err(CopyError::Copy(error)) => {
            log::warn!(
                "{}: its file cannot be copied before it is sent, so nobody checkpoints until it is: {error}",
                path.display()
            );
            Ok(None)
        }
    }
}

/// The position of the sink in a snapshot whose WAL has its header.
fn fits(snapshot: &Snapshot, standing: &Standing, theirs: Chain) -> Result<WalPosition, MirrorError> {
    let (held, next) = (standing.next.0.saturating_sub(1), standing.next);
    if snapshot.frames() < held {
        return Err(MirrorError::Ahead { sink: next, source_end: Offset(snapshot.frames() + 1) });
    }
    let Some(header) = snapshot.header().filter(|_| snapshot.frames() > 0) else {
        return Err(MirrorError::Fork { at: Offset(held), is_first: false });
    };
    match chain_at(snapshot, &header, held)? {
        Some(chain) if chain == theirs => Ok(WalPosition { salts: header.salts, frames: held, chain }),
        _ => Err(MirrorError::Fork { at: Offset(held), is_first: false }),
    }
}

/// The checksum up to and with a frame.
fn chain_at(snapshot: &Snapshot, header: &WalHeader, frame: u64) -> Result<Option<Chain>, DatabaseError> {
    let Some(before) = frame.checked_sub(1) else {
        return Ok(Some(header.seed()));
    };
    let mut head = [0; FRAME_HEADER_LEN];
    let read = snapshot.read_wal(header.byte_after(before), &mut head)?;
    Ok((read == head.len()).then(|| FrameHeader::decode(&head).chain))
}

/// What a WAL that stands alone starts from: nothing, if its first transaction writes every page.
fn base_of_wal(path: &Path, snapshot: &Snapshot) -> Result<Vec<u8>, MirrorError> {
    let lacking = |reason: String| MirrorError::NoBase { path: path.to_owned(), reason };
    let Some(header) = snapshot.header().filter(|_| snapshot.frames() > 0) else {
        return Err(lacking("it holds no transaction".into()));
    };
    let mut pages = BTreeSet::new();
    for frame in 0..snapshot.frames() {
        let mut head = [0; FRAME_HEADER_LEN];
        if snapshot.read_wal(header.byte_after(frame), &mut head)? < head.len() {
            break;
        }
        let FrameHeader { page, size, .. } = FrameHeader::decode(&head);
        pages.insert(page);
        if size > 0 {
            let lacks = (1..=size).zip(pages.iter()).find(|(wanted, page)| wanted != *page).map(|(wanted, _)| wanted);
            let lacks = lacks.or((pages.len() < size as usize).then(|| pages.len() as u32 + 1));
            return match lacks {
                Some(page) => Err(lacking(format!("its first transaction writes {size} pages, but not page {page}"))),
                None => Ok(database::empty(header.page_size)),
            };
        }
    }
    Err(lacking("it holds no transaction".into()))
}

/// Makes the base of `generation` of the sink one that is read from the snapshot, in the place of what is there.
async fn bring(
    snapshot: &Snapshot,
    base: BaseStream,
    generation: Generation,
    (sink, instead): (&Sink, Instead),
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let brought = base::put(base, generation, sink, instead, progress, told).await;
    if brought.is_err() {
        // The reason, if it is ours.
        snapshot.check()?;
    }
    brought
}

/// The bytes of a base. They end well only if the snapshot was consistent up to the last one.
fn blocks(snapshot: Arc<Snapshot>, made: Option<Vec<u8>>) -> Blocks {
    if let Some(made) = made {
        let checked = async move { snapshot.check().map(|()| Bytes::from(made)).map_err(io::Error::other) };
        return stream::once(checked).boxed();
    }
    let blocks = stream::try_unfold((snapshot, 0), |(snapshot, at)| async move {
        let reading = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = snapshot.read_base(at, &mut block)?;
            block.truncate(count);
            if count == 0 {
                snapshot.check()?;
            }
            Ok::<_, DatabaseError>((block, snapshot))
        });
        let (block, snapshot) = reading.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let at = at + block.len() as u64;
        Ok((!block.is_empty()).then_some((Bytes::from(block), (snapshot, at))))
    });
    blocks.boxed()
}

/// What is wrong with the WAL behind its committed part, if anything is.
pub(super) fn damage(path: &Path, snapshot: &Snapshot) -> Option<MirrorError> {
    let path = path.to_owned();
    match snapshot.verdict() {
        Verdict::Whole | Verdict::Leftover { .. } => None,
        Verdict::Header(error) => Some(MirrorError::WalHeader { path, error: error.clone() }),
        Verdict::Damaged { invalid, sound } => {
            let (frame, at, sound) = (invalid.frame, invalid.at, sound.frame);
            Some(MirrorError::WalDamaged { path, frame, at, sound })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::TryStreamExt;

    use super::*;

    fn gathered(blocks: Blocks) -> io::Result<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let gathered = runtime.block_on(blocks.try_collect::<Vec<_>>())?;
        Ok(gathered.concat())
    }

    #[test]
    fn the_stream_of_a_base_that_was_written_meanwhile_does_not_end_well() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("app.db");
        let content = database::empty(4096).repeat(200);
        fs::write(&path, &content).expect("written");
        let open = || Arc::new(Snapshot::open(&path).expect("a snapshot"));
        assert!(gathered(blocks(open(), None)).is_ok_and(|base| base == content));
        let (snapshot, other) = (open(), open());
        let mut writer = fs::File::options().append(true).open(&path).expect("opened");
        writer.write_all(&[0; 4096]).expect("written");
        let error = gathered(blocks(snapshot, None)).expect_err("it changed");
        assert!(error.to_string().contains("changed"), "{error}");
        assert!(gathered(blocks(other, Some(vec![1]))).is_err(), "what was made up goes with the snapshot");
    }
}
