//! [`Value`]: a value of SQLite in JSON, both ways.
//!
//! Integers are decimal text, since JSON readers lose bits of large numbers. An infinity is a text here, `"Infinity"`; clients
//! write a null for a float that JSON cannot express, which is read as no number.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Deserializer, Error as _, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use turso_core::Numeric;

/// Read with and without padding, written without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The infinities, in JSON of ours.
const INFINITY: &str = "Infinity";
/// See [`INFINITY`].
const MINUS_INFINITY: &str = "-Infinity";

/// A value of SQLite, as it stands in a request or in an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A float; one that is no number is bound as NULL.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// Bytes of a text or a blob; 0 for others.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Value::Text(text) => text.len(),
            Value::Blob(bytes) => bytes.len(),
            Value::Null | Value::Integer(_) | Value::Float(_) => 0,
        }
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn weight(&self) -> usize {
        size_of::<Value>() + self.bytes()
    }
}

impl From<&turso_core::Value> for Value {
    fn from(value: &turso_core::Value) -> Value {
        match value {
            turso_core::Value::Null => Value::Null,
            turso_core::Value::Numeric(Numeric::Integer(integer)) => Value::Integer(*integer),
            turso_core::Value::Numeric(Numeric::Float(float)) => Value::Float(f64::from(*float)),
            turso_core::Value::Text(text) => Value::Text(text.as_str().to_owned()),
            turso_core::Value::Blob(bytes) => Value::Blob(bytes.to_vec()),
        }
    }
}

impl From<&Value> for turso_core::Value {
    fn from(value: &Value) -> turso_core::Value {
        match value {
            Value::Null => turso_core::Value::Null,
            Value::Integer(integer) => turso_core::Value::from_i64(*integer),
            Value::Float(float) => turso_core::Value::from_f64(*float),
            Value::Text(text) => turso_core::Value::build_text(text.clone()),
            Value::Blob(bytes) => turso_core::Value::Blob(bytes.clone()),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, field) = match self {
            Value::Integer(_) => ("integer", "value"),
            Value::Float(float) if !float.is_nan() => ("float", "value"),
            Value::Text(_) => ("text", "value"),
            Value::Blob(_) => ("blob", "base64"),
            Value::Null | Value::Float(_) => ("null", ""),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", kind)?;
        match self {
            Value::Integer(integer) => map.serialize_entry(field, &integer.to_string())?,
            Value::Float(float) if float.is_finite() => map.serialize_entry(field, float)?,
            Value::Float(float) if *float > 0.0 => map.serialize_entry(field, INFINITY)?,
            Value::Float(float) if *float < 0.0 => map.serialize_entry(field, MINUS_INFINITY)?,
            Value::Text(text) => map.serialize_entry(field, text)?,
            Value::Blob(bytes) => map.serialize_entry(field, &BASE64.encode(bytes))?,
            Value::Null | Value::Float(_) => {}
        }
        map.end()
    }
}

#[derive(Deserialize)]
struct Written {
    r#type: Kind,
    #[serde(default)]
    value: Scalar,
    base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Null,
    Integer,
    Float,
    Text,
    Blob,
}

/// What may stand for a value in JSON.
#[derive(Default)]
enum Scalar {
    #[default]
    Null,
    Integer(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct OfScalar;
        impl Visitor<'_> for OfScalar {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or null")
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }

            fn visit_i64<E>(self, integer: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(integer))
            }

            fn visit_u64<E>(self, integer: u64) -> Result<Scalar, E> {
                Ok(i64::try_from(integer).map_or(Scalar::Float(integer as f64), Scalar::Integer))
            }

