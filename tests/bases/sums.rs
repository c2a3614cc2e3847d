//! The checksums of a log's pages, and what it notes of the database that feeds it.

use logmirror::sqlite::page_sums::PageSums;
use serde_json::{Value, json};

use crate::support::frames::FrameLog;
use crate::support::sqlite::connect;
use crate::travel::{OnTheWay, in_front_of};
use crate::{log_of, said, serve, service_with};

#[test]
fn page_sums_are_those_of_the_database_as_of_the_last_commit() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let empty = logmirror::format::database::empty(4096);
    for (base, frames, state, next) in
        [(&empty, Vec::new(), empty.clone(), 1), (&log.base, log.stream(&[]), log.state(2), 3_u64)]
    {
        let data = data.path().join(next.to_string());
        std::fs::create_dir(&data).unwrap();
        let service = service_with(&data, base, &frames);
        let answer = service.get("/logs/app/page-sums?key=77");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (head, sums) = answer.body.split_at(16);
        let pages = (state.len() / 4096) as u32;
        let expected = [&next.to_le_bytes()[..], &4096_u32.to_le_bytes(), &pages.to_le_bytes()].concat();
        assert_eq!(head, expected);
        let of = PageSums::new(77);
        let wanted: Vec<u8> = state.chunks(4096).flat_map(|page| of.sum_of(page).to_le_bytes()).collect();
        assert_eq!(sums, wanted);
        // Another key, other sums.
        assert_ne!(service.get("/logs/app/page-sums?key=78").body, answer.body);
    }
}

#[test]
fn page_sums_of_fewer_pages_than_there_are_make_no_wrong_replica() {
    for (less, proven, framed) in [
        (1, true, true),
        (1, true, false),
        (99, true, true),
        (99, true, false),
        (1, false, true),
        (1, false, false),
        (99, false, true),
        (99, false, false),
    ] {
        let what = OnTheWay::FewerPages { less, proven };
        let data = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::read(data.path().join(name)).unwrap();
        let app = connect(&data.path().join("app.db"));
        app.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x)").unwrap();
        let insert = || app.execute_batch("INSERT INTO t SELECT randomblob(9000) FROM (VALUES (1), (2))").unwrap();
        let checkpoint = || app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        checkpoint();
        let base = file("app.db");
        insert();
        let service = service_with(data.path(), &base, &FrameLog::parse(&file("app.db-wal"), base.clone()).stream(&[]));
        checkpoint();
        let replica = data.path().join("replica.db");
        let pull = |url: &str| said(&["mirror", url, replica.to_str().unwrap()]);
        let url = service.url("/logs/app");
        let (code, text) = pull(&url);
        assert_eq!(code, 0, "{text}");
        // Another generation, with more pages: in frames, or in its base.
        insert();
        let wal = file("app.db-wal");
        checkpoint();
        let wanted = file("app.db");
        if framed {
            assert_eq!(service.call("POST", "/logs/app/checkpoint", "", b"").status, 200);
            let frames = FrameLog::parse(&wal, Vec::new()).stream(&[]);
            assert_eq!(service.append("app", "?from=1", &frames).status, 200);
        } else {
            assert_eq!(service.call("PUT", "/logs/app/generations/2", "", &wanted).status, 201);
        }
        let is_right = || std::fs::read(&replica).unwrap()[4096..] == wanted[4096..];
        let (code, text) = pull(&in_front_of(&service, what));
        assert!(code == 3 || is_right(), "{what:?}, in a frame: {framed}: {code}: {text}");
        let (code, text) = pull(&url);
        assert!(code == 0 && is_right(), "{what:?}, in a frame: {framed}: {code}: {text}");
    }
}

#[test]
fn what_feeds_a_log_is_noted_durably_and_only_where_it_makes_sense() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    let note = |generation: u64| {
        json!({"identity": "host:/srv/app.db", "generation": generation, "offset": 1, "salts": [4_000_000_000_u32, 2],
            "frames": 0, "checksum": "0123456789abcdef", "log_checksum": "0123456789abcdef"})
    };
    let service = service_with(data.path(), &log.base, &[]);
    assert_eq!(service.status("app")["source"], Value::Null);
    let answer = service.put("/logs/app/source", &note(1).to_string());
    assert_eq!((answer.status, &answer.json()["source"]), (200, &note(1)));
    assert_eq!(service.put("/logs/app/source", &note(2).to_string()).refusal(), (409, "ended".to_owned()));
    assert_eq!(service.put("/logs/app/source", r#"{"identity":"x"}"#).status, 400);
    service.create("commits");
    assert_eq!(service.put("/logs/commits/source", &note(1).to_string()).refusal().1, "format");
    assert_eq!(service.get("/logs/commits/page-sums?key=1").refusal().1, "format");
    assert_eq!(service.get("/logs/app/page-sums").status, 400);
    drop(service);
    assert_eq!(serve(data.path()).status("app")["source"], note(1));
}
