//! Stepping into another generation: what the file holds is compared with the source page by page, and what differs becomes
//! one transaction, so that readers go from one whole state to the next.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use uuid::Uuid;

use super::error::ReplicaFileError;
use super::frames::each_block;
use super::kept::Kept;
use super::record::Position;
use super::target::{ReplicaFile, gone};
use crate::api::LastCommit;
use crate::client::{Client, positions};
use crate::format::database::lock_page;
use crate::format::wal::{Chain, FIRST_FRAME, FrameHeader};
use crate::mirror::failure::MirrorError;
use crate::mirror::received_sums::ReceivedSums;
use crate::mirror::source::{Extent, Piece, Reading, Source};
use crate::offset::Offset;
use crate::segment::base::seen;
use crate::sqlite::page_sums::PageSums;
use crate::sqlite::wal_frames::frames_of;
use crate::stream::Run;

/// Pages by number.
#[derive(Debug)]
struct PageSet {
    bits: Vec<u64>,
    count: u32,
}

impl PageSet {
    /// Without a page, of a database of so many.
    fn new(pages: u32) -> PageSet {
        PageSet { bits: vec![0; pages as usize / 64 + 1], count: 0 }
    }

    /// What is larger than the database does not count.
    fn insert(&mut self, page: u32) {
        if let Some(bits) = self.bits.get_mut(page as usize / 64) {
            self.count += u32::from(*bits >> (page % 64) & 1 == 0);
            *bits |= 1 << (page % 64);
        }
    }

    fn remove(&mut self, page: u32) {
        if let Some(bits) = self.bits.get_mut(page as usize / 64) {
            self.count -= u32::from(*bits >> (page % 64) & 1 == 1);
            *bits &= !(1 << (page % 64));
        }
    }

    fn contains(&self, page: u32) -> bool {
        self.bits.get(page as usize / 64).is_some_and(|bits| bits >> (page % 64) & 1 == 1)
    }
}

/// Brings a file to the state of the source's current generation as of a commit not before the one it was at when this was
/// called. Returns how many pages were fetched from its base, because no frame brought them.
///
/// Nothing of it is visible before it is the state of the source: each page is the one of its sum, and there are as many as the
/// last commit says, or the base where there is none.
///
/// # Errors
/// [`ReplicaFileError::Again`] when the file is to be made again.
pub(super) async fn step(
    client: &Client,
    extent: &Extent,
    target: &mut ReplicaFile,
    max: u64,
) -> Result<u32, MirrorError> {
    let (ReceivedSums { sums, next, page_size }, base_bytes) = pages_of(client, extent).await?;
    let path = target.path.clone();
    let mut missing = target
        .with(move |kept| {
            if page_size != kept.page_size() {
                return Err(ReplicaFileError::page_size(&path, kept.page_size(), page_size).into());
            }
            Ok((differing(kept, &sums)?, sums))
        })
        .await?;
    let mut last = None;
    let mut at_offset = FIRST_FRAME;
    if next > FIRST_FRAME {
        let Extent { generation, base, log, .. } = *extent;
        let reading = Reading { generation, from: FIRST_FRAME, held: true, follow: false, base, log };
        let mut pieces = Source::Url(client.clone()).stream(reading, max);
        while at_offset < next {
            let piece = pieces.recv().await.ok_or_else(gone)??;
            let batch = match piece {
                Piece::Batch(batch) => batch,
                Piece::End(_) => break,
                _ => continue,
            };
            for run in batch.runs() {
                let Some(run) = up_to(run, next) else { continue };
                (at_offset, last) = (run.end, Some(LastCommit::from(&run.last)));
                missing = target.with(move |kept| append(kept, &run, missing)).await?;
            }
        }
        if at_offset < next {
            return Err(MirrorError::Interrupted(format!(
                "the source's answer ended at offset {at_offset}, but it is durable up to {next}"
            )));
        }
    }
    let (fetched, mut first) = (missing.0.count, None);
    if fetched > 0 {
        (missing, first) = fetch(client, extent, target, missing).await?;
    }
    let (pages, to) = (missing.1.pages(), Position { generation: extent.generation, next, last, base: extent.base });
    let publish = move |kept: &mut Kept| {
        let expected = pages_due(kept, first, base_bytes)?;
        if let Some(expected) = expected.filter(|expected| *expected != pages) {
            let text = format!("the source has checksums of {pages} pages, and its database has {expected}");
            return Err(MirrorError::Interrupted(text));
        }
        kept.publish_sized(pages, to)
    };
    target.with(publish).await?;
    Ok(fetched)
}

/// How many pages a database has that was appended: as its last commit says, or, where none was, its `first` page, which the file
/// holds if it was not fetched; none where that does not say it.
fn pages_due(kept: &Kept, first: Option<Bytes>, base_bytes: Option<u64>) -> Result<Option<u32>, MirrorError> {
    if let Some(size) = kept.size() {
        return Ok(Some(size));
    }
    let first = match first {
        Some(first) => first,
        None => {
            let mut held = vec![0; kept.page_size() as usize];
            kept.read_page(1, &mut held)?;
            held.into()
        }
    };
    Ok(seen(&first, base_bytes.unwrap_or(u64::MAX)).ok().flatten().map(|found| found.pages))
}

