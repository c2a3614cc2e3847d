//! The log of a process on standard error: from which level on, and as what.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use env_logger::fmt::Formatter;
use env_logger::{Builder, Target, WriteStyle};
use log::{LevelFilter, Record};
use logmirror::http::REQUESTS;
use serde_json::{Map, Value, json};

use super::exit::Exit;
use super::output;

/// Characters of a message that are written. Longer ones are cut.
const MESSAGE_CHARS_MAX: usize = 4000;

/// Our own records follow the level that was asked for; those of libraries, which may hold what users sent, only warn.
const OURS: &str = "logmirror";

/// What is logged unless told otherwise.
const LEVEL_DEFAULT: LevelFilter = LevelFilter::Info;

/// The log of a command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogArgs {
    /// Least level of what is logged on standard error: off, error, warn, info, debug or trace. Also a filter as in
    /// warn,logmirror::request=info [default: info]
    #[arg(long, global = true, value_name = "LEVEL", env = "LOGMIRROR_LOG")]
    log_level: Option<String>,
    /// As what it is logged: lines of text, or JSON, one object a line
    #[arg(long, global = true, value_name = "FORMAT", env = "LOGMIRROR_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

impl LogArgs {
    /// Starts the log of this process.
    ///
    /// # Errors
    /// What to end with when the level makes no sense; the reason has been said.
    pub(crate) fn start(&self) -> Result<(), Exit> {
        let filters = match self.log_level.as_deref().map(str::trim).filter(|level| !level.is_empty()) {
            None => ours(LEVEL_DEFAULT),
            Some(text) => filters(text).map_err(|wrong| {
                Exit::Usage.because(format_args!(
                    "--log-level (LOGMIRROR_LOG): {wrong:?} is no level: give off, error, warn, info, debug or trace"
                ))
            })?,
        };
        let mut builder = Builder::new();
        for (target, level) in &filters {
            builder.filter(target.as_deref(), *level);
        }
        match std::env::var("LOGMIRROR_LOG_STYLE").unwrap_or_default().as_str() {
            "always" => builder.write_style(WriteStyle::Always),
            "auto" | "" if is_coloured() => builder.write_style(WriteStyle::Always),
            _ => builder.write_style(WriteStyle::Never),
        };
        builder.target(Target::Pipe(Box::new(output::LogLines)));
        match self.log_format {
            LogFormat::Text => builder.format(as_text),
            LogFormat::Json => {
                output::log_in_json();
                builder.format(as_json)
            }
        };
        builder.init();
        Ok(())
    }
}

/// Whether colours suit standard error.
fn is_coloured() -> bool {
    let is = |name: &str, wanted: fn(&str) -> bool| std::env::var(name).is_ok_and(|value| wanted(&value));
    let refused = is("NO_COLOR", |value| !value.is_empty());
    let forced = is("CLICOLOR_FORCE", |value| !value.is_empty() && value != "0");
    let is_able = io::stderr().is_terminal() && is("TERM", |term| !term.is_empty() && term != "dumb");
    !refused && (forced || is_able && !is("CLICOLOR", |value| value == "0"))
}

type Filter = (Option<String>, LevelFilter);

fn ours(level: LevelFilter) -> Vec<Filter> {
    vec![(None, level.min(LevelFilter::Warn)), (Some(OURS.to_owned()), level)]
}

/// A level, or a list of `TARGET=LEVEL`.
///
/// # Errors
/// What of it is no level.
fn filters(text: &str) -> Result<Vec<Filter>, &str> {
    if let Ok(level) = text.parse() {
        return Ok(ours(level));
    }
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let filter = |part| match str::split_once(part, '=') {
        Some((target, level)) => level.parse().map(|level| (Some(target.to_owned()), level)).map_err(|_| part),
        None => part.parse().map(|level| (None, level)).map_err(|_| part),
    };
    parts.map(filter).collect()
}

fn as_text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level, target) = (out.timestamp_millis(), record.level(), record.target());
    let style = out.default_level_style(level);
    writeln!(out, "[{time} {style}{level:<5}{style:#} {target}] {}", OneLine(&record.args().to_string()))
}

fn as_json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut line = Map::new();
    let level = record.level().as_str().to_ascii_lowercase();
    line.extend([
        ("time".to_owned(), json!(out.timestamp_millis().to_string())),
        ("level".to_owned(), json!(level)),
        ("target".to_owned(), json!(record.target())),
    ]);
    let message = record.args().to_string();
    if record.target() == REQUESTS {
        line.insert("message".to_owned(), json!("request"));
        line.extend(pairs(&message));
    } else {
        line.insert("message".to_owned(), json!(cut(&message)));
    }
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
}

/// The `key=value` pairs of a line about a request; numbers as such.
fn pairs(mut text: &str) -> Vec<(String, Value)> {
    let mut pairs = Vec::new();
    while let Some((key, rest)) = text.trim_start().split_once('=') {
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let (value, end) = match rest.starts_with('"').then(|| strings.next()).flatten() {
            Some(Ok(string)) => (Value::String(string), strings.byte_offset()),
            _ => {
                let end = rest.find(' ').unwrap_or(rest.len());
                let word = &rest[..end];
                let number =
                    serde_json::from_str(word).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
                (number.unwrap_or_else(|| json!(word)), end)
            }
        };
        pairs.push((key.to_owned(), value));
        text = &rest[end..];
    }
    pairs
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(MESSAGE_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// A text without what would end the line or drive a terminal, and not too long.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = cut(self.0);
        for char in text.chars() {
            match char {
                char if char.is_control() => write!(f, "{}", char.escape_default())?,
                char => fmt::Write::write_char(f, char)?,
            }
        }
        if text.len() < self.0.len() { f.write_str("…") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_us_and_libraries_only_warn() {
        assert_eq!(filters("debug"), Ok(vec![(None, LevelFilter::Warn), (Some(OURS.into()), LevelFilter::Debug)]));
        assert_eq!(filters("off"), Ok(vec![(None, LevelFilter::Off), (Some(OURS.into()), LevelFilter::Off)]));
        assert_eq!(filters("warn,x=info"), Ok(vec![(None, LevelFilter::Warn), (Some("x".into()), LevelFilter::Info)]));
        assert_eq!(filters("loud"), Err("loud"));
        assert_eq!(filters("warn,x=loud"), Err("x=loud"));
    }

    #[test]
    fn the_pairs_of_a_request_are_members_with_their_types() {
        let found = pairs(
            r#"path=/a?from=1&follow=true status=409 ms=0.5 peer=127.0.0.1:1 who=- reason="a=\"b\" c" aborted=true"#,
        );
        let wanted = [
            ("path", json!("/a?from=1&follow=true")),
            ("status", json!(409)),
            ("ms", json!(0.5)),
            ("peer", json!("127.0.0.1:1")),
            ("who", json!("-")),
            ("reason", json!("a=\"b\" c")),
            ("aborted", json!(true)),
        ];
        assert_eq!(found, wanted.map(|(key, value)| (key.to_owned(), value)));
    }

    #[test]
    fn a_message_is_one_line_without_control_characters_and_not_too_long() {
        assert_eq!(OneLine("a\nb\u{1b}[2Jé").to_string(), "a\\nb\\u{1b}[2Jé");
        assert_eq!(OneLine(&"é".repeat(5000)).to_string().chars().count(), MESSAGE_CHARS_MAX + 1);
    }
}
