//! The pages that a client asks for: a roaring bitmap in its portable form.

use bytes::Bytes;
use roaring::RoaringBitmap;

use crate::mirror::Error;

/// Cookie of a bitmap without runs; the container count follows it.
const COOKIE: u32 = 12346;
/// Lower half of the cookie of one with runs; the upper half is the container count less 1.
const COOKIE_RUNS: u32 = 12347;
/// From so many containers on a bitmap with runs has offsets too.
const OFFSETS_FROM: usize = 4;
/// Containers with more values than this are bitmaps of so many bytes.
const ARRAY_MAX: usize = 4096;
const BITMAP_BYTES: usize = 8192;

/// The pages below `size` that `selector` names; `None` when it is empty, which means all. It takes no more memory than the
/// bytes that came, whatever they claim.
///
/// # Errors
/// [`Error::Invalid`] when it is no such bitmap, byte for byte.
pub(super) fn select(selector: &Bytes, size: u32) -> Result<Option<RoaringBitmap>, Error> {
    if selector.is_empty() {
        return Ok(None);
    }
    let invalid = |what: &str| Error::Invalid(format!("the page selector is no roaring bitmap: {what}"));
    let bytes = layout(selector).map_err(invalid)?;
    if bytes != selector.len() {
        return Err(invalid("it is followed by other bytes"));
    }
    let read = RoaringBitmap::deserialize_from(&selector[..]);
    let mut pages = read.map_err(|error| invalid(&error.to_string()))?;
    // Not by removing the rest: that takes time with the square of what is claimed.
    pages &= all(size);
    Ok(Some(pages))
}

/// The first `size` pages.
pub(super) fn all(size: u32) -> RoaringBitmap {
    let mut pages = RoaringBitmap::new();
    pages.insert_range(..size);
    pages
}

/// Follows the containers from the first to the last, and checks that they are where the offsets say; where they end.
fn layout(bytes: &[u8]) -> Result<usize, &'static str> {
    const CUT: &str = "it is cut";
    let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let cookie = word(0).ok_or(CUT)?;
    let (count, flags) = match cookie {
        COOKIE => (word(4).ok_or(CUT)? as usize, None),
        cookie if cookie & 0xffff == COOKIE_RUNS => ((cookie >> 16) as usize + 1, Some(4)),
        _ => return Err("its cookie is another"),
    };
    if count > 1 << 16 {
        return Err("it claims more than 65536 containers");
    }
    let heads = flags.map_or(8, |flags| flags + count.div_ceil(8));
    let offsets = heads + 4 * count;
    let has_offsets = flags.is_none() || count >= OFFSETS_FROM;
    let mut at = if has_offsets { offsets + 4 * count } else { offsets };
    for nth in 0..count {
        if has_offsets && word(offsets + 4 * nth).ok_or(CUT)? as usize != at {
            return Err("an offset is wrong");
        }
        let is_run =
            flags.is_some_and(|flags| bytes.get(flags + nth / 8).is_some_and(|flag| flag >> (nth % 8) & 1 == 1));
        let values = half(heads + 4 * nth + 2).ok_or(CUT)? as usize + 1;
        at += match (is_run, values) {
            (true, _) => 2 + 4 * half(at).ok_or(CUT)? as usize,
            (false, ..=ARRAY_MAX) => 2 * values,
            (false, _) => BITMAP_BYTES,
        };
        if at > bytes.len() {
            return Err(CUT);
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(bitmap: &RoaringBitmap) -> Bytes {
        let mut bytes = Vec::new();
        bitmap.serialize_into(&mut bytes).expect("memory");
        bytes.into()
    }

    fn any_bitmap() -> impl Strategy<Value = RoaringBitmap> {
        let range = (any::<u32>(), 0..200_000_u32).prop_map(|(from, count)| from..from.saturating_add(count));
        let ranges = proptest::collection::vec(range, 0..6);
        let singles = proptest::collection::vec(any::<u32>(), 0..300);
        (ranges, singles, any::<bool>()).prop_map(|(ranges, singles, optimized)| {
            let mut bitmap: RoaringBitmap = singles.into_iter().collect();
            for range in ranges {
                bitmap.insert_range(range);
            }
            if optimized {
                bitmap.optimize();
            } else {
                bitmap.remove_run_compression();
            }
            bitmap
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_bitmap_is_read_as_it_was_written(bitmap in any_bitmap(), size in any::<u32>()) {
            let mut wanted = bitmap.clone();
            wanted.remove_range(size..);
            prop_assert_eq!(select(&written(&bitmap), size).expect("a bitmap"), Some(wanted));
        }

        #[test]
        fn damage_is_refused_or_another_bitmap_and_never_a_panic(
            bitmap in any_bitmap(),
            at in any::<proptest::sample::Index>(),
            flip in 1..=u8::MAX,
            cut in any::<bool>(),
        ) {
            let mut bytes = written(&bitmap).to_vec();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at.max(1));
                prop_assert!(select(&bytes.into(), 9).is_err());
            } else {
                bytes[at] ^= flip;
                let _refused_or_not = select(&bytes.into(), u32::MAX);
            }
        }
    }

    #[test]
    fn offsets_that_lie_are_refused() {
        let mut bytes = written(&[1, 70_000, 140_000].into_iter().collect()).to_vec();
        assert!(select(&bytes.clone().into(), 9).is_ok());
        bytes[8 + 3 * 4] ^= 2;
        assert!(select(&bytes.into(), 9).is_err());
    }

    #[test]
    fn a_claim_of_all_pages_there_could_be_takes_little() {
        let mut runs = RoaringBitmap::new();
        runs.insert_range(..);
        runs.optimize();
        assert!(written(&runs).len() < 1 << 20, "{}", written(&runs).len());
        let selected = select(&written(&runs), 5).expect("a bitmap");
        assert_eq!(selected, Some((0..5).collect()));
        let claimed = [&COOKIE.to_le_bytes()[..], &u32::MAX.to_le_bytes()].concat();
        assert!(select(&claimed.into(), 5).is_err());
    }
}
