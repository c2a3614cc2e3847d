//! What was seen, as a table, and whether it is within the bounds.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::attack::{Attack, Outcome};
use crate::innocents::{Innocents, Phase, Waits};
use crate::service::{Death, Peak, SERVICE_BYTES_MAX, WORKER_BYTES_MAX};

/// Ends of workers after which a log has one of its own.
const DEATHS_SHARED: u32 = 2;
/// What of the quiet p99 the innocent statements may wait beside hostile ones.
const TIMES_QUIET_MAX: u32 = 3;
const OUTCOMES: [Outcome; 5] =
    [Outcome::Answered, Outcome::Refused, Outcome::Interrupted, Outcome::Ended, Outcome::NotRun];

/// What was seen of the service.
pub struct Seen {
    pub deaths: Vec<Death>,
    /// Of the service, of its largest worker, and how many workers there were.
    pub peaks: (Peak, Peak, usize),
    pub streams: Vec<usize>,
    /// Bytes of the commitlog.
    pub copied: u64,
    /// Whether the waits count: not in a quick run, where the hundredth part of the statements is a handful.
    pub waits_count: bool,
}

/// Prints all of it.
///
/// # Errors
/// When a bound is broken.
pub fn print(attack: &Attack, innocents: &Innocents, seen: &Seen) -> Result<()> {
    let mut broken = Vec::new();
    for line in attack.named() {
        println!("{line}");
    }
    statements(attack, &mut broken);
    deaths(innocents, &seen.deaths, &mut broken);
    waits(innocents, seen.waits_count, &mut broken);
    memory(seen.peaks, &mut broken);
    println!("streams open on logs that open many: {:?}", seen.streams);
    println!("commitlog: {} bytes written, pushed and followed, identical", seen.copied);
    if broken.is_empty() {
        return Ok(());
    }
    bail!("{} bounds are broken:\n  {}", broken.len(), broken.join("\n  "))
}

fn statements(attack: &Attack, broken: &mut Vec<String>) {
    let outcomes = attack.outcomes();
    println!("\n{:10}{}", "kind", OUTCOMES.map(|outcome| format!("{:>12}", format!("{outcome:?}"))).concat());
    let mut kinds: Vec<_> = outcomes.keys().map(|(kind, _)| *kind).collect();
    kinds.dedup();
    for kind in kinds {
        let counts = OUTCOMES.map(|outcome| outcomes.get(&(kind, outcome)).copied().unwrap_or(0));
        println!("{kind:10}{}", counts.map(|count| format!("{count:>12}")).concat());
    }
    let (pauses, logs, odd) = attack.counts();
    let of = |wanted: bool| -> u64 {
        outcomes
            .iter()
            .filter(|((_, outcome), _)| (*outcome == Outcome::NotRun) == wanted)
            .map(|(_, count)| count)
            .sum()
    };
    println!(
        "{} ran, {} did not; {pauses} sent again after a pause of their log; {logs} hostile logs",
        of(false),
        of(true)
    );
    if of(true) * 20 > of(false) {
        broken.push(format!("{} statements did not run", of(true)));
    }
    broken.extend(
        odd.into_iter().map(|text| format!("an unexpected answer: {}", text.chars().take(300).collect::<String>())),
    );
}

/// Innocent statements may fail only with a worker that a hostile log ended as its first or second one.
fn deaths(innocents: &Innocents, deaths: &[Death], broken: &mut Vec<String>) {
    let mut causes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut strikes: HashMap<&str, u32> = HashMap::new();
    let (mut excused, mut late) = (0, 0);
    for Death { cause, logs } in deaths {
        *causes.entry(kind(cause)).or_default() += 1;
        let mut hostile: Vec<&str> = logs.iter().map(String::as_str).filter(|log| !is_innocent(log)).collect();
        hostile.sort_unstable();
        hostile.dedup();
        let struck = logs.iter().filter(|log| is_innocent(log)).count();
        // At least one of them still shared its worker.
        if hostile.iter().any(|log| strikes.get(log).copied().unwrap_or(0) < DEATHS_SHARED) {
            excused += struck;
        } else {
            late += struck;
        }
        for log in hostile {
            *strikes.entry(log).or_default() += 1;
        }
    }
    println!("\n{} workers ended: {causes:?}", deaths.len());
    let failures = innocents.failures();
    println!(
        "innocent statements that failed: {}; with the first or second worker of a hostile log {excused}, with a later one {late}",
        failures.len()
    );
    if late > 0 || failures.len() > excused {
        let mut texts: Vec<String> = failures
            .iter()
            .map(|failure| {
                format!("{}: {} {}", failure.log, failure.status, failure.text.chars().take(200).collect::<String>())
            })
            .collect();
        texts.dedup();
        texts.truncate(10);
        broken.push(format!(
            "{} innocent statements failed, {excused} of them had to: {}",
            failures.len(),
            texts.join("\n    ")
        ));
    }
}

fn is_innocent(log: &str) -> bool {
    log.starts_with("innocent-")
}

fn kind(cause: &str) -> &str {
    let known = [
        ("used up the memory", "memory"),
        ("used up the stack", "stack"),
        ("did not end within", "stuck"),
        ("said nothing for", "silent"),
    ];
    known.iter().find(|(words, _)| cause.contains(words)).map_or(cause, |(_, kind)| kind)
}

fn waits(innocents: &Innocents, they_count: bool, broken: &mut Vec<String>) {
    println!("\n{:10}{:>12}{:>12}{:>12}{:>12}", "innocent", "statements", "p50 ms", "p99 ms", "longest ms");
    let ms = |time: Duration| format!("{:>12.1}", time.as_secs_f64() * 1000.0);
    let quiet = innocents.waits(Phase::Quiet);
    for phase in [Phase::Quiet, Phase::Streams, Phase::Crowd, Phase::Hostile] {
        let Waits { count, median, p99, longest } = innocents.waits(phase);
        println!("{:10}{count:>12}{}{}{}", format!("{phase:?}").to_lowercase(), ms(median), ms(p99), ms(longest));
        if they_count && p99 > quiet.p99 * TIMES_QUIET_MAX {
            broken.push(format!("{phase:?}: the p99 of innocent statements is {p99:?}, quiet {:?}", quiet.p99));
        }
    }
}

fn memory((service, worker, workers): (Peak, Peak, usize), broken: &mut Vec<String>) {
    let mib = |bytes: u64| format!("{:>8} MiB", bytes >> 20);
    println!("\n{:26}{:>12}{:>12}{:>12}", "memory, at most", "resident", "anonymous", "limit");
    for (name, peak, limit) in [
        ("service".to_owned(), service, SERVICE_BYTES_MAX),
        (format!("largest of {workers} workers"), worker, WORKER_BYTES_MAX),
    ] {
        println!("{name:26}{}{}{}", mib(peak.resident), mib(peak.anonymous), mib(limit));
        if peak.anonymous > limit {
            broken.push(format!("{name}: {} of memory, more than {}", mib(peak.anonymous), mib(limit)));
        }
    }
}
