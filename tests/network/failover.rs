//! A log at whose URL another service answers from some request on: a copy of the first one that went another way.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use logmirror::blame::{Blame, Blamed};
use logmirror::checkpoint::{Wanted, restore_dir, restore_url};
use logmirror::client::Client;
use logmirror::mirror::{Distance, Event, Mirror, Place, run};
use logmirror::repo::FsRepo;

use crate::support::frames::FrameLog;
use crate::support::service::{PATIENCE, Service};
use crate::switch::{Switch, Way};

/// More requests than any of these mirrors makes before its end.
const REQUESTS_MAX: usize = 24;

pub fn serve(data: &Path) -> Service {
    Service::start(Arc::new(FsRepo::open(data).unwrap()))
}

fn appended(service: &Service, query: &str, frames: &[u8]) {
    let answer = service.append("app", query, frames);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn rolled(service: &Service) {
    let answer = service.call("POST", "/logs/app/checkpoint", "", b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, name) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().file_name());
        match entry.is_dir() {
            true => copy(&entry, &to.join(name)),
            false => drop(fs::copy(&entry, to.join(name)).unwrap()),
        }
    }
}

/// Two services with a log of one id, which parted in generation 1 and are in generation 2, and all states of either.
struct Parted {
    dir: tempfile::TempDir,
    services: [Service; 2],
    states: [Vec<Vec<u8>>; 2],
    sink: Service,
}

