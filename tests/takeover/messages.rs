//! Messages name the path, the service or the log that they are about.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support::process::{arg, mirror};
use crate::{database, done, is_refused, scene, status};

#[test]
fn a_log_that_is_not_there_is_named_with_its_service() {
    let (_data, dir, service) = scene();
    let copy = dir.path().join("copy");
    let address = format!("http://{}", service.address());
    is_refused(&mirror(service.url("none"), arg(&copy), &[]), 3, &["\"none\"", &address]);
}

#[test]
fn a_path_that_cannot_be_noted_is_refused_before_a_log_is_made_for_it() {
    let (_data, dir, service) = scene();
    let odd = dir.path().join("new\nline.db");
    database(&odd);
    is_refused(&mirror(arg(&odd), service.url("odd"), &[]), 2, &["new\\nline.db", "rename"]);
    assert!(service.status(&service.client("odd")).unwrap().is_none());
    // A directory notes nothing that is sent.
    done(&["mirror", arg(&odd), arg(&dir.path().join("copy"))]);
}

#[test]
fn a_replica_file_that_may_not_be_written_is_reported_as_that() {
    let (_data, dir, service) = scene();
    let [app, rep] = ["app.db", "rep.db"].map(|name| dir.path().join(name));
    database(&app);
    done(&["mirror", arg(&app), &service.url("app")]);
    done(&["mirror", &service.url("app"), arg(&rep)]);
    assert!(status(&service, "app").durable.is_some());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&rep, fs::Permissions::from_mode(0o600)).unwrap();
    let program = dir.path().join("logmirror");
    fs::copy(env!("CARGO_BIN_EXE_logmirror"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", arg(&program), "mirror"]);
    let Ok(output) = command.args([&service.url("app"), arg(&rep)]).output() else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("setpriv") {
        return eprintln!("not tested: {said}");
    }
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("ermission denied") && said.contains("rep.db"), "{said}");
}
