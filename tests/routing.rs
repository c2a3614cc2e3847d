//! Which log a request reaches, and by which path.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::http::Routing;
use logmirror::repo::{MemRepo, Repo};
use support::service::{Service, Setup};
use support::stream_of;

#[test]
fn a_path_may_be_sloppy() {
    let service = Service::start(Arc::new(MemRepo::default()));
    service.create("app");
    service.append("app", "", &stream_of("whole"));
    for (sloppy, plain) in [
        ("//logs//app/", "/logs/app"),
        ("/logs/", "/logs"),
        ("/logs/app//segments///0/?generation=1", "/logs/app/segments/0?generation=1"),
        ("//logs/app/commits/?from=111", "/logs/app/commits?from=111"),
    ] {
        let [sloppy, plain] = [sloppy, plain].map(|path| service.get(path));
        assert_eq!((sloppy.status, sloppy.body), (200, plain.body));
    }
}

#[test]
fn a_service_sends_the_root_and_hosts_to_their_logs() {
    let routing = Routing { root_log: Some("app".into()), by_host: true };
    let data: Arc<dyn Repo> = Arc::new(MemRepo::default());
    let service = Service::start_as(data, Setup::default(), |server| server.with_routing(routing));
    let reached = |host: &str, path: &str| {
        let mut wire = service.connect();
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
        wire.answer()
    };
    for log in ["app", "other"] {
        assert_eq!(service.put(&format!("/logs/{log}"), r#"{"format":"wal"}"#).status, 201);
    }
    // Only one of them has a second generation.
    assert_eq!(service.put("/logs/other/generations/2", "").status, 201);
    for (host, path, generation) in [
        ("test", "//info/", 1),
        ("other.example.org:7171", "/info", 2),
        ("127.0.0.1", "/info", 1),
        ("other.example.org", "/logs/app/info", 1),
        ("app.example.org", "/logs/other//info/", 2),
    ] {
        let answer = reached(host, path);
        assert_eq!((answer.status, &answer.json()["current_generation"]), (200, &generation.into()), "{host}{path}");
    }
    // Nothing at frame 1.
    assert_eq!(reached("test", "//sync/1/1/2").json()["generation"], 1);
    assert!(reached("127.0.0.1", "/v3/pipeline").text().contains("/logs/app/v3/pipeline"));
    for path in ["/health", "/metrics", "/logs"] {
        assert_eq!(reached("other.example.org", path).status, 200, "{path}");
    }
}