impl Parted {
    /// With `frames` also in generation 2: the same ones on both sides.
    fn new(frames: bool) -> Parted {
        let dir = tempfile::tempdir().unwrap();
        let data = ["a", "b", "sink"].map(|name| dir.path().join(name));
        data.iter().for_each(|data| fs::create_dir(data).unwrap());
        let common = FrameLog::new(4096, false).commit(&[1, 2, 3, 4], 4);
        let first = serve(&data[0]);
        assert_eq!(first.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
        appended(&first, "?from=1", &common.stream(&[]));
        first.stop();
        copy(&data[0].join("logs"), &data[1].join("logs"));
        let services = [serve(&data[0]), serve(&data[1])];
        let after = FrameLog::new(4096, false).commit(&[1, 2], 4).commit(&[2], 4);
        let states = [0, 1].map(|at| {
            let service = &services[at];
            let log = common.clone().commit(&[3 + at as u32], 4);
            let length = common.stream(&[]).len();
            appended(service, "?from=5", &log.stream(&[])[length..]);
            rolled(service);
            let base = log.state(5);
            let second = FrameLog { base: base.clone(), ..after.clone() };
            let mut states = vec![common.state(4), base];
            if frames {
                appended(service, "?from=1", &second.stream(&[]));
                states.extend([second.state(2), second.state(3)]);
            }
            states
        });
        let sink = serve(&data[2]);
        Parted { dir, services, states, sink }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [self.services[0].address, self.services[1].address]
    }

    fn run(&self, source: String, sink: &Place) -> Result<(), logmirror::mirror::MirrorError> {
        let mirror = Mirror::new(Place::Url(source), sink.clone());
        self.sink.runtime.block_on(run(&mirror, |_| ())).map(drop)
    }

    fn restored(&self, sink: &Place) -> Vec<u8> {
        let out: PathBuf = self.dir.path().join("out.db");
        let wanted = Wanted { to: None, generation: None, out: out.clone(), overwrite: true, plain: false };
        match sink {
            Place::Dir(path) => {
                restore_dir(path, &wanted).unwrap();
            }
            Place::Url(url) => {
                let client = Client::new(url).unwrap();
                self.sink.runtime.block_on(restore_url(&client, &wanted)).unwrap();
            }
        }
        fs::read(out).unwrap()
    }
}

/// Runs a mirror for each number of requests that `b` answers before `a` does.
fn is_never_a_mixture(frames: bool, make: impl Fn(&Parted, usize) -> Place) {
    let parted = Parted::new(frames);
    let [a, b] = parted.addresses();
    let (mut forks, mut wholes) = (0, 0);
    for before in 0..REQUESTS_MAX {
        let sink = make(&parted, before);
        let mut requests = 0;
        let switch = Switch::start(move |_| {
            requests += 1;
            Way::To(if requests <= before { b } else { a })
        });
        let ended = parted.run(switch.url("app"), &sink);
        for again in [false, true] {
            let is_there = match &sink {
                Place::Dir(path) => path.join("base.db").exists() || path.join("generation-0000000002").exists(),
                Place::Url(url) => {
                    let found = parted.sink.runtime.block_on(Client::new(url).unwrap().find()).unwrap();
                    found.is_some_and(|found| found.durable.is_some_and(|durable| durable.0 > 1))
                }
            };
            let held = is_there.then(|| parted.restored(&sink));
            let known = |held: &Vec<u8>| parted.states.iter().any(|states| states.contains(held));
            assert!(held.as_ref().is_none_or(known), "{before} requests, again: {again}: a mixture, {ended:?}");
            // The first service answers to all of this.
            match parted.run(parted.services[0].url("/logs/app"), &sink) {
                Ok(()) => {
                    assert!(
                        parted.states[0].last() == Some(&parted.restored(&sink)),
                        "{before}: good, but not the source"
                    );
                    wholes += 1;
                }
                Err(error) => {
                    assert_eq!(error.blame(), Blame::Data, "{before}: {error}");
                    forks += 1;
                }
            }
        }
    }
    assert!(wholes > 0 && forks > 0, "{wholes} {forks}");
}

#[test]
fn a_directory_never_has_the_base_of_one_service_and_frames_of_another() {
    for frames in [true, false] {
        is_never_a_mixture(frames, |parted, number| {
            Place::Dir(parted.dir.path().join(format!("copy-{frames}-{number}")))
        });
    }
}

#[test]
fn a_relay_never_has_the_base_of_one_service_and_frames_of_another() {
    is_never_a_mixture(true, |parted, number| Place::Url(parted.sink.url(&format!("/logs/copy-{number}"))));
}

/// A service with a log in generation 1, and a mirror that follows it through a switch.
struct Followed {
    dir: tempfile::TempDir,
    service: Service,
    switch: Switch,
    log: FrameLog,
    rolls: usize,
}

impl Followed {
    fn new() -> Followed {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let service = serve(&data);
        assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
        let log = FrameLog::new(4096, false).commit(&[1, 2, 3, 4], 4).commit(&[2], 4);
        appended(&service, "?from=1", &log.stream(&[]));
        let address = service.address;
        let switch = Switch::start(move |_| Way::To(address));
        Followed { dir, service, switch, log, rolls: 2 }
    }

    fn sinks(&self) -> [Place; 2] {
        [Place::Dir(self.dir.path().join("copy")), Place::Url(self.service.url("/logs/relay"))]
    }

    /// Appends a transaction.
    fn commit(&mut self) {
        let before = self.log.stream(&[]).len();
        self.log = self.log.clone().commit(&[3], 4);
        let next = self.service.status("app")["next"].as_u64().unwrap();
        appended(&self.service, &format!("?from={next}"), &self.log.stream(&[])[before..]);
    }

    /// Ends the generation, and starts the next one with another number of transactions.
    fn roll(&mut self) {
        self.rolls += 1;
        let base = self.log.state(self.log.frames.len() as u64);
        rolled(&self.service);
        self.log = FrameLog { base, ..FrameLog::new(4096, false) };
        for _ in 0..self.rolls {
            self.log = self.log.clone().commit(&[4], 4);
        }
        appended(&self.service, "?from=1", &self.log.stream(&[]));
    }

    /// Whether an event says that the sink is durable up to the end of the log.
    fn is_at_end(&self, event: &Event) -> bool {
        matches!(event, Event::Moved(progress) if progress.durable.0 == self.log.frames.len() as u64 + 1)
    }

