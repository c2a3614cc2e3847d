//! Files mapped into memory. Beside `format/crc.rs`, the only unsafe code of the crate.

use std::fs::File;
use std::io;

use memmap2::MmapMut;

use super::RepoMap;

/// A writable shared map of one file.
#[derive(Debug)]
pub(super) struct FileMap {
    map: MmapMut,
}

impl FileMap {
    /// Maps all of `file`, whose blocks must be reserved: a store to a hole on a full disk would kill the process.
    #[allow(unsafe_code)]
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is sound as long as nobody truncates the file under it and no reference into it lives while
        // somebody else stores to it. Only offset indexes of a directory we hold the writer's lock on are mapped; we
        // never shorten one while its map lives; and `RepoMap` copies bytes in and out, so no reference escapes.
        let map = unsafe { MmapMut::map_mut(file)? };
        Ok(FileMap { map })
    }
}

impl RepoMap for FileMap {
    fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: u64) {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.map.len());
        let count = buf.len().min(self.map.len() - from);
        buf[..count].copy_from_slice(&self.map[from..from + count]);
        buf[count..].fill(0);
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.map.len());
        let count = bytes.len().min(self.map.len() - from);
        self.map[from..from + count].copy_from_slice(&bytes[..count]);
    }

    fn sync(&self) -> io::Result<()> {
        self.map.flush()
    }
}
