//! Restoring: a plain database file as of a commit, from a directory or a service.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::draft::Draft;
use super::feed::Feed;
use super::fold::{FoldError, Folded, prepare};
use super::plain::{self, PlainError};
use crate::api::{LastCommit, LogState, LogStatus, Positions};
use crate::client::{Client, ClientError, named_base, positions};
use crate::format::wal::FIRST_FRAME;
use crate::format::{LogFormat, name};
use crate::limits::{JSON_BYTES_MAX, PIECES_UNDER_WAY, RESTORE_ROUNDS};
use crate::offset::{Generation, Offset};
use crate::repo::{FsRepo, Repo, give_owner, read_small};
use crate::segment::base::{BaseDigest, BaseReader};
use crate::segment::frames::{BASE, segment_starts};
use crate::sqlite::names::{JOURNAL, WAL, beside, is_no_side_file, looks_like_a_database};
use crate::stream::{current_generation, known_base};

/// What a log keeps about itself.
const META: &str = "log.json";

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The commit frame; the last one unless given. 0: the base.
    pub to: Option<Offset>,
    /// The generation; the current one unless given.
    pub generation: Option<Generation>,
    /// The database file to make.
    pub out: PathBuf,
    /// Whether a file that exists may be replaced, if it is a SQLite database.
    pub overwrite: bool,
    /// Whether the file is to be without the tables that the SQL engine keeps for `AUTOINCREMENT` beside `sqlite_sequence`. It is
    /// not byte for byte what the log holds then, if there are any.
    pub plain: bool,
}

/// Why nothing was restored. What was at [`Wanted::out`] is still there.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is no such database.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// There is a file already.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The file to replace is something else.
    #[error("{} exists and is no SQLite database: it is not replaced; give another path, or remove it first", .0.display())]
    NotADatabase(PathBuf),
    /// SQLite would take this file for a part of the new database.
    #[error("{} belongs to the database that was there before: close that and remove both", .0.display())]
    Beside(PathBuf),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The place holds no database.
    #[error("{0}")]
    NotALog(String),
    /// The service ended its answer before the frame that it says is durable.
    #[error("the service sent frames up to {last}, but says that they are durable up to {durable}")]
    Short {
        /// The last commit that came.
        last: Offset,
        /// What it says.
        durable: Offset,
    },
    /// The log is damaged on the service.
    #[error(
        "{place}: the log is damaged on the service{}: {reason}; nothing was restored: repair it in the service, or restore from a sound \
         copy", .at.map(|at| format!(" at offset {at}")).unwrap_or_default()
    )]
    SourceDamaged {
        /// The log's URL.
        place: String,
        /// The first offset that is not sound, where the service says it.
        at: Option<Offset>,
        /// What the service says.
        reason: String,
    },
    /// The service does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The database cannot be made a plain one.
    #[error("the database cannot be made plain: {0}; nothing was restored: restore it as it is, without --plain")]
    NotPlain(String),
    /// The disk is at fault.
    #[error("{place}: {error}")]
    Io {
        /// Where.
        place: String,
        /// How.
        error: io::Error,
    },
}

