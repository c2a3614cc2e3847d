//! What SQLite finds in a database, in a form that is the same for databases that say the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};

use super::super::support::sqlite::{connect, rows};

/// Rows without the rowids that nobody gave them, and how everything was made but for how that was written.
fn found_in(db: &Connection) -> rusqlite::Result<Found> {
    let mut found = Found::new();
    let integrity: Vec<Value> = rows(db, "PRAGMA integrity_check")?.into_iter().flatten().collect();
    found.insert("integrity".to_owned(), json!(integrity));
    for entry in rows(db, "SELECT type, name, tbl_name, sql FROM sqlite_schema")? {
        let [kind, name, table] = [0, 1, 2].map(|at: usize| entry[at].as_str().unwrap_or_default());
        let ours = ["sqlite_", "turso_", "__turso"].iter().any(|start| name.starts_with(start));
        if ours || table.starts_with("turso_") {
            continue;
        }
        // The engine writes names of tables in small letters.
        let small = name.to_lowercase();
        if kind != "table" {
            found.insert(format!("{kind} {small}"), json!([table.to_lowercase(), how(&entry[3])]));
            continue;
        }
        let text = format!("'{}'", name.replace('\'', "''"));
        let columns = "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo";
        let mut columns = rows(db, &format!("{columns}({text})"))?;
        columns.iter_mut().for_each(|column| column[3] = how(&column[3]));
        let mut indexes = Vec::new();
        let list = format!("SELECT name, \"unique\", origin, partial FROM pragma_index_list({text})");
        for mut index in rows(db, &list)? {
            let index_name = index[0].as_str().unwrap_or_default().to_owned();
            let quoted = index_name.replace('\'', "''");
            let of = format!("SELECT name, desc, coll FROM pragma_index_xinfo('{quoted}') WHERE key = 1");
            index.push(json!(rows(db, &of)?));
            if index_name.starts_with("sqlite_auto") {
                index[0] = json!("");
            }
            indexes.push(index);
        }
        indexes.sort_by_key(|index| json!(index).to_string());
        let lower = small.replace('\'', "''");
        let options = "SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND lower(name) =";
        let options = rows(db, &format!("{options} '{lower}'"))?;
        found.insert(format!("table {small}"), json!([columns, indexes, options]));
        let mut statement = db.prepare(&format!("SELECT * FROM \"{}\"", name.replace('"', "\"\"")))?;
        let count = statement.column_count();
        let shown = statement.query_map([], |row| {
            let values = (0..count).map(|at| Ok(shown(row.get_ref(at)?)));
            Ok(values.collect::<rusqlite::Result<Vec<_>>>()?.join(", "))
        })?;
        let mut shown = shown.collect::<rusqlite::Result<Vec<_>>>()?;
        shown.sort();
        found.insert(format!("rows of {small}"), json!(shown));
    }
    Ok(found)
}

/// A value, with its type; of a long one a checksum.
fn shown(value: ValueRef<'_>) -> String {
    let (kind, bytes) = match value {
        ValueRef::Null => return "null".to_owned(),
        ValueRef::Integer(number) => return format!("i{number}"),
        ValueRef::Real(number) => return format!("f{number:?}"),
        // Text that is none comes as it is.
        ValueRef::Text(bytes) => ("text", bytes),
        ValueRef::Blob(bytes) => ("blob", bytes),
    };
    match bytes.len() {
        0..60 => format!("{kind} {}", bytes.escape_ascii()),
        long => format!("{kind} of {long} {:08x} {:08x}", crc32c::crc32c(bytes), crc32fast::hash(bytes)),
    }
}

/// How something was made, but for spaces, quotes and small letters.
fn how(sql: &Value) -> Value {
    let Some(sql) = sql.as_str() else { return sql.clone() };
    let sql = sql.replace("IF NOT EXISTS", "").to_lowercase();
    json!(sql.replace(['"', '`', '[', ']', '(', ')', ' ', '\n', '\t', '\r'], ""))
}

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
    found_in(&connect(&copy.path().join(name))).unwrap()
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
