//! A client for the native API.

mod base;
mod options;
mod patience;
mod raw;
mod refusal;
mod way;

pub use base::Base;
pub(crate) use base::named as named_base;
pub(crate) use base::{compared, comparing};
pub use options::HttpOptions;
pub(crate) use way::Way;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Body, Method, RequestBuilder, Response, Url};
use uuid::Uuid;

use crate::api::{
    AckLine, AppendOutcome, CheckpointOutcome, CheckpointPolicy, CreateLog, ErrorBody, FOLLOWER_FIELD, LogSource,
    LogState, LogStatus, PartReceived, Positions, SOURCE_FIELD, SUMS_FIELD, SegmentStatus,
};
use crate::blame::{Blame, Blamed};
use crate::format::{Framing, LogFormat};
use crate::limits::{ACK_LINE_BYTES_MAX, ANSWER_BYTES_MAX, ANSWER_TIMEOUT, CHECKPOINT_TIMEOUT, COMMIT_TIMEOUT};
use crate::offset::{Generation, Offset};
use crate::repr_digest::{self, ReprDigest};
use crate::segment::base::BaseDigest;
use crate::token::Token;
use crate::transport::explained;
use patience::{begun, patience, steady, stored_within, taken};
use raw::{followed_base, framing, of_generation, raw};
use refusal::{checked, plain};

/// What an identity has encoded in a header: all but plain ASCII, and the sign that says so.
const PLAIN: &AsciiSet = &CONTROLS.add(b'%').add(b' ');

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not one of a log.
    #[error("{url:?} is not the URL of a log: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The service refused, and says why.
    #[error("{} ({}, status {status})", body.message, body.error)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        body: Box<ErrorBody>,
    },
    /// Something else than the service answered: a proxy, most likely.
    #[error("{}", refusal::text(*.status, .who.as_deref()))]
    Intermediary {
        /// The HTTP status.
        status: u16,
        /// What it calls itself.
        who: Option<String>,
    },
    /// An answer to a request for bytes of a log that lacks the marks of the service, or that cannot be the answer to it.
    #[error("{what}: something between us and the service, or in its place, gave or changed this answer")]
    NotFromService {
        /// What answered, and in what way.
        what: String,
    },
    /// An answer that could be one of the service, with other bytes of the log than the service says it holds.
    #[error("{what}: something between us and the service, or in its place, gave or changed this answer")]
    OtherContent {
        /// What was received, and what the service says.
        what: String,
    },
    /// The service could not be reached, or the connection broke.
    #[error("{}", explained(.0))]
    Transport(#[from] reqwest::Error),
    /// Nothing was received for so long.
    #[error("the service sent nothing for {} s: it hangs, or the network to it is interrupted", .after.as_secs())]
    Silent {
        /// How long was waited.
        after: Duration,
    },
    /// Something answered, but not a logmirror service.
    #[error("this does not answer like a logmirror service: {0}")]
    Protocol(String),
}

impl ClientError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.blame() == Blame::Transient
    }

    /// Whether the same call on a new connection shows whether this was the network's fault.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        matches!(self, ClientError::OtherContent { .. })
    }

    /// Whether what was asked for was there once and is not any more, as a generation that was deleted.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, ClientError::Refused { status: 410, .. })
    }

    /// Whether something between us and the service takes no body of that size, or none without a length.
    pub(crate) fn is_about_size(&self) -> bool {
        matches!(self, ClientError::Intermediary { status, .. } if refusal::is_about_size(*status))
    }
}

/// The positions in the status of a log.
///
/// # Errors
/// When the service does not know them: [`ClientError::Refused`] with the status and code that a read would get. It is
/// transient unless the log is damaged.
pub fn positions(status: &LogStatus) -> Result<Positions, ClientError> {
    status.positions().ok_or_else(|| {
        let reason = status.error.as_deref().unwrap_or("no reason was given");
        let (code, refused, what) = match status.state {
            LogState::Damaged => ("corrupt-log", 500, "this log is damaged on disk"),
            LogState::Ok | LogState::Failed => ("failed", 503, "the service cannot say now where this log ends"),
        };
        let message = format!("log {:?}: {what}: {reason}", status.log);
        let body = ErrorBody { error: code.to_owned(), message, ..ErrorBody::default() };
        ClientError::Refused { status: refused, body: Box::new(body) }
    })
}

