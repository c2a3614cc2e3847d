//! Clients that encrypt: what they send must not be stored in the clear, nor what is here taken for theirs.

use crate::{FRAME, Rig, short};

#[test]
fn a_client_that_encrypts_is_refused_on_every_route_before_anything_is_stored() {
    let rig = Rig::new();
    let log = short();
    let frames = log.frames[..2].concat();
    for field in ["x-turso-encryption-key: c2VjcmV0", "X-Turso-Encryption-Cipher: aes256gcm", "x-turso-encryption-key:"]
    {
        // A pull takes a 400 for "nothing new".
        for (method, path, body, status) in [
            ("GET", "info", &b""[..], 400),
            ("GET", "export/1", b"", 400),
            ("POST", "sync/1/1/3", &frames, 400),
            ("POST", "sync/1/1/3/baton", &frames, 400),
            ("GET", "sync/1/1/3", b"", 404),
            ("GET", "sync/0/0/0", b"", 404),
        ] {
            let answer = rig.service.call(method, &format!("/logs/app/{path}"), &format!("{field}\r\n"), body);
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(message.contains("encrypt"), "{method} {path}: {message}");
        }
    }
    assert_eq!(rig.last(), 0);
    assert_eq!(rig.push_all(&log), crate::Pushed::Ok(7));
    assert_eq!(rig.pull("1/1/8").body.len(), 7 * FRAME);
}
