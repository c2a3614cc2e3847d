//! Hostile statements: those that have a name, and random ones from a seed. The same number gives the same statement.

use std::fmt;

use logmirror_e2e_support::random::Random;

use crate::bases::{BaseKind, CHAINED, DOUBLING, NESTED};

/// What a statement is hostile by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One of those with a name.
    Named,
    /// It nests.
    Deep,
    /// It has many of something.
    Wide,
    /// Each part of it is the one before several times.
    Doubling,
    /// It does not end, or takes too much memory while it runs.
    Endless,
    /// Its values are huge.
    Huge,
    /// It reads or changes a table whose pages lead nowhere or in a circle.
    Broken,
    /// It changes the schema.
    Schema,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.pad(&name)
    }
}

/// A statement, with what is run before it in the same request.
#[derive(Clone, Debug)]
pub struct Statement {
    pub kind: Kind,
    pub name: String,
    pub base: BaseKind,
    pub sql: Vec<String>,
}

fn named(name: &str, base: BaseKind, sql: String) -> Statement {
    Statement { kind: Kind::Named, name: name.into(), base, sql: vec![sql] }
}

/// Tables of a `WITH`, each made of the one before by `next`.
fn tables(count: u64, next: impl Fn(String) -> String) -> String {
    let table = |n: u64| format!("c{n} AS ({})", next(format!("c{}", n - 1)));
    let tables: Vec<String> = (1..count).map(table).collect();
    format!("WITH c0 AS (SELECT 1 AS a), {} SELECT count(*) FROM c{}", tables.join(", "), count - 1)
}

fn union(times: u64, what: &str) -> String {
    vec![what; times as usize].join(" UNION ALL ")
}

/// Numbers without an end.
const NUMBERS: &str = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n)";

/// A statement that takes no memory and does not end.
pub fn endless() -> String {
    format!("{NUMBERS} SELECT count(*) FROM n")
}

/// Those that were found to end a process.
pub fn all_named() -> Vec<Statement> {
    use BaseKind::{Broken, Chained};
    let select = |table: &str| format!("SELECT a FROM {table}");
    vec![
        named("16 CTEs that double", Broken, tables(16, |c| union(2, &select(&c)))),
        named("16 CTEs eightfold", Broken, tables(16, |c| union(8, &select(&c)))),
        named("joins of CTEs", Broken, tables(16, |c| format!("SELECT x.a FROM {c} AS x JOIN {c} AS y"))),
        named("1,500 CTEs in a row", Broken, tables(1500, |c| select(&c))),
        named("40 views that double", Broken, format!("SELECT count(*) FROM d{}", DOUBLING - 1)),
        named("250 nested views", Broken, format!("SELECT count(*) FROM n{}", NESTED - 1)),
        named("DELETE, cyclic child", Broken, "DELETE FROM cycle".into()),
        named("DELETE, zero child", Broken, "DELETE FROM zero".into()),
        named("5,000 chained views", Chained, format!("SELECT count(*) FROM c{}", CHAINED - 1)),
        named("numbers without an end", Broken, endless()),
        named("a value of 3.6 GB", Broken, "SELECT hex(zeroblob(900000000)) || hex(zeroblob(900000000))".into()),
    ]
}

/// The random statement with this number.
pub fn random(seed: u64, number: u64) -> Statement {
    let random = &mut Random::new(seed, number);
    let kinds = [Kind::Deep, Kind::Wide, Kind::Doubling, Kind::Endless, Kind::Huge, Kind::Broken, Kind::Schema];
    let kind = kinds[random.within(0..kinds.len() as u64) as usize];
    let mut base = BaseKind::Broken;
    let sql = match kind {
        Kind::Named | Kind::Deep => {
            if random.one_in(12) {
                base = BaseKind::Chained;
                format!("SELECT count(*) FROM c{}", random.within(0..CHAINED))
            } else {
                deep(random)
            }
        }
        Kind::Wide => wide(random),
        Kind::Doubling => doubling(random),
        Kind::Endless => endlessly(random),
        Kind::Huge => huge(random),
        Kind::Broken => broken(random),
        Kind::Schema => return Statement { kind, name: name(number), base, sql: schema(random, number) },
    };
    Statement { kind, name: name(number), base, sql: vec![sql] }
}

fn name(number: u64) -> String {
    format!("random statement {number}")
}

/// Between 1 and `most`, small ones as often as large ones.
fn size(random: &mut Random, most: u64) -> u64 {
    let bits = random.within(1..u64::from(most.ilog2()) + 2);
    random.within(1..(1 << bits).min(most) + 1)
}

fn pick<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.within(0..of.len() as u64) as usize]
}

fn wrapped(open: &str, middle: &str, close: &str, times: u64) -> String {
    let times = times as usize;
    open.repeat(times) + middle + &close.repeat(times)
}

