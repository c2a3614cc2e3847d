//! A fake libSQL sync server: it keeps frames in memory, counts what goes over the wire, and fails on demand. It checks
//! no checksums and keeps nothing safe; the real server is tested elsewhere, and with the real client.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use logmirror::sync::{FRAME_LEN, same_frame};
use serde_json::json;
use tokio::sync::Notify;

/// One request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub call: String,
    /// Frames in the body, or in the answer.
    pub pushed: u32,
    pub pulled: u32,
    pub token: Option<String>,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead; nothing is done.
    Answer(u16, String),
    /// The work is done, but this is the answer.
    Done(u16, String),
    /// A redirect to this URL.
    Redirect(String),
    /// The work is done, the answer never comes.
    Silence,
    /// The work is done, and the answer comes once this is notified.
    Held(Arc<Notify>),
    /// The work is done, but the connection breaks inside the answer.
    Reset,
    /// So many bytes are cut off the end of the answer's body.
    Cut(usize),
    /// This byte of the answer's body is another one.
    Flip(usize),
}

#[derive(Default)]
pub struct Generation {
    pub base: Vec<u8>,
    pub frames: Vec<Vec<u8>>,
    /// Readable no more.
    pub gone: bool,
}

#[derive(Default)]
pub struct Store {
    pub generations: Vec<Generation>,
    pub seen: Vec<Seen>,
    /// For the next requests whose call starts with this.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// Like the first servers: only `max_frame_no`, which may be higher than what was sent; no other calls.
    pub first_of_its_kind: bool,
    /// Added to pushes.
    pub baton: bool,
    pub token: Option<String>,
}

pub struct Fake {
    store: Arc<Mutex<Store>>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Fake {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Store { generations: vec![Generation::default()], ..Store::default() };
        let store = Arc::new(Mutex::new(store));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(store.clone());
        runtime.spawn(async { axum::serve(listener, router).await.unwrap() });
        Fake { store, address, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("libsql+http://{}/db/app", self.address)
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://{}/db/app/{path}", self.address)
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    pub fn fault(&self, call: &'static str, fault: Fault) {
        self.store().faults.push_back((call, fault));
    }

    /// Frames of the current generation.
    pub fn frames(&self) -> u32 {
        self.store().generations.last().unwrap().frames.len() as u32
    }

    /// What came since this was asked last.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.store().seen)
    }

    /// Ends the generation: its state is the base of the next.
    pub fn roll(&self) {
        let mut store = self.store();
        let last = store.generations.last().unwrap();
        let mut base = last.base.clone();
        for frame in &last.frames {
            let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()) as usize;
            let (end, size) = (number(0) * 4096, number(4) * 4096);
            base.resize(base.len().max(end), 0);
            base[end - 4096..end].copy_from_slice(&frame[24..]);
            if size > 0 {
                base.truncate(size);
            }
        }
        store.generations.push(Generation { base, ..Generation::default() });
    }
}

/// The calls of some requests, in short.
pub fn calls(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.call.as_str()).collect()
}

pub fn pushed(seen: &[Seen]) -> u32 {
    seen.iter().map(|seen| seen.pushed).sum()
}

pub fn pulled(seen: &[Seen]) -> u32 {
    seen.iter().map(|seen| seen.pulled).sum()
}

