//! Every cap, with its reason. What a user may change has its default here and nowhere else.

use std::num::NonZeroU64;
use std::time::Duration;

/// Largest commit taken unless the user says otherwise. A commit is held in memory until its checksum is known, so
/// this bounds what one sender can make us hold. SpacetimeDB's own commits are a few KiB to a few MiB.
pub const COMMIT_BYTES_MAX: u64 = 64 << 20;

/// Log bytes in memory at once, over all senders and readers of a service.
pub const MEMORY_MAX: u64 = 256 << 20;

/// Bytes of commits between two entries of an offset index: SpacetimeDB's default, so indexes look alike.
pub const INDEX_INTERVAL: u64 = 4096;

/// How an offset index starts and by how much it grows at the most: room for 16 MiB of log, then 256 MiB more.
pub const INDEX_BYTES_START: u64 = 64 << 10;
/// See [`INDEX_BYTES_START`].
pub const INDEX_BYTES_STEP_MAX: u64 = 1 << 20;

/// One read from a segment. Large enough that the system call costs nothing, small enough to stay in the L2 cache
/// between the copy out of the page cache and the checksum.
pub const READ_BLOCK: usize = 256 << 10;

/// Segments are verified in pieces of about this many bytes: small enough that the last one does not keep a single core
/// busy for long, large enough that finding the cuts costs nothing.
pub const VERIFY_PIECE_BYTES: NonZeroU64 = NonZeroU64::new(32 << 20).unwrap();

/// Faults named in one segment before a verification leaves it: whoever reads the list has seen enough.
pub const SEGMENT_FAULTS_MAX: usize = 1000;

/// Bytes appended to a log but not yet synced before a bulk sender is made to wait: bounds what is lost to a power
/// failure and how long the last sync of a stream takes.
pub const UNSYNCED_MAX: u64 = 64 << 20;

/// A bulk stream is synced each time this much has come, so that acknowledgements stay near.
pub const SYNC_EVERY: u64 = 8 << 20;

/// Messages a writer thread takes in before senders wait.
pub const SHARD_QUEUE: usize = 256;

/// Threads that own writers. More than the disk can use is waste; a log belongs to exactly one.
pub const WRITER_THREADS_MAX: usize = 4;

/// Threads that wait for fdatasync. File systems merge syncs that overlap, so several logs synced at once share one
/// journal commit.
pub const SYNC_THREADS: usize = 8;

/// A writer without work for this long gives its files back.
pub const WRITER_IDLE: Duration = Duration::from_secs(60);

/// Largest JSON body of a request.
pub const JSON_BYTES_MAX: usize = 64 << 10;

/// Longest wait for a share of the memory budget before a sender is told to come back.
pub const BUDGET_WAIT: Duration = Duration::from_secs(20);

/// What is read of a request's remaining body, at most, so that a sender still writing gets to see our error.
pub const DRAIN_BYTES_MAX: u64 = 256 << 20;
/// How long that may take.
pub const DRAIN_WAIT: Duration = Duration::from_secs(2);
