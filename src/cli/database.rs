//! A SQLite database or its WAL, for the commands that look at logs.

use std::io::Write;
use std::path::Path;

use logmirror::mirror::replica_file_status;
use logmirror::sqlite::{DatabaseError, HeldDatabase, Snapshot, Verdict, take, warning_of_links};
use serde_json::{Map, Value, json};

use super::exit::{Exit, printed};

/// Whether a path is that of a database or its WAL: a file, where logs are directories.
pub(super) fn is_meant(path: &str) -> bool {
    logmirror::mirror::is_database(Path::new(path))
}

/// Reads the whole WAL, checks every checksum, and says what is there.
pub(super) fn run(path: &str, as_json: bool) -> Exit {
    let (found, exit) = match take(Path::new(path), |snapshot| describe(path, snapshot)) {
        Ok(found) => found,
        Err(error @ DatabaseError::Io { .. }) => return Exit::Io.because(error),
        Err(error) if error.is_transient() => return Exit::Io.because(error),
        Err(error) => return Exit::Data.because(error),
    };
    let mut found = found;
    match warning_of_links(Path::new(path)) {
        Ok(None) => {}
        Ok(Some(warning)) => _ = found.insert("warning".to_owned(), json!(warning)),
        Err(error) => return Exit::Data.because(error),
    }
    match replica_file_status(Path::new(path)).map(|status| status.map(serde_json::to_value)) {
        Ok(None) => {}
        Ok(Some(Ok(status))) => _ = found.insert("replica_of".to_owned(), status),
        Ok(Some(Err(error))) => return Exit::Io.because(error),
        Err(error) => return Exit::of(&error).because(error),
    }
    let mut out = std::io::stdout().lock();
    let written = if as_json {
        writeln!(out, "{}", Value::Object(found))
    } else {
        found.iter().filter(|(_, value)| !value.is_null()).try_for_each(|(key, value)| match value {
            Value::String(text) => writeln!(out, "{key:16} {text}"),
            value => writeln!(out, "{key:16} {value}"),
        })
    };
    printed(written.map(|()| exit))
}

fn describe(path: &str, snapshot: &Snapshot) -> Result<(Map<String, Value>, Exit), DatabaseError> {
    let mut leftover = Value::Null;
    let cut = snapshot.cut()?;
    let (mut frame, mut at) = (Value::Null, Value::Null);
    let (verdict, fault, exit) = match snapshot.verdict() {
        Verdict::Whole => ("whole", None, Exit::Done),
        Verdict::Leftover { bytes } => {
            leftover = json!(bytes);
            ("leftover", None, Exit::Done)
        }
        Verdict::Damaged { invalid, sound } => {
            (frame, at) = (json!(invalid.frame), json!(invalid.at));
            let (frame, at, sound) = (invalid.frame, invalid.at, sound.frame);
            let fault =
                format!("frame {frame} at byte {at} is damaged, and frame {sound} ends a sound transaction behind it");
            ("damaged", Some(fault), Exit::Data)
        }
        Verdict::Header(error) => {
            (frame, at) = (json!(1), json!(0));
            let fault = format!("the header, at byte 0 before frame 1, is damaged: {error}");
            ("damaged", Some(fault), Exit::Data)
        }
    };
    let (verdict, fault, exit) = match (&cut, fault) {
        (None, fault) => (verdict, fault, exit),
        (Some(cut), None) => {
            at = json!(cut.at);
            ("damaged", Some(format!("{}: {cut}", snapshot.path().display())), Exit::Data)
        }
        (Some(cut), Some(fault)) => ("damaged", Some(format!("{fault}; {}: {cut}", snapshot.path().display())), exit),
    };
    let header = snapshot.header();
    let mut found = Map::new();
    found.extend([
        ("path".to_owned(), json!(path)),
        ("format".to_owned(), json!("wal")),
        ("verdict".to_owned(), json!(verdict)),
        ("page_size".to_owned(), json!(snapshot.page_size())),
        ("base_bytes".to_owned(), json!(snapshot.base_bytes())),
        ("wal_bytes".to_owned(), json!(snapshot.wal_bytes())),
        ("valid_frames".to_owned(), json!(snapshot.valid_frames())),
        ("committed_frames".to_owned(), json!(snapshot.frames())),
        ("transactions".to_owned(), json!(snapshot.transactions())),
        ("db_pages".to_owned(), json!(snapshot.db_pages())),
        ("salts".to_owned(), json!(header.map(|header| header.salts))),
        ("sequence".to_owned(), json!(header.map(|header| header.sequence))),
        ("leftover_bytes".to_owned(), leftover),
        ("fault_page".to_owned(), json!(cut.map(|cut| cut.page))),
        ("fault_frame".to_owned(), frame),
        ("fault_byte".to_owned(), at),
        ("fault".to_owned(), json!(fault)),
    ]);
    Ok((found, exit))
}
