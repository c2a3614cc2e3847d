//! Proxies that hold back, refuse or stall, between a client and a service.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// As nginx with its defaults: it takes in the whole of a request before it passes it on, refuses bodies of more than
    /// `body_bytes_max` bytes with a page, and passes on the answer as it comes.
    Buffers { body_bytes_max: usize },
    /// As nginx without request buffering: it passes both on as they come, but nothing more of the request once the answer
    /// has begun and `after` bytes of the body were passed on.
    StopsSending { after: usize },
    /// As nginx without request buffering: it passes both on as they come, and closes the connection in the middle of the
    /// answer when a body without a length turns out to have more than `after` bytes.
    Cuts { after: usize },
    /// It passes on requests as they come, and answers only when they are whole.
    BuffersAnswers,
    /// It passes on at most this many bytes of the body of the first answer that has no length, in HTTP/1.0: where the
    /// connection ends, so does the body.
    EndsOneAnswer { after: usize },
    /// The first connection falls silent after so many bytes of a request, but stays open; the others are passed on.
    StallsOnce { after: usize },
}

pub struct Proxy {
    pub address: SocketAddr,
}

impl Proxy {
    pub fn start(service: SocketAddr, kind: Kind) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let first = Arc::new(AtomicBool::new(true));
        let proxy = Proxy { address };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                client.set_nodelay(true).unwrap();
                let first = first.clone();
                thread::spawn(move || {
                    // Either side may go away at any time.
                    let _ = match kind {
                        Kind::StallsOnce { after } => stall(client, service, after, &first),
                        kind => requests(client, service, kind, first),
                    };
                });
            }
        });
        proxy
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }
}

/// Passes on bytes both ways; on the first connection with a large request only so many, and then nothing more.
fn stall(client: TcpStream, service: SocketAddr, after: usize, first: &AtomicBool) -> std::io::Result<()> {
    let to = TcpStream::connect(service)?;
    let (mut back_from, mut back_to) = (to.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to, mut passed, mut piece) = (client, to, 0, [0; 4096]);
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        passed += count;
        if passed > after && first.swap(false, Ordering::SeqCst) {
            // Whoever waits for more finds out by himself; the connection is open as long as the client's is.
            while from.read(&mut piece)? > 0 {}
            return Ok(());
        }
        to.write_all(&piece[..count])?;
    }
}

pub struct Head {
    pub text: String,
    bytes: Option<usize>,
    pub chunked: bool,
}

pub fn head(from: &mut impl BufRead) -> std::io::Result<Option<Head>> {
    let mut head = Head { text: String::new(), bytes: None, chunked: false };
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length:") {
            head.bytes = bytes.trim().parse().ok();
        } else if lower.starts_with("transfer-encoding:") {
            head.chunked = true;
        }
        let is_last = line == "\r\n";
        let is_own = lower.starts_with("connection:") || head.chunked && lower.starts_with("transfer-encoding:");
        if !is_last && !is_own {
            head.text += &line;
        }
        if is_last {
            return Ok(Some(head));
        }
    }
}

/// The next piece of a body; none at its end.
pub fn piece(from: &mut impl BufRead, head: &mut Head) -> std::io::Result<Option<Vec<u8>>> {
    if head.chunked {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let bytes = usize::from_str_radix(line.trim(), 16).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
        let mut piece = vec![0; bytes + 2];
        from.read_exact(&mut piece)?;
        piece.truncate(bytes);
        return Ok(Some(piece).filter(|piece| !piece.is_empty()));
    }
    let left = head.bytes.get_or_insert(0);
    let mut piece = vec![0; (*left).min(64 << 10)];
    from.read_exact(&mut piece)?;
    *left -= piece.len();
    Ok(Some(piece).filter(|piece| !piece.is_empty()))
}

/// The body of an answer that carries commits and no length.
fn chunked_body(answer: &[u8]) -> Option<Vec<u8>> {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let fields = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    if !fields.contains("transfer-encoding: chunked") || !fields.contains("log-format-version") {
        return None;
    }
    let (mut rest, mut body) = (&answer[head..], Vec::new());
    loop {
        let line = rest.windows(2).position(|bytes| bytes == b"\r\n")?;
        let bytes = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        if bytes == 0 {
            return Some(body);
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + bytes]);
        rest = &rest[line + 2 + bytes + 2..];
    }
}

