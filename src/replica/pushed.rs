//! `P-pushed.N`: what the draft was when push N was made: the pages that differ from what it was made from, as a WAL. It is
//! written and synced before anything is sent, and believed only whole.

use std::io;

use roaring::RoaringBitmap;

use super::error::ReplicaError;
use super::image::PAGE_SIZE;
use super::store::Store;
use crate::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::sqlite::btree::{PAGE_LEN, Pages};
use crate::sqlite::image::Image;
use crate::sqlite::wal_append::{WalAppender, new_header};
use crate::sync::FRAME_LEN;

impl Store {
    /// Keeps what the draft is now, for push `change_id`.
    pub(super) fn keep_pushed(&self, change_id: i64, draft: &Image, pages: &RoaringBitmap) -> Result<(), ReplicaError> {
        let name = self.files.pushed(change_id);
        let io = |error| ReplicaError::io("writing", &name)(error);
        let mut wal = WalAppender::create(&*self.files.dir, &name, new_header(PAGE_SIZE, 0)).map_err(io)?;
        let mut page = [0; PAGE_LEN];
        // The first page ends it, and is always there.
        let last = std::iter::once(1);
        for number in pages.iter().filter(|page| (2..=draft.count()).contains(page)).chain(last) {
            draft.read(number, &mut page)?;
            let size = if number == 1 { draft.count() } else { 0 };
            let frame = FrameHeader { page: number, size, salts: [0; 2], chain: Chain::default() };
            wal.append([(frame, &page[..])]).map_err(io)?;
        }
        wal.sync().map_err(io)
    }

    /// What the draft was at push `change_id`, on top of what it was made from, and the pages in which the two differ.
    pub(super) fn pushed(&self, shared: &Image, change_id: i64) -> Result<(Image, RoaringBitmap), ReplicaError> {
        let name = self.files.pushed(change_id);
        let file = match self.files.dir.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReplicaError::Missing { file: name, there: self.files.draft() });
            }
            file => file.map_err(ReplicaError::io("opening", &name))?,
        };
        let io = |error| ReplicaError::io("reading", &name)(error);
        let damaged = || ReplicaError::Mismatch { what: format!("{name} is damaged") };
        let (mut header, mut frame) = ([0; HEADER_LEN], [0; FRAME_LEN]);
        file.read_at(&mut header, 0).map_err(io)?;
        let header = WalHeader::decode(&header).map_err(|_| damaged())?;
        let (mut chain, mut pages, mut number) = (header.seed(), RoaringBitmap::new(), 0);
        loop {
            let read = file.read_at(&mut frame, header.byte_after(number)).map_err(io)?;
            number += 1;
            let (head, page) = frame[..read].split_first_chunk::<FRAME_HEADER_LEN>().ok_or_else(damaged)?;
            let head = header.check(chain, head, page).map_err(|_| damaged())?;
            chain = head.chain;
            pages.insert(head.page);
            if head.size > 0 {
                return Ok((shared.clone().over(file, number).map_err(io)?, pages));
            }
        }
    }
}
