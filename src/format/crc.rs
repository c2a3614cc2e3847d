//! CRC32C (Castagnoli), fast for short commits too.
//!
//! The `crc32c` crate works on three streams at once, which pays from a few hundred bytes on; below that its set-up and
//! its byte-wise steps to an aligned address cost more than the checksum. Processors with SSE 4.2 read unaligned words as
//! fast, and work on the next short commit before they are done with this one.

/// The shortest input that the `crc32c` crate cuts into three streams.
#[cfg(target_arch = "x86_64")]
const THREE_STREAMS_BYTES: usize = 3 * 256;

/// The checksum of what `crc` is the checksum of with `bytes` behind it; that of nothing is 0.
#[inline]
pub(super) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < THREE_STREAMS_BYTES && std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has just been asked for the instructions.
        #[allow(unsafe_code)]
        return unsafe { short(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks();
    let crc = words.iter().fold(u64::from(!crc), |crc, word| _mm_crc32_u64(crc, u64::from_le_bytes(*word)));
    let mut crc = crc as u32;
    let mut rest = rest;
    if let Some((word, behind)) = rest.split_first_chunk() {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*word));
        rest = behind;
    }
    if let Some((word, behind)) = rest.split_first_chunk() {
        crc = _mm_crc32_u16(crc, u16::from_le_bytes(*word));
        rest = behind;
    }
    if let [byte] = rest {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_at_every_alignment_gives_what_the_crate_gives() {
        let bytes: Vec<u8> = (0..1000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for from in 0..8 {
            for to in from..bytes.len() {
                let piece = &bytes[from..to];
                for before in [0, 0x1234_5678, u32::MAX] {
                    assert_eq!(crc32c_append(before, piece), crc32c::crc32c_append(before, piece), "{from}..{to}");
                }
            }
        }
        assert_eq!(crc32c_append(0, b"123456789"), 0xe306_9283);
    }
}
