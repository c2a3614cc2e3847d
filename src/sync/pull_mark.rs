//! What the metadata file of a replica says beside how far it holds the server's frames: the sum of its pages there, and how many
//! frames of the generation come before its WAL, because another program put them into the database file.
//!
//! ```text
//! {"hash":…,"version":0,"durable_frame_num":112,"generation":1,"pulled":{…},"pulled_hash":…}
//! ```
//!
//! libSQL's own client passes over keys that it does not know. `pulled_hash` is the CRC-32 of generation and frame, as little-endian
//! u32s, and of `pulled` as it is written. Beside it there is the [`PushMark`] that a push goes on from, where the last frame is known.

use serde::{Deserialize, Serialize};

use super::Position;
use super::metadata;
use super::push_mark::{self, PushMark};
use crate::sqlite::read_replica::StateMark;

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PullMark {
    /// Frames of the generation before the first one of the WAL.
    pub(super) start: u32,
    /// The digest of the last frame; empty before the first, and where it is not known.
    pub(super) last: String,
    /// The sum of all pages, where it is known.
    pub(super) sum: Option<KeyedSum>,
    /// What the files look like: another database file may have been put in the place of this one, under its WAL.
    pub(super) files: Option<StateMark>,
    /// Whether the database was pushed from here before: it is an application's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_pushed: bool,
}

/// A sum of pages, and the key that it was computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyedSum {
    pub(super) key: u64,
    pub(super) sum: u64,
}

#[derive(Deserialize)]
struct Beside {
    pulled: PullMark,
    pulled_hash: u32,
}

fn hash(position: Position, pulled: &[u8]) -> u32 {
    let numbers = [position.generation, position.frame].map(u32::to_le_bytes);
    crc32fast::hash(&[numbers.as_flattened(), pulled].concat())
}

/// The content of a metadata file with a mark, and with what a push goes on from.
pub(super) fn encode(position: Position, mark: &PullMark, push: Option<&PushMark>) -> Vec<u8> {
    let mut content = match push {
        Some(push) => push_mark::encode(position, push),
        None => metadata::encode(position),
    };
    if let (Ok(pulled), Some(b'}')) = (serde_json::to_vec(mark), content.pop()) {
        content.extend_from_slice(b",\"pulled\":");
        content.extend_from_slice(&pulled);
        content.extend_from_slice(format!(",\"pulled_hash\":{}", hash(position, &pulled)).as_bytes());
    }
    content.push(b'}');
    content
}

/// The mark in the content of a metadata file that says `position`, if there is one that can be believed.
pub(super) fn decode(position: Position, content: &[u8]) -> Option<PullMark> {
    let Beside { pulled, pulled_hash } = serde_json::from_slice(content).ok()?;
    let written = serde_json::to_vec(&pulled).ok()?;
    (hash(position, &written) == pulled_hash && pulled.start <= position.frame).then_some(pulled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wal::WalStart;
    use crate::sqlite::wal_append::new_header;
    use crate::sync::PAGE_LEN;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_libsql_reads_the_rest() {
        let position = Position { generation: 2, frame: 77 };
        let ours = WalStart::first(new_header(PAGE_LEN as u32, 0));
        let push = PushMark::new("ef".into(), ours, None);
        for (start, sum, push) in [(0, None, None), (77, Some(KeyedSum { key: u64::MAX, sum: 1 }), Some(&push))] {
            let mark = PullMark { start, last: "ef".into(), sum, files: None, is_pushed: start > 0 };
            let content = encode(position, &mark, push);
            assert_eq!(metadata::decode(&content).ok(), Some(position));
            assert_eq!(decode(position, &content), Some(mark));
            assert_eq!(push_mark::decode(position, &content).as_ref(), push);
            for other in [Position { generation: 3, ..position }, Position { frame: 78, ..position }] {
                assert_eq!(decode(other, &content), None, "it is of that position");
            }
            let changed = String::from_utf8(content).unwrap_or_default().replace("\"ef\"", "\"ee\"");
            assert_eq!(decode(position, changed.as_bytes()), None);
        }
        assert_eq!(decode(position, &metadata::encode(position)), None);
    }
}
