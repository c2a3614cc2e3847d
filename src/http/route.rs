//! Where a request really goes: a pure function of its URI and of what the client calls this host.

use std::net::Ipv4Addr;

use axum::http::Uri;
use axum::http::uri::PathAndQuery;

use crate::format::name::is_log_name;

/// How clients may reach a log besides `/logs/NAME/...`.
///
/// Empty segments of a path never count: `//sync/1/2/` is `/sync/1/2`. What the sync protocols ask of a log (`/info`,
/// `/export/G`, `/sync/...`, `/pull-updates`, `/v2/pipeline`, `/v3/pipeline`, `/v3/cursor`) may also be asked at the root: of the log that the
/// host is named after, or else of the one log chosen for it. Every other path stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The log that the sync protocols find at the root.
    pub root_log: Option<String>,
    /// Whether the host `NAME.anything` stands for the log NAME.
    pub by_host: bool,
}

impl Routing {
    /// The URI to take for `uri`; none when that is the one. `host` may have a port.
    #[must_use]
    pub fn rewritten(&self, uri: &Uri, host: Option<&str>) -> Option<Uri> {
        let path = uri.path();
        if !path.starts_with('/') {
            // `OPTIONS *`, or an authority alone.
            return None;
        }
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let log = if is_of_a_log(&segments) { self.log(host) } else { None };
        let mut plain = String::with_capacity(path.len());
        for segment in log.iter().flat_map(|log| ["logs", log]).chain(segments) {
            plain.push('/');
            plain.push_str(segment);
        }
        if plain.is_empty() {
            plain.push('/');
        }
        if plain == path {
            return None;
        }
        if let Some(query) = uri.query() {
            plain.push('?');
            plain.push_str(query);
        }
        // Too long for a URI, at worst: then the path as it is leads nowhere.
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(plain).ok()?);
        Uri::from_parts(parts).ok()
    }

    fn log(&self, host: Option<&str>) -> Option<String> {
        let named = host.filter(|_| self.by_host).and_then(log_of_host);
        named.or_else(|| self.root_log.clone())
    }
}

/// Whether this is what a sync protocol asks of a log.
fn is_of_a_log(segments: &[&str]) -> bool {
    matches!(
        segments,
        ["info"] | ["export", _] | ["sync", ..] | ["pull-updates"] | ["v2" | "v3", "pipeline"] | ["v3", "cursor"]
    )
}

