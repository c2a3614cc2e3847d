//! A download over HTTP/1.1 that throws the body away: the same for logmirror and for nginx, and cheaper than either.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const BUFFER_BYTES: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// GET `path` from `address`, and return how many bytes the body had. Anything but a whole 200 is an error.
pub fn download(address: SocketAddr, path: &str) -> Result<u64> {
    fetch(address, path).with_context(|| format!("GET http://{address}{path}"))
}

fn fetch(address: SocketAddr, path: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let body_bytes = read_head(&mut reader)?;

    let mut got = reader.buffer().len() as u64;
    let mut stream = reader.into_inner();
    let mut buffer = vec![0; BUFFER_BYTES];
    while got < body_bytes {
        match stream.read(&mut buffer)? {
            0 => bail!("the body ended after {got} of {body_bytes} bytes"),
            n => got += n as u64,
        }
    }
    ensure!(got == body_bytes, "the body has {got} bytes, not {body_bytes}");
    Ok(got)
}

/// Read the status line and the headers, and return the length of the body.
fn read_head(reader: &mut impl BufRead) -> Result<u64> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "the answer is {:?}", line.trim_end());

    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = Some(value.trim().parse().context("read the content length")?);
            }
            Some(_) => {}
            None => break,
        }
    }
    length.context("the answer has no content length")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn answer(reply: &'static str) -> Result<u64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = thread::spawn(move || -> Result<()> {
            let (mut peer, _) = listener.accept()?;
            let mut request = BufReader::new(peer.try_clone()?);
            let mut line = String::new();
            while request.read_line(&mut line)? > 2 {
                line.clear();
            }
            Ok(peer.write_all(reply.as_bytes())?)
        });
        let got = download(address, "/file");
        server.join().expect("the server does not panic")?;
        got
    }

    #[test]
    fn a_whole_body_is_counted() -> Result<()> {
        assert_eq!(answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?, 5);
        Ok(())
    }

    #[test]
    fn a_short_body_and_another_status_are_errors() {
        for reply in [
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
        ] {
            assert!(answer(reply).is_err(), "{reply}");
        }
    }
}
