//! The Turso sync protocol, the server's side, free of HTTP. Source: `specs/turso-sync.md`, sections 1 to 5. What clients
//! pull are pages, out of the log's own frames ([`pull`]); what they push is SQL ([`sql`]).

pub mod proto;
pub mod pull;
pub mod sql;
mod touched;
mod value;

pub use touched::TouchedPages;
pub use value::Value;