/// One log of a service, by its URL (`http://HOST/logs/NAME`).
///
/// ```
/// use futures::TryStreamExt;
/// use logmirror::client::Client;
/// use logmirror::format::LogFormat;
/// use logmirror::http::Timeouts;
/// use logmirror::mirror::{Registry, Settings};
/// use logmirror::offset::Offset;
/// use logmirror::repo::FsRepo;
/// use logmirror::server::Server;
/// use std::sync::Arc;
///
/// // A service in this process, on a free port.
/// let data = tempfile::tempdir()?;
/// let registry = Registry::open(Arc::new(FsRepo::open(data.path())?), Settings::default())?;
/// tokio::runtime::Runtime::new()?.block_on(async {
///     let server = Server::bind("127.0.0.1:0", Arc::new(registry), Timeouts::default(), 16).await?;
///     let url = format!("http://{}/logs/app", server.address()?);
///     tokio::spawn(server.run(std::future::pending()));
///
///     let log = Client::new(&url)?;
///     log.create(LogFormat::Commitlog, None).await?;
///     let segment = std::fs::read("segments/commitlog/whole/00000000000000000000.stdb.log")?;
///     assert_eq!(log.append(None, segment.clone()).await?.durable, Offset(111));
///     let mut commits = log.read(Offset::ZERO, None, false).await?;
///     let mut received = Vec::new();
///     while let Some(bytes) = commits.try_next().await? {
///         received.extend_from_slice(&bytes);
///     }
///     assert_eq!(received, segment);
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    options: HttpOptions,
    url: Url,
    /// The whole field, marked as a secret.
    authorization: Option<HeaderValue>,
    source: Option<Arc<SourceFields>>,
    way: Arc<Way>,
}

/// What is mirrored into the log.
#[derive(Clone, Debug)]
struct SourceFields {
    /// Its identity, percent-encoded.
    identity: HeaderValue,
    /// The name of this process, if it follows that.
    follower: Option<HeaderValue>,
}

/// A part of something that is too large for one request.
#[derive(Clone, Copy, Debug)]
pub struct UploadPart<'a> {
    /// The name of the upload: any that no other has.
    pub upload: &'a str,
    /// Where in it the part starts.
    pub at: u64,
    /// How many bytes the upload has, with its last part.
    pub total: Option<u64>,
    /// The digest of a base, with its last part.
    pub digest: Option<BaseDigest>,
}

/// The answer to a part of an upload.
#[derive(Clone, Debug)]
pub enum PartAnswer<T> {
    /// So many bytes are there; it is not whole yet.
    Received(u64),
    /// It was whole, and this is what became of it.
    Whole(T),
}

