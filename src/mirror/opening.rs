//! Opening a log for writing, and what is served of one that cannot be opened. Blocks; knows no shard.

use std::sync::Arc;
use std::time::Instant;

use super::log::{Log, State};
use super::registry::Settings;
use crate::api::Damage;
use crate::format::name;
use crate::limits::REOPEN_DAMAGED;
use crate::stream::{OnTrailing, OpenError, Options, SoundPrefix, StreamWriter, sound_prefix};

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
        durable: log.durable().filter(|durable| *durable > log.first()),
        durable_mark: true,
        ..Options::default()
    };
    StreamWriter::open(log.repo().clone(), options)
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
    {
        return Attempt::Unusable(Box::new(Unusable { state, sound: None, damage: None }));
    }
    match open(log, settings) {
        Ok(writer) => Attempt::Opened(Box::new(writer)),
        Err(error) => Attempt::Unusable(Box::new(Unusable::of(log, settings, error))),
    }
}

impl Unusable {
    /// Finds what can be served of a log that could not be opened.
    pub(super) fn of(log: &Log, settings: &Settings, error: OpenError) -> Unusable {
        let view = log.view();
        let sound = sound_prefix(&**log.repo(), settings.commit_bytes_max).ok();
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
            OpenError::Damaged(fault) | OpenError::Torn(fault) => (Some(fault.clone()), fault.to_string()),
            OpenError::Lost { next, durable } => {
                (None, format!("the durable mark says {durable}, but the files end at offset {next}"))
            }
        };
        let Some(sound) = sound else {
            return Unusable { state: State::Damaged(error.into()), sound: None, damage: None };
        };
        let (next, mark) = (sound.found.next, sound.mark);
        let copied = mark.filter(|mark| *mark > next).map_or(String::new(), |mark| {
            format!(
                "; commits up to offset {mark} were durable, so this is a copy made while the service ran, or lost data; to \
                 go on without them stop the service and run `logmirror repair {} --accept-loss`",
                log.directory()
            )
        });
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
