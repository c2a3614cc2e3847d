//! A database file with several names: SQLite looks for the WAL beside the name that it was opened by.

use std::fs;

use crate::support::process::{arg, mirror};
use crate::support::sqlite::Sqlite;
use crate::{database, done, is_refused, logmirror, restored, scene};

#[test]
fn a_database_whose_wal_is_beside_another_name_is_never_taken_for_whole() {
    let (_data, dir, service) = scene();
    fs::create_dir(dir.path().join("far")).unwrap();
    let [app, near, far] = ["app.db", "near.db", "far/far.db"].map(|name| dir.path().join(name));
    let mut sqlite = Sqlite::open(&app);
    sqlite.run(&["PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"]);
    sqlite.run(&["PRAGMA wal_checkpoint(TRUNCATE)"]);
    fs::hard_link(&app, &near).unwrap();
    fs::hard_link(&app, &far).unwrap();
    sqlite.rows("INSERT INTO t VALUES (2)");
    for (link, words) in [(&near, arg(&app).to_owned()), (&far, format!("process {}", sqlite.id()))] {
        let url = service.url(link.file_stem().unwrap().to_str().unwrap());
        let ended = mirror(arg(link), &url, &[]);
        is_refused(&ended, 3, &["hard links", &words]);
        assert_eq!(restored(&url), None, "nothing was sent");
        for command in ["verify", "status"] {
            let output = logmirror(&[command, arg(link)]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(!said.contains("whole") && said.contains(&words), "{said}");
        }
    }
    // By its own name it is whole, with a warning.
    for command in ["verify", "status"] {
        assert!(done(&[command, arg(&app)]).contains("hard links"));
    }
    let ended = mirror(arg(&app), service.url("app"), &[]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.last("warning")["text"].as_str().unwrap().contains("hard links"), "{ended:?}");
    assert_eq!(restored(&service.url("app")).unwrap().len(), 2);
    sqlite.close();
    // And so it is by the others when nobody has it open.
    let ended = mirror(arg(&far), service.url("later"), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.last("warning")["text"].as_str().unwrap().contains("hard links"), "{ended:?}");
    assert_eq!(restored(&service.url("later")).unwrap().len(), 2);
}

#[test]
fn a_database_with_one_name_is_not_warned_of() {
    let (_data, dir, service) = scene();
    let app = dir.path().join("app.db");
    database(&app);
    assert!(!done(&["verify", arg(&app)]).contains("warning"));
    assert!(!mirror(arg(&app), service.url("app"), &[]).lines.iter().any(|line| line["event"] == "warning"));
}
