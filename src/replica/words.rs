//! SQL as words: which names stand in it, and whether two texts say the same. Knows no grammar.

use std::collections::BTreeMap;

/// A word of SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// What may be a name, without quotes and in small letters; also keywords and numbers.
    Name(String),
    /// A text in single quotes, as it stands there.
    Text(String),
    /// One of the other characters.
    Sign(char),
}

/// New names by old ones, in small letters.
pub(super) type Renamed = BTreeMap<String, String>;

/// The name that SQL takes for the same as others.
pub(super) fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// A name as SQL takes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The first word of a text and where it ends; `None` when there is none.
fn first(sql: &str) -> Option<(Word, usize)> {
    let mut at = 0;
    loop {
        let rest = &sql[at..];
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
        } else if rest.starts_with("--") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else {
            break;
        }
    }
    let rest = &sql[at..];
    let sign = rest.chars().next()?;
    let is_part = |char: char| char.is_alphanumeric() || matches!(char, '_' | '$') || !char.is_ascii();
    let (word, len) = match sign {
        '"' | '`' | '\'' => {
            let (name, len) = in_quotes(rest, sign);
            (if sign == '\'' { Word::Text(name) } else { Word::Name(folded(&name)) }, len)
        }
        '[' => {
            let end = rest.find(']').unwrap_or(rest.len());
            (Word::Name(folded(&rest[1..end])), (end + 1).min(rest.len()))
        }
        _ if is_part(sign) => {
            let end = rest.find(|char| !is_part(char)).unwrap_or(rest.len());
            (Word::Name(folded(&rest[..end])), end)
        }
        _ => (Word::Sign(sign), sign.len_utf8()),
    };
    Some((word, at + len))
}

/// What stands in quotes at the front of a text, and where it ends. A quote that is there twice is one of it.
fn in_quotes(sql: &str, quote: char) -> (String, usize) {
    let (mut inside, mut at) = (String::new(), 1);
    while let Some(end) = sql[at..].find(quote) {
        inside.push_str(&sql[at..at + end]);
        at += end + 1;
        if !sql[at..].starts_with(quote) {
            return (inside, at);
        }
        inside.push(quote);
        at += 1;
    }
    inside.push_str(&sql[at..]);
    (inside, sql.len())
}

/// All words of a text.
pub(super) fn words(sql: &str) -> Vec<Word> {
    let (mut words, mut rest) = (Vec::new(), sql);
    while let Some((word, end)) = first(rest) {
        words.push(word);
        rest = &rest[end..];
    }
    words
}

/// Whether the second text is what the first one becomes where names are changed.
pub(super) fn is_renamed(before: &str, after: &str, renamed: &Renamed) -> bool {
    let same = |(before, after): (&Word, &Word)| match (before, after) {
        (Word::Name(one), Word::Name(other)) => one == other || renamed.get(one) == Some(other),
        _ => before == after,
    };
    let (before, after) = (words(before), words(after));
    before.len() == after.len() && before.iter().zip(&after).all(same)
}

/// A `CREATE …` as a schema has it, in front of its name, the name, and behind it; `None` when it is something else.
fn created(sql: &str) -> Option<(&str, String, &str)> {
    for kind in ["CREATE TABLE ", "CREATE UNIQUE INDEX ", "CREATE INDEX ", "CREATE VIEW ", "CREATE TRIGGER "] {
        let starts =
            |text: &str, with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
        if starts(sql, kind) {
            const ONCE: &str = "IF NOT EXISTS ";
            let once = if starts(&sql[kind.len()..], ONCE) { ONCE.len() } else { 0 };
            let (before, rest) = sql.split_at(kind.len() + once);
            let (Word::Name(name) | Word::Text(name), end) = first(rest)? else { return None };
            return Some((before, name, &rest[end..]));
        }
    }
    None
}

/// A `CREATE …` as a schema has it, under a name in small letters: the engine calls what it makes so, and SQLite does not
/// find in the schema what is called otherwise there than in its own statement.
pub(super) fn create(sql: &str) -> String {
    match created(sql) {
        Some((before, name, behind)) if !sql[before.len()..sql.len() - behind.len()].contains(&folded(&name)) => {
            format!("{before}{}{behind}", quoted(&folded(&name)))
        }
        _ => sql.to_owned(),
    }
}

/// A `CREATE TABLE` as a schema has it, for another table that is alike; `None` when it is something else.
pub(super) fn create_as(sql: &str, name: &str) -> Option<String> {
    created(sql).map(|(_, _, behind)| format!("CREATE TABLE {}{behind}", quoted(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Word {
        Word::Name(name.into())
    }

    #[test]
    fn words_are_cut_as_sql_has_them() {
        let sql = "a\"B \"\"c\"/* x */[D e]--\n`F`'G''g'<=1.5 größe";
        let wanted = [
            name("a"),
            name("b \"c"),
            name("d e"),
            name("f"),
            Word::Text("G'g".into()),
            Word::Sign('<'),
            Word::Sign('='),
            name("1"),
            Word::Sign('.'),
            name("5"),
            name("größe"),
        ];
        assert_eq!(words(sql), wanted);
    }

    #[test]
    fn what_is_cut_off_has_words_too() {
        for sql in ["", " ", "\"", "'a", "[", "[a", "/*", "/* a", "--", "`a``", "ü", "\"ü"] {
            assert!(words(sql).len() < 2, "{sql}");
        }
    }

    #[test]
    fn renamed_texts_are_told_from_others() {
        let renamed = Renamed::from([("a".into(), "b b".into())]);
        assert!(is_renamed("INDEX i ON t(a, c)", "index i ON \"t\" (\"b b\",c)", &renamed));
        assert!(is_renamed("a > 1", "a>1", &renamed));
        assert!(!is_renamed("a > 1", "c > 1", &renamed));
        assert!(!is_renamed("'a'", "'b b'", &renamed));
        assert!(!is_renamed("a", "a a", &renamed));
    }

    #[test]
    fn what_is_made_has_a_name_in_small_letters() {
        for (sql, wanted) in [
            ("CREATE TABLE t(a)", "CREATE TABLE t(a)"),
            ("create table IF NOT EXISTS T(A)", "create table IF NOT EXISTS \"t\"(A)"),
            ("CREATE UNIQUE INDEX [I x]ON T(a)", "CREATE UNIQUE INDEX \"i x\"ON T(a)"),
            ("CREATE INDEX \"q\"\"i\" ON t(a)", "CREATE INDEX \"q\"\"i\" ON t(a)"),
            ("CREATE VIEW \"q\"\"V\" AS SELECT 1", "CREATE VIEW \"q\"\"v\" AS SELECT 1"),
            ("SELECT 1", "SELECT 1"),
        ] {
            assert_eq!(create(sql), wanted);
        }
    }

    #[test]
    fn a_table_is_made_once_more_under_another_name() {
        for sql in
            ["CREATE TABLE IF NOT EXISTS \"T\"\"x\" (a, b)", "create table [t x] (a, b)", "CREATE TABLE 't' (a, b)"]
        {
            assert_eq!(create_as(sql, "n").as_deref(), Some("CREATE TABLE \"n\" (a, b)"), "{sql}");
        }
        assert_eq!(create_as("SELECT 1", "n"), None);
    }
}
