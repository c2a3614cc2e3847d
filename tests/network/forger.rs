//! A proxy that answers some requests itself: the service never receives them.

use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::proxy::{head, piece};

/// The body of the answer to a request, by its first line; none where it is passed on.
type Forge = Box<dyn FnMut(&str) -> Option<String> + Send>;

pub struct Forger {
    address: SocketAddr,
}

impl Forger {
    pub fn start(service: SocketAddr, forge: impl FnMut(&str) -> Option<String> + Send + 'static) -> Forger {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let forge = Arc::new(Mutex::new(Box::new(forge) as Forge));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, forge) = (client.unwrap(), forge.clone());
                // Either side may go away at any time.
                thread::spawn(move || pass(client, service, &forge));
            }
        });
        Forger { address }
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }
}

/// One request a connection.
fn pass(mut client: TcpStream, service: SocketAddr, forge: &Mutex<Forge>) -> std::io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let Some(mut head) = head(&mut from)? else { return Ok(()) };
    // An answer that says that something is stored follows what is to be stored.
    let first = piece(&mut from, &mut head)?;
    let forged = (forge.lock().unwrap())(head.text.lines().next().unwrap_or_default());
    if let Some(body) = forged {
        let length = body.len();
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        client.write_all(text.as_bytes())?;
        std::io::copy(&mut from, &mut std::io::sink())?;
        return client.shutdown(Shutdown::Both);
    }
    let mut to = TcpStream::connect(service)?;
    let (mut answer, mut back) = (to.try_clone()?, client);
    let answering = thread::spawn(move || {
        std::io::copy(&mut answer, &mut back)?;
        back.shutdown(Shutdown::Both)
    });
    let (chunked, mut next) = (head.chunked, first);
    let coding = if chunked { "transfer-encoding: chunked\r\n" } else { "" };
    to.write_all(format!("{}connection: close\r\n{coding}\r\n", head.text).as_bytes())?;
    while let Some(bytes) = next {
        if chunked {
            write!(to, "{:x}\r\n", bytes.len())?;
        }
        to.write_all(&bytes)?;
        if chunked {
            to.write_all(b"\r\n")?;
        }
        next = piece(&mut from, &mut head)?;
    }
    if chunked {
        to.write_all(b"0\r\n\r\n")?;
    }
    answering.join().unwrap()
}
