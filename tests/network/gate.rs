//! A service that hangs for a while, and one that always answers the same.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Passes on all bytes to a service and back, and none while it is closed.
pub struct Gate {
    address: SocketAddr,
    closed: Arc<AtomicBool>,
}

impl Gate {
    pub fn start(service: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate { address: listener.local_addr().unwrap(), closed: Arc::default() };
        let closed = gate.closed.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, to) = (client.unwrap(), TcpStream::connect(service).unwrap());
                let ends = [(client.try_clone().unwrap(), to.try_clone().unwrap()), (to, client)];
                for (from, to) in ends {
                    let closed = closed.clone();
                    thread::spawn(move || pass(from, to, &closed));
                }
            }
        });
        gate
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, closed: &AtomicBool) {
    let mut piece = [0; 4096];
    // Either side may go away at any time.
    while let Ok(count) = from.read(&mut piece) {
        while closed.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if count == 0 || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The URL of a log of which every request gets the same answer.
pub fn answering(json: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let length = json.len();
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{json}");
            let _ = client.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/logs/app")
}
