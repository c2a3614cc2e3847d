//! A service in this process, and connections to it that can misbehave.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use logmirror::client::Client;
use logmirror::http::Timeouts;
use logmirror::mirror::{Registry, Settings};
use logmirror::repo::{FsRepo, Repo};
use logmirror::server::Server;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::log::{commits, header};

/// Longest wait for anything that should happen. What takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a service is told, apart from its data.
#[derive(Clone, Copy)]
pub struct Setup {
    pub timeouts: Timeouts,
    pub settings: Settings,
    pub connections_max: usize,
}

impl Default for Setup {
    /// No timeout that a test would meet unless it sets one.
    fn default() -> Self {
        let timeouts = Timeouts {
            header: PATIENCE,
            idle: PATIENCE,
            commit: PATIENCE,
            stall: PATIENCE,
            drain: PATIENCE,
            ..Timeouts::default()
        };
        let settings =
            Settings { memory_max: 32 << 20, commit_bytes_max: 1 << 20, writer_threads: 2, ..Settings::default() };
        Setup { timeouts, settings, connections_max: 4096 }
    }
}

/// A running service. Dropped, it shuts down in order.
pub struct Service {
    pub runtime: Runtime,
    pub registry: Arc<Registry>,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

/// Opens the logs of a service that may just have ended: a process that another test is starting has its locks until it runs its
/// own program.
fn open(data: &Arc<dyn Repo>, settings: Settings) -> Registry {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Registry::open(data.clone(), settings) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

impl Service {
    pub fn start(data: Arc<dyn Repo>) -> Service {
        Service::start_with(data, Setup::default())
    }

    pub fn start_with(data: Arc<dyn Repo>, setup: Setup) -> Service {
        Service::start_as(data, setup, |server| server)
    }

    pub fn start_as(data: Arc<dyn Repo>, setup: Setup, adjust: impl FnOnce(Server) -> Server) -> Service {
        let registry = Arc::new(open(&data, setup.settings));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = Server::bind("127.0.0.1:0", registry.clone(), setup.timeouts, setup.connections_max);
        let server = adjust(runtime.block_on(server).unwrap());
        let address = server.address().unwrap();
        let ((stop, stopped), (end, ended)) = (oneshot::channel(), oneshot::channel());
        runtime.spawn(async move {
            let stop = async {
                let _told_or_dropped = stopped.await;
            };
            server.run(stop).await;
            let _nobody_waits = end.send(());
        });
        Service { runtime, registry, address, stop: Some(stop), ended: Some(ended) }
    }

    /// A service with the log `much` of 32 MiB, in files, so that its bytes are not this process's; and how many they are.
    pub fn start_with_much(setup: Setup) -> (TempDir, Service, u64) {
        let data = tempfile::tempdir().unwrap();
        let service = Service::start_with(Arc::new(FsRepo::open(data.path()).unwrap()), setup);
        service.create("much");
        let mut wire = service.begin_append("much", "");
        wire.send_chunk(&header());
        for part in 0..64 {
            wire.send_chunk(&commits(part * 4, 4, 128 << 10, 0));
        }
        wire.send_chunk(b"");
        assert_eq!(wire.answer().json()["durable"], 256);
        let bytes = service.status("much")["bytes"].as_u64().unwrap();
        (data, service, bytes)
    }

    /// Tells it to shut down; it goes on meanwhile.
    pub fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _is_gone_already = stop.send(());
        }
    }

    /// Shuts it down and returns how long that took.
    pub fn stop(mut self) -> Duration {
        let since = Instant::now();
        self.end();
        since.elapsed()
    }

