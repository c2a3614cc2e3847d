//! A libSQL sync server, one method a call. Owns: URLs, the token, retries, redirects, and what an answer means. Knows no
//! files and no history.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::FRAME_LEN;
use super::error::{SyncError, message_of};
use super::wal_facts::{self, WalFacts};
use crate::api::ErrorBody;
use crate::client::{HttpOptions, without_secrets};
use crate::limits::{BACKOFF_FIRST, EXPORT_BYTES_MAX, JSON_BYTES_MAX, REFUSAL_BYTES_MAX, STALL_TIMEOUT, SYNC_RETRIES};
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::BaseDigest;
use crate::token::Token;

/// Some frames of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The generation.
    pub generation: u32,
    /// The first frame, from 1.
    pub start: u32,
    /// The frame after the last.
    pub end: u32,
}

impl Range {
    /// How many frames; an empty range has none.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// How many bytes they have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frames() as usize * FRAME_LEN
    }
}

/// For people: the first and the last frame.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {}..={} of generation {}", self.start, self.end.saturating_sub(1), self.generation)
    }
}

/// What a server says to frames that were pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Whether it holds other frames there and refuses these.
    pub conflict: bool,
    /// The generation it took them for; old servers do not say.
    pub generation: Option<u32>,
    /// The last frame it has: of these frames, or where it ends when that is before them.
    pub frame: u32,
    /// To be repeated with the next push.
    pub baton: Option<String>,
}

/// What a server says to a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// At least one whole frame from the first that was asked for, and no more than were asked for.
    Frames(Bytes),
    /// It has none there; its current generation.
    Nothing(u32),
}

#[derive(Deserialize)]
struct InfoAnswer {
    current_generation: u32,
}

#[derive(Deserialize)]
struct PushAnswer {
    status: Option<String>,
    generation: Option<u32>,
    max_frame_no: u32,
    baton: Option<String>,
}

#[derive(Deserialize)]
struct NothingAnswer {
    generation: u32,
    max_frame_no: Option<u32>,
}

/// What a server says to a pull whose frames are taken as they come.
#[derive(Debug)]
pub enum Streamed {
    /// At least one frame from the first that was asked for.
    Frames(FrameStream),
    /// It has none there.
    Nothing {
        /// Its current generation.
        generation: u32,
        /// The last frame of the generation that was asked for, if it says.
        max_frame_no: Option<u32>,
    },
}

/// The frames of a pull as they come.
#[derive(Debug)]
pub struct FrameStream {
    call: String,
    response: Response,
    left: usize,
    /// The start of a frame whose end has not come.
    cut: BytesMut,
}

impl FrameStream {
    /// Some whole frames more; `None` at the end.
    ///
    /// # Errors
    /// When the body breaks off, ends within a frame or has more than was asked for.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SyncError> {
        let protocol = |call: &str, reason: String| SyncError::Protocol { call: call.to_owned(), reason };
        loop {
            let piece = self
                .response
                .chunk()
                .await
                .map_err(|error| SyncError::Transport { call: self.call.clone(), error: error.without_url() })?;
            let Some(piece) = piece else {
                return match self.cut.len() {
                    0 => Ok(None),
                    left => {
                        Err(protocol(&self.call, format!("the body ends {left} bytes into a frame of {FRAME_LEN}")))
                    }
                };
            };
            self.left = self
                .left
                .checked_sub(piece.len())
                .ok_or_else(|| protocol(&self.call, "more frames than were asked for".into()))?;
            self.cut.extend_from_slice(&piece);
            let whole = self.cut.len() / FRAME_LEN * FRAME_LEN;
            if whole > 0 {
                return Ok(Some(self.cut.split_to(whole).freeze()));
            }
        }
    }
}

/// The body of an answer as it comes.
#[cfg(feature = "turso")]
#[derive(Debug)]
pub(crate) struct Body {
    call: String,
    response: Response,
}

