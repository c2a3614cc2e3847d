//! The commitlog format, as far as a judge needs it: where whole commits end, and whether two directories hold the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const SUFFIX: &str = ".stdb.log";
/// What a segment starts with: magic, format version 1, checksum algorithm 0, reserved.
pub const SEGMENT_HEADER: [u8; 10] = *b"(ds)^2\x01\x00\x00\x00";
const COMMIT_HEADER_LEN: usize = 22;
const CHECKSUM_LEN: usize = 4;

/// The name of the segment that starts at `offset`.
pub fn segment_name(offset: u64) -> String {
    format!("{offset:020}{SUFFIX}")
}

/// Appends a commit of `n` records that are `records` together.
pub fn encode(out: &mut Vec<u8>, offset: u64, epoch: u64, n: u16, records: &[u8]) {
    let from = out.len();
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&n.to_le_bytes());
    out.extend_from_slice(&(records.len() as u32).to_le_bytes());
    out.extend_from_slice(records);
    let checksum = crc32c::crc32c(&out[from..]);
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// The whole commits at the start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Their end, the segment header included; 0 if that is not whole.
    pub bytes: usize,
    /// The offset after the last of them.
    pub next: u64,
}

/// Reads a segment that starts at offset `start` up to its last whole commit in sequence.
pub fn whole(segment: &[u8], start: u64) -> Whole {
    if !segment.starts_with(&SEGMENT_HEADER) {
        return Whole { bytes: 0, next: start };
    }
    let mut whole = Whole { bytes: SEGMENT_HEADER.len(), next: start };
    while let Some((len, n)) = commit(&segment[whole.bytes..], whole.next) {
        whole = Whole { bytes: whole.bytes + len, next: whole.next + n };
    }
    whole
}

/// The length and the number of records of the commit at the start of `bytes`, if it is whole and starts at `offset`.
fn commit(bytes: &[u8], offset: u64) -> Option<(usize, u64)> {
    let header = bytes.get(..COMMIT_HEADER_LEN)?;
    let n = u16::from_le_bytes(header[16..18].try_into().ok()?);
    let records = u32::from_le_bytes(header[18..22].try_into().ok()?) as usize;
    let body = bytes.get(..COMMIT_HEADER_LEN + records)?;
    let checksum = bytes.get(body.len()..body.len() + CHECKSUM_LEN)?;
    let sound = n > 0 && header[..8] == offset.to_le_bytes() && checksum == crc32c::crc32c(body).to_le_bytes();
    sound.then_some((body.len() + CHECKSUM_LEN, u64::from(n)))
}

/// The segments in `dir` in log order, with their start offsets; none if there is no such directory.
pub fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", dir.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(start) = name.strip_suffix(SUFFIX).and_then(|start| start.parse().ok()) {
            found.push((start, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Where a log in a directory ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The offset after the last whole commit.
    pub next: u64,
    /// Bytes in the last segment after that commit.
    pub torn: usize,
}

/// Reads the last segment that holds a commit, and what comes after it.
pub fn end(dir: &Path) -> Result<End> {
    let mut torn = 0;
    for (start, path) in segments(dir)?.into_iter().rev() {
        let bytes = read(&path)?;
        let whole = whole(&bytes, start);
        torn += bytes.len() - whole.bytes;
        if whole.next > start {
            return Ok(End { next: whole.next, torn });
        }
    }
    Ok(End { next: 0, torn })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// What a mirror of `source` must hold: each segment that has commits, up to its last whole one.
pub fn expected(source: &Path) -> Result<BTreeMap<u64, Vec<u8>>> {
    let mut expected = BTreeMap::new();
    for (start, path) in segments(source)? {
        let mut bytes = read(&path)?;
        let whole = whole(&bytes, start);
        bytes.truncate(whole.bytes);
        if whole.next > start {
            expected.insert(start, bytes);
        }
    }
    Ok(expected)
}

/// After Ok, `copy` holds exactly the segments `expected`, byte for byte.
pub fn ensure_holds(expected: &BTreeMap<u64, Vec<u8>>, copy: &Path) -> Result<()> {
    let found = segments(copy)?;
    let starts: Vec<u64> = found.iter().map(|(start, _)| *start).collect();
    let wanted: Vec<u64> = expected.keys().copied().collect();
    if starts != wanted {
        bail!("{} has the segments {starts:?}, expected {wanted:?}", copy.display());
    }
    for (start, path) in found {
        let (bytes, wanted) = (read(&path)?, &expected[&start]);
        if bytes != *wanted {
            let at = bytes.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            let (found, wanted) = (bytes.len(), wanted.len());
            bail!("{} differs at byte {at} ({found} bytes, expected {wanted})", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_commits_end_before_a_torn_one_and_before_zeros() {
        let mut segment = SEGMENT_HEADER.to_vec();
        encode(&mut segment, 5, 0, 3, b"abc");
        encode(&mut segment, 8, 0, 1, b"d");
        let full = segment.len();
        assert_eq!(whole(&segment, 5), Whole { bytes: full, next: 9 });
        assert_eq!(whole(&segment[..full - 1], 5), Whole { bytes: full - 27, next: 8 });
        segment.extend_from_slice(&[0; 100]);
        assert_eq!(whole(&segment, 5), Whole { bytes: full, next: 9 });
        assert_eq!(whole(&segment[..9], 5), Whole { bytes: 0, next: 5 });
    }
}
