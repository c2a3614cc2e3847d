//! A base is the database that SQLite sees in it, and every byte of it is kept.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::sqlite::{connect, dump, rows};
use crate::{base_of, flip, said, serve, service_with};

const ROWS: &str = "INSERT INTO t(body) VALUES ('one more'), (zeroblob(9000)), ('and another')";

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A database of 12 pages or so, with an index and some free pages.
fn made(journal: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let db = connect(&dir.path().join("app.db"));
    db.execute_batch(&format!(
        "PRAGMA page_size = 4096; PRAGMA journal_mode = {journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, body); CREATE INDEX by_body ON t(body);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO t(body) SELECT printf('row %d of many %s', i, hex(zeroblob(20))) FROM n;
         DELETE FROM t WHERE id BETWEEN 100 AND 180",
    ))
    .unwrap();
    db.close().unwrap();
    fs::read(dir.path().join("app.db")).unwrap()
}

/// Files in which the size in the header is not what it seems, or with more bytes than pages, by what they are.
fn odd() -> Vec<(&'static str, Vec<u8>)> {
    let base = made("wal");
    let pages = number(&base, 28);
    assert_eq!((base.len(), number(&base, 24)), (pages as usize * 4096, number(&base, 92)));
    assert!(pages > 8);
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut edited = base.clone();
        edit(&mut edited);
        edited
    };
    let stale = |bytes: &mut Vec<u8>, size: u32| {
        put(bytes, 28, size);
        let counter = number(bytes, 24);
        put(bytes, 24, counter + 3);
    };
    vec![
        ("it has a rollback journal", made("delete")),
        ("the size is 0, as before 3.7", edited(&|bytes| put(bytes, 28, 0))),
        ("the size is stale and too small", edited(&|bytes| stale(bytes, pages - 3))),
        ("the size is stale and too large", edited(&|bytes| stale(bytes, pages + 9))),
        ("the size is right and bytes follow", edited(&|bytes| bytes.extend([7; 100]))),
        ("the size is right and a page and more follow", edited(&|bytes| bytes.extend([7; 5000]))),
        (
            "the size is 0 and a page follows",
            edited(&|bytes| {
                put(bytes, 28, 0);
                bytes.extend([0; 4096]);
            }),
        ),
        (
            "the size is stale and a part of a page follows",
            edited(&|bytes| {
                stale(bytes, pages - 3);
                bytes.extend([0; 4000]);
            }),
        ),
    ]
}

fn opened(path: &Path, bytes: &[u8]) -> Connection {
    fs::write(path, bytes).unwrap();
    connect(path)
}

/// The content, and what SQLite's check says: pages that only the length of the file counts are of no use to it.
fn content(db: &Connection) -> (String, Vec<Vec<Value>>) {
    (dump(db), rows(db, "PRAGMA integrity_check").unwrap())
}

/// What SQLite makes of such a file, before and after more rows.
fn of_sqlite(path: &Path, bytes: &[u8]) -> [(String, Vec<Vec<Value>>); 2] {
    let db = opened(path, bytes);
    let before = content(&db);
    db.execute_batch(ROWS).unwrap();
    [before, content(&db)]
}

#[test]
fn odd_headers_are_read_as_sqlite_reads_them_by_put_sql_fold_and_restore() {
    for (what, bytes) in odd() {
        let data = tempfile::tempdir().unwrap();
        let [before, after] = of_sqlite(&data.path().join("sqlite.db"), &bytes);
        let service = service_with(data.path(), &bytes, &[]);
        let url = service.url("/logs/app");
        assert!(service.get("/logs/app/base").body == bytes, "{what}: every byte is kept");
        let restored = |name: &str| {
            let out = data.path().join(name);
            let (code, text) = said(&["restore", &url, out.to_str().unwrap()]);
            assert_eq!(code, 0, "{what}: {text}");
            out
        };
        let out = restored("before.db");
        assert!(fs::read(&out).unwrap() == bytes, "{what}");
        assert_eq!(content(&connect(&out)), before, "{what}");
        let requests = json!({"requests": [{"type": "execute", "stmt": {"sql": ROWS}}]}).to_string();
        let answer = service.call("POST", "/logs/app/v2/pipeline", "", requests.as_bytes());
        assert_eq!(answer.json()["results"][0]["type"], "ok", "{what}: {}", answer.text());
        for name in ["inserted.db", "rolled.db"] {
            let db = connect(&restored(name));
            assert_eq!(content(&db), after, "{what}: {name}");
            // It goes on.
            db.execute_batch(ROWS).unwrap();
            assert_eq!(content(&db).1, after.1, "{what}: {name}");
            let rolled = service.call("POST", "/logs/app/checkpoint", "", b"");
            assert_eq!(rolled.status, 200, "{what}: {}", rolled.text());
        }
        drop(service);
        let (code, text) = said(&[
            "restore",
            data.path().join("logs/app").to_str().unwrap(),
            "--generation=1",
            data.path().join("local.db").to_str().unwrap(),
        ]);
        assert_eq!(code, 0, "{what}: {text}");
        assert_eq!(content(&connect(&data.path().join("local.db"))), after, "{what}");
    }
}

#[test]
fn sql_on_a_base_with_a_flipped_bit_is_refused_and_answers_no_wrong_row() {
    let data = tempfile::tempdir().unwrap();
    let base = made("wal");
    drop(service_with(data.path(), &base, &[]));
    let at = base.windows(9).position(|bytes| bytes == b"row 50 of").unwrap();
    flip(&base_of(data.path()), at);
    let service = serve(data.path());
    let select = |sql: &str| {
        let requests = json!({"requests": [{"type": "execute", "stmt": {"sql": sql}}]}).to_string();
        service.call("POST", "/logs/app/v2/pipeline", "", requests.as_bytes())
    };
    assert_eq!(select("SELECT 1").json()["results"][0]["type"], "ok", "nothing of it is read");
    let answer = select("SELECT body FROM t");
    assert!(answer.status != 200 || answer.json()["results"][0]["type"] == "error", "{}", answer.text());
    assert_eq!(service.status("app")["state"], "damaged");
    for sql in ["SELECT body FROM t", "INSERT INTO t(body) VALUES ('x')"] {
        assert_eq!(select(sql).refusal(), (500, "corrupt-log".to_owned()));
    }
    fs::write(base_of(data.path()), &base).unwrap();
    let answer = select("SELECT count(*) FROM t");
    assert_eq!(answer.json()["results"][0]["response"]["result"]["rows"][0][0]["value"], "219", "{}", answer.text());
}

#[test]
fn a_database_that_ends_before_the_size_that_its_header_says_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let service = serve(data.path());
    assert_eq!(service.put("/logs/app", r#"{"format":"wal"}"#).status, 201);
    let base = made("wal");
    for cut in [1, 100, 4096] {
        let answer = service.call("PUT", "/logs/app/generations/1", "", &base[..base.len() - cut]);
        assert_eq!(answer.refusal(), (422, "corrupt".to_owned()), "{}", answer.text());
        assert!(answer.text().contains("cut"), "{}", answer.text());
    }
}
