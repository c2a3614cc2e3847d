//! [`IndexWriter`]: writes the wal-index that SQLite's readers go by. Owns: the order in which page numbers, slots and header
//! are written. Knows no locks: the caller holds WRITE.
//!
//! Everything is written with `pwrite`, which Linux shows at once to processes that have the file mapped, and which returns an error
//! on a full disk where a store to a map would end the process.
//!
//! A reader looks at no frame after those that the header counts, so page numbers and slots of new frames may be written in any
//! order before it. What a writer left there that ended early is removed first: a slot of it could come after that of a newer
//! frame of the same page, and would be found in its place.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::super::lock::one_writer::plain;
use super::super::wal_index::{
    ATTEMPTED_AT, BLOCK_LEN, COPIED_AT, HEADER_LEN, IndexHeader, SLOTS, SLOTS_AT, WalIndex, frames_of, head_of,
    mark_at, place_of, slot_of,
};
use crate::repo::RepoFile;

/// Slots that are written one by one; of more, all of the block are.
const SINGLE_SLOTS_MAX: usize = 256;

/// The wal-index of a database that one process writes.
#[derive(Debug)]
pub(super) struct IndexWriter {
    file: Arc<dyn RepoFile>,
    /// What the header says, as it was published or found last.
    header: IndexHeader,
    /// The block of the last frame; none while the file may hold other things.
    block: Option<Block>,
}

impl IndexWriter {
    /// Of a file with this header; [`load`](Self::load) comes before [`add`](Self::add).
    pub(super) fn new(file: Arc<dyn RepoFile>, header: IndexHeader) -> IndexWriter {
        IndexWriter { file, header, block: None }
    }

    /// What was published last, or found.
    pub(super) fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// What the file says now.
    pub(super) fn read(&self) -> io::Result<Option<WalIndex>> {
        WalIndex::read(plain(&*self.file)?)
    }

    /// Takes over a header that another connection published.
    pub(super) fn adopt(&mut self, header: IndexHeader) {
        (self.header, self.block) = (header, None);
    }

    /// Whether the block of the last frame is known, and ends with it.
    pub(super) fn is_clean(&self) -> io::Result<bool> {
        let Some(block) = &self.block else { return Ok(false) };
        let at = block.page_at(block.pages.len());
        if at == block.at() + SLOTS_AT as u64 {
            return Ok(true);
        }
        let mut next = [0; 4];
        self.file.read_at(&mut next, at)?;
        Ok(next == [0; 4])
    }

    /// The frames of the block that the last published frame is in, up to it.
    pub(super) fn last_block(&self) -> (u64, u64) {
        let last = self.header.frames;
        (if last == 0 { 1 } else { frames_of(place_of(last).0).0 }, last)
    }

    /// Writes the block of the last published frame; `pages` are those of its [`last_block`](Self::last_block). What followed
    /// them is gone.
    pub(super) fn load(&mut self, pages: &[u32]) -> io::Result<()> {
        let (first, _) = self.last_block();
        let mut block = Block::new(place_of(first).0);
        for page in pages {
            block.push(*page);
        }
        block.write(&*self.file, 0, &[])?;
        self.block = Some(block);
        Ok(())
    }

    /// Writes the pages of the frames after those that are published. They count once a header is
    /// [published](Self::publish) that counts them.
    pub(super) fn add(&mut self, pages: &[u32]) -> io::Result<()> {
        let (mut frame, mut rest) = (self.header.frames + 1, pages);
        while !rest.is_empty() {
            let (number, nth) = place_of(frame);
            let room = (frames_of(number).1 + 1 - frame) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            let mut block = match self.block.take() {
                Some(block) if block.number == number => block,
                _ if nth == 0 => Block::new(number),
                _ => return Err(io::Error::other("the index of the WAL was not loaded")),
            };
            let slots: Vec<usize> = now.iter().map(|page| block.push(*page)).collect();
            block.write(&*self.file, nth, &slots)?;
            self.block = Some(block);
            (frame, rest) = (frame + now.len() as u64, later);
        }
        Ok(())
    }

