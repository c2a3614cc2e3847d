//! The sync protocols of SQLite's replicas, free of HTTP.

pub mod libsql;
mod pushed;
mod stage;
