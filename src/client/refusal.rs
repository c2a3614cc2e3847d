//! What an answer that is no success says: words of the service, or of something between us and it.

use reqwest::header::{HeaderMap, SERVER, VIA};
use reqwest::{Response, StatusCode};

use super::{ClientError, whole};
use crate::api::ErrorBody;

/// The response if it is a success, else why not.
pub(super) async fn checked(response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let who = who(response.headers());
    // A proxy may be as long-winded as it likes, or break off.
    let text = whole(response).await.unwrap_or_default();
    Err(match serde_json::from_slice::<ErrorBody>(&text) {
        Ok(body) => ClientError::Refused { status: status.as_u16(), body: Box::new(body) },
        Err(_) => ClientError::Intermediary { status: status.as_u16(), who },
    })
}

/// What the answer calls itself: `nginx/1.22.1` of the field `Server`, or the last of `Via`; nothing that could upset a terminal.
fn who(headers: &HeaderMap) -> Option<String> {
    let named = headers.get(SERVER).or_else(|| headers.get(VIA))?.to_str().ok()?;
    let plain: String = named.chars().filter(|char| char.is_ascii_graphic() || *char == ' ').take(60).collect();
    Some(plain).filter(|plain| !plain.is_empty())
}

/// Whether the same request may be answered otherwise later.
pub(super) fn is_transient(status: u16) -> bool {
    status >= 500
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].iter().any(|known| known.as_u16() == status)
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
