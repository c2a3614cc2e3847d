//! A base that is missing or cut is never an empty database.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::support::frames::FrameLog;
use crate::support::process::{Mirror, until};
use crate::{GENERATION, base_of, flip, log, log_of, said, serve, service_with};

#[test]
fn a_log_whose_base_is_missing_is_damaged_and_hands_out_no_empty_database() {
    let data = tempfile::tempdir().unwrap();
    drop(service_with(data.path(), &log(3).base, &[]));
    let base = fs::read(base_of(data.path())).unwrap();
    let precious = data.path().join("precious.db");
    fs::write(&precious, &base).unwrap();
    for with_sums in [true, false] {
        fs::remove_file(base_of(data.path())).unwrap();
        if !with_sums {
            fs::remove_file(data.path().join(GENERATION).join("base.sums")).unwrap();
        }
        let service = serve(data.path());
        let status = service.status("app");
        assert_eq!(status["state"], "damaged", "{status}");
        assert!(status["error"].as_str().unwrap().contains("base.db is missing"), "{status}");
        assert!(service.get("/health").text().contains("base.db is missing"));
        assert_eq!(service.get("/logs/app/base").refusal(), (500, "corrupt-log".to_owned()));
        let url = service.url("/logs/app");
        let dirs = [data.path().join("logs/app"), data.path().join(GENERATION)];
        for source in [&url[..], dirs[0].to_str().unwrap(), dirs[1].to_str().unwrap()] {
            let (code, text) = said(&["restore", source, precious.to_str().unwrap(), "--force"]);
            assert!(code == 1 && text.contains("missing"), "{source}: {code}: {text}");
            assert!(fs::read(&precious).unwrap() == base, "{source}");
        }
        for source in [&url[..], dirs[1].to_str().unwrap()] {
            let (code, text) = said(&["verify", source]);
            assert!(code == 1 && text.contains("missing"), "{source}: {code}: {text}");
            let copy = data.path().join("copy");
            let (code, text) = said(&["mirror", source, copy.to_str().unwrap()]);
            assert!(code == 1 && text.contains("missing"), "{source}: {code}: {text}");
            assert!(!copy.join("base.db").exists());
            let _none = fs::remove_dir_all(&copy);
        }
        fs::write(base_of(data.path()), &base).unwrap();
        service.wait_state("app", "ok");
        assert!(service.get("/logs/app/base").body == base);
    }
}

#[test]
fn a_base_that_is_taken_away_under_the_service_shows_at_once() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    for bytes in [None, Some(700)] {
        match bytes {
            None => fs::remove_file(base_of(data.path())).unwrap(),
            Some(bytes) => fs::write(base_of(data.path()), &log.base[..bytes]).unwrap(),
        }
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &3.into()), "{status}");
        assert_eq!(service.get("/logs/app/base").refusal(), (500, "corrupt-log".to_owned()));
        assert!(service.get("/logs/app/commits").body == log.stream(&[]));
        fs::write(base_of(data.path()), &log.base).unwrap();
        service.wait_state("app", "ok");
    }
}

#[test]
fn a_directory_without_base_and_frames_restores_to_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, out) = (dir.path().join("0000000001"), dir.path().join("precious.db"));
    fs::create_dir(&empty).unwrap();
    fs::write(&out, &log(3).base).unwrap();
    let (code, text) = said(&["restore", empty.to_str().unwrap(), out.to_str().unwrap(), "--force"]);
    assert_eq!(code, 1, "{text}");
    assert!(fs::read(&out).unwrap() == log(3).base);
}

#[test]
fn a_mirror_whose_base_is_gone_does_not_go_on_as_if_it_were_there() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (url, copy) = (service.url("/logs/app"), data.path().join("copy"));
    let args = ["mirror", &url, copy.to_str().unwrap()];
    assert_eq!(said(&args).0, 0);
    fs::remove_file(copy.join("base.db")).unwrap();
    let (code, text) = said(&args);
    assert!(code == 1 && text.contains("base.db is missing"), "{code}: {text}");
    let (code, text) = said(&["verify", copy.to_str().unwrap()]);
    assert!(code == 1 && text.contains("base.db is missing"), "{code}: {text}");
}

