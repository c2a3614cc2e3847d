//! https with a certificate authority of one's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use logmirror::client::HttpOptions;
use logmirror::sync::Remote;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::service;
use crate::support::log::{commits, header};
use crate::support::service::Service;

/// A proxy that speaks TLS, and passes on one request a connection.
struct TlsProxy {
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl TlsProxy {
    fn start(service: SocketAddr) -> TlsProxy {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &authority).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), client.unwrap());
                std::thread::spawn(move || {
                    // A client that does not trust us goes away.
                    let _ = pass(tls, service);
                });
            }
        });
        TlsProxy { address, dir }
    }

    fn url(&self, log: &str) -> String {
        format!("https://{}/logs/{log}", self.address)
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

fn pass(mut client: StreamOwned<ServerConnection, TcpStream>, service: SocketAddr) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let mut to = TcpStream::connect(service)?;
    to.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    to.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}

fn logmirror(args: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
    command.args(args).env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env_remove("LOGMIRROR_CACERT");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text.into_owned())
}

fn filled() -> Service {
    let service = service(|_| {});
    service.append("app", "", &[header(), commits(0, 3, 9, 0)].concat());
    service
}

#[test]
fn a_private_authority_is_trusted_when_it_is_named_in_any_of_three_ways() {
    let service = filled();
    let proxy = TlsProxy::start(service.address);
    let (url, ca) = (proxy.url("app"), proxy.ca());
    let ca = ca.to_str().unwrap();
    let (code, text) = logmirror(&["status", &url], &[]);
    assert_eq!(code, 3, "{text}");
    for (args, environment) in [
        (vec!["status", &url, "--cacert", ca], vec![]),
        (vec!["status", &url], vec![("LOGMIRROR_CACERT", ca)]),
        (vec!["status", &url], vec![("SSL_CERT_FILE", ca)]),
        (vec!["verify", &url, "--cacert", ca], vec![]),
    ] {
        let (code, text) = logmirror(&args, &environment);
        assert_eq!(code, 0, "{args:?} {environment:?}: {text}");
    }
    let copy = tempfile::tempdir().unwrap();
    let copy = copy.path().join("copy");
    let (code, text) = logmirror(&["mirror", &url, copy.to_str().unwrap(), "--cacert", ca], &[]);
    assert_eq!(code, 0, "{text}");
    assert!(copy.join(format!("{:020}.stdb.log", 0)).exists(), "{text}");
}

#[test]
fn only_the_named_authority_is_trusted() {
    let service = filled();
    let (proxy, other) = (TlsProxy::start(service.address), TlsProxy::start(service.address));
    let (code, text) = logmirror(&["status", &proxy.url("app"), "--cacert", other.ca().to_str().unwrap()], &[]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("--cacert"), "what to do: {text}");
}

#[test]
fn a_file_that_holds_no_certificate_is_a_usage_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let (code, text) = logmirror(&["status", "https://127.0.0.1:1/logs/app", "--cacert", path], &[]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains(path), "{text}");
}

#[test]
fn libsql_clients_trust_the_same() {
    let service = filled();
    assert_eq!(service.put("/logs/db", r#"{"format":"wal"}"#).status, 201);
    let proxy = TlsProxy::start(service.address);
    let trusting = HttpOptions::trusting(&proxy.ca()).unwrap();
    let info = |options: &HttpOptions| {
        let remote = Remote::with_options(&proxy.url("db"), None, options).unwrap();
        service.runtime.block_on(async move { remote.info().await })
    };
    assert_eq!(info(&trusting).unwrap(), Some(1));
    assert!(info(&HttpOptions::default()).is_err());
}
