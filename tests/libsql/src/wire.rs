//! A TCP relay between one replica and the server: it notes every request, cuts connections at a byte, and refuses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const BUFFER_BYTES: usize = 16 * 1024;
/// Open connections of one replica are few.
const BACKLOG: u32 = 64;

/// Where requests go at present; nowhere while the server is down.
#[derive(Clone, Default)]
pub struct Upstream(Arc<Mutex<Option<SocketAddr>>>);

impl Upstream {
    /// Lead new connections to `address`, or close them at once.
    pub fn set(&self, address: Option<SocketAddr>) {
        *lock(&self.0) = address;
    }

    fn get(&self) -> Option<SocketAddr> {
        *lock(&self.0)
    }
}

/// Where a wire breaks. From then on every connection is closed, until [`Wire::mend`].
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// After this many more bytes from the client; the rest never reaches the server.
    Requests(u64),
    /// In the answer to the `nth` request from now, counted from 1, of which the client gets `keep` bytes.
    Answer {
        /// Which answer.
        nth: usize,
        /// How much of it arrives.
        keep: usize,
    },
}

/// One replica's way to the server.
pub struct Wire {
    address: SocketAddr,
    upstream: Upstream,
    state: Arc<State>,
    unopened: Option<TcpSocket>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<String>>,
    told: Mutex<usize>,
    cut: Mutex<Option<Cut>>,
    broken: watch::Sender<bool>,
}

impl Wire {
    /// A wire that works.
    pub fn open(upstream: &Upstream) -> Result<Self> {
        let mut wire = Self::refusing(upstream)?;
        wire.listen()?;
        Ok(wire)
    }

    /// A wire whose address refuses connections, until [`Wire::listen`].
    pub fn refusing(upstream: &Upstream) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self {
            address: socket.local_addr()?,
            upstream: upstream.clone(),
            state: Arc::default(),
            unopened: Some(socket),
            accepting: None,
        })
    }

    /// Take connections from now on.
    pub fn listen(&mut self) -> Result<()> {
        let listener = self.unopened.take().context("the wire is open")?.listen(BACKLOG)?;
        self.accepting = Some(tokio::spawn(accept(listener, self.upstream.clone(), self.state.clone())));
        Ok(())
    }

    /// What a client connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Break the wire as `cut` says, counted from now.
    pub fn cut(&self, cut: Cut) {
        let cut = match cut {
            Cut::Requests(_) => cut,
            // Kept as a number among all requests.
            Cut::Answer { nth, keep } => Cut::Answer { nth: self.count() + nth, keep },
        };
        *lock(&self.state.cut) = Some(cut);
    }

    /// Undo a cut, and fail if it was never reached.
    pub fn mend(&self) -> Result<()> {
        *lock(&self.state.cut) = None;
        ensure!(self.state.broken.send_replace(false), "the wire was to be cut and was not");
        Ok(())
    }

    /// The requests since the last call, each as `POST /sync/1/1/13`: method, and path behind the log's URL.
    pub fn requests(&self) -> Vec<String> {
        let count = self.count();
        let told = std::mem::replace(&mut *lock(&self.state.told), count);
        self.requests_since(told)
    }

    /// How many requests there were so far.
    pub(crate) fn count(&self) -> usize {
        lock(&self.state.requests).len()
    }

    /// The requests behind the first `count`.
    pub(crate) fn requests_since(&self, count: usize) -> Vec<String> {
        lock(&self.state.requests)[count..].to_vec()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.state.broken.send_replace(true);
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        let Some(server) = upstream.get().filter(|_| !*state.broken.borrow()) else {
            continue;
        };
        tokio::spawn(async move {
            // An error on either side ends the connection, which is all the client may see of it.
            let _ = relay(client, server, &state).await;
        });
    }
}

async fn relay(client: TcpStream, server: SocketAddr, state: &State) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut broken = state.broken.subscribe();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Both directions end together: a half of a connection is of no use to HTTP.
    tokio::select! {
        end = carry(from_client, to_server, state, Some(Heads::default())) => end,
        end = carry(from_server, to_client, state, None) => end,
        _ = broken.wait_for(|broken| *broken) => Ok(()),
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    mut heads: Option<Heads>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let (bytes, last) = match &mut heads {
            Some(heads) => {
                let (bytes, last) = state.pass_request(&buffer[..count]);
                let mut seen = Vec::new();
                heads.feed(bytes, &mut seen);
                lock(&state.requests).append(&mut seen);
                (bytes, last)
            }
            None => state.pass_answer(&buffer[..count]),
        };
        to.write_all(bytes).await?;
        if last {
            state.broken.send_replace(true);
            return Ok(());
        }
    }
}

impl State {
    /// What passes of these bytes from the client, and whether they are the last.
    fn pass_request<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], bool) {
        match &mut *lock(&self.cut) {
            Some(Cut::Requests(left)) => {
                let passed = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= passed as u64;
                (&bytes[..passed], *left == 0)
            }
            _ => (bytes, false),
        }
    }

    /// What passes of these bytes from the server, and whether they are the last. A client sends no request before it
    /// has its answer, so these belong to the newest.
    fn pass_answer<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], bool) {
        let requests = lock(&self.requests).len();
        match *lock(&self.cut) {
            Some(Cut::Answer { nth, keep }) if requests >= nth => (&bytes[..bytes.len().min(keep)], true),
            _ => (bytes, false),
        }
    }
}

/// Finds the heads in a stream of requests whose bodies have a content-length.
#[derive(Default)]
struct Heads {
    head: Vec<u8>,
    body_left: usize,
}

impl Heads {
    fn feed(&mut self, mut bytes: &[u8], seen: &mut Vec<String>) {
        while !bytes.is_empty() {
            if self.body_left > 0 {
                let skip = self.body_left.min(bytes.len());
                self.body_left -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if self.head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&std::mem::take(&mut self.head)).into_owned();
                self.body_left = content_length(&head);
                seen.push(request(&head));
            }
        }
    }
}

fn content_length(head: &str) -> usize {
    let values = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = values.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

fn request(head: &str) -> String {
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let below = path.strip_prefix("/logs/").and_then(|path| path.find('/').map(|at| &path[at..]));
    format!("{method} {}", below.unwrap_or(path))
}

/// The tests of this package may fail while holding a lock; what they hold stays in order all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_however_the_bytes_arrive() {
        let stream = b"GET /logs/app/info HTTP/1.1\r\nhost: h\r\n\r\n\
            POST /logs/app/sync/1/1/2 HTTP/1.1\r\nContent-Length: 4\r\n\r\n\r\n\r\n\
            GET /logs/app//sync/1/2/130 HTTP/1.1\r\n\r\n";
        for chunk in 1..stream.len() {
            let (mut heads, mut seen) = (Heads::default(), Vec::new());
            stream.chunks(chunk).for_each(|bytes| heads.feed(bytes, &mut seen));
            assert_eq!(seen, ["GET /info", "POST /sync/1/1/2", "GET //sync/1/2/130"], "chunks of {chunk}");
        }
    }
}
