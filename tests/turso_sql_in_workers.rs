//! What SQL over HTTP promises, where it runs in processes of its own: the suite of `turso_sql`.
#![cfg(feature = "turso")]

#[path = "turso_sql/main.rs"]
mod suite;
