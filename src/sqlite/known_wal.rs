//! [`KnownWal`]: how far the WAL of a database was found sound, for the next time it is opened.

use super::counted::Counted;
use super::error::DatabaseError;
use super::source::{Opened, Stamp};
use super::wal_pages::WalPages;
use super::wal_scan::{Verdict, Visit, WalScan, scan};

/// How far a [`Snapshot`](super::Snapshot) found its WAL sound. A later snapshot of the same database goes on from there, and reads
/// only the frames that were added since: frames up to the last commit never change while the header of a WAL is the same.
///
/// It is believed only while the same file has the same header and, in its last committed frame of then, the same checksum, which
/// runs on from all frames before. Damage that comes to those frames later shows when they are read to be passed on.
#[derive(Clone, Debug)]
pub struct KnownWal {
    pub(super) scan: WalScan,
    file: Stamp,
    pub(super) pages: WalPages,
}

/// Scans the WAL of a database whose file has `base_bytes` bytes, up to the last frame that the connections count, if any does.
/// Nothing is known of a WAL without a sound header.
pub(super) fn scan_wal(
    wal: &Opened,
    base_bytes: u64,
    counted: Option<&Counted>,
    before: Option<&KnownWal>,
) -> Result<(Option<KnownWal>, Stamp, Verdict), DatabaseError> {
    let file = wal.stamp()?;
    // After those that count there may be a commit on its way, which may fail.
    let bytes = counted.map_or(file.bytes, |counted| counted.bytes().min(file.bytes));
    let before = before.filter(|before| before.file.is_same_file(&file));
    let mut pages = before.map_or_else(WalPages::default, |before| before.pages.clone());
    let (scan, verdict) = wal.ask(|opened| {
        scan(opened, bytes, before.map(|before| before.scan), |visit| match visit {
            Visit::Start(header) => pages = WalPages::after(base_bytes / u64::from(header.page_size)),
            Visit::GoOn => pages.go_on(),
            Visit::Frame(claim) => pages.add(claim),
        })
    })?;
    Ok((scan.map(|scan| KnownWal { scan, file, pages }), file, verdict))
}
