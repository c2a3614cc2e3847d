//! Another spelling of a statement that means the same, where the engine does not take the one that it was given, takes it for
//! something else, or would answer with tables of its own that SQLite does not have.

use turso_parser::lexer::Lexer;
use turso_parser::parser::Parser;
use turso_parser::token::TokenType;

/// What the names of the engine's own tables begin with.
const INTERNAL: &str = "__turso_internal_";

/// A token and where it is in its text.
#[derive(Clone, Copy)]
struct Token<'a> {
    kind: TokenType,
    text: &'a str,
    start: usize,
    /// Parentheses that are open before it.
    depth: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Whether it is this name, quoted or not.
    fn is(&self, name: &str) -> bool {
        let quotes: &[char] = &['"', '\'', '`', '[', ']'];
        self.text.trim_matches(quotes).eq_ignore_ascii_case(name)
    }
}

/// A range of bytes and what takes its place.
type Edit = (usize, usize, String);

/// The other spelling; none where the statement is fine as it is.
pub(super) fn respelled(sql: &str) -> Option<String> {
    let tokens = tokens(sql)?;
    let first = tokens.iter().position(|token| !is_explaining(token))?;
    let verb_at = match tokens.get(first)?.kind {
        TokenType::TK_WITH => {
            first + tokens.get(first..)?.iter().position(|token| token.depth == 0 && is_verb(token))?
        }
        _ => first,
    };
    let mut edits = match tokens.get(verb_at)?.kind {
        TokenType::TK_UPDATE => target(sql, &tokens, verb_at).into_iter().collect(),
        TokenType::TK_DELETE => deleted(sql, &tokens, verb_at),
        TokenType::TK_PRAGMA => return table_list(sql, tokens.get(verb_at + 1..)?),
        _ => Vec::new(),
    };
    if is_verb(tokens.get(verb_at)?) {
        edits.extend(schema(&tokens));
    }
    edits.sort();
    let (mut text, mut copied) = (String::with_capacity(sql.len() + 128), 0);
    for (start, end, instead) in &edits {
        text += sql.get(copied..*start)?;
        text += instead;
        copied = *end;
    }
    text += sql.get(copied..)?;
    // One that is none, as of names that are words of the language too, is not a spelling of anything.
    (copied > 0 && matches!(Parser::new(text.as_bytes()).next_cmd(), Ok(Some(_)))).then_some(text)
}

