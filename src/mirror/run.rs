//! The one loop behind `logmirror mirror`: from any source to any sink, resuming where the sink ends.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::time::sleep;

use super::attempt::attempt;
use super::copies;
use super::database::{self, Database};
use super::distance::{Distance, Observer, SharedWal, measure};
use super::doubt::{self, Doubt};
use super::endpoint::{Mirror, Place};
use super::failure::MirrorError;
use super::fed_log::FedLog;
use super::missing::{self, Warning};
use super::ownership;
use super::relay;
use super::replica_file::{self, ReplicaFile, ReplicaFileError, is_replica_file};
use super::shorter;
use super::sink::{DirSink, Sink};
use super::source::Source;
use crate::blame::{Blame, Blamed, with_causes};
use crate::client::{Client, without_secrets};
use crate::limits::{ATTEMPTS_MAX, BACKOFF_LAST, MEASURE_LOG_EVERY};
use crate::offset::{Generation, Offset};
use crate::repo::FsRepo;
use crate::retry::RECONNECT;
use crate::sqlite::DatabaseError;
use crate::sqlite::names::is_no_side_file;
use crate::stream::{CutTail, Options, Run};

/// What happens while a mirror runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// An attempt starts.
    Started {
        /// Where the sink is, or what would be sent to it first while it holds no log.
        from: Offset,
        /// Whether the sink holds a log.
        held: bool,
        /// Bytes in the source from there on, roughly, not counting those that were sent before.
        source_bytes: u64,
    },
    /// The incomplete end of a write of ours was cut off the sink when it was opened.
    Cut(CutTail),
    /// The sink is a directory whose mirror record says that it was durable up to here, but that holds no segment any more: it
    /// is filled again.
    Emptied {
        /// What its record says.
        durable: Offset,
    },
    /// The sink is a directory that lost durable commits at its end, which the source holds: they are fetched again.
    Refetched {
        /// Where it ends.
        from: Offset,
        /// Up to where its record says that it was durable.
        to: Offset,
    },
    /// The sink was opened for writing.
    Opened {
        /// Everything before is durable in it.
        durable: Offset,
    },
    /// Something is to be known of the source or the sink. Reported with each attempt.
    Warning(Warning),
    /// Something moved.
    Moved(Progress),
    /// The source was measured: how far the sink is behind it. Only while following.
    Measured(Distance),
    /// The source ends inside a commit and is being written: it was copied up to here, which is no error.
    SourceLive {
        /// The offset after the last whole commit.
        next: Offset,
        /// Bytes after it.
        bytes: u64,
    },
    /// What a database went through was not seen, so its pages were compared with those of the sink: what was committed in between
    /// is one transaction.
    Compared {
        /// Why it was not seen.
        reason: String,
        /// How many pages differed.
        pages: u64,
    },
    /// An attempt failed, and another will be made.
    Retrying {
        /// Why it failed: what is waited for.
        error: String,
        /// When.
        after: Duration,
    },
}

/// How far a mirror has come, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Commits handed to the sink. What has to be sent again counts once.
    pub commits: u64,
    /// Their bytes, and those of bases.
    pub bytes: u64,
    /// The generation and the offset up to which commits were counted.
    pub(crate) counted: (Generation, Offset),
    /// The offset after the last one.
    pub next: Offset,
    /// The offset after the last commit durable in the sink.
    pub durable: Offset,
}

impl Progress {
    /// An attempt begins with `generation` at `from`.
    pub(super) fn begin(&mut self, generation: Generation, from: Offset) {
        (self.next, self.durable) = (from, from);
        if self.counted.0 != generation {
            self.counted = (generation, from);
        }
    }

    /// Counts a run that is handed to the sink, but for what was counted before.
    pub(super) fn count(&mut self, run: &Run) {
        self.next = run.end;
        let counted = self.counted.1;
        if run.end <= counted {
            return;
        }
        if run.first >= counted {
            (self.commits, self.bytes) = (self.commits + run.commits, self.bytes + run.bytes);
        } else {
            for (_, commit) in run.commits().filter(|(_, commit)| commit.first >= counted) {
                (self.commits, self.bytes) = (self.commits + 1, self.bytes + commit.bytes);
            }
        }
        self.counted.1 = run.end;
    }

