//! [`TouchedPages`]: what a query needs of a database.

use bytes::Bytes;
use roaring::RoaringBitmap;

use crate::mirror::Error;
use crate::offset::{Generation, Offset};

/// The pages that a query read, with those that a client reads to open the database, and the durable state in which it read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TouchedPages {
    /// The generation.
    pub generation: Generation,
    /// The last frame of the state; 0 for the base of the generation.
    pub frame: Offset,
    /// The pages, the first being 0.
    pub pages: RoaringBitmap,
}

impl TouchedPages {
    /// As bytes: generation, frame (u64, little-endian) and the bitmap.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(16 + self.pages.serialized_size());
        bytes.extend(self.generation.0.to_le_bytes());
        bytes.extend(self.frame.0.to_le_bytes());
        // Memory takes everything.
        let _written = self.pages.serialize_into(&mut bytes);
        bytes.into()
    }

    /// What was [encoded](Self::encode).
    ///
    /// # Errors
    /// When it was not.
    pub(crate) fn decode(bytes: &[u8]) -> Result<TouchedPages, Error> {
        let invalid = || Error::Unavailable("the pages of a query were not received whole".into());
        let (generation, rest) = bytes.split_first_chunk().ok_or_else(invalid)?;
        let (frame, pages) = rest.split_first_chunk().ok_or_else(invalid)?;
        Ok(TouchedPages {
            generation: Generation(u64::from_le_bytes(*generation)),
            frame: Offset(u64::from_le_bytes(*frame)),
            pages: RoaringBitmap::deserialize_from(pages).map_err(|_| invalid())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_as_they_were_written() {
        let pages = [0, 3, 70_000].into_iter().collect();
        let touched = TouchedPages { generation: Generation(3), frame: Offset(1 << 40), pages };
        let bytes = touched.encode();
        assert_eq!(TouchedPages::decode(&bytes).ok(), Some(touched));
        assert!((0..bytes.len()).all(|cut| TouchedPages::decode(&bytes[..cut]).is_err()));
    }
}
