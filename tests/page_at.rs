//! Pages of an open log found by frame: as a scan finds them, and indexes are there for segments that were sealed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use logmirror::api::CreateLog;
use logmirror::format::LogFormat;
use logmirror::mirror::{Log, Registry, Settings, Sought};
use logmirror::offset::Offset;
use logmirror::repo::{MemRepo, Repo};
use logmirror::segment::pages::{PageIndex, index_name};
use support::commitlog::{Draw, put, seed};
use support::frames::{FrameLog, head};
use support::process::until;

fn append(registry: &Registry, log: &Arc<Log>, frames: &FrameLog, to: usize) {
    let stream = [&frames.header.encode()[..], &frames.frames[..to].concat()].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut append = registry.append(log, None).await.unwrap();
        append.push(stream.into()).await;
        append.finish().await.unwrap();
    });
}

fn check(log: &Log, frames: &FrameLog, held: usize, what: &str) {
    for page in 1..=12 {
        for at in 0..=held as u64 + 3 {
            let last = (at as usize).min(held);
            let scanned = (1..=last).rev().find(|frame| head(&frames.frames[frame - 1]).page == page);
            let found = log.page_at(page, Offset(at)).unwrap();
            assert_eq!(found, scanned.map(|frame| Offset(frame as u64)), "{what}: page {page} at {at}");
        }
    }
}

/// Checks that the newest frame of each page in a range comes, and before any older one.
fn check_newest(log: &Log, frames: &FrameLog, draw: &mut Draw) {
    let all = frames.frames.len() as u64;
    for few in [false, true] {
        let start = 1 + draw.below(all);
        let end = start + draw.below(all + 3 - start);
        let sought: Vec<u32> = (1..=12).filter(|page| !few || page % 3 == 0).collect();
        let mut found = std::collections::BTreeMap::new();
        let wanted = if few { Sought::These(&sought) } else { Sought::All };
        let range = Offset(start)..Offset(end);
        log.newest_frames(&range, wanted, |page, frame| {
            assert!(range.contains(&frame), "{frame}");
            found.entry(page).or_insert(frame);
            true
        })
        .unwrap();
        let scanned = |page: u32| {
            let mut numbers = (start..end.min(all + 1)).rev();
            numbers.find(|number| head(&frames.frames[*number as usize - 1]).page == page)
        };
        let scanned = sought.iter().filter_map(|page| Some((*page, Offset(scanned(*page)?)))).collect();
        assert_eq!(found, scanned, "{start}..{end}");
    }
}

#[test]
fn the_newest_frames_of_a_range_are_those_of_a_scan() {
    let mut draw = Draw(seed());
    // Short segments are told by the headers of their frames, long ones by their indexes.
    for (segment, commits) in [(5, 30), (300, 250), (u64::MAX / 536, 150)] {
        let mut frames = FrameLog::new(512, false);
        for _ in 0..commits {
            let pages: Vec<u32> = (0..1 + draw.below(5)).map(|_| 1 + draw.below(12) as u32).collect();
            frames = frames.commit(&pages, 12);
        }
        let settings = Settings { wal_segment_bytes: segment * 536, writer_threads: 1, ..Settings::default() };
        let registry = Registry::open(Arc::new(MemRepo::default()), settings).unwrap();
        let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None };
        let (log, _) = registry.create("app", wanted).unwrap();
        append(&registry, &log, &frames, frames.frames.len());
        for _ in 0..300 {
            check_newest(&log, &frames, &mut draw);
        }
        let mut taken = 0;
        log.newest_frames(&(Offset(1)..Offset(1000)), Sought::All, |_, _| {
            taken += 1;
            taken < 3
        })
        .unwrap();
        assert_eq!(taken, 3, "nothing comes once nothing is wanted");
    }
}

#[test]
fn a_page_is_found_as_a_scan_finds_it_and_rotation_leaves_indexes() {
    let mut draw = Draw(seed());
    let mut frames = FrameLog::new(512, false);
    for _ in 0..30 {
        let pages: Vec<u32> = (0..1 + draw.below(5)).map(|_| 1 + draw.below(11) as u32).collect();
        frames = frames.commit(&pages, 12);
    }
    let (half, all) = (frames.commits()[14] as usize, frames.frames.len());
    let disk = MemRepo::default();
    let settings = Settings { wal_segment_bytes: 5 * 536, writer_threads: 1, ..Settings::default() };
    let registry = Registry::open(Arc::new(disk.clone()), settings).unwrap();
    let (log, _) = registry
        .create("app", CreateLog { format: LogFormat::Wal, first: None, checkpoint: None, foreign_keys: None })
        .unwrap();
    assert_eq!(log.page_at(1, Offset(9)).unwrap(), None);
    append(&registry, &log, &frames, half);
    check(&log, &frames, half, "half of it");
    append(&registry, &log, &frames, all);
    check(&log, &frames, all, "all of it");

    let sealed: Vec<Offset> = log.view().sealed.iter().map(|segment| segment.start).collect();
    assert!(sealed.len() > 4, "{sealed:?}");
    let files = disk.dir("logs").unwrap().dir("app").unwrap().dir("0000000001").unwrap();
    for start in &sealed {
        until("the index", || PageIndex::load(&*files, *start).unwrap());
    }
    registry.stop();
    drop((registry, log));

    // Opened anew, damaged and missing indexes are made again when they are asked for.
    put(&*files, &index_name(sealed[0]), b"nonsense");
    files.remove(&index_name(sealed[2])).unwrap();
    let registry = Registry::open(Arc::new(disk.after_power_loss(logmirror::repo::Loss::Nothing)), settings).unwrap();
    let log = registry.get("app").unwrap();
    assert!(PageIndex::load(&**log.repo(), sealed[0]).unwrap().is_none(), "not before");
    check(&log, &frames, all, "opened anew");
    for start in &sealed {
        assert!(PageIndex::load(&**log.repo(), *start).unwrap().is_some(), "{start}");
    }
    registry.stop();
}