    /// The offset from which the bytes of the source are not counted yet.
    pub(super) fn uncounted(&self) -> Offset {
        self.counted.1.max(self.next)
    }
}

/// Runs a mirror until the source is copied, or without end if it follows.
///
/// # Errors
/// See [`MirrorError`]. A mirror that follows ends only with an error of the data or of usage
/// ([`MirrorError::ends_follower`]); all else is reported as [`Event::Retrying`] and tried again, with waits that grow. One
/// that does not follow tries a few times what is likely to pass.
pub async fn run(mirror: &Mirror, events: impl FnMut(Event)) -> Result<Progress, MirrorError> {
    let observer = Mutex::new(Observer::new(events));
    let wal = SharedWal::default();
    let told = |event| observer.lock().unwrap_or_else(PoisonError::into_inner).tell(event);
    let moving = attempts(mirror, wal.clone(), told);
    if !mirror.follow {
        return moving.await;
    }
    tokio::select! {
        ended = moving => ended,
        never = measure(mirror, &wal, &observer) => match never {},
        never = watch_sink(mirror, &observer) => match never {},
    }
}

/// Reports what a service says of the base of the log that is the sink, also while nothing is sent.
async fn watch_sink<F: FnMut(Event)>(mirror: &Mirror, observer: &Mutex<Observer<F>>) -> Infallible {
    let client = match &mirror.sink {
        Place::Url(url) => Client::with_options(url, &mirror.http).ok(),
        Place::Dir(_) => None,
    };
    let Some(client) = client else {
        return std::future::pending().await;
    };
    let sink = Sink::Url(client);
    loop {
        sleep(MEASURE_LOG_EVERY).await;
        // What cannot be asked is reported by the mirror itself.
        if let Ok(Some(fault)) = sink.base_fault().await {
            let text = format!("sink: {}: {fault}", sink.place());
            let warning = Warning { text, missing: None };
            observer.lock().unwrap_or_else(PoisonError::into_inner).tell(Event::Warning(warning));
        }
    }
}

/// Makes one attempt after the other, until there is nothing left to try.
async fn attempts(mirror: &Mirror, wal: SharedWal, mut told: impl FnMut(Event)) -> Result<Progress, MirrorError> {
    let mut ends_of = Ends { source: None, sink: None, file: None, found: false, fed: FedLog::default(), wal };
    let mut progress = Progress::default();
    let mut doubt = Doubt::default();
    let mut failures = 0;
    loop {
        let since = Instant::now();
        // Only what this mirror wrote is progress: another writer may move the end of the sink too.
        let (mut began, mut wrote, mut opened) = (None, false, false);
        let mut seen = |event| {
            match &event {
                Event::Started { from, .. } => began = Some(*from),
                Event::Opened { .. } => opened = true,
                Event::Moved(now) => {
                    wrote |= began.is_some_and(|began| now.durable > began && now.next > began);
                }
                _ => {}
            }
            told(event);
        };
        let error = match ends_of.attempt(mirror, &mut progress, &mut seen).await {
            Ok(()) => return Ok(progress),
            Err(error) => error,
        };
        if opened {
            ends_of.fed.opened();
        }
        // What was acknowledged and is not in the log is no progress.
        let is_confirmed = !matches!(error, MirrorError::Unconfirmed { .. });
        if is_confirmed && (wrote || since.elapsed() > 2 * BACKOFF_LAST) {
            failures = 0;
            doubt.is_over();
        }
        failures += 1;
        if doubt.is_first(mirror, &error, progress.next) && (mirror.follow || failures < ATTEMPTS_MAX) {
            ends_of.connect_again();
            let error =
                format!("{}; the network may have changed it: asking again on a new connection", with_causes(&error));
            let after = RECONNECT.after(1);
            told(Event::Retrying { error, after });
            sleep(after).await;
            continue;
        }
        let error = doubt::found_twice(mirror, error);
        let ends = match mirror.follow {
            true => error.ends_follower(),
            false => error.blame() != Blame::Transient || failures >= ATTEMPTS_MAX,
        };
        if ends {
            return Err(ends_of.judged(mirror, error).await);
        }
        let after = RECONNECT.after(failures);
        told(Event::Retrying { error: with_causes(&error), after });
        sleep(after).await;
    }
}