#[cfg(feature = "turso")]
impl Body {
    /// The call that it answers, for messages.
    pub(crate) fn call(&self) -> &str {
        &self.call
    }

    /// Some bytes more; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SyncError> {
        let piece = self.response.chunk().await;
        piece.map_err(|error| SyncError::Transport { call: self.call.clone(), error: error.without_url() })
    }
}

/// A database on a libSQL sync server, by its sync URL.
#[derive(Clone, Debug)]
pub struct Remote {
    http: reqwest::Client,
    options: HttpOptions,
    url: Url,
    token: Option<HeaderValue>,
    retry_first: Duration,
    requests: Arc<AtomicU64>,
    /// Whether an answer said what only services of logmirror say.
    is_service: Arc<AtomicBool>,
}

impl Remote {
    /// The database at `url`: `http://`, `https://`, both also behind `libsql+`, or `libsql://`, which means https. Nothing is
    /// sent yet. A token that the URL has in the place of a password without a user (`http://:TOKEN@HOST/PATH`) wins over
    /// the other; what [`url`](Remote::url) returns is without it.
    ///
    /// # Errors
    /// [`SyncError::Url`], [`SyncError::Token`].
    pub fn new(url: &str, token: Option<&str>) -> Result<Remote, SyncError> {
        Remote::with_options(url, token, &HttpOptions::default())
    }

