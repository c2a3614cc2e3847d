//! Databases with 200 transactions of every kind, as the real SQLite writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::commitlog::Draw;
use super::frames::FrameLog;
use super::sqlite::{assert_sound, connect, dump, rows};

/// What a database went through.
pub struct History {
    /// All its frames, and the database before them.
    pub log: FrameLog,
    /// The content after each transaction, by the frame that ends it.
    pub dumps: BTreeMap<u64, String>,
}

impl History {
    /// The frames that end a transaction.
    pub fn ends(&self) -> Vec<u64> {
        self.dumps.keys().copied().collect()
    }

    /// Checks that a restored database is what SQLite had after the transaction that ends with this frame.
    #[track_caller]
    pub fn assert_is(&self, frame: u64, restored: &Path) {
        let db = connect(restored);
        assert_sound(&db);
        super::assert_bytes(dump(&db).as_bytes(), self.dumps[&frame].as_bytes(), format!("the dump of frame {frame}"));
        let said = |pragma: &str| rows(&db, &format!("PRAGMA {pragma}")).unwrap()[0][0].as_u64().unwrap();
        assert_eq!(fs::metadata(restored).unwrap().len(), said("page_count") * said("page_size"));
    }
}

/// A database under way.
struct Writer<'a> {
    db: Connection,
    draw: Draw,
    path: &'a Path,
    dumps: BTreeMap<u64, String>,
}

impl Writer<'_> {
    fn run(&self, sql: &str) {
        rows(&self.db, sql).unwrap();
    }

    /// What the WAL's index says: after that, the file may hold frames that were never committed.
    fn frames(&self) -> u64 {
        let index = fs::read(self.path.with_extension("db-shm")).unwrap_or_default();
        index.get(16..20).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()).into())
    }

    fn transaction(&mut self, sql: &str) {
        let before = self.frames();
        self.run(sql);
        let after = self.frames();
        assert!(after > before, "{sql}: {before} and {after} frames");
        self.dumps.insert(after, dump(&self.db));
    }

    fn text(&mut self, limit: u64) -> String {
        (0..self.draw.below(limit)).map(|_| b"abcdefgh "[self.draw.below(9) as usize] as char).collect()
    }

    /// More than the cache holds, so that frames which never become a transaction are written and overwritten.
    fn rolled_back(&self) {
        let rows: Vec<String> = (0..200).map(|n| format!("({n}, '{}')", "x".repeat(500))).collect();
        self.run(&format!("BEGIN; INSERT INTO t(a, b) VALUES {}; ROLLBACK", rows.join(", ")));
    }

    fn insert(&mut self, rows: impl Iterator<Item = u64>, limit: u64) {
        let rows: Vec<String> = rows.map(|a| format!("({a}, '{}')", self.text(limit))).collect();
        self.transaction(&format!("BEGIN; INSERT INTO t(a, b) VALUES {}; COMMIT", rows.join(", ")));
    }
}

/// Makes one, in a directory that nothing else uses; `base` says whether something is in it before the log begins.
pub fn history(page_size: u32, base: bool) -> History {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("app.db");
    let mut writer = Writer { db: connect(path), draw: Draw(page_size.into()), path, dumps: BTreeMap::new() };
    writer.run(&format!("PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF"));
    let mut before = Vec::new();
    if base {
        let rows: Vec<String> = (0..300).map(|n| format!("('{}')", format!("row {n}").repeat(n % 40))).collect();
        writer.run("CREATE TABLE old(id INTEGER PRIMARY KEY, body TEXT)");
        writer.run(&format!("INSERT INTO old(body) VALUES {}", rows.join(", ")));
        writer.run("PRAGMA wal_checkpoint(TRUNCATE)");
        before = fs::read(path).unwrap();
    }
    writer.run("PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 8");
    writer.transaction("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)");
    writer.transaction("CREATE INDEX by_a ON t(a)");
    for n in 0..198 {
        match n % 22 {
            9 => {
                let keys: Vec<u64> = (0..120).map(|_| writer.draw.below(1000)).collect();
                writer.insert(keys.into_iter(), 900);
            }
            13 => writer
                .transaction("BEGIN; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET a = a + 1 WHERE id % 7 = 0; COMMIT"),
            17 => writer.transaction(&format!("CREATE TABLE side{n}(x)")),
            18 => writer.transaction(&format!("DROP TABLE side{}", n - 1)),
            20 => writer.transaction("DELETE FROM t WHERE id % 2 = 0"),
            21 => writer.transaction("VACUUM"),
            kind => {
                if kind == 5 {
                    writer.rolled_back();
                }
                writer.insert([n; 3].into_iter(), 300);
            }
        }
    }
    writer.rolled_back();
    assert_eq!(writer.dumps.len(), 200);
    let mut log = FrameLog::parse(&fs::read(path.with_extension("db-wal")).unwrap(), before);
    log.frames.truncate(*writer.dumps.keys().last().unwrap() as usize);
    let history = History { log, dumps: writer.dumps };
    assert_eq!((history.log.commits(), history.log.header.page_size), (history.ends(), page_size));
    history
}
