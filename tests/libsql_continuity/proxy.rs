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
    /// It is the one before it.
    Repeat,
    /// So many bytes of its body are left, and its head says so.
    Cut(usize),
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

pub struct Proxy {
    pub address: String,
    plan: Arc<Mutex<Plan>>,
    /// Whether it takes what the service says of its log from every answer.
    foreign: Arc<AtomicBool>,
}

impl Proxy {
    /// Answers as of another server than ours from now on.
    pub fn be_foreign(&self) {
        self.foreign.store(true, Ordering::SeqCst);
    }

    /// In front of a service with the logs `a` and `b`.
    pub fn start(service: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, service) = (listener.local_addr().unwrap().to_string(), service.to_owned());
        let plan = Arc::new(Mutex::new(Plan::default()));
        let (shared, foreign) = (plan.clone(), Arc::new(AtomicBool::new(false)));
        let is_foreign = foreign.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (service, plan, is_foreign) = (service.clone(), shared.clone(), is_foreign.load(Ordering::SeqCst));
                // Either side may go away at any time.
                thread::spawn(move || drop(pass_on(&client.unwrap(), &service, (&plan, is_foreign))));
            }
        });
        Proxy { address, plan, foreign }
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
    let kept: String = head.split_inclusive("\r\n").filter(|line| !line.starts_with("logmirror-wal:")).collect();
    [kept.as_bytes(), &answer[at..]].concat()
}

fn ask(service: &str, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut to = TcpStream::connect(service)?;
    to.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    to.write_all(body)?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    Ok(answer)
}

fn pass_on(client: &TcpStream, service: &str, (plan, is_foreign): (&Mutex<Plan>, bool)) -> std::io::Result<()> {
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
    let mut answer = ask(service, &head, &body)?;
    if is_foreign {
        answer = stripped(&answer);
    }
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
                Change::Strip => sent = stripped(&sent),
                Change::Repeat => sent = plan.last.clone(),
                Change::Cut(left) => {
                    let at = body_at(&sent);
                    let head = String::from_utf8(sent[..at].to_vec()).unwrap();
                    let length = format!("content-length: {}\r\n", sent.len() - at);
                    assert!(head.contains(&length), "{head}");
                    let head = head.replace(&length, &format!("content-length: {left}\r\n"));
                    sent = [head.as_bytes(), &sent[at..at + left]].concat();
                }
            }
        }
        plan.last = answer.clone();
        plan.answers.push(answer);
    }
    (&*client).write_all(&sent)?;
    client.shutdown(Shutdown::Both)
}