fn tokens(sql: &str) -> Option<Vec<Token<'_>>> {
    let (mut depth, mut found) = (0_usize, Vec::new());
    for token in Lexer::new(sql.as_bytes()) {
        let token = token.ok()?;
        let start = (token.value.as_ptr() as usize).checked_sub(sql.as_ptr() as usize)?;
        let text = sql.get(start..start + token.value.len())?;
        // The lexer gives spaces and comments too.
        if text.trim().is_empty() || text.starts_with("--") || text.starts_with("/*") {
            continue;
        }
        found.push(Token { kind: token.token_type, text, start, depth });
        match token.token_type {
            TokenType::TK_LP => depth += 1,
            TokenType::TK_RP => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Some(found)
}

fn is_explaining(token: &Token<'_>) -> bool {
    matches!(token.kind, TokenType::TK_EXPLAIN | TokenType::TK_QUERY | TokenType::TK_PLAN | TokenType::TK_SEMI)
}

fn is_verb(token: &Token<'_>) -> bool {
    matches!(
        token.kind,
        TokenType::TK_SELECT
            | TokenType::TK_INSERT
            | TokenType::TK_REPLACE
            | TokenType::TK_UPDATE
            | TokenType::TK_DELETE
            | TokenType::TK_VALUES
    )
}

/// The table that an `UPDATE` or `DELETE` changes, with what it is called in the rest of it, in small letters.
///
/// The engine keeps names in small letters, but this one as it is spelled, and does not find `T.a` or `main.T.a` then.
fn target(sql: &str, tokens: &[Token<'_>], verb_at: usize) -> Option<Edit> {
    let rest = tokens.get(verb_at + 1..)?;
    let start = match rest.first()?.kind {
        // UPDATE OR IGNORE, DELETE FROM.
        TokenType::TK_OR => 2,
        TokenType::TK_FROM => 1,
        _ => 0,
    };
    let ends = |token: &&Token<'_>| {
        !matches!(
            token.kind,
            TokenType::TK_SET
                | TokenType::TK_WHERE
                | TokenType::TK_RETURNING
                | TokenType::TK_ORDER
                | TokenType::TK_LIMIT
                | TokenType::TK_INDEXED
                | TokenType::TK_NOT
                | TokenType::TK_SEMI
        )
    };
    let named: Vec<_> = rest.get(start..)?.iter().take_while(ends).collect();
    let (first, last) = (named.first()?, named.last()?);
    let spelled = sql.get(first.start..last.end())?;
    let differs = spelled.bytes().any(|byte| byte.is_ascii_uppercase());
    differs.then(|| (first.start, last.end(), spelled.to_ascii_lowercase()))
}

/// What a `DELETE` needs: its target, and in what it returns no `main.` before a name of a table: there the engine takes
/// that for a column of the next row.
fn deleted(sql: &str, tokens: &[Token<'_>], verb_at: usize) -> Vec<Edit> {
    let mut edits: Vec<_> = target(sql, tokens, verb_at).into_iter().collect();
    let returning = tokens.iter().position(|token| token.kind == TokenType::TK_RETURNING && token.depth == 0);
    let returned = returning.and_then(|at| tokens.get(at..)).unwrap_or_default();
    // In a query of its own a name may be another's.
    if returned.iter().all(|token| token.kind != TokenType::TK_SELECT) {
        edits.extend(returned.windows(4).filter(|names| is_qualified(names)).map(without_database));
    }
    edits
}

/// Whether it is `main.TABLE.`
fn is_qualified(names: &[Token<'_>]) -> bool {
    let [database, dot, _, second] = names else { return false };
    database.is("main") && dot.kind == TokenType::TK_DOT && second.kind == TokenType::TK_DOT
}

fn without_database(names: &[Token<'_>]) -> Edit {
    let end = names.get(2).map_or(0, |table| table.start);
    (names.first().map_or(end, |database| database.start), end, String::new())
}

/// `PRAGMA table_list` without the engine's own tables.
fn table_list(sql: &str, rest: &[Token<'_>]) -> Option<String> {
    let named = match rest {
        [database, dot, rest @ ..] if dot.kind == TokenType::TK_DOT && database.is("main") => rest,
        rest => rest,
    };
    let (name, rest) = named.split_first()?;
    let asks = name.is("table_list") && rest.iter().all(|token| token.kind == TokenType::TK_SEMI);
    let explains = !sql.trim_start().get(..6)?.eq_ignore_ascii_case("pragma");
    (asks && !explains).then(|| {
        let shown = "SELECT schema, name, type, ncol, wr, strict FROM pragma_table_list";
        format!("{shown} WHERE substr(name, 1, {}) <> '{INTERNAL}'", INTERNAL.len())
    })
}

/// Each table of the schema that is read, without the engine's own tables in it.
fn schema(tokens: &[Token<'_>]) -> Vec<Edit> {
    if !tokens.iter().any(|token| is_schema(token) || token.is("pragma_table_list")) {
        return Vec::new();
    }
    // Whether what follows is in a FROM clause, by depth; and whether it is a table.
    let (mut from, mut table, mut edits) = (vec![false], false, Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at)).map(|token| token.kind);
        let depth = token.depth;
        from.resize(depth + 1, false);
        match token.kind {
            TokenType::TK_FROM => {
                let reads = !matches!(before, Some(TokenType::TK_DISTINCT | TokenType::TK_DELETE));
                (from[depth], table) = (reads, reads);
            }
            TokenType::TK_JOIN => table = from[depth],
            TokenType::TK_COMMA => table = from[depth],
            TokenType::TK_LP if table => from.push(true),
            TokenType::TK_SELECT
            | TokenType::TK_WHERE
            | TokenType::TK_GROUP
            | TokenType::TK_ORDER
            | TokenType::TK_HAVING
            | TokenType::TK_LIMIT
            | TokenType::TK_WINDOW
            | TokenType::TK_SET
            | TokenType::TK_RETURNING
            | TokenType::TK_SEMI => (from[depth], table) = (false, false),
            _ if table => {
                table = false;
                edits.extend(shown(tokens, at));
            }
            _ => {}
        }
    }
    // What names a column of it by the database as well.
    let qualified = tokens.windows(4).filter(|names| is_qualified(names) && names.get(2).is_some_and(is_schema));
    edits.extend(qualified.map(without_database));
    edits
}

fn is_schema(token: &Token<'_>) -> bool {
    token.is("sqlite_schema") || token.is("sqlite_master")
}

/// A query in the place of the table that is named there, if it is one of the schema.
fn shown(tokens: &[Token<'_>], at: usize) -> Option<Edit> {
    let kind = |at: usize| tokens.get(at).map(|token| token.kind);
    let start = tokens.get(at)?;
    let name_at = if start.is("main") && kind(at + 1) == Some(TokenType::TK_DOT) { at + 2 } else { at };
    let name = tokens.get(name_at)?;
    let rowid = tokens.iter().any(|token| token.is("rowid") || token.is("oid") || token.is("_rowid_"));
    let (columns, source, last) = match kind(name_at + 1) {
        Some(TokenType::TK_DOT | TokenType::TK_LP) if is_schema(name) => return None,
        Some(TokenType::TK_LP) if name.is("pragma_table_list") => return None,
        _ if is_schema(name) && rowid => ("rowid, type, name, tbl_name, rootpage, sql", "main.sqlite_schema", name),
        _ if is_schema(name) => ("type, name, tbl_name, rootpage, sql", "main.sqlite_schema", name),
        _ if name.is("pragma_table_list") => ("schema, name, type, ncol, wr, strict", "pragma_table_list", name),
        _ => return None,
    };
    let named = matches!(kind(name_at + 1), Some(TokenType::TK_AS | TokenType::TK_ID | TokenType::TK_STRING));
    let query = format!(
        "(SELECT {columns} FROM {source} WHERE substr(name, 1, {}) <> '{INTERNAL}'){}{}",
        INTERNAL.len(),
        if named { "" } else { " AS " },
        if named { "" } else { last.text }
    );
    Some((start.start, last.end(), query))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "(SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_schema WHERE substr(name, 1, 17) <> '__turso_internal_')";

    #[test]
    fn the_target_is_spelled_in_small_letters_and_nothing_else_is() {
        for (sql, wanted) in [
            ("UPDATE main.T SET A = 'B' WHERE main.T.id = 1", "UPDATE main.t SET A = 'B' WHERE main.T.id = 1"),
            ("UPDATE OR IGNORE `Main`.`T` AS X SET A = X.a", "UPDATE OR IGNORE `main`.`t` as x SET A = X.a"),
            ("WITH U AS (SELECT 'UPDATE T') UPDATE T SET a = 1", "WITH U AS (SELECT 'UPDATE T') UPDATE t SET a = 1"),
            ("DELETE FROM \"T\" WHERE T.a = 'T'", "DELETE FROM \"t\" WHERE T.a = 'T'"),
            ("DELETE FROM T RETURNING T.a", "DELETE FROM t RETURNING T.a"),
            ("DELETE FROM t RETURNING `main`.T.a, main.t.b", "DELETE FROM t RETURNING T.a, t.b"),
            ("EXPLAIN QUERY PLAN DELETE FROM T;", "EXPLAIN QUERY PLAN DELETE FROM t;"),
            ("DELETE FROM [Ä T] ;", "DELETE FROM [Ä t] ;"),
        ] {
            assert_eq!(respelled(sql).as_deref(), Some(wanted));
        }
        for sql in [
            "UPDATE t SET a = 'T'",
            "delete from t",
            "SELECT T.a FROM T",
            "INSERT INTO T VALUES (1)",
            "CREATE TABLE T(a)",
            "nonsense",
            "",
        ] {
            assert_eq!(respelled(sql), None, "{sql}");
        }
    }

    #[test]
    fn the_schema_is_read_without_internal_tables_wherever_it_is_named() {
        for (sql, wanted) in [
            ("SELECT name FROM sqlite_master", format!("SELECT name FROM {SHOWN} AS sqlite_master")),
            ("select m.name from \"main\".\"sqlite_schema\" AS m", format!("select m.name from {SHOWN} AS m")),
            ("SELECT * FROM t, sqlite_master m WHERE 1", format!("SELECT * FROM t, {SHOWN} m WHERE 1")),
            ("SELECT 1 WHERE 'a' IN (SELECT name FROM SQLITE_MASTER)", {
                format!("SELECT 1 WHERE 'a' IN (SELECT name FROM {SHOWN} AS SQLITE_MASTER)")
            }),
            (
                "SELECT main.sqlite_master.name FROM t JOIN sqlite_master ON a = name ORDER BY 1",
                format!("SELECT sqlite_master.name FROM t JOIN {SHOWN} AS sqlite_master ON a = name ORDER BY 1"),
            ),
            ("INSERT INTO x SELECT name FROM sqlite_schema", format!("INSERT INTO x SELECT name FROM {SHOWN} AS sqlite_schema")),
            (
                "PRAGMA table_list;",
                "SELECT schema, name, type, ncol, wr, strict FROM pragma_table_list WHERE substr(name, 1, 17) <> '__turso_internal_'".into(),
            ),
        ] {
            assert_eq!(respelled(sql), Some(wanted));
        }
        for sql in [
            "SELECT 'sqlite_master'",
            "SELECT a, sqlite_master FROM t",
            "SELECT * FROM t WHERE a IS DISTINCT FROM sqlite_master",
            "DELETE FROM sqlite_master",
            "PRAGMA table_list(t)",
            "CREATE VIEW v AS SELECT name FROM sqlite_master",
            "SELECT name FROM sqlite_temp_master",
        ] {
            assert_eq!(respelled(sql), None, "{sql}");
        }
    }
}
