//! A log that is gone while a mirror feeds it.

use std::fs;

use crate::support::process::{Mirror, arg, until};
use crate::{database, restored, scene, write};

#[test]
fn a_follower_warns_of_a_log_that_it_fed_and_that_is_gone_and_fills_it_again() {
    let (data, dir, mut service) = scene();
    let (app, url) = (dir.path().join("app.db"), service.url("app"));
    database(&app);
    let follower = Mirror::start(arg(&app), &url, &["--follow"]);
    until("it is copied", || restored(&url));
    service.kill();
    fs::remove_dir_all(data.path().join("logs/app")).unwrap();
    service.restart();
    follower.wait_for("a warning", |line| {
        let text = line["text"].as_str().unwrap_or_default();
        line["event"] == "warning" && text.contains(&url) && text.contains("that this mirror fed is there no more")
    });
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    until("it is copied again", || (restored(&url)?.len() == 2).then_some(()));
    let warnings = follower.lines().iter().filter(|line| line["event"] == "warning").count();
    assert_eq!(warnings, 1);
    assert_eq!(follower.terminate().code, Some(0));
}
