//! A proxy that takes in an answer whole, changes it as it is asked to, and closes the connection behind it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What becomes of an answer.
#[derive(Clone, Debug)]
pub enum Change {
    /// This bit of it is flipped, counted from its start.
    Flip(usize),
    /// A bit that follows from this number: in the body if it is even, else in the head.
    FlipSome(u64),
    /// The connection ends instead.
    Drop,
    /// It is the answer of the other log.
    OtherLog,
    /// It lacks what the service says of its log.
    Strip,
    /// The same, and it is the answer of the other log.
    StripOther,
    /// The same, and this bit of its body is flipped.
    StripFlip(usize),
    /// It is 204, and says nothing.
    NoContent,
    /// It has no body, and says nothing of its log.
    StripBody,
    /// It is the one before it.
    Repeat,
    /// It is this one, and the service does not hear of the request.
    Say(Vec<u8>),
    /// So many bytes of its body are left, and its head says so.
    Cut(usize),
    /// So many bytes follow its body, and its head says so.
    Lengthen(usize),
}

#[derive(Default)]
struct Plan {
    /// Which answer, and how often from there on.
    change: Option<(usize, usize, Change)>,
    seen: usize,
    last: Vec<u8>,
    /// The answers as they came.
    answers: Vec<Vec<u8>>,
}

impl Plan {
    /// The next answer, if it is not that of the service.
    fn made_up(&self) -> Option<Vec<u8>> {
        match &self.change {
            Some((first, count, Change::Say(answer))) if (*first..first + count).contains(&self.seen) => {
                Some(answer.clone())
            }
            _ => None,
        }
    }
}

pub struct Proxy {
    pub address: String,
    plan: Arc<Mutex<Plan>>,
    /// Whether it takes what the service says of its log from every answer.
    foreign: Arc<AtomicBool>,
    /// The same of the base of the generation after the one that is asked for.
    no_next: Arc<AtomicBool>,
}

impl Proxy {
    /// Answers as of another server than ours from now on.
    pub fn be_foreign(&self) {
        self.foreign.store(true, Ordering::SeqCst);
    }

    /// Says from now on from which base the next generation starts, or does not.
    pub fn name_the_next_base(&self, names: bool) {
        self.no_next.store(!names, Ordering::SeqCst);
    }

    /// In front of a service with the logs `a` and `b`.
    pub fn start(service: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, service) = (listener.local_addr().unwrap().to_string(), service.to_owned());
        let plan = Arc::new(Mutex::new(Plan::default()));
        let (shared, foreign, no_next) = (plan.clone(), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (is_foreign, hides_next) = (foreign.clone(), no_next.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (service, plan) = (service.clone(), shared.clone());
                let always = match (is_foreign.load(Ordering::SeqCst), hides_next.load(Ordering::SeqCst)) {
                    (true, _) => stripped,
                    (_, true) => without_next,
                    _ => <[u8]>::to_vec,
                };
                // Either side may go away at any time.
                thread::spawn(move || drop(pass_on(&client.unwrap(), &service, (&plan, always))));
            }
        });
        Proxy { address, plan, foreign, no_next }
    }

    /// Changes `count` answers from the `nth` of the next ones on, or none.
    pub fn plan(&self, change: Option<(usize, usize, Change)>) {
        *self.plan.lock().unwrap() = Plan { change, ..Plan::default() };
    }

    /// The answers since the plan was made, as they came from the service.
    pub fn answers(&self) -> Vec<Vec<u8>> {
        self.plan.lock().unwrap().answers.clone()
    }
}

/// Where the body of an answer starts.
pub fn body_at(answer: &[u8]) -> usize {
    answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4
}

/// An answer without what the service says of its log.
fn stripped(answer: &[u8]) -> Vec<u8> {
    let at = body_at(answer);
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let says = |line: &&str| line.starts_with("logmirror-wal:") || line.starts_with("repr-digest:");
    let kept: String = head.split_inclusive("\r\n").filter(|line| !says(line)).collect();
    [kept.as_bytes(), &answer[at..]].concat()
}

