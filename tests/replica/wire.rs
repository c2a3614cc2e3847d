//! A network between replicas and a service that breaks when it is told to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// What it still carries before all that is under way breaks, and everything after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// Bytes of requests; no end if there is none.
    pub requests: Option<u64>,
    /// Bytes of answers.
    pub answers: Option<u64>,
}

/// A network. What goes over it may be cut at any byte of either direction.
pub struct Wire {
    pub address: SocketAddr,
    left: Arc<Mutex<Left>>,
}

impl Wire {
    /// To a service.
    pub fn to(service: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(Mutex::new(Left::default()));
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
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_request: bool, left: &Mutex<Left>) {
    let mut buf = [0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buf) else { break };
        let carried = {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            // What is broken is so in both directions.
            let is_broken = left.requests == Some(0) || left.answers == Some(0);
            let budget = if is_request { &mut left.requests } else { &mut left.answers };
            let carried = budget.map_or(read as u64, |left| left.min(read as u64));
            if let Some(left) = budget {
                *left -= carried;
            }
            if is_broken { 0 } else { carried as usize }
        };
        if to.write_all(&buf[..carried]).is_err() || carried < read {
            break;
        }
    }
    for side in [from, to] {
        let _ = side.shutdown(Shutdown::Both);
    }
}