impl RestoreError {
    /// Whether something else should be asked for.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            RestoreError::Fold(error) => error.is_usage(),
            RestoreError::Exists(_)
            | RestoreError::NotADatabase(_)
            | RestoreError::Beside(_)
            | RestoreError::Invalid(_)
            | RestoreError::NotPlain(_) => true,
            RestoreError::Client(error) => matches!(error, ClientError::Url { .. }),
            RestoreError::NotALog(_) | RestoreError::Short { .. } | RestoreError::SourceDamaged { .. } => false,
            RestoreError::Io { .. } => false,
        }
    }

    /// Whether the data is at fault.
    #[must_use]
    pub fn is_data(&self) -> bool {
        match self {
            RestoreError::Fold(error) => error.is_data(),
            RestoreError::Client(ClientError::Refused { body, .. }) => body.error == "corrupt-log",
            RestoreError::Client(ClientError::OtherContent { .. }) => true,
            RestoreError::NotALog(_) | RestoreError::Short { .. } | RestoreError::SourceDamaged { .. } => true,
            _ => false,
        }
    }

    /// One word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            RestoreError::Fold(error) => error.code(),
            RestoreError::Exists(_) | RestoreError::NotADatabase(_) | RestoreError::Beside(_) => "exists",
            RestoreError::Invalid(_) | RestoreError::NotPlain(_) => "invalid",
            RestoreError::NotALog(_) => "not-a-log",
            RestoreError::Short { .. } => "truncated",
            RestoreError::SourceDamaged { .. } => "corrupt-log",
            RestoreError::Client(ClientError::OtherContent { .. }) => "corrupt",
            RestoreError::Client(_) => "unavailable",
            RestoreError::Io { .. } => "io",
        }
    }
}

/// The name under which the database at `out` is made until it is whole: one for each process.
///
/// # Errors
/// [`RestoreError::Invalid`] when `out` names no file.
pub fn draft_path(out: &Path) -> Result<PathBuf, RestoreError> {
    let file = out.file_name().and_then(|file| file.to_str());
    let file = file.ok_or_else(|| RestoreError::Invalid(format!("{} is no name for a file", out.display())))?;
    Ok(out.with_file_name(format!("{file}.{}.tmp", std::process::id())))
}

/// Restores from a directory: that of a generation, that of a log with its `log.json`, or any that holds `base.db` and
/// segments. After Ok the database survives power loss.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore_dir(dir: &Path, wanted: &Wanted) -> Result<(Option<Generation>, Folded), RestoreError> {
    loop {
        let (path, generation) = generation_dir(dir, wanted.generation)?;
        let folded = restore_generation(&path, wanted, || {
            // Of a log with its `log.json` it is a directory of its own.
            current_generation(dir).is_ok_and(|now| now.is_none_or(|(_, now)| now == path))
        });
        match folded {
            Ok(Some(folded)) => return Ok((generation, folded)),
            Err(error) if !error.is_usage() && generation_dir(dir, wanted.generation)?.0 == path => return Err(error),
            Err(error) if error.is_usage() => return Err(error),
            // The directory is a mirror that went into another generation, and removes what was read.
            _ => log::info!("{}: it went into another generation: starting over", dir.display()),
        }
    }
}

/// Restores what is in the directory of a generation; `None` when it is not the current one any more.
fn restore_generation(
    path: &Path,
    wanted: &Wanted,
    is_current: impl FnOnce() -> bool,
) -> Result<Option<Folded>, RestoreError> {
    let source = FsRepo::open(path).map_err(|error| at(path, error))?;
    let place = Place::of(wanted)?;
    let same = path.canonicalize().ok() == place.parent().canonicalize().ok();
    if same && wanted.out.file_name().is_some_and(|file| file == BASE) {
        return Err(RestoreError::Invalid(format!("{} is what its generation starts from", wanted.out.display())));
    }
    let known = known_base(path).map_err(|error| at(path, error))?;
    BaseReader::open_proven(&source, &known).map_err(FoldError::from)?;
    let (draft, folded) = prepare(&source, wanted.to, place.target.clone(), place.draft_name.clone())?;
    // What is removed while it is read may look like a shorter log.
    if !is_current() {
        draft.discard();
        return Ok(None);
    }
    place.publish(draft, &folded, &path.display().to_string())?;
    Ok(Some(folded))
}