/// An answer that does not say from which base the next generation starts.
fn without_next(answer: &[u8]) -> Vec<u8> {
    let at = body_at(answer);
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let changed = |line: &str| match line.strip_prefix("logmirror-wal: ").and_then(|said| said.rsplit_once("; crc=")) {
        None => line.to_owned(),
        Some((said, _)) => {
            let kept: Vec<_> = said.split("; ").filter(|member| !member.starts_with("next=")).collect();
            let said = kept.join("; ");
            format!("logmirror-wal: {said}; crc={:08x}\r\n", crc32fast::hash(said.as_bytes()))
        }
    };
    let head: String = head.split_inclusive("\r\n").map(changed).collect();
    [head.as_bytes(), &answer[at..]].concat()
}

/// An answer with another body, whose length its head says.
fn with_body(answer: &[u8], body: &[u8]) -> Vec<u8> {
    let at = body_at(answer);
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let length = format!("content-length: {}\r\n", answer.len() - at);
    assert!(head.contains(&length), "{head}");
    let head = head.replace(&length, &format!("content-length: {}\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// An answer without a body, and without what the service says of its log.
fn without_body(answer: &[u8]) -> Vec<u8> {
    let at = body_at(answer);
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    let length = format!("content-length: {}\r\n", answer.len() - at);
    stripped(head.replace(&length, "content-length: 0\r\n").as_bytes())
}

/// What a service answers to a request without a body.
pub fn answer(service: &str, path: &str) -> Vec<u8> {
    ask(service, &format!("GET {path} HTTP/1.1\r\nHost: {service}\r\n\r\n"), &[]).unwrap()
}

fn ask(service: &str, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut to = TcpStream::connect(service)?;
    to.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    to.write_all(body)?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    Ok(answer)
}

/// What is made of each answer.
type Alteration = fn(&[u8]) -> Vec<u8>;

fn pass_on(client: &TcpStream, service: &str, (plan, always): (&Mutex<Plan>, Alteration)) -> std::io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let count = (&*client).read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
    }
    let mut body = head.split_off(body_at(&head));
    let head = String::from_utf8(head).unwrap().replace("Content-Length", "content-length");
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
    let have = body.len();
    body.resize(length, 0);
    (&*client).read_exact(&mut body[have..])?;
    let made_up = plan.lock().unwrap().made_up();
    let answer = match made_up {
        Some(answer) => answer,
        None => always(&ask(service, &head, &body)?),
    };
    let mut sent = answer.clone();
    {
        let mut plan = plan.lock().unwrap();
        let nth = plan.seen;
        plan.seen += 1;
        if let Some((first, count, change)) = plan.change.clone()
            && (first..first + count).contains(&nth)
        {
            match change {
                Change::Flip(bit) => sent[bit / 8] ^= 1 << (bit % 8),
                Change::FlipSome(number) => {
                    let (head, all) = (body_at(&sent) as u64 * 8, sent.len() as u64 * 8);
                    let bit =
                        if number % 2 == 0 { head + number / 2 % (all - head) } else { number / 2 % head } as usize;
                    sent[bit / 8] ^= 1 << (bit % 8);
                }
                Change::OtherLog => sent = ask(service, &head.replacen("/logs/a/", "/logs/b/", 1), &body)?,
                Change::Drop => sent.clear(),
                Change::Say(_) => {}
                Change::Strip => sent = stripped(&sent),
                Change::StripOther => sent = stripped(&ask(service, &head.replacen("/logs/a/", "/logs/b/", 1), &body)?),
                Change::StripFlip(bit) => {
                    sent = stripped(&sent);
                    let (at, all) = (body_at(&sent), sent.len());
                    if all > at {
                        sent[at + bit / 8 % (all - at)] ^= 1 << (bit % 8);
                    }
                }
                Change::NoContent => sent = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
                Change::StripBody => sent = without_body(&sent),
                Change::Repeat => sent = plan.last.clone(),
                Change::Cut(left) => sent = with_body(&sent, &sent[body_at(&sent)..][..left]),
                Change::Lengthen(more) => sent = with_body(&sent, &[&sent[body_at(&sent)..], &vec![0; more]].concat()),
            }
        }
        plan.last = answer.clone();
        plan.answers.push(answer);
    }
    (&*client).write_all(&sent)?;
    client.shutdown(Shutdown::Both)
}
