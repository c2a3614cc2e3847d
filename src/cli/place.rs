//! What a `PATH|URL` argument means.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use logmirror::format::name;
use logmirror::repo::{FsRepo, Repo};
use logmirror::stream::{current_dir, known_base, segment_starts};

use super::exit::Exit;
use super::wrong_place;

/// Places named in a message.
const HINTS_MAX: usize = 4;
/// How far below a directory logs are searched for, and in how many directories at most.
const DEPTH_MAX: usize = 3;
/// See [`DEPTH_MAX`].
const DIRS_SEARCHED_MAX: usize = 2000;

/// Whether an argument names a log of a service rather than a directory.
pub fn is_url(place: &str) -> bool {
    let scheme = place.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    matches!(scheme.as_deref(), Some("http" | "https"))
}

/// Opens a directory that holds the segments of a log; of a mirror that has gone through generations, that of the current one.
///
/// # Errors
/// What to end with when it cannot be opened or holds no segment; the reason has been said.
pub fn log_directory(path: &str) -> Result<Arc<dyn Repo>, Exit> {
    if let Some(error) = not_permitted(Path::new(path)) {
        return Err(Exit::Io.because(format_args!("cannot open {path}: {error}")));
    }
    if let Some(wrong) = wrong_place::not_a_log(path) {
        return Err(Exit::Data.because(wrong));
    }
    let open = || -> io::Result<(FsRepo, bool)> {
        let repo = FsRepo::open(current_dir(Path::new(path))?)?;
        let empty = segment_starts(&repo)?.is_empty();
        Ok((repo, empty))
    };
    match open() {
        Err(error) => {
            let exit = if url_meant(path).is_some() { Exit::Usage } else { Exit::Io };
            Err(exit.because(format_args!("cannot open {path}: {error}{}", hint(path))))
        }
        // A generation without frames is its base.
        Ok((repo, true)) if is_based(Path::new(path)) => Ok(Arc::new(repo)),
        Ok((_, true)) => Err(Exit::Usage.because(no_segments(path))),
        Ok((repo, false)) => Ok(Arc::new(repo)),
    }
}

/// Whether a directory holds the base of a WAL, or should hold one.
pub fn is_based(dir: &Path) -> bool {
    let dir = &current_dir(dir).unwrap_or(dir.to_owned());
    [name::BASE, name::BASE_SUMS].iter().any(|file| dir.join(file).exists())
        || known_base(dir).is_ok_and(|base| base.exists)
}

/// What to say of a directory without segments.
pub fn no_segments(path: &str) -> String {
    format!("{path} holds no segments (*.stdb.log, *.wal){}", hint(path))
}

/// What was probably meant, as the end of a message; empty when nothing comes to mind.
pub fn hint(path: &str) -> String {
    if let Some(url) = url_meant(path) {
        return format!("; did you mean {url}?");
    }
    hint_of(&logs_near(Path::new(path)))
}

/// The same for a path that is to be written: without the logs of a service, which alone writes them.
pub fn sink_hint(path: &str) -> String {
    let mut logs = logs_near(Path::new(path));
    logs.retain(|dir| logmirror::mirror::service_data(dir).is_none());
    hint_of(&logs)
}

fn hint_of(logs: &[PathBuf]) -> String {
    let shown: Vec<_> = logs.iter().take(HINTS_MAX).map(|dir| dir.display().to_string()).collect();
    let more = logs.len() - shown.len();
    match (&shown[..], more) {
        ([], _) => String::new(),
        ([one], _) => format!("; did you mean {one}?"),
        (some, 0) => format!("; did you mean one of {}?", some.join(", ")),
        (some, more) => format!("; did you mean one of {}, or of {more} others?", some.join(", ")),
    }
}

/// The URL that an argument without `http://` probably stands for: it starts with a host and a port, or with a host and the
/// path of a log, and is no path that exists.
pub fn url_meant(place: &str) -> Option<String> {
    let path = Path::new(place);
    let (host, rest) = place.split_once('/').unwrap_or((place, ""));
    if place.contains("://") || host.is_empty() || host.starts_with(['.', '~', '-']) || path.exists() {
        return None;
    }
    if let Some(scheme) = ["http:", "https:"].into_iter().find(|scheme| *scheme == host) {
        return Some(format!("{scheme}//{}", rest.trim_start_matches('/')));
    }
    let plausible = |name: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':' | '@');
        !name.is_empty() && name.chars().all(allowed)
    };
    let port = host.rsplit_once(':').filter(|(name, port)| plausible(name) && port.parse::<u16>().is_ok());
    let log = rest.strip_prefix("logs/").filter(|log| !log.is_empty());
    match (port, log) {
        (_, Some(_)) if (port.is_some() || !Path::new(host).exists()) && plausible(host) => {
            Some(format!("http://{place}"))
        }
        (Some(_), _) if rest.trim_matches('/').is_empty() || rest == "logs/" => {
            Some(format!("http://{host}/logs/NAME"))
        }
        (Some(_), _) => Some(format!("http://{place}")),
        _ => None,
    }
}

