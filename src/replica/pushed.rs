//! `P-pushed.N`: what the draft was when push N was made: the pages that differ from what it was made from, as a WAL. It is
//! written and synced before anything is sent, and believed only whole.

use std::io::{self, IoSlice};

use roaring::RoaringBitmap;
use uuid::Uuid;

use super::error::ReplicaError;
use super::image::{Image, frame_at};
use super::store::Store;
use crate::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use crate::sqlite::btree::{PAGE_LEN, Pages};
use crate::sync::FRAME_LEN;

impl Store {
    /// Keeps what the draft is now, for push `change_id`.
    pub(super) fn keep_pushed(&self, change_id: i64, draft: &Image, pages: &RoaringBitmap) -> Result<(), ReplicaError> {
        let name = self.files.pushed(change_id);
        self.files.remove(&name)?;
        let written = || -> Result<(), ReplicaError> {
            let io = |error| ReplicaError::io("writing", &name)(error);
            let file = self.files.dir.create(&name).map_err(io)?;
            let random = Uuid::new_v4().into_bytes();
            let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| random[at + i]));
            let salts = [word(0), word(12)];
            let header = WalHeader { big_endian: false, page_size: PAGE_LEN as u32, sequence: 0, salts };
            file.write_at(&mut [IoSlice::new(&header.encode())], 0).map_err(io)?;
            let (mut chain, mut number, mut page) = (header.seed(), 0, [0; PAGE_LEN]);
            // The first page ends it, and is always there.
            let last = std::iter::once(1);
            for of in pages.iter().filter(|page| (2..=draft.count()).contains(page)).chain(last) {
                draft.read(of, &mut page)?;
                let size = if of == 1 { draft.count() } else { 0 };
                let (head, after) = header.frame(chain, of, size, &page);
                (chain, number) = (after, number + 1);
                let mut slices = [IoSlice::new(&head), IoSlice::new(&page)];
                file.write_at(&mut slices, frame_at(number)).map_err(io)?;
            }
            file.sync().map_err(io)?;
            self.files.dir.sync_dir().map_err(io)
        };
        written()
    }

    /// What the draft was at push `change_id`, on top of what it was made from, and the pages in which the two differ.
    pub(super) fn pushed(&self, shared: &Image, change_id: i64) -> Result<(Image, RoaringBitmap), ReplicaError> {
        let name = self.files.pushed(change_id);
        let file = match self.files.dir.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReplicaError::Missing { file: name }),
            file => file.map_err(ReplicaError::io("opening", &name))?,
        };
        let io = |error| ReplicaError::io("reading", &name)(error);
        let damaged = || ReplicaError::Mismatch { what: format!("{name} is damaged") };
        let (mut header, mut frame) = ([0; HEADER_LEN], [0; FRAME_LEN]);
        file.read_at(&mut header, 0).map_err(io)?;
        let header = WalHeader::decode(&header).map_err(|_| damaged())?;
        let (mut chain, mut pages, mut number) = (header.seed(), RoaringBitmap::new(), 0);
        loop {
            number += 1;
            if file.read_at(&mut frame, frame_at(number)).map_err(io)? < FRAME_LEN {
                return Err(damaged());
            }
            let (head, page) = frame.split_at(FRAME_HEADER_LEN);
            let head = head.first_chunk().map(FrameHeader::decode).ok_or_else(damaged)?;
            let (_, computed) = header.frame(chain, head.page, head.size, page);
            if computed != head.chain {
                return Err(damaged());
            }
            chain = computed;
            pages.insert(head.page);
            if head.size > 0 {
                let image = shared.clone().over(&file, 0, number).map_err(io)?;
                return Ok((image, pages));
            }
        }
    }
}
