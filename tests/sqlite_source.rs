//! SQLite databases as sources: what a snapshot makes of every specimen, of damage, and of what is no database.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use logmirror::format::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use logmirror::offset::{BytePos, Offset};
use logmirror::sqlite::{DatabaseError, Place, Snapshot, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};
use support::sqlite::Sqlite;
use tempfile::TempDir;

/// The processes of [`Sqlite`], and that they can be had.
#[test]
fn sqlite_process() {
    support::sqlite::process();
}

#[derive(Debug, Deserialize)]
struct Expect {
    page_size: u32,
    valid_frames: u64,
    committed_frames: u64,
    transactions: u64,
    db_pages: u64,
    bytes: u64,
}

fn expectations() -> BTreeMap<String, Expect> {
    let text = fs::read_to_string(support::root().join("segments/wal/EXPECT.json")).unwrap();
    let all: BTreeMap<String, Expect> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 8);
    all
}

fn specimen(name: &str) -> PathBuf {
    support::root().join("segments/wal").join(name)
}

fn open(path: impl AsRef<Path>) -> Snapshot {
    Snapshot::open(path.as_ref()).unwrap()
}

fn base(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = vec![0; snapshot.base_bytes().unwrap() as usize + 1];
    let read = snapshot.read_base(0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

fn wal(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = vec![0; snapshot.wal_bytes() as usize + 1];
    let read = snapshot.read_wal(0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

/// The specimen `plain` with another WAL.
fn with_wal(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    fs::copy(specimen("plain.db"), &path).unwrap();
    fs::write(dir.path().join("app.db-wal"), bytes).unwrap();
    (dir, path)
}

/// How many frames and transactions the commits in the first `bytes` bytes of a sound WAL make.
fn committed(wal: &[u8], bytes: usize) -> (u64, u64) {
    let (mut frames, mut transactions) = (0, 0);
    for (index, frame) in wal[HEADER_LEN..bytes.max(HEADER_LEN)].chunks_exact(FRAME_HEADER_LEN + 4096).enumerate() {
        if FrameHeader::decode(frame.first_chunk().unwrap()).size != 0 {
            (frames, transactions) = (index as u64 + 1, transactions + 1);
        }
    }
    (frames, transactions)
}

#[test]
fn every_specimen_gets_the_verdict_expected_of_it() {
    for (name, expect) in expectations() {
        for file in [format!("{name}.db"), format!("{name}.db-wal")] {
            let snapshot = open(specimen(&file));
            assert_eq!(snapshot.page_size(), Some(expect.page_size), "{file}");
            assert_eq!(snapshot.valid_frames(), expect.valid_frames, "{file}");
            assert_eq!(snapshot.frames(), expect.committed_frames, "{file}");
            assert_eq!(snapshot.transactions(), expect.transactions, "{file}");
            assert_eq!(snapshot.db_pages(), expect.db_pages, "{file}");
            let whole = fs::read(specimen(&format!("{name}.db-wal"))).unwrap();
            assert_eq!(whole.len() as u64, expect.bytes);
            let frame_len = u64::from(expect.page_size) + 24;
            assert_eq!(snapshot.wal_bytes(), 32 + expect.committed_frames * frame_len);
            assert_eq!(wal(&snapshot), whole[..snapshot.wal_bytes() as usize]);
            assert_eq!(base(&snapshot), fs::read(specimen(&format!("{name}.db"))).unwrap());
            let left = whole.len() as u64 - snapshot.wal_bytes();
            let place = |frame: u64| Place { frame: Offset(frame), at: BytePos(32 + (frame - 1) * frame_len) };
            let verdict = match name.as_str() {
                "bit-flip" => Verdict::Damaged { invalid: place(6), sound: place(11) },
                _ if left == 0 => Verdict::Whole,
                _ => Verdict::Leftover { bytes: left },
            };
            assert_eq!(snapshot.verdict(), &verdict, "{file}");
            snapshot.check().unwrap();
        }
    }
}

/// Opens base and WAL with SQLite: how many frames it takes, whether it finds all in order, and everything it holds.
fn in_sqlite(base: &[u8], wal: &[u8]) -> (Value, Value, Value) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.db");
    fs::write(&path, base).unwrap();
    fs::write(dir.path().join("copy.db-wal"), wal).unwrap();
    let mut sqlite = Sqlite::open(&path);
    let check = sqlite.rows("PRAGMA integrity_check");
    let names = sqlite.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name");
    let rows = names.as_array().unwrap().iter().map(|name| {
        let name = name[0].as_str().unwrap();
        let columns =
            sqlite.rows(&format!("SELECT group_concat('quote(\"' || name || '\")') FROM pragma_table_info('{name}')"));
        sqlite.rows(&format!("SELECT {} FROM \"{name}\"", columns[0][0].as_str().unwrap()))
    });
    let rows = rows.collect();
    let frames = sqlite.rows("PRAGMA wal_checkpoint(PASSIVE)")[0][1].take();
    (frames, check, rows)
}

#[test]
fn sqlite_sees_in_a_snapshot_what_it_sees_in_the_source() {
    for (name, expect) in expectations() {
        let snapshot = open(specimen(&format!("{name}.db")));
        let source = fs::read(specimen(&format!("{name}.db-wal"))).unwrap();
        let copied = in_sqlite(&base(&snapshot), &wal(&snapshot));
        assert_eq!(copied, in_sqlite(&base(&snapshot), &source), "{name}");
        assert_eq!((&copied.0, &copied.1), (&json!(expect.committed_frames), &json!([["ok"]])), "{name}");
    }
}

#[test]
fn a_wal_may_stand_alone() {
    for (name, expect) in expectations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db-wal");
        fs::copy(specimen(&format!("{name}.db-wal")), &path).unwrap();
        let snapshot = open(&path);
        assert_eq!((snapshot.base_bytes(), snapshot.frames()), (None, expect.committed_frames), "{name}");
        assert_eq!((snapshot.page_size(), snapshot.db_pages()), (Some(expect.page_size), expect.db_pages), "{name}");
        assert_eq!(snapshot.folded().unwrap(), 0);
        assert_eq!(snapshot.read_base(0, &mut [0; 8]).unwrap(), 0);
        // The database it belongs to is not made up.
        let missing = Snapshot::open(&dir.path().join("app.db"));
        assert!(
            matches!(missing, Err(DatabaseError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound)
        );
    }
}

#[test]
fn nothing_of_the_source_changes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in support::files(&support::root().join("segments/wal")) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let times = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    let before = (support::files(dir.path()), times());
    for name in expectations().into_keys() {
        let snapshot = open(dir.path().join(format!("{name}.db")));
        let _read = (base(&snapshot), wal(&snapshot), snapshot.folded().unwrap());
        snapshot.check().unwrap();
    }
    assert_eq!((support::files(dir.path()), times()), before);
}

#[test]
fn a_wal_cut_anywhere_keeps_its_whole_commits() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    let frame = FRAME_HEADER_LEN + 4096;
    let near = |at: usize| at.saturating_sub(1)..(at + 2).min(whole.len() + 1);
    let boundaries = (0..=50).flat_map(|index| near(HEADER_LEN + index * frame));
    for bytes in boundaries.chain([0, 1, 31]).chain((0..whole.len()).step_by(9_973)) {
        let (_dir, path) = with_wal(&whole[..bytes]);
        let snapshot = open(&path);
        let (frames, transactions) = committed(&whole, bytes);
        assert_eq!((snapshot.frames(), snapshot.transactions()), (frames, transactions), "cut at {bytes}");
        assert_eq!(snapshot.valid_frames(), bytes.saturating_sub(HEADER_LEN) as u64 / frame as u64, "cut at {bytes}");
        let left = bytes as u64 - snapshot.wal_bytes();
        let verdict = if left == 0 { Verdict::Whole } else { Verdict::Leftover { bytes: left } };
        assert_eq!(snapshot.verdict(), &verdict, "cut at {bytes}");
        assert_eq!(snapshot.header().is_some(), bytes >= HEADER_LEN);
    }
}

#[test]
fn damage_before_a_sound_commit_is_no_ordinary_end() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    let frame = FRAME_HEADER_LEN + 4096;
    for index in (0..42).step_by(6).chain(42..50) {
        // Page number, size, salts, both checksums, page.
        for at in [3, 7, 8, 15, 16, 23, 24, 2000, frame - 1] {
            let mut bytes = whole.clone();
            let start = HEADER_LEN + index * frame;
            bytes[start + at] ^= 0x40;
            let (_dir, path) = with_wal(&bytes);
            let snapshot = open(&path);
            assert_eq!(snapshot.valid_frames(), index as u64, "frame {} byte {at}", index + 1);
            assert_eq!(snapshot.frames(), committed(&whole, start).0);
            // The last commit has nothing sound behind it, nor has one whose predecessor's checksum is gone.
            let hidden = index == 49 || index == 48 && (16..24).contains(&at);
            match snapshot.verdict() {
                Verdict::Damaged { invalid, sound } if !hidden => {
                    assert_eq!(invalid, &Place { frame: Offset(index as u64 + 1), at: BytePos(start as u64) });
                    assert!(sound.frame > invalid.frame && sound.at > invalid.at);
                }
                Verdict::Leftover { .. } if hidden => {}
                verdict => panic!("frame {} byte {at}: {verdict:?}", index + 1),
            }
        }
    }
}

