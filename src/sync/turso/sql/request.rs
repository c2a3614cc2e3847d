//! What clients ask, out of JSON. Fields that they may leave out have their defaults here.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::numbers;
use crate::limits::JSON_DEPTH_MAX;
use crate::mirror::Error;
use crate::sync::turso::Value;

/// A call of `/v2/pipeline` or `/v3/pipeline`. A close is the last of its requests.
#[derive(Debug, Deserialize)]
#[serde(try_from = "AnyPipeline")]
pub(super) struct Pipeline {
    pub(super) baton: Option<String>,
    pub(super) requests: Vec<Request>,
}

#[derive(Deserialize)]
struct AnyPipeline {
    baton: Option<String>,
    requests: Vec<Request>,
}

impl TryFrom<AnyPipeline> for Pipeline {
    type Error = String;

    fn try_from(AnyPipeline { baton, requests }: AnyPipeline) -> Result<Pipeline, String> {
        match requests.iter().position(|request| matches!(request, Request::Close)) {
            Some(close) if close + 1 < requests.len() => Err(format!(
                "request {close} is a close, which has to be the last one: {} follow; nothing was run",
                requests.len() - close - 1
            )),
            _ => Ok(Pipeline { baton, requests }),
        }
    }
}

/// A call of `/v3/cursor`.
#[derive(Debug, Deserialize)]
pub(super) struct CursorCall {
    pub(super) baton: Option<String>,
    pub(super) batch: Batch,
}

/// One request of a pipeline.
#[derive(Debug, Deserialize)]
#[serde(try_from = "AnyRequest")]
pub(super) enum Request {
    Execute(Stmt),
    Batch(Batch),
    Sequence(Text),
    Describe(Text),
    StoreSql {
        id: i32,
        sql: String,
    },
    CloseSql {
        id: i32,
    },
    GetAutocommit,
    Close,
    /// A kind that we do not know.
    Unknown(String),
}

/// SQL, or the number under which it was stored.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) sql: Option<String>,
    pub(super) sql_id: Option<i32>,
}

/// A statement with its arguments.
#[derive(Debug, Deserialize)]
#[serde(from = "AnyStmt")]
pub(super) struct Stmt {
    pub(super) text: Text,
    pub(super) args: Vec<Value>,
    pub(super) named_args: Vec<NamedArg>,
    pub(super) want_rows: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedArg {
    pub(super) name: String,
    pub(super) value: Value,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "AnyBatch")]
pub(super) struct Batch {
    pub(super) steps: Vec<Step>,
}

#[derive(Deserialize)]
struct AnyBatch {
    steps: Vec<Step>,
}

impl TryFrom<AnyBatch> for Batch {
    type Error = String;

