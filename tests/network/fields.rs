//! What an answer says to proxies and caches, and conditional requests.

use std::sync::Arc;

use logmirror::repo::FsRepo;
use logmirror::token::Token;

use crate::service;
use crate::support::log::{commits, header};
use crate::support::service::{Answer, Service, Setup, request};

fn get(service: &Service, method: &str, path: &str, fields: &str) -> Answer {
    service.call(method, path, fields, b"")
}

#[test]
fn answers_that_change_are_passed_on_as_they_come_and_kept_by_no_cache() {
    let service = service(|_| {});
    service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat());
    for path in
        ["/logs", "/logs/app", "/logs/app/commits", "/logs/app/commits?follow=true", "/logs/app/segments", "/nowhere"]
    {
        let mut wire = service.connect();
        wire.send(request("GET", path, "").as_bytes());
        let head = wire.head();
        assert_eq!(head.header("cache-control"), Some("no-store, no-transform"), "{path}");
        assert_eq!(head.header("x-accel-buffering"), Some("no"), "{path}");
    }
    let mut wire = service.begin_append("app", "?acks=stream");
    let head = wire.head();
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    assert_eq!(head.header("cache-control"), Some("no-store, no-transform"));
}

fn on_disk(
    data: &std::path::Path,
    adjust: impl FnOnce(logmirror::server::Server) -> logmirror::server::Server,
) -> Service {
    Service::start_as(Arc::new(FsRepo::open(data).unwrap()), Setup::default(), adjust)
}

/// A log with a sealed segment of three commits, and an open one of two, in files.
fn filled(data: &std::path::Path) -> Service {
    let service = on_disk(data, |server| server);
    service.create("app");
    let stream = [header(), commits(0, 3, 9, 0), header(), commits(3, 2, 9, 0)].concat();
    assert_eq!(service.append("app", "", &stream).status, 200);
    service
}

#[test]
fn conditions_and_ranges_are_as_the_rfc_has_them() {
    let data = tempfile::tempdir().unwrap();
    let service = filled(data.path());
    let path = "/logs/app/segments/0";
    let whole = get(&service, "GET", path, "");
    let (etag, modified) =
        (whole.header("etag").unwrap().to_owned(), whole.header("last-modified").unwrap().to_owned());
    let bytes = whole.body.len().to_string();
    assert_eq!(whole.header("cache-control"), Some("public, max-age=31536000, immutable, no-transform"));
    assert_eq!(whole.header("x-accel-buffering"), None, "nginx would not keep it then");
    for (method, fields, wanted) in [
        ("GET", format!("if-match: {etag}\r\n"), 200),
        ("GET", "if-match: \"other\"\r\n".to_owned(), 412),
        ("HEAD", "if-match: \"other\"\r\n".to_owned(), 412),
        ("GET", format!("if-match: \"other\"\r\nif-none-match: {etag}\r\n"), 412),
        ("GET", format!("if-none-match: {etag}\r\n"), 304),
        ("GET", format!("if-modified-since: {modified}\r\n"), 304),
        ("GET", "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT\r\n".to_owned(), 200),
        ("GET", format!("if-none-match: \"other\"\r\nif-modified-since: {modified}\r\n"), 200),
        ("GET", "if-unmodified-since: Sun, 06 Nov 1994 08:49:37 GMT\r\n".to_owned(), 412),
        ("GET", format!("range: bytes=0-3\r\nif-range: {etag}\r\n"), 206),
        ("GET", "range: bytes=0-3\r\nif-range: \"other\"\r\n".to_owned(), 200),
        ("GET", format!("range: bytes=0-3\r\nif-range: {modified}\r\n"), 200),
    ] {
        assert_eq!(get(&service, method, path, &fields).status, wanted, "{method} {fields}");
    }
    for range in ["bytes=0-3", "bytes=999999-"] {
        let head = get(&service, "HEAD", path, &format!("range: {range}\r\n"));
        assert_eq!((head.status, head.header("content-length")), (200, Some(bytes.as_str())), "{range}");
    }
}

#[test]
fn what_needs_a_token_is_not_for_shared_caches() {
    let data = tempfile::tempdir().unwrap();
    drop(filled(data.path()));
    let token = Token::new("secret").unwrap();
    let service = on_disk(data.path(), |server| server.with_token(Some(token)));
    let answer = get(&service, "GET", "/logs/app/segments/0", "authorization: Bearer secret\r\n");
    assert_eq!(answer.header("cache-control"), Some("private, max-age=31536000, immutable, no-transform"));
}
