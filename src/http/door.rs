//! What stands before the router: who may come in.

use axum::Router;
use axum::body::Body;
use axum::http::Uri;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::response::Response;
use hyper::body::Incoming;
use tower_service::Service;

use super::reply;
use crate::token::Token;

/// The one path that needs no token: whoever watches over a service need not know its secret.
const OPEN_PATH: &str = "/health";

/// Every request passes it once. Nothing of a request that is turned away reaches a handler.
#[derive(Debug)]
pub struct Door {
    router: Router,
    token: Option<Token>,
}

impl Door {
    /// A door to `router`, open to everybody when there is no token.
    pub fn new(router: Router, token: Option<Token>) -> Door {
        Door { router, token }
    }

    /// The answer to a request.
    pub async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        let request = request.map(Body::new);
        if !self.admits(request.uri(), request.headers()) {
            return reply::unauthorized(request);
        }
        self.router.clone().call(request).await.unwrap_or_else(|never| match never {})
    }

    fn admits(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        uri.path() == OPEN_PATH || bearer(headers).is_some_and(|given| token.is(given))
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
