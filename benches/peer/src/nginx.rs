//! nginx on a free port, serving one directory: the yardstick for handing out a sealed segment.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::ours::signal;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How it gets a file to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// sendfile: no copy in nginx. What everybody uses.
    Sendfile,
    /// Reads and writes of 512 KiB: faster than sendfile over loopback in some virtual machines.
    Copy,
}

/// A running nginx; it is stopped when this is dropped.
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    _home: TempDir,
}

impl Nginx {
    /// Serve `root`. `None` when nginx is not installed.
    pub fn start(root: &Path, sending: Sending) -> Result<Option<Self>> {
        let home = tempfile::tempdir()?;
        // Closed again before nginx binds it: nginx takes a port, not a socket.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = root.canonicalize()?;
        fs::write(home.path().join("nginx.conf"), config(&root, address, sending))?;

        let child = Command::new("nginx")
            .arg("-p")
            .arg(home.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context("start nginx"),
        };
        let mut nginx = Self { child, address, _home: home };
        nginx.wait_until_ready()?;
        Ok(Some(nginx))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("nginx did not start: {status}");
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("nginx does not listen after {START_TIMEOUT:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if signal(&self.child, Signal::TERM).is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// No log, one worker, which is plenty for one download; all it writes is in its prefix.
fn config(root: &Path, address: SocketAddr, sending: Sending) -> String {
    // Started by root, nginx would drop to a user who may not read the log.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root;",
        false => "",
    };
    let sending = match sending {
        Sending::Sendfile => "sendfile on;",
        Sending::Copy => "sendfile off; output_buffers 2 512k;",
    };
    let root = root.display();
    format!(
        "{user}
daemon off;
pid nginx.pid;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    {sending}
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {address};
        root \"{root}\";
    }}
}}
"
    )
}
