//! Many logs in one process: who owns a writer, what readers see, and the loop behind `logmirror mirror`. Async starts
//! here. Knows no HTTP but through [`client`](crate::client).

mod append;
mod attempt;
mod base;
mod budget;
mod checkpoint;
mod counters;
mod database;
mod endpoint;
mod error;
mod failure;
mod feed;
mod feed_dir;
mod feed_url;
mod feeding;
mod frames;
mod generation;
mod log;
mod pages;
mod pump;
mod registry;
mod reopening;
pub(crate) mod run;
mod shard;
mod sink;
mod source;
mod standing;
mod verify;

pub use append::{Acks, Append};
pub use budget::{Budget, Share};
pub use checkpoint::Checkpoints;
pub use counters::{Counters, LogLabels, RefusalLabels, RequestLabels};
pub use database::is_database;
pub use endpoint::{Mirror, Place};
pub use error::Error;
pub use failure::MirrorError;
pub use feed::Feed;
pub use frames::{BaseFeed, Frames};
pub use generation::Draft;
pub use log::{Log, State, View};
pub use pages::Sought;
pub use registry::{Registry, Settings};
pub use run::{Event, Progress, run};
pub use verify::verify_url;