/// Restores from the log of a service. After Ok the database survives power loss. An answer that is not what the service says it
/// holds is asked for once more, on a new connection. Where neither a generation nor an offset is wanted, it begins again with the
/// current generation when the one that was current is deleted meanwhile.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore_url(client: &Client, wanted: &Wanted) -> Result<(Option<Generation>, Folded), RestoreError> {
    let is_current = wanted.generation.is_none() && wanted.to.is_none();
    let mut rounds = 0..RESTORE_ROUNDS;
    loop {
        match restore_url_checked(client, wanted).await {
            Err(RestoreError::Client(error)) if is_current && error.is_gone() && rounds.next().is_some() => {
                log::info!("{}: {error}; beginning again with the current generation", client.url());
            }
            restored => return restored,
        }
    }
}

async fn restore_url_checked(client: &Client, wanted: &Wanted) -> Result<(Option<Generation>, Folded), RestoreError> {
    match restore_url_once(client, wanted).await {
        Err(RestoreError::Client(error)) if error.is_doubtful() => {
            log::warn!("{}: {error}; asking again on a new connection", client.url());
            restore_url_once(&client.connected_again()?, wanted).await
        }
        // The service may have found the damage only where its answer broke off.
        Err(error @ (RestoreError::Client(_) | RestoreError::Short { .. })) => match status_of(client, wanted).await {
            Ok(status) => Err(is_sound(client, &status, wanted).err().unwrap_or(error)),
            Err(_) => Err(error),
        },
        restored => restored,
    }
}

async fn status_of(client: &Client, wanted: &Wanted) -> Result<LogStatus, ClientError> {
    match wanted.generation {
        Some(generation) => client.status_of(generation).await,
        None => client.status().await,
    }
}

/// That a service does not say of a log that what is wanted of it is damaged.
///
/// # Errors
/// [`RestoreError::SourceDamaged`].
fn is_sound(client: &Client, status: &LogStatus, wanted: &Wanted) -> Result<(), RestoreError> {
    let at = status.damage.as_ref().map(|damage| damage.offset).or(status.durable);
    let is_before = wanted.to.is_some_and(|to| at.is_none_or(|at| to < at));
    if status.state != LogState::Damaged || is_before {
        return Ok(());
    }
    let reason = status.error.clone().unwrap_or_else(|| "no reason was given".to_owned());
    Err(RestoreError::SourceDamaged { place: client.url().to_string(), at, reason })
}

async fn restore_url_once(client: &Client, wanted: &Wanted) -> Result<(Option<Generation>, Folded), RestoreError> {
    let place = Place::of(wanted)?;
    let status = status_of(client, wanted).await?;
    is_sound(client, &status, wanted)?;
    let Positions { format, generation: described, durable, last_commit, .. } = positions(&status)?;
    if format != LogFormat::Wal {
        return Err(RestoreError::NotALog(format!("{} is a {format}, which makes no database", client.url())));
    }
    let generation = wanted.generation.unwrap_or(described);
    let named = named_base(&status, generation)?;
    let durable = Offset(durable.0.saturating_sub(1));
    let end = match described == generation {
        true => DurableEnd { durable: wanted.to.is_none().then_some(durable), last_commit },
        // A service of before describes no other generation than the current one.
        false => DurableEnd::default(),
    };

    let (sender, pieces) = mpsc::channel(PIECES_UNDER_WAY);
    let to = wanted.to;
    let source = client.url().to_string();
    let folding = tokio::task::spawn_blocking(move || fold_pieces(place, &source, to, end, pieces));
    let sent = send(client, (generation, named), to, sender).await;
    let folded = match folding.await {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        folded => folded.map_err(|error| at(&wanted.out, io::Error::other(error)))?,
    };
    match (folded, sent) {
        (Some(folded), _) => Ok((Some(generation), folded?)),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(())) => Err(at(&wanted.out, io::ErrorKind::BrokenPipe.into())),
    }
}

/// What the service says of the end of a log.
#[derive(Default)]
struct DurableEnd {
    /// The last durable frame, if all up to it is wanted.
    durable: Option<Offset>,
    /// The last durable commit.
    last_commit: Option<LastCommit>,
}

