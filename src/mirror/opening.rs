//! Opening a log for writing, and what is served of one that cannot be opened. Blocks; knows no shard.

use std::sync::Arc;
use std::time::Instant;

use super::log::{Log, State};
use super::registry::Settings;
use crate::api::Damage;
use crate::format::{LogFormat, name};
use crate::limits::{MISSING_PATIENCE, REOPEN_DAMAGED};
use crate::repo::Repo;
use crate::stream::{
    DurableMark, Fault, FaultKind, OnTrailing, OpenError, Options, Reads, SoundPrefix, StreamWriter, sound_prefix,
};

/// A damaged log when it was opened last.
#[derive(Clone, Debug)]
pub(super) struct DamagedLog {
    /// The names in its directory, in order; none when it could not be read.
    pub(super) names: Option<Vec<String>>,
    pub(super) opened: Instant,
}

/// What came of an attempt to open a log again.
pub(super) enum Attempt {
    /// The directory of a damaged log is as it was: it was not opened.
    Unchanged,
    Opened(Box<StreamWriter>),
    Unusable(Box<Unusable>),
}

/// Why a log cannot be opened for writing, and what can be served of it.
#[derive(Debug)]
pub(super) struct Unusable {
    state: State,
    /// None when what was known before still holds, or nothing could be read.
    sound: Option<SoundPrefix>,
    damage: Option<Damage>,
}

/// Opens a log's writer, cutting what a crash left after the durable end.
pub(super) fn open(log: &Arc<Log>, settings: &Settings) -> Result<StreamWriter, OpenError> {
    let options = Options {
        on_trailing: OnTrailing::Trim,
        format: log.format(),
        commit_bytes_max: settings.commit_bytes_max,
        segment_bytes_max: settings.wal_segment_bytes,
        first: Some(log.first()),
        // The files of a log that was open before must still hold what was acknowledged.
        durable: Some(log.view().acknowledged).filter(|durable| *durable > log.first()),
        durable_mark: true,
        durable_mark_expected: log.is_marked(),
        in_place: true,
        ..Options::default()
    };
    StreamWriter::open_in(log.repo().clone(), options, log.dir()?)
}

/// Tries to open a log that failed or is damaged. Changes nothing that readers see. The caller makes sure that the log has
/// no other writer meanwhile.
pub(super) fn open_again(log: &Arc<Log>, settings: &Settings, damaged: Option<&DamagedLog>) -> Attempt {
    let is_as_before = |before: &DamagedLog| before.opened.elapsed() < REOPEN_DAMAGED && log.names() == before.names;
    if damaged.is_some_and(is_as_before) {
        return Attempt::Unchanged;
    }
    let view = log.view();
    if view.opened
        && !view.cut_short
        && let Some(state) = log.missing(&view)
        && !is_given_up(log)
    {
        return Attempt::Unusable(Box::new(Unusable { state, sound: None, damage: None }));
    }
    // An index may lead past it.
    if let Some(fault) = log.known_fault() {
        let unusable = Unusable::of(log, settings.commit_bytes_max, OpenError::Damaged(fault));
        return Attempt::Unusable(Box::new(unusable));
    }
    match open(log, settings) {
        Ok(writer) => Attempt::Opened(Box::new(writer)),
        Err(error) => Attempt::Unusable(Box::new(Unusable::of(log, settings.commit_bytes_max, error))),
    }
}

/// Whether files that are gone have been waited for long enough: a restart would decide without them. Where the durable mark
/// is gone too it is the directory that is away.
fn is_given_up(log: &Log) -> bool {
    log.note_missing() >= MISSING_PATIENCE && DurableMark::read(&**log.repo()).is_ok_and(|mark| mark.offset().is_some())
}

/// What is wrong with a log; a segment that is missing is named, and a file that is none of its segments.
pub(super) fn named(repo: &dyn Repo, format: LogFormat, fault: &Fault) -> String {
    let FaultKind::Gap { found } = fault.kind else {
        return fault.to_string();
    };
    let file = |start| name::segment(format, start);
    let (names, place) = (repo.list().unwrap_or_default(), repo.place());
    let (missing, found_in) = (file(fault.offset), file(found));
    if !names.contains(&found_in) {
        return fault.to_string();
    }
    if found < fault.offset {
        let (start, end) = (fault.segment, fault.offset);
        return format!(
            "{place}/{found_in} is no segment of this log: it would start inside segment {start}, which goes up to offset {end}: \
             move it away"
        );
    }
    match names.contains(&missing) {
        true => fault.to_string(),
        false => format!("{fault}: {place}/{missing} is missing: put it back"),
    }
}

impl Unusable {
    /// Finds what can be served of a log that could not be opened.
    pub(super) fn of(log: &Log, commit_bytes_max: u64, error: OpenError) -> Unusable {
        let view = log.view();
        let reads = if log.known_fault().is_some() { Reads::All } else { Reads::Ends };
        let sound = sound_prefix(&**log.repo(), commit_bytes_max, reads).ok();
        let mark_is_at_fault = matches!(error, OpenError::Mark { .. });
        let (fault, error) = match error {
            OpenError::Io(_) | OpenError::Locked { .. } | OpenError::Changed { .. } => {
                // What is known of a log that was open still holds.
                let sound = sound.filter(|_| !view.opened || view.cut_short);
                let cause = match error {
                    OpenError::Io(error) => format!("cannot open the log: {error}"),
                    error => error.to_string(),
                };
                return Unusable { state: State::Failed(cause.into()), sound, damage: None };
            }
            OpenError::Damaged(fault) | OpenError::Torn(fault) => {
                (Some(fault.clone()), named(&**log.repo(), log.format(), &fault))
            }
            OpenError::Mark { path, what } => (
                None,
                format!("the durable mark {path} {what}: commits that were acknowledged may be missing at the end"),
            ),
            OpenError::Lost { next, durable } => {
                (None, format!("the durable mark says {durable}, but the files end at offset {next}"))
            }
        };
        let Some(sound) = sound else {
            return Unusable { state: State::Damaged(error.into()), sound: None, damage: None };
        };
        let (next, mark) = (sound.found.next, sound.mark);
        let command = format!("stop the service and run `logmirror repair {} --accept-loss`", log.directory());
        let copied = match mark.filter(|mark| *mark > next) {
            _ if mark_is_at_fault => format!("; put the mark back, or to go on with what is sound {command}"),
            Some(mark) => format!(
                "; commits up to offset {mark} were durable, so this is a copy made while the service ran, or lost data; to \
                 go on without them {command}"
            ),
            None => String::new(),
        };
        let text = format!("{error}: what is before offset {next} is sound and served{copied}");
        let damage = fault.map(|fault| Damage {
            segment: name::segment(log.format(), fault.segment),
            offset: fault.offset,
            byte: fault.at,
        });
        Unusable { state: State::Damaged(text.into()), sound: Some(sound), damage }
    }

    /// Publishes what can be served of the log, and its state, which is returned too.
    pub(super) fn publish(self, log: &Log) -> State {
        let Unusable { state, sound, damage } = self;
        let is_damaged = matches!(state, State::Damaged(_));
        if let Some(sound) = sound.as_ref().filter(|_| is_damaged) {
            log.set_appended(sound.found.next);
        }
        log.publish(|view| {
            if let Some(sound) = sound {
                view.take_sound(sound);
                if is_damaged {
                    (view.cut_short, view.damage) = (true, damage);
                }
            }
            view.state = state.clone();
        });
        state
    }
}
