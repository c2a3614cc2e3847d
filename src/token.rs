//! [`Token`]: the secret that a service asks of its clients.

use std::fmt;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::limits::TOKEN_BYTES_MAX;

/// A secret as it stands in a header: visible ASCII, and no more than that. `Debug` does not show it, and it has no `Display`.
///
/// ```
/// use logmirror::token::Token;
///
/// let token = Token::new("s3cret")?;
/// assert!(token.is("s3cret") && !token.is("s3cre"));
/// assert_eq!(format!("{token:?}"), "Token(..)");
/// # Ok::<(), logmirror::token::TokenError>(())
/// ```
#[derive(Clone)]
pub struct Token(String);

/// Why something is no token. Never says what was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has no bytes: whoever set it to nothing may not have meant that everybody gets in.
    #[error("a token cannot be empty")]
    Empty,
    /// It has too many.
    #[error("a token cannot have more than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// It has bytes that cannot stand in a header.
    #[error("a token is of visible ASCII characters, without spaces")]
    Unprintable,
}

impl Token {
    /// The token `text`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn new(text: impl Into<String>) -> Result<Token, TokenError> {
        let text = text.into();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Unprintable);
        }
        Ok(Token(text))
    }

    /// The token in a file, which may end in white space, as editors leave it.
    ///
    /// # Errors
    /// What is wrong with the file, for the one who named it.
    pub fn read(path: &Path) -> Result<Token, String> {
        let wrong = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        Token::new(text.trim_end()).map_err(|error| wrong(&error))
    }

    /// Whether `text` is this token. How long it takes does not depend on where they differ, nor on how long the token is:
    /// what is compared are digests.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        let [ours, theirs] = [self.0.as_str(), text].map(Sha256::digest);
        ours.as_slice().ct_eq(theirs.as_slice()).into()
    }

    /// `url` with this token in the place of a password, where [`Client`](crate::client::Client) finds it; a URL that has
    /// somebody before its host already stays as it is.
    #[must_use]
    pub fn in_url(&self, url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else {
            return url.to_owned();
        };
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if host.contains('@') {
            return url.to_owned();
        }
        format!("{scheme}://:{}@{rest}", utf8_percent_encode(&self.0, NON_ALPHANUMERIC))
    }

    /// The token that a URL has in the place of a password without a user, as [`in_url`](Self::in_url) puts it there.
    ///
    /// # Errors
    /// What is wrong with it; never with what it is.
    pub(crate) fn of_url(url: &Url) -> Result<Option<Token>, String> {
        let Some(password) = url.password().filter(|_| url.username().is_empty()) else { return Ok(None) };
        let text = percent_decode_str(password).decode_utf8().map_err(|error| error.to_string())?;
        Token::new(text).map(Some).map_err(|error| error.to_string())
    }

    /// What a client sends. Never to be logged.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The text of a setting that is kept out of messages, whatever is wrong with it.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The token it is.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn token(&self) -> Result<Token, TokenError> {
        Token::new(self.0.as_str())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        text.map(Secret).map_err(|_| serde::de::Error::custom("a token is text in quotes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_ascii_makes_a_token() {
        for text in ["a", "eyJhbGciOi.J9-_~+/=", &"x".repeat(TOKEN_BYTES_MAX)] {
            assert!(Token::new(text).is_ok_and(|token| token.is(text)), "{text}");
        }
        let too_long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for (text, error) in [
            ("", TokenError::Empty),
            ("a b", TokenError::Unprintable),
            ("a\n", TokenError::Unprintable),
            ("é", TokenError::Unprintable),
            (too_long.as_str(), TokenError::TooLong),
        ] {
            assert_eq!(Token::new(text).err(), Some(error), "{text:?}");
        }
    }

    #[test]
    fn a_token_is_itself_and_nothing_else() {
        let token = Token("secret".into());
        for other in ["", "s", "secre", "secrets", "Secret", "secret ", "terces"] {
            assert!(!token.is(other), "{other}");
        }
    }

    #[test]
    fn a_url_carries_a_token_unless_it_has_one() {
        let token = Token("a:b/c@d%".into());
        let coded = "a%3Ab%2Fc%40d%25";
        assert_eq!(token.in_url("http://host:1/logs/a"), format!("http://:{coded}@host:1/logs/a"));
        assert_eq!(token.in_url("https://host"), format!("https://:{coded}@host"));
        assert_eq!(token.in_url("http://host/a@b"), format!("http://:{coded}@host/a@b"));
        for url in ["http://:own@host/logs/a", "no/url"] {
            assert_eq!(token.in_url(url), url);
        }
    }

    #[test]
    fn a_token_file_may_end_in_a_line_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (text, wanted) in [("secret\n", true), ("secret", true), ("\n", false), ("two words\n", false)] {
            std::fs::write(file.path(), text).expect("written");
            let read = Token::read(file.path());
            assert_eq!(read.is_ok_and(|token| token.is("secret")), wanted, "{text:?}");
        }
        let missing = Token::read(Path::new("/nowhere/token")).err();
        assert!(missing.is_some_and(|error| error.starts_with("/nowhere/token: ")));
    }
}
