//! What a `PATH|URL` argument means.

use std::io;
use std::path::Path;
use std::sync::Arc;

use logmirror::format::name;
use logmirror::repo::{FsRepo, Repo};
use logmirror::stream::segment_starts;

use super::exit::Exit;
use super::wrong_place;

/// Whether an argument names a log of a service rather than a directory.
pub fn is_url(place: &str) -> bool {
    place.starts_with("http://") || place.starts_with("https://")
}

/// Opens a directory that holds the segments of a log.
///
/// # Errors
/// What to end with when it cannot be opened or holds no segment; the reason has been said.
pub fn log_directory(path: &str) -> Result<Arc<dyn Repo>, Exit> {
    if let Some(wrong) = wrong_place::not_a_log(path) {
        return Err(Exit::Data.because(wrong));
    }
    let open = || -> io::Result<(FsRepo, bool)> {
        let repo = FsRepo::open(path)?;
        let empty = segment_starts(&repo)?.is_empty();
        Ok((repo, empty))
    };
    match open() {
        Err(error) => Err(Exit::Io.because(format_args!("cannot open {path}: {error}"))),
        Ok((_, true)) => Err(Exit::Data.because(format_args!("{path} holds no segments (*.stdb.log){}", hint(path)))),
        Ok((repo, false)) => Ok(Arc::new(repo)),
    }
}

/// The log may stand one level below: in a generation of a service's log, or in a database's `clog`.
fn hint(path: &str) -> String {
    let below = Path::new(path).read_dir().into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut logs: Vec<_> = below.filter(|dir| holds_segments(dir)).collect();
    logs.sort();
    logs.pop().map(|dir| format!("; did you mean {}?", dir.display())).unwrap_or_default()
}

fn holds_segments(dir: &Path) -> bool {
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
}
