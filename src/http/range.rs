//! The `Range` header (RFC 9110, section 14). One range is answered in part; whatever else it says is ignored, as the RFC
//! allows, and answered in full.

use std::ops::Range;

/// What a `Range` header asks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    All,
    /// These bytes; at least one.
    Part(Range<u64>),
    /// Bytes it does not have.
    Nothing,
}

/// Reads the header `text` for a file of `bytes` bytes.
pub(super) fn wanted(text: &str, bytes: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Wanted::All;
    };
    let part = match (number(first), number(last)) {
        (None, Some(count)) if first.is_empty() => bytes.saturating_sub(count)..bytes,
        (Some(first), None) if last.is_empty() => first..bytes,
        (Some(first), Some(last)) if first <= last => first..bytes.min(last.saturating_add(1)),
        _ => return Wanted::All,
    };
    if part.is_empty() { Wanted::Nothing } else { Wanted::Part(part) }
}

/// Digits only: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}
