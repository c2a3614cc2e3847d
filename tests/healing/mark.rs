//! A durable mark that is lost or damaged is noticed: without it nothing says what was acknowledged.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::damage::{again, file, segment, start};
use crate::support::assert_bytes;
use crate::support::log::commits;
use crate::support::process::arg;

fn repair(data: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let dir = data.join("logs/app");
    let args = [&["repair", arg(&dir)], flags].concat();
    let ended = Command::new(env!("CARGO_BIN_EXE_logmirror")).args(args).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stdout).unwrap() + &String::from_utf8(ended.stderr).unwrap())
}

fn whole() -> Vec<u8> {
    [segment(0), segment(3), segment(6)].concat()
}

#[test]
fn a_mark_that_is_missing_or_makes_no_sense_is_damage_until_the_loss_is_accepted() {
    let cases: [(Option<Vec<u8>>, &str); 6] = [
        (
            Some({
                let mut flipped =
                    [&9_u64.to_le_bytes()[..], &crc32c::crc32c(&9_u64.to_le_bytes()).to_le_bytes()].concat();
                flipped[9] ^= 1;
                flipped
            }),
            "does not match its checksum",
        ),
        (Some(vec![9, 0, 0, 0]), "has 4 bytes"),
        (Some(b"this is not a mark at all".to_vec()), "has 25 bytes"),
        (Some(vec![0; 5 << 20]), "has 5242880 bytes"),
        (Some(Vec::new()), "is empty"),
        (None, "is missing"),
    ];
    for (content, what) in cases {
        let data = tempfile::tempdir().unwrap();
        drop(start(data.path()));
        let mark = file(data.path(), 0).with_file_name("durable");
        match &content {
            Some(content) => fs::write(&mark, content).unwrap(),
            None => fs::remove_file(&mark).unwrap(),
        }
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &9.into()), "{what}: {status}");
        let error = status["error"].as_str().unwrap();
        for part in [what, arg(&mark), "acknowledged may be missing", "--accept-loss"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_bytes(&service.get("/logs/app/commits?from=0&to=9").body, &whole(), "what is sound");
        assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).refusal(), (500, "corrupt-log".to_owned()));
        drop(service);
        assert_eq!(fs::read(&mark).ok(), content, "nothing was changed");
        let (code, said) = repair(data.path(), &[]);
        assert!(code == Some(1) && said.contains(what), "{said}");
        let (code, said) = repair(data.path(), &["--accept-loss"]);
        assert!(code == Some(0) && said.contains("goes on with 9"), "{said}");
        let service = again(data.path());
        assert_eq!(service.status("app")["state"], "ok", "{what}");
        assert_bytes(&service.stream("app"), &whole(), "what was sound");
        assert_eq!(service.append("app", "", &commits(9, 1, 50, 0)).json()["durable"], 10, "{what}");
    }
}

#[test]
fn a_truncation_or_a_flipped_bit_is_not_hidden_by_a_mark_that_is_gone() {
    for flipped in [false, true] {
        let data = tempfile::tempdir().unwrap();
        drop(start(data.path()));
        let (mark, last) = (file(data.path(), 0).with_file_name("durable"), file(data.path(), 2));
        fs::remove_file(&mark).unwrap();
        let mut bytes = fs::read(&last).unwrap();
        let commit = commits(8, 1, 50, 0).len();
        if flipped {
            let at = bytes.len() - 10;
            bytes[at] ^= 1;
        } else {
            bytes.truncate(bytes.len() - commit);
        }
        fs::write(&last, &bytes).unwrap();
        let service = again(data.path());
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &8.into()), "{status}");
        drop(service);
        assert_eq!(fs::read(&last).unwrap(), bytes, "nothing was cut");
    }
}

#[test]
fn a_directory_that_was_emptied_is_no_empty_log() {
    let data = tempfile::tempdir().unwrap();
    drop(start(data.path()));
    for found in fs::read_dir(file(data.path(), 0).parent().unwrap()).unwrap() {
        fs::remove_file(found.unwrap().path()).unwrap();
    }
    let service = again(data.path());
    let status = service.status("app");
    assert_eq!(status["state"], "damaged", "{status}");
    assert_ne!(service.append("app", "", &segment(0)).status, 200);
    drop(service);
    let (code, said) = repair(data.path(), &[]);
    assert!(code == Some(1) && said.contains("is missing"), "{said}");
}

#[test]
fn logs_of_earlier_versions_go_on_without_a_mark_and_have_one_from_then_on() {
    for content in [None, Some(&[][..]), Some(&[0; 12][..])] {
        let data = tempfile::tempdir().unwrap();
        drop(start(data.path()));
        let (mark, json) = (file(data.path(), 0).with_file_name("durable"), data.path().join("logs/app/log.json"));
        let mut said: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(said.as_object_mut().unwrap().remove("durable_mark"), Some(true.into()));
        fs::write(&json, said.to_string()).unwrap();
        match content {
            Some(content) => fs::write(&mark, content).unwrap(),
            None => fs::remove_file(&mark).unwrap(),
        }
        drop(again(data.path()));
        fs::remove_file(&mark).unwrap();
        assert_eq!(again(data.path()).status("app")["state"], "damaged");
    }
}
