//! What stands before the router: who may come in, and where a request really goes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, HOST, HeaderMap};
use axum::http::{Method, request};
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use tower_service::Service;

use super::reply;
use super::request_log::Entry;
use super::route::Routing;
use super::unread;
use crate::mirror::Counters;
use crate::token::Token;

/// Paths that need no token: a monitor need not know the secret of the service.
const OPEN_PATHS: [&str; 3] = ["/health", "/livez", "/readyz"];

/// Every request passes it once. Nothing of a request that is turned away reaches a handler.
#[derive(Debug)]
pub struct Door {
    router: Router,
    routing: Routing,
    token: Option<Token>,
    counters: Arc<Counters>,
}

/// Whether a request may come in.
enum Admission {
    /// It needs no token.
    Open,
    /// It carries the token.
    Token,
    Refused,
}

impl Door {
    /// A door to `router`, open to everybody when there is no token.
    pub fn new(router: Router, routing: Routing, token: Option<Token>, counters: Arc<Counters>) -> Door {
        Door { router, routing, token, counters }
    }

    /// The answer to a request from `peer`. When its body has ended, or was dropped, the request is in the log.
    pub async fn answer(&self, request: hyper::Request<Incoming>, peer: SocketAddr) -> Response {
        let (mut head, body) = request.into_parts();
        let mut entry = Entry::begin(&head, peer, self.counters.clone());
        if let Some(uri) = self.routing.rewritten(&head.uri, host(&head).as_deref()) {
            head.uri = uri;
        }
        let admission = self.admission(&head);
        entry.has_token = matches!(admission, Admission::Token);
        let response = self.admitted(unread::drained(entry.observe(head, body)), admission).await;
        entry.answer(reply::for_proxies(response, self.token.is_some()))
    }

    async fn admitted(&self, request: Request<Body>, admission: Admission) -> Response {
        if let Admission::Refused = admission {
            #[cfg(feature = "turso")]
            if super::turso::is_call(request.uri().path()) {
                let mut refusal = reply::unauthorized(request.headers());
                super::turso::allow_origins(refusal.headers_mut());
                return refusal;
            }
            return reply::unauthorized(request.headers());
        }
        self.router.clone().call(request).await.unwrap_or_else(|never| match never {})
    }

    fn admission(&self, head: &request::Parts) -> Admission {
        let Some(token) = &self.token else {
            return Admission::Open;
        };
        if bearer(&head.headers).is_some_and(|given| token.is(given)) {
            return Admission::Token;
        }
        // Browsers ask before a call, without a token, whether they may. Nothing else takes this method.
        match OPEN_PATHS.contains(&head.uri.path()) || head.method == Method::OPTIONS {
            true => Admission::Open,
            false => Admission::Refused,
        }
    }
}

/// What the client calls this host: the URI says so before the header does (RFC 9112, section 3.2.2).
fn host(head: &request::Parts) -> Option<String> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
    }
}

/// The token that a request carries: `Bearer TOKEN`, the scheme in any case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_a_bearer_token_is_one() {
        for (text, wanted) in [
            ("Bearer secret", Some("secret")),
            ("bearer  secret", Some("secret")),
            ("Bearer ", Some("")),
            ("Bearer", None),
            ("Basic secret", None),
            ("secret", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))]);
            assert_eq!(bearer(&headers), wanted, "{text:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