impl DurableEnd {
    /// That what was folded reaches as far, and is what the service holds there.
    fn check(&self, folded: &Folded, feed: &Feed) -> Result<(), RestoreError> {
        if let Some(durable) = self.durable.filter(|durable| folded.frame < *durable) {
            return Err(RestoreError::Short { last: folded.frame, durable });
        }
        match (self.last_commit, feed.watched()) {
            (Some(LastCommit { checksum, .. }), Some((frame, found))) if checksum != found => {
                let what = format!(
                    "the frames that were received have the checksum {found:016x} at frame {frame}, and the service says {checksum:016x}"
                );
                Err(ClientError::OtherContent { what }.into())
            }
            _ => Ok(()),
        }
    }
}

enum Piece {
    Base(Bytes),
    Log(Bytes),
    End,
}

/// Sends base and frames on, until all are sent or nobody takes them any more.
async fn send(
    client: &Client,
    (generation, named): (Generation, Option<BaseDigest>),
    to: Option<Offset>,
    sender: mpsc::Sender<Piece>,
) -> Result<(), ClientError> {
    let base = client.base(generation).await?;
    let digest = base.digest();
    is_of_base(digest, named)?;
    if !pass(base, Piece::Base, &sender).await? {
        return Ok(());
    }
    if to != Some(Offset(0)) {
        let commits = client.read_of(Some(generation), FIRST_FRAME, None, false).await?;
        is_of_base(commits.base, digest)?;
        let is_said = commits.base.is_some();
        if !pass(commits, Piece::Log, &sender).await? {
            return Ok(());
        }
        if !is_said && digest.is_some() {
            // A service that does not say it beside the frames.
            is_of_base(named_base(&client.status_of(generation).await?, generation)?, digest)?;
        }
    }
    // Whether it is still wanted shows in what the fold says.
    let _ = sender.send(Piece::End).await;
    Ok(())
}

/// That an answer is of the log whose base was received.
fn is_of_base(named: Option<BaseDigest>, received: Option<BaseDigest>) -> Result<(), ClientError> {
    match (named, received) {
        (Some(named), Some(received)) if named != received => {
            let what =
                format!("an answer is of a log whose base has the SHA-256 {named}, and the base of another {received}");
            Err(ClientError::OtherContent { what })
        }
        _ => Ok(()),
    }
}

