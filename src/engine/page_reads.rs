//! Which pages of a database a statement reads.
//!
//! The engine reads by the IO layer of ours, on the thread that runs the statement, so a thread can record what it reads. A page
//! that the connection has in its cache is not read: whoever wants all of them takes a new connection.

use std::cell::RefCell;

use roaring::RoaringBitmap;

thread_local! {
    /// What this thread has read, the first page being 0, while it records that.
    static READ: RefCell<Option<RoaringBitmap>> = const { RefCell::new(None) };
}

/// Stops recording, also where the engine panics.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        READ.set(None);
    }
}

/// Does work, and returns with its result the pages of databases that this thread read meanwhile, the first being 0.
pub(crate) fn record_page_reads<T>(work: impl FnOnce() -> T) -> (T, RoaringBitmap) {
    READ.set(Some(RoaringBitmap::new()));
    let recording = Recording;
    let result = work();
    let pages = READ.take().unwrap_or_default();
    drop(recording);
    (result, pages)
}

/// Whether this thread records what it reads.
pub(super) fn is_recording() -> bool {
    READ.with_borrow(Option::is_some)
}

/// Pages are read, from the first to the last, which count from 1.
pub(super) fn note(first: u64, last: u64) {
    READ.with_borrow_mut(|read| {
        if let (Some(read), Ok(first), Ok(last)) = (read, u32::try_from(first), u32::try_from(last)) {
            read.insert_range(first.saturating_sub(1)..last);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_during_the_work_is_recorded() {
        note(1, 1);
        let (result, pages) = record_page_reads(|| {
            note(3, 3);
            note(5, 6);
            7
        });
        assert_eq!((result, pages), (7, [2, 4, 5].into_iter().collect()));
        assert!(!is_recording());
        let panicked = std::panic::catch_unwind(|| record_page_reads(|| panic!("the engine")));
        assert!(panicked.is_err() && !is_recording());
    }
}
