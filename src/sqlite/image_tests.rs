use super::*;
use crate::format::wal::{Chain, FrameHeader, WalHeader};
use crate::repo::{Faults, Loss, MemRepo, Repo};
use crate::sqlite::wal_append::{WalAppender, new_header};

fn page(page_size: u32, number: u32, version: u32) -> Vec<u8> {
    (0..page_size).map(|at| (at * 7 + number * 31 + version * 101) as u8).collect()
}

/// A database of `base` pages, and over it a WAL with frames of a page and a commit size each.
fn stored(header: WalHeader, base: u32, frames: &[(u32, u32)]) -> MemRepo {
    let repo = MemRepo::default();
    let database: Vec<u8> = (1..=base).flat_map(|number| page(header.page_size, number, 0)).collect();
    let file = repo.create("a").unwrap();
    file.write_at(&mut [IoSlice::new(&database)], 0).unwrap();
    file.sync().unwrap();
    let mut wal = WalAppender::create(&repo, "a-wal", header).unwrap();
    for (version, (number, size)) in (1..).zip(frames) {
        let head = FrameHeader { page: *number, size: *size, salts: [0; 2], chain: Chain::default() };
        wal.append([(head, &page(header.page_size, *number, version)[..])]).unwrap();
    }
    wal.sync().unwrap();
    repo
}

/// The database as of frame `last`, which ends a transaction, made the simple way.
fn simple(page_size: u32, base: u32, frames: &[(u32, u32)], last: usize) -> Vec<Vec<u8>> {
    let mut pages: Vec<_> = (1..=base).map(|number| page(page_size, number, 0)).collect();
    for (version, (number, size)) in (1..).zip(&frames[..last]) {
        let at = *number as usize - 1;
        pages.resize(pages.len().max(at + 1), Vec::new());
        pages[at] = page(page_size, *number, version);
        pages.truncate(if *size > 0 { *size as usize } else { pages.len() });
    }
    pages
}

fn image(repo: &MemRepo, page_size: u32, frames: usize) -> Image {
    let image = Image::of(repo.open("a").unwrap(), page_size).unwrap();
    image.over(repo.open("a-wal").unwrap(), frames as u64).unwrap()
}

fn content(repo: &MemRepo) -> Vec<u8> {
    let file = repo.open("a").unwrap();
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Overwrites, grows, shrinks, grows again, and ends inside a transaction.
const EVENTFUL: [(u32, u32); 14] =
    [(3, 0), (1, 4), (5, 0), (6, 0), (1, 0), (7, 0), (5, 7), (2, 3), (4, 0), (1, 4), (1, 4), (5, 0), (2, 5), (4, 0)];

#[test]
fn a_database_as_of_a_commit_reads_and_folds_as_it_was() {
    for page_size in [512, 4096, 65_536] {
        let header = new_header(page_size, 0);
        let mut commit = 0;
        for frames in 0..=EVENTFUL.len() {
            commit = if frames > 0 && EVENTFUL[frames - 1].1 > 0 { frames } else { commit };
            let wanted = simple(page_size, 4, &EVENTFUL, commit);
            let repo = stored(header, 4, &EVENTFUL);
            let image = image(&repo, page_size, frames);
            assert_eq!(image.pages() as usize, wanted.len(), "frame {frames}");
            let mut found = vec![0; page_size as usize];
            for (number, wanted) in (1..).zip(&wanted) {
                assert!(image.find_page(number, &mut found).unwrap(), "page {number} as of frame {frames}");
                assert!(found == *wanted, "page {number} as of frame {frames}");
            }
            for absent in [0, wanted.len() as u32 + 1, u32::MAX] {
                assert!(!image.find_page(absent, &mut found).unwrap(), "page {absent} as of frame {frames}");
            }
            assert_eq!(image.is_folded().unwrap(), commit == 0);
            image.fold_into(&*repo.open_write("a").unwrap()).unwrap();
            assert!(content(&repo) == wanted.concat(), "frame {frames}");
            assert!(image.is_folded().unwrap());
        }
    }
}

#[test]
fn a_fold_that_was_cut_off_at_any_step_is_completed_by_another() {
    let (header, frames) = (new_header(512, 0), &EVENTFUL[..13]);
    let wanted = simple(512, 4, frames, 13).concat();
    let mut steps = 0;
    for step in 0.. {
        let mut is_past_the_end = false;
        for loss in [Loss::All, Loss::Nothing, Loss::Prefix { seed: step }, Loss::Torn { seed: step }] {
            let repo = stored(header, 4, frames);
            repo.sync_dir().unwrap();
            repo.set_faults(Faults { power_loss_at: Some(step), ..Faults::default() });
            let folded = repo.open_write("a").and_then(|file| image(&repo, 512, 13).fold_into(&*file));
            is_past_the_end = folded.is_ok();
            let repo = repo.after_power_loss(loss);
            assert!(folded.is_err() || content(&repo) == wanted, "step {step}, {loss:?}");
            image(&repo, 512, 13).fold_into(&*repo.open_write("a").unwrap()).unwrap();
            assert!(content(&repo.after_power_loss(Loss::All)) == wanted, "step {step}, {loss:?}");
        }
        steps = step;
        if is_past_the_end {
            break;
        }
    }
    assert!(steps > 2, "{steps}");
}

#[test]
fn runs_are_consecutive_pages_in_order_and_bounded() {
    let mut newest = Newest::default();
    let page_size = READ_BLOCK as u32 / 4;
    for number in [9, 3, 20, 2, 4, 10, 5, 6, 7, 1] {
        newest.add(number, 0, number);
    }
    newest.add(2, 12, 200);
    newest.add(8, 0, 8);
    let mut runs = Vec::new();
    let read = |number: u32, place: u32, run: &mut Vec<u8>| {
        assert!(place == number || (number, place) == (2, 200));
        run.resize(run.len() + page_size as usize, number as u8);
        Ok::<_, io::Error>(())
    };
    let write = |first, run: &[u8]| {
        assert!(run.len() <= READ_BLOCK);
        runs.push((first, run.iter().copied().step_by(page_size as usize).collect::<Vec<_>>()));
        Ok(())
    };
    newest.fold(page_size, read, write).unwrap();
    assert_eq!(runs, [(1, vec![1, 2, 3, 4]), (5, vec![5, 6, 7]), (9, vec![9, 10])]);
}
