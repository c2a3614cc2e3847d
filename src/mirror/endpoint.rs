//! What to mirror, and how.

use super::database;
use super::ownership::source_identity;
use crate::client::{HttpOptions, without_secrets};
use crate::limits::COMMIT_BYTES_MAX;

/// A directory with segments in it, the URL of a log, or, as a source, a SQLite database or its WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory; as a source also the file of a database (`app.db`) or of its WAL (`app.db-wal`), and as a sink a SQLite file
    /// that follows a log: see [`is_replica_file`](super::is_replica_file).
    Dir(std::path::PathBuf),
    /// The URL of a log.
    Url(String),
}

impl Place {
    /// What `text` means: a URL if it has a scheme, else a path.
    #[must_use]
    pub fn parse(text: &str) -> Place {
        if text.contains("://") { Place::Url(text.to_owned()) } else { Place::Dir(text.into()) }
    }
}

/// What to mirror, and how.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where from.
    pub source: Place,
    /// Where to.
    pub sink: Place,
    /// Whether to go on as the source grows, without end.
    pub follow: bool,
    /// Whether a torn end of a directory that is the source is accepted, because no process writes it. The source is never changed.
    pub trim: bool,
    /// Whether a directory or log that is the sink is created where it does not exist.
    pub create: bool,
    /// Whether a directory may be the sink that has no mirror record and cannot be taken for a mirror by itself. It is compared
    /// with the source all the same, no whole commit is cut, and what is cut is set aside beside it.
    pub adopt: bool,
    /// Whether the log that is the sink is to be handed over to its clients once all is copied: a database that is the source must
    /// not be open in another process then.
    pub release: bool,
    /// Whether locks of a SQLite database that is the source are held between two looks, so that no commit is missed.
    pub hold: bool,
    /// Largest commit taken.
    pub commit_bytes_max: u64,
    /// How services are reached.
    pub http: HttpOptions,
}

impl Mirror {
    /// What identifies its source to a log that is fed from it: host and path, or the URL without secrets.
    pub(super) fn identity(&self) -> String {
        match &self.source {
            Place::Url(url) => without_secrets(url),
            // The path of a database does not end in a slash.
            Place::Dir(path) if path.is_dir() => format!("{}/", source_identity(path)),
            Place::Dir(path) => database::identity(path),
        }
    }

    /// A plain copy of `source` to `sink`.
    #[must_use]
    pub fn new(source: Place, sink: Place) -> Self {
        let (commit_bytes_max, http) = (COMMIT_BYTES_MAX, HttpOptions::default());
        let (follow, trim, adopt, release, create, hold) = (false, false, false, false, true, true);
        Mirror { source, sink, follow, trim, create, adopt, release, hold, commit_bytes_max, http }
    }
}
