//! Whose fault an error is: the one mapping behind exit codes and retries.

/// Whose fault an error is, and so what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// What the user gave: another attempt with the same cannot succeed.
    Usage,
    /// The data: damaged, or two histories that differ.
    Data,
    /// A disk, a network or a place that is not there: it may need the operator, and works afterwards.
    Io,
    /// The same, and it is likely to pass without any action.
    Transient,
}

/// An error that says whose fault it is.
pub trait Blamed {
    /// Whose fault it is.
    fn blame(&self) -> Blame;
}

/// Whether an HTTP status, of a service or of a proxy, says that the same request may succeed later.
pub(crate) fn is_passing_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// An error with those of its causes that its own text does not name.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let named = error.to_string();
        if !text.contains(&named) {
            text = format!("{text}: {named}");
        }
        cause = error.source();
    }
    text
}
