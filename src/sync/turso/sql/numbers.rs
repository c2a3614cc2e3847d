//! Infinities in JSON, which has a number for each but no word: one that no float is large enough for. Readers of JSON in
//! JavaScript, Python and SQLite take it for an infinity; that of `serde_json` does not, and writes no such number.
//! And line separators in texts, which are escaped: clients read answers line by line, some with Unicode's idea of a line.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde_json::ser::Formatter;

use crate::sync::turso::Value;

/// Writes an answer.
pub(super) fn write(out: impl io::Write, answer: &impl Serialize) -> serde_json::Result<()> {
    answer.serialize(&mut serde_json::Serializer::with_formatter(out, Infinite))
}

/// What ends a line besides the control characters, which JSON escapes anyway.
const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// Integers of 128 bits, of which an answer has no others, stand for the infinities.
struct Infinite;

impl Formatter for Infinite {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.is_ascii() {
            return out.write_all(fragment.as_bytes());
        }
        for piece in fragment.split_inclusive(LINE_ENDS) {
            match piece.chars().next_back().filter(|last| LINE_ENDS.contains(last)) {
                None => out.write_all(piece.as_bytes())?,
                Some(end) => {
                    out.write_all(&piece.as_bytes()[..piece.len() - end.len_utf8()])?;
                    write!(out, "\\u{:04x}", u32::from(end))?;
                }
            }
        }
        Ok(())
    }

    fn write_u128<W: ?Sized + io::Write>(&mut self, out: &mut W, _infinity: u128) -> io::Result<()> {
        out.write_all(b"1e999")
    }

    fn write_i128<W: ?Sized + io::Write>(&mut self, out: &mut W, _infinity: i128) -> io::Result<()> {
        out.write_all(b"-1e999")
    }
}

/// A value as [`write`] writes it.
struct Sent<'a>(&'a Value);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Float(float) = self.0 else { return self.0.serialize(serializer) };
        if !float.is_infinite() {
            return self.0.serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", "float")?;
        if *float > 0.0 {
            map.serialize_entry("value", &1_u128)?
        } else {
            map.serialize_entry("value", &-1_i128)?
        }
        map.end()
    }
}

/// A row, for [`write`].
pub(super) fn row<S: Serializer>(row: &[Value], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(row.iter().map(Sent))
}

/// Rows, for [`write`].
pub(super) fn rows<S: Serializer>(rows: &[Vec<Value>], serializer: S) -> Result<S::Ok, S::Error> {
    struct Row<'a>(&'a [Value]);
    impl Serialize for Row<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            row(self.0, serializer)
        }
    }
    let mut seq = serializer.serialize_seq(Some(rows.len()))?;
    rows.iter().try_for_each(|row| seq.serialize_element(&Row(row)))?;
    seq.end()
}

/// The body with each number that no float is large enough for as the text that [`Value`] reads for it.
pub(super) fn readable(body: &[u8]) -> Cow<'_, [u8]> {
    let (mut out, mut copied, mut at) = (Vec::new(), 0, 0);
    let (mut in_text, mut escaped) = (false, false);
    while let Some(byte) = body.get(at) {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'-' | b'0'..=b'9') => {
                let is_part = |byte: &u8| b"0123456789+-.eE".contains(byte);
                let end = body[at..].iter().position(|byte| !is_part(byte)).map_or(body.len(), |length| at + length);
                let number = std::str::from_utf8(&body[at..end]).ok().and_then(|text| text.parse::<f64>().ok());
                if let Some(number) = number.filter(|number| number.is_infinite()) {
                    out.extend_from_slice(&body[copied..at]);
                    out.extend_from_slice(if number > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
                    copied = end;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(body);
    }
    out.extend_from_slice(&body[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_written_as_numbers_that_are_too_large() {
        #[derive(Serialize)]
        struct Answer {
            #[serde(serialize_with = "rows")]
            rows: Vec<Vec<Value>>,
        }
        let mut out = Vec::new();
        let floats = [f64::INFINITY, f64::NEG_INFINITY, 1.5].map(Value::Float).to_vec();
        write(&mut out, &Answer { rows: vec![floats] }).expect("it is written");
        let wanted = r#"{"rows":[[{"type":"float","value":1e999},{"type":"float","value":-1e999},{"type":"float","value":1.5}]]}"#;
        assert_eq!(String::from_utf8_lossy(&out), wanted);
    }

    #[test]
    fn only_numbers_that_are_too_large_are_made_readable() {
        for (body, wanted) in [
            (r#"{"a":1e999,"b":[-1E+400]}"#, r#"{"a":"Infinity","b":["-Infinity"]}"#),
            (r#"{"a":"1e999 \" 1e999","b":1e30,"c":-0}"#, r#"{"a":"1e999 \" 1e999","b":1e30,"c":-0}"#),
            ("1e999", r#""Infinity""#),
            ("--1", "--1"),
        ] {
            assert_eq!(String::from_utf8_lossy(&readable(body.as_bytes())), wanted);
        }
    }
}