    /// The same, reached as `options` say.
    ///
    /// # Errors
    /// As [`new`](Remote::new).
    pub fn with_options(url: &str, token: Option<&str>, options: &HttpOptions) -> Result<Remote, SyncError> {
        let wrong = |reason: &str| SyncError::Url { url: without_secrets(url), reason: reason.to_owned() };
        let plain = plain_url(url).ok_or_else(|| wrong("it must start with http://, https:// or libsql://"))?;
        let mut parsed = Url::parse(&plain).map_err(|error| wrong(&error.to_string()))?;
        if !parsed.username().is_empty() {
            return Err(wrong("it holds a user name; what proves who you are is the token"));
        }
        let own = Token::of_url(&parsed).map_err(|reason| wrong(&reason))?;
        // It can only fail for a URL without a host, and these have one.
        let _ = parsed.set_password(None);
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("it has something behind its path, where the calls are appended"));
        }
        // Each call appends its own segments; empty ones, as of a slash at the end, would only be doubled slashes.
        let segments: Vec<String> = parsed.path_segments().into_iter().flatten().map(str::to_owned).collect();
        parsed.set_path(&segments.into_iter().filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join("/"));
        let token = own.as_ref().map(Token::reveal).or(token).map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| SyncError::Token)?;
            value.set_sensitive(true);
            Ok::<_, SyncError>(value)
        });
        let http = connections(options, &parsed)?;
        Ok(Remote {
            http,
            options: options.clone(),
            url: parsed,
            token: token.transpose()?,
            retry_first: BACKOFF_FIRST,
            requests: Arc::default(),
            is_service: Arc::default(),
        })
    }

    /// The same server, with another wait before the first retry.
    #[must_use]
    pub fn retry_first(self, wait: Duration) -> Remote {
        Remote { retry_first: wait, ..self }
    }

    /// The same server over connections of their own.
    ///
    /// # Errors
    /// [`SyncError::Transport`] when the system refuses.
    pub(super) fn on_new_connections(&self) -> Result<Remote, SyncError> {
        Ok(Remote { http: connections(&self.options, &self.url)?, ..self.clone() })
    }

    /// The URL that calls are appended to.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The server's current generation; `None` when the server is too old to say.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn info(&self) -> Result<Option<u32>, SyncError> {
        Ok(self.info_with_facts().await?.0)
    }

    /// The same, and what is said with it.
    pub(super) async fn info_with_facts(&self) -> Result<(Option<u32>, Said), SyncError> {
        let call = self.call(Method::GET, &["info"]);
        let response = call.send(None).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok((None, None));
        }
        let response = call.successful(response).await?;
        let said = said(&response);
        match call.json::<InfoAnswer>(response).await?.current_generation {
            0 => Err(call.protocol("generation 0")),
            generation => Ok((Some(generation), said)),
        }
    }

    /// Hands over the database as it was at the start of a generation, which must be the current one, piece by piece with
    /// the byte each starts at. Its length.
    ///
    /// # Errors
    /// See [`SyncError`], or as `write` says; a part may have been handed over then.
    pub async fn export<W>(&self, generation: u32, write: W) -> Result<u64, SyncError>
    where
        W: Fn(Bytes, u64) -> Result<(), SyncError> + Clone + Send + 'static,
    {
        let exported = self.export_with_facts(generation, write).await?;
        match exported.is_as_promised() {
            Ok(()) => Ok(exported.bytes),
            Err(reason) => Err(SyncError::Protocol { call: exported.call, reason }),
        }
    }

    /// The same, and the digest of what was handed over.
    ///
    /// # Errors
    /// As [`export`](Self::export).
    #[cfg(feature = "turso")]
    pub(crate) async fn export_with_digest<W>(&self, generation: u32, write: W) -> Result<(u64, BaseDigest), SyncError>
    where
        W: Fn(Bytes, u64) -> Result<(), SyncError> + Clone + Send + 'static,
    {
        let exported = self.export_with_facts(generation, write).await?;
        match exported.is_as_promised() {
            Ok(()) => Ok((exported.bytes, exported.found)),
            Err(reason) => Err(SyncError::Protocol { call: exported.call, reason }),
        }
    }

    /// The same without a comparison, and what is said with it.
    pub(super) async fn export_with_facts<W>(&self, generation: u32, write: W) -> Result<Exported, SyncError>
    where
        W: Fn(Bytes, u64) -> Result<(), SyncError> + Clone + Send + 'static,
    {
        let call = self.call(Method::GET, &["export", &generation.to_string()]);
        let mut response = call.successful(call.send(None).await?).await?;
        let status = response.status();
        // Servers of logmirror say it.
        let field =
            response.headers().get(repr_digest::FIELD).and_then(|field| field.to_str().ok()).unwrap_or_default();
        let expected = ReprDigest::parse(field).map(|digest| digest.map(|digest| digest.sha256));
        let (said, mut at, mut hash) = (said(&response), 0, Sha256::new());
        let length = said.as_ref().and_then(|said| said.as_ref().ok()?.base_bytes).unwrap_or(u64::MAX);
        while let Some(piece) = response.chunk().await.map_err(|error| call.transport(error))? {
            let (write, len) = (write.clone(), piece.len() as u64);
            if at + len > EXPORT_BYTES_MAX {
                return Err(call.protocol(format!("an export of more than {EXPORT_BYTES_MAX} bytes")));
            }
            if at + len > length {
                let reason = format!("an export of more than the {length} bytes that the server says it has");
                let found = BaseDigest(hash.finalize().into());
                return Ok(Exported { call: call.to_string(), bytes: at, found, expected: Err(reason), said });
            }
            let hashed = piece.clone();
            let writing = tokio::task::spawn_blocking(move || write(piece, at));
            hash.update(&hashed);
            writing.await.map_err(|error| SyncError::Interrupted(error.to_string()))??;
            at += len;
        }
        let found = BaseDigest(hash.finalize().into());
        let expected = match status {
            StatusCode::OK => expected,
            status => Err(format!("an export with the status {status}, which is no database")),
        };
        Ok(Exported { call: call.to_string(), bytes: at, found, expected, said })
    }

    /// Offers frames, whose bytes must be those of the range. After an answer without conflict the server has what the
    /// answer says.
    ///
    /// # Errors
    /// See [`SyncError`]; the server may have taken the frames nevertheless.
    pub async fn push(&self, range: Range, baton: Option<&str>, frames: Bytes) -> Result<Pushed, SyncError> {
        let [generation, start, end] = [range.generation, range.start, range.end].map(|number| number.to_string());
        let mut path = vec!["sync", &generation, &start, &end];
        path.extend(baton);
        let call = self.call(Method::POST, &path);
        let response = call.successful(call.send_again(Some(frames), |_| false).await?).await?;
        if self.is_service.load(Ordering::Relaxed) && digest_said(&response).is_none() {
            return Err(call.damaged("it has no digest, which this service sends with each such answer"));
        }
        let answer: PushAnswer = call.json(response).await?;
        let conflict = match answer.status.as_deref() {
            None | Some("ok") => false,
            Some("conflict") => true,
            Some(other) => return Err(call.protocol(format!("status {other:?}"))),
        };
        Ok(Pushed { conflict, generation: answer.generation, frame: answer.max_frame_no, baton: answer.baton })
    }

    /// Asks for frames.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn pull(&self, range: Range) -> Result<Pulled, SyncError> {
        Ok(self.pull_with_facts(range).await?.0)
    }

    /// The same, and what is said with it.
    pub(super) async fn pull_with_facts(&self, range: Range) -> Result<(Pulled, Said), SyncError> {
        match self.stream_with_facts(range).await? {
            (Streamed::Nothing { generation, .. }, said) => Ok((Pulled::Nothing(generation), said)),
            (Streamed::Frames(mut stream), said) => {
                let mut frames = BytesMut::new();
                while let Some(piece) = stream.next().await? {
                    frames.extend_from_slice(&piece);
                }
                match frames.is_empty() {
                    true => Err(SyncError::Protocol {
                        call: stream.call,
                        reason: "no frame, though it says there are some".into(),
                    }),
                    false => Ok((Pulled::Frames(frames.freeze()), said)),
                }
            }
        }
    }

    /// Asks for frames, to be taken as they come.
    ///
    /// # Errors
    /// See [`SyncError`].
    pub async fn stream(&self, range: Range) -> Result<Streamed, SyncError> {
        Ok(self.stream_with_facts(range).await?.0)
    }

    /// The same, and the digest of the database that the generation starts from, where the server says it.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    #[cfg(feature = "turso")]
    pub(crate) async fn stream_with_base(&self, range: Range) -> Result<(Streamed, Option<BaseDigest>), SyncError> {
        let (streamed, said) = self.stream_with_facts(range).await?;
        let facts = said.and_then(Result::ok).filter(|facts| facts.generation == u64::from(range.generation));
        Ok((streamed, facts.and_then(|facts| facts.base)))
    }

    async fn stream_with_facts(&self, range: Range) -> Result<(Streamed, Said), SyncError> {
        let [generation, start, end] = [range.generation, range.start, range.end].map(|number| number.to_string());
        let call = self.call(Method::GET, &["sync", &generation, &start, &end]);
        // 500 is how some servers say that they have nothing there.
        let nothing = |status| matches!(status, StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR);
        let response = call.send_again(None, nothing).await?;
        let (status, said) = (response.status(), said(&response));
        if nothing(status) {
            let body = call.body(response, JSON_BYTES_MAX).await?;
            return match serde_json::from_slice(&body) {
                Ok(NothingAnswer { generation, .. }) if said_otherwise(&said, generation) => {
                    Err(call.damaged("its current generation is not the one that the same answer says"))
                }
                Ok(NothingAnswer { generation, max_frame_no }) => {
                    Ok((Streamed::Nothing { generation, max_frame_no }, said))
                }
                Err(_) => Err(call.refused(status, &body)),
            };
        }
        let response = call.successful(response).await?;
        let (call, left, cut) = (call.to_string(), range.bytes(), BytesMut::new());
        Ok((Streamed::Frames(FrameStream { call, response, left, cut }), said))
    }

    /// Runs SQL: the requests of a pipeline, as JSON, are answered by JSON of at most so many bytes.
    ///
    /// # Errors
    /// See [`SyncError`]; the server may have run them nevertheless.
    pub async fn pipeline(&self, requests: Bytes, answer_bytes_max: usize) -> Result<Bytes, SyncError> {
        let call = self.call(Method::POST, &["v2", "pipeline"]);
        // Never sent again: what it did the first time is not known.
        let response = call.successful(call.send(Some(requests)).await?).await?;
        call.body(response, answer_bytes_max).await
    }

    /// Asks for pages that changed, as the body says, a message of `specs/turso-sync.md`; they are taken as they come.
    ///
    /// # Errors
    /// See [`SyncError`].
    #[cfg(feature = "turso")]
    pub(crate) async fn pull_updates(&self, request: Bytes) -> Result<Body, SyncError> {
        let call = self.call(Method::POST, &["pull-updates"]);
        let response = call.successful(call.send_again(Some(request), |_| false).await?).await?;
        Ok(Body { call: call.to_string(), response })
    }

    /// How many requests were sent, redirected and repeated ones included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn call(&self, method: Method, path: &[&str]) -> Call<'_> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        Call { remote: self, method, url }
    }
}

