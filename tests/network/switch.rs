//! A load balancer: one address, behind which another service answers from some connection on; and a network that loses what
//! is under way without a word.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of a request.
pub enum Way {
    /// It is passed on.
    To(SocketAddr),
    /// It is answered with this JSON.
    Stale(Vec<u8>),
}

type Choose = Arc<Mutex<Box<dyn FnMut(&str) -> Way + Send>>>;

/// One request a connection.
pub struct Switch {
    address: SocketAddr,
    choose: Choose,
    lost: Arc<AtomicUsize>,
}

impl Switch {
    /// `choose` says what becomes of each request, by its path.
    pub fn start(choose: impl FnMut(&str) -> Way + Send + 'static) -> Switch {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let choose: Choose = Arc::new(Mutex::new(Box::new(choose)));
        let (shared, lost) = (choose.clone(), Arc::new(AtomicUsize::new(0)));
        let epochs = lost.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, choose, lost) = (client.unwrap(), shared.clone(), epochs.clone());
                // Either side may go away at any time.
                thread::spawn(move || pass(client, &choose, lost));
            }
        });
        Switch { address, choose, lost }
    }

    pub fn set(&self, choose: impl FnMut(&str) -> Way + Send + 'static) {
        *self.choose.lock().unwrap() = Box::new(choose);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }

    /// Nothing passes on the connections of now any more, and neither side hears of that; new ones work.
    pub fn lose_connections(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }
}

fn pass(mut client: TcpStream, choose: &Choose, lost: Arc<AtomicUsize>) -> std::io::Result<()> {
    let epoch = lost.load(Ordering::SeqCst);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let way = (choose.lock().unwrap())(&path);
    let service = match way {
        Way::To(service) => service,
        Way::Stale(json) => {
            let length = json.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            client.write_all(&[head.into_bytes(), json].concat())?;
            return client.shutdown(Shutdown::Both);
        }
    };
    let mut to = TcpStream::connect(service)?;
    to.write_all(text.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
    let (from, into, known) = (client.try_clone()?, to.try_clone()?, lost.clone());
    thread::spawn(move || pump(from, into, &known, epoch));
    pump(to, client, &lost, epoch);
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, lost: &AtomicUsize, epoch: usize) {
    let mut piece = [0; 4096];
    while let Ok(count) = from.read(&mut piece) {
        while lost.load(Ordering::SeqCst) != epoch {
            // With both connections open.
            thread::park();
        }
        if count == 0 || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
