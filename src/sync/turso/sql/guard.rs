//! What a statement would do, judged by the engine's own parser before the engine sees it: whether it is refused, and
//! whether it may write.
//!
//! Refused is what would change the WAL other than by committing frames to it, what reaches other files, what changes how
//! the service keeps the database, and what nests so deep that the engine, which recurses, could run out of stack.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{LazyLock, RwLock};

use turso_parser::ast::{Cmd, Expr, Literal, Name, PragmaBody, PragmaName, Stmt, TransactionType};
use turso_parser::lexer::Lexer;
use turso_parser::parser::Parser;
use turso_parser::token::TokenType;

use super::answer::SqlError;
use super::spelling::respelled;
use crate::limits::{SQL_COMPOUND_MAX, SQL_NESTING_MAX, SQL_SEEN_BYTES_MAX, SQL_SEEN_MAX};

/// Code of a statement that is not allowed.
const REFUSED: &str = "SQL_REFUSED";

/// What a statement leaves behind on its connection, when nothing is open there any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaves {
    /// Nothing that another statement could ask for.
    #[default]
    Nothing,
    /// How many rows it changed, and the rowid of the last one.
    Counts,
    /// Settings, temporary tables or positions in sequences.
    Settings,
}

/// What is known of a statement before it is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inspected {
    /// Nothing says that it only reads. What it says itself may be wrong: a view can hide a function that writes.
    pub(super) may_write: bool,
    /// It changes rows, which are counted.
    pub(super) changes_rows: bool,
    /// It inserts rows, the last of which has a rowid.
    pub(super) inserts: bool,
    pub(super) explains: bool,
    /// It begins a transaction.
    pub(super) begins: bool,
    /// It begins or ends a transaction, or a part of one, and changes nothing by itself.
    pub(super) controls: bool,
    /// It ends a transaction: one that has written has the turn.
    pub(super) ends: bool,
    /// It wants that nobody else writes from then on, and does not wait for its first write.
    pub(super) locks: bool,
    /// It may change the schema, or what the engine knows beside it.
    pub(super) alters: bool,
    /// It leaves nothing behind on its connection but counts, and asks for nothing that was left there.
    pub(super) clean: bool,
    /// What it leaves behind.
    pub(super) leaves: Leaves,
    /// It may ask for the counts that statements before it left.
    pub(super) recalls: bool,
    /// It names the table in which clients of the sync protocol say how far they got.
    pub(super) bookkeeping: bool,
    /// It has another spelling, which the engine is given: see [`respelled`].
    pub(super) respells: bool,
}

impl Inspected {
    /// Whether it is run only when it is the caller's turn to write. Reading transactions begin and end without that.
    pub(super) fn needs_turn(&self) -> bool {
        self.may_write && !self.ends && (self.locks || !self.begins)
    }
}

/// What was found of texts that come again and again: clients make theirs from few patterns. Never waited for: a thread of a low
/// priority may have it.
static SEEN: LazyLock<RwLock<HashMap<String, Inspected>>> = LazyLock::new(RwLock::default);

/// Judges the one statement in `sql`.
///
/// # Errors
/// When it is refused, is none, is more than one, or cannot be parsed.
pub(super) fn inspect(sql: &str) -> Result<Inspected, SqlError> {
    if let Ok(seen) = SEEN.try_read()
        && let Some(found) = seen.get(sql)
    {
        return Ok(*found);
    }
    let found = judged(sql)?;
    if sql.len() <= SQL_SEEN_BYTES_MAX
        && let Ok(mut seen) = SEEN.try_write()
    {
        if seen.len() >= SQL_SEEN_MAX {
            seen.clear();
        }
        seen.insert(sql.to_owned(), found);
    }
    Ok(found)
}

fn judged(sql: &str) -> Result<Inspected, SqlError> {
    let words = nesting(sql)?;
    let mut parser = Parser::new(sql.as_bytes());
    let Some(cmd) = next(&mut parser)? else {
        return Err(SqlError::of("SQL_NO_STATEMENT", "there is no statement in this text"));
    };
    if next(&mut parser)?.is_some() {
        return Err(SqlError::of("SQL_MANY_STATEMENTS", "there is more than one statement in this text"));
    }
    let found = judge(&cmd)?;
    let respells = respelled(sql).is_some();
    // A name in an expression makes nothing temporary.
    let leaves = if words.sequences || words.temporary && found.alters { Leaves::Settings } else { found.leaves };
    let clean = found.clean && !(words.recalls || words.temporary);
    let Words { recalls, bookkeeping, .. } = words;
    Ok(Inspected { clean, leaves, recalls, bookkeeping, respells, ..found })
}

