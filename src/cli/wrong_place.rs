//! Places that cannot be what they were given for, and what was probably meant.

use std::path::{Path, PathBuf};

use logmirror::format::name;
use logmirror::mirror::{is_database, is_mirror, replica_file_status};

use super::place::{directories, holds_segments, not_permitted};

/// The description of a log, in its directory in the data of a service.
const DESCRIPTION: &str = "log.json";

/// Why a file cannot be read as a log; none for a directory, a database, and what is not there or may not be read.
pub(crate) fn not_a_log(path: &str) -> Option<String> {
    let at = Path::new(path);
    if !at.is_file() || is_database(at) || not_permitted(at).is_some() {
        return None;
    }
    let file = at.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    let dir = at.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(match name::parse_segment(file) {
        Some(_) => format!(
            "{path}: this is one segment of a log: give the directory that holds all of them, {}",
            dir.display()
        ),
        None => format!(
            "{path}: neither a directory with segments nor a SQLite database: the file does not start with \"SQLite format 3\". An \
             encrypted database cannot be mirrored; if this should be a plain one, it is damaged"
        ),
    })
}

/// Why a path cannot be a directory or a SQLite file to write to; none when it can be one.
pub(crate) fn not_a_sink(path: &str) -> Option<String> {
    let file = Path::new(path).ancestors().find(|at| at.is_file())?;
    if file == Path::new(path) {
        // Whose database it is shows beside it.
        let what = "this is a file, and DST is a directory, a SQLite database or the URL of a log";
        // One that has the record of a mirror was a database, and is made again.
        let is_replica = || replica_file_status(file).is_ok_and(|found| found.is_some());
        return (!is_database(file) && !is_replica()).then(|| format!("{path}: {what}: give another path"));
    }
    Some(format!("{path}: {} is a file, so there can be no directory below it: give another path", file.display()))
}

/// Why a directory cannot be the data directory of a service; none when it can be one, or is one already.
pub(crate) fn not_a_data_directory(dir: &Path) -> Option<String> {
    let is_log = |dir: &PathBuf| dir.join(DESCRIPTION).is_file();
    let holds_logs = |dir: &Path| directories(dir).iter().any(is_log);
    if !dir.is_dir() || holds_logs(&dir.join("logs")) {
        return None;
    }
    let shown = dir.display();
    // `..` means the directory above also where the path is relative or a symbolic link.
    let real = dir.canonicalize().ok()?;
    let above = |levels: usize| real.ancestors().nth(levels).unwrap_or(&real).display();
    let described = |levels: usize| real.ancestors().nth(levels).is_some_and(|at| is_log(&at.to_owned()));
    if described(0) {
        return Some(format!("{shown}: this is one log of a service; did you mean --data {}?", above(2)));
    }
    if described(1) && real.file_name().and_then(|file| name::parse_generation(file.to_str()?)).is_some() {
        return Some(format!(
            "{shown}: this is one generation of a log of a service; did you mean --data {}?",
            above(3)
        ));
    }
    if holds_logs(dir) {
        return Some(format!(
            "{shown}: this is the directory of the logs of a service; did you mean --data {}?",
            above(1)
        ));
    }
    let clog = |dir: &Path| Some(dir.join("clog")).filter(|clog| clog.is_dir());
    let in_replicas = directories(&dir.join("replicas")).iter().find_map(|replica| clog(replica));
    let (what, log) = if holds_segments(dir) || is_mirror(dir) {
        ("a directory with the segments of one log", dir.to_owned())
    } else if let Some(log) = clog(dir) {
        ("a replica directory of SpacetimeDB", log)
    } else {
        ("a data directory of SpacetimeDB", in_replicas?)
    };
    Some(format!(
        "{shown}: this is {what}, and a service keeps its logs in a directory of its own: give another with --data, and copy the \
         log into the service with `logmirror mirror {} http://HOST/logs/NAME`",
        log.display()
    ))
}
