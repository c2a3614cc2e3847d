//! What SQLite finds in a database, in a form that is the same for databases that say the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::super::support::sqlite::Sqlite;

/// Rows without the rowids that nobody gave them, and how everything was made but for how that was written.
const LOOK: &str = r#"
import json, sqlite3, struct, sys
from hashlib import sha256
db = sqlite3.connect(sys.argv[1], isolation_level=None)
# Text that is none comes as it is.
db.text_factory = lambda raw: ("text", raw)
def plain(value):
    return value[1].decode("utf-8", "replace") if isinstance(value, tuple) else value
def ask(sql, *args):
    return [[plain(value) for value in row] for row in db.execute(sql, args)]
def quoted(name):
    return '"' + name.replace('"', '""') + '"'
def shown(value):
    if value is None: return "null"
    if isinstance(value, int): return f"i{value}"
    if isinstance(value, float): return f"f{value!r}"
    kind, raw = value if isinstance(value, tuple) else ("blob", value)
    return f"{kind} {raw!r}" if len(raw) < 60 else f"{kind} of {len(raw)} {sha256(raw).hexdigest()[:16]}"
def how(sql):
    if sql is None: return None
    for gone in ["IF NOT EXISTS", '"', "`", "[", "]", "(", ")"] + list(" \n\t\r"):
        sql = sql.replace(gone, "")
    return sql.lower()
found = {"integrity": [row[0] for row in ask("PRAGMA integrity_check")]}
for kind, name, table, sql in ask("SELECT type, name, tbl_name, sql FROM sqlite_schema"):
    if name.startswith(("sqlite_", "turso_", "__turso")) or table.startswith("turso_"):
        continue
    # The engine writes names of tables in small letters.
    small = name.lower()
    if kind != "table":
        found[f"{kind} {small}"] = [table.lower(), how(sql)]
        continue
    columns = ask("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?)", name)
    for column in columns:
        column[3] = how(column[3])
    indexes = []
    for index, unique, origin, partial in ask("SELECT name, \"unique\", origin, partial FROM pragma_index_list(?)", name):
        of = ask("SELECT name, desc, coll FROM pragma_index_xinfo(?) WHERE key = 1", index)
        indexes.append(["" if index.startswith("sqlite_auto") else index, unique, origin, partial, of])
    options = ask("SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND lower(name) = ?", small)
    found[f"table {small}"] = [columns, sorted(indexes, key=str), options]
    rows = [", ".join(shown(value) for value in row) for row in db.execute(f"SELECT * FROM {quoted(name)}")]
    found[f"rows of {small}"] = sorted(rows)
print(json.dumps(found), flush=True)
"#;

/// What there is, by name, as JSON.
pub type Found = BTreeMap<String, Value>;

/// What SQLite finds in a database that nobody has open. Its files stay as they are, WAL included.
pub fn look(database: &Path) -> Found {
    let copy = tempfile::tempdir().unwrap();
    let name = database.file_name().unwrap().to_str().unwrap();
    for ending in ["", "-wal", "-journal"] {
        let from = database.with_file_name(format!("{name}{ending}"));
        if from.exists() {
            fs::copy(from, copy.path().join(format!("{name}{ending}"))).unwrap();
        }
    }
    let mut sqlite = Sqlite::start(LOOK, &[copy.path().join(name).to_str().unwrap()]);
    let found: Found = serde_json::from_value(sqlite.said()).unwrap();
    sqlite.close();
    found
}

/// Fails with what differs.
#[track_caller]
pub fn assert_same(found: &Found, wanted: &Found, what: &str) {
    let mut differences = Vec::new();
    let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), ToString::to_string);
    for name in found.keys().chain(wanted.keys().filter(|name| !found.contains_key(*name))) {
        let (found, wanted) = (found.get(name), wanted.get(name));
        match (found, wanted) {
            (Some(Value::Array(found)), Some(Value::Array(wanted))) if found != wanted && name.starts_with("rows") => {
                let only = |one: &[Value], other: &[Value]| -> Vec<String> {
                    one.iter().filter(|row| !other.contains(row)).take(4).map(ToString::to_string).collect()
                };
                let (extra, missing) = (only(found, wanted), only(wanted, found));
                let counts = (found.len(), wanted.len());
                differences.push(format!("{name}: {counts:?}\n  found {extra:#?}\n  wanted {missing:#?}"));
            }
            _ if found != wanted => {
                differences.push(format!("{name}:\n  found {}\n  wanted {}", text(found), text(wanted)))
            }
            _ => {}
        }
    }
    assert!(differences.is_empty(), "{what}: {}", differences.join("\n"));
}