#[test]
fn a_generation_without_frames_is_verified_and_has_a_status_by_its_base() {
    let data = tempfile::tempdir().unwrap();
    let base = log(3).base;
    drop(service_with(data.path(), &base, &[]));
    let dir = data.path().join(GENERATION);
    let (code, text) = said(&["verify", dir.to_str().unwrap()]);
    assert!(code == 0 && text.contains("whole") && text.contains("1,536 bytes"), "{code}: {text}");
    assert!(text.contains(&crate::sha256(&base)), "{text}");
    let (code, text) = said(&["status", dir.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{text}");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&status["format"], &status["base"]["bytes"]), (&"wal".into(), &1536.into()), "{status}");
    assert_eq!(status["base"]["sha256"], crate::sha256(&base));
    // So it is by the name of its file.
    let (code, text) = said(&["verify", base_of(data.path()).to_str().unwrap()]);
    assert!(code == 0 && text.contains(&crate::sha256(&base)), "{code}: {text}");
    let copy = data.path().join("copy");
    let (code, text) = said(&["mirror", dir.to_str().unwrap(), copy.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    assert!(fs::read(copy.join("base.db")).unwrap() == base);
}

type Damage = fn(&Path);

/// What can become of a base or its sums in a mirror.
const DAMAGES: [(&str, Damage); 9] = [
    ("a byte", |copy| flip(&copy.join("base.db"), 700)),
    ("the last byte", |copy| flip(&copy.join("base.db"), 1535)),
    ("missing", |copy| fs::remove_file(copy.join("base.db")).unwrap()),
    ("cut", |copy| resize(&copy.join("base.db"), 1000)),
    ("grown", |copy| resize(&copy.join("base.db"), 2048)),
    ("a directory", |copy| {
        fs::remove_file(copy.join("base.db")).unwrap();
        fs::create_dir(copy.join("base.db")).unwrap();
    }),
    ("sums with another byte", |copy| flip(&copy.join("base.sums"), 20)),
    ("cut sums", |copy| resize(&copy.join("base.sums"), 30)),
    ("neither", |copy| {
        fs::remove_file(copy.join("base.db")).unwrap();
        fs::remove_file(copy.join("base.sums")).unwrap();
    }),
];

fn resize(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_mirror_whose_base_is_damaged_is_refused_and_adopt_copies_it_again_beside_the_frames() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let dir = data.path().join("dir");
    assert_eq!(said(&["mirror", &service.url("/logs/app"), dir.to_str().unwrap()]).0, 0);
    for source in [service.url("/logs/app"), dir.to_str().unwrap().to_owned()] {
        for (what, damage) in DAMAGES {
            let copy = data.path().join("copy");
            let args = ["mirror", &source, copy.to_str().unwrap(), "--adopt"];
            assert_eq!(said(&args[..3]).0, 0);
            damage(&copy);
            let (code, text) = said(&args[..3]);
            assert!(code == 1 && text.contains("base.") && text.contains("--adopt"), "{what}: {code}: {text}");
            let frames = copy.join("00000000000000000001.wal");
            let before = fs::metadata(&frames).unwrap().ino();
            let (code, text) = said(&args);
            assert_eq!(code, 0, "{what}: {text}");
            assert!(fs::read(copy.join("base.db")).unwrap() == log.base, "{what}");
            assert_eq!(fs::metadata(&frames).unwrap().ino(), before, "{what}: the frames stay");
            if !["missing", "neither"].contains(&what) {
                assert!(copy.join("base.db.aside-1").exists(), "{what}: {text}");
            }
            let (code, text) = said(&["verify", copy.to_str().unwrap()]);
            assert!(code == 0 && text.contains("whole"), "{what}: {code}: {text}");
            assert_eq!(said(&args[..3]).0, 0, "{what}");
            fs::remove_dir_all(&copy).unwrap();
        }
    }
}

#[test]
fn a_base_without_its_sums_is_read_whole_by_a_mirror() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (url, copy) = (service.url("/logs/app"), data.path().join("copy"));
    let args = ["mirror", &url, copy.to_str().unwrap()];
    assert_eq!(said(&args).0, 0);
    fs::remove_file(copy.join("base.sums")).unwrap();
    assert_eq!(said(&args).0, 0);
    flip(&copy.join("base.db"), 700);
    let (code, text) = said(&args);
    assert!(code == 1 && text.contains("base.db has the SHA-256"), "{code}: {text}");
}

#[test]
fn a_base_that_was_put_back_after_its_sums_is_read_until_it_was_found_sound_once() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (url, copy) = (service.url("/logs/app"), data.path().join("copy"));
    let args = ["mirror", &url, copy.to_str().unwrap()];
    assert_eq!(said(&args).0, 0);
    let base = copy.join("base.db");
    let modified = |file: &Path| fs::metadata(file).unwrap().modified().unwrap();
    let put_back = || {
        let later = modified(&copy.join("base.sums")) + Duration::from_secs(10);
        fs::File::options().write(true).open(&base).unwrap().set_modified(later).unwrap();
    };
    let is_read_next_time = || modified(&base) > modified(&copy.join("base.sums"));
    put_back();
    assert_eq!(said(&[&args[..], &["--dry-run"]].concat()).0, 0);
    assert!(is_read_next_time(), "a dry run changes nothing");
    assert_eq!(said(&args).0, 0);
    assert!(!is_read_next_time());
    flip(&base, 700);
    put_back();
    let (code, text) = said(&args);
    assert!(code == 1 && text.contains("base.db"), "{code}: {text}");
    assert!(is_read_next_time());
}

#[test]
fn a_log_is_damaged_from_its_start_on_when_a_directory_is_in_place_of_its_base() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    for name in ["base.db", "base.sums"] {
        let data = data.path().join(name);
        fs::create_dir(&data).unwrap();
        drop(service_with(&data, &log.base, &log.stream(&[])));
        let path = data.join(GENERATION).join(name);
        fs::rename(&path, data.join("away")).unwrap();
        fs::create_dir(&path).unwrap();
        let service = serve(&data);
        let status = service.status("app");
        assert_eq!((&status["state"], &status["durable"]), (&"damaged".into(), &3.into()), "{status}");
        assert!(status["error"].as_str().unwrap().contains("is a directory"), "{status}");
        assert_eq!(service.get("/logs/app/base").refusal(), (500, "corrupt-log".to_owned()));
        fs::remove_dir(&path).unwrap();
        fs::rename(data.join("away"), &path).unwrap();
        service.wait_state("app", "ok");
    }
}

#[test]
fn damage_that_was_found_by_reading_is_known_after_a_restart_until_the_block_is_right() {
    let data = tempfile::tempdir().unwrap();
    let log = log_of(4096, 5);
    drop(service_with(data.path(), &log.base, &log.stream(&[])));
    flip(&base_of(data.path()), 9000);
    let service = serve(data.path());
    assert_eq!(service.status("app")["state"], "ok", "nobody has read it");
    assert_eq!(said(&["verify", &service.url("/logs/app")]).0, 1);
    service.wait_state("app", "damaged");
    drop(service);
    let service = serve(data.path());
    let status = service.status("app");
    assert_eq!((&status["state"], &status["damage"]["byte"]), (&"damaged".into(), &8192.into()), "{status}");
    drop(service);
    flip(&base_of(data.path()), 9000);
    for _ in 0..2 {
        let service = serve(data.path());
        assert_eq!(service.status("app")["state"], "ok");
        assert!(service.get("/logs/app/base").body == log.base);
        assert!(!data.path().join(GENERATION).join("base.fault").exists());
    }
}

/// A copy of a mirror without its record, as `cp dr/* new/` makes it.
fn copied_without_record(from: &Path, to: &Path) {
    let _none = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_str().unwrap().starts_with('.') {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_directory_without_record_is_taken_over_only_with_the_base_of_its_source_which_it_knows_from_then_on() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (dir, copy, relayed) = (data.path().join("dir"), data.path().join("copy"), data.path().join("relayed"));
    assert_eq!(said(&["mirror", &service.url("/logs/app"), dir.to_str().unwrap()]).0, 0);
    assert_eq!(said(&["mirror", dir.to_str().unwrap(), relayed.to_str().unwrap()]).0, 0);
    let longer = FrameLog::new(512, false).with_base(3).commit(&[2, 3], 3).commit(&[1], 3);
    let more = &longer.stream(&[])[log.stream(&[]).len()..];
    let appended = service.append("app", "?from=3", more);
    assert_eq!(appended.status, 200, "{}", appended.text());
    let without_sums = (
        "without sums",
        (|copy| {
            fs::remove_file(copy.join("base.sums")).unwrap();
            flip(&copy.join("base.db"), 700);
        }) as Damage,
    );
    for source in [service.url("/logs/app"), relayed.to_str().unwrap().to_owned()] {
        let args = ["mirror", &source, copy.to_str().unwrap(), "--adopt"];
        for (what, damage) in DAMAGES.into_iter().chain([without_sums]) {
            copied_without_record(&dir, &copy);
            damage(&copy);
            let (code, text) = said(&args[..3]);
            assert!(code == 1 && text.contains("base.") && text.contains("--adopt"), "{what}: {code}: {text}");
            assert!(!copy.join(".logmirror").exists(), "{what}: nothing was written");
            let (code, text) = said(&args);
            assert_eq!(code, 0, "{what}: {text}");
            assert!(fs::read(copy.join("base.db")).unwrap() == log.base, "{what}");
            let (code, text) = said(&["verify", copy.to_str().unwrap()]);
            assert!(code == 0 && !text.contains("unproven"), "{what}: {code}: {text}");
        }
        // A whole one is, and what becomes of its base later shows.
        copied_without_record(&dir, &copy);
        fs::remove_file(copy.join("base.sums")).unwrap();
        let (code, text) = said(&["mirror", &service.url("/logs/app"), copy.to_str().unwrap()]);
        assert!(code == 0 && text.contains("taken over"), "{code}: {text}");
        flip(&copy.join("base.db"), 700);
        let (code, text) = said(&["mirror", &service.url("/logs/app"), copy.to_str().unwrap()]);
        assert!(code == 1 && text.contains("base.db has the SHA-256"), "{code}: {text}");
    }
}

#[test]
fn adopt_copies_no_base_beside_the_frames_of_another_log() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let other = FrameLog::new(512, false).with_base(5).commit(&[1, 4], 5);
    let (dir, copy) = (data.path().join("dir"), data.path().join("copy"));
    fs::create_dir(&copy).unwrap();
    assert_eq!(said(&["mirror", &service.url("/logs/app"), dir.to_str().unwrap()]).0, 0);
    for (name, bytes) in other.files(&[]) {
        fs::write(copy.join(name), bytes).unwrap();
    }
    let held = fs::read(copy.join("base.db")).unwrap();
    for flags in [&[][..], &["--adopt"]] {
        let source = service.url("/logs/app");
        let args: Vec<&str> =
            ["mirror", &source, copy.to_str().unwrap()].into_iter().chain(flags.iter().copied()).collect();
        let (code, text) = said(&args);
        assert_eq!(code, 1, "{text}");
        assert!(fs::read(copy.join("base.db")).unwrap() == held, "{text}");
    }
}

#[test]
fn a_follower_waits_for_a_base_that_is_taken_away_and_says_so() {
    let data = tempfile::tempdir().unwrap();
    let log = log(3);
    let service = service_with(data.path(), &log.base, &log.stream(&[]));
    let (copy, away) = (data.path().join("copy"), data.path().join("away"));
    let follower = Mirror::start(service.url("/logs/app"), copy.to_str().unwrap(), &["--follow"]);
    follower.wait_for("it follows", |line| line["state"] == "following");
    fs::rename(copy.join("base.db"), &away).unwrap();
    let waiting = follower.wait_for("the wait", |line| line["event"] == "retrying");
    let text = waiting["error"].as_str().unwrap();
    assert!(text.contains("base.db is missing") && text.contains("--adopt"), "{text}");
    fs::rename(&away, copy.join("base.db")).unwrap();
    let again = follower.lines().len();
    until("it goes on", || follower.lines()[again..].iter().any(|line| line["state"] == "following").then_some(()));
    assert_eq!(follower.terminate().code, Some(0));
}
