//! Conditional requests (RFC 9110, section 13): whether what a client holds still counts. Knows no log.

use std::time::{Duration, SystemTime};

use axum::http::header::{
    HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
};

/// What decides about a file: its strong tag, and when it was modified, if that is known.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    etag: String,
    /// To the second, as HTTP has it.
    modified: Option<SystemTime>,
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is answered; its range counts if the flag is set.
    Answer {
        /// Whether `If-Range` lets the range count.
        ranged: bool,
    },
    /// The client has it already: 304.
    NotModified,
    /// The client wanted another one: 412.
    Failed,
}

impl Validators {
    /// Validators of a file whose `etag` (with its quotes) names the very bytes.
    pub(super) fn new(etag: String, modified: Option<SystemTime>) -> Validators {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs());
        // No answer may say that it was modified after it was made.
        let seconds = modified.map(|time| time.min(SystemTime::now())).and_then(seconds);
        Validators { etag, modified: seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)) }
    }

    /// The field `ETag`.
    pub(super) fn etag(&self) -> &str {
        &self.etag
    }

    /// The field `Last-Modified`.
    pub(super) fn last_modified(&self) -> Option<String> {
        self.modified.map(httpdate::fmt_http_date)
    }

    /// Decides about a `GET` or `HEAD`, in the order of section 13.2.2.
    pub(super) fn outcome(&self, headers: &HeaderMap) -> Outcome {
        let is_given = |name: &HeaderName| headers.contains_key(name);
        let since = |name: &HeaderName| Some((self.modified?, date(headers, name)?));
        let failed = match is_given(&IF_MATCH) {
            true => !tags(headers, &IF_MATCH).any(|tag| tag == "*" || tag == self.etag),
            false => since(&IF_UNMODIFIED_SINCE).is_some_and(|(modified, since)| modified > since),
        };
        if failed {
            return Outcome::Failed;
        }
        let weakly = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == self.etag;
        let is_known = match is_given(&IF_NONE_MATCH) {
            true => tags(headers, &IF_NONE_MATCH).any(weakly),
            false => since(&IF_MODIFIED_SINCE).is_some_and(|(modified, since)| modified <= since),
        };
        if is_known {
            return Outcome::NotModified;
        }
        // A time to the second says nothing about bytes: only the tag is strong enough for parts of two answers to fit.
        let ranged = headers.get_all(IF_RANGE).iter().all(|tag| tag.as_bytes() == self.etag.as_bytes());
        Outcome::Answer { ranged }
    }
}

/// The tags of a list, which may be in several fields. Ours hold no comma.
fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let fields = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    fields.flat_map(|field| field.split(',')).map(str::trim)
}

/// The time in a field; none when it is none, or there are several fields: it does not count then.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut fields = headers.get_all(name).iter();
    let text = fields.next()?.to_str().ok()?;
    if fields.next().is_some() {
        return None;
    }
    httpdate::parse_http_date(text.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sunday, 06-Nov-94 08:49:38 GMT";
    const ANSWER: Outcome = Outcome::Answer { ranged: true };
    const WHOLE: Outcome = Outcome::Answer { ranged: false };

    fn outcome(fields: &[(HeaderName, &str)]) -> Outcome {
        let modified = httpdate::parse_http_date(MODIFIED).expect("a date") + Duration::from_millis(300);
        let headers = fields.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect();
        Validators::new("\"a\"".into(), Some(modified)).outcome(&headers)
    }

    #[test]
    fn each_condition_decides_as_the_rfc_has_it() {
        for (name, value, wanted) in [
            (IF_MATCH, "\"a\"", ANSWER),
            (IF_MATCH, "\"b\", \"a\"", ANSWER),
            (IF_MATCH, "*", ANSWER),
            (IF_MATCH, "\"b\"", Outcome::Failed),
            (IF_MATCH, "W/\"a\"", Outcome::Failed),
            (IF_UNMODIFIED_SINCE, BEFORE, Outcome::Failed),
            (IF_UNMODIFIED_SINCE, MODIFIED, ANSWER),
            (IF_UNMODIFIED_SINCE, "yesterday", ANSWER),
            (IF_NONE_MATCH, "\"a\"", Outcome::NotModified),
            (IF_NONE_MATCH, "W/\"b\" , W/\"a\"", Outcome::NotModified),
            (IF_NONE_MATCH, "*", Outcome::NotModified),
            (IF_NONE_MATCH, "\"b\"", ANSWER),
            (IF_MODIFIED_SINCE, BEFORE, ANSWER),
            (IF_MODIFIED_SINCE, MODIFIED, Outcome::NotModified),
            (IF_MODIFIED_SINCE, AFTER, Outcome::NotModified),
            (IF_MODIFIED_SINCE, "0", ANSWER),
            (IF_RANGE, "\"a\"", ANSWER),
            (IF_RANGE, "W/\"a\"", WHOLE),
            (IF_RANGE, MODIFIED, WHOLE),
        ] {
            assert_eq!(outcome(&[(name.clone(), value)]), wanted, "{name}: {value}");
        }
    }

    #[test]
    fn tags_count_before_times() {
        assert_eq!(outcome(&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)]), ANSWER);
        assert_eq!(outcome(&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, AFTER)]), ANSWER);
        assert_eq!(outcome(&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")]), Outcome::Failed);
    }
}
