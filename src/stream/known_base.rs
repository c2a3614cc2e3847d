//! What is known of the base in a directory: by its mirror record, or by the `log.json` above it.

use std::io;
use std::path::Path;

use serde::Deserialize;

use super::record::MirrorRecord;
use crate::format::name;
use crate::limits::JSON_BYTES_MAX;
use crate::offset::Generation;
use crate::repo::{FsRepo, Repo, read_small};
use crate::segment::base::{BaseId, KnownBase};

/// What a log keeps about itself.
const META: &str = "log.json";

#[derive(Deserialize)]
struct Description {
    format: Option<String>,
    generation: Generation,
    base: Option<BaseId>,
}

/// What the mirror record in `repo` says.
///
/// # Errors
/// When it cannot be read.
pub fn recorded_base(repo: &dyn Repo) -> io::Result<KnownBase> {
    let sha256 = MirrorRecord::read(repo)?.and_then(|record| record.base);
    Ok(KnownBase { exists: sha256.is_some(), bytes: None, sha256 })
}

/// What is known of the base in `dir`: the directory of a generation in that of a log, or a mirror.
///
/// # Errors
/// When the record or `log.json` cannot be read. One that makes no sense says nothing.
pub fn known_base(dir: &Path) -> io::Result<KnownBase> {
    let recorded = recorded_base(&FsRepo::open(dir)?)?;
    let dir = dir.canonicalize()?;
    let generation = dir.file_name().and_then(|file| name::parse_generation(file.to_str()?));
    let (Some(parent), Some(generation)) = (dir.parent(), generation) else {
        return Ok(recorded);
    };
    let text = read_small(&FsRepo::open(parent)?, META, JSON_BYTES_MAX as u64)?;
    let described = text.and_then(|text| serde_json::from_slice::<Description>(&text).ok());
    Ok(match described {
        Some(described) if described.format.as_deref() == Some("wal") && generation <= described.generation => {
            KnownBase::required(described.base.filter(|_| generation == described.generation))
        }
        _ => recorded,
    })
}
