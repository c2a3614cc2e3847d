//! What a libSQL client of version 0.9.1 may rely on, one test a promise.

#[path = "../../../libsql/tests/suite/conflict.rs"]
mod conflict;
#[path = "../../../libsql/tests/suite/metadata.rs"]
mod metadata;
#[path = "../../../libsql/tests/suite/operator.rs"]
mod operator;
#[path = "../../../libsql/tests/suite/pull.rs"]
mod pull;
#[path = "../../../libsql/tests/suite/push.rs"]
mod push;
mod recovery;
mod version;
