//! [`Unusable`]: the trees of a database that the engine would read or write wrongly.
//!
//! Whatever a statement does with a table or an index, also by way of a view, a trigger or a foreign key, it reads the root of
//! its tree first. The engine cannot read these roots, so the statement fails, and what it has done before is undone; with an
//! open transaction all of that, since there may be no way back to where the statement began. The rows of the schema stay.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use turso_core::LimboError;
use turso_parser::ast::{Cmd, Stmt};
use turso_parser::parser::Parser;

/// What must not be used, and why. Until it is set, as while a database is opened, all may be.
#[derive(Debug, Default)]
pub(super) struct Unusable {
    entries: OnceLock<Entries>,
    /// Whether a statement was kept from reading a root.
    was_met: AtomicBool,
}

/// Reasons, by what they are of.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By the roots of tables and indexes.
    pub(super) roots: HashMap<u32, String>,
    /// By their names, in small letters.
    pub(super) names: HashMap<String, String>,
}

impl Unusable {
    /// Sets it, once.
    pub(super) fn set(&self, entries: Entries) {
        // An engine is opened once.
        let _is_set = self.entries.set(entries);
    }

    fn entries(&self) -> Option<&Entries> {
        self.entries.get().filter(|entries| !entries.names.is_empty())
    }

    /// Whether there is anything.
    pub(super) fn has_any(&self) -> bool {
        self.entries().is_some()
    }

    /// Refuses to have pages read, from the first to the last, among which is such a root.
    ///
    /// # Errors
    /// That of a statement that reads them.
    pub(super) fn check(&self, first: u64, last: u64) -> Result<(), LimboError> {
        let Some(entries) = self.entries() else { return Ok(()) };
        match entries.roots.iter().find(|(root, _)| (first..=last).contains(&u64::from(**root))) {
            None => Ok(()),
            Some((_, why)) => {
                self.was_met.store(true, Ordering::Release);
                Err(LimboError::SqlError(why.clone()))
            }
        }
    }

    /// Whether a statement was kept from reading a root since this was asked last.
    pub(super) fn was_met(&self) -> bool {
        self.was_met.swap(false, Ordering::AcqRel)
    }

    /// Refuses a statement that changes how such a table is made, or that writes the statements of other tables again from what
    /// the engine knows of them.
    ///
    /// # Errors
    /// That of the statement.
    pub(super) fn check_statement(&self, sql: &str) -> Result<(), LimboError> {
        let Some(entries) = self.entries() else { return Ok(()) };
        let Ok(Some(Cmd::Stmt(stmt))) = Parser::new(sql.as_bytes()).next_cmd() else { return Ok(()) };
        let why = match &stmt {
            Stmt::AlterTable(_) => entries.names.values().min(),
            Stmt::DropTable { tbl_name: name, .. } | Stmt::DropIndex { idx_name: name, .. } => {
                entries.why(name.name.as_str())
            }
            Stmt::CreateIndex { tbl_name, .. } => entries.why(tbl_name.as_str()),
            _ => None,
        };
        match (why, stmt) {
            (None, _) => Ok(()),
            (Some(why), Stmt::AlterTable(_)) => {
                Err(LimboError::SqlError(format!("ALTER TABLE is not run on this database: {why}")))
            }
            (Some(why), _) => Err(LimboError::SqlError(why.clone())),
        }
    }
}

impl Entries {
    fn why(&self, name: &str) -> Option<&String> {
        self.names.get(&name.to_lowercase())
    }
}