#[test]
fn a_damaged_header_is_damage_and_zeros_are_none() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    for at in 0..HEADER_LEN {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let (_dir, path) = with_wal(&bytes);
        let snapshot = open(&path);
        assert!(matches!(snapshot.verdict(), Verdict::Header(_)), "byte {at}: {:?}", snapshot.verdict());
        assert_eq!((snapshot.header(), snapshot.frames(), snapshot.wal_bytes()), (None, 0, 0));
        // SQLite reads nothing of it either. (Of another version it would not even open it.)
        if !(4..8).contains(&at) {
            assert_eq!(in_sqlite(&base(&snapshot), &bytes).0, json!(0), "byte {at}");
        }
    }
    let (_dir, path) = with_wal(&[0; 5000]);
    assert_eq!(open(&path).verdict(), &Verdict::Leftover { bytes: 5000 });
}

#[test]
fn frames_of_a_transaction_that_was_given_up_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "PRAGMA cache_size = 2", "BEGIN"]);
    for _ in 0..40 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(3000))");
    }
    sqlite.run(&["ROLLBACK", "INSERT INTO t VALUES (1)"]);
    let snapshot = open(&path);
    assert!(snapshot.frames() < 10, "{}", snapshot.frames());
    assert!(matches!(snapshot.verdict(), Verdict::Leftover { bytes } if *bytes > 100_000), "{:?}", snapshot.verdict());
}