impl Client {
    /// A client for the log at `url`. Nothing is sent yet. The URL may bring along the token of the service as a password
    /// without a user (`http://:TOKEN@HOST/logs/NAME`); what [`url`](Client::url) returns is without it.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn new(url: &str) -> Result<Client, ClientError> {
        Client::with_options(url, &HttpOptions::default())
    }

    /// The same, reached as `options` say.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn with_options(url: &str, options: &HttpOptions) -> Result<Client, ClientError> {
        let wrong = |reason: &str| ClientError::Url { url: without_secrets(url), reason: reason.to_owned() };
        let mut parsed = Url::parse(url.trim_end_matches('/')).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(wrong("it must start with http:// or https://"));
        }
        if parsed.path().len() < 2 {
            return Err(wrong("it lacks the log, as in http://HOST/logs/NAME"));
        }
        // A log may be called `logs`, but there is none without a name.
        if parsed.path().ends_with("/logs") && !parsed.path().ends_with("/logs/logs") {
            return Err(wrong("it names no log, as http://HOST/logs/NAME does: http://HOST/logs lists them"));
        }
        parsed.set_query(None);
        let token = Token::of_url(&parsed).map_err(|reason| wrong(&reason))?;
        let http = options.builder(&parsed).build()?;
        let (options, way) = (options.clone(), Arc::default());
        let client = Client { http, options, url: parsed, authorization: None, source: None, way };
        Ok(match token {
            Some(token) => client.with_token(&token),
            None => client.without_user(),
        })
    }

    /// The same with the user and the password of its URL in a header, as they are sent anyhow, and no more in the URL.
    fn without_user(self) -> Client {
        let (user, password) = (self.url.username(), self.url.password());
        if user.is_empty() && password.is_none() {
            return self;
        }
        let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let pair = format!("{}:{}", plain(user), password.map(plain).unwrap_or_default());
        let field = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        // What is encoded is of bytes that may stand in a header, so this never fails.
        self.with_authorization(HeaderValue::try_from(field).ok())
    }

    /// The same with the token that the service asks for.
    #[must_use]
    pub fn with_token(self, token: &Token) -> Client {
        // A token is of bytes that may stand in a header, so this never fails.
        self.with_authorization(HeaderValue::try_from(format!("Bearer {}", token.reveal())).ok())
    }

    fn with_authorization(self, authorization: Option<HeaderValue>) -> Client {
        let authorization = authorization.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        let mut url = self.url;
        // They can only fail for a URL without a host, and `http` has one.
        let _ = (url.set_username(""), url.set_password(None));
        Client { authorization, url, ..self }
    }

    /// The same for the mirror of a source with this identity: a log that is fed from it takes commits and bases of no other.
    #[must_use]
    pub fn of_source(self, identity: &str) -> Client {
        // What is encoded is of bytes that may stand in a header, so this never fails.
        let identity = HeaderValue::try_from(utf8_percent_encode(identity, PLAIN).to_string()).ok();
        let source = identity.map(|identity| Arc::new(SourceFields { identity, follower: None }));
        Client { source, ..self }
    }

    /// The same for a mirror that follows its source: one that has fed a log from it comes back, so that nobody else takes that over
    /// without being asked to.
    #[must_use]
    pub fn following(self, follows: bool) -> Client {
        static NAME: LazyLock<String> = LazyLock::new(|| Uuid::new_v4().to_string());
        let follower = HeaderValue::try_from(&**NAME).ok().filter(|_| follows);
        let source = self.source.map(|source| Arc::new(SourceFields { follower, ..(*source).clone() }));
        Client { source, ..self }
    }

    /// The same on connections of its own: what answered on those before may not answer on these.
    ///
    /// # Errors
    /// [`ClientError::Transport`] when no client can be made.
    pub fn connected_again(&self) -> Result<Client, ClientError> {
        let http = self.options.builder(&self.url).build()?;
        Ok(Client { http, way: Arc::default(), ..self.clone() })
    }

    /// The log's URL.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.url.clone();
        if !path.is_empty() {
            url.set_path(&format!("{}/{path}", self.url.path()));
        }
        let source = self.source.as_deref().filter(|_| method != Method::GET);
        let request = self.http.request(method, url);
        let request = match source {
            Some(SourceFields { identity, follower: Some(name) }) => {
                request.header(SOURCE_FIELD, identity).header(FOLLOWER_FIELD, name)
            }
            Some(SourceFields { identity, follower: None }) => request.header(SOURCE_FIELD, identity),
            None => request,
        };
        match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// Where the log stands; `None` when there is none of that name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn find(&self) -> Result<Option<LogStatus>, ClientError> {
        match self.status().await {
            // The service's answer for a path at which there can be no log.
            Err(ClientError::Refused { status: 404, body }) if body.message.starts_with("there is nothing at /") => {
                Err(ClientError::Url { url: without_secrets(self.url.as_str()), reason: body.message })
            }
            Err(ClientError::Refused { status: 404, body }) if body.error == "not-found" => Ok(None),
            status => status.map(Some),
        }
    }

    /// Where the log stands.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<LogStatus, ClientError> {
        json(self.request(Method::GET, "").timeout(ANSWER_TIMEOUT).send().await?).await
    }

    /// Where one generation of the log stands.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status_of(&self, generation: Generation) -> Result<LogStatus, ClientError> {
        let request = self.request(Method::GET, "").query(&[("generation", generation)]);
        json(request.timeout(ANSWER_TIMEOUT).send().await?).await
    }

    /// The database that a generation of the log starts from. Whatever the answer says of itself, its bytes end well only when
    /// they are the base that the status of the log names.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::OtherContent`] when the answer says that it is another base.
    pub async fn base(&self, generation: Generation) -> Result<Base, ClientError> {
        let named = base::named_with_length(&self.status_of(generation).await?, generation)?;
        let response = begun(self.request(Method::GET, "base").query(&[("generation", generation)])).await?;
        let response = of_generation(raw(checked(response).await?)?, generation)?;
        let digest = base::digest(&response)?;
        let named = match (&named, &digest) {
            // It may have been given its first base just now.
            (Some((named, _)), Some(digest)) if *named != digest.sha256 => {
                base::named_with_length(&self.status_of(generation).await?, generation)?
            }
            _ => named,
        };
        Base::new(digest, named, steady(response.bytes_stream()).boxed())
    }

    /// The checksums of the pages of the database that a WAL log holds, as of its last durable commit, under `key`, as
    /// [`PageSums`](crate::sqlite::page_sums::PageSums) makes them: the offset after that commit, bytes of a page, how many
    /// pages, and a sum each, little-endian. Also returns the field `log-page-sums`, which covers the first three; older services do
    /// not send it.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::NotFromService`] also when an answer lacks that field and one before had it.
    pub async fn page_sums(
        &self,
        key: u64,
    ) -> Result<(Option<String>, impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>), ClientError> {
        let response = begun(self.request(Method::GET, "page-sums").query(&[("key", key)])).await?;
        let response = raw(checked(response).await?)?;
        let proof = response.headers().get(SUMS_FIELD).map(plain);
        if !self.way.keeps_proof(proof.is_some()) {
            let what = format!("its page checksums lack the field {SUMS_FIELD}, which earlier answers had");
            return Err(ClientError::NotFromService { what });
        }
        Ok((proof, steady(response.bytes_stream())))
    }

    /// Notes what the log is fed from, and how far that was read. After Ok that is durable, and nobody else writes the log. One
    /// that was [promoted](Self::promote) is taken only with `adopt`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_source(&self, source: &LogSource, adopt: bool) -> Result<LogStatus, ClientError> {
        let request = self.request(Method::PUT, "source");
        let request = if adopt { request.query(&[("adopt", true)]) } else { request };
        json_sent(request.json(source).timeout(ANSWER_TIMEOUT)).await
    }

    /// Hands the log over from the mirror that feeds it to its clients. After Ok no mirror writes it any more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn promote(&self) -> Result<LogStatus, ClientError> {
        json(self.request(Method::POST, "promote").timeout(ANSWER_TIMEOUT).send().await?).await
    }

    /// Ends the current generation of the log and starts `generation` from the database in `base`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_generation(
        &self,
        generation: Generation,
        base: impl Into<Body>,
    ) -> Result<LogStatus, ClientError> {
        self.start_generation_checked(generation, base, None).await
    }

    /// The same; the service refuses a base with another digest than this, if one is given, before it is visible.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_generation_checked(
        &self,
        generation: Generation,
        base: impl Into<Body>,
        digest: Option<BaseDigest>,
    ) -> Result<LogStatus, ClientError> {
        let request = self.request(Method::PUT, &format!("generations/{generation}"));
        taken(with_digest(request, digest), base.into(), COMMIT_TIMEOUT, json).await
    }

    /// Rolls the log over into its next generation; a dry run only tells what that would do.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn checkpoint(&self, dry_run: bool) -> Result<CheckpointOutcome, ClientError> {
        let request = self.request(Method::POST, "checkpoint").query(&[("dry_run", dry_run)]);
        json(request.timeout(CHECKPOINT_TIMEOUT).send().await?).await
    }

    /// Says when the log, a WAL, is rolled over and how many generations of it are kept. After Ok that is durable.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_checkpoint(&self, policy: CheckpointPolicy) -> Result<LogStatus, ClientError> {
        json_sent(self.request(Method::PUT, "checkpoint").timeout(ANSWER_TIMEOUT).json(&policy)).await
    }

    /// Creates the log, or finds it there with that format and first offset.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create(&self, format: LogFormat, first: Option<Offset>) -> Result<LogStatus, ClientError> {
        let wanted = CreateLog { format, first, checkpoint: None, foreign_keys: None };
        json_sent(self.request(Method::PUT, "").timeout(ANSWER_TIMEOUT).json(&wanted)).await
    }

    /// Creates the log as a WAL whose first generation is this one, or finds it there in any generation. An older service starts
    /// with the first one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_wal(
        &self,
        generation: Generation,
        checkpoint: Option<CheckpointPolicy>,
    ) -> Result<LogStatus, ClientError> {
        let wanted = CreateLog { format: LogFormat::Wal, first: None, checkpoint, foreign_keys: None };
        let request = self.request(Method::PUT, "").query(&[("generation", generation)]);
        json_sent(request.timeout(ANSWER_TIMEOUT).json(&wanted)).await
    }

    /// The log's segments; with `sha256` also the digests of the sealed ones, for which the service must read them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn segments(&self, sha256: bool) -> Result<Vec<SegmentStatus>, ClientError> {
        let request = self.request(Method::GET, "segments");
        let request = if sha256 { request.query(&[("sha256", true)]) } else { request.timeout(ANSWER_TIMEOUT) };
        json(request.send().await?).await
    }

    /// The bytes of one segment.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn segment(
        &self,
        start: Offset,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + use<>, ClientError> {
        let response = begun(self.request(Method::GET, &format!("segments/{start}"))).await?;
        Ok(steady(raw(checked(response).await?)?.bytes_stream()))
    }

    /// Raw log bytes from the commit that holds `from` to before `to` or the durable end, or without end.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read(&self, from: Offset, to: Option<Offset>, follow: bool) -> Result<Commits, ClientError> {
        self.read_of(None, from, to, follow).await
    }

    /// The same of one generation; `None` is the current one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read_of(
        &self,
        generation: Option<Generation>,
        from: Offset,
        to: Option<Offset>,
        follow: bool,
    ) -> Result<Commits, ClientError> {
        let mut request = self.request(Method::GET, "commits").query(&[("from", from)]);
        if let Some(generation) = generation {
            request = request.query(&[("generation", generation)]);
        }
        if let Some(to) = to {
            request = request.query(&[("to", to)]);
        }
        if follow {
            request = request.query(&[("follow", true)]);
        }
        let response = if follow { request.send().await? } else { begun(request).await? };
        let response = raw(checked(response).await?)?;
        let response = match generation {
            Some(generation) => of_generation(response, generation)?,
            None => response,
        };
        let (framing, base) = (framing(&response)?, followed_base(&response)?);
        let bytes = response.bytes_stream();
        let bytes = if follow { bytes.map_err(ClientError::from).boxed() } else { steady(bytes).boxed() };
        Ok(Commits { framing, base, bytes })
    }

    /// Appends raw log bytes. After Ok all of them are durable.
    ///
    /// # Errors
    /// See [`ClientError`]; a refusal says in `next` up to where they are.
    pub async fn append(&self, from: Option<Offset>, body: impl Into<Body>) -> Result<AppendOutcome, ClientError> {
        let mut request = self.request(Method::POST, "commits").body(body);
        if let Some(from) = from {
            request = request.query(&[("from", from)]);
        }
        json(request.send().await?).await
    }

    /// Takes a part of commits that start at `from`. After [`PartAnswer::Whole`] all of them are durable. A part may be sent
    /// again.
    ///
    /// # Errors
    /// See [`ClientError`]; `part-missing` says in `received` where the upload goes on.
    pub async fn append_part(
        &self,
        from: Offset,
        part: UploadPart<'_>,
        body: Bytes,
    ) -> Result<PartAnswer<AppendOutcome>, ClientError> {
        self.send_part(self.request(Method::POST, "commits").query(&[("from", from)]), part, body).await
    }

    /// Takes a part of the base that `generation` starts from. After [`PartAnswer::Whole`] it has started.
    ///
    /// # Errors
    /// As [`append_part`](Self::append_part).
    pub async fn start_generation_part(
        &self,
        generation: Generation,
        part: UploadPart<'_>,
        body: Bytes,
    ) -> Result<PartAnswer<LogStatus>, ClientError> {
        self.send_part(self.request(Method::PUT, &format!("generations/{generation}")), part, body).await
    }

    async fn send_part<T: serde::de::DeserializeOwned>(
        &self,
        request: RequestBuilder,
        part: UploadPart<'_>,
        body: Bytes,
    ) -> Result<PartAnswer<T>, ClientError> {
        let mut request = request.query(&[("upload", part.upload)]).query(&[("at", part.at)]);
        if let Some(total) = part.total {
            request = request.query(&[("total", total)]);
        }
        let request = with_digest(request, part.digest);
        // All of it is checked and stored before the last part is answered.
        let patience = patience(body.len()) + part.total.map_or(Duration::ZERO, stored_within);
        let response = checked(request.timeout(patience).body(body).send().await?).await?;
        Ok(match response.status() {
            reqwest::StatusCode::ACCEPTED => PartAnswer::Received(json::<PartReceived>(response).await?.received),
            _ => PartAnswer::Whole(json(response).await?),
        })
    }

    /// Appends a body that is here already, with its length and within a time that depends on it.
    pub(crate) async fn append_bounded(&self, from: Offset, body: Bytes) -> Result<AppendOutcome, ClientError> {
        let request = self.request(Method::POST, "commits").query(&[("from", from)]).timeout(patience(body.len()));
        json(request.body(body).send().await?).await
    }

    /// What is known of the way to the service.
    pub(crate) fn way(&self) -> &Way {
        &self.way
    }

    /// Appends a live stream; acknowledgements come back while it goes on.
    ///
    /// # Errors
    /// When the append cannot be started.
    pub async fn append_live<S>(&self, from: Offset, body: S) -> Result<Acks, ClientError>
    where
        S: Stream<Item = Result<Bytes, io::Error>> + Send + 'static,
    {
        let request = self.request(Method::POST, "commits").query(&[("from", from)]).query(&[("acks", "stream")]);
        let response = checked(request.body(Body::wrap_stream(body)).send().await?).await?;
        Ok(Acks { lines: response.bytes_stream().boxed(), text: BytesMut::new() })
    }
}

