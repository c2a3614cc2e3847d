//! `P-info`: how far a replica is. Owns: its bytes. It is replaced whole, synced, at each step.
//!
//! ```text
//! {"version":1,"hash":2496050245,"info":{"client_unique_id":"app-…","synced_generation":1,"synced_frame_no":12,…}}
//! ```
//!
//! `hash` is the CRC-32C of the version and the text of `info` as it is written here. Two databases have equal content at a pair of
//! positions, the watermarks: `P-synced` at a frame of the remote, `P-draft` at a frame of its own WAL, after which its
//! pages may differ.

use std::io;

use serde::{Deserialize, Serialize};

use super::error::ReplicaError;
use super::report::Conflict;
use crate::limits::REPLICA_INFO_BYTES_MAX;
use crate::repo::{Repo, read_small, replace};

const VERSION: u32 = 1;

/// What a replica knows of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Info {
    /// The name under which the remote knows this replica.
    pub(super) client_unique_id: String,
    /// Generation of the remote that `P-synced` follows.
    pub(super) synced_generation: u32,
    /// Last frame of the remote that `P-synced` has; 0 for none.
    pub(super) synced_frame_no: u32,
    /// Up to which of them the database file has them; the others are in its WAL.
    pub(super) folded: u32,
    /// What tells the last frame from another at its place.
    pub(super) last_frame: Option<u32>,
    /// The digest of the database that the generation starts from, empty if that is none, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<String>,
    /// How often changes of the remote were brought into the draft. The draft says so too, in its bookkeeping table.
    pub(super) pull_gen: i64,
    /// The frame of the remote whose state the draft was made from, with the local changes on top.
    pub(super) synced_wal_match_watermark: u32,
    /// The frame of the draft's WAL after which its pages may differ from that state; any page may if there is none.
    pub(super) draft_wal_match_watermark: Option<Mark>,
    /// Where the draft has no changes but those that the remote has.
    pub(super) clean: Option<Mark>,
    /// The draft is being brought to this state; whether it was, it says itself.
    pub(super) rebasing: Option<Rebasing>,
    /// Number of the last push, in this `pull_gen`.
    pub(super) change_id: i64,
    /// Of that push it is not known whether the remote took it.
    pub(super) push_in_doubt: bool,
    /// Number of the last push that the remote took, in this `pull_gen`.
    pub(super) pushed: Option<i64>,
    /// What of the draft the remote has after that push, where it was not all of what the draft was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parts: Option<Parts>,
    /// What `parts` is if the push in doubt was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parts_of_push: Option<Parts>,
    /// Conflicts of the last push, which count if it was made.
    pub(super) of_push: Vec<Conflict>,
    /// Conflicts that nobody has been told of yet.
    pub(super) untold: Vec<Conflict>,
    /// What the last frame of `P-synced` is on the remote, where frames were made here of a state of the remote that was
    /// fetched whole: once the draft has it, frames are counted from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fetched_whole: Option<Remotely>,
    /// It was made empty, without the remote, whose state has to be fetched whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unmade: bool,
    /// The draft has had a row of this replica in its bookkeeping table since it was made: one without is another database.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) draft_is_named: bool,
    /// Of a remote that speaks of updates only: what `P-synced` has of it, in its own words. Frames are made and counted here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
}

/// A state of the remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remotely {
    pub(super) generation: u32,
    pub(super) frame: u32,
    pub(super) last_frame: Option<u32>,
}

/// A frame of a WAL with these salts: in one with others the number means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) salts: [u32; 2],
    pub(super) frame: u64,
}

/// How much the remote has of changes that it took in several transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    /// `P-pushed.N` of this number has the state that they lead from; without one it is what the draft was made from.
    pub(super) from: Option<i64>,
    /// `P-pushed.N` of this number has the state that they lead to.
    pub(super) to: i64,
    /// How many of them the remote has, in the order in which they are found; all if there is no number.
    pub(super) done: Option<u64>,
    /// Where the draft had that state.
    pub(super) now: Mark,
}

/// What of the draft the remote has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnRemote {
    /// All of `P-pushed.N` of this number; without one, what the draft was made from.
    pub(super) base: Option<i64>,
    /// On top of it the first changes that lead to another `P-pushed.N`, with their number.
    pub(super) unfinished: Option<(Parts, u64)>,
}

/// What the draft will be once it says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Rebasing {
    pub(super) pull_gen: i64,
    pub(super) frame: u32,
    pub(super) conflicts: Vec<Conflict>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    hash: u32,
    info: Info,
}

fn hash(version: u32, info: &str) -> u32 {
    crc32c::crc32c(format!("{version}{info}").as_bytes())
}

impl Info {
    /// Of a replica that has just been made of all that the remote has up to a frame.
    pub(super) fn new(client_unique_id: String, generation: u32, frame: u32, last_frame: Option<u32>) -> Info {
        Info {
            client_unique_id,
            synced_generation: generation,
            synced_frame_no: frame,
            folded: frame,
            last_frame,
            base: None,
            pull_gen: 0,
            synced_wal_match_watermark: frame,
            draft_wal_match_watermark: None,
            clean: None,
            rebasing: None,
            change_id: 0,
            push_in_doubt: false,
            pushed: None,
            parts: None,
            parts_of_push: None,
            of_push: Vec::new(),
            untold: Vec::new(),
            fetched_whole: None,
            unmade: false,
            draft_is_named: false,
            revision: None,
        }
    }

