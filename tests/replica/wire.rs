//! A network between replicas and a service that breaks when it is told to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What it still carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// Bytes of requests; no end if there is none.
    pub requests: Option<u64>,
    /// Bytes of answers.
    pub answers: Option<u64>,
    /// Nothing after the request with these bytes in it: not its answer, or that as the last.
    pub after: Option<(&'static str, Answered)>,
    /// Nothing from the request of this number on, from 0.
    pub nth: Option<(u64, Lost)>,
    /// Requests that were seen.
    pub seen: u64,
    /// The request with these bytes in it waits until something else is set.
    pub holds: Option<&'static str>,
    /// Whether one waits.
    pub is_held: bool,
    /// Each GET is answered with 404.
    pub no_gets: bool,
}

/// What of a request is lost, and all that comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// All of it.
    Request,
    /// Its answer.
    Answer,
}

/// Whether a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Yes,
    No,
}

/// A network. What goes over it may be cut at any byte of either direction.
pub struct Wire {
    pub address: SocketAddr,
    left: Arc<(Mutex<Left>, Condvar)>,
}

impl Wire {
    /// To a service.
    pub fn to(service: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new((Mutex::new(Left::default()), Condvar::new()));
        let of = left.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(service) else { continue };
                let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
                for is_request in [true, false] {
                    let (Ok(a), Ok(b)) = (client.try_clone(), upstream.try_clone()) else { continue };
                    let (from, to) = if is_request { (a, b) } else { (b, a) };
                    let left = of.clone();
                    std::thread::spawn(move || carry(from, to, is_request, &left));
                }
            }
        });
        Wire { address, left }
    }

    /// Sets what it still carries.
    pub fn set(&self, left: Left) {
        *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = left;
        self.left.1.notify_all();
    }

    /// Whether a request waits.
    pub fn is_holding(&self) -> bool {
        self.left.0.lock().unwrap_or_else(PoisonError::into_inner).is_held
    }

    /// How many requests were seen since it was set.
    pub fn seen(&self) -> u64 {
        self.left.0.lock().unwrap_or_else(PoisonError::into_inner).seen
    }
}

impl Left {
    /// How much of what was read is carried on.
    fn take(&mut self, read: &[u8], is_request: bool) -> usize {
        // A client sends the next request on a connection once the one before was answered.
        if is_request && ["GET /", "POST /"].iter().any(|start| read.starts_with(start.as_bytes())) {
            self.seen += 1;
            match self.nth {
                Some((nth, Lost::Request)) if self.seen == nth + 1 => self.requests = Some(0),
                Some((nth, Lost::Answer)) if self.seen == nth + 1 => self.answers = Some(0),
                _ => {}
            }
        }
        let budget = if is_request { &mut self.requests } else { &mut self.answers };
        let carried = budget.map_or(read.len() as u64, |left| left.min(read.len() as u64));
        if let Some(left) = budget {
            *left -= carried;
        }
        let has = |wanted: &str| read.windows(wanted.len()).any(|bytes| bytes == wanted.as_bytes());
        if is_request && let Some((_, answered)) = self.after.take_if(|(wanted, _)| has(wanted)) {
            match answered {
                Answered::Yes => self.requests = Some(0),
                Answered::No => self.answers = Some(0),
            }
        }
        carried as usize
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_request: bool, (left, changed): &(Mutex<Left>, Condvar)) {
    let mut buf = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buf) {
        let mut now = left.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |wanted: &str| buf[..read].windows(wanted.len()).any(|bytes| bytes == wanted.as_bytes());
        while is_request && now.holds.is_some_and(has) {
            now.is_held = true;
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        if is_request && now.no_gets && buf[..read].starts_with(b"GET /") {
            drop(now);
            if from.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").is_err() {
                break;
            }
            continue;
        }
        let carried = now.take(&buf[..read], is_request);
        drop(now);
        if to.write_all(&buf[..carried]).is_err() || carried < read {
            break;
        }
    }
    for side in [from, to] {
        let _ = side.shutdown(Shutdown::Both);
    }
}