    fn end(&mut self) {
        self.begin_stop();
        if let Some(ended) = self.ended.take() {
            let ended = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, ended).await });
            if !std::thread::panicking() {
                ended.expect("the service must end in time").expect("the service must not panic");
            }
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn client(&self, log: &str) -> Client {
        Client::new(&self.url(&format!("/logs/{log}"))).unwrap()
    }

    pub fn connect(&self) -> Wire {
        Wire::connect(self.address)
    }

    /// One request on a connection of its own.
    pub fn call(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut wire = self.connect();
        wire.send(request(method, path, &format!("{headers}content-length: {}\r\n", body.len())).as_bytes());
        wire.send(body);
        if method == "HEAD" { wire.head() } else { wire.answer() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", b"")
    }

    pub fn put(&self, path: &str, json: &str) -> Answer {
        self.call("PUT", path, "", json.as_bytes())
    }

    /// Creates a log that starts at 0.
    pub fn create(&self, log: &str) {
        let answer = self.put(&format!("/logs/{log}"), r#"{"format":"commitlog"}"#);
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    pub fn status(&self, log: &str) -> Value {
        let answer = self.get(&format!("/logs/{log}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Appends `body` with a length.
    pub fn append(&self, log: &str, query: &str, body: &[u8]) -> Answer {
        self.call("POST", &format!("/logs/{log}/commits{query}"), "", body)
    }

    /// Appends `body` in chunks of at most `size` bytes.
    pub fn append_chunked(&self, log: &str, query: &str, body: &[u8], size: usize) -> Answer {
        let mut wire = self.begin_append(log, query);
        let mut text = Vec::new();
        for piece in body.chunks(size) {
            chunk(piece, &mut text);
        }
        chunk(b"", &mut text);
        wire.send(&text);
        wire.answer()
    }

    /// The head of an append whose body comes in chunks, for ever.
    pub fn begin_append(&self, log: &str, query: &str) -> Wire {
        let mut wire = self.connect();
        let path = format!("/logs/{log}/commits{query}");
        wire.send(request("POST", &path, "transfer-encoding: chunked\r\n").as_bytes());
        wire
    }

    /// Waits until all before `offset` is durable.
    pub fn wait_durable(&self, log: &str, offset: u64) {
        let mut view = self.registry.get(log).unwrap().watch();
        let reached = view.wait_for(|view| view.durable.0 >= offset);
        let reached = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, reached).await.map(drop) });
        assert!(reached.is_ok(), "{log} did not get to {offset}: {}", self.status(log));
    }

    /// Waits until the log is in that state.
    pub fn wait_state(&self, log: &str, state: &str) {
        let since = Instant::now();
        while self.status(log)["state"] != state {
            assert!(since.elapsed() < PATIENCE, "{log} did not become {state}: {}", self.status(log));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The raw stream of a whole log.
    pub fn stream(&self, log: &str) -> Vec<u8> {
        let answer = self.get(&format!("/logs/{log}/commits"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.body
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n")
}

/// A chunk of a chunked body; an empty one ends it.
pub fn chunk(piece: &[u8], text: &mut Vec<u8>) {
    write!(text, "{:x}\r\n", piece.len()).unwrap();
    text.extend_from_slice(piece);
    text.extend_from_slice(b"\r\n");
}

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// An infinity, a number that is too large for this reader, is read as text.
    pub fn json(&self) -> Value {
        let text = self.text().replace(":-1e999", r#":"-Infinity""#).replace(":1e999", r#":"Infinity""#);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// Status and error code.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().unwrap_or_default().to_owned())
    }
}

/// A connection, with all freedom to do harm.
pub struct Wire {
    pub stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let input = BufReader::new(stream.try_clone().unwrap());
        Wire { stream, input }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send_chunk(&mut self, piece: &[u8]) {
        let mut text = Vec::new();
        chunk(piece, &mut text);
        self.send(&text);
    }

    /// The head of the next answer.
    pub fn head(&mut self) -> Answer {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Answer { status, headers, body: Vec::new() }
    }

    /// The next answer, whole.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(piece) = self.next_chunk().unwrap() {
                answer.body.extend(piece);
            }
        } else {
            let bytes = answer.header("content-length").map_or(0, |bytes| bytes.parse().unwrap());
            answer.body.resize(bytes, 0);
            self.input.read_exact(&mut answer.body).unwrap();
        }
        answer
    }

    /// The next chunk of an answer; none at its end; an error when it was broken off.
    pub fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        self.input.read_line(&mut line)?;
        let bytes = usize::from_str_radix(line.trim_end(), 16).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mut piece = vec![0; bytes + 2];
        self.input.read_exact(&mut piece)?;
        piece.truncate(bytes);
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Reads chunks until they make `bytes` bytes.
    pub fn read_stream(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            read.extend(self.next_chunk().unwrap().expect("the stream must go on"));
        }
        read
    }

    /// The next line of an answer in JSON lines, one to a chunk.
    pub fn next_json(&mut self) -> Option<Value> {
        self.next_chunk().unwrap().map(|line| serde_json::from_slice(&line).unwrap())
    }

    /// Waits until the service closes the connection, reading what it still sends.
    pub fn wait_closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.input.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection was not closed: {error}"),
        }
        rest
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}