fn requests(client: TcpStream, service: SocketAddr, kind: Kind, first: Arc<AtomicBool>) -> std::io::Result<()> {
    let (mut from, mut client) = (BufReader::new(client.try_clone()?), client);
    // One request a connection to the service, whose end ends the answer.
    if let Some(mut head) = head(&mut from)? {
        let mut to = TcpStream::connect(service)?;
        let (mut answer_from, mut answer_to) = (to.try_clone()?, client.try_clone()?);
        let mut pass_answer = move || {
            if let Kind::BuffersAnswers | Kind::EndsOneAnswer { .. } = kind {
                let mut whole = Vec::new();
                answer_from.read_to_end(&mut whole)?;
                if let Kind::EndsOneAnswer { after } = kind
                    && let Some(body) = chunked_body(&whole)
                    && first.swap(false, Ordering::Relaxed)
                {
                    whole = [b"HTTP/1.0 200 OK\r\nlog-format-version: 1\r\n\r\n", &body[..after]].concat();
                }
                answer_to.write_all(&whole)?;
            } else {
                std::io::copy(&mut answer_from, &mut answer_to)?;
            }
            answer_to.shutdown(Shutdown::Both)
        };
        match kind {
            Kind::Buffers { body_bytes_max } => {
                let mut body = Vec::new();
                while head.bytes.unwrap_or(0) <= body_bytes_max
                    && body.len() <= body_bytes_max
                    && let Some(piece) = piece(&mut from, &mut head)?
                {
                    body.extend(piece);
                }
                if head.bytes.unwrap_or(0) > body_bytes_max || body.len() > body_bytes_max {
                    let page = "<html><head><title>413 Request Entity Too Large</title></head></html>";
                    let bytes = page.len();
                    let text = format!(
                        "HTTP/1.1 413 Request Entity Too Large\r\nserver: fake/1.0\r\ncontent-type: text/html\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n{page}"
                    );
                    client.write_all(text.as_bytes())?;
                    client.shutdown(Shutdown::Write)?;
                    // What is still being sent is read, so that the answer is not lost.
                    client.set_read_timeout(Some(Duration::from_secs(2)))?;
                    let _ = std::io::copy(&mut from, &mut std::io::sink());
                    return Ok(());
                }
                let length = head.text.to_ascii_lowercase().contains("content-length:");
                let length = if length { String::new() } else { format!("content-length: {}\r\n", body.len()) };
                to.write_all(format!("{}connection: close\r\n{length}\r\n", head.text).as_bytes())?;
                to.write_all(&body)?;
                return pass_answer();
            }
            Kind::StopsSending { .. }
            | Kind::Cuts { .. }
            | Kind::BuffersAnswers
            | Kind::EndsOneAnswer { .. }
            | Kind::StallsOnce { .. } => {
                let chunked = if head.chunked { "transfer-encoding: chunked\r\n" } else { "" };
                to.write_all(format!("{}connection: close\r\n{chunked}\r\n", head.text).as_bytes())?;
                let answering = thread::spawn(pass_answer);
                let mut sent = 0;
                while let Some(piece) = piece(&mut from, &mut head)? {
                    if matches!(kind, Kind::Cuts { after } if head.chunked && sent + piece.len() > after) {
                        to.shutdown(Shutdown::Both)?;
                        return client.shutdown(Shutdown::Both);
                    }
                    if matches!(kind, Kind::StopsSending { after } if head.chunked && sent + piece.len() > after) {
                        // As if nobody told it that there is room again.
                        let _ = std::io::copy(&mut from, &mut std::io::sink());
                        return Ok(());
                    }
                    sent += piece.len();
                    if head.chunked {
                        write!(to, "{:x}\r\n", piece.len())?;
                    }
                    to.write_all(&piece)?;
                    if head.chunked {
                        to.write_all(b"\r\n")?;
                    }
                }
                if head.chunked {
                    to.write_all(b"0\r\n\r\n")?;
                }
                return answering.join().unwrap();
            }
        }
    }
    Ok(())
}
