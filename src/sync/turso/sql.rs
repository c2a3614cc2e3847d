//! `/v2/pipeline`, `/v3/pipeline` and `/v3/cursor`.

use std::sync::Arc;

use crate::engine::Engines;

/// SQL over HTTP, for all logs of a service.
#[derive(Debug)]
pub struct Sql {
    engines: Arc<Engines>,
}

impl Sql {
    /// On these engines.
    #[must_use]
    pub fn new(engines: Arc<Engines>) -> Sql {
        Sql { engines }
    }
}
