//! How a client gets in.

use std::path::PathBuf;

use clap::Args;
use logmirror::client::{Client, HttpOptions};
use logmirror::sync::Remote;
use logmirror::token::{Secret, Token};

use super::exit::{Exit, with_causes};
use super::place::is_url;

/// The token of the services that a command talks to.
#[derive(Args, Clone, Debug)]
pub(crate) struct AccessArgs {
    /// Token of the service for each URL given that has none of its own, as http://:TOKEN@HOST/logs/NAME has
    #[arg(long, value_name = "SECRET", env = "LOGMIRROR_TOKEN", hide_env_values = true)]
    token: Option<Secret>,
    /// File with the token, which then shows in no list of processes
    #[arg(long, value_name = "FILE", env = "LOGMIRROR_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificate authorities to trust for https, and no others [default: those of the system, or of the
    /// file in SSL_CERT_FILE]
    #[arg(long, value_name = "FILE", env = "LOGMIRROR_CACERT")]
    cacert: Option<PathBuf>,
}

impl AccessArgs {
    /// The token, if one was given.
    ///
    /// # Errors
    /// What to end with; the reason has been said.
    pub(crate) fn token(&self) -> Result<Option<Token>, Exit> {
        logmirror::config::token(self.token.as_ref(), self.token_file.as_deref())
            .map_err(|error| Exit::Usage.because(error))
    }

    /// How services are reached.
    ///
    /// # Errors
    /// What to end with; the reason has been said.
    pub(crate) fn http(&self) -> Result<HttpOptions, Exit> {
        let options = self.cacert.as_deref().map_or_else(|| Ok(HttpOptions::default()), HttpOptions::trusting);
        options.map_err(|error| Exit::Usage.because(format!("--cacert: {error}")))
    }

    /// A client for the log at `url`.
    ///
    /// # Errors
    /// What to end with; the reason has been said.
    pub(crate) fn client(&self, url: &str) -> Result<Client, Exit> {
        Client::with_options(&self.place(url)?, &self.http()?).map_err(|error| Exit::Usage.because(error))
    }

    /// The libSQL or Turso sync server at `url`.
    ///
    /// # Errors
    /// What to end with; the reason has been said.
    pub(crate) fn remote(&self, url: &str) -> Result<Remote, Exit> {
        let token = self.token()?;
        let remote = Remote::with_options(url, token.as_ref().map(Token::reveal), &self.http()?);
        remote.map_err(|error| Exit::Usage.because(with_causes(&error)))
    }

    /// A `DIR|URL` with the token in it, if it is a URL that does not bring along its own.
    ///
    /// # Errors
    /// What to end with; the reason has been said.
    pub(crate) fn place(&self, place: &str) -> Result<String, Exit> {
        let token = if is_url(place) { self.token()? } else { None };
        Ok(token.map_or_else(|| place.to_owned(), |token| token.in_url(place)))
    }
}
