//! [`Chain`]: the checksum that runs on from frame to frame, and what follows from its being linear.

use super::{FRAME_HEADER_LEN, SUMMED_HEAD_LEN};

/// A running checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain {
    pub(super) s0: u32,
    pub(super) s1: u32,
}

impl Chain {
    /// The checksum as stored in bytes 16..24 of a frame, or 24..32 of a header.
    #[must_use]
    pub fn decode(bytes: [u8; 8]) -> Chain {
        let both = u64::from_be_bytes(bytes);
        Chain { s0: (both >> 32) as u32, s1: both as u32 }
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        self.number().to_be_bytes()
    }

    /// The checksum of that [`number`](Self::number).
    #[must_use]
    pub fn from_number(number: u64) -> Chain {
        Chain::decode(number.to_be_bytes())
    }

    /// As one number, the first word in the upper half.
    #[must_use]
    pub fn number(self) -> u64 {
        u64::from(self.s0) << 32 | u64::from(self.s1)
    }

    /// What becomes of this checksum after `bytes` more, if they are all zero. Checksums are linear: after the same bytes,
    /// two of them differ by what becomes of their difference, whatever the bytes are. `bytes` counts in eights.
    ///
    /// One step of eight takes (s0, s1) to (s0 + s1, s0 + 2 s1), and many steps are a power of that.
    #[must_use]
    pub fn carried(self, bytes: u64) -> Chain {
        Carry::over(bytes).of(self)
    }

    /// The sum of two, word by word.
    #[must_use]
    pub fn plus(self, other: Chain) -> Chain {
        Chain { s0: self.s0.wrapping_add(other.s0), s1: self.s1.wrapping_add(other.s1) }
    }

    /// The difference of two, word by word.
    #[must_use]
    pub fn minus(self, other: Chain) -> Chain {
        Chain { s0: self.s0.wrapping_sub(other.s0), s1: self.s1.wrapping_sub(other.s1) }
    }

    /// The checksum after `bytes` more, whose number must be a multiple of 8: what is over is left out.
    #[must_use]
    #[inline]
    pub fn over(self, bytes: &[u8], big_endian: bool) -> Chain {
        if big_endian { self.sum(bytes, u32::from_be_bytes) } else { self.sum(bytes, u32::from_le_bytes) }
    }

    /// The checksum after a frame: bytes 0..8 of its header, and its page.
    #[must_use]
    #[inline]
    pub fn over_frame(self, head: &[u8; FRAME_HEADER_LEN], page: &[u8], big_endian: bool) -> Chain {
        self.over(&head[..SUMMED_HEAD_LEN], big_endian).over(page, big_endian)
    }

    #[inline]
    fn sum(self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Chain {
        let lane = bytes.len() / LANES / 8 * 8;
        let (lanes, rest) = bytes.split_at(if lane < LANE_MIN { 0 } else { lane * LANES });
        let mut sum = self;
        if let Some([a, b, c, d]) = quarters(lanes) {
            let mut sums = [self, Chain::default(), Chain::default(), Chain::default()];
            for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
                for (sum, bytes) in sums.iter_mut().zip([a, b, c, d]) {
                    sum.step(*bytes, &word);
                }
            }
            let carry = Carry::over(lane as u64);
            sum = sums.into_iter().reduce(|before, sum| carry.of(before).plus(sum)).unwrap_or(self);
        }
        for bytes in rest.as_chunks().0 {
            sum.step(*bytes, &word);
        }
        sum
    }

    #[inline(always)]
    fn step(&mut self, [a, b, c, d, e, f, g, h]: [u8; 8], word: &impl Fn([u8; 4]) -> u32) {
        self.s0 = self.s0.wrapping_add(word([a, b, c, d])).wrapping_add(self.s1);
        self.s1 = self.s1.wrapping_add(word([e, f, g, h])).wrapping_add(self.s0);
    }
}

/// Each step of a sum waits for the one before, so long bytes are summed up in as many lanes at once, which are put
/// together by what [`Chain::carried`] says.
const LANES: usize = 4;
/// Shorter lanes are not worth it.
const LANE_MIN: usize = 128;

type Eights<'a> = &'a [[u8; 8]];

/// The four equal parts of these bytes, if there are any.
fn quarters(bytes: &[u8]) -> Option<[Eights<'_>; LANES]> {
    let eights = bytes.as_chunks().0;
    let (front, back) = eights.split_at(eights.len() / 2);
    let ((a, b), (c, d)) = (front.split_at(front.len() / 2), back.split_at(back.len() / 2));
    (!a.is_empty()).then_some([a, b, c, d])
}

/// What zeros make of a checksum: a power of the matrix of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carry([u32; 4]);

impl Carry {
    /// For so many bytes.
    pub(crate) fn over(bytes: u64) -> Carry {
        let (mut steps, mut power, mut all) = (bytes / 8, Carry([1, 1, 1, 2]), Carry([1, 0, 0, 1]));
        while steps > 0 {
            if steps & 1 == 1 {
                all = all.times(&power);
            }
            power = power.times(&power);
            steps >>= 1;
        }
        all
    }

    fn times(&self, &Carry([e, f, g, h]): &Carry) -> Carry {
        let [a, b, c, d] = self.0;
        let dot = |x: u32, y: u32, z: u32, w: u32| x.wrapping_mul(y).wrapping_add(z.wrapping_mul(w));
        Carry([dot(a, e, b, g), dot(a, f, b, h), dot(c, e, d, g), dot(c, f, d, h)])
    }

    /// As [`Chain::carried`].
    pub(crate) fn of(&self, sum: Chain) -> Chain {
        let Carry([s0, _, s1, _]) = self.times(&Carry([sum.s0, 0, sum.s1, 0]));
        Chain { s0, s1 }
    }
}
