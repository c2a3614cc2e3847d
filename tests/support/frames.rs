//! WAL logs: made to measure or read from SQLite, cut into segments, and what the database is as of each frame.
#![allow(dead_code, clippy::unwrap_used, reason = "tests, and each file uses its part of this")]

use std::collections::BTreeMap;

use logmirror::format::wal::{Chain, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use logmirror::offset::Offset;
use logmirror::repo::Repo;
use logmirror::segment::frames::{BASE, segment_name};

use super::commitlog::put;

/// The frames of a generation, and the base before them.
#[derive(Clone, Debug)]
pub struct FrameLog {
    pub header: WalHeader,
    pub base: Vec<u8>,
    /// All frames with their headers, from 1.
    pub frames: Vec<Vec<u8>>,
    pub chain: Chain,
}

impl FrameLog {
    /// Without a frame.
    pub fn new(page_size: u32, big_endian: bool) -> FrameLog {
        let header = WalHeader { big_endian, page_size, sequence: 3, salts: [0xabcd_0123, 77] };
        FrameLog { header, base: Vec::new(), frames: Vec::new(), chain: header.seed() }
    }

    /// A base of this many pages.
    pub fn with_base(mut self, pages: u32) -> FrameLog {
        self.base = (1..=pages).flat_map(|page| content(self.header.page_size, page, 0)).collect();
        self
    }

    /// A transaction that writes `pages` and leaves a database of `size` pages.
    pub fn commit(mut self, pages: &[u32], size: u32) -> FrameLog {
        self.push(pages, 0);
        let last = self.frames.pop().unwrap();
        self.chain = self.frames.last().map_or(self.header.seed(), |frame| head(frame).chain);
        self.frame(head(&last).page, size);
        self
    }

    /// A transaction of all pages in which the database differs from this one, which it becomes.
    pub fn becomes(mut self, database: &[u8]) -> FrameLog {
        let page_size = self.header.page_size as usize;
        let (before, size) = (self.state(self.frames.len() as u64), (database.len() / page_size) as u32);
        let differs =
            |(at, page): &(usize, &[u8])| before.get(at * page_size..).is_none_or(|rest| !rest.starts_with(page));
        let pages: Vec<_> = database.chunks(page_size).enumerate().filter(differs).collect();
        for (nth, (at, content)) in pages.iter().enumerate() {
            let size = if nth + 1 == pages.len() { size } else { 0 };
            let (head, chain) = self.header.frame(self.chain, *at as u32 + 1, size, content);
            self.frames.push([&head[..], content].concat());
            self.chain = chain;
        }
        self
    }

    /// Frames of a transaction that goes on.
    pub fn push(&mut self, pages: &[u32], size: u32) {
        for page in pages {
            self.frame(*page, size);
        }
    }

    fn frame(&mut self, page: u32, size: u32) {
        let content = content(self.header.page_size, page, self.frames.len() + 1);
        let (head, chain) = self.header.frame(self.chain, page, size, &content);
        self.frames.push([&head[..], &content].concat());
        self.chain = chain;
    }

    /// What a WAL of SQLite holds up to its last commit.
    pub fn parse(wal: &[u8], base: Vec<u8>) -> FrameLog {
        let header = WalHeader::decode(wal[..HEADER_LEN].try_into().unwrap()).unwrap();
        let frames = wal[HEADER_LEN..].chunks_exact(header.frame_len() as usize);
        let mut frames: Vec<Vec<u8>> = frames.map(<[u8]>::to_vec).collect();
        let whole = frames.iter().rposition(|frame| head(frame).size != 0 && head(frame).salts == header.salts);
        frames.truncate(whole.map_or(0, |at| at + 1));
        let chain = frames.last().map_or(header.seed(), |frame| head(frame).chain);
        FrameLog { header, base, frames, chain }
    }

    /// The commit frames.
    pub fn commits(&self) -> Vec<u64> {
        (1..).zip(&self.frames).filter(|(_, frame)| head(frame).size != 0).map(|(number, _)| number).collect()
    }

    pub fn pages(&self) -> Vec<u32> {
        self.frames.iter().map(|frame| head(frame).page).collect()
    }

    /// The segments by name; a new one starts behind each of the frames `cuts`.
    pub fn segments(&self, cuts: &[u64]) -> BTreeMap<String, Vec<u8>> {
        let starts: Vec<u64> = [1].into_iter().chain(cuts.iter().map(|cut| cut + 1)).collect();
        let ends = starts.iter().skip(1).map(|start| start - 1).chain([self.frames.len() as u64]);
        let segment = |(start, end): (&u64, u64)| {
            let frames = self.frames[*start as usize - 1..end as usize].concat();
            (segment_name(Offset(*start)), [&self.header.encode()[..], &frames].concat())
        };
        starts.iter().zip(ends).map(segment).collect()
    }

    /// Base and segments as the files of a generation.
    pub fn files(&self, cuts: &[u64]) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.segments(cuts);
        if !self.base.is_empty() {
            files.insert(BASE.to_owned(), self.base.clone());
        }
        files
    }

    /// Puts them where they belong, durable.
    pub fn store(&self, repo: &dyn Repo, cuts: &[u64]) {
        for (name, bytes) in self.files(cuts) {
            put(repo, &name, &bytes);
            repo.open(&name).unwrap().sync().unwrap();
        }
        repo.sync_dir().unwrap();
    }

    /// The raw stream of a service: the segments one after the other.
    pub fn stream(&self, cuts: &[u64]) -> Vec<u8> {
        self.segments(cuts).into_values().flatten().collect()
    }

    /// The database as of a commit frame, made the simple way: one frame after the other.
    pub fn state(&self, frame: u64) -> Vec<u8> {
        let page_size = self.header.page_size as usize;
        let mut database = self.base.clone();
        let mut size = database.len() / page_size;
        for frame in &self.frames[..frame as usize] {
            let at = (head(frame).page as usize - 1) * page_size;
            if database.len() < at + page_size {
                database.resize(at + page_size, 0);
            }
            database[at..at + page_size].copy_from_slice(&frame[FRAME_HEADER_LEN..]);
            size = if head(frame).size != 0 { head(frame).size as usize } else { size };
        }
        database.truncate(size * page_size);
        database
    }
}

pub fn head(frame: &[u8]) -> FrameHeader {
    FrameHeader::decode(frame.first_chunk().unwrap())
}

/// A page that differs from page to page and from write to write. The first one starts like that of a database.
pub fn content(page_size: u32, page: u32, version: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..page_size as usize).map(|at| (at * 7 + page as usize * 31 + version * 101) as u8).collect();
    if page == 1 {
        let size = if page_size == 65_536 { 1 } else { page_size as u16 };
        bytes[..16].copy_from_slice(b"SQLite format 3\0");
        bytes[16..18].copy_from_slice(&size.to_be_bytes());
        bytes[18..20].copy_from_slice(&[2, 2]);
    }
    bytes
}
