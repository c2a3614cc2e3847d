//! Revisions: which state of which history a client has.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::limits::LIBSQL_PAGE_SIZE;
use crate::mirror::{Error, Log, Registry, SeenBase};
use crate::offset::{Generation, Offset};
use crate::sync::libsql::syncable;
use crate::sync::turso::proto::PAGE_LEN;

/// Pages of a base that its print is made of: enough to tell two databases apart that are not the same but for single rows,
/// few enough to be read for every request.
const PRINTED_PAGES: u64 = 16;

/// The state of a log after a commit, as clients keep it: `GENERATION:FRAME:SUM`. To them it is opaque.
///
/// `SUM` is the checksum stored with the frame, which covers everything before it in its generation. Frame 0 is the base of
/// the generation, and its sum is a print of that: of its length and some of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The generation.
    pub generation: Generation,
    /// The commit frame; 0 for the base.
    pub frame: Offset,
    /// What tells one history from another.
    pub sum: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{:016x}", self.generation, self.frame, self.sum)
    }
}

/// Exactly what is displayed is read.
impl FromStr for Revision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Revision, Error> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let (generation, frame, sum) = (parts.next()?, parts.next()?, parts.next()?);
            let revision = Revision {
                generation: generation.parse().ok()?,
                frame: frame.parse().ok()?,
                sum: u64::from_str_radix(sum, 16).ok()?,
            };
            (revision.to_string() == text).then_some(revision)
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Error::Invalid(format!(
                "{shown:?} is no revision of this service: a client that has it must bootstrap anew"
            ))
        })
    }
}

/// The database at the start of a generation.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) content: Arc<SeenBase>,
    /// Pages that can be read of it.
    pub(super) pages: u64,
    /// Pages of the database.
    pub(super) size: u64,
}

impl Base {
    /// # Errors
    /// When it cannot be read, or has pages that Turso's clients do not sync.
    pub(super) fn open(log: &Arc<Log>) -> Result<Base, Error> {
        let content = SeenBase::open(log)?;
        // What is no database that can be looked into, as an encrypted one, has the pages that its log says.
        if let Some(size) = content.page_size().filter(|size| *size != LIBSQL_PAGE_SIZE) {
            let name = log.name();
            return Err(Error::Format(format!("log {name:?} has pages of {size} bytes; Turso syncs pages of 4096")));
        }
        let (bytes, held) = (content.bytes(), content.held());
        if !bytes.is_multiple_of(PAGE_LEN as u64) {
            return Err(Error::Damaged(format!("the base has {bytes} bytes, which are no whole pages").into()));
        }
        Ok(Base { content: Arc::new(content), pages: held / PAGE_LEN as u64, size: bytes / PAGE_LEN as u64 })
    }

    /// Reads a page, the first being 0, that it has.
    pub(super) fn read(&self, page: u64, content: &mut [u8; PAGE_LEN]) -> Result<(), Error> {
        if self.content.read_at(content, page * PAGE_LEN as u64)? == content.len() {
            return Ok(());
        }
        Err(Error::Damaged(format!("the base ends inside page {} of {}", page + 1, self.pages).into()))
    }

    fn print(&self) -> Result<u64, Error> {
        let mut hash = Sha256::new();
        hash.update(self.size.to_be_bytes());
        let mut content = [0; PAGE_LEN];
        let last = self.size.saturating_sub(1);
        let mut before = None;
        for nth in 0..PRINTED_PAGES {
            let page = (u128::from(last) * u128::from(nth) / u128::from(PRINTED_PAGES - 1)) as u64;
            if self.size > 0 && before.replace(page) != Some(page) {
                self.read(page, &mut content)?;
                hash.update(content);
            }
        }
        let digest = hash.finalize();
        Ok(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// A state that is there.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// The generation it is in, which stays as long as this is held.
    pub(super) log: Arc<Log>,
    pub(super) revision: Revision,
    /// Pages of the database.
    pub(super) size: u32,
}

impl Point {
    /// The newest durable state of a log. Blocks for small reads.
    ///
    /// # Errors
    /// When the log cannot be synced, or not be read.
    pub(super) fn newest(log: &Arc<Log>) -> Result<Point, Error> {
        syncable(log, "Turso")?;
        Point::at(log, Offset(log.view().durable.0.saturating_sub(1)))
    }

    /// The state that a client names. Blocks for small reads.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one of another history, or one that is not there yet; [`Error::GenerationGone`] when its
    /// generation was deleted.
    pub(super) fn named(registry: &Registry, log_name: &str, text: &str) -> Result<Point, Error> {
        let revision: Revision = text.parse()?;
        let refused = |why: String| Error::Invalid(format!("revision {revision} {why}"));
        let current = registry.get(log_name)?;
        current.readable()?;
        if revision.generation > current.generation() || revision.generation < Generation::FIRST {
            let current = current.generation();
            return Err(refused(format!("is of no generation of log {log_name:?}, whose current one is {current}")));
        }
        let log = registry.generation(log_name, Some(revision.generation))?;
        syncable(&log, "Turso")?;
        let last = log.view().durable.0.saturating_sub(1);
        if revision.frame.0 > last {
            return Err(refused(format!("is ahead of log {log_name:?}, whose last frame there is {last}")));
        }
        let point = Point::at(&log, revision.frame)?;
        if point.revision != revision {
            return Err(refused(format!(
                "is of another history than log {log_name:?} has: a client that has it must bootstrap anew"
            )));
        }
        if point.size == 0 && revision.frame > Offset(0) {
            return Err(refused("does not end a transaction".into()));
        }
        Ok(point)
    }

    /// The state after a frame; after that of the base for 0.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn at(log: &Arc<Log>, frame: Offset) -> Result<Point, Error> {
        let of = |sum, size| Point {
            log: log.clone(),
            revision: Revision { generation: log.generation(), frame, sum },
            size,
        };
        if frame == Offset(0) {
            let base = Base::open(log)?;
            let size = u32::try_from(base.size);
            let size = size.map_err(|_| Error::Damaged(format!("the base has {} pages", base.size).into()))?;
            return Ok(of(base.print()?, size));
        }
        let head = log.frame_head(frame)?;
        let head = head.ok_or_else(|| Error::Damaged(format!("frame {frame} is not where it must be").into()))?;
        Ok(of(head.chain.number(), head.size))
    }

    /// Whether it is in the same generation.
    pub(super) fn is_beside(&self, other: &Point) -> bool {
        Arc::ptr_eq(&self.log, &other.log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_as_it_is_written_and_no_other_way() {
        let revision = Revision { generation: Generation(1), frame: Offset(1234), sum: 0x0bcd_ef01_2345_6789 };
        assert_eq!(revision.to_string(), "1:1234:0bcdef0123456789");
        assert_eq!("1:1234:0bcdef0123456789".parse::<Revision>().ok(), Some(revision));
        for text in [
            "",
            "1",
            "25",
            "1:2",
            "1:2:3",
            ":1234:0bcdef0123456789",
            "01:1234:0bcdef0123456789",
            "1:+1234:0bcdef0123456789",
            "1:1234:0BCDEF0123456789",
            "1:1234:0bcdef0123456789:",
            " 1:1234:0bcdef0123456789",
            "1:99999999999999999999:0bcdef0123456789",
            "-1:1234:0bcdef0123456789",
            "1:1234:0bcdef01234567890",
            "e1:1234",
        ] {
            assert!(matches!(text.parse::<Revision>(), Err(Error::Invalid(_))), "{text:?}");
        }
    }
}
