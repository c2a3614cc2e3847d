//! What the end-to-end suites share: the logmirror program as processes, commitlogs written and read independently of
//! logmirror's code, and random choices that can be repeated.

pub mod commitlog;
pub mod http;
pub mod process;
pub mod random;
pub mod source;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two checks of something that sends no notification.
const CHECK_EVERY: Duration = Duration::from_millis(5);

/// Calls `check` until it returns a value. After Err, `check` failed or `limit` is over.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = check()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("timeout after {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(CHECK_EVERY);
    }
}