#[test]
fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let refused = |path: &Path| Snapshot::open(path).unwrap_err();
    assert!(matches!(refused(&path), DatabaseError::Io { .. }));
    assert!(matches!(refused(&dir.path().join("app.db-wal")), DatabaseError::Io { .. }));
    assert!(matches!(refused(dir.path()), DatabaseError::Io { .. }));
    let sound = fs::read(specimen("page512.db")).unwrap();
    for (at, byte) in [(0, b's'), (16, 3), (17, 1), (16, 1)] {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(refused(&path), DatabaseError::NotADatabase { .. }), "byte {at}");
    }
    for bytes in [&sound[..1], &sound[..99], &[0; 4096]] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(refused(&path), DatabaseError::NotADatabase { .. }));
    }
    // A database without a page is one.
    fs::write(&path, b"").unwrap();
    let empty = open(&path);
    assert_eq!((empty.base_bytes(), empty.page_size(), empty.db_pages()), (Some(0), None, 0));
    // But its WAL would be deleted.
    fs::copy(specimen("plain.db-wal"), dir.path().join("app.db-wal")).unwrap();
    assert!(matches!(refused(&path), DatabaseError::Orphan { frames: 50, .. }));
    fs::copy(specimen("page512.db"), &path).unwrap();
    assert!(matches!(refused(&path), DatabaseError::PageSize { database: 512, wal: 4096, .. }));
    assert!(!refused(&path).is_transient());
}