/// Source and sink, once they were found: a mirror that follows waits for them.
struct Ends {
    source: Option<Origin>,
    sink: Option<Sink>,
    /// The file that is the sink instead of a log.
    file: Option<ReplicaFile>,
    /// Whether a sink that must exist was found once.
    found: bool,
    fed: FedLog,
    wal: SharedWal,
}

impl Ends {
    /// What the last error comes to.
    async fn judged(&self, mirror: &Mirror, error: MirrorError) -> MirrorError {
        match (&self.source, &self.sink) {
            (Some(Origin::Log(source)), Some(sink)) => relay::judged(mirror, source, sink, error).await,
            _ => error,
        }
    }

    /// Forgets the connections to services.
    fn connect_again(&mut self) {
        self.source = self.source.take().filter(|source| !matches!(source, Origin::Log(Source::Url(_))));
        self.sink = self.sink.take().filter(|sink| !matches!(sink, Sink::Url(_)));
    }

    async fn attempt(
        &mut self,
        mirror: &Mirror,
        progress: &mut Progress,
        told: &mut impl FnMut(Event),
    ) -> Result<(), MirrorError> {
        if let Some(path) = file_of(mirror, self.file.is_some()) {
            return self.attempt_file(mirror, path, progress, told).await;
        }
        // The sink first: whether it is the source itself shows also while there is nothing to read.
        let sink = match &mut self.sink {
            Some(sink) => sink,
            None => self.sink.insert(Sink::find(mirror)?),
        };
        let source = match &self.source {
            Some(source) => source,
            None => self.source.insert(Origin::find(mirror, &self.wal)?),
        };
        if let Sink::Url(client) = sink {
            // Now it shows whether the source is a directory or a database.
            *client = client.clone().of_source(&mirror.identity()).following(mirror.follow);
        }
        let sink = &*sink;
        // What this process writes was compared with the source before.
        let is_opened = matches!(sink, Sink::Dir(dir) if dir.is_opened());
        // A source that was not there before may be a link to the sink, or mounted on it, now.
        if let (Place::Dir(source), Place::Dir(sink)) = (&mirror.source, &mirror.sink) {
            ownership::are_apart(source, sink)?;
            if !mirror.adopt && !is_opened {
                ownership::are_not_swapped(source, sink, mirror.commit_bytes_max)?;
            }
        }
        if !mirror.create {
            match sink.exists().await {
                Err(MirrorError::Absent { place }) if self.found => {
                    let what = "it was there before and is not there now".to_owned();
                    return Err(MirrorError::Away { place, what });
                }
                exists => exists?,
            }
            self.found = true;
        }
        if let Sink::Url(client) = sink
            && let Some(text) = self.fed.warning(client).await
        {
            told(Event::Warning(Warning { text, missing: None }));
        }
        match source {
            Origin::Log(source) => {
                are_two_logs(source, sink).await?;
                copies::is_no_copy_of(mirror, source, sink).await?;
                for warning in [source.warning().await?, sink.warning().await?].into_iter().flatten() {
                    told(Event::Warning(warning));
                }
                match attempt(mirror, source, sink, progress, told).await {
                    Err(ahead @ MirrorError::Ahead { .. }) => {
                        let judged = shorter::judged(source, sink, mirror.commit_bytes_max, ahead).await;
                        Err(relay::judged(mirror, source, sink, judged).await)
                    }
                    // A fork counts when it is found a second time.
                    Err(error) if !matches!(error, MirrorError::Fork { .. }) => {
                        Err(relay::judged(mirror, source, sink, error).await)
                    }
                    ended => ended,
                }
            }
            Origin::Database(database) => {
                sink.warning().await?.into_iter().for_each(|warning| told(Event::Warning(warning)));
                database::attempt(mirror, database, sink, progress, told).await.map_err(MirrorError::of_database)
            }
        }
        .map_err(|error| match sink {
            Sink::Dir(dir) if mirror.follow && dir.is_opened() => error.of_opened(dir.path()),
            _ => error,
        })?;
        // It goes on with what is new, but a copy without its beginning or its base is no good end.
        if let Some(fault) = sink.base_fault().await? {
            let advice = match source {
                Origin::Database(_) => "; or give --adopt: a new generation of this one starts from SRC then",
                Origin::Log(_) => "",
            };
            return Err(MirrorError::NotWhole { place: sink.place(), text: format!("{fault}{advice}") });
        }
        let Some(Warning { missing: Some(missing), .. }) = sink.warning().await? else {
            return Ok(());
        };
        let text = match sink {
            Sink::Dir(dir) => missing::in_words(dir.path(), &missing),
            Sink::Url(_) => missing::in_a_service(&missing),
        };
        Err(MirrorError::NotWhole { place: sink.place(), text })
    }
}