/// What a server says of its log with an answer: nothing, or a field that came whole or damaged.
pub(super) type Said = Option<Result<WalFacts, String>>;

/// A base that was received.
#[derive(Debug)]
pub(super) struct Exported {
    pub(super) call: String,
    pub(super) bytes: u64,
    /// The digest of what was received.
    pub(super) found: BaseDigest,
    /// The one that the server says it has, if it does.
    expected: Result<Option<BaseDigest>, String>,
    pub(super) said: Said,
}

impl Exported {
    /// Whether it is what the server says it is, as far as it says so.
    pub(super) fn is_as_promised(&self) -> Result<(), String> {
        match &self.expected {
            Ok(Some(expected)) if *expected != self.found => {
                Err(format!("an export with the SHA-256 {}, of which the server says {expected}", self.found))
            }
            Ok(_) => Ok(()),
            Err(reason) => Err(reason.clone()),
        }
    }
}

fn said_otherwise(said: &Said, current: u32) -> bool {
    matches!(said, Some(Ok(facts)) if facts.current != u64::from(current))
}

fn said(response: &Response) -> Said {
    let field = response.headers().get(wal_facts::FIELD)?;
    Some(field.to_str().map_err(|error| error.to_string()).and_then(WalFacts::parse))
}

/// The digest of its body that an answer has, or why it is none.
fn digest_said(response: &Response) -> Option<Result<ReprDigest, String>> {
    let field = response.headers().get(repr_digest::FIELD).and_then(|field| field.to_str().ok());
    field.and_then(|field| ReprDigest::parse(field).transpose())
}

