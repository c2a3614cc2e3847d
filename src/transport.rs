//! Why a request did not get through, in words for the one who gave the URL.

use std::error::Error;
use std::io;

use reqwest::Url;

/// What went wrong with a request, where, and what to do about it.
pub(crate) fn explained(error: &reqwest::Error) -> String {
    let chain = chain(error);
    let Some(url) = error.url() else {
        return advice(error, &chain, None).map_or_else(|| chain.clone(), |advice| format!("{chain}: {advice}"));
    };
    let at = shown(url);
    match advice(error, &chain, Some(url)) {
        Some(advice) => format!("{at}: {advice}"),
        None => chain,
    }
}

/// What is known of a failure: what it is, and what to do about it.
fn advice(error: &reqwest::Error, chain: &str, url: Option<&Url>) -> Option<String> {
    let host = url.and_then(Url::host_str).map_or("there".to_owned(), |host| {
        let port = url.and_then(Url::port_or_known_default).unwrap_or_default();
        format!("{host}:{port}")
    });
    let is_https = url.is_some_and(|url| url.scheme() == "https");
    let kind = kind_of(error);
    if kind == Some(io::ErrorKind::ConnectionRefused) {
        return Some(match url {
            Some(_) => format!("connection refused: is `logmirror serve` running, and listening on {host}?"),
            None => "connection refused: is the server running?".to_owned(),
        });
    }
    // A record of TLS was awaited, and something else was received.
    if is_https && (chain.contains("InvalidContentType") || chain.contains("corrupt message")) {
        return Some(format!("{host} does not speak TLS: give the URL with http:// instead of https://"));
    }
    // The first bytes were no status line; those of TLS are an alert.
    if !is_https && (chain.contains("invalid HTTP version") || chain.contains("invalid HTTP status-code")) {
        return Some(format!("{host} does not answer in HTTP: if it speaks TLS, give the URL with https://"));
    }
    if let Some((_, found)) = chain.split_once("invalid peer certificate") {
        return Some(format!(
            "the certificate of {host} is not trusted{found}: name the authority that signed it with --cacert FILE, or give \
             the host name that the certificate is for"
        ));
    }
    if chain.contains("dns error") {
        return Some(format!("there is no host of that name: check the URL ({host})"));
    }
    None
}

fn kind_of(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = cause.source();
    }
    None
}

/// An error with its causes, since reqwest's own text names only the request.
pub(crate) fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The URL without its query, and without secrets: those never reach a URL that is sent.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}
