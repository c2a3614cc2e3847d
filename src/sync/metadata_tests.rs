#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::repo::{Faults, Loss, MemRepo};

const NAME: &str = "app.db-info";

fn at(generation: u32, frame: u32) -> Position {
    Position { generation, frame }
}

fn file(disk: &MemRepo) -> MetadataFile {
    MetadataFile::new(Arc::new(disk.clone()), NAME.into())
}

#[test]
fn hashes_are_those_of_libsql() {
    for (frame, generation, hash) in [
        (0, 1, 3_278_479_626_u32),
        (12, 1, 2_496_050_245),
        (22, 1, 2_042_468_774),
        (0, 2, 3_520_859_876),
        (0, 3, 1_767_926_145),
    ] {
        let text = format!(r#"{{"hash":{hash},"version":0,"durable_frame_num":{frame},"generation":{generation}}}"#);
        assert_eq!(String::from_utf8(encode(at(generation, frame))).unwrap(), text);
        assert_eq!(decode(text.as_bytes()).unwrap(), at(generation, frame));
    }
}

#[test]
fn keys_are_read_in_any_order_and_strange_ones_are_passed_over() {
    let text = r#"{ "generation": 1, "more": [], "durable_frame_num": 12, "version": 0, "hash": 2496050245 }"#;
    assert_eq!(decode(text.as_bytes()).unwrap(), at(1, 12));
}

#[test]
fn each_kind_of_damage_has_its_name() {
    let hashed = |version, frame, generation| {
        let mut stored = Stored { hash: 0, version, durable_frame_num: frame, generation };
        stored.hash = stored.hash();
        serde_json::to_vec(&stored).unwrap()
    };
    assert!(matches!(decode(&hashed(1, 12, 1)), Err(Unusable::Version { found: 1 })));
    assert!(matches!(decode(&hashed(0, 12, 0)), Err(Unusable::Generation)));
    let changed = String::from_utf8(hashed(0, 12, 1)).unwrap().replace(":12,", ":13,");
    assert!(matches!(decode(changed.as_bytes()), Err(Unusable::Hash { found: 2_496_050_245, .. })));
    for text in [
        "",
        "garbage",
        "null",
        "[]",
        "{}",
        r#"{"hash":1,"version":0,"durable_frame_num":12}"#,
        r#"{"hash":1,"version":0,"durable_frame_num":-1,"generation":1}"#,
        r#"{"hash":1,"version":0,"durable_frame_num":4294967296,"generation":1}"#,
        r#"{"hash":"1","version":0,"durable_frame_num":12,"generation":1}"#,
    ] {
        assert!(matches!(decode(text.as_bytes()), Err(Unusable::Json(_))), "{text}");
    }
    assert!(matches!(decode(b"\xff\xfe\0"), Err(Unusable::Json(_))));
}

#[test]
fn moments_are_written_as_libsql_does() {
    for (seconds, text) in [
        (0, "19700101_000000"),
        (951_782_399, "20000228_235959"),
        (951_782_400, "20000229_000000"),
        (951_868_800, "20000301_000000"),
        (1_709_164_800, "20240229_000000"),
        (1_767_225_599, "20251231_235959"),
        (4_107_542_400, "21000301_000000"),
        (1_795_182_337, "20261120_134537"),
    ] {
        assert_eq!(stamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}

#[test]
fn only_drafts_that_crashes_left_are_removed() {
    let disk = MemRepo::new(Faults::default());
    let old = draft_name(SystemTime::now() - 2 * DRAFT_STALE_AFTER, Uuid::new_v4());
    let new = draft_name(SystemTime::now(), Uuid::new_v4());
    let kept = [&new, ".tmp.20200101_000000", ".tmp.20200101_000000.x", "tmp.20200101_000000.x", "app.db", NAME];
    for name in kept.iter().chain([&old.as_str()]) {
        disk.create(name).unwrap();
    }
    file(&disk).clean().unwrap();
    let mut found = disk.list().unwrap();
    found.sort();
    let mut kept = kept.map(str::to_owned);
    kept.sort();
    assert_eq!(found, kept);
}

#[test]
fn a_power_failure_leaves_the_old_content_or_the_new() {
    let (old, new) = (at(1, 12), at(2, 345));
    let mut seen = Vec::new();
    for failing in 0.. {
        let disk = MemRepo::new(Faults::default());
        file(&disk).store(old).unwrap();
        disk.set_faults(Faults { power_loss_at: Some(failing), ..Faults::default() });
        let stored = file(&disk).store(new);
        for loss in [Loss::All, Loss::Nothing, Loss::Prefix { seed: failing }, Loss::Torn { seed: failing }] {
            let found = file(&disk.after_power_loss(loss)).load().unwrap();
            assert!(found == old || found == new, "{found:?} after {failing} calls");
            assert!(stored.is_err() || found == new, "acknowledged and lost after {failing} calls");
            seen.push(found);
        }
        if stored.is_ok() {
            break;
        }
    }
    assert!(seen.contains(&old) && seen.contains(&new));
}

proptest! {
    #[test]
    fn what_is_written_is_read(generation in 1_u32.., frame in 0_u32..) {
        prop_assert_eq!(decode(&encode(at(generation, frame))).unwrap(), at(generation, frame));
    }

    #[test]
    fn bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&content);
    }

    /// A byte changed anywhere in a digit or a name either shows, or changed nothing that counts.
    #[test]
    fn a_changed_byte_shows(generation in 1_u32.., frame in 0_u32.., place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut content = encode(at(generation, frame));
        let place = place.index(content.len());
        content[place] = byte;
        match decode(&content) {
            Ok(found) => prop_assert_eq!(found, at(generation, frame)),
            Err(Unusable::Json(_) | Unusable::Hash { .. } | Unusable::Version { .. } | Unusable::Generation) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_cut_shows(generation in 1_u32.., frame in 0_u32.., keep in any::<prop::sample::Index>()) {
        let content = encode(at(generation, frame));
        prop_assert!(decode(&content[..keep.index(content.len())]).is_err());
    }
}
