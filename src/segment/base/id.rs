//! Which base it is: its length and its digest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The SHA-256 of a base: what travels with it. Shown and stored in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BaseDigest(pub [u8; 32]);

impl BaseDigest {
    /// That of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> BaseDigest {
        BaseDigest(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for BaseDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BaseDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BaseDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<BaseDigest, String> {
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        });
        let bytes: Option<Vec<u8>> = pairs.collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(BaseDigest).ok_or_else(|| format!("{text:?} is no SHA-256: it takes 64 hexadecimal digits"))
    }
}

impl Serialize for BaseDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BaseDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BaseDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which base it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseId {
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: BaseDigest,
}

/// What is known of a base from outside of its directory, or from a record in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownBase {
    /// Whether there must be one.
    pub exists: bool,
    /// Its length.
    pub bytes: Option<u64>,
    /// Its digest.
    pub sha256: Option<BaseDigest>,
}

impl KnownBase {
    /// There must be one, and it is this if that is known.
    #[must_use]
    pub fn required(id: Option<BaseId>) -> KnownBase {
        KnownBase { exists: true, bytes: id.map(|id| id.bytes), sha256: id.map(|id| id.sha256) }
    }
}
