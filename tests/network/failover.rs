//! A log at whose URL another service answers from some request on: a copy of the first one that went another way.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use logmirror::blame::{Blame, Blamed};
use logmirror::checkpoint::{Wanted, restore_dir, restore_url};
use logmirror::client::Client;
use logmirror::mirror::{Mirror, Place, run};
use logmirror::repo::FsRepo;

use crate::support::frames::FrameLog;
use crate::support::service::Service;
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

fn copy(from: &Path, to: &Path) {
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
        let wanted = Wanted { to: None, generation: None, out: out.clone(), overwrite: true };
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
