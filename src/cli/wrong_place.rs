//! Places that cannot be what they were given for, and what was probably meant.

use std::path::Path;

use logmirror::format::name;
use logmirror::mirror::is_database;

/// Why a file cannot be read as a log; none for a directory, a database, and what is not there.
pub(crate) fn not_a_log(path: &str) -> Option<String> {
    let at = Path::new(path);
    if !at.is_file() || is_database(at) {
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

/// Why a path cannot be a directory to write to; none when it can be one.
pub(crate) fn not_a_sink(path: &str) -> Option<String> {
    let file = Path::new(path).ancestors().find(|at| at.is_file())?;
    let what = match file == Path::new(path) {
        true => format!("{path}: this is a file, and DST is a directory or the URL of a log: give another path"),
        false => {
            format!("{path}: {} is a file, so there can be no directory below it: give another path", file.display())
        }
    };
    Some(match is_database(file) {
        true => format!("{what} (`logmirror restore SRC OUT.db` writes the database of a log into a file)"),
        false => what,
    })
}
