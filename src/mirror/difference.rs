//! [`Difference`]: the pages in which a database differs from its log, on their way to become one transaction of it.

use super::outlet::Outlet;
use crate::format::wal::WalHeader;

/// Pages that differ, on their way.
pub(super) struct Difference {
    /// For a log that has none.
    pub(super) header: WalHeader,
    /// The one found last: it is held back, since it may be the one to end the transaction.
    pub(super) last: Option<(u32, Vec<u8>, Option<u64>)>,
    pub(super) count: u64,
    /// Pages of the database now, and in the log.
    pub(super) pages: u32,
    pub(super) before: u32,
    /// Page 1, when no page differs but their number does.
    pub(super) first: Option<Vec<u8>>,
}

impl Difference {
    /// Adds one, with its sum if that is known.
    pub(super) fn add(&mut self, outlet: &mut Outlet, page: u32, content: &[u8], sum: Option<u64>) {
        let sum = sum.or_else(|| outlet.sums.as_ref().map(|sums| sums.sum_of(content)));
        self.count += 1;
        if let Some((page, content, sum)) = self.last.replace((page, content.to_vec(), sum)) {
            outlet.page(&self.header, page, 0, (&content, sum));
        }
    }
}

/// The header of a log whose source has no WAL, with salts like no other's.
pub(super) fn fresh_header(page_size: u32) -> WalHeader {
    let (a, b) = uuid::Uuid::new_v4().as_u64_pair();
    WalHeader { big_endian: false, page_size, sequence: 0, salts: [a as u32, (b >> 32) as u32 ^ b as u32] }
}
