//! A revision stays what it is, however much is written behind it.

use logmirror::sync::turso::proto::PullUpdatesRequest;
use roaring::RoaringBitmap;

use super::support::assert_bytes;
use super::{Rig, between, real, selector};

#[test]
fn every_revision_stays_servable_after_later_writes_and_a_roll_over() {
    let log = real();
    let rig = Rig::new();
    rig.start(1, &log.base);
    let commits = log.commits();
    let (half, all) = (commits[commits.len() / 2] as usize, log.frames.len());
    let check = |frames: &[u64], when: &str| {
        for frame in frames {
            let revision = rig.revision(1, *frame);
            let pulled = rig.between("", &revision);
            assert_eq!(pulled.revision, revision);
            assert_bytes(&pulled.applied(&[]), &log.state(*frame), format!("frame {frame} {when}"));
        }
    };
    rig.append(&log, 0..half);
    let early: Vec<u64> = commits.iter().copied().filter(|frame| *frame <= half as u64).collect();
    check(&early[early.len() - 3..], "when it was the newest");
    rig.append(&log, half..all);
    check(&commits, "after later writes");
    rig.roll();
    check(&commits, "after a roll-over");
}

#[test]
fn a_bootstrap_in_chunks_is_of_one_state_though_others_write() {
    let log = real();
    let rig = Rig::new();
    rig.start(1, &log.base);
    let commits = log.commits();
    let mut sent = commits[30] as usize;
    rig.append(&log, 0..sent);
    let wanted = log.state(sent as u64);
    let (mut made, mut pin, mut size) = (Vec::new(), String::new(), 1);
    let mut first = 0;
    while u64::from(first) < size {
        let mut chunk = RoaringBitmap::new();
        chunk.insert_range(first..first + 7);
        chunk.optimize();
        let request = PullUpdatesRequest { server_pages_selector: selector(&chunk), ..between("", &pin) };
        let pulled = rig.pull(&request);
        made = pulled.applied(&made);
        (pin, size) = (pulled.revision, pulled.size);
        first += 7;
        if let Some(next) = commits.iter().find(|frame| **frame > sent as u64) {
            rig.append(&log, sent..*next as usize);
            sent = *next as usize;
        }
    }
    assert_bytes(&made, &wanted, "all chunks");
}
