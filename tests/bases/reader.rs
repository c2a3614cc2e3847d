//! What is read of a base is what was written, and what changed is named with file, block and byte.

use std::io;
use std::sync::Arc;

use logmirror::repo::{MemRepo, Repo};
use logmirror::segment::base::{BLOCK, BaseBuilder, BaseFault, BaseReader, store};
use proptest::prelude::*;

use crate::sha256;
use crate::support::commitlog::{get, write};

fn fault(error: &io::Error) -> BaseFault {
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    BaseFault::of(error).unwrap_or_else(|| panic!("{error} is no fault of a base")).clone()
}

/// All of it, read in pieces of `piece` bytes.
fn read(reader: &BaseReader, piece: usize) -> io::Result<Vec<u8>> {
    let (mut all, mut block) = (Vec::new(), vec![0; piece]);
    loop {
        match reader.read_at(&mut block, all.len() as u64)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&block[..count]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_in_any_pieces_is_read_in_any_pieces(
        bytes in proptest::collection::vec(any::<u8>(), 0..5 * BLOCK + 100),
        cuts in proptest::collection::vec(1..2 * BLOCK, 1..6),
        piece in 1..3 * BLOCK,
        at in 0..6 * BLOCK,
    ) {
        let repo = Arc::new(MemRepo::default());
        let mut base = BaseBuilder::create(repo.clone()).unwrap();
        let (mut rest, mut cut) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*cut.next().unwrap()));
            base.write(now.to_vec()).unwrap();
            rest = later;
        }
        let id = base.publish(true).unwrap();
        prop_assert_eq!(id.sha256.to_string(), sha256(&bytes));
        let reader = BaseReader::open(&*repo).unwrap().unwrap();
        prop_assert_eq!((reader.id(), reader.bytes(), reader.is_unproven()), (Some(id), bytes.len() as u64, false));
        prop_assert!(read(&reader, piece).unwrap() == bytes);
        let mut some = vec![0; piece];
        let count = reader.read_at(&mut some, at as u64).unwrap();
        prop_assert!(some[..count] == bytes[at.min(bytes.len())..(at + piece).min(bytes.len())]);
        prop_assert_eq!(reader.check_all(|_| ()).unwrap(), (id.sha256, vec![]));
    }

    #[test]
    fn a_flipped_bit_is_named_and_what_does_not_touch_its_block_is_read(
        blocks in 1..5usize,
        bit in any::<proptest::sample::Index>(),
    ) {
        let bytes: Vec<u8> = (0..blocks * BLOCK - 7).map(|at| (at * 31) as u8).collect();
        let (repo, bit) = (Arc::new(MemRepo::default()), bit.index((blocks * BLOCK - 7) * 8));
        store(repo.clone(), &bytes).unwrap();
        let block = bit / 8 / BLOCK;
        write(&*repo, "base.db", Some(bit as u64 / 8), &[bytes[bit / 8] ^ 1 << (bit % 8)]);
        let reader = BaseReader::open(&*repo).unwrap().unwrap();
        let expected =
            BaseFault::Block { place: repo.place(), block: block as u64, at: (block * BLOCK) as u64 };
        prop_assert_eq!(fault(&read(&reader, 3000).unwrap_err()), expected.clone());
        prop_assert_eq!(reader.check_all(|_| ()).unwrap().1, vec![expected]);
        for other in (0..blocks).filter(|other| *other != block) {
            let mut content = vec![0; BLOCK];
            let count = reader.read_at(&mut content, (other * BLOCK) as u64).unwrap();
            prop_assert!(content[..count] == bytes[other * BLOCK..][..count]);
        }
    }
}

#[test]
fn every_flipped_bit_of_the_sums_is_a_fault_of_the_sums_and_not_of_the_base() {
    let repo = Arc::new(MemRepo::default());
    store(repo.clone(), &vec![7; 2 * BLOCK + 1]).unwrap();
    let sums = get(&*repo, "base.sums");
    assert_eq!(sums.len(), 72 + 3 * 4);
    for bit in 0..sums.len() * 8 {
        let repo = Arc::new(repo.fork());
        write(&*repo, "base.sums", Some(bit as u64 / 8), &[sums[bit / 8] ^ 1 << (bit % 8)]);
        let found = BaseReader::open(&*repo).map(Option::unwrap).and_then(|reader| {
            let (all, faults) = (read(&reader, 5000), reader.check_all(|_| ())?.1);
            let fault = faults.into_iter().next().unwrap_or_else(|| panic!("bit {bit} is not found"));
            // What only readers of the block in question could see is found by those of all.
            assert!(all.is_err() || bit / 8 >= 64, "bit {bit}");
            Err::<(), _>(fault.into())
        });
        let error = found.unwrap_err();
        assert!(matches!(fault(&error), BaseFault::Sums { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn a_base_that_is_cut_or_missing_is_no_empty_base() {
    let repo = Arc::new(MemRepo::default());
    assert!(BaseReader::open(&*repo).unwrap().is_none());
    store(repo.clone(), &[1; 5000]).unwrap();
    repo.open_write("base.db").unwrap().truncate(4096).unwrap();
    let (found, expected) = (4096, 5000);
    let place = repo.place();
    let short = BaseReader::open(&*repo).unwrap_err();
    assert_eq!(fault(&short), BaseFault::Length { place: place.clone(), found, expected });
    repo.remove("base.db").unwrap();
    assert_eq!(fault(&BaseReader::open(&*repo).unwrap_err()), BaseFault::Missing { place });
}
