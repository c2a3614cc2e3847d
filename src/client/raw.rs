//! Whether an answer with bytes of a log is one of the service: what it always sends of them, and nothing else does.

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Response, StatusCode};

use super::ClientError;
use super::refusal::{plain, who};
use crate::api::{BASE_FIELD, FRAMING_FIELD, GENERATION_FIELD};
use crate::format::Framing;
use crate::offset::Generation;
use crate::segment::base::BaseDigest;

/// What the service calls bytes.
const BYTES: &str = "application/octet-stream";

/// The response if it carries bytes as the service sends them: as such, and not encoded by anything.
pub(super) fn raw(response: Response) -> Result<Response, ClientError> {
    let headers = response.headers();
    let text = |name| headers.get(name).map(plain).filter(|text| !text.is_empty());
    let kind = text(CONTENT_TYPE).filter(|kind| !kind.to_ascii_lowercase().starts_with(BYTES));
    let encoding = text(CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity"));
    let what = match (encoding, kind) {
        (Some(encoding), _) => format!("encoded as {encoding}"),
        (None, Some(kind)) => format!("of type {kind}"),
        (None, None) if response.status() != StatusCode::OK => "which is a part of an answer or none".to_owned(),
        (None, None) => return Ok(response),
    };
    Err(foreign(&response, &what))
}

/// How the commits in the answer are framed.
pub(super) fn framing(response: &Response) -> Result<Framing, ClientError> {
    let Some(value) = response.headers().get(FRAMING_FIELD) else {
        return Err(foreign(response, &format!("without the field {FRAMING_FIELD}")));
    };
    let framing = value.to_str().ok().and_then(|text| text.parse().ok());
    framing.ok_or_else(|| ClientError::Protocol(format!("commits framed as {value:?}")))
}

/// The response, unless it says that it is of another generation than was asked for.
pub(super) fn of_generation(response: Response, asked: Generation) -> Result<Response, ClientError> {
    let named = response.headers().get(GENERATION_FIELD).map(plain);
    match named.filter(|named| *named != asked.to_string()) {
        None => Ok(response),
        Some(named) => Err(ClientError::OtherContent {
            what: format!("the answer to a request for generation {asked} of the log is of generation {named}"),
        }),
    }
}

/// The base that the commits in the answer follow, where it says so.
pub(super) fn followed_base(response: &Response) -> Result<Option<BaseDigest>, ClientError> {
    let Some(field) = response.headers().get(BASE_FIELD) else {
        return Ok(None);
    };
    let parsed = field.to_str().map_err(|error| error.to_string()).and_then(str::parse);
    parsed.map(Some).map_err(|reason| ClientError::Protocol(format!("{BASE_FIELD}: {reason}")))
}

fn foreign(response: &Response, what: &str) -> ClientError {
    let who = who(response.headers()).map_or_else(String::new, |who| format!(" ({who})"));
    let status = response.status().as_u16();
    ClientError::NotFromService {
        what: format!("the answer to a request for bytes of the log was {status}{who}, {what}"),
    }
}