impl Ends {
    /// The same where the sink is a SQLite file.
    async fn attempt_file(
        &mut self,
        mirror: &Mirror,
        path: &Path,
        progress: &mut Progress,
        told: &mut impl FnMut(Event),
    ) -> Result<(), MirrorError> {
        let source = match &self.source {
            Some(Origin::Log(source)) => source,
            _ => match self.source.insert(Origin::for_file(mirror, path, &self.wal)?) {
                Origin::Log(source) => source,
                Origin::Database(_) => return Err(MirrorError::Interrupted("the source is a database".into())),
            },
        };
        source.warning().await?.into_iter().for_each(|warning| told(Event::Warning(warning)));
        let file = self.file.get_or_insert_with(|| ReplicaFile::new(path));
        replica_file::attempt(mirror, source, file, progress, told).await
    }
}

/// The path of the sink, if that is a SQLite file and no directory; what it was once it stays.
pub(super) fn file_of(mirror: &Mirror, was_file: bool) -> Option<&Path> {
    match &mirror.sink {
        Place::Dir(path) if was_file || is_replica_file(path) => Some(path),
        _ => None,
    }
}

/// That source and sink are not the same log, by whatever names their services are reached.
///
/// # Errors
/// [`MirrorError::SameLog`], and when one of them cannot be asked.
pub(super) async fn are_two_logs(source: &Source, sink: &Sink) -> Result<(), MirrorError> {
    let (Source::Url(source), Sink::Url(sink)) = (source, sink) else {
        return Ok(());
    };
    let (from, to) = (source.find().await?, sink.find().await?);
    match (from, to) {
        // A service that was set up with a copy of the other's files has a log of the same id.
        (Some(from), Some(to)) if from.id == to.id && from.service == to.service => Err(MirrorError::SameLog {
            source_url: source.url().to_string(),
            sink_url: sink.url().to_string(),
            id: to.id,
        }),
        _ => Ok(()),
    }
}

/// What a source is: something with segments, or a database whose generations are only known beside the sink.
pub(super) enum Origin {
    Log(Source),
    Database(Database),
}

impl Origin {
    /// The source of a SQLite file, which is a log.
    ///
    /// # Errors
    /// When one is inside the other, or the source is a database.
    pub(super) fn for_file(mirror: &Mirror, sink: &Path, wal: &SharedWal) -> Result<Origin, MirrorError> {
        ownership::is_not_of_a_service(sink)?;
        if let Place::Dir(source) = &mirror.source {
            ownership::are_apart(source, sink)?;
            if database::is_database(source) {
                return Err(MirrorError::ReplicaFile(ReplicaFileError::Source {
                    path: sink.to_owned(),
                    what: format!("{}, a SQLite database", source.display()),
                    advice: "mirror it into a directory or a service first, and that into the file",
                }));
            }
        }
        Origin::find(mirror, wal)
    }

