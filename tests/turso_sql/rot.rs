//! A bit that turned in a frame at rest: what needs that frame is refused, and nothing older is passed for the database.

use std::fs;
use std::sync::Arc;

use logmirror::repo::FsRepo;
use serde_json::json;

use super::execute;
use super::support::service::{Service, Setup};

#[test]
fn a_frame_that_turned_at_rest_is_an_error_for_sql_and_for_pulls_and_never_an_older_database() {
    const ROWS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let start = || Service::start_with(Arc::new(FsRepo::open(dir.path()).unwrap()), Setup::default());
    let sql = |service: &Service, sql: &str| {
        let body = json!({"requests": [execute(sql)]}).to_string();
        service.call("POST", "/logs/app/v2/pipeline", "content-type: application/json\r\n", body.as_bytes())
    };
    let pull = |service: &Service| service.call("POST", "/logs/app/pull-updates", "", b"");
    let service = start();
    service.put("/logs/app", r#"{"format":"wal"}"#);
    sql(&service, "CREATE TABLE t (n INTEGER PRIMARY KEY, v)");
    for row in 0..ROWS {
        let answer = sql(&service, &format!("INSERT INTO t VALUES ({row}, 'balance')"));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    service.stop();
    let wal = dir.path().join("logs/app/0000000001/00000000000000000001.wal");
    let whole = fs::read(&wal).unwrap();
    let frames = (whole.len() - 32) / 4120;
    for frame in [frames / 2, frames - 1] {
        let mut rotten = whole.clone();
        rotten[32 + frame * 4120 + 24 + 4000] ^= 1;
        fs::write(&wal, &rotten).unwrap();
        let service = start();
        let answer = sql(&service, "SELECT count(*) FROM t");
        assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "frame {frame}");
        let answer = sql(&service, "INSERT INTO t VALUES (99, 'after')");
        assert_eq!(answer.refusal(), (500, "corrupt-log".to_owned()), "frame {frame}");
        // The last of its page, so that a pull brings it.
        if frame == frames - 1 {
            assert_ne!(pull(&service).status, 200, "frame {frame}");
        }
        service.stop();
        fs::write(&wal, &whole).unwrap();
        let service = start();
        let answer = sql(&service, "SELECT count(*) FROM t");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains(&format!("\"{ROWS}\"")), "{}", answer.text());
        assert_eq!(pull(&service).status, 200);
        service.stop();
    }
}
