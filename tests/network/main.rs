//! What stands between a client and a service: slow links, proxies that hold back or refuse, caches, and TLS with a private
//! certificate authority. The proxies here are fakes that do what nginx, caches and load balancers do; the real ones are
//! tried by `tests/e2e/proxies/run`.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod acknowledged;
mod answers;
mod changing;
mod failover;
mod fields;
mod follow;
mod forger;
mod gate;
mod hangs;
mod proxy;
mod push;
mod replica_file;
mod slow;
mod switch;
mod tls;
mod uploads;

use std::sync::Arc;

use logmirror::repo::MemRepo;
use support::service::{Service, Setup};

/// The processes of [`support::sqlite::Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

/// A service in memory with an empty log `app`.
fn service(change: impl FnOnce(&mut Setup)) -> Service {
    let mut setup = Setup::default();
    change(&mut setup);
    let service = Service::start_with(Arc::new(MemRepo::default()), setup);
    service.create("app");
    service
}

/// A database of so many pages.
fn base(pages: u32) -> Vec<u8> {
    support::frames::FrameLog::new(4096, false).with_base(pages).files(&[]).remove("base.db").unwrap()
}
