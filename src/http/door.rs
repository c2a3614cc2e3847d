//! What stands before the router: who may come in, and where a request really goes.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, HOST, HeaderMap};
use axum::http::{Method, Uri};
use axum::response::Response;
use hyper::body::Incoming;
use tower_service::Service;

use super::reply;
use super::route::Routing;
use crate::token::Token;

/// Paths that need no token: a monitor need not know the secret of the service.
const OPEN_PATHS: [&str; 3] = ["/health", "/livez", "/readyz"];

/// Every request passes it once. Nothing of a request that is turned away reaches a handler.
#[derive(Debug)]
pub struct Door {
    router: Router,
    routing: Routing,
    token: Option<Token>,
}

impl Door {
    /// A door to `router`, open to everybody when there is no token.
    pub fn new(router: Router, routing: Routing, token: Option<Token>) -> Door {
        Door { router, routing, token }
    }

    /// The answer to a request.
    pub async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        reply::for_proxies(self.routed(request).await, self.token.is_some())
    }

    async fn routed(&self, request: hyper::Request<Incoming>) -> Response {
        let mut request = request.map(Body::new);
        let host = host(&request);
        if let Some(uri) = self.routing.rewritten(request.uri(), host.as_deref()) {
            *request.uri_mut() = uri;
        }
        if !self.admits(request.method(), request.uri(), request.headers()) {
            #[cfg(feature = "turso")]
            if super::turso::is_call(request.uri().path()) {
                let mut refusal = reply::unauthorized(request);
                super::turso::allow_origins(refusal.headers_mut());
                return refusal;
            }
            return reply::unauthorized(request);
        }
        self.router.clone().call(request).await.unwrap_or_else(|never| match never {})
    }

    fn admits(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        // Browsers ask before a call, without a token, whether they may. Nothing else takes this method.
        OPEN_PATHS.contains(&uri.path())
            || *method == Method::OPTIONS
            || bearer(headers).is_some_and(|given| token.is(given))
    }
}

/// What the client calls this host: the URI says so before the header does (RFC 9112, section 3.2.2).
fn host(request: &Request) -> Option<String> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
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