    /// What it is once the draft was brought to the state it was to be brought to: its pages may differ from that of the
    /// remote after `matches`, and it has no changes of its own if it is `clean`.
    pub(super) fn rebased(&self, matches: Option<Mark>, clean: Option<Mark>) -> Info {
        let Some(Rebasing { pull_gen, frame, conflicts }) = self.rebasing.clone() else { return self.clone() };
        Info {
            pull_gen,
            synced_wal_match_watermark: frame,
            draft_wal_match_watermark: matches,
            clean,
            rebasing: None,
            change_id: 0,
            push_in_doubt: false,
            pushed: None,
            parts: None,
            parts_of_push: None,
            of_push: Vec::new(),
            untold: [&self.untold[..], &conflicts].concat(),
            ..self.clone()
        }
    }

    /// Frames of the remote that are in the WAL of `P-synced`.
    pub(super) fn in_wal(&self) -> u64 {
        u64::from(self.synced_frame_no.saturating_sub(self.folded))
    }

    /// What of the draft the remote has after the last push that it took.
    pub(super) fn on_remote(&self) -> OnRemote {
        match self.parts {
            None => OnRemote { base: self.pushed, unfinished: None },
            Some(Parts { to, done: None, .. }) => OnRemote { base: Some(to), unfinished: None },
            Some(parts @ Parts { from, done: Some(done), .. }) => {
                OnRemote { base: from, unfinished: Some((parts, done)) }
            }
        }
    }

    /// The numbers of those `P-pushed.N` that are needed.
    pub(super) fn images(&self) -> Vec<i64> {
        let OnRemote { base, unfinished } = self.on_remote();
        base.into_iter().chain(unfinished.map(|(parts, _)| parts.to)).collect()
    }

    /// As it is stored.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let info = serde_json::to_string(self)?;
        let hash = hash(VERSION, &info);
        Ok(format!(r#"{{"version":{VERSION},"hash":{hash},"info":{info}}}"#).into_bytes())
    }

    /// What the content of such a file says, or why it cannot be believed.
    pub(super) fn decode(content: &[u8]) -> Result<Info, String> {
        let Stored { version, hash: found, info } =
            serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let text = serde_json::to_string(&info).map_err(|error| error.to_string())?;
        let computed = hash(version, &text);
        let believable = info.synced_generation > 0
            && info.folded <= info.synced_frame_no
            && info.synced_wal_match_watermark <= info.synced_frame_no
            && info.synced_wal_match_watermark >= info.folded;
        match () {
            () if computed != found => Err(format!("its hash is {found}, that of its content {computed}")),
            () if version != VERSION => Err(format!("version {version} is not supported ({VERSION} is)")),
            // What is not known would be forgotten.
            () if !info.encode().is_ok_and(|ours| ours == content) => Err("it is not as it was written".to_owned()),
            () if !believable => Err("its numbers do not fit each other".to_owned()),
            () => Ok(info),
        }
    }

    /// What the file of that name says; `None` when there is none.
    pub(super) fn load(dir: &dyn Repo, name: &str) -> Result<Option<Info>, ReplicaError> {
        let wrong = |reason: String| ReplicaError::Info { file: name.to_owned(), reason };
        match read_small(dir, name, REPLICA_INFO_BYTES_MAX) {
            Ok(None) => Ok(None),
            Ok(Some(content)) => Info::decode(&content).map(Some).map_err(wrong),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(wrong(error.to_string())),
            Err(error) => Err(ReplicaError::io("reading", name)(error)),
        }
    }

    /// Replaces that file. After Ok it survives power loss; after Err the old or the new content does.
    pub(super) fn store(&self, dir: &dyn Repo, name: &str) -> Result<(), ReplicaError> {
        let content = self.encode().map_err(|error| ReplicaError::Interrupted(error.to_string()))?;
        replace(dir, name, &content).map_err(ReplicaError::io("writing", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::report::{About, Doing, During};
    use crate::sync::turso::Value;

    fn conflict() -> Conflict {
        let key = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Float(1.5e-9),
            Value::Text("ü".into()),
            Value::Blob(vec![0]),
        ];
        let key = key.map(|value| ("k\"".to_owned(), value)).to_vec();
        let about = About { table: "t".into(), key, doing: Doing::Update };
        Conflict { during: During::Pull, about, error: "\0 no".into() }
    }

    fn info() -> Info {
        let mark = Mark { salts: [1, u32::MAX], frame: 9 };
        Info {
            draft_wal_match_watermark: Some(mark),
            rebasing: Some(Rebasing { pull_gen: 2, frame: 12, conflicts: vec![conflict()] }),
            push_in_doubt: true,
            ..Info::new("app-\"ü".into(), 3, 12, Some(5))
        }
    }

    #[test]
    fn what_was_stored_is_read() {
        assert_eq!(Info::decode(&info().encode().expect("it is written")), Ok(info()));
    }

    #[test]
    fn no_damaged_byte_is_believed() {
        let content = info().encode().expect("it is written");
        for at in 0..content.len() {
            for bit in 0..8 {
                let mut damaged = content.clone();
                damaged[at] ^= 1 << bit;
                assert!(Info::decode(&damaged).is_err(), "{at} {bit}");
            }
            assert!(Info::decode(&content[..at]).is_err());
        }
        assert!(Info::decode(b"").is_err() && Info::decode(b"{}").is_err());
    }
}
