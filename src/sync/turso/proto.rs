//! The messages of `/pull-updates`, in protobuf. A request is one bare message; an answer is a header and pages, each with
//! its length in front. Fields that a client may not know stay at their defaults, which are not written.

use bytes::Bytes;
use prost::{Enumeration, Message};

/// Bytes of a page: clients know no other.
pub const PAGE_LEN: usize = 4096;

/// The most bytes that an answer takes for a page besides the page: two lengths of two bytes each, the page's number with
/// up to five, and two tags.
pub const PAGE_EXTRA_MAX: usize = 12;

/// How pages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum PageEncoding {
    /// As they are.
    Raw = 0,
    /// Compressed. Clients never ask for it, and an answer may be raw all the same.
    Zstd = 1,
}

/// What is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum StreamKind {
    /// Pages.
    Pages = 0,
    /// A log of another kind, which only a server that speaks of it is asked for.
    MvccLog = 1,
}

/// The protocol that an answer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Protocol {
    /// Not said: pages.
    Unspecified = 0,
    /// Pages.
    Pages = 1,
    /// The other kind of log.
    MvccLog = 2,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PullUpdatesRequest {
    /// How pages are to be encoded.
    #[prost(enumeration = "PageEncoding", tag = "1")]
    pub encoding: i32,
    /// The upper end; empty for the newest.
    #[prost(string, tag = "2")]
    pub server_revision: String,
    /// The lower end, which the client has; empty for nothing.
    #[prost(string, tag = "3")]
    pub client_revision: String,
    /// How long to wait for something newer than the lower end.
    #[prost(uint32, tag = "4")]
    pub long_poll_timeout_ms: u32,
    /// A roaring bitmap of the pages wanted, the first being 0; empty for all.
    #[prost(bytes = "bytes", tag = "5")]
    pub server_pages_selector: Bytes,
    /// Reserved.
    #[prost(bytes = "bytes", tag = "6")]
    pub client_pages: Bytes,
    /// A query whose pages are wanted.
    #[prost(string, tag = "7")]
    pub server_query_selector: String,
    /// What is pulled.
    #[prost(enumeration = "StreamKind", tag = "8")]
    pub stream_kind: i32,
}

/// How an answer starts.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PullUpdatesResponse {
    /// The upper end of what is sent.
    #[prost(string, tag = "1")]
    pub server_revision: String,
    /// Pages of the database there.
    #[prost(uint64, tag = "2")]
    pub db_size: u64,
    /// Set: pages come as they are.
    #[prost(message, optional, tag = "3")]
    pub raw_encoding: Option<RawEncoding>,
    /// What the answer is a stream of.
    #[prost(enumeration = "StreamKind", tag = "5")]
    pub stream_kind: i32,
    /// The protocol it follows.
    #[prost(enumeration = "Protocol", tag = "8")]
    pub protocol: i32,
}

/// Pages come as they are.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RawEncoding {}

/// A page.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PageData {
    /// Its number, the first being 0.
    #[prost(uint64, tag = "1")]
    pub page_id: u64,
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub encoded_page: Bytes,
}

/// Writes what stands before the bytes of a page, the length of the message included; how many bytes that is.
pub fn write_page_head(page_id: u32, out: &mut [u8; PAGE_EXTRA_MAX]) -> usize {
    let mut varint = [0; 5];
    let digits = write_varint(page_id, &mut varint);
    // A number of 0 is the default and is left out.
    let number = if page_id == 0 { 0 } else { 1 + digits };
    let mut at = write_varint((number + 3 + PAGE_LEN) as u32, out);
    if number > 0 {
        out[at] = 1 << 3;
        out[at + 1..at + number].copy_from_slice(&varint[..digits]);
        at += number;
    }
    out[at] = 2 << 3 | 2;
    at + 1 + write_varint(PAGE_LEN as u32, &mut out[at + 1..])
}

/// Bytes that `pages` take which have numbers of as many digits as `page_id`.
#[must_use]
pub fn page_bytes(page_id: u32, pages: u64) -> u64 {
    (write_page_head(page_id, &mut [0; PAGE_EXTRA_MAX]) + PAGE_LEN) as u64 * pages
}

fn write_varint(mut value: u32, out: &mut [u8]) -> usize {
    let mut at = 0;
    while value >= 1 << 7 {
        out[at] = value as u8 | 1 << 7;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_as_prost_writes_it() {
        let page = Bytes::from(vec![7; PAGE_LEN]);
        let ends = [1_u32 << 7, 1 << 14, 1 << 21, 1 << 28].into_iter().flat_map(|end| [end - 1, end]);
        for page_id in [0, 1, u32::MAX - 1, u32::MAX].into_iter().chain(ends) {
            let mut head = [0; PAGE_EXTRA_MAX];
            let written = write_page_head(page_id, &mut head);
            let wanted =
                PageData { page_id: page_id.into(), encoded_page: page.clone() }.encode_length_delimited_to_vec();
            assert_eq!([&head[..written], &page].concat(), wanted, "page {page_id}");
            assert_eq!(page_bytes(page_id, 3), wanted.len() as u64 * 3);
        }
    }
}