    fn try_from(AnyBatch { steps }: AnyBatch) -> Result<Batch, String> {
        for (number, step) in steps.iter().enumerate() {
            // What is to come is neither ok nor an error yet: whoever asks for it has counted wrong.
            if let Some(named) = step.condition.as_ref().and_then(Cond::last_step).filter(|named| *named >= number) {
                return Err(format!(
                    "the condition of step {number} names step {named}: it may name steps before its own only"
                ));
            }
        }
        Ok(Batch { steps })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Step {
    pub(super) condition: Option<Cond>,
    pub(super) stmt: Stmt,
}

/// Whether a step runs. JSON is read to a depth of 128, so these are no deeper than 64.
#[derive(Debug, Deserialize)]
#[serde(try_from = "AnyCond")]
pub(super) enum Cond {
    Ok(usize),
    Error(usize),
    Not(Box<Cond>),
    And(Vec<Cond>),
    Or(Vec<Cond>),
    IsAutocommit,
}

impl Cond {
    /// The last step that it names.
    fn last_step(&self) -> Option<usize> {
        match self {
            Cond::Ok(step) | Cond::Error(step) => Some(*step),
            Cond::Not(cond) => cond.last_step(),
            Cond::And(conds) | Cond::Or(conds) => conds.iter().filter_map(Cond::last_step).max(),
            Cond::IsAutocommit => None,
        }
    }
}

/// Any request, without a copy of it in between as serde's tagged enums make one.
#[derive(Deserialize)]
struct AnyRequest {
    r#type: String,
    stmt: Option<Stmt>,
    batch: Option<Batch>,
    sql: Option<String>,
    sql_id: Option<i32>,
}

#[derive(Deserialize)]
struct AnyStmt {
    sql: Option<String>,
    sql_id: Option<i32>,
    args: Option<Vec<Value>>,
    named_args: Option<Vec<NamedArg>>,
    want_rows: Option<bool>,
}

#[derive(Deserialize)]
struct AnyCond {
    r#type: String,
    step: Option<usize>,
    cond: Option<Box<Cond>>,
    conds: Option<Vec<Cond>>,
}

impl TryFrom<AnyRequest> for Request {
    type Error = String;

    fn try_from(any: AnyRequest) -> Result<Request, String> {
        let AnyRequest { r#type, stmt, batch, sql, sql_id } = any;
        let lacks = |field: &str| format!("a request of type {:?} needs {field}", r#type);
        match r#type.as_str() {
            "execute" => stmt.map(Request::Execute).ok_or_else(|| lacks("stmt")),
            "batch" => batch.map(Request::Batch).ok_or_else(|| lacks("batch")),
            "sequence" => Ok(Request::Sequence(Text { sql, sql_id })),
            "describe" => Ok(Request::Describe(Text { sql, sql_id })),
            "store_sql" => match (sql_id, sql) {
                (Some(id), Some(sql)) => Ok(Request::StoreSql { id, sql }),
                _ => Err(lacks("sql_id and sql")),
            },
            "close_sql" => sql_id.map(|id| Request::CloseSql { id }).ok_or_else(|| lacks("sql_id")),
            "get_autocommit" => Ok(Request::GetAutocommit),
            "close" => Ok(Request::Close),
            _ => Ok(Request::Unknown(r#type)),
        }
    }
}

impl TryFrom<AnyCond> for Cond {
    type Error = String;

    fn try_from(any: AnyCond) -> Result<Cond, String> {
        let AnyCond { r#type, step, cond, conds } = any;
        let lacks = |field: &str| format!("a condition of type {:?} needs {field}", r#type);
        match r#type.as_str() {
            "ok" => step.map(Cond::Ok).ok_or_else(|| lacks("step")),
            "error" => step.map(Cond::Error).ok_or_else(|| lacks("step")),
            "not" => cond.map(Cond::Not).ok_or_else(|| lacks("cond")),
            "and" => conds.map(Cond::And).ok_or_else(|| lacks("conds")),
            "or" => conds.map(Cond::Or).ok_or_else(|| lacks("conds")),
            "is_autocommit" => Ok(Cond::IsAutocommit),
            _ => Err(format!("there is no condition of type {:?}", r#type)),
        }
    }
}

impl From<AnyStmt> for Stmt {
    fn from(any: AnyStmt) -> Stmt {
        let AnyStmt { sql, sql_id, args, named_args, want_rows } = any;
        Stmt {
            text: Text { sql, sql_id },
            args: args.unwrap_or_default(),
            named_args: named_args.unwrap_or_default(),
            want_rows: want_rows.unwrap_or(true),
        }
    }
}

/// How deep JSON nests, also in what nobody reads.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'[' | b'{') => {
                depth += 1;
                most = most.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Reads a body.
///
/// # Errors
/// [`Error::Invalid`] with where and why it makes no sense.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    if depth(body) > JSON_DEPTH_MAX {
        return Err(Error::Invalid(format!("the body cannot be read: it nests more than {JSON_DEPTH_MAX} deep")));
    }
    let read = serde_json::from_slice(body).or_else(|error| match numbers::readable(body) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(body) => serde_json::from_slice(&body),
    });
    read.map_err(|error| Error::Invalid(format!("the body cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_sql_of_a_statement_may_be_missing() {
        let body = br#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 1"}},{"stmt":{"sql":null,"sql_id":2,
            "args":[{"type":"null"}],"named_args":[{"name":"a","value":{"type":"integer","value":"1"}}],"want_rows":false,
            "replication_index":null},"type":"execute"},{"type":"nix"},{"type":"batch","batch":{"steps":[]}}]}"#;
        let pipeline: Pipeline = read(body).expect("it is one");
        assert_eq!(pipeline.baton, None);
        let [Request::Execute(short), Request::Execute(long), Request::Unknown(kind), Request::Batch(batch)] =
            pipeline.requests.as_slice()
        else {
            panic!("{pipeline:?}");
        };
        assert_eq!((short.text.sql.as_deref(), short.text.sql_id, short.want_rows), (Some("SELECT 1"), None, true));
        assert_eq!((long.text.sql.as_deref(), long.text.sql_id, long.want_rows), (None, Some(2), false));
        assert_eq!((long.args.len(), long.named_args.len(), kind.as_str(), batch.steps.len()), (1, 1, "nix", 0));
    }

    #[test]
    fn deep_json_is_refused_and_does_not_overflow_the_stack() {
        for depth in [1_000, 1_000_000] {
            let conds = r#"{"type":"not","cond":"#.repeat(depth) + r#"{"type":"is_autocommit"}"# + &"}".repeat(depth);
            let body = format!(
                r#"{{"requests":[{{"type":"batch","batch":{{"steps":[{{"condition":{conds},"stmt":{{"sql":""}}}}]}}}}]}}"#
            );
            assert!(read::<Pipeline>(body.as_bytes()).is_err());
            // So it is where nobody would read it; but what a text says nests nothing.
            let body = format!(r#"{{"requests":[],"more":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            assert!(read::<Pipeline>(body.as_bytes()).is_err());
            let body = format!(r#"{{"requests":[],"more":"\"{}\\"}}"#, "[".repeat(depth));
            assert!(read::<Pipeline>(body.as_bytes()).is_ok());
        }
    }
}
