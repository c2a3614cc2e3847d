//! An HTTP client with one connection that is kept: requests with a body, answers with a length.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Longest wait for an answer: more than any statement, its interrupt and the end of its worker may take.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// A client of one service.
pub struct Client {
    address: String,
    connection: Option<BufReader<TcpStream>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Its text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// Connects with the first request.
    pub fn new(address: &str) -> Client {
        Client { address: address.to_owned(), connection: None }
    }

    /// Sends a request, and reads its answer. After Err the next request gets a connection of its own.
    ///
    /// # Errors
    /// When there is no answer in time, or it is not whole.
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect_timeout(&self.address.parse()?, ANSWER_WAIT)?;
                stream.set_read_timeout(Some(ANSWER_WAIT))?;
                stream.set_write_timeout(Some(ANSWER_WAIT))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let (host, length) = (&self.address, body.len());
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        connection.get_mut().write_all(&request)?;
        let (status, length, closes) = head(&mut connection)?;
        let mut body = vec![0; length];
        connection.read_exact(&mut body)?;
        self.connection = (!closes).then_some(connection);
        Ok(Answer { status, body })
    }

    /// Runs statements on a log, each as a request of one pipeline.
    pub fn run(&mut self, log: &str, sql: &[String]) -> Result<Answer> {
        self.pipeline(log, &Value::Null, sql)
    }

    /// The same on the stream of a baton.
    pub fn pipeline(&mut self, log: &str, baton: &Value, sql: &[String]) -> Result<Answer> {
        let requests: Vec<_> = sql.iter().map(|sql| json!({"type": "execute", "stmt": {"sql": sql}})).collect();
        let body = json!({"baton": baton, "requests": requests}).to_string();
        self.call("POST", &format!("/logs/{log}/v3/pipeline"), body.as_bytes())
    }
}

/// The status of an answer, how long its body is, and whether the connection ends with it.
fn head(connection: &mut BufReader<TcpStream>) -> Result<(u16, usize, bool)> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).context("no answer")?.parse()?;
    let (mut length, mut closes) = (None, false);
    loop {
        line.clear();
        connection.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let Some((name, value)) = line.trim().split_once(':') else { bail!("no header: {line:?}") };
        match &*name.to_ascii_lowercase() {
            "content-length" => length = Some(value.trim().parse()?),
            "connection" => closes = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok((status, length.context("an answer without a length")?, closes))
}
