//! What the system lets this process have, in words.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::limits::{FILES_OWN, FILES_PER_CONNECTION, FILES_PER_SQL_WORKER};

/// Which limit of the system an error met, and what raises it; none if it met none.
#[must_use]
pub fn met(error: &io::Error) -> Option<String> {
    let limited = |name: &str, resource| getrlimit(resource).current.map(|most| format!("{name}: {most}"));
    match Errno::from_raw_os_error(error.raw_os_error()?) {
        Errno::MFILE => Some(format!("{}: {RAISE_FILES}", has_files_open())),
        Errno::NFILE => Some("the system has too many files open: raise it with `sysctl fs.file-max`".into()),
        Errno::AGAIN | Errno::NOMEM => {
            let limits = [("ulimit -u", Resource::Nproc), ("ulimit -v", Resource::As), ("ulimit -d", Resource::Data)];
            let limits: Vec<_> = limits.into_iter().filter_map(|(name, resource)| limited(name, resource)).collect();
            let limits = if limits.is_empty() { String::new() } else { format!(" ({})", limits.join(", ")) };
            Some(format!(
                "the system gives this process no further thread, process or memory{limits}: raise the limits of processes and \
                 memory of this user (in a unit of systemd LimitNPROC= and LimitAS=), or of its control group (TasksMax=, MemoryMax=)"
            ))
        }
        _ => None,
    }
}

const RAISE_FILES: &str = "raise the hard limit (`ulimit -Hn 65536`, LimitNOFILE=65536 in a unit of systemd)";

fn has_files_open() -> String {
    match getrlimit(Resource::Nofile).current {
        Some(files) => format!("this process may have {files} files open (ulimit -n)"),
        None => "this process has too many files open".into(),
    }
}

/// Whether a service can do anything with the files that it may have open.
///
/// # Errors
/// That it cannot, how many it needs, and what to do.
pub fn open_files_suffice(sql_workers: usize) -> Result<(), String> {
    let least = FILES_OWN + FILES_PER_CONNECTION + FILES_PER_SQL_WORKER * sql_workers as u64;
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < least => Err(format!(
            "{}, and a service needs {least} at least, {FILES_PER_CONNECTION} more for each connection after the first: {RAISE_FILES}",
            has_files_open()
        )),
        _ => Ok(()),
    }
}