/// What a statement does to the transaction that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Begin,
    Commit,
    /// Of all of it.
    Rollback,
    RollbackTo,
    /// By this name, in lower case.
    Savepoint(String),
    /// As [`Savepoint`](Self::Savepoint).
    Release(String),
}

/// What the one statement in `sql` does to the transaction that it is in; nothing for one of another kind.
pub(super) fn control(sql: &str) -> Option<Control> {
    let Some(Cmd::Stmt(stmt)) = next(&mut Parser::new(sql.as_bytes())).ok()? else { return None };
    let lower = |name: &Name| name.as_str().to_ascii_lowercase();
    Some(match &stmt {
        Stmt::Begin { .. } => Control::Begin,
        Stmt::Commit { .. } => Control::Commit,
        Stmt::Rollback { savepoint_name: None, .. } => Control::Rollback,
        Stmt::Rollback { .. } => Control::RollbackTo,
        Stmt::Savepoint { name } => Control::Savepoint(lower(name)),
        Stmt::Release { name } => Control::Release(lower(name)),
        _ => return None,
    })
}

/// The statements of a text and where each ends in it; the engine takes them one by one. A statement that cannot be parsed
/// is the last.
pub(super) fn split(sql: &str) -> Result<Vec<&str>, SqlError> {
    let _words = nesting(sql)?;
    let (mut parser, mut start, mut found) = (Parser::new(sql.as_bytes()), 0, Vec::new());
    loop {
        let parsed = next(&mut parser);
        let end = parser.offset().clamp(start, sql.len());
        match parsed {
            Ok(None) => return Ok(found),
            Ok(Some(_)) => {
                found.push(sql.get(start..end).unwrap_or_default());
                start = end;
            }
            Err(_) => {
                found.push(sql.get(start..).unwrap_or_default());
                return Ok(found);
            }
        }
    }
}

fn next(parser: &mut Parser<'_>) -> Result<Option<Cmd>, SqlError> {
    parser.next_cmd().map_err(|error| SqlError::of("SQLITE_ERROR", error.to_string()))
}

/// Words of a text that have to do with what a connection remembers. They may be names of something else.
#[derive(Clone, Copy, Debug, Default)]
struct Words {
    /// Of functions that ask for the counts of statements before.
    recalls: bool,
    /// Of temporary tables.
    temporary: bool,
    /// Of functions of sequences.
    sequences: bool,
    /// Of the sync protocol.
    bookkeeping: bool,
}

impl Words {
    fn add(&mut self, token: &[u8]) {
        let quotes = |byte: &u8| b"\"'`[]".contains(byte);
        let plain = token.iter().filter(|byte| !quotes(byte)).map(u8::to_ascii_lowercase);
        let is = |names: &[&str]| names.iter().any(|name| plain.clone().eq(name.bytes()));
        self.recalls |= is(&["changes", "total_changes", "last_insert_rowid"]);
        self.temporary |= is(&["temp", "temporary"]);
        self.sequences |= is(&["nextval", "setval", "currval"]);
        self.bookkeeping |= is(&["turso_sync_last_change_id"]);
    }
}

/// Refuses what nests too deep. The parser has a bound for expressions, but none for queries in queries.
fn nesting(sql: &str) -> Result<Words, SqlError> {
    let (mut depth, mut compound, mut words) = (0_usize, 0_usize, Words::default());
    // What cannot be read at all is told by the parser.
    for token in Lexer::new(sql.as_bytes()).map_while(Result::ok) {
        match token.token_type {
            TokenType::TK_LP => depth += 1,
            TokenType::TK_RP => depth = depth.saturating_sub(1),
            TokenType::TK_UNION | TokenType::TK_EXCEPT | TokenType::TK_INTERSECT => compound += 1,
            TokenType::TK_SEMI => compound = 0,
            _ => words.add(token.value),
        }
        if depth > SQL_NESTING_MAX {
            return Err(SqlError::of(REFUSED, format!("parentheses are nested more than {SQL_NESTING_MAX} deep")));
        }
        if compound > SQL_COMPOUND_MAX {
            return Err(SqlError::of(REFUSED, format!("more than {SQL_COMPOUND_MAX} queries in a compound SELECT")));
        }
    }
    Ok(words)
}