fn list(count: u64, separator: &str, item: impl Fn(u64) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(separator)
}

fn deep(random: &mut Random) -> String {
    match random.within(0..9) {
        0 => format!("SELECT {}", wrapped("(", "1", ")", size(random, 400))),
        1 => format!("SELECT {}", wrapped("(SELECT ", "1", ")", size(random, 250))),
        2 => format!("SELECT count(*) FROM {}", wrapped("(SELECT * FROM ", "t", ")", size(random, 250))),
        3 => {
            let call = pick(random, &["abs(", "upper(", "coalesce(NULL, ", "max(1, ", "CAST(1 + length("]);
            let close = if call.starts_with("CAST") { ") AS TEXT)" } else { ")" };
            format!("SELECT {}", wrapped(call, "a", close, size(random, 250)) + " FROM t LIMIT 1")
        }
        4 => format!("SELECT {}", wrapped("CASE WHEN a THEN ", "1", " END", size(random, 400)) + " FROM t"),
        5 => tables(size(random, 3000) + 1, |c| format!("SELECT a FROM {c}")),
        6 => {
            let sign = pick(random, &["- ", "~ ", "NOT "]);
            format!("SELECT {}", wrapped(sign, "1", "", size(random, 5000)))
        }
        7 => {
            let sign = pick(random, &[" + ", " || ", " AND ", " = "]);
            format!("SELECT {}", list(size(random, 5000) + 1, sign, |n| n.to_string()))
        }
        _ => {
            let depth = size(random, 190);
            format!(
                "SELECT count(*) FROM t WHERE {}",
                wrapped("EXISTS (SELECT 1 FROM t AS x WHERE x.a = t.a AND ", "1", ")", depth)
            )
        }
    }
}

fn wide(random: &mut Random) -> String {
    match random.within(0..9) {
        0 => format!("SELECT {}", list(size(random, 8000), ", ", |n| format!("{n} AS c{n}"))),
        1 => format!("SELECT count(*) FROM t WHERE a IN ({})", list(size(random, 50_000), ", ", |n| n.to_string())),
        2 => union(size(random, 600), "SELECT a FROM t") + " ORDER BY 1",
        3 => list(size(random, 500), " UNION ", |n| format!("SELECT a + {n} FROM t")),
        4 => format!("VALUES {}", list(size(random, 20_000), ", ", |n| format!("({n}, 'x')"))),
        5 => {
            let tables = size(random, 80);
            format!("SELECT count(*) FROM {} WHERE t0.a = 1", list(tables, ", ", |n| format!("t AS t{n}")))
        }
        6 => format!("SELECT count(*) FROM t WHERE {}", list(size(random, 3000), " OR ", |n| format!("a = {n}"))),
        7 => {
            let whens = list(size(random, 10_000), " ", |n| format!("WHEN {n} THEN {n}"));
            format!("SELECT sum(CASE a {whens} END) FROM t")
        }
        _ => {
            let terms = list(size(random, 2000), ", ", |n| format!("a % {}", n + 1));
            format!("SELECT count(*) FROM t GROUP BY {terms} ORDER BY {terms}")
        }
    }
}

fn doubling(random: &mut Random) -> String {
    let (levels, times) = (random.within(2..26), random.within(2..9));
    match random.within(0..6) {
        0 => tables(levels, |c| union(times, &format!("SELECT a FROM {c}"))),
        1 => tables(levels, |c| format!("SELECT x0.a FROM {}", list(times, " JOIN ", |n| format!("{c} AS x{n}")))),
        2 => tables(levels, |c| list(times, " UNION ", |n| format!("SELECT a + {n} AS a FROM {c}"))),
        3 => tables(levels, |c| format!("SELECT (SELECT max(a) FROM {c}) + (SELECT min(a) FROM {c}) AS a")),
        4 => format!("SELECT count(*) FROM d{}", random.within(0..DOUBLING)),
        _ => {
            let view = |random: &mut Random| format!("d{}", random.within(0..DOUBLING));
            let (one, other) = (view(random), view(random));
            format!(
                "SELECT count(*) FROM {one} AS x JOIN {other} AS y ON x.a = y.a JOIN n{} AS z",
                random.within(0..NESTED)
            )
        }
    }
}

fn endlessly(random: &mut Random) -> String {
    match random.within(0..8) {
        0 => endless(),
        1 => format!("SELECT count(*) FROM {}", list(random.within(3..8), ", ", |n| format!("t AS t{n}"))),
        2 => format!("SELECT x.a FROM {} ORDER BY y.b, x.a", "t AS x, t AS y, t AS z"),
        3 => "WITH RECURSIVE n(a) AS (SELECT 'x' UNION ALL SELECT a || a FROM n) SELECT max(length(a)) FROM n".into(),
        4 => "WITH RECURSIVE n(a) AS (SELECT 1 UNION SELECT a + 1 FROM n) SELECT count(*) FROM n".into(),
        5 => "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT x.a + 1 FROM n AS x, t) SELECT sum(a) FROM n".into(),
        6 => format!("SELECT group_concat(x.b || y.b || {}) FROM t AS x, t AS y, t AS z", random.within(0..9)),
        _ => format!("INSERT INTO t (b) {NUMBERS} SELECT hex(randomblob({})) FROM n", size(random, 10_000)),
    }
}

