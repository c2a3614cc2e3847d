//! The same start for everyone: nothing left to write back, and memory the machine really has.

use std::hint::black_box;

/// Beyond the bytes of the copy: indexes, buffers, another process.
const SLACK_BYTES: u64 = 256 << 20;

/// Call this before the clock starts for a run that will fill the page cache with `bytes`.
///
/// Dirty pages of an earlier run would compete with this one for the disk. And a virtual machine hands freed memory
/// back to its host (free page reporting, ballooning), so that the next to use it waits for faults in the host: here
/// memory could be filled at 400 MB/s, and at 1,400 when it had been in use a moment before.
pub fn settle(bytes: u64) {
    rustix::fs::sync();
    let bytes = usize::try_from(bytes + bytes / 4 + SLACK_BYTES).unwrap_or(usize::MAX);
    let mut memory = Vec::new();
    // Where there is not that much, the run does without.
    if memory.try_reserve_exact(bytes).is_ok() {
        memory.resize(bytes, 1u8);
        black_box(&memory);
    }
}