async fn answer(State(store): State<Arc<Mutex<Store>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    // As spec section 2 has it: empty segments count for nothing.
    let segments: Vec<&str> = parts.uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let [_db, _app, rest @ ..] = &segments[..] else { return StatusCode::NOT_FOUND.into_response() };
    let call = format!("{} {}", parts.method, rest.join("/"));
    let token = parts.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let (done, fault) = {
        let mut store = store.lock().unwrap();
        let frames = (body.len() / FRAME_LEN) as u32;
        store.seen.push(Seen { call: call.clone(), pushed: frames, pulled: 0, token: token.clone() });
        let fault = match store.faults.front() {
            Some((prefix, _)) if call.starts_with(prefix) => store.faults.pop_front().map(|(_, fault)| fault),
            _ => None,
        };
        let refused = store.token.is_some() && store.token != token;
        let done = match &fault {
            _ if refused => (401, b"who are you?".to_vec()),
            Some(Fault::Answer(..) | Fault::Redirect(_)) => (0, Vec::new()),
            _ => store.work(&parts.method, rest, &body),
        };
        if parts.method == Method::GET && done.0 == 200 && rest[0] == "sync" {
            store.seen.last_mut().unwrap().pulled = (done.1.len() / FRAME_LEN) as u32;
        }
        (done, fault)
    };
    let reply = |status: u16, body: Vec<u8>| (StatusCode::from_u16(status).unwrap(), Body::from(body)).into_response();
    match fault {
        None => reply(done.0, done.1),
        Some(Fault::Answer(status, text) | Fault::Done(status, text)) => reply(status, text.into()),
        Some(Fault::Redirect(to)) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        Some(Fault::Reset) => {
            let broken = Err::<Vec<u8>, _>(std::io::Error::other("on purpose"));
            Body::from_stream(futures::stream::iter([Ok(vec![b'{']), broken])).into_response()
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Held(until)) => {
            until.notified().await;
            reply(done.0, done.1)
        }
        Some(Fault::Cut(bytes)) => reply(done.0, done.1[..done.1.len() - bytes].to_vec()),
        Some(Fault::Flip(byte)) => {
            let mut body = done.1;
            body[byte] ^= 1;
            reply(done.0, body)
        }
    }
}

impl Store {
    fn work(&mut self, method: &Method, path: &[&str], body: &[u8]) -> (u16, Vec<u8>) {
        let generation = self.generations.len() as u64;
        let json = |status, value: serde_json::Value| (status, value.to_string().into_bytes());
        let numbers: Vec<u64> = path.iter().skip(1).take(3).map_while(|part| part.parse().ok()).collect();
        if self.first_of_its_kind && method != Method::POST {
            return (404, Vec::new());
        }
        match (method.as_str(), path[0], &numbers[..]) {
            ("GET", "info", []) => json(200, json!({"current_generation": generation, "more": true})),
            ("GET", "export", [asked]) if *asked == generation => {
                (200, self.generations[*asked as usize - 1].base.clone())
            }
            ("GET", "sync", [asked, start, end]) => match self.generations.get(*asked as usize - 1) {
                Some(found) if found.gone => (410, Vec::new()),
                Some(found) if *start >= 1 && *start <= found.frames.len() as u64 => {
                    let end = (*end - 1).min(found.frames.len() as u64) as usize;
                    (200, found.frames[*start as usize - 1..end].concat())
                }
                _ => json(400, json!({"status": "checkpoint_needed", "generation": generation})),
            },
            ("POST", "sync", [asked, start, end]) if body.len() as u64 == (end - start) * FRAME_LEN as u64 => {
                let (first, baton) = (*start as usize, self.baton.then(|| format!("b/{end}")));
                let (conflict, confirmed) = self.push(*asked, first, body);
                let status = if conflict { "conflict" } else { "ok" };
                if self.first_of_its_kind {
                    return json(200, json!({"max_frame_no": self.generations[0].frames.len()}));
                }
                let mut answer = json!({"status": status, "generation": generation, "max_frame_no": confirmed});
                if let Some(baton) = baton {
                    answer["baton"] = baton.into();
                }
                json(200, answer)
            }
            _ => (404, b"no such call".to_vec()),
        }
    }

    /// Whether it is a conflict, and the last frame, as spec section 6 has it.
    fn push(&mut self, generation: u64, start: usize, body: &[u8]) -> (bool, usize) {
        let current = self.generations.len() as u64;
        let held = &mut self.generations.last_mut().unwrap().frames;
        if generation != current {
            return (true, held.len());
        }
        if start > held.len() + 1 {
            return (false, held.len());
        }
        for (number, frame) in (start..).zip(body.chunks(FRAME_LEN)) {
            match held.get(number - 1) {
                Some(known) if !same_frame(known, frame) => return (true, held.len()),
                Some(_) => {}
                None => held.push(frame.to_vec()),
            }
        }
        (false, start + body.len() / FRAME_LEN - 1)
    }
}
