//! A service with a token lets in who has it, and nobody else.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::process::Command;
use std::sync::Arc;

use assert_cmd::cargo::CommandCargoExt;
use logmirror::client::{Client, ClientError};
use logmirror::offset::Offset;
use logmirror::repo::{FsRepo, MemRepo, Repo};
use logmirror::token::Token;
use support::service::{Service, Setup, request};
use support::{specimen, stream_of};

const TOKEN: &str = "s3cret-Token_/+=";

fn start(data: Arc<dyn Repo>) -> Service {
    let token = Token::new(TOKEN).unwrap();
    Service::start_as(data, Setup::default(), |server| server.with_token(Some(token)))
}

fn with_token() -> String {
    format!("authorization: Bearer {TOKEN}\r\n")
}

/// Every call of the API, and some that are none.
fn calls() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let create = br#"{"format":"commitlog"}"#.to_vec();
    vec![
        ("GET", "/logs", vec![]),
        ("PUT", "/logs/new", create.clone()),
        ("PUT", "//logs//new/", create),
        ("GET", "/logs/app", vec![]),
        ("HEAD", "/logs/app", vec![]),
        ("POST", "/logs/app/commits", stream_of("whole")),
        ("POST", "/logs/app/commits?acks=stream", stream_of("whole")),
        ("GET", "/logs/app/commits", vec![]),
        ("GET", "/logs/app/commits?follow=true", vec![]),
        ("GET", "/logs/app/segments", vec![]),
        ("GET", "/logs/app/segments/0", vec![]),
        ("GET", "/metrics", vec![]),
        ("GET", "/", vec![]),
        ("GET", "/nowhere", vec![]),
        ("GET", "/health/more", vec![]),
        ("GET", "/logs/health", vec![]),
        ("GET", "/HEALTH", vec![]),
        ("GET", "/%68ealth", vec![]),
        ("GET", "/nowhere?/health", vec![]),
        ("DELETE", "/logs/app", vec![]),
        ("GET", "/info", vec![]),
        ("GET", "/export/1", vec![]),
        ("GET", "/sync/1/1/2", vec![]),
        ("POST", "//sync/1/1/2", vec![7; 4120]),
        ("POST", "/v2/pipeline", b"{}".to_vec()),
    ]
}

