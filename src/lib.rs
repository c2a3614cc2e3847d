//! logmirror keeps verified, byte-exact mirrors of write-ahead logs.
//!
//! The modules stand in dependency order; a module uses only what stands above it here.
//!
//! - [`offset`], [`limits`]: the numbers and every cap;
//! - [`blame`]: whose fault an error is;
//! - [`mod@format`]: what a log looks like as bytes, and the [`Scanner`](format::Scanner) that verifies it;
//! - [`token`]: the secret that a service asks of its clients;
//! - [`repo`]: the files of a log, on disk or in memory;
//! - [`sqlite`]: a SQLite database that may be in use, as a source;
//! - [`segment`]: one segment and its offset index;
//! - [`stream`]: [`StreamWriter`](stream::StreamWriter) and [`StreamReader`](stream::StreamReader);
//! - [`mod@verify`]: whether a log is whole;
//! - [`checkpoint`]: the database that a WAL log makes, and when it is made;
//! - [`sync`]: databases of this machine and libSQL sync servers;
//! - [`engine`]: a WAL log as a database (feature `turso`);
//! - [`replica`]: databases that are written offline and synced later (feature `turso`).

pub mod api;
pub mod blame;
mod block;
pub mod checkpoint;
pub mod client;
pub mod config;
mod connections;
#[cfg(feature = "turso")]
pub mod engine;
pub mod format;
pub mod http;
pub mod limits;
pub mod load;
pub mod mirror;
pub mod offset;
#[cfg(feature = "turso")]
pub mod replica;
pub mod repo;
mod repr_digest;
mod retry;
pub mod segment;
pub mod server;
pub mod sqlite;
pub mod stream;
pub mod sync;
pub mod system_limits;
pub mod token;
mod transport;
pub mod verify;
#[cfg(feature = "turso")]
pub mod worker;