/// Raw log bytes of a range of a log, as they come in.
pub struct Commits {
    /// How the first commits are framed when the range does not start with a segment header.
    pub framing: Framing,
    /// The digest of the base that they follow; none where the service does not say it.
    pub base: Option<BaseDigest>,
    bytes: futures::stream::BoxStream<'static, Result<Bytes, ClientError>>,
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commits").field("framing", &self.framing).finish_non_exhaustive()
    }
}

impl Stream for Commits {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.bytes.poll_next_unpin(cx)
    }
}

fn with_digest(request: RequestBuilder, digest: Option<BaseDigest>) -> RequestBuilder {
    match digest {
        Some(sha256) => request.header(repr_digest::FIELD, ReprDigest { sha256, unproven: false }.to_string()),
        None => request,
    }
}

/// Acknowledgements of a live append.
pub struct Acks {
    lines: futures::stream::BoxStream<'static, reqwest::Result<Bytes>>,
    text: BytesMut,
}

impl std::fmt::Debug for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acks").finish_non_exhaustive()
    }
}

impl Acks {
    /// The next line; `None` when the answer is over.
    ///
    /// # Errors
    /// When the connection breaks or what comes is no acknowledgement. An append that was refused is a line.
    pub async fn next(&mut self) -> Result<Option<AckLine>, ClientError> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(end + 1);
                let parsed = serde_json::from_slice(&line);
                return parsed.map(Some).map_err(|error| ClientError::Protocol(format!("not an ack line: {error}")));
            }
            if self.text.len() > ACK_LINE_BYTES_MAX {
                return Err(ClientError::Protocol("an ack line without end".into()));
            }
            match self.lines.next().await {
                Some(bytes) => self.text.extend_from_slice(&bytes?),
                None => return Ok(None),
            }
        }
    }
}

