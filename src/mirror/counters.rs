//! [`Counters`]: what happened in a service, counted since it started.
//!
//! Owned by the [`Registry`](super::Registry), so that two services in one process count apart. Every label has a bounded
//! number of values: the pattern of a route and not its path, an error code and not its message, the name of a log that exists.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

/// A request that was answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    /// The pattern of its path, such as `/logs/{log}/commits`; `other` where nothing is.
    pub route: String,
    /// Its method; `other` for one that HTTP does not define.
    pub method: String,
    /// The status of the answer.
    pub status: u16,
}

/// Why a request was refused.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RefusalLabels {
    /// The code that the answer carries.
    pub code: String,
}

/// The log to which something happened.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LogLabels {
    /// Its name.
    pub log: String,
}

/// What happened, counted. Each count also has a line in the log, written where it is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests whose answer has ended.
    pub requests: Family<RequestLabels, Counter>,
    /// Bytes of their bodies.
    pub received_bytes: Counter,
    /// Bytes of the answers' bodies.
    pub sent_bytes: Counter,
    /// Requests refused, also those whose answer had begun.
    pub refusals: Family<RefusalLabels, Counter>,
    /// Logs created.
    pub logs_created: Counter,
    /// Generations deleted.
    pub generations_deleted: Counter,
    /// Torn ends cut when a log was opened.
    pub cuts: Family<LogLabels, Counter>,
    /// Their bytes.
    pub cut_bytes: Family<LogLabels, Counter>,
    /// Ends that held whole commits and were kept aside when they were cut.
    pub kept_aside: Family<LogLabels, Counter>,
    /// Commits that were sent although the log held them: compared, and not stored again.
    pub skipped_commits: Family<LogLabels, Counter>,
    /// Commits that were kept in a file until they were whole.
    pub large_commits: Family<LogLabels, Counter>,
    /// Times that a log failed: a write, a sync, or its opening.
    pub failures: Family<LogLabels, Counter>,
    /// Times that a log was opened again after it had failed.
    pub reopenings: Family<LogLabels, Counter>,
    /// Processes for SQL that ended while the service ran.
    pub sql_workers_ended: Counter,
    /// Idle connections that were closed to make room for others.
    pub connections_closed: Counter,
    /// Lines of the log and of standard output that were dropped, because they could not be written.
    pub lines_dropped: Counter,
}

impl Counters {
    /// Counts a torn end that was cut from `log`.
    pub fn cut(&self, log: &str, bytes: u64) {
        let labels = LogLabels { log: log.to_owned() };
        self.cuts.get_or_create(&labels).inc();
        self.cut_bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// Counts commits that were sent to `log` although it held them.
    pub fn skipped(&self, log: &str, commits: u64) {
        self.skipped_commits.get_or_create(&LogLabels { log: log.to_owned() }).inc_by(commits);
    }

    /// Counts once for `log` in one of the families of logs.
    pub fn count(&self, family: &Family<LogLabels, Counter>, log: &str) {
        family.get_or_create(&LogLabels { log: log.to_owned() }).inc();
    }

    /// Adds all of them to what is exposed.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests whose answer has ended", self.requests.clone());
        let bytes = |registry: &mut Registry, name, help, counter: &Counter| {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        bytes(registry, "received", "Bytes of the bodies of requests", &self.received_bytes);
        bytes(registry, "sent", "Bytes of the bodies of answers", &self.sent_bytes);
        registry.register("refusals", "Requests refused, by error code", self.refusals.clone());
        registry.register("logs_created", "Logs created", self.logs_created.clone());
        registry.register("generations_deleted", "Generations deleted", self.generations_deleted.clone());
        registry.register("cuts", "Torn ends cut when a log was opened", self.cuts.clone());
        registry.register_with_unit("cut", "Bytes of torn ends cut", Unit::Bytes, self.cut_bytes.clone());
        let kept = self.kept_aside.clone();
        registry.register("kept_aside", "Ends with whole commits that were cut and kept aside", kept);
        registry.register("skipped_commits", "Commits sent again and skipped", self.skipped_commits.clone());
        let large = self.large_commits.clone();
        registry.register("large_commits", "Commits kept in a file until they were whole", large);
        registry.register("failures", "Times a log failed to be opened, written or synced", self.failures.clone());
        registry.register("reopenings", "Times a log that had failed was opened again", self.reopenings.clone());
        let ended = self.sql_workers_ended.clone();
        registry.register("sql_workers_ended", "Processes for SQL that ended over a statement", ended);
        let closed = self.connections_closed.clone();
        registry.register("connections_closed", "Idle connections closed to make room for others", closed);
        let help = "Lines of output dropped because nothing read them, or they could not be written";
        registry.register("lines_dropped", help, self.lines_dropped.clone());
    }
}