fn huge(random: &mut Random) -> String {
    let (bytes, more) = (size(random, 1 << 31), size(random, 1 << 16));
    match random.within(0..11) {
        0 => format!("SELECT hex(zeroblob({bytes}))"),
        1 => format!("SELECT length(hex(zeroblob({bytes})) || hex(zeroblob({bytes})))"),
        2 => format!("SELECT length(replace(hex(zeroblob({})), '00', hex(zeroblob({more}))))", bytes >> 12),
        3 => format!("SELECT length(printf('%.*c', {bytes}, 'x'))"),
        4 => format!("SELECT length(quote(randomblob({bytes})))"),
        5 => format!("INSERT INTO t (b) VALUES (zeroblob({bytes}))"),
        6 => format!("UPDATE t SET b = b || hex(zeroblob({more}))"),
        7 => format!("SELECT json('{}')", wrapped("[", "", "]", size(random, 100_000))),
        8 => {
            let pattern = "%a".repeat(size(random, 60) as usize);
            format!("SELECT replace(hex(zeroblob({more})), '0', 'a') LIKE '{pattern}b'")
        }
        9 => {
            format!("SELECT max(length(x.b || y.b)) FROM t AS x, t AS y WHERE length(hex(zeroblob({more} + x.a))) > 0")
        }
        _ => format!("SELECT length(group_concat(hex(zeroblob({more})))) FROM t"),
    }
}

fn broken(random: &mut Random) -> String {
    let table = pick(random, &["zero", "cycle", "far", "overflow"]);
    match random.within(0..10) {
        0 => format!("DELETE FROM {table}"),
        1 => format!("SELECT count(*), max(b) FROM {table}"),
        2 => format!("SELECT * FROM {table} ORDER BY a DESC"),
        3 => format!("UPDATE {table} SET b = b || 'x'"),
        4 => format!("DROP TABLE {table}"),
        5 => format!("INSERT INTO {table} (b) SELECT b FROM t"),
        6 => format!("DELETE FROM {table} WHERE a > {}", random.within(0..20_000)),
        7 => format!("CREATE INDEX i_{table} ON {table} (b, a)"),
        8 => format!("SELECT * FROM {table} WHERE a = {}", random.within(0..20_000)),
        _ => "PRAGMA integrity_check".into(),
    }
}

fn schema(random: &mut Random, number: u64) -> Vec<String> {
    let columns = |count| list(count, ", ", |n| format!("c{n}"));
    match random.within(0..6) {
        0 => vec![format!("CREATE TABLE w{number} ({})", columns(size(random, 5000)))],
        1 => {
            vec![format!("CREATE VIEW v{number} AS SELECT * FROM v{number}"), format!("SELECT count(*) FROM v{number}")]
        }
        2 => {
            let first = format!("CREATE VIEW v{number}_0 AS SELECT 1 AS a");
            let next = |n: u64| {
                let select = format!("SELECT a FROM v{number}_{}", n - 1);
                format!("CREATE VIEW v{number}_{n} AS {}", union(2, &select))
            };
            let count = random.within(2..30);
            let last = format!("SELECT count(*) FROM v{number}_{}", count - 1);
            std::iter::once(first).chain((1..count).map(next)).chain([last]).collect()
        }
        3 => vec![
            format!("CREATE TABLE r{number} (a)"),
            format!(
                "CREATE TRIGGER g{number} AFTER INSERT ON r{number} BEGIN INSERT INTO r{number} VALUES (NEW.a + 1); END"
            ),
            format!("INSERT INTO r{number} VALUES (1)"),
        ],
        4 => vec![format!("CREATE INDEX x{number} ON t ({})", list(size(random, 500), ", ", |n| format!("a + {n}")))],
        _ => {
            let check = list(size(random, 2000), " AND ", |n| format!("a <> {n}"));
            vec![
                format!("CREATE TABLE k{number} (a INTEGER CHECK ({check}))"),
                format!("INSERT INTO k{number} SELECT a + 1000000 FROM t"),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_statement_and_all_kinds_are_drawn() {
        let mut kinds = std::collections::BTreeSet::new();
        for number in 0..200 {
            let (one, other) = (random(7, number), random(7, number));
            assert_eq!((one.kind, &one.sql), (other.kind, &other.sql));
            kinds.insert(one.kind);
        }
        assert_eq!(kinds.len(), 7);
    }
}
