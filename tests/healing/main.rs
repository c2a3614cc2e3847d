//! A service that nobody restarts: what failed heals as soon as the cause is gone, and one bad log is one bad log.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod description;
mod descriptors;
mod disks;
mod kept;
mod mark;
mod strays;
