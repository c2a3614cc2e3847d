//! The numbers that cross function borders, each in a type of its own, so that an offset is never taken for a byte count.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }
    };
}

number!(
    /// The number of one entry in a log. Never a byte count. Ends of ranges are exclusive.
    Offset
);
number!(
    /// A place inside a segment or a stream, in bytes from its start.
    BytePos
);
number!(
    /// The source's leadership term. Never falls within a generation.
    Epoch
);
number!(
    /// Which history of a log: rises when the log restarts from a new base. The first is 1.
    Generation
);

impl Offset {
    /// The first offset of a log that was never pruned.
    pub const ZERO: Offset = Offset(0);
}

impl BytePos {
    /// The position `bytes` further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> BytePos {
        BytePos(self.0 + bytes)
    }
}

impl Generation {
    /// The generation every log starts with.
    pub const FIRST: Generation = Generation(1);
}
