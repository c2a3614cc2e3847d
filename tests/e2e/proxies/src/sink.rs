//! What curl is measured against: a server that writes each body to one file, syncs it, and answers.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result};

/// Serves in the background until the process ends; the address.
pub fn start(dir: &Path) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let path = dir.join(format!("sink-{number}"));
            std::thread::spawn(move || {
                let served = stream.context("accept").and_then(|stream| serve(stream, &path));
                if let Err(error) = served {
                    eprintln!("the sink for curl: {error:#}");
                }
                let _ = std::fs::remove_file(&path);
            });
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream, path: &Path) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut file, mut from, mut to) = (File::create(path)?, BufReader::new(stream.try_clone()?), stream);
    let mut block = vec![0; 256 << 10];
    loop {
        let (mut left, mut line) = (0, String::new());
        loop {
            line.clear();
            if from.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                left = bytes.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        while left > 0 {
            let count = left.min(block.len());
            from.read_exact(&mut block[..count])?;
            file.write_all(&block[..count])?;
            left -= count;
        }
        file.sync_data()?;
        to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
    }
}