/// The checksums of the pages of the source's current generation, which must be that of `extent`, and the bytes of its base where
/// the source says them.
async fn pages_of(client: &Client, extent: &Extent) -> Result<(ReceivedSums, Option<u64>), MirrorError> {
    let cut = || MirrorError::Interrupted("the checksums of the source's pages broke off".to_owned());
    let found = ReceivedSums::of(client, None).await?.ok_or_else(cut)?;
    let status = client.status().await?;
    if positions(&status)?.generation != extent.generation || Uuid::parse_str(&status.id).ok() != extent.log {
        return Err(MirrorError::Interrupted("the source went on to another generation meanwhile".to_owned()));
    }
    if found.sums.pages() == 0 {
        return Err(MirrorError::Interrupted(
            "the source has checksums of 0 pages, and no database has none".to_owned(),
        ));
    }
    Ok((found, status.base.map(|base| base.bytes)))
}

/// The pages of the source that the file does not hold.
fn differing(kept: &Kept, sums: &PageSums) -> Result<PageSet, MirrorError> {
    let mut missing = PageSet::new(sums.pages());
    let mut content = vec![0; kept.page_size() as usize];
    for page in (1..=sums.pages()).filter(|page| *page != lock_page(kept.page_size())) {
        if page > kept.pages() {
            missing.insert(page);
            continue;
        }
        kept.read_page(page, &mut content)?;
        if sums.get(page) != Some(sums.sum_of(&content)) && !(page == 1 && is_page_1(&mut content, sums)) {
            missing.insert(page);
        }
    }
    Ok(missing)
}

/// Whether page 1 is the source's but for the bytes that say whether there is a WAL.
fn is_page_1(content: &mut [u8], sums: &PageSums) -> bool {
    let versions = [[1, 1], [1, 2], [2, 1], [2, 2]];
    versions.iter().any(|versions| {
        if let Some(there) = content.get_mut(18..20) {
            there.copy_from_slice(versions);
        }
        sums.get(1) == Some(sums.sum_of(content))
    })
}

/// The part of a run before `next`, where a commit starts.
fn up_to(run: &Run, next: Offset) -> Option<Run> {
    if run.first >= next {
        return None;
    }
    if run.end <= next {
        return Some(run.clone());
    }
    let cut = run.commits().find(|(_, commit)| commit.first >= next).map(|(at, _)| at);
    cut.and_then(|at| run.split(at)).map(|(front, _)| front)
}

/// Pages that were not appended yet, and the sums of all.
type Missing = (PageSet, PageSums);

/// Appends the frames of a run. A page whose last frame is not the one that the source has a checksum of is still missing then: the
/// frames may be of another log than the checksums.
fn append(kept: &mut Kept, run: &Run, mut missing: Missing) -> Result<Missing, MirrorError> {
    let unread = |error| MirrorError::Interrupted(format!("the source: {error}"));
    let page_size = kept.page_size();
    each_block(run, unread, |frames| {
        for (head, content) in frames_of(frames, page_size) {
            match missing.1.get(head.page).is_none_or(|sum| sum == missing.1.sum_of(content)) {
                true => missing.0.remove(head.page),
                false => missing.0.insert(head.page),
            }
        }
        kept.append(frames)
    })?;
    Ok(missing)
}

/// Appends the pages that no frame brought, from the base of the generation; each is checked. Returns the first page of it too.
async fn fetch(
    client: &Client,
    extent: &Extent,
    target: &mut ReplicaFile,
    mut missing: Missing,
) -> Result<(Missing, Option<Bytes>), MirrorError> {
    let page_size = target.with(|kept| Ok(kept.page_size() as usize)).await?;
    let mut base = std::pin::pin!(client.base(extent.generation).await?);
    let (mut bytes, mut page, mut first) = (BytesMut::new(), 0_u32, None);
    while missing.0.count > 0 {
        let block = base.try_next().await?;
        let is_end = block.is_none();
        bytes.extend_from_slice(&block.unwrap_or_default());
        if is_end {
            // SQLite fills a page that is cut up with zeros.
            bytes.resize(bytes.len().next_multiple_of(page_size), 0);
        }
        let mut frames = Vec::new();
        while bytes.len() >= page_size {
            page += 1;
            let content = bytes.split_to(page_size).freeze();
            first.get_or_insert_with(|| content.clone());
            if missing.0.contains(page) {
                if missing.1.get(page) != Some(missing.1.sum_of(&content)) {
                    return Err(MirrorError::Interrupted(format!(
                        "page {page} of the base of the source is not the one that it has a checksum of"
                    )));
                }
                missing.0.remove(page);
                let head = FrameHeader { page, size: 0, salts: [0; 2], chain: Chain::default() };
                frames.extend_from_slice(&head.encode());
                frames.extend_from_slice(&content);
            }
        }
        if !frames.is_empty() {
            target.with(move |kept| kept.append(&mut frames)).await?;
        }
        if is_end && missing.0.count > 0 {
            let left = missing.0.count;
            return Err(MirrorError::Interrupted(format!(
                "{left} pages are neither in the source's base nor in a frame"
            )));
        }
    }
    Ok((missing, first))
}
