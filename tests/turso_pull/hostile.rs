//! Requests that are damaged or mean harm: each is refused in so many words, and the service goes on.

use logmirror::limits::PULL_BYTES_MAX;
use logmirror::sync::turso::proto::PullUpdatesRequest;
use prost::Message;
use roaring::RoaringBitmap;

use super::support::commitlog::{Draw, seed};
use super::support::resident_bytes;
use super::support::service::request;
use super::{PULL, Rig, between, selector, short};

#[track_caller]
fn refused(rig: &Rig, body: &[u8]) -> String {
    let answer = rig.post(body);
    let text = answer.text();
    assert_eq!(answer.refusal(), (400, "invalid".into()), "{text}");
    assert!(answer.json()["message"].as_str().unwrap().len() > 10, "{text}");
    text
}

fn field(number: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | kind][..], value].concat()
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    let rig = Rig::holding(&short());
    for body in [
        // Varints that are cut, and too long.
        field(1, 0, &[]),
        field(1, 0, &[0x80]),
        field(4, 0, &[0xff; 11]),
        field(4, 0, &[0xff; 10]),
        vec![0x80],
        vec![0xff; 20],
        // Lengths that are cut, lie, or claim everything.
        field(3, 2, &[5, b'1']),
        field(3, 2, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        field(5, 2, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        field(6, 2, &[1]),
        // Wrong wire types.
        field(1, 2, &[0]),
        field(2, 0, &[7]),
        field(3, 5, &[0; 4]),
        field(4, 1, &[0; 8]),
        field(5, 0, &[7]),
        field(1, 6, &[0]),
        field(1, 7, &[0]),
        // Field 0, a group that does not end, one that ends and never began.
        vec![0, 0],
        field(15, 3, &[]),
        field(15, 4, &[]),
        // No text.
        field(3, 2, &[2, 0xc3, 0x28]),
        // Something else altogether.
        b"{\"requests\":[]}".to_vec(),
    ] {
        refused(&rig, &body);
    }
    assert_eq!(rig.bootstrap().size, 4);
}

#[test]
fn fields_that_are_not_known_are_ignored() {
    let rig = Rig::holding(&short());
    let wanted = rig.between(&rig.revision(1, 5), "");
    let known = between(&rig.revision(1, 5), "").encode_to_vec();
    let unknown = [
        vec![0x90, 0x06, 0x2a],
        field(9, 0, &[0xff, 0x01]),
        field(10, 2, &[3, 1, 2, 3]),
        field(11, 1, &[9; 8]),
        field(12, 5, &[9; 4]),
        [field(13, 3, &[]), field(1, 0, &[9]), field(13, 4, &[])].concat(),
    ];
    for unknown in unknown {
        assert_eq!(super::Pulled::of(&rig.post(&[&unknown[..], &known].concat())), wanted, "{unknown:?}");
        assert_eq!(super::Pulled::of(&rig.post(&[&known[..], &unknown].concat())), wanted, "{unknown:?}");
    }
}

#[test]
fn revisions_that_are_none_are_refused() {
    let rig = Rig::holding(&short());
    let newest = rig.revision(1, 7);
    let sum = newest.rsplit(':').next().unwrap();
    for text in [
        "0",
        "7",
        "25",
        "e1:1234",
        "junk",
        "1:7",
        "1:7:",
        "1:7:0",
        "::",
        ":::",
        " ",
        "\0",
        "-1:7:0",
        "1:-7:0",
        &format!("{newest} "),
        &format!("{newest}:"),
        &format!("0{newest}"),
        &newest.to_uppercase().replace('1', "l"),
        &format!("1:8:{sum}"),
        &format!("1:{}:{sum}", u64::MAX),
        &format!("2:7:{sum}"),
        &format!("0:7:{sum}"),
        &format!("{}:7:{sum}", u64::MAX),
        &format!("1:5:{sum}"),
        &format!("1:0:{sum}"),
        "1:7:0000000000000000",
        "1:99999999999999999999999:0000000000000000",
        &"9".repeat(9000),
    ] {
        for (from, to) in [(text, ""), ("", text), (text, text), (&newest, text), (text, &newest)] {
            let said = refused(&rig, &between(from, to).encode_to_vec());
            assert!(said.len() < 400, "{said}");
        }
    }
}

#[test]
fn the_other_kind_of_log_and_all_encodings_but_raw_are_refused() {
    let rig = Rig::holding(&short());
    for kind in [1, 2, -1, i32::MAX] {
        refused(&rig, &PullUpdatesRequest { stream_kind: kind, ..PullUpdatesRequest::default() }.encode_to_vec());
    }
    for encoding in [1, 2, -1] {
        refused(&rig, &PullUpdatesRequest { encoding, ..PullUpdatesRequest::default() }.encode_to_vec());
    }
}

fn selecting(bytes: impl Into<bytes::Bytes>) -> Vec<u8> {
    PullUpdatesRequest { server_pages_selector: bytes.into(), ..PullUpdatesRequest::default() }.encode_to_vec()
}

#[test]
fn selectors_that_are_no_bitmaps_are_refused() {
    let rig = Rig::holding(&short());
    let good = selector(&(0..3).chain(70_000..70_009).chain(200_000..200_001).collect());
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for bytes in [
        vec![1],
        vec![0; 4],
        vec![0; 100],
        vec![0xff; 100],
        good[..good.len() - 1].to_vec(),
        good[..9].to_vec(),
        [&good[..], &[0]].concat(),
        // A count, a cardinality, a key and offsets that lie.
        with(4, &u32::MAX.to_le_bytes()),
        with(4, &[4]),
        with(10, &[0xff, 0xff]),
        with(10, &[0xff, 0x0f]),
        with(12, &[0, 0]),
        with(20, &u32::MAX.to_le_bytes()),
        with(24, &[0; 4]),
        // Values out of order.
        with(32, &[9, 0]),
    ] {
        refused(&rig, &selecting(bytes));
    }
    assert_eq!(rig.bootstrap().size, 4);
}

#[test]
fn damaged_selectors_and_requests_never_harm_the_service() {
    let rig = Rig::holding(&short());
    let mut draw = Draw(seed());
    let mut runs: RoaringBitmap = (0..900_000).collect();
    runs.optimize();
    let sparse: RoaringBitmap = (0..400).map(|at| at * 40_503).collect();
    let wholes = [selecting(selector(&runs)), selecting(selector(&sparse)), between("1:7:0", "1:5:0").encode_to_vec()];
    let mut wire = rig.service.connect();
    for _ in 0..400 {
        let mut body = wholes[draw.below(3) as usize].clone();
        for _ in 0..1 + draw.below(3) {
            let at = draw.below(body.len() as u64) as usize;
            body[at] = draw.below(256) as u8;
        }
        body.truncate(1 + draw.below(2 * body.len() as u64) as usize);
        wire.send(request("POST", PULL, &format!("content-length: {}\r\n", body.len())).as_bytes());
        wire.send(&body);
        let answer = wire.answer();
        assert!(matches!(answer.status, 200 | 400), "{}: {}", answer.status, answer.text());
    }
    assert_eq!(rig.bootstrap().size, 4);
}

/// Set in the process that does nothing but measure its memory.
const ALONE: &str = "LOGMIRROR_TEST_ALONE";

#[test]
fn claims_of_all_pages_there_could_be_take_no_memory() {
    if std::env::var_os(ALONE).is_none() {
        let name = "hostile::claims_of_all_pages_there_could_be_take_no_memory";
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let rig = Rig::holding(&short());
    let mut all = RoaringBitmap::new();
    all.insert_range(..);
    all.optimize();
    let body = selecting(selector(&all));
    assert!(body.len() < PULL_BYTES_MAX, "{}", body.len());
    let wanted = rig.bootstrap();
    let before = resident_bytes();
    for _ in 0..20 {
        assert_eq!(super::Pulled::of(&rig.post(&body)).ids(), wanted.ids());
    }
    let grown = resident_bytes().saturating_sub(before);
    // Each thread that has read one keeps some 5 MB of freed memory; all pages as bits would be 512 MiB.
    assert!(grown < 96 << 20, "{grown} bytes more");
}

#[test]
fn a_body_over_the_cap_is_too_large() {
    let rig = Rig::holding(&short());
    let body = vec![0; PULL_BYTES_MAX + 1];
    let answer = rig.post(&body);
    assert_eq!(answer.refusal(), (413, "too-large".into()));
    let mut wire = rig.service.connect();
    wire.send(request("POST", PULL, "content-length: 999999999999\r\n").as_bytes());
    assert_eq!(wire.answer().status, 413);
    let mut wire = rig.service.connect();
    wire.send(request("POST", PULL, "transfer-encoding: chunked\r\n").as_bytes());
    for _ in 0..PULL_BYTES_MAX / (64 << 10) {
        wire.send_chunk(&vec![0; 64 << 10]);
    }
    wire.send_chunk(&[0]);
    assert_eq!(wire.answer().status, 413);
    assert_eq!(rig.bootstrap().size, 4);
}
