//! The proxies: each a process with a configuration of its own in a directory of the run.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use logmirror_e2e_support::process::{Process, free_address, start};
use logmirror_e2e_support::wait_for;

/// Which proxy, and how it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its defaults.
    Nginx,
    /// `proxy_request_buffering off`, `proxy_buffering off` and HTTP/1.1 to the service.
    NginxUnbuffered,
    /// With HTTP defaults and timeouts of a minute.
    Haproxy,
    /// With its built-in configuration.
    Varnish,
}

impl Kind {
    /// Its name in what is printed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::NginxUnbuffered => "nginx-unbuffered",
            Kind::Haproxy => "haproxy",
            Kind::Varnish => "varnish",
        }
    }
}

/// A proxy that runs; killed when dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    _process: Process,
}

impl Proxy {
    /// Starts one in front of the service at `service`; its files are in `dir`.
    pub fn start(kind: Kind, service: &str, dir: &Path) -> Result<Proxy> {
        let address = free_address()?;
        let home = dir.join(format!("{}-{}", kind.name(), address.replace(':', "-")));
        std::fs::create_dir_all(&home)?;
        let at = |name: &str| home.join(name).display().to_string();
        let command = match kind {
            Kind::Nginx | Kind::NginxUnbuffered => {
                let unbuffered = "proxy_request_buffering off; proxy_buffering off; proxy_http_version 1.1;";
                let settings = if kind == Kind::Nginx { "" } else { unbuffered };
                let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {};\n", at(name)))
                    .concat();
                let user = if is_root()? { "user root;" } else { "" };
                let text = format!(
                    "{user}\ndaemon off;\npid {};\nerror_log {};\nevents {{}}\nhttp {{\naccess_log off;\n{paths}\
                     server {{ listen {address}; location / {{ proxy_pass http://{service}; {settings} }} }}\n}}\n",
                    at("pid"),
                    at("error.log"),
                );
                std::fs::write(home.join("nginx.conf"), text)?;
                let mut command = Command::new("nginx");
                command.args(["-c", &at("nginx.conf"), "-p", &at(""), "-e", &at("error.log")]);
                command
            }
            Kind::Haproxy => {
                let text = format!(
                    "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
                     frontend in\n  bind {address}\n  default_backend out\nbackend out\n  server service {service}\n"
                );
                std::fs::write(home.join("haproxy.cfg"), text)?;
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f", &at("haproxy.cfg")]);
                command
            }
            Kind::Varnish => {
                let mut command = Command::new("varnishd");
                command.args([
                    "-j",
                    "none",
                    "-F",
                    "-a",
                    &address,
                    "-b",
                    service,
                    "-n",
                    &at("work"),
                    "-s",
                    "malloc,64m",
                ]);
                command
            }
        };
        let process = start(command, dir, kind.name())?;
        let listens = || Ok(TcpStream::connect(&address).ok().map(drop));
        wait_for(&format!("{} to listen", kind.name()), Duration::from_secs(20), listens)?;
        Ok(Proxy { address, _process: process })
    }
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output()?;
    Ok(output.stdout.trim_ascii() == b"0")
}
