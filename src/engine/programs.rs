//! [`Programs`]: statements that a connection has prepared before.
//!
//! Clients of the sync protocol send the same few texts with every call, and preparing them costs more than running them.
//! What is kept is what the engine made of the text, which never changes; each use has a state of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use turso_core::{Connection, PreparedProgram, Program, QueryMode, Statement};

use crate::limits::{PROGRAMS_KEPT_MAX, SQL_SEEN_BYTES_MAX};

/// How often the schema of a database may have changed: odd while somebody may be changing it.
///
/// The engine's own sign, the cookie in the database's header, is not enough: after a rollback it takes the same value a
/// second time, and a statement looks at it when it runs, after its columns were told.
#[derive(Debug, Default)]
pub(super) struct SchemaAge(AtomicU64);

impl SchemaAge {
    /// The schema may change from now on. The caller has the turn to write.
    pub(super) fn begin(&self) {
        self.0.fetch_or(1, Ordering::AcqRel);
    }

    /// It does not change any more. The caller still has the turn. Returns whether it may have changed.
    pub(super) fn end(&self) -> bool {
        let age = self.0.load(Ordering::Acquire);
        self.0.store(age + age % 2, Ordering::Release);
        !age.is_multiple_of(2)
    }

    /// The age as of now; none while the schema may be changing.
    pub(super) fn now(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|age| age % 2 == 0)
    }
}

/// What one connection has prepared, as of one age of the schema.
#[derive(Default)]
pub(super) struct Programs {
    age: u64,
    kept: HashMap<Box<str>, Arc<PreparedProgram>>,
}

impl Programs {
    /// The statement in `sql`, if it was kept.
    pub(super) fn get(&mut self, age: u64, connection: &Arc<Connection>, sql: &str) -> Option<Statement> {
        if self.age != age {
            self.kept.clear();
            self.age = age;
        }
        let program = Program::from_prepared(self.kept.get(sql)?.clone(), connection.clone());
        Some(Statement::new(program, connection.get_pager(), QueryMode::Normal, sql.len()))
    }

    /// Keeps a statement that was prepared when the schema had this age.
    pub(super) fn keep(&mut self, age: u64, sql: &str, statement: &Statement) {
        if self.age != age || sql.len() > SQL_SEEN_BYTES_MAX {
            return;
        }
        if self.kept.len() >= PROGRAMS_KEPT_MAX {
            self.kept.clear();
        }
        self.kept.insert(sql.into(), statement.get_program().prepared().clone());
    }
}
