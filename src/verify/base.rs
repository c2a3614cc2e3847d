//! Is the base whole? Every block of it, its digest, and what SQLite would see in it.

use std::io;

use super::report::{BaseReport, FoundFault, Note};
use crate::format::database::HEADER_LEN;
use crate::offset::{BytePos, Offset};
use crate::repo::Repo;
use crate::segment::base::{BaseFault, BaseReader, KnownBase, seen};

/// What was found of a base.
#[derive(Debug, Default)]
pub(super) struct CheckedBase {
    pub(super) report: Option<BaseReport>,
    pub(super) faults: Vec<FoundFault>,
    pub(super) notes: Vec<Note>,
}

/// Reads all of the base in `repo`, if there is one or should be. Calls `on_read` with the number of bytes more that were read.
///
/// # Errors
/// As the repo says. Faults are part of the answer.
pub(super) fn check(repo: &dyn Repo, known: &KnownBase, on_read: impl FnMut(u64)) -> io::Result<CheckedBase> {
    let mut checked = CheckedBase::default();
    let reader = match BaseReader::open_known(repo, known) {
        Ok(Some(reader)) => reader,
        Ok(None) => return Ok(checked),
        Err(error) => {
            let fault = BaseFault::of(&error).map(found);
            checked.faults.push(fault.ok_or(error)?);
            return Ok(checked);
        }
    };
    let (sha256, faults) = reader.check_all(on_read)?;
    checked.faults.extend(faults.iter().map(found));
    if let Some(expected) = known.sha256.filter(|expected| faults.is_empty() && *expected != sha256) {
        checked.faults.push(found(&BaseFault::Digest { place: repo.place(), found: sha256, expected }));
    }
    let unproven = reader.is_unproven_beside(known);
    let mut head = [0; HEADER_LEN];
    let seen = match reader.read_at(&mut head, 0) {
        Ok(count) => seen(&head[..count], reader.bytes()),
        // It is named already.
        Err(_) => Ok(None),
    };
    let mut note = |message| checked.notes.push(Note { segment: Offset::ZERO, message });
    if unproven {
        note("the base is unproven: nothing says what it was before its checksums were made".to_owned());
    }
    if let Err(text) = &seen {
        note(format!("the base is no database that SQLite opens: {text}"));
    }
    let pages = seen.ok().flatten().map(|seen| seen.pages);
    checked.report = Some(BaseReport { bytes: reader.bytes(), sha256: sha256.to_string(), unproven, pages });
    Ok(checked)
}

fn found(fault: &BaseFault) -> FoundFault {
    let (segment, offset, at) = (Offset::ZERO, Offset::ZERO, BytePos(fault.at()));
    FoundFault { segment, offset, at, code: FoundFault::BASE.to_owned(), message: fault.to_string() }
}