fn judge(cmd: &Cmd) -> Result<Inspected, SqlError> {
    let (stmt, explains) = match cmd {
        Cmd::Stmt(stmt) => (stmt, false),
        Cmd::Explain(stmt) | Cmd::ExplainQueryPlan { stmt, .. } => (stmt, true),
    };
    let mut leaves = Leaves::Nothing;
    // Explained or not: the engine does some of it while it translates.
    let may_write = match stmt {
        Stmt::Vacuum { .. } => return Err(refused("VACUUM: it would write every page anew")),
        Stmt::Attach { .. } | Stmt::Detach { .. } => return Err(refused("ATTACH: it would open another file")),
        Stmt::Pragma { name, body } => {
            let does = pragma(name.name.as_str(), body.as_ref())?;
            leaves = if matches!(does, Pragma::Sets | Pragma::Captures) { Leaves::Settings } else { Leaves::Nothing };
            matches!(does, Pragma::Writes | Pragma::Captures)
        }
        Stmt::Select(_) => false,
        _ => !explains,
    };
    let inserts = !explains && matches!(stmt, Stmt::Insert { .. });
    let changes_rows = inserts || (!explains && matches!(stmt, Stmt::Update(_) | Stmt::Delete { .. }));
    let begins = !explains && matches!(stmt, Stmt::Begin { typ, .. } if *typ != Some(TransactionType::Concurrent));
    let locking = |typ: &Option<TransactionType>| typ.is_some() && *typ != Some(TransactionType::Deferred);
    let locks = begins && matches!(stmt, Stmt::Begin { typ, .. } if locking(typ));
    let controls = matches!(
        stmt,
        Stmt::Begin { .. }
            | Stmt::Commit { .. }
            | Stmt::Rollback { .. }
            | Stmt::Savepoint { .. }
            | Stmt::Release { .. }
    );
    let ends = !explains && matches!(stmt, Stmt::Commit { .. } | Stmt::Rollback { savepoint_name: None, .. });
    // What it has to do with the schema, and with its connection.
    let (alters, clean) = match stmt {
        Stmt::Select(_)
        | Stmt::Insert { .. }
        | Stmt::Update(_)
        | Stmt::Delete { .. }
        | Stmt::Begin { .. }
        | Stmt::Commit { .. } => (false, true),
        Stmt::Rollback { .. } | Stmt::Savepoint { .. } | Stmt::Release { .. } => (false, false),
        Stmt::CreateTable { temporary, .. } => (true, !temporary),
        Stmt::CreateIndex { .. } | Stmt::DropTable { .. } | Stmt::DropIndex { .. } | Stmt::AlterTable(_) => {
            (true, true)
        }
        _ => (true, false),
    };
    let alters = alters && may_write;
    if changes_rows {
        leaves = Leaves::Counts;
    }
    let (recalls, bookkeeping, respells) = (false, false, false);
    Ok(Inspected {
        may_write,
        changes_rows,
        inserts,
        explains,
        begins,
        controls,
        ends,
        locks,
        alters,
        clean,
        leaves,
        recalls,
        bookkeeping,
        respells,
    })
}

fn refused(what: &str) -> SqlError {
    SqlError::of(REFUSED, format!("not allowed here: {what}"))
}

/// What a pragma does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pragma {
    Asks,
    /// It may change the database.
    Writes,
    /// It changes how its connection behaves.
    Sets,
    /// It makes tables, into which its connection writes from then on.
    Captures,
}

