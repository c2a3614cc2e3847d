//! Names of the files of a log, both ways.
//!
//! `{start:020}.stdb.log` is a segment of a commitlog and `{start:020}.stdb.ofs` its offset index, as SpacetimeDB names
//! them; `{start:020}.wal` and `{start:020}.ofs` are those of a WAL. A name that is not written exactly like that is not
//! ours: it is ignored, never an error.

use super::LogFormat;
use crate::offset::{Generation, Offset};

const DIGITS: usize = 20;

impl LogFormat {
    const ALL: [LogFormat; 2] = [LogFormat::Commitlog, LogFormat::Wal];

    fn segment_ending(self) -> &'static str {
        match self {
            LogFormat::Commitlog => ".stdb.log",
            LogFormat::Wal => ".wal",
        }
    }

    fn index_ending(self) -> &'static str {
        match self {
            LogFormat::Commitlog => ".stdb.ofs",
            LogFormat::Wal => ".ofs",
        }
    }
}

/// Name of the database that a generation of a WAL starts with.
pub const BASE: &str = "base.db";
/// Name of the checksums of that database.
pub const BASE_SUMS: &str = "base.sums";
/// What a base is called until it is whole, synced, and its checksums have their name.
pub const BASE_DRAFT: &str = "base.db.tmp";

/// Digits of a generation's directory.
const GENERATION_DIGITS: usize = 10;

/// Longest name of a log.
pub const LOG_NAME_MAX: usize = 64;

/// Name of the segment that starts at `start`.
#[must_use]
pub fn segment(format: LogFormat, start: Offset) -> String {
    format!("{start:0DIGITS$}{}", format.segment_ending())
}

/// Name of the offset index of the segment that starts at `start`.
#[must_use]
pub fn index(format: LogFormat, start: Offset) -> String {
    format!("{start:0DIGITS$}{}", format.index_ending())
}

/// The format and the start of the segment of that name.
#[must_use]
pub fn parse_segment(name: &str) -> Option<(LogFormat, Offset)> {
    LogFormat::ALL.into_iter().find_map(|format| {
        let start = digits(name.strip_suffix(format.segment_ending())?, DIGITS)?;
        Some((format, Offset(start)))
    })
}

/// Name of a generation's directory.
#[must_use]
pub fn generation(generation: Generation) -> String {
    format!("{generation:0GENERATION_DIGITS$}")
}

/// The generation of the directory of that name.
#[must_use]
pub fn parse_generation(name: &str) -> Option<Generation> {
    digits(name, GENERATION_DIGITS).map(Generation)
}

/// Whether `name` may be the name of a log: `[a-z0-9][a-z0-9._-]{0,63}`.
#[must_use]
pub fn is_log_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), true) = (name.bytes().next(), name.len() <= LOG_NAME_MAX) else {
        return false;
    };
    plain(first) && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

fn digits(text: &str, count: usize) -> Option<u64> {
    let sound = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    sound.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nothing_else_does() {
        for start in [0, 1, 360, u64::MAX] {
            for format in LogFormat::ALL {
                assert_eq!(parse_segment(&segment(format, Offset(start))), Some((format, Offset(start))));
            }
        }
        assert_eq!(segment(LogFormat::Commitlog, Offset(333)), "00000000000000000333.stdb.log");
        assert_eq!(segment(LogFormat::Wal, Offset(1)), "00000000000000000001.wal");
        for foreign in
            ["README.stdb.log", "333.stdb.log", "+0000000000000000333.stdb.log", "99999999999999999999.stdb.log"]
        {
            assert_eq!(parse_segment(foreign), None, "{foreign}");
        }
        assert_eq!(parse_generation(&generation(Generation(7))), Some(Generation(7)));
    }

    #[test]
    fn log_names_keep_to_their_alphabet() {
        for good in ["a", "0", "app.db-1_x", &"a".repeat(64)] {
            assert!(is_log_name(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "ä", "a b", &"a".repeat(65)] {
            assert!(!is_log_name(bad), "{bad}");
        }
    }
}
