//! [`FedLog`]: that the log of a service that a mirror feeds is still there. A mirror fills a log that is gone again, and what only that
//! held, such as earlier states of a database, stays lost.

use crate::client::Client;

/// The log that is the sink, for as long as a mirror runs.
#[derive(Debug, Default)]
pub(super) struct FedLog {
    /// Whether it was opened for writing.
    is_fed: bool,
    /// The id that it was found with last.
    id: Option<String>,
}

impl FedLog {
    /// It was opened for writing.
    pub(super) fn opened(&mut self) {
        self.is_fed = true;
    }

    /// That what was fed is gone since, in words. What cannot be asked now is not gone.
    pub(super) async fn warning(&mut self, client: &Client) -> Option<String> {
        let found = client.find().await.ok()?;
        let id = found.map(|found| found.id);
        // Of one that cannot be opened now it may not be known.
        if id.as_deref() == Some("") {
            return None;
        }
        let what = match (&self.id, &id) {
            _ if !self.is_fed => None,
            (_, None) => Some("is there no more"),
            (Some(before), Some(now)) if before != now => Some("was there before, and another one has its name now"),
            _ => None,
        };
        self.is_fed &= what.is_none();
        self.id = id;
        let advice = "was it deleted, or is another data directory mounted? What SRC holds now is sent again, what only that log held is not";
        what.map(|what| format!("sink: {}: the log that this mirror fed {what}: {advice}", client.url()))
    }
}
