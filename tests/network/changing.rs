//! A proxy that changes what a service answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The answer to a GET, before it is passed on.
pub struct Answer {
    /// What was asked for.
    pub path: String,
    /// Its fields, a line each.
    pub fields: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn is_of(&self, part: &str) -> bool {
        self.path.split('?').next().is_some_and(|path| path.ends_with(part))
    }

    /// Puts that in its place, as of this type.
    pub fn replace(&mut self, kind: &str, body: &str) {
        self.fields = format!("server: fake/1.0\r\ncontent-type: {kind}\r\n");
        self.body = body.as_bytes().to_vec();
    }
}

type Change = Arc<Mutex<Box<dyn FnMut(&mut Answer) + Send>>>;

/// It passes on requests without a body, one a connection; an answer that follows a log ends where the log does now.
pub struct Changing {
    address: SocketAddr,
    change: Change,
}

impl Changing {
    pub fn start(service: SocketAddr, change: impl FnMut(&mut Answer) + Send + 'static) -> Changing {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let change: Change = Arc::new(Mutex::new(Box::new(change)));
        let shared = change.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, change) = (client.unwrap(), shared.clone());
                // Either side may go away at any time.
                thread::spawn(move || pass(client, service, &change));
            }
        });
        Changing { address, change }
    }

    /// Changes answers in another way from now on.
    pub fn set(&self, change: impl FnMut(&mut Answer) + Send + 'static) {
        *self.change.lock().unwrap() = Box::new(change);
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }
}

fn pass(mut client: TcpStream, service: SocketAddr, change: &Change) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).replace("&follow=true", "");
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut to = TcpStream::connect(service)?;
    // Without chunks, until the end of the connection.
    to.write_all(head.replacen("HTTP/1.1", "HTTP/1.0", 1).as_bytes())?;
    let mut whole = Vec::new();
    to.read_to_end(&mut whole)?;
    let end = whole.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)? + 4;
    let head = String::from_utf8_lossy(&whole[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().replacen("HTTP/1.0", "HTTP/1.1", 1);
    let is_own = |line: &str| line.is_empty() || line.starts_with("content-length:") || line.starts_with("connection:");
    let fields: String = lines.filter(|line| !is_own(line)).map(|line| format!("{line}\r\n")).collect();
    let mut answer = Answer { path, fields, body: whole.split_off(end) };
    (change.lock().unwrap())(&mut answer);
    let Answer { fields, body, .. } = answer;
    let length = body.len();
    let head = format!("{status}\r\n{fields}content-length: {length}\r\nconnection: close\r\n\r\n");
    client.write_all(&[head.into_bytes(), body].concat())?;
    client.shutdown(Shutdown::Both)
}