/// What a pragma does. Those that only ask are allowed, but for few; of those that set something, only the ones
/// that are known to do no harm. The engine passes over pragmas that it does not know.
fn pragma(name: &str, body: Option<&PragmaBody>) -> Result<Pragma, SqlError> {
    use PragmaName as P;
    let lower = name.to_ascii_lowercase();
    let value = body.map(|body| match body {
        PragmaBody::Equals(value) | PragmaBody::Call(value) => value.as_ref(),
    });
    if matches!(lower.as_str(), "wal_autocheckpoint" | "incremental_vacuum") {
        return Err(refused(&format!("PRAGMA {lower}: the log decides when it is checkpointed")));
    }
    let Ok(known) = P::from_str(&lower) else {
        return Ok(Pragma::Asks);
    };
    match (known, value) {
        (P::WalCheckpoint, _) => Err(refused("PRAGMA wal_checkpoint: the log decides when it is checkpointed")),
        (P::EncryptionKey | P::EncryptionCipher, _) => Err(refused(&format!("PRAGMA {lower}"))),
        // These ask about what the value names.
        (
            P::IndexInfo
            | P::IndexXinfo
            | P::IndexList
            | P::ForeignKeyList
            | P::FunctionList
            | P::TableList
            | P::TableInfo
            | P::TableXinfo
            | P::IntegrityCheck
            | P::QuickCheck
            | P::DatabaseList
            | P::PageCount
            | P::FreelistCount,
            _,
        )
        | (_, None) => Ok(Pragma::Asks),
        // These change the header.
        (P::ApplicationId | P::UserVersion, Some(_)) => Ok(Pragma::Writes),
        (P::CaptureDataChangesConn | P::UnstableCaptureDataChangesConn, Some(_)) => Ok(Pragma::Captures),
        // These change how this stream behaves.
        (
            P::BusyTimeout
            | P::CountChanges
            | P::EmptyResultCallbacks
            | P::ForeignKeys
            | P::FtsMergeThreshold
            | P::FullColumnNames
            | P::IAmADummy
            | P::IgnoreCheckConstraints
            | P::LegacyFileFormat
            | P::QueryOnly
            | P::RequireWhere
            | P::ShortColumnNames
            | P::Synchronous,
            Some(_),
        ) => Ok(Pragma::Sets),
        // What clients say by habit, and is so anyway.
        (P::JournalMode, Some(value)) if says(value, "wal") => Ok(Pragma::Asks),
        (_, Some(_)) => Err(refused(&format!("setting PRAGMA {lower}"))),
    }
}