fn connections(options: &HttpOptions, url: &Url) -> Result<reqwest::Client, SyncError> {
    let builder = options.builder(url).read_timeout(STALL_TIMEOUT).redirect(redirect::Policy::none());
    builder.build().map_err(|error| SyncError::Transport { call: "starting".into(), error })
}

/// The URL as HTTP has it.
fn plain_url(url: &str) -> Option<String> {
    let plain = url.strip_prefix("libsql+").unwrap_or(url);
    if plain.starts_with("http://") || plain.starts_with("https://") {
        return Some(plain.to_owned());
    }
    url.strip_prefix("libsql://").map(|rest| format!("https://{rest}"))
}

/// One request, and what may go wrong with its answer.
struct Call<'a> {
    remote: &'a Remote,
    method: Method,
    url: Url,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.url)
    }
}

impl Call<'_> {
    async fn send(&self, body: Option<Bytes>) -> Result<Response, SyncError> {
        self.send_to(self.url.clone(), body).await
    }

    async fn send_to(&self, url: Url, body: Option<Bytes>) -> Result<Response, SyncError> {
        let mut request = self.remote.http.request(self.method.clone(), url);
        if let Some(token) = &self.remote.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        self.remote.requests.fetch_add(1, Ordering::Relaxed);
        let response = request.send().await.map_err(|error| self.transport(error))?;
        if matches!(said(&response), Some(Ok(_))) {
            self.remote.is_service.store(true, Ordering::Relaxed);
        }
        Ok(response)
    }

    /// Sends until there is an answer other than 5xx, or one that `final_answer` takes; follows a redirect, but only as
    /// the first answer.
    async fn send_again(
        &self,
        body: Option<Bytes>,
        final_answer: impl Fn(StatusCode) -> bool,
    ) -> Result<Response, SyncError> {
        let mut url = self.url.clone();
        let mut response = self.send(body.clone()).await?;
        if response.status().is_redirection() {
            url = self.redirected(&response)?;
            log::debug!("{self}: redirected to {url}");
            response = self.send_to(url.clone(), body.clone()).await?;
        }
        for retry in 0..SYNC_RETRIES {
            let status = response.status();
            if !status.is_server_error() || final_answer(status) {
                break;
            }
            let wait = self.remote.retry_first.saturating_mul(1 << retry);
            log::debug!("{self}: the server answers {status}; trying again in {} ms", wait.as_millis());
            drop(response);
            tokio::time::sleep(wait).await;
            response = self.send_to(url.clone(), body.clone()).await?;
        }
        Ok(response)
    }

    /// Where a redirect leads. The token goes there too, so never from https to http.
    fn redirected(&self, response: &Response) -> Result<Url, SyncError> {
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.protocol(format!("a redirect ({status}) without Location")))?;
        let to =
            self.url.join(location).map_err(|error| self.protocol(format!("redirect to {location:?}: {error}")))?;
        match (self.url.scheme(), to.scheme()) {
            (_, "https") | ("http", "http") => Ok(to),
            _ => Err(self.protocol(format!("redirect to {location:?}, which is less safe"))),
        }
    }

    async fn successful(&self, response: Response) -> Result<Response, SyncError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body_start(response).await;
        Err(self.refused(status, &body))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, SyncError> {
        let digest = digest_said(&response);
        let body = self.body(response, JSON_BYTES_MAX).await?;
        match digest {
            Some(Ok(digest)) if digest.sha256 == BaseDigest::of(&body) => {}
            Some(_) => return Err(self.damaged("it does not have the digest that it says")),
            None => {}
        }
        serde_json::from_slice(&body).map_err(|error| self.protocol(error))
    }

    /// The whole body, which may have so many bytes.
    async fn body(&self, mut response: Response, bytes_max: usize) -> Result<Bytes, SyncError> {
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.transport(error))? {
            if body.len() + piece.len() > bytes_max {
                return Err(self.protocol(format!("a body of more than {bytes_max} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// What came of a body that is only shown.
    async fn body_start(&self, mut response: Response) -> BytesMut {
        let mut body = BytesMut::new();
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece[..piece.len().min(REFUSAL_BYTES_MAX - body.len())]);
            if body.len() == REFUSAL_BYTES_MAX {
                break;
            }
        }
        body
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> SyncError {
        let text = message_of(&body[..body.len().min(REFUSAL_BYTES_MAX)]);
        let is_own = ErrorBody::of(body).is_some();
        SyncError::Status { call: self.to_string(), status: status.as_u16(), text, is_own }
    }

    /// What may be right the next time.
    fn damaged(&self, reason: &str) -> SyncError {
        SyncError::Answer(format!("{self}: the answer was damaged on the way: {reason}"))
    }

    fn protocol(&self, reason: impl ToString) -> SyncError {
        SyncError::Protocol { call: self.to_string(), reason: reason.to_string() }
    }

    fn transport(&self, error: reqwest::Error) -> SyncError {
        SyncError::Transport { call: self.to_string(), error: error.without_url() }
    }
}