/// The program, with these arguments: its exit code, and all that it printed.
fn program(args: &[&str]) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_logmirror"));
    let output = command.env_remove("LOGMIRROR_TOKEN").args(args).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn a_database_file_that_ends_before_its_last_page_is_damaged_unless_sqlite_sees_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t(a)"]);
    for _ in 0..40 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(3000))");
    }
    sqlite.close();
    let sound = fs::read(&path).unwrap();
    let pages = (sound.len() / 4096) as u32;
    assert!(pages > 20);
    let place = path.to_str().unwrap();
    for cut in [1, 3000, 4096, 4097, 9000] {
        let bytes = sound.len() - cut;
        fs::write(&path, &sound[..bytes]).unwrap();
        let page = (bytes / 4096 + 1) as u32;
        let found = open(&path).cut().unwrap().unwrap();
        assert_eq!((found.page, found.at, found.pages), (page, BytePos(u64::from(page - 1) * 4096), pages));
        for command in ["verify", "status"] {
            let (code, text) = program(&[command, place]);
            assert!(
                code == 1 && text.contains(&format!("page {page}, from byte {}", found.at)),
                "{cut}: {code}: {text}"
            );
            assert!(text.contains("damaged"), "{text}");
        }
        let sink = dir.path().join("copy");
        let (code, text) = program(&["mirror", place, sink.to_str().unwrap()]);
        assert!(code == 1 && text.contains(&format!("page {page}, from byte")), "{cut}: {code}: {text}");
        assert!(!text.contains("network") && !sink.join("base.db").exists(), "{text}");
    }
    // The size in a header that was not written with the last change does not count, and SQLite fills such a page up.
    let mut stale = sound[..sound.len() - 3000].to_vec();
    stale[27] ^= 1;
    fs::write(&path, &stale).unwrap();
    assert_eq!(open(&path).cut().unwrap(), None);
    // A checkpoint that broke off: what the file lacks is in the WAL.
    fs::write(&path, &sound).unwrap();
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA wal_autocheckpoint = 0", "CREATE TABLE u(a)"]);
    for _ in 0..10 {
        sqlite.rows("INSERT INTO u VALUES (randomblob(3000))");
    }
    let copy = dir.path().join("broken.db");
    let wal = |path: &Path| format!("{}-wal", path.display());
    fs::copy(&path, &copy).unwrap();
    fs::copy(wal(&path), wal(&copy)).unwrap();
    assert!(open(&copy).db_pages() > u64::from(pages));
    assert_eq!(open(&copy).cut().unwrap(), None, "the new pages are in the WAL");
    assert_eq!(program(&["verify", copy.to_str().unwrap()]).0, 0);
    fs::write(&copy, &sound[..sound.len() - 9000]).unwrap();
    let found = open(&copy).cut().unwrap().unwrap();
    assert_eq!(found.page, ((sound.len() - 9000) / 4096 + 1) as u32, "that one is in no frame");
}

#[test]
fn a_link_leads_to_the_wal_of_the_file_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(specimen("plain.db"), &link).unwrap();
    assert_eq!(open(&link).frames(), 50);
}

#[test]
fn the_readme_says_of_each_specimen_what_the_tests_expect() {
    let readme = fs::read_to_string(support::root().join("segments/wal/README.md")).unwrap();
    for (name, expect) in expectations() {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).map(cells);
        let row = row.unwrap_or_else(|| panic!("no row for {name}"));
        let numbers = [expect.page_size.into(), expect.valid_frames, expect.committed_frames, expect.transactions];
        let expected: Vec<String> = numbers.iter().chain([&expect.db_pages]).map(u64::to_string).collect();
        assert_eq!(row[2..7], expected, "{name}");
    }
}

/// Reads of this thread so far.
fn reads() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    count.unwrap().parse().unwrap()
}

#[test]
fn no_question_about_a_snapshot_reads_its_wal_frame_by_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (x)", "BEGIN"]);
    for _ in 0..2000 {
        sqlite.rows("INSERT INTO t VALUES (randomblob(3000))");
    }
    sqlite.run(&["COMMIT"]);
    let snapshot = open(&path);
    assert!(snapshot.frames() > 2000);
    let before = reads();
    // The file has one page, of which a few frames are.
    assert_eq!((snapshot.cut().unwrap(), snapshot.folded().unwrap()), (None, 0));
    let count = reads() - before;
    assert!(count < snapshot.frames() / 20, "{count} reads for {} frames", snapshot.frames());
}

/// What a snapshot says of its WAL.
fn of_wal(snapshot: &Snapshot) -> impl PartialEq + std::fmt::Debug + use<> {
    let sizes = (snapshot.frames(), snapshot.valid_frames(), snapshot.transactions(), snapshot.db_pages());
    (snapshot.end(), sizes, snapshot.verdict().clone(), snapshot.cut().unwrap(), wal(snapshot))
}

/// Opens a database after what an earlier snapshot knew, which must make no difference.
fn open_after(path: &Path, before: &Snapshot) -> Snapshot {
    let again = Snapshot::open_after(path, before.known_wal()).unwrap();
    assert_eq!(of_wal(&again), of_wal(&open(path)));
    again
}

