//! logmirror as a user meets it: a program that prints where it listens, and the operator's part of its API.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hyper::client::HttpConnector;
use hyper::{Body, Client, Method, Request, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const READY: &str = "listening on http://";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The program under test.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    checks_chains: bool,
}

impl Program {
    /// `LOGMIRROR_BIN`, or a release build of the repository this package lies in.
    pub fn find() -> Result<Self> {
        let path = std::env::var_os("LOGMIRROR_BIN").map(PathBuf::from);
        let path = path.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/logmirror"));
        ensure!(
            path.is_file(),
            "no logmirror at {}: build it with `cargo build --release`, or set LOGMIRROR_BIN",
            path.display()
        );
        Ok(Self { path, checks_chains: true })
    }

    /// `LOGMIRROR_BIN_NO_CHAIN`: a build with the feature `unsafe-no-chain-check`, told to skip that check.
    pub fn without_chain_check() -> Result<Self> {
        let path = std::env::var_os("LOGMIRROR_BIN_NO_CHAIN").map(PathBuf::from).context(
            "LOGMIRROR_BIN_NO_CHAIN is not set, so nothing was tested: it names a logmirror built with \
             `--features unsafe-no-chain-check`",
        )?;
        ensure!(path.is_file(), "no logmirror at {}", path.display());
        Ok(Self { path, checks_chains: false })
    }

    /// Copy with `logmirror mirror`, and fail unless it succeeds.
    pub fn mirror(&self, source: &str, sink: &str, token: &str) -> Result<()> {
        let mut command = Command::new(&self.path);
        command.args(["mirror", source, sink]);
        if !token.is_empty() {
            command.args(["--token", token]);
        }
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "logmirror mirror {source} {sink} ended with {}: {said}", output.status);
        Ok(())
    }

    /// Let a log whose files say less than it was durable up to go on from there.
    pub fn accept_loss(&self, log: &Path) -> Result<()> {
        let output = Command::new(&self.path).arg("repair").arg(log).arg("--accept-loss").output()?;
        ensure!(output.status.success(), "repair: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Start the service on `data` and a free port, and wait until it is ready.
    pub fn serve(&self, data: &Path, token: Option<&str>) -> Result<Server> {
        let mut command = Command::new(&self.path);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        if let Some(token) = token {
            command.args(["--token", token]);
        }
        if !self.checks_chains {
            command.env("LOGMIRROR_TEST_NO_CHAIN_CHECK", "1");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} serve", self.path.display()))?;
        let stdout = child.stdout.take();
        // From here on the child is killed if anything fails.
        let mut server = Server {
            child: Some(child),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: token.map(str::to_owned),
            client: Client::new(),
        };
        server.address = ready(stdout.context("logmirror serve has no stdout")?)?;
        Ok(server)
    }
}

/// Where a log stands, from the native API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Frames that are durable.
    pub frames: u64,
    /// The current generation.
    pub generation: u64,
}

/// A running `logmirror serve`; killed when this is dropped before [`Server::stop`].
pub struct Server {
    child: Option<Child>,
    address: SocketAddr,
    token: Option<String>,
    client: Client<HttpConnector>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Create a log of SQLite frames.
    pub async fn create(&self, log: &str) -> Result<()> {
        let status = self.call(Method::PUT, log, "", r#"{"format":"wal","first":1}"#).await?.0;
        ensure!(status == StatusCode::CREATED, "a new log was answered with {status}");
        Ok(())
    }

    /// Where a log stands.
    pub async fn status(&self, log: &str) -> Result<Status> {
        let (status, body) = self.call(Method::GET, log, "", "").await?;
        ensure!(status == StatusCode::OK, "the status of a log was answered with {status}");
        let number = |key: &str| body[key].as_u64().with_context(|| format!("no {key:?} in {body}"));
        let durable = number("durable")?;
        let frames = durable.checked_sub(1).context("frames count from 1, so the durable end is never 0")?;
        Ok(Status { frames, generation: number("generation")? })
    }

    /// End the current generation and fold its frames into the base of the next.
    pub async fn roll_over(&self, log: &str) -> Result<()> {
        let (status, body) = self.call(Method::POST, log, "/checkpoint", "").await?;
        ensure!(status.is_success(), "a new generation was answered with {status}: {body}");
        Ok(())
    }

    /// Run a statement by `/v2/pipeline`, and return its rows, each value as it is on the wire.
    pub async fn sql(&self, log: &str, sql: &str) -> Result<Vec<Vec<Value>>> {
        let request = json!({"baton": null, "requests": [{"type": "execute", "stmt": {"sql": sql}}]}).to_string();
        let (status, mut body) = self.call(Method::POST, log, "/v2/pipeline", request).await?;
        ensure!(status == StatusCode::OK, "SQL was answered with {status}: {body}");
        let result = body["results"][0].take();
        ensure!(result["type"] == "ok", "{sql}: {result}");
        Ok(serde_json::from_value(result["response"]["result"]["rows"].clone())?)
    }

    /// Ask it to end, and fail unless it drains and exits with 0.
    pub fn stop(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(child.id().cast_signed()).context("the child has no process number")?;
            kill_process(pid, Signal::TERM)?;
            let status = child.wait()?;
            ensure!(status.success(), "logmirror serve ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// End it with SIGKILL, and wait until it is gone.
    pub fn kill(self) {
        drop(self);
    }

    async fn call(&self, method: Method, log: &str, path: &str, body: impl Into<Body>) -> Result<(StatusCode, Value)> {
        let mut request = Request::builder().method(method).uri(format!("http://{}/logs/{log}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.header("content-type", "application/json").body(body.into())?;
        let answer = async {
            let answer = self.client.request(request).await?;
            let status = answer.status();
            let body = hyper::body::to_bytes(answer.into_body()).await?;
            Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
        };
        tokio::time::timeout(CALL_TIMEOUT, answer).await.context("logmirror does not answer")?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Wait for the line that names the address, and go on reading so that the pipe never fills.
fn ready(stdout: ChildStdout) -> Result<SocketAddr> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once(READY) {
                // Nobody listens after the first: later lines are only read away.
                let _ = tell.send(address.trim().trim_end_matches('/').parse());
            }
        }
    });
    match told.recv_timeout(START_TIMEOUT) {
        Ok(address) => Ok(address?),
        Err(e) => Err(anyhow!("logmirror serve did not print {READY:?}: {e}")),
    }
}
