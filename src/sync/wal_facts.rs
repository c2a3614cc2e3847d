//! What a service of logmirror says about a generation with each answer of the libSQL sync routes: enough to prove that the
//! answers, and the frames in them, are of one log. Other servers say nothing of the kind. Owns: the field and its text.
//!
//! ```text
//! logmirror-wal: log=ID; generation=1; current=2; end=12:0123456789abcdef; base=HEX; base-bytes=4096; wal=HEX; next=HEX; crc=01234567
//! ```
//!
//! `generation` is the one that the answer is about, `current` the one that is written. `end` is the last durable frame and the
//! checksum in it, `wal` the 32 bytes of the WAL header that the salts and checksums of all frames follow from; a generation
//! without frames has none. `base` is the SHA-256 of the database that the generation starts from, `base-bytes` its length, and
//! `next` the SHA-256 of that of the following generation; each is left out where it is not known. `crc` is the CRC-32 of the text before `; crc`.

use std::fmt;

use crate::format::wal::{Chain, HEADER_LEN, WalHeader, WalStart};
use crate::segment::base::BaseDigest;

/// The name of the field.
pub(crate) const FIELD: &str = "logmirror-wal";

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WalFacts {
    /// The id of the log.
    pub(crate) log: String,
    pub(crate) generation: u64,
    pub(crate) current: u64,
    /// The last durable frame; 0 without any.
    pub(crate) end: u64,
    pub(crate) base: Option<BaseDigest>,
    pub(crate) base_bytes: Option<u64>,
    /// The header, and the checksum after the last durable frame.
    pub(crate) wal: Option<WalStart>,
    pub(crate) next: Option<BaseDigest>,
}

impl WalFacts {
    /// The facts in a field.
    ///
    /// # Errors
    /// When it was damaged on the way.
    pub(crate) fn parse(text: &str) -> Result<WalFacts, String> {
        let wrong = |what: &str| format!("the field {FIELD} {what}");
        let (text, crc) = text.rsplit_once("; crc=").ok_or_else(|| wrong("has no crc"))?;
        if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(text.as_bytes())) {
            return Err(wrong("does not have the CRC-32 that it says"));
        }
        let member = |name: &str| {
            text.split("; ")
                .filter_map(|member| member.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        let needed = |name: &str| member(name).ok_or_else(|| wrong(&format!("has no {name}")));
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong("has a number that is none"));
        let digest = |name: &str| member(name).map(str::parse::<BaseDigest>).transpose();
        let (end, sum) = needed("end")?.split_once(':').ok_or_else(|| wrong("has an end without a checksum"))?;
        let chain = u64::from_str_radix(sum, 16).map(Chain::from_number).map_err(|_| wrong("has a wrong checksum"))?;
        let wal = match member("wal") {
            None => None,
            Some(hex) => {
                let header = decoded(hex).and_then(|bytes| WalHeader::decode(&bytes).ok());
                Some(WalStart { header: header.ok_or_else(|| wrong("has a WAL header that is none"))?, chain })
            }
        };
        Ok(WalFacts {
            log: needed("log")?.to_owned(),
            generation: number(needed("generation")?)?,
            current: number(needed("current")?)?,
            end: number(end)?,
            base: digest("base")?,
            base_bytes: member("base-bytes").map(number).transpose()?,
            wal,
            next: digest("next")?,
        })
    }

    /// The checksum after frame `number`, where these facts have it.
    pub(crate) fn chain_after(&self, number: u64) -> Option<Chain> {
        self.wal.filter(|_| number == self.end).map(|wal| wal.chain)
    }
}

impl fmt::Display for WalFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WalFacts { log, generation, current, end, base, base_bytes, wal, next } = self;
        let sum = wal.map_or(0, |wal| wal.chain.number());
        let mut text = format!("log={log}; generation={generation}; current={current}; end={end}:{sum:016x}");
        let wal = wal.map(|wal| wal.header.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let [base, next] = [base, next].map(|digest| digest.map(|digest| digest.to_string()));
        let base_bytes = base_bytes.map(|bytes| bytes.to_string());
        let members = [("base", base), ("base-bytes", base_bytes), ("wal", wal), ("next", next)];
        for (name, value) in members {
            if let Some(value) = value {
                text += &format!("; {name}={value}");
            }
        }
        write!(f, "{text}; crc={:08x}", crc32fast::hash(text.as_bytes()))
    }
}

fn decoded(hex: &str) -> Option<[u8; HEADER_LEN]> {
    let mut bytes = [0; HEADER_LEN];
    if hex.len() != 2 * HEADER_LEN || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> WalFacts {
        let header = WalHeader { big_endian: false, page_size: 4096, sequence: 3, salts: [7, u32::MAX] };
        WalFacts {
            log: "0b7d4a6e-3a54-4f0f-9b3e-0d6c7f1f2a11".into(),
            generation: 2,
            current: 3,
            end: 12,
            base: Some(BaseDigest::of(b"a base")),
            base_bytes: Some(6),
            wal: Some(WalStart { header, chain: Chain::from_number(0x1234) }),
            next: None,
        }
    }

    #[test]
    fn facts_are_read_as_they_are_written() {
        for facts in [
            facts(),
            WalFacts { base: None, base_bytes: None, wal: None, end: 0, next: Some(BaseDigest::of(b"")), ..facts() },
        ] {
            assert_eq!(WalFacts::parse(&facts.to_string()), Ok(facts));
        }
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let text = facts().to_string();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(flipped) = String::from_utf8(bytes) {
                let parsed = WalFacts::parse(&flipped);
                assert!(parsed.is_err() || parsed == Ok(facts()), "{flipped}");
            }
        }
    }
}