    pub(super) fn find(mirror: &Mirror, wal: &SharedWal) -> Result<Origin, MirrorError> {
        let path = match &mirror.source {
            Place::Url(url) => return Ok(Origin::Log(Source::Url(Client::with_options(url, &mirror.http)?))),
            Place::Dir(path) => path,
        };
        if dir(path, database::find_database(path))? {
            replica_file::is_no_replica(path)?;
            return Ok(Origin::Database(Database::new(path, mirror.adopt, wal.clone())));
        }
        if path.is_file() {
            let reason = "it does not start like one, and is not a directory either; an encrypted database cannot be mirrored, and if this should be a plain one, it \
                          is damaged: put it back";
            return Err(DatabaseError::NotADatabase { path: path.to_owned(), reason: reason.to_owned() }.into());
        }
        Ok(Origin::Log(Source::Dir(dir(path, FsRepo::open(path))?)))
    }
}

impl Sink {
    pub(super) fn find(mirror: &Mirror) -> Result<Sink, MirrorError> {
        let path = match &mirror.sink {
            Place::Url(url) => {
                return Ok(Sink::Url(Client::with_options(url, &mirror.http)?));
            }
            Place::Dir(path) => path,
        };
        is_no_side_file(path)?;
        let identity = match &mirror.source {
            Place::Dir(source) => {
                ownership::are_apart(source, path)?;
                if !mirror.adopt {
                    ownership::are_not_swapped(source, path, mirror.commit_bytes_max)?;
                }
                ownership::source_identity(source)
            }
            Place::Url(url) => without_secrets(url),
        };
        ownership::is_not_of_a_service(path)?;
        if !mirror.adopt {
            ownership::is_log_or_empty(path)?;
        }
        let options = Options { commit_bytes_max: mirror.commit_bytes_max, forget: true, ..Options::default() };
        Ok(Sink::Dir(Arc::new(DirSink::new(path, options, mirror.adopt, identity))))
    }

    /// Its path or URL.
    pub(super) fn place(&self) -> String {
        match self {
            Sink::Dir(dir) => dir.path().display().to_string(),
            Sink::Url(client) => client.url().to_string(),
        }
    }

    /// Refuses a sink that does not exist.
    pub(super) async fn exists(&self) -> Result<(), MirrorError> {
        let absent = match self {
            Sink::Url(client) => client.find().await?.is_none().then(|| client.url().to_string()),
            Sink::Dir(dir) => {
                let found = fs::metadata(dir.path());
                let absent = found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
                absent.then(|| dir.path().display().to_string())
            }
        };
        absent.map_or(Ok(()), |place| Err(MirrorError::Absent { place }))
    }
}

fn dir<T>(path: &Path, opened: io::Result<T>) -> Result<T, MirrorError> {
    opened.map_err(|error| MirrorError::Dir { place: path.display().to_string(), error })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::format::commitlog::Version;
    use crate::format::{Framing, LogFormat};
    use crate::stream::{Batch, Batcher};

    #[test]
    fn what_is_sent_again_counts_once() {
        // Each of its commits holds three entries in 218 bytes, after a header of ten.
        let bytes = fs::read("segments/commitlog/whole/00000000000000000000.stdb.log").unwrap();
        let mut progress = Progress::default();
        let mut send = |from: u64, to: u64| {
            let cut = |offset: u64| 10 + (offset / 3 * 218) as usize;
            let (mut batch, expected) = (Batch::default(), Some(Offset(from)));
            let framing = if from == 0 { Framing::of(LogFormat::Commitlog) } else { Framing::Commitlog(Version::V1) };
            let start = if from == 0 { 0 } else { cut(from) };
            let mut batcher = Batcher::new(framing, expected.filter(|_| from > 0), 1 << 20);
            batcher.push(bytes[start..cut(to)].to_vec().into(), &mut batch).unwrap();
            progress.begin(Generation::FIRST, Offset(from));
            batch.runs().for_each(|run| progress.count(run));
            progress
        };
        let first = send(0, 60);
        assert_eq!((first.commits, first.next), (20, Offset(60)));
        let again = send(30, 90);
        assert_eq!((again.commits, again.next), (30, Offset(90)));
        assert_eq!(again.bytes - first.bytes, 10 * 218);
        let within = send(30, 60);
        assert_eq!((within.commits, within.bytes, within.next), (again.commits, again.bytes, Offset(60)));
    }
}