            fn visit_f64<E>(self, float: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(float))
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Scalar, E> {
                Ok(Scalar::Text(text))
            }
        }
        deserializer.deserialize_any(OfScalar)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        let Written { r#type, value, base64 } = Written::deserialize(deserializer)?;
        match (r#type, value, base64) {
            (Kind::Null, ..) => Ok(Value::Null),
            (Kind::Float, Scalar::Null, _) => Ok(Value::Float(f64::NAN)),
            (Kind::Integer, Scalar::Integer(integer), _) => Ok(Value::Integer(integer)),
            (Kind::Integer, Scalar::Text(text), _) => text
                .parse()
                .map(Value::Integer)
                .map_err(|_| D::Error::custom("an integer is a decimal text of 64 bits")),
            (Kind::Integer, ..) => Err(D::Error::custom("an integer is a decimal text of 64 bits")),
            (Kind::Float, Scalar::Float(float), _) => Ok(Value::Float(float)),
            (Kind::Float, Scalar::Integer(integer), _) => Ok(Value::Float(integer as f64)),
            (Kind::Float, Scalar::Text(text), _) if text == INFINITY => Ok(Value::Float(f64::INFINITY)),
            (Kind::Float, Scalar::Text(text), _) if text == MINUS_INFINITY => Ok(Value::Float(f64::NEG_INFINITY)),
            (Kind::Float, Scalar::Text(_), _) => Err(D::Error::custom("a float is a number or null")),
            (Kind::Text, Scalar::Text(text), _) => Ok(Value::Text(text)),
            (Kind::Text, ..) => Err(D::Error::custom("a text needs a value that is a text")),
            (Kind::Blob, _, Some(text)) => {
                BASE64.decode(text).map(Value::Blob).map_err(|error| D::Error::custom(format!("a blob: {error}")))
            }
            (Kind::Blob, _, None) => Err(D::Error::custom("a blob needs base64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Value, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn written(value: &Value) -> String {
        serde_json::to_string(value).expect("values are written")
    }

    #[test]
    fn values_are_written_as_the_protocol_says() {
        for (value, json) in [
            (Value::Null, r#"{"type":"null"}"#),
            (Value::Integer(i64::MIN), r#"{"type":"integer","value":"-9223372036854775808"}"#),
            (Value::Float(1.5), r#"{"type":"float","value":1.5}"#),
            (Value::Text("a\"\n\0".into()), r#"{"type":"text","value":"a\"\n\u0000"}"#),
            (Value::Blob(vec![0xff, 0xfe]), r#"{"type":"blob","base64":"//4"}"#),
        ] {
            assert_eq!(written(&value), json);
            assert_eq!(read(json).expect(json), value);
        }
    }

    #[test]
    fn an_infinity_stays_one_and_a_float_without_a_number_is_none() {
        for float in [f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(read(&written(&Value::Float(float))).expect("what we write we read"), Value::Float(float));
        }
        assert_eq!(written(&Value::Float(f64::NAN)), r#"{"type":"null"}"#);
        for json in [r#"{"type":"float","value":null}"#, r#"{"type":"float"}"#] {
            assert!(matches!(read(json).expect(json), Value::Float(float) if float.is_nan()));
        }
        assert_eq!(turso_core::Value::from(&Value::Float(f64::NAN)), turso_core::Value::Null);
    }

    #[test]
    fn what_clients_write_otherwise_is_read() {
        for (json, value) in [
            (r#"{"value":1,"type":"float"}"#, Value::Float(1.0)),
            (r#"{"type":"float","value":18446744073709551615}"#, Value::Float(18446744073709551615.0)),
            (r#"{"type":"integer","value":-3}"#, Value::Integer(-3)),
            (r#"{"type":"blob","base64":"//4="}"#, Value::Blob(vec![0xff, 0xfe])),
            (r#"{"type":"blob","base64":""}"#, Value::Blob(Vec::new())),
            (r#"{"type":"null","value":null,"more":[1]}"#, Value::Null),
        ] {
            assert_eq!(read(json).expect(json), value, "{json}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for json in [
            "{}",
            "1",
            r#"{"type":"integer"}"#,
            r#"{"type":"integer","value":"9223372036854775808"}"#,
            r#"{"type":"integer","value":"1.5"}"#,
            r#"{"type":"integer","value":1.5}"#,
            r#"{"type":"float","value":"1.5"}"#,
            r#"{"type":"text","value":1}"#,
            r#"{"type":"text"}"#,
            r#"{"type":"blob"}"#,
            r#"{"type":"blob","base64":"a b"}"#,
            r#"{"type":"bool","value":true}"#,
            r#"{"type":"text","value":[1]}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            any::<f64>().prop_filter("finite", |float| float.is_finite()).prop_map(Value::Float),
            any::<String>().prop_map(Value::Text),
            any::<Vec<u8>>().prop_map(Value::Blob),
        ]
    }

    proptest! {
        #[test]
        fn every_value_comes_back_from_json_and_from_the_engine(value in any_value()) {
            prop_assert_eq!(&read(&written(&value)).expect("what we write we read"), &value);
            prop_assert_eq!(&Value::from(&turso_core::Value::from(&value)), &value);
        }
    }
}