#[test]
fn without_the_token_every_call_is_refused_and_nothing_is_written() {
    let data = tempfile::tempdir().unwrap();
    let service = start(Arc::new(FsRepo::open(data.path()).unwrap()));
    assert_eq!(service.call("PUT", "/logs/app", &with_token(), br#"{"format":"commitlog"}"#).status, 201);
    let log = data.path().join("logs/app");
    let before = (support::files(&log.join("0000000001")), std::fs::read(log.join("log.json")).unwrap());
    let wrong = [
        String::new(),
        "authorization: Bearer \r\n".to_owned(),
        "authorization: Bearer wrong\r\n".to_owned(),
        format!("authorization: Bearer {TOKEN}x\r\n"),
        format!("authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("authorization: Bearer {}\r\n", TOKEN.to_uppercase()),
        format!("authorization: Basic {TOKEN}\r\n"),
        format!("authorization: {TOKEN}\r\n"),
        format!("x-authorization: Bearer {TOKEN}\r\n"),
        "authorization: Bearer \u{e9}\r\n".to_owned(),
    ];
    for (method, path, body) in calls() {
        for headers in &wrong {
            let answer = service.call(method, path, headers, &body);
            assert_eq!(answer.status, 401, "{method} {path} with {headers:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            if method != "HEAD" {
                assert_eq!(answer.refusal().1, "unauthorized");
                assert!(!answer.text().contains(TOKEN));
            }
        }
    }
    let after = (support::files(&log.join("0000000001")), std::fs::read(log.join("log.json")).unwrap());
    assert_eq!(before, after);
    assert_eq!(std::fs::read_dir(data.path().join("logs")).unwrap().count(), 1);
    assert_eq!(service.registry.get("app").unwrap().status().next, Some(Offset(0)));
}

#[test]
fn with_the_token_every_call_is_what_it_is_without_one() {
    let open = Service::start(Arc::new(MemRepo::default()));
    let guarded = start(Arc::new(MemRepo::default()));
    for (method, path, body) in calls() {
        if path.contains("follow") {
            continue;
        }
        let answers = [open.call(method, path, "", &body), guarded.call(method, path, &with_token(), &body)];
        assert_eq!(answers[0].status, answers[1].status, "{method} {path}");
        assert_ne!(answers[1].status, 401);
    }
    assert_eq!(guarded.call("PUT", "/logs/app", &with_token(), br#"{"format":"commitlog"}"#).status, 201);
    let body = stream_of("whole");
    assert_eq!(guarded.call("POST", "/logs/app/commits", &with_token(), &body).json()["durable"], 360);
    assert_eq!(guarded.call("GET", "/logs/app/commits", &with_token(), b"").body.len(), body.len());
    let lower = with_token().replace("Bearer", "bearer ");
    assert_eq!(guarded.call("GET", "/logs", &lower, b"").status, 200);
}

#[test]
fn health_is_open() {
    let service = start(Arc::new(MemRepo::default()));
    for (path, headers) in [("/health", ""), ("//health/", ""), ("/health?x", "authorization: Bearer wrong\r\n")] {
        assert_eq!(service.call("GET", path, headers, b"").status, 200, "{path}");
    }
}

#[test]
fn a_refused_body_does_not_keep_the_answer_from_its_sender() {
    let service = start(Arc::new(MemRepo::default()));
    // More than sockets hold, so the sender could not get to reading if nobody took it in.
    let body = vec![0x5a; 8 << 20];
    let answer = service.call("POST", "/logs/app/commits", "", &body);
    assert_eq!(answer.refusal(), (401, "unauthorized".into()));
    // Who asked first is answered before sending anything.
    let mut wire = service.connect();
    let head = format!("content-length: {}\r\nexpect: 100-continue\r\n", body.len());
    wire.send(request("POST", "/logs/app/commits", &head).as_bytes());
    assert_eq!(wire.answer().status, 401);
    // A stream without end is answered while it is being sent.
    let mut wire = service.begin_append("app", "");
    wire.send_chunk(&body[..100]);
    assert_eq!(wire.answer().status, 401);
}

#[test]
fn one_connection_may_be_refused_and_then_let_in() {
    let service = start(Arc::new(MemRepo::default()));
    let mut wire = service.connect();
    for (headers, status) in [(String::new(), 401), (with_token(), 200), (String::new(), 401)] {
        wire.send(request("GET", "/logs", &headers).as_bytes());
        assert_eq!(wire.answer().status, status);
    }
}

#[test]
fn a_client_brings_its_token_along() {
    let service = start(Arc::new(MemRepo::default()));
    let url = service.url("/logs/app");
    let token = Token::new(TOKEN).unwrap();
    let clients = [
        Client::new(&url).unwrap().with_token(&token),
        Client::new(&token.in_url(&url)).unwrap(),
        Client::new(&url.replace("://", "://:wrong@")).unwrap().with_token(&token),
    ];
    for client in clients {
        assert_eq!(client.url().as_str(), url);
        assert!(!format!("{client:?}").contains(TOKEN));
        let durable = service.runtime.block_on(async {
            client.create(logmirror::format::LogFormat::Commitlog, None).await?;
            Ok::<_, ClientError>(client.append(None, stream_of("whole")).await?.durable)
        });
        assert_eq!(durable.unwrap(), Offset(360));
    }
    for url in [url.clone(), Token::new("wrong").unwrap().in_url(&url), url.replace("://", "://me:pass@")] {
        let refused = service.runtime.block_on(Client::new(&url).unwrap().status()).unwrap_err();
        assert!(matches!(&refused, ClientError::Refused { status: 401, body } if body.error == "unauthorized"));
        assert!(!refused.is_transient());
    }
    let wrong = Client::new("ftp://:hidden@host/logs/a@b").unwrap_err();
    assert!(wrong.to_string().starts_with("\"ftp://host/logs/a@b\" is not"), "{wrong}");
}

fn logmirror(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("logmirror").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}

#[test]
fn every_command_takes_the_token_from_flag_file_environment_or_url() {
    let service = start(Arc::new(MemRepo::default()));
    let (url, dir) = (service.url("/logs/app"), tempfile::tempdir().unwrap());
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let (source, copy) = (specimen("whole"), dir.path().join("copy"));
    let (source, copy, file) = (source.to_str().unwrap(), copy.to_str().unwrap(), file.to_str().unwrap());
    let with_token = Token::new(TOKEN).unwrap().in_url(&url);
    let bench = service.url("/logs/bench");
    let runs = [
        logmirror(&["mirror", source, &url, "--token", TOKEN]),
        logmirror(&["mirror", &with_token, copy]),
        logmirror(&["status", &url, "--token-file", file]),
        logmirror(&["verify", &with_token]),
        logmirror(&["bench", &bench, "--seconds", "1", "--token", TOKEN]),
    ];
    for mut run in runs {
        let output = run.output().unwrap();
        assert!(output.status.success(), "{run:?}: {}", String::from_utf8_lossy(&output.stderr));
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains(TOKEN) && !said.contains("s3cret"), "{said}");
    }
    assert!(logmirror(&["verify", &url]).env("LOGMIRROR_TOKEN", TOKEN).status().unwrap().success());
    for (args, code) in [
        (vec!["status", url.as_str()], 2),
        (vec!["mirror", source, url.as_str(), "--token", "wrong"], 2),
        (vec!["status", url.as_str(), "--token", ""], 2),
        (vec!["status", url.as_str(), "--token", TOKEN, "--token-file", file], 2),
        (vec!["status", url.as_str(), "--token-file", "/nowhere/token"], 2),
        (vec!["status", source, "--token", "not needed"], 0),
    ] {
        let output = logmirror(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn no_message_about_settings_shows_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let (data, config) = (dir.path().join("data"), dir.path().join("config.toml"));
    let (data, config) = (data.to_str().unwrap(), config.to_str().unwrap());
    let serve = ["serve", "--data", data, "--config", config];
    for (text, said) in [
        ("token = hidden", "config.toml, line 1: "),
        ("listen = '127.0.0.1:0'\ntoken = 'hidden", "config.toml, line 2: "),
        ("token = ['hidden']", "config.toml, line 1: token: a token is text in quotes"),
        ("token = 'hidden '", "config.toml: token: a token is of visible ASCII characters"),
        ("token = ''", "config.toml: token: a token cannot be empty"),
        ("token = 'hidden'\ntoken-file = 'x'", "not both"),
        ("token-file = '/nowhere/token'", "config.toml: token-file: /nowhere/token: "),
        ("root-log = 'No Name'", "\"No Name\" cannot be the name of a log"),
    ] {
        std::fs::write(config, text).unwrap();
        let output = logmirror(&serve).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {error}");
        assert!(error.contains(said) && !error.contains("hidden"), "{text}: {error}");
    }
    for args in [["serve", "--help"], ["status", "--help"]] {
        let output = logmirror(&args).env("LOGMIRROR_TOKEN", "hidden").output().unwrap();
        assert!(!String::from_utf8(output.stdout).unwrap().contains("hidden"));
    }
}
