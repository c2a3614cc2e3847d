//! A wire between a client and a service that counts what goes over it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes on what comes to its own address.
pub struct Wire {
    address: String,
    up: Arc<AtomicU64>,
}

impl Wire {
    /// To the service at `address`.
    pub fn to(address: &str) -> Wire {
        let (listener, up) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicU64::new(0)));
        let wire = Wire { address: listener.local_addr().unwrap().to_string(), up: up.clone() };
        let address = address.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, service) = (client.unwrap(), TcpStream::connect(&address).unwrap());
                let back = (service.try_clone().unwrap(), client.try_clone().unwrap());
                let up = up.clone();
                std::thread::spawn(move || pass(client, service, &up));
                std::thread::spawn(move || pass(back.0, back.1, &AtomicU64::new(0)));
            }
        });
        wire
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }

    /// Bytes sent to the service since the last look.
    pub fn sent(&self) -> u64 {
        self.up.swap(0, Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counted: &AtomicU64) {
    let mut piece = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        counted.fetch_add(count as u64, Ordering::SeqCst);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}
