//! The base that a generation of a WAL starts from: `base.db`, whose every block is checked when it is read. No other code
//! opens that file for reading.
//!
//! ```
//! use logmirror::repo::{Faults, MemRepo, Repo};
//! use logmirror::segment::base::{BaseBuilder, BaseReader};
//! use std::sync::Arc;
//!
//! let repo: Arc<dyn Repo> = Arc::new(MemRepo::new(Faults::default()));
//! let mut base = BaseBuilder::create(repo.clone())?;
//! base.write(&b"a database"[..])?;
//! let id = base.publish(true)?;
//! let reader = BaseReader::open(&*repo)?.expect("a base");
//! let mut buf = [0; 16];
//! assert_eq!((reader.read_at(&mut buf, 2)?, &buf[..8]), (8, &b"database"[..]));
//! assert_eq!(reader.id(), Some(id));
//! # Ok::<(), std::io::Error>(())
//! ```

mod builder;
mod fault;
mod id;
mod pages;
mod reader;
mod summing;
mod sums;

pub use builder::{BaseBuilder, FinishedBase, recover, store};
pub use fault::BaseFault;
pub use id::{BaseDigest, BaseId, KnownBase};
pub use pages::{BasePages, page_size, seen};
pub use reader::BaseReader;
pub use sums::{BLOCK, SumsWriter, publish, publish_sums, sum_file};
