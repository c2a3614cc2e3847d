//! [`each_page`]: the pages of the database that a generation makes, one after the other, without making it.

use super::fold::{FoldError, Segments, survey};
use crate::format::database::HEADER_LEN;
use crate::limits::READ_BLOCK;
use crate::repo::Repo;
use crate::segment::base::{BaseReader, seen};

/// Calls `take` with each page of the database as of the last commit of the generation in `source`, ascending, with its number. Each
/// frame and each block of the base is verified; memory holds the place of the newest frame of each page, and a block. Returns the
/// bytes of a page; none for a database without a page.
///
/// # Errors
/// See [`FoldError`]; and that of `take`, which ends it.
pub fn each_page<E: From<FoldError>>(
    source: &dyn Repo,
    mut take: impl FnMut(u32, &[u8]) -> Result<(), E>,
) -> Result<Option<u32>, E> {
    let failed = |error: std::io::Error| FoldError::from(error);
    let state = survey(source, None)?;
    let base = BaseReader::open(source).map_err(failed)?;
    let mut stated = None;
    if let Some(base) = &base {
        let mut head = [0; HEADER_LEN];
        let count = base.read_at(&mut head, 0).map_err(failed)?;
        stated = seen(&head[..count], base.bytes()).ok().flatten();
    }
    let in_frames = state.header.zip(state.newest.size()).map(|(header, pages)| (header.page_size, pages));
    let Some((page_size, pages)) = in_frames.or(stated.map(|stated| (stated.page_size, stated.pages))) else {
        return Ok(None);
    };
    let mut segments = state.header.map(|header| Segments::new(source, header, &state));
    let page_bytes = page_size as usize;
    let (mut block, mut run) = (vec![0; (READ_BLOCK / page_bytes).max(1) * page_bytes], Vec::new());
    let mut first = 1_u32;
    while first <= pages {
        let count = (block.len() / page_bytes).min((pages - first) as usize + 1);
        let part = &mut block[..count * page_bytes];
        let at = u64::from(first - 1) * u64::from(page_size);
        let read = base.as_ref().map_or(Ok(0), |base| base.read_at(part, at)).map_err(failed)?;
        // What is after the end of the base is in frames, or zeros.
        part[read..].fill(0);
        for (page, content) in (first..).zip(part.chunks_exact_mut(page_bytes)) {
            if let (Some(segments), Some(newest)) = (&mut segments, state.newest.get(page)) {
                run.clear();
                segments.read(page, newest, &mut run)?;
                content.copy_from_slice(&run);
            }
            take(page, content)?;
        }
        first = first.saturating_add(count as u32);
    }
    Ok(Some(page_size))
}