    /// Follows with each of the sinks until `work`, which is called with their events and the number of the sink, has returned true
    /// for each.
    fn follow(&mut self, mut work: impl FnMut(&mut Followed, usize, &Event) -> bool) {
        for (at, sink) in self.sinks().into_iter().enumerate() {
            let (source, handle) = (Place::Url(self.switch.url("app")), self.service.runtime.handle().clone());
            let mirror = Mirror { follow: true, ..Mirror::new(source, sink) };
            let (events, heard) = std::sync::mpsc::channel();
            let running = handle.spawn(async move { run(&mirror, |event| drop(events.send(event))).await });
            let since = Instant::now();
            loop {
                match heard.recv_timeout(PATIENCE) {
                    Ok(event) if work(self, at, &event) => break,
                    Ok(_) => assert!(since.elapsed() < 2 * PATIENCE, "sink {at} takes too long"),
                    Err(error) => panic!("sink {at}: {error}: {:?}", handle.block_on(running)),
                }
            }
            running.abort();
            let _ = handle.block_on(running);
        }
    }
}

#[test]
fn a_follower_whose_connection_was_lost_without_a_word_goes_on_in_the_next_generation() {
    let mut followed = Followed::new();
    let mut is_lost = [false; 2];
    followed.follow(|followed, at, event| {
        if is_lost[at] {
            let is_said = matches!(event, Event::Measured(Distance { offsets: Some(0), .. }));
            assert!(!is_said, "sink {at} is not known to have all: {event:?}");
            return followed.is_at_end(event);
        }
        if followed.is_at_end(event) {
            followed.switch.lose_connections();
            followed.commit();
            followed.roll();
            is_lost[at] = true;
        }
        false
    });
}

#[test]
fn a_follower_whose_connection_was_lost_without_a_word_goes_on_in_a_stream() {
    let mut followed = Followed::new();
    let mut is_lost = [false; 2];
    let (follows, address) = (Arc::new(AtomicUsize::new(0)), followed.service.address);
    let asked = follows.clone();
    followed.switch.set(move |path| {
        asked.fetch_add(usize::from(path.contains("follow=true")), Ordering::SeqCst);
        Way::To(address)
    });
    followed.follow(|followed, at, event| {
        if is_lost[at] && followed.is_at_end(event) {
            assert!(follows.load(Ordering::SeqCst) > 0, "sink {at} has a stream again");
            return true;
        }
        if !is_lost[at] && followed.is_at_end(event) {
            followed.switch.lose_connections();
            followed.commit();
            follows.store(0, Ordering::SeqCst);
            is_lost[at] = true;
        }
        false
    });
}

#[test]
fn one_stale_answer_ends_no_follower() {
    let mut followed = Followed::new();
    let stale = serde_json::to_vec(&followed.service.status("app")).unwrap();
    let address = followed.service.address;
    for nth in 1..10 {
        let mut is_stale = [false; 2];
        followed.roll();
        followed.switch.set(move |_| Way::To(address));
        let (stale, statuses) = (stale.clone(), Arc::new(AtomicUsize::new(0)));
        followed.follow(|followed, at, event| {
            if is_stale[at] && followed.is_at_end(event) {
                return true;
            }
            if !is_stale[at] && followed.is_at_end(event) {
                // The next generation begins, and one of the statuses that it asks for then is that of the first one.
                let (stale, asked) = (stale.clone(), statuses.clone());
                asked.store(0, Ordering::SeqCst);
                followed.switch.set(move |path| {
                    let is_status = path.split('?').next() == Some("/logs/app");
                    match is_status && asked.fetch_add(1, Ordering::SeqCst) + 1 == nth {
                        true => Way::Stale(stale.clone()),
                        false => Way::To(address),
                    }
                });
                followed.roll();
                is_stale[at] = true;
            }
            false
        });
    }
}
