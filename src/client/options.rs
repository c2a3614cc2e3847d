//! [`HttpOptions`]: the one way in which HTTP clients of this crate are made. Knows no log and no protocol.

use std::path::Path;
use std::sync::OnceLock;

use reqwest::{Certificate, ClientBuilder, Url};

use crate::limits::{CONNECT_TIMEOUT, KEEPALIVE_IDLE};

/// How services are reached. The default trusts the certificate authorities of the system, or those in the file that the
/// environment variable `SSL_CERT_FILE` names; where there are none, those that Mozilla's browsers trust.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// The only authorities trusted; none for the default.
    authorities: Option<Vec<Certificate>>,
}

impl HttpOptions {
    /// Trusts only the certificate authorities in a PEM file, as `curl --cacert` does.
    ///
    /// # Errors
    /// What is wrong with the file, for the user who named it.
    pub fn trusting(file: &Path) -> Result<HttpOptions, String> {
        let wrong = |reason: String| format!("{}: {reason}", file.display());
        let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
        if found.is_empty() {
            return Err(wrong("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".into()));
        }
        Ok(HttpOptions { authorities: Some(found) })
    }

    /// What every client has in common; `url` is where its first request goes.
    pub(crate) fn builder(&self, url: &Url) -> ClientBuilder {
        let builder = reqwest::Client::builder()
            .http1_only()
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE_IDLE)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("logmirror/", env!("CARGO_PKG_VERSION")));
        // Without TLS only a redirect could need them, and reading them takes longer than many a command.
        let of_system = || if url.scheme() == "https" { of_system() } else { &[] };
        let trusted = self.authorities.as_deref().unwrap_or_else(of_system);
        if trusted.is_empty() {
            return builder;
        }
        trusted.iter().cloned().fold(builder.tls_built_in_root_certs(false), ClientBuilder::add_root_certificate)
    }
}

/// The authorities that the system trusts. Reading some hundred certificates takes milliseconds, so it is done once.
fn of_system() -> &'static [Certificate] {
    static FOUND: OnceLock<Vec<Certificate>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            log::warn!("certificate authorities of the system: {error}");
        }
        found.certs.iter().filter_map(|der| Certificate::from_der(der).ok()).collect()
    })
}
