//! States of a replica's databases, whose pages have 4096 bytes: read by their trees, and compared.

use std::io;

use roaring::RoaringBitmap;

use super::error::ReplicaError;
use crate::repo::Repo;
use crate::sqlite::btree::{PAGE_LEN, Page, Pages, TreeError};
use crate::sqlite::image::Image;

/// Bytes of a page.
pub(super) const PAGE_SIZE: u32 = PAGE_LEN as u32;

impl Pages for Image {
    fn count(&self) -> u32 {
        self.pages()
    }

    fn read(&self, number: u32, page: &mut Page) -> Result<(), TreeError> {
        let found = self.find_page(number, page)?;
        found.then_some(()).ok_or(TreeError::Malformed { page: number, what: "it is not there" })
    }
}

/// The database `name` as of a frame of its WAL, which must end a transaction; 0: the file alone.
///
/// # Errors
/// When it cannot be read.
pub(super) fn image(dir: &dyn Repo, name: &str, frames: u64) -> io::Result<Image> {
    let image = Image::of(dir.open(name)?, PAGE_SIZE)?;
    if frames > 0 { image.over(dir.open(&format!("{name}-wal"))?, frames) } else { Ok(image) }
}

/// The pages among `candidates` that two states of a database do not have in common; all pages are candidates if there is
/// no such set.
///
/// # Errors
/// When one cannot be read.
pub(super) fn differing(
    one: &Image,
    other: &Image,
    candidates: Option<&RoaringBitmap>,
) -> Result<RoaringBitmap, ReplicaError> {
    let (mut ours, mut theirs) = ([0; PAGE_LEN], [0; PAGE_LEN]);
    let (both, either) = (one.count().min(other.count()), one.count().max(other.count()));
    let mut found = RoaringBitmap::new();
    let mut compare = |page: u32| -> Result<(), ReplicaError> {
        if page <= both {
            one.read(page, &mut ours)?;
            other.read(page, &mut theirs)?;
        }
        if page > both || ours != theirs {
            found.insert(page);
        }
        Ok(())
    };
    match candidates {
        Some(candidates) => candidates.iter().filter(|page| (1..=either).contains(page)).try_for_each(&mut compare)?,
        None => (1..=either).try_for_each(&mut compare)?,
    }
    Ok(found)
}
