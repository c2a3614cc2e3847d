//! [`Scanner`]: slices of any size in, verified commits out.

use super::{Begin, Commit, Format, FormatError};
use crate::offset::{BytePos, Offset};

/// What a [`Scanner`] found, ending exactly where the input slice now starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<H> {
    /// A segment header.
    Header(H),
    /// A whole commit whose checksum matches.
    Commit(Commit),
}

/// Why a stream stops being a log, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes are wrong.
    #[error("{error}{}", place(.offset, .at))]
    Corrupt {
        /// Offset that should have come there, when known.
        offset: Option<Offset>,
        /// Start of the unit in the stream.
        at: BytePos,
        /// What is wrong.
        error: FormatError,
    },
    /// The stream ended inside a unit or inside a commit.
    #[error("ends inside a commit or header, {trailing} bytes after its start{}", place(.offset, .at))]
    Truncated {
        /// Offset of the commit that was cut, when known.
        offset: Option<Offset>,
        /// Start of the unfinished commit or header in the stream.
        at: BytePos,
        /// Bytes after that start.
        trailing: u64,
    },
}

fn place(offset: &Option<Offset>, at: &BytePos) -> String {
    match offset {
        Some(offset) => format!(" at offset {offset}, byte {at}"),
        None => format!(" at byte {at}"),
    }
}

/// Walks over the bytes of a log and yields segment headers and verified commits. How the bytes are cut into slices
/// never changes what it yields. It copies nothing but heads that a chunk border cuts.
///
/// After an error it yields the same error for ever.
///
/// ```
/// use logmirror::format::{Item, Scanner, commitlog::Commitlog};
///
/// let bytes = std::fs::read("segments/commitlog/whole/00000000000000000000.stdb.log")?;
/// let mut scanner = Scanner::new(Commitlog::default());
/// let mut commits = 0;
/// for chunk in bytes.chunks(7) {
///     let mut input = chunk;
///     while let Some(item) = scanner.next(&mut input)? {
///         commits += usize::from(matches!(item, Item::Commit(_)));
///     }
/// }
/// scanner.finish()?; // an error if the bytes end inside a commit
/// assert_eq!(commits, 37);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scanner<F: Format> {
    format: F,
    /// The head of a unit that a chunk border cut; empty when the last unit is done or its head was decided.
    head: Vec<u8>,
    /// Bytes of the announced unit still to come.
    left: u64,
    /// Bytes taken from the stream so far.
    pos: u64,
    /// Where the last whole item ended.
    boundary: u64,
    failed: Option<ScanError>,
}

impl<F: Format> Scanner<F> {
    /// A scanner at the start of a stream.
    pub fn new(format: F) -> Self {
        let head = Vec::with_capacity(F::HEAD_MAX);
        Scanner { format, head, left: 0, pos: 0, boundary: 0, failed: None }
    }

    /// Where the last whole item ended, counted from the start of the stream.
    #[must_use]
    pub fn boundary(&self) -> BytePos {
        BytePos(self.boundary)
    }

    /// Bytes seen behind [`boundary`](Self::boundary): 0 exactly when the stream may end here.
    #[must_use]
    pub fn trailing(&self) -> u64 {
        self.pos - self.boundary
    }

    /// The format's state, which knows what came last.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// Takes bytes from the front of `input` until an item is whole or the input is used up (`None`).
    ///
    /// # Errors
    /// When what comes is not a sound continuation. All items yielded before stand.
    #[inline]
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Item<F::Header>>, ScanError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance(input) {
            Ok(item) => Ok(item),
            Err(error) => Err(self.fail(error)),
        }
    }

    #[cold]
    fn fail(&mut self, error: FormatError) -> ScanError {
        let error = ScanError::Corrupt { offset: self.format.expected(), at: BytePos(self.boundary), error };
        self.failed = Some(error.clone());
        error
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`ScanError::Truncated`] off a boundary; the error of [`next`](Self::next) if there was one.
    pub fn finish(&self) -> Result<(), ScanError> {
        match (&self.failed, self.trailing()) {
            (Some(error), _) => Err(error.clone()),
            (None, 0) => Ok(()),
            (None, trailing) => {
                let (offset, at) = (self.format.expected(), BytePos(self.boundary));
                Err(ScanError::Truncated { offset, at, trailing })
            }
        }
    }

    #[inline]
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Item<F::Header>>, FormatError> {
        while !input.is_empty() {
            if self.left == 0 {
                let begun = match self.begin(input)? {
                    Some(begun) => begun,
                    None => return Ok(None),
                };
                if let Begin::Header(header, _) = begun {
                    self.boundary = self.pos;
                    return Ok(Some(Item::Header(header)));
                }
                if self.left > 0 && input.is_empty() {
                    return Ok(None);
                }
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
            let (piece, rest) = input.split_at(take);
            self.format.absorb(piece);
            *input = rest;
            self.pos += take as u64;
            self.left -= take as u64;
            if self.left == 0
                && let Some(commit) = self.format.end()?
            {
                self.boundary = self.pos;
                return Ok(Some(Item::Commit(commit)));
            }
        }
        Ok(None)
    }

    /// Decides what starts here. `None`: more bytes are needed and the input is used up. After a unit, `left` is what is
    /// still to absorb of it.
    #[inline]
    fn begin(&mut self, input: &mut &[u8]) -> Result<Option<Begin<F::Header>>, FormatError> {
        if !self.head.is_empty() {
            return self.gather(input);
        }
        let begun = self.format.begin(input)?;
        match begun {
            Begin::Need(_) => return self.gather(input),
            Begin::Header(_, bytes) => {
                *input = &input[bytes..];
                self.pos += bytes as u64;
            }
            Begin::Unit(bytes) => self.left = bytes,
        }
        Ok(Some(begun))
    }

    /// Decides what starts here from a head that a chunk border cuts.
    #[cold]
    fn gather(&mut self, input: &mut &[u8]) -> Result<Option<Begin<F::Header>>, FormatError> {
        loop {
            let begun = self.format.begin(if self.head.is_empty() { input } else { &self.head })?;
            match begun {
                Begin::Need(need) => {
                    let take = need.saturating_sub(self.head.len()).min(input.len());
                    self.head.extend_from_slice(&input[..take]);
                    *input = &input[take..];
                    self.pos += take as u64;
                    if self.head.len() < need {
                        return Ok(None);
                    }
                    continue;
                }
                Begin::Header(..) => {}
                Begin::Unit(bytes) => {
                    self.format.absorb(&self.head);
                    self.left = bytes - self.head.len() as u64;
                }
            }
            self.head.clear();
            return Ok(Some(begun));
        }
    }
}
