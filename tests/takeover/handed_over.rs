//! Logs that were handed over to their clients, and the relays of before: each way that a message names works.

use serde_json::json;

use crate::support::process::{Service, arg, mirror};
use crate::{database, done, is_refused, restored, scene, source_of, status, write};

/// Runs SQL on a log as a client.
fn client_writes(service: &Service, log: &str, sql: &str) {
    let body = json!({"requests": [{"type": "execute", "stmt": {"sql": sql}}, {"type": "close"}]});
    let url = format!("{}/v2/pipeline", service.url(log));
    let answer = service.call(async {
        let answer = reqwest::Client::new().post(&url).body(body.to_string()).send().await.unwrap();
        answer.text().await.unwrap()
    });
    assert!(answer.contains("\"ok\""), "{answer}");
}

fn holds(url: &str, rows: &[&str]) {
    let wanted: Vec<Vec<serde_json::Value>> = rows.iter().map(|row| vec![json!(row)]).collect();
    assert_eq!(restored(url), Some(wanted), "{url}");
}

#[test]
fn a_relay_takes_a_log_back_from_its_clients_as_its_message_says() {
    let (_data, dir, service) = scene();
    let other = tempfile::tempdir().unwrap();
    let other = Service::start(other.path());
    let (app, from, to) = (dir.path().join("app.db"), service.url("app"), other.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &from]);
    done(&["mirror", &from, &to]);
    done(&["promote", &to]);
    // They wrote nothing.
    is_refused(&mirror(&from, &to, &[]), 1, &["handed over to its clients", "--adopt"]);
    done(&["mirror", &from, &to, "--adopt"]);
    assert_eq!(source_of(&other, "app"), from);
    done(&["promote", &to]);
    client_writes(&other, "app", "INSERT INTO t VALUES ('client')");
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", arg(&app), &from]);
    for flags in [&["--adopt"][..], &["--adopt", "--follow"]] {
        let ended = mirror(&from, &to, flags);
        is_refused(&ended, 1, &["another log", "logmirror checkpoint", &from, "--adopt"]);
        assert!(!ended.error().contains("bring it back from the sink"), "{}", ended.error());
    }
    holds(&to, &["first", "client"]);
    // A log of its own.
    done(&["mirror", &from, &other.url("another")]);
    holds(&other.url("another"), &["first", "second"]);
    // Or a later generation.
    done(&["checkpoint", &from]);
    is_refused(&mirror(&from, &to, &[]), 1, &["--adopt"]);
    done(&["mirror", &from, &to, "--adopt"]);
    holds(&to, &["first", "second"]);
    assert_eq!(source_of(&other, "app"), from);
    let kept = dir.path().join("kept.db");
    done(&["restore", &to, arg(&kept), "--generation", "1"]);
    // It is a relay like any other from here on.
    write(&app, &["INSERT INTO t VALUES ('third')"]);
    done(&["mirror", arg(&app), &from]);
    done(&["mirror", &from, &to]);
    holds(&to, &["first", "second", "third"]);
}

#[test]
fn what_clients_wrote_goes_back_to_the_log_that_theirs_was_a_copy_of() {
    let (_data, dir, service) = scene();
    let other = tempfile::tempdir().unwrap();
    let other = Service::start(other.path());
    let (app, old, new) = (dir.path().join("app.db"), service.url("app"), other.url("app"));
    database(&app);
    done(&["mirror", arg(&app), &old]);
    write(&app, &["INSERT INTO t VALUES ('second')"]);
    done(&["mirror", arg(&app), &old]);
    done(&["mirror", &old, &new]);
    done(&["promote", &new]);
    client_writes(&other, "app", "INSERT INTO t VALUES ('client')");
    // The old one holds nothing else: it follows.
    let said = done(&["mirror", &new, &old]);
    assert!(said.contains("taken over"), "{said}");
    holds(&old, &["first", "second", "client"]);
    // It was written meanwhile, and rolled over.
    done(&["mirror", arg(&app), &old, "--adopt"]);
    write(&app, &["INSERT INTO t VALUES ('late')"]);
    done(&["mirror", arg(&app), &old]);
    client_writes(&other, "app", "INSERT INTO t VALUES ('more')");
    for flags in [&[][..], &["--adopt"]] {
        let ended = mirror(&new, &old, flags);
        is_refused(&ended, 1, &["another log", "logmirror checkpoint"]);
    }
    while status(&other, "app").generation <= status(&service, "app").generation {
        client_writes(&other, "app", "INSERT INTO t VALUES ('again')");
        done(&["checkpoint", &new]);
    }
    is_refused(&mirror(&new, &old, &[]), 1, &["--adopt"]);
    done(&["mirror", &new, &old, "--adopt"]);
    assert_eq!(restored(&old), restored(&new));
    client_writes(&other, "app", "INSERT INTO t VALUES ('last')");
    done(&["mirror", &new, &old]);
    assert_eq!(restored(&old), restored(&new));
}