/// Whether a value is this word.
fn says(value: &Expr, word: &str) -> bool {
    let text = match value {
        Expr::Name(name) | Expr::Id(name) => name.as_str(),
        Expr::Literal(Literal::Keyword(text)) => text,
        Expr::Literal(Literal::String(text)) => text.trim_matches('\''),
        _ => return false,
    };
    text.eq_ignore_ascii_case(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(sql: &str) -> Option<String> {
        inspect(sql).err().filter(|error| error.code == REFUSED).map(|error| error.message)
    }

    #[test]
    fn what_breaks_revisions_is_refused_however_it_is_spelled() {
        for sql in [
            "PRAGMA wal_checkpoint",
            "pragma WAL_Checkpoint(TRUNCATE)",
            "PRAGMA main.wal_checkpoint = passive",
            "  ;; /* x */ PRAGMA -- y\n \"wal_checkpoint\" ( restart ) ; -- z",
            "PRAGMA [wal_checkpoint]",
            "PRAGMA `Wal_Checkpoint`",
            "EXPLAIN PRAGMA wal_checkpoint",
            "EXPLAIN QUERY PLAN PRAGMA wal_checkpoint",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA journal_mode=mvcc",
            "PRAGMA journal_mode('experimental_mvcc')",
            "PRAGMA main.journal_mode(off)",
            "PRAGMA page_size = 512",
            "EXPLAIN PRAGMA page_size = 512",
            "PRAGMA wal_autocheckpoint",
            "PRAGMA wal_autocheckpoint=1",
            "PRAGMA auto_vacuum = 1",
            "PRAGMA incremental_vacuum(5)",
            "PRAGMA schema_version = 7",
            "PRAGMA max_page_count = 'x'",
            "PRAGMA locking_mode = exclusive",
            "PRAGMA cache_size = 1000000",
            "PRAGMA cache_spill = off",
            "PRAGMA temp_store = file",
            "PRAGMA temp_store = memory",
            "PRAGMA encoding = 'UTF-16'",
            "PRAGMA data_sync_retry = 1",
            "PRAGMA mvcc_checkpoint_threshold = 0",
            "PRAGMA hexkey = 'ab'",
            "PRAGMA cipher",
            "PRAGMA vdbe_trace = on",
            "VACUUM",
            "vacuum main",
            "VACUUM INTO '/tmp/x.db'",
            "explain vacuum",
            "ATTACH 'x.db' AS x",
            "attach database ':memory:' as x",
            "DETACH x",
        ] {
            assert!(refusal(sql).is_some(), "{sql}: {:?}", inspect(sql));
        }
    }

    #[test]
    fn what_clients_need_is_allowed_and_known_to_write_or_not() {
        for (sql, may_write) in [
            ("SELECT 'PRAGMA wal_checkpoint'", false),
            ("WITH a AS (SELECT 1) SELECT * FROM a", false),
            ("VALUES (1)", false),
            ("EXPLAIN DELETE FROM t", false),
            ("PRAGMA table_info(t)", false),
            ("PRAGMA table_info = t", false),
            ("PRAGMA user_version", false),
            ("PRAGMA foreign_keys = ON", false),
            ("PRAGMA journal_mode", false),
            ("PRAGMA journal_mode = WAL", false),
            ("PRAGMA journal_mode('wal')", false),
            ("PRAGMA page_size", false),
            ("PRAGMA mmap_size = 1", false),
            ("PRAGMA integrity_check(5)", false),
            ("PRAGMA user_version = 3", true),
            ("BEGIN", true),
            ("BEGIN IMMEDIATE", true),
            ("COMMIT", true),
            ("SAVEPOINT a", true),
            ("INSERT INTO t VALUES (1) RETURNING a", true),
            ("WITH a AS (SELECT 1) DELETE FROM t", true),
            ("CREATE TABLE t(a)", true),
            ("ANALYZE", true),
            ("REINDEX", true),
        ] {
            assert_eq!(inspect(sql).map(|inspected| inspected.may_write), Ok(may_write), "{sql}");
        }
    }

    #[test]
    fn what_may_change_the_schema_is_known() {
        for (sql, alters) in [
            ("SELECT 1", false),
            ("INSERT INTO t VALUES (1)", false),
            ("WITH a AS (SELECT 1) UPDATE t SET a = 1", false),
            ("DELETE FROM t", false),
            ("BEGIN", false),
            ("COMMIT", false),
            ("ROLLBACK TO a", false),
            ("EXPLAIN DROP TABLE t", false),
            ("PRAGMA table_info(t)", false),
            ("CREATE TABLE IF NOT EXISTS t(a)", true),
            ("CREATE TEMP TABLE t(a)", true),
            ("CREATE VIEW v AS SELECT 1", true),
            ("CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", true),
            ("ALTER TABLE t ADD COLUMN b", true),
            ("DROP INDEX i", true),
            ("ANALYZE", true),
            ("PRAGMA unstable_capture_data_changes_conn = 'full'", true),
        ] {
            assert_eq!(inspect(sql).map(|inspected| inspected.alters), Ok(alters), "{sql}");
        }
    }

    #[test]
    fn one_statement_is_taken_and_no_more() {
        let code = |sql: &str| inspect(sql).map(drop).map_err(|error| error.code);
        for sql in ["SELECT 1", ";SELECT 1;;", "SELECT 1; -- end", "/* a */ SELECT 1 /* b */;"] {
            assert_eq!(code(sql), Ok(()), "{sql}");
        }
        for sql in ["", " ;; ", "-- nothing"] {
            assert_eq!(code(sql), Err("SQL_NO_STATEMENT"), "{sql}");
        }
        assert_eq!(code("SELECT 1; PRAGMA wal_checkpoint"), Err("SQL_MANY_STATEMENTS"));
        assert_eq!(code("SELECT 1; nix"), Err("SQLITE_ERROR"));
    }

    #[test]
    fn a_text_is_split_where_its_statements_end() {
        let sql =
            "; CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END; /* ; */ SELECT ';' ;; nix; SELECT 3";
        let found: Vec<&str> = split(sql).expect("it is split").into_iter().map(str::trim).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("SELECT 2; END;") && found[1].starts_with("SELECT ';'"), "{found:?}");
        assert_eq!(found[2], "nix; SELECT 3");
        assert_eq!(split(" -- nothing"), Ok(Vec::new()));
    }

    #[test]
    fn what_nests_too_deep_is_refused_before_anybody_recurses() {
        // The parser recurses too, up to its bound.
        let thread = std::thread::Builder::new().stack_size(crate::limits::SQL_STACK_BYTES).spawn(nest);
        thread.expect("a thread starts").join().expect("the test passes");
    }

    fn nest() {
        for (open, close) in [("(SELECT * FROM ", ")"), ("(", ")"), ("abs(", ")")] {
            let sql = format!("SELECT * FROM {}t{}", open.repeat(100_000), close.repeat(100_000));
            assert!(refusal(&sql).is_some());
            assert!(split(&sql).is_err());
        }
        assert!(refusal(&format!("SELECT 1{}", " UNION SELECT 1".repeat(100_000))).is_some());
        assert_eq!(refusal(&format!("SELECT 1{}", " UNION SELECT 1".repeat(400))), None);
        for sql in [format!("SELECT {}1", "NOT ".repeat(100_000)), format!("SELECT 1{}", "+1".repeat(100_000))] {
            assert_eq!(inspect(&sql).map_err(|error| error.code), Err("SQLITE_ERROR"));
        }
    }
}
