//! Every command ends when it is asked to.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::process::{Mirror, Service, arg, until};
use crate::support::{specimen, stream_of};

#[test]
fn a_service_drains_on_sighup() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    let client = service.client("app");
    service.call(client.create(logmirror::format::LogFormat::Commitlog, None)).unwrap();
    service.call(client.append(None, stream_of("whole"))).unwrap();
    let (status, said) = service.hang_up();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("shutting down"), "{said}");
}

#[test]
fn a_service_under_nohup_outlives_its_terminal() {
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_logmirror")).args(["serve", "--listen", "127.0.0.1:0", "--data", arg(data.path())]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap().strip_prefix("listening on ").unwrap().to_owned();
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    // It still answers; what a signal does, it does before that.
    for _ in 0..3 {
        assert!(crate::run(&["status", &format!("{url}/logs/none")]).errors.contains("not-found"));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = until("the service to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_mirror_that_follows_ends_well_on_sighup() {
    let sink = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(arg(&specimen("whole")), arg(&sink.path().join("clog")), &["--follow"]);
    mirror.wait_durable(360);
    let ended = mirror.hang_up();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