#[test]
fn a_later_snapshot_reads_only_what_was_added_to_the_wal() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    let frame = FRAME_HEADER_LEN + 4096;
    for known in 0..=50 {
        let (dir, path) = with_wal(&whole[..HEADER_LEN + known * frame]);
        let before = open(&path);
        let log = dir.path().join("app.db-wal");
        // The same file, not another in its place.
        let mut now = whole.clone();
        fs::OpenOptions::new().write(true).open(&log).unwrap().write_all_at(&now, 0).unwrap();
        assert_eq!(open_after(&path, &before).frames(), 50);
        if before.frames() == 0 {
            continue;
        }
        now[HEADER_LEN + 2000] ^= 1;
        fs::OpenOptions::new().write(true).open(&log).unwrap().write_all_at(&now, 0).unwrap();
        let again = Snapshot::open_after(&path, before.known_wal()).unwrap();
        assert_eq!((again.frames(), again.transactions()), (50, 21), "known up to {known}: frame 1 is not read again");
        assert_eq!(open(&path).frames(), 0);
    }
}

#[test]
fn a_later_snapshot_finds_damage_after_what_was_known() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    let frame = FRAME_HEADER_LEN + 4096;
    for (known, damaged) in [(0, 0), (10, 20), (20, 20), (21, 30), (30, 45)] {
        let (dir, path) = with_wal(&whole[..HEADER_LEN + known * frame]);
        let (before, mut now) = (open(&path), whole.clone());
        now[HEADER_LEN + damaged * frame + 100] ^= 1;
        let log = fs::OpenOptions::new().write(true).open(dir.path().join("app.db-wal")).unwrap();
        log.write_all_at(&now, 0).unwrap();
        let again = open_after(&path, &before);
        assert!(matches!(again.verdict(), Verdict::Damaged { .. }), "{known}, {damaged}: {:?}", again.verdict());
        assert_eq!(again.valid_frames(), damaged as u64);
    }
}

#[test]
fn a_later_snapshot_believes_nothing_of_a_wal_that_is_another_or_was_cut() {
    let whole = fs::read(specimen("plain.db-wal")).unwrap();
    let other = fs::read(specimen("restarted.db-wal")).unwrap();
    let frame = FRAME_HEADER_LEN + 4096;
    let cut = |frames: usize| whole[..HEADER_LEN + frames * frame].to_vec();
    // Frames of the same WAL, one of which before the last known was made up: its checksum does not run on.
    let mut made_up = whole.clone();
    made_up[HEADER_LEN + 49 * frame + 20] ^= 1;
    let mut under_other_salts = whole.clone();
    under_other_salts[..HEADER_LEN].copy_from_slice(&other[..HEADER_LEN]);
    for (name, now) in [
        ("cut", cut(30)),
        ("cut in a frame", whole[..HEADER_LEN + 30 * frame + 77].to_vec()),
        ("cut to its header", cut(0)),
        ("cut to nothing", Vec::new()),
        ("another", other),
        ("its header is another's", under_other_salts),
        ("the last known frame is another", made_up),
    ] {
        for in_place in [true, false] {
            let (dir, path) = with_wal(&whole);
            let (before, log) = (open(&path), dir.path().join("app.db-wal"));
            if !in_place {
                fs::rename(&log, dir.path().join("away")).unwrap();
            }
            fs::write(&log, &now).unwrap();
            let again = Snapshot::open_after(&path, before.known_wal());
            match (again, Snapshot::open(&path)) {
                (Ok(again), Ok(fresh)) => assert_eq!(of_wal(&again), of_wal(&fresh), "{name}, {in_place}"),
                (again, fresh) => {
                    assert_eq!(again.unwrap_err().to_string(), fresh.unwrap_err().to_string(), "{name}, {in_place}");
                }
            }
        }
    }
}

#[test]
fn a_later_snapshot_follows_a_wal_that_its_application_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut sqlite = Sqlite::open(&path);
    sqlite.run(&["PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE t (x)"]);
    let mut before = open(&path);
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE", "PASSIVE"] {
        for count in [1, 3] {
            for _ in 0..count {
                sqlite.rows("INSERT INTO t VALUES (randomblob(9000))");
            }
            let now = open_after(&path, &before);
            assert!(now.frames() > 0);
            before = now;
        }
        // Locks of a snapshot would be in the way.
        let known = before.known_wal().cloned();
        drop(before);
        sqlite.rows(&format!("PRAGMA wal_checkpoint({mode})"));
        sqlite.rows("INSERT INTO t VALUES (1)");
        before = Snapshot::open_after(&path, known.as_ref()).unwrap();
        assert_eq!(of_wal(&before), of_wal(&open(&path)), "{mode}");
    }
    // After a checkpoint the file has more pages, and what was collected for the shorter one still holds.
    drop(before);
    sqlite.close();
    assert_eq!(open(&path).frames(), 0);
}