    /// Makes a header the one that readers go by.
    pub(super) fn publish(&mut self, header: IndexHeader) -> io::Result<()> {
        let bytes = header.encode();
        // A reader reads the first copy and then the second one, and tries again where they differ.
        self.put(&bytes, HEADER_LEN)?;
        fence(Ordering::SeqCst);
        self.put(&bytes, 0)?;
        self.header = header;
        Ok(())
    }

    /// Makes an index from nothing: that of a WAL with frames of these pages. Readers that still use an index with the same
    /// frames see no difference.
    pub(super) fn rebuild(&mut self, header: IndexHeader, pages: &[u32]) -> io::Result<()> {
        self.adopt(IndexHeader { frames: 0, ..header });
        if pages.is_empty() {
            self.load(&[])?;
        } else {
            self.add(pages)?;
        }
        self.publish(header)
    }

    /// So many frames are in the database file.
    pub(super) fn set_copied(&self, frames: u64) -> io::Result<()> {
        self.put(&(frames as u32).to_ne_bytes(), COPIED_AT)
    }

    /// So many frames are going to be.
    pub(super) fn set_attempted(&self, frames: u64) -> io::Result<()> {
        self.put(&(frames as u32).to_ne_bytes(), ATTEMPTED_AT)
    }

    /// Sets a read mark, whose lock is held exclusively.
    pub(super) fn set_mark(&self, slot: usize, mark: u32) -> io::Result<()> {
        self.put(&mark.to_ne_bytes(), mark_at(slot))
    }

    fn put(&self, bytes: &[u8], at: usize) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(bytes)], at as u64)
    }
}

/// A block of the index up to its last frame, as the file should hold it.
#[derive(Debug)]
struct Block {
    number: u64,
    pages: Vec<u32>,
    /// The place of a frame in the block, from 1.
    slots: Vec<u16>,
}

impl Block {
    fn new(number: u64) -> Block {
        Block { number, pages: Vec::new(), slots: vec![0; SLOTS] }
    }

    /// Adds the page of the next frame, and returns its slot. There must be room.
    fn push(&mut self, page: u32) -> usize {
        self.pages.push(page);
        let mut slot = slot_of(page);
        // Half of them are free at least.
        while self.slots[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        self.slots[slot] = self.pages.len() as u16;
        slot
    }

    fn at(&self) -> u64 {
        self.number * BLOCK_LEN as u64
    }

    fn page_at(&self, nth: usize) -> u64 {
        self.at() + (head_of(self.number) + 4 * nth) as u64
    }

    /// Writes the pages from `nth` on, which have these slots. From the first page on, all of the block is written.
    fn write(&self, file: &dyn RepoFile, nth: usize, slots: &[usize]) -> io::Result<()> {
        let pages: Vec<u8> = self.pages[nth..].iter().flat_map(|page| page.to_ne_bytes()).collect();
        let all_slots = || -> Vec<u8> { self.slots.iter().flat_map(|slot| slot.to_ne_bytes()).collect() };
        let slots_at = self.at() + SLOTS_AT as u64;
        if nth == 0 {
            let free = vec![0; SLOTS_AT - head_of(self.number) - pages.len()];
            let slots = all_slots();
            let mut parts = [IoSlice::new(&pages), IoSlice::new(&free), IoSlice::new(&slots)];
            return file.write_at(&mut parts, self.page_at(0));
        }
        file.write_at(&mut [IoSlice::new(&pages)], self.page_at(nth))?;
        if slots.len() > SINGLE_SLOTS_MAX {
            return file.write_at(&mut [IoSlice::new(&all_slots())], slots_at);
        }
        for slot in slots {
            file.write_at(&mut [IoSlice::new(&self.slots[*slot].to_ne_bytes())], slots_at + 2 * *slot as u64)?;
        }
        Ok(())
    }
}