async fn pass(
    stream: impl Stream<Item = Result<Bytes, ClientError>>,
    piece: fn(Bytes) -> Piece,
    sender: &mpsc::Sender<Piece>,
) -> Result<bool, ClientError> {
    let mut stream = std::pin::pin!(stream);
    while let Some(bytes) = stream.next().await {
        if sender.send(piece(bytes?)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Folds what comes in; `None` when it stops coming before its end.
fn fold_pieces(
    place: Place,
    source: &str,
    to: Option<Offset>,
    end: DurableEnd,
    mut pieces: mpsc::Receiver<Piece>,
) -> Option<Result<Folded, RestoreError>> {
    let draft = match Draft::create(place.target.clone(), place.draft_name.clone()) {
        Ok(draft) => draft,
        Err(error) => return Some(Err(at(&place.out, error))),
    };
    if let Err(error) = place.give_owner() {
        draft.discard();
        return Some(Err(at(&place.out, error)));
    }
    let mut feed = Feed::new(draft, to).watching(end.last_commit.map(|last| last.last_offset()));
    let mut fed = || loop {
        let done = match pieces.blocking_recv()? {
            Piece::Base(bytes) => feed.base(&bytes),
            Piece::Log(bytes) => feed.log(&bytes),
            Piece::End => return Some(feed.finish()),
        };
        match done {
            Err(error) => return Some(Err(error)),
            Ok(()) if to != Some(Offset(0)) && feed.reached() => return Some(feed.finish()),
            Ok(()) => {}
        }
    };
    let fed = fed().map(|fed| {
        let folded = fed?;
        end.check(&folded, &feed).map(|()| folded)
    });
    let draft = feed.into_draft();
    match fed {
        Some(Ok(folded)) => Some(place.publish(draft, &folded, source).map(|()| folded)),
        failed => {
            draft.discard();
            failed
        }
    }
}

/// Where the database goes.
struct Place {
    target: Arc<dyn Repo>,
    draft_name: String,
    out: PathBuf,
    overwrite: bool,
    plain: bool,
}

impl Place {
    fn of(wanted: &Wanted) -> Result<Place, RestoreError> {
        let Wanted { out, overwrite, plain, .. } = wanted;
        let draft = draft_path(out)?;
        let draft_name = draft.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let (target, out) = (Arc::new(parent_of(out)?), out.clone());
        let place = Place { target, draft_name, out, overwrite: *overwrite, plain: *plain };
        place.check()?;
        Ok(place)
    }

    fn parent(&self) -> &Path {
        parent(&self.out)
    }

    fn check(&self) -> Result<(), RestoreError> {
        is_no_side_file(&self.out).map_err(|error| RestoreError::Invalid(error.to_string()))?;
        if self.out.is_dir() {
            return Err(RestoreError::Invalid(format!("{} is a directory", self.out.display())));
        }
        match self.out.symlink_metadata() {
            Ok(_) if !self.overwrite => return Err(RestoreError::Exists(self.out.clone())),
            // The application may have the file open by its own name, and SQLite looks for a WAL beside that.
            Ok(found) if found.is_symlink() => return Err(is_link(&self.out)),
            _ => {}
        }
        if self.out.exists() {
            match looks_like_a_database(&self.out) {
                Ok(true) => {}
                Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(at(&self.out, error)),
                _ => return Err(RestoreError::NotADatabase(self.out.clone())),
            }
        }
        // SQLite would play such a file back into the new database.
        for suffix in [WAL, JOURNAL] {
            let beside = beside(&self.out, suffix);
            if beside.symlink_metadata().is_ok() {
                return Err(RestoreError::Beside(beside));
            }
        }
        Ok(())
    }

    /// Gives the draft to the owner of the file that it takes the place of, with the same mode, before there is a byte in it.
    fn give_owner(&self) -> io::Result<()> {
        match self.out.symlink_metadata() {
            Ok(before) if self.overwrite && before.is_file() => {
                give_owner(&File::open(self.out.with_file_name(&self.draft_name))?, &before, &self.out)
            }
            _ => Ok(()),
        }
    }

    /// Takes the engine's own tables out of the draft, if that is wanted.
    fn make_plain(&self, draft: &Draft) -> Result<(), RestoreError> {
        if !self.plain {
            return Ok(());
        }
        match plain::convert(draft.file()) {
            Ok(gone) => log::info!("{}: {gone} internal tables were left out", self.out.display()),
            Err(PlainError::Io(error)) => return Err(at(&self.out, error)),
            Err(error) => return Err(RestoreError::NotPlain(error.to_string())),
        }
        Ok(())
    }

    /// Gives the finished draft its name, and replaces nothing unless asked to. `source` says where it is from.
    fn publish(&self, draft: Draft, folded: &Folded, source: &str) -> Result<(), RestoreError> {
        let not_empty = match folded.bytes {
            0 => Err(RestoreError::NotALog(format!("{source} holds no database: its {BASE} is missing"))),
            _ => Ok(()),
        };
        let published = not_empty.and_then(|()| self.check()).and_then(|()| self.make_plain(&draft)).and_then(|()| {
            if self.overwrite {
                return self.give_owner().map(|()| true).map_err(|error| at(&self.out, error));
            }
            let path = self.out.with_file_name(&self.draft_name);
            match renameat_with(CWD, &path, CWD, &self.out, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(false),
                Err(Errno::EXIST) => Err(RestoreError::Exists(self.out.clone())),
                // A file system that cannot: we looked just now.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(true),
                Err(error) => Err(at(&self.out, error.into())),
            }
        });
        let name = self.out.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match published {
            Ok(true) => draft.publish(name).map_err(|error| at(&self.out, error)),
            Ok(false) => self.target.sync_dir().map_err(|error| at(&self.out, error)),
            Err(error) => {
                draft.discard();
                Err(error)
            }
        }
    }
}

fn is_link(out: &Path) -> RestoreError {
    let to = std::fs::read_link(out).unwrap_or_default();
    let to = parent(out).join(to);
    let (out, to) = (out.display(), to.display());
    RestoreError::Invalid(format!(
        "{out} is a symbolic link to {to}: it is not replaced; give {to}, or remove the link"
    ))
}

fn parent(out: &Path) -> &Path {
    out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn parent_of(out: &Path) -> Result<FsRepo, RestoreError> {
    FsRepo::open(parent(out)).map_err(|error| at(parent(out), error))
}

fn at(place: &Path, error: io::Error) -> RestoreError {
    RestoreError::Io { place: place.display().to_string(), error }
}

#[derive(Deserialize)]
struct Meta {
    format: Option<String>,
    generation: Generation,
}

/// The directory with base and segments that `dir` stands for, and its generation if that is known.
fn generation_dir(dir: &Path, asked: Option<Generation>) -> Result<(PathBuf, Option<Generation>), RestoreError> {
    let shown = dir.display();
    if dir.is_file() {
        let text = format!("{shown} is a file, and no log: give the directory or the URL of one");
        return Err(RestoreError::Invalid(text));
    }
    let repo = FsRepo::open(dir).map_err(|error| at(dir, error))?;
    let meta = read_small(&repo, META, JSON_BYTES_MAX as u64).map_err(|error| at(dir, error))?;
    let below = |generation: Generation| (dir.join(name::generation(generation)), Some(generation));
    if let Some(meta) = meta {
        let Meta { format, generation } = serde_json::from_slice(&meta)
            .map_err(|error| RestoreError::NotALog(format!("{shown}/{META} is damaged: {error}")))?;
        return match format {
            Some(format) if format != "wal" => {
                Err(RestoreError::NotALog(format!("{shown} is a {format}, which makes no database")))
            }
            _ => Ok(below(asked.unwrap_or(generation))),
        };
    }
    let names = repo.list().map_err(|error| at(dir, error))?;
    let holds =
        names.iter().any(|name| name == BASE) || !segment_starts(&repo).map_err(|error| at(dir, error))?.is_empty();
    // After the files of the directory itself: those are removed once there is another generation.
    if let Some((held, path)) = current_generation(dir).map_err(|error| at(dir, error))? {
        return match asked {
            Some(asked) if asked != held => {
                Err(RestoreError::Invalid(format!("{shown} holds generation {held}, and not {asked}")))
            }
            _ => Ok((path, Some(held))),
        };
    }
    let own = dir.canonicalize().ok().and_then(|path| name::parse_generation(path.file_name()?.to_str()?));
    let generations = names.iter().filter_map(|name| name::parse_generation(name));
    match (holds, asked, generations.max()) {
        (false, Some(generation), Some(_)) => Ok(below(generation)),
        (true, Some(generation), _) if own != Some(generation) => Err(RestoreError::Invalid(format!(
            "{shown} holds one generation, and is not named as generation {generation}"
        ))),
        (true, ..) => Ok((dir.to_owned(), own)),
        (false, None, Some(newest)) => Err(RestoreError::Invalid(format!(
            "{shown} lacks its {META}: say which generation is meant with --generation, up to {newest}"
        ))),
        // A generation that has just begun.
        (false, _, None) if own.is_some() && asked.is_none_or(|asked| own == Some(asked)) => Ok((dir.to_owned(), own)),
        (false, _, None) => Err(RestoreError::NotALog(format!("{shown} holds neither {BASE} nor segments (*.wal)"))),
    }
}
