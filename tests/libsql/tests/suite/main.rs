//! What a libSQL client of version 0.10.0 may rely on, one test a promise.

mod conflict;
mod generations;
mod metadata;
mod mirrored;
mod operator;
mod pull;
mod push;
mod refusals;
mod remote_replica;
mod sql;
mod version;
