//! What an answer that is no success says: words of the service, or of something between us and it.

use reqwest::header::{HeaderMap, HeaderValue, SERVER, VIA};
use reqwest::{Response, StatusCode};

use super::{ClientError, whole};
use crate::api::ErrorBody;
use crate::blame::{Blame, Blamed, is_passing_status};

/// The response if it is a success, else why not.
pub(super) async fn checked(response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (who, service) = (who(response.headers()), response.url().origin().ascii_serialization());
    // A proxy may be as long-winded as it likes, or break off.
    let text = whole(response).await.unwrap_or_default();
    Err(match ErrorBody::of(&text) {
        // Which service has no such thing, where source and sink may be of two.
        Some(body) if body.error == "not-found" => {
            let message = format!("{} in the service at {service}", body.message);
            ClientError::Refused { status: status.as_u16(), body: Box::new(ErrorBody { message, ..body }) }
        }
        Some(body) => ClientError::Refused { status: status.as_u16(), body: Box::new(body) },
        None => ClientError::Intermediary { status: status.as_u16(), who },
    })
}

/// What the answer calls itself: `nginx/1.22.1` of the field `Server`, or the last of `Via`; nothing that could upset a terminal.
pub(super) fn who(headers: &HeaderMap) -> Option<String> {
    let named = headers.get(SERVER).or_else(|| headers.get(VIA))?;
    Some(plain(named)).filter(|plain| !plain.is_empty())
}

/// A field of an answer as text, cut, and without anything that could upset a terminal.
pub(super) fn plain(value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.chars().filter(|char| char.is_ascii_graphic() || *char == ' ').take(60).collect()
}

impl Blamed for ClientError {
    fn blame(&self) -> Blame {
        match self {
            ClientError::Url { .. } => Blame::Usage,
            ClientError::Refused { status: 400 | 401 | 403, .. } => Blame::Usage,
            // No such log yet.
            ClientError::Refused { status: 404, .. } => Blame::Io,
            // A 500 is of the service itself, and its code says more.
            ClientError::Refused { status: 500, body } => body.blame(),
            ClientError::Refused { status, .. } if is_passing_status(*status) => Blame::Transient,
            ClientError::Refused { body, .. } => body.blame(),
            ClientError::Intermediary { status, .. } if is_passing_status(*status) => Blame::Transient,
            ClientError::Intermediary { .. } => Blame::Io,
            ClientError::Transport(error) if error.is_builder() => Blame::Usage,
            ClientError::Transport(_) | ClientError::Silent { .. } => Blame::Transient,
            ClientError::NotFromService { .. } | ClientError::OtherContent { .. } => Blame::Transient,
            ClientError::Protocol(_) => Blame::Io,
        }
    }
}

impl Blamed for ErrorBody {
    fn blame(&self) -> Blame {
        match self.error.as_str() {
            "unavailable" | "poisoned" | "failed" | "truncated" => Blame::Transient,
            _ => Blame::Data,
        }
    }
}

/// Whether it says that the body was too large, or must have a length.
pub(super) fn is_about_size(status: u16) -> bool {
    [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::LENGTH_REQUIRED].iter().any(|known| known.as_u16() == status)
}

/// How [`ClientError::Intermediary`] reads.
pub(super) fn text(status: u16, who: Option<&str>) -> String {
    let who = who.map_or_else(String::new, |who| format!(" ({who})"));
    let next = match status {
        404 => "; is this the URL of a log? One is http://HOST/logs/NAME",
        413 => ": the request is larger than it takes",
        400 => "; is the scheme right, http or https?",
        401 | 403 | 407 => ": it is what refuses us, not the service",
        502..=504 => ": it cannot reach the service, or not in time",
        _ => "",
    };
    format!("something between us and the service, or in its place, answered {status}{who}{next}")
}