/// Whether an argument looks like a path on another host (`host:/srv/clog`, `user@host:clog`) or like a URL that was mistyped
/// (`http//host/logs/x`), and is no path that exists.
pub fn is_remote_path(place: &str) -> bool {
    let first = place.split('/').next().unwrap_or_default();
    let is_scheme = ["http", "https"].iter().any(|scheme| first.eq_ignore_ascii_case(scheme));
    !place.contains("://") && (first.contains(':') || is_scheme) && is_absent(Path::new(place))
}

/// The error of opening a file that this user may not read; none for a directory, and for what fails in another way.
pub fn not_permitted(file: &Path) -> Option<io::Error> {
    let opened = if file.is_file() { File::open(file) } else { return None };
    opened.err().filter(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether there is surely nothing at a path.
pub fn is_absent(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Directories with segments in or below `path`, or around it if it is a file: SpacetimeDB's `clog` of a replica or of all
/// replicas of a data directory, and of a service's data the latest generation of each log. The deepest are
/// `replicas/N/clog` and `logs/NAME/GENERATION`.
fn logs_near(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Some(dir.to_owned()).filter(|dir| holds_log(dir)).into_iter().collect();
    }
    let (mut level, mut logs, mut searched) = (vec![path.to_owned()], Vec::new(), 0);
    for _ in 0..DEPTH_MAX {
        let mut below: Vec<PathBuf> = level.iter().flat_map(|dir| directories(dir)).collect();
        below.truncate(DIRS_SEARCHED_MAX - searched);
        searched += below.len();
        logs.extend(below.iter().filter(|dir| holds_log(dir)).cloned());
        level = below;
    }
    logs.sort();
    // Of the generations of one log the last one.
    let last_of = |dir: &PathBuf, next: Option<&PathBuf>| {
        !(is_generation(dir) && next.is_some_and(|next| is_generation(next) && next.parent() == dir.parent()))
    };
    let kept = logs.iter().enumerate().filter(|(at, dir)| last_of(dir, logs.get(at + 1))).map(|(_, dir)| dir.clone());
    kept.collect()
}

fn is_generation(dir: &Path) -> bool {
    dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name::parse_generation(name).is_some())
}

pub(super) fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The same, or a generation without a frame, which is its base.
fn holds_log(dir: &Path) -> bool {
    holds_segments(dir) || (is_generation(dir) && dir.join(name::BASE).is_file())
}

pub(super) fn holds_segments(dir: &Path) -> bool {
    let mut names = dir.read_dir().into_iter().flatten().filter_map(Result::ok).map(|entry| entry.file_name());
    names.any(|file| file.to_str().is_some_and(|file| name::parse_segment(file).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_makes_a_url() {
        assert!(is_url("http://127.0.0.1:7171/logs/a") && is_url("https://host/logs/a"));
        for path in ["clog", "/var/http:/clog", "ftp://host/logs/a", "http:clog"] {
            assert!(!is_url(path), "{path}");
        }
    }

    #[test]
    fn what_looks_like_a_host_is_taken_for_a_url_without_its_scheme() {
        let meant = |place: &str| url_meant(place).unwrap_or_default();
        for place in ["db1:7171/logs/app", "localhost/logs/x", "[::1]:7171/logs/x", "10.0.0.1:80/prefix/logs/x"] {
            assert_eq!(meant(place), format!("http://{place}"));
        }
        assert_eq!(meant("db1:7171"), "http://db1:7171/logs/NAME");
        assert_eq!(meant("http:/db1/logs/x"), "http://db1/logs/x");
        // A directory that exists wins, and so does what can only be a path.
        for path in ["/srv/logs/app", "./host/logs/app", "../host:1/logs/app", "src/logs/app", "clog", "a/b", "C:x/y"] {
            assert_eq!(url_meant(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_on_another_host_is_told_from_a_path_here() {
        for place in ["host:/srv/clog", "user@host:clog", "http//127.0.0.1:7301/logs/app", "HTTP:x", "https/x"] {
            assert!(is_remote_path(place), "{place}");
        }
        for place in ["/srv/a:b/clog", "./host:clog", "clog", "httpd/clog", "http://h/logs/x", "ftp://h/x", "src"] {
            assert!(!is_remote_path(place), "{place}");
        }
    }
}