/// The log that a host is named after: `app` of `app.example.org:7171`. An address is not named after anything.
fn log_of_host(host: &str) -> Option<String> {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    if name.parse::<Ipv4Addr>().is_ok() {
        return None;
    }
    let (log, rest) = name.split_once('.')?;
    let log = log.to_ascii_lowercase();
    (!rest.is_empty() && is_log_name(&log)).then_some(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(routing: &Routing, path: &str, host: Option<&str>) -> String {
        let uri: Uri = path.parse().expect("a URI");
        routing.rewritten(&uri, host).unwrap_or(uri).to_string()
    }

    fn at_root() -> Routing {
        Routing { root_log: Some("app".into()), by_host: false }
    }

    fn by_host() -> Routing {
        Routing { root_log: None, by_host: true }
    }

    #[test]
    fn empty_segments_never_count() {
        for (path, wanted) in [
            ("/", "/"),
            ("//", "/"),
            ("///?a=//", "/?a=//"),
            ("/logs", "/logs"),
            ("//logs//app/", "/logs/app"),
            ("/logs/app//commits/?from=3&to=//", "/logs/app/commits?from=3&to=//"),
            ("/logs/app//sync/1/2/3", "/logs/app/sync/1/2/3"),
            ("//sync/1/2", "/sync/1/2"),
            ("/health/", "/health"),
            ("http://host//health/?x", "http://host/health?x"),
            ("*", "*"),
        ] {
            assert_eq!(after(&Routing::default(), path, Some("app.example.org")), wanted, "{path}");
        }
    }

    #[test]
    fn what_is_asked_of_the_root_goes_to_the_chosen_log() {
        for (path, wanted) in [
            ("/info", "/logs/app/info"),
            ("//info/", "/logs/app/info"),
            ("/export/1", "/logs/app/export/1"),
            ("/sync/1/2/3", "/logs/app/sync/1/2/3"),
            ("//sync/1/2/3/baton?x=y", "/logs/app/sync/1/2/3/baton?x=y"),
            ("/pull-updates", "/logs/app/pull-updates"),
            ("/v2/pipeline", "/logs/app/v2/pipeline"),
            ("/v3/pipeline", "/logs/app/v3/pipeline"),
            ("/v3/cursor", "/logs/app/v3/cursor"),
            ("http://host/info", "http://host/logs/app/info"),
        ] {
            assert_eq!(after(&at_root(), path, None), wanted, "{path}");
            assert_eq!(after(&by_host(), path, Some("app.example.org:80")), wanted, "{path}");
        }
    }

    #[test]
    fn every_other_path_stays_as_it_is() {
        for path in [
            "/",
            "/health",
            "/metrics",
            "/logs",
            "/logs/other",
            "/logs/other/info",
            "/logs/info",
            "/info/1",
            "/export",
            "/export/1/2",
            "/v1/pipeline",
            "/v3",
            "/v3/pipeline/x",
            "/v2/cursor",
            "/synchronise",
            "/commits",
            "/INFO",
            "/%69nfo",
        ] {
            assert_eq!(after(&at_root(), path, None), path);
            assert_eq!(after(&by_host(), path, Some("app.example.org")), path);
        }
    }

    #[test]
    fn a_host_is_named_after_a_log_or_not() {
        for (host, wanted) in [
            ("app.example.org", Some("app")),
            ("App.Example.org:7171", Some("app")),
            ("a-b_c.localhost:1", Some("a-b_c")),
            ("localhost", None),
            ("localhost:7171", None),
            ("localhost.", None),
            ("127.0.0.1", None),
            ("127.0.0.1:7171", None),
            ("[::1]:7171", None),
            ("[::ffff:1.2.3.4]", None),
            ("-app.example.org", None),
            (".example.org", None),
            ("me@app.example.org", None),
            ("", None),
        ] {
            assert_eq!(log_of_host(host).as_deref(), wanted, "{host}");
        }
    }

    #[test]
    fn the_host_goes_before_the_log_chosen_for_the_root() {
        let both = Routing { by_host: true, ..at_root() };
        for (host, wanted) in [
            (Some("other.example.org"), "/logs/other/info"),
            (Some("127.0.0.1:7171"), "/logs/app/info"),
            (Some("localhost:7171"), "/logs/app/info"),
            (None, "/logs/app/info"),
        ] {
            assert_eq!(after(&both, "/info", host), wanted, "{host:?}");
        }
    }

    #[test]
    fn a_path_too_long_to_lengthen_stays_as_it_is() {
        let path = format!("/sync/{}", "x".repeat(65_520));
        assert_eq!(after(&at_root(), &path, None), path);
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic_and_once_is_enough(
            bytes in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'?'), Just(b'.'), any::<u8>()], 0..60),
            host in proptest::option::of(".{0,30}"),
            by_host in any::<bool>(),
            start in prop_oneof![Just("/"), Just("/sync/"), Just("/info/"), Just("//export//"), Just("http://h/"), Just("")],
        ) {
            let routing = Routing { by_host, ..at_root() };
            let text = [start.as_bytes(), &bytes].concat();
            if let Ok(uri) = Uri::try_from(text.as_slice()) {
                let once = routing.rewritten(&uri, host.as_deref()).unwrap_or(uri.clone());
                prop_assert_eq!(routing.rewritten(&once, host.as_deref()), None);
                prop_assert_eq!(once.query(), uri.query());
                prop_assert!(!uri.path().starts_with('/') || !once.path().contains("//"));
            }
        }
    }
}
