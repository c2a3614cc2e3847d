//! [`Alone`]: one mirror at a time of a database to a log. Two would read the database at different moments, and what the later one
//! finds to differ may be what the other has just sent: the log would go back, and forth again.
//!
//! The mark is a socket with a name and no file: the system takes it back when the process ends, however it does. It is seen by the
//! processes of the same network namespace. Those of others are told apart by the offsets that they send: the service takes no
//! commit twice.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sha2::{Digest, Sha256};

/// Held for as long as a mirror feeds a log from a database.
#[derive(Debug)]
pub(crate) struct Alone {
    _socket: Option<UnixDatagram>,
}

impl Alone {
    /// Claims the log with the id `log` for the database `identity`; none while another process has done so.
    pub(crate) fn claim(identity: &str, log: &str) -> Option<Alone> {
        let digest = Sha256::digest(format!("{identity}\n{log}"));
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let bound = SocketAddr::from_abstract_name(format!("logmirror-feed-{name}"))
            .and_then(|address| UnixDatagram::bind_addr(&address));
        match bound {
            Ok(socket) => Some(Alone { _socket: Some(socket) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            // Without such names nobody can be seen.
            Err(error) => {
                log::debug!("whether another mirror feeds log {log} is not known: {error}");
                Some(Alone { _socket: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_fed_from_a_database_by_one_mirror_at_a_time() {
        let log = uuid::Uuid::new_v4().to_string();
        let first = Alone::claim("host:/app.db", &log).expect("nobody else does");
        assert!(Alone::claim("host:/app.db", &log).is_none());
        assert!(Alone::claim("host:/other.db", &log).is_some() && Alone::claim("host:/app.db", "other").is_some());
        drop(first);
        assert!(Alone::claim("host:/app.db", &log).is_some());
    }
}