/// A URL for messages: without what stands before the `@` of its host. Anything else stays as it is.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    let Some(start) = url.find("://").map(|at| at + 3) else {
        return url.to_owned();
    };
    let host = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    match url[start..host].rfind('@') {
        Some(at) => format!("{}{}", &url[..start], &url[start + at + 1..]),
        None => url.to_owned(),
    }
}

async fn json<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let text = whole(checked(response).await?).await?;
    serde_json::from_slice(&text).map_err(|error| {
        ClientError::Protocol(format!("{error}; is this the URL of a log? One is http://HOST/logs/NAME"))
    })
}

/// The answer to a request with JSON that was encoded here. A service that cannot read that was sent something else: it is asked
/// once more.
async fn json_sent<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, ClientError> {
    let again = request.try_clone();
    match (json(request.send().await?).await, again) {
        (Err(ClientError::Refused { status: 400, .. }), Some(again)) => json(again.send().await?).await,
        (answer, _) => answer,
    }
}

/// The body of an answer that is not a stream.
async fn whole(mut response: Response) -> Result<BytesMut, ClientError> {
    let mut text = BytesMut::new();
    while let Some(bytes) = response.chunk().await? {
        text.extend_from_slice(&bytes);
        if text.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Protocol(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
    }
    Ok(text)
}
