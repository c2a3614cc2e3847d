//! The checksums of the pages of a service's log, as they are received: [`page_sums`](super::page_sums) has the bytes.

use bytes::{Buf, BytesMut};
use futures::TryStreamExt;

use super::failure::MirrorError;
use super::page_sums::{HEAD_LEN, proof_of};
use crate::client::{Client, ClientError};
use crate::format::wal::is_page_size;
use crate::offset::Offset;
use crate::sqlite::page_sums::{PageSums, new_key};

/// The pages of a log as of a commit.
#[derive(Debug)]
pub(super) struct ReceivedSums {
    pub(super) sums: PageSums,
    /// The offset after that commit.
    pub(super) next: Offset,
    /// Of a log without a page, anything.
    pub(super) page_size: u32,
}

impl ReceivedSums {
    /// Asks for those of the current generation; `None` when its pages have another size than `wanted`, and there are some.
    ///
    /// # Errors
    /// When the service does not send them, whole and as a database has them.
    pub(super) async fn of(client: &Client, wanted: Option<u32>) -> Result<Option<ReceivedSums>, MirrorError> {
        let key = new_key();
        let (proof, pieces) = client.page_sums(key).await?;
        let mut pieces = std::pin::pin!(pieces);
        let (mut bytes, mut sums, mut page, mut head) = (BytesMut::new(), PageSums::new(key), 0, None);
        let odd = |what: String| MirrorError::from(ClientError::NotFromService { what });
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
            if head.is_none() && bytes.len() >= HEAD_LEN {
                let found = proof_of(&bytes[..HEAD_LEN], key);
                if let Some(proof) = proof.as_ref().filter(|proof| **proof != found) {
                    return Err(odd(format!(
                        "its first {HEAD_LEN} bytes of checksums of pages have the checksum {found}, and it says {proof}"
                    )));
                }
                let (next, page_size, pages) = (Offset(bytes.get_u64_le()), bytes.get_u32_le(), bytes.get_u32_le());
                if pages > 0 && !is_page_size(page_size) {
                    return Err(odd(format!(
                        "it says that the pages of the log have {page_size} bytes, as no database's have"
                    )));
                }
                if pages > 0 && wanted.is_some_and(|wanted| wanted != page_size) {
                    return Ok(None);
                }
                head = Some((next, page_size, pages));
            }
            while let Some((.., pages)) = head.filter(|_| bytes.len() >= 8) {
                if page == pages {
                    return Err(odd(format!(
                        "it sends checksums of more than the {pages} pages that it says there are"
                    )));
                }
                page += 1;
                let set = sums.set(page, bytes.get_u64_le());
                set.map_err(|error| MirrorError::Dir { place: "a temporary file".to_owned(), error })?;
            }
        }
        match head {
            Some((next, page_size, pages)) if pages == page => Ok(Some(ReceivedSums { sums, next, page_size })),
            _ => Err(MirrorError::Interrupted("the checksums of the pages of the log broke off".to_owned())),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A service that gives these answers in turn, made for the key that is asked for first: fields more, and the body.
    fn serving<const N: usize>(answers: impl FnOnce(u64) -> [(String, Vec<u8>); N] + Send + 'static) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&format!("http://{}/logs/app", listener.local_addr().unwrap())).unwrap();
        std::thread::spawn(move || {
            let mut answers = Err(answers);
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 4096];
                let count = stream.read(&mut head).unwrap_or(0);
                let key = || {
                    let head = String::from_utf8_lossy(&head[..count]);
                    let digits = head.split_once("key=").unwrap().1.split(|char: char| !char.is_ascii_digit()).next();
                    digits.unwrap().parse().unwrap()
                };
                let mut left = match answers {
                    Ok(left) => left,
                    Err(make) => Vec::from(make(key())).into_iter(),
                };
                if let Some((field, body)) = left.next() {
                    let head =
                        format!("content-type: application/octet-stream\r\ncontent-length: {}{field}", body.len());
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(&body);
                }
                answers = Ok(left);
            }
        });
        client
    }

    /// What is received of a service that sends this, without a proof.
    async fn received(body: &[u8], wanted: Option<u32>) -> Result<Option<(u64, u32, u32)>, MirrorError> {
        received_with("", body, wanted).await
    }

    /// The same with a field more.
    async fn received_with(
        field: &str,
        body: &[u8],
        wanted: Option<u32>,
    ) -> Result<Option<(u64, u32, u32)>, MirrorError> {
        let answer = (field.to_owned(), body.to_vec());
        let found = ReceivedSums::of(&serving(|_| [answer]), wanted).await?;
        Ok(found.map(|found| (found.next.0, found.page_size, found.sums.pages())))
    }

    fn body(next: u64, page_size: u32, pages: u32, sums: usize) -> Vec<u8> {
        let head = [&next.to_le_bytes()[..], &page_size.to_le_bytes(), &pages.to_le_bytes()].concat();
        head.into_iter().chain(std::iter::repeat_n(7, 8 * sums)).collect()
    }

    #[tokio::test]
    async fn sums_are_taken_only_as_a_database_has_them() {
        assert_eq!(received(&body(9, 4096, 3, 3), None).await.unwrap(), Some((9, 4096, 3)));
        assert_eq!(received(&body(1, 0, 0, 0), Some(4096)).await.unwrap(), Some((1, 0, 0)));
        assert_eq!(received(&body(9, 4096, 3, 3), Some(512)).await.unwrap(), None);
        for (sent, said) in [
            (body(9, 1000, 3, 3), "1000 bytes"),
            (body(9, 0, 3, 3), "0 bytes"),
            (body(9, 4096, 3, 2), "broke off"),
            (body(9, 4096, 3, 4), "more than the 3 pages"),
            (body(9, 4096, 3, 3)[..15].to_vec(), "broke off"),
        ] {
            let error = received(&sent, None).await.unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[tokio::test]
    async fn sums_under_another_key_prove_nothing() {
        let field = "\r\nlog-page-sums: 0123456789abcdef";
        let error = received_with(field, &body(9, 4096, 3, 3), None).await.unwrap_err();
        assert!(error.to_string().contains("and it says 0123456789abcdef"), "{error}");
    }

    #[tokio::test]
    async fn sums_without_a_proof_are_not_taken_once_there_was_one() {
        let client = serving(|key| {
            let body = body(9, 4096, 3, 3);
            let field = format!("\r\nlog-page-sums: {}", proof_of(&body[..HEAD_LEN], key));
            [(field, body.clone()), (String::new(), body)]
        });
        assert!(ReceivedSums::of(&client, None).await.unwrap().is_some());
        let error = ReceivedSums::of(&client, None).await.unwrap_err();
        assert!(error.to_string().contains("lack the field log-page-sums"), "{error}");
    }
}
