//! A WAL log of a service that is a copy of another log, or of a directory: it notes what it is a copy of, as one does that is fed
//! from a database, and keeps generations as its source does. Its generations are those of the source, so it starts none itself.

use super::endpoint::Mirror;
use super::failure::MirrorError;
use super::fed;
use super::sink::Sink;
use super::source::{Extent, Source};
use crate::api::{CheckpointPolicy, Positions};
use crate::client::{Client, positions};
use crate::format::LogFormat;
use crate::offset::{Generation, Offset};

/// What a log notes of the log that it is a copy of.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    identity: String,
    /// None where the source has no policy, as a directory.
    policy: Option<CheckpointPolicy>,
    adopt: bool,
}

impl Relay {
    /// That `sink` becomes or is a copy of `source`; `None` for a sink that notes nothing. Changes nothing.
    ///
    /// # Errors
    /// [`MirrorError::Unproven`] for a log that is fed from a database and holds nothing to compare with the source.
    pub(super) async fn of(
        mirror: &Mirror,
        source: &Source,
        extent: &Extent,
        sink: &Sink,
    ) -> Result<Option<Relay>, MirrorError> {
        let (Sink::Url(client), Some(LogFormat::Wal)) = (sink, extent.format) else {
            return Ok(None);
        };
        let relay = Relay { identity: mirror.identity(), policy: policy_of(source).await?, adopt: mirror.adopt };
        let Some(status) = client.find().await? else {
            return Ok(Some(relay));
        };
        let Positions { generation, first, durable, .. } = positions(&status)?;
        let is_compared = generation == extent.generation && durable > first;
        match status.source {
            // Of a later generation more is known than that.
            Some(noted) if !noted.is_log() && !is_compared && !mirror.adopt && generation <= extent.generation => {
                let reason = format!("it is fed from {}, and holds no commit that SRC holds too", noted.identity);
                Err(MirrorError::Unproven { place: client.url().to_string(), reason })
            }
            _ => Ok(Some(relay)),
        }
    }

    /// Notes it in a log that was compared with the source, and that ends at `next`. After Ok it is durable.
    ///
    /// # Errors
    /// When the log cannot be reached or written.
    pub(super) async fn note(&self, sink: &Sink, generation: Generation, next: Offset) -> Result<(), MirrorError> {
        let Sink::Url(client) = sink else {
            return Ok(());
        };
        let status = client.find().await?;
        let (noted, policy) = status.map_or((None, None), |status| (status.source, status.checkpoint));
        if noted
            .is_none_or(|noted| noted.identity != self.identity || noted.generation != generation || noted.awaits_base)
        {
            sink.claim(&fed::name(&self.identity, generation, next), self.adopt).await?;
        }
        match self.policy {
            Some(wanted) if policy.is_some_and(|policy| policy != wanted) => {
                client.set_checkpoint(wanted).await?;
                log::info!("{}: it keeps generations as its source does now", client.url());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// That clients are not to lose a log that was handed over to them.
///
/// # Errors
/// [`MirrorError::Promoted`].
pub(super) async fn check_promoted(mirror: &Mirror, sink: &Sink) -> Result<(), MirrorError> {
    sink.admits_mirrors(mirror.adopt, true).await
}

/// Whether `error` says that a log holds other commits than the source, and that log was handed over to its clients, or is fed from
/// another source.
///
/// # Errors
/// When the log cannot be asked.
pub(super) async fn is_of_another(mirror: &Mirror, sink: &Sink, error: &MirrorError) -> Result<bool, MirrorError> {
    Ok(is_divergence(error) && others(mirror, sink).await?.is_some())
}

fn is_divergence(error: &MirrorError) -> bool {
    use MirrorError::{Ahead, Fork, LaterGeneration, OtherBase};
    matches!(error, Fork { .. } | Ahead { .. } | LaterGeneration { .. } | OtherBase { .. })
}

/// Where a WAL log of a service is, if it was handed over to its clients or is fed from another source than that of the mirror.
async fn others(mirror: &Mirror, sink: &Sink) -> Result<Option<Positions>, MirrorError> {
    let Sink::Url(client) = sink else {
        return Ok(None);
    };
    let Some(status) = client.find().await? else {
        return Ok(None);
    };
    let identity = mirror.identity();
    let is_others =
        status.source.as_ref().is_some_and(|noted| noted.identity != identity) || status.promoted_from.is_some();
    Ok(status.positions().filter(|found| is_others && found.format == LogFormat::Wal))
}

/// What `error` comes to where a log that is the sink has gone on without the source: what can be done about that.
pub(super) async fn judged(mirror: &Mirror, source: &Source, sink: &Sink, error: MirrorError) -> MirrorError {
    let found = match is_divergence(&error) {
        true => others(mirror, sink).await.ok().flatten(),
        false => None,
    };
    let (Some(found), Ok(extent)) = (found, source.extent(None).await) else {
        return error;
    };
    let adoption = match source {
        Source::Dir(_) => String::new(),
        Source::Url(_) if extent.generation > found.generation => format!(
            ", or give --adopt: DST goes on with generation {} of SRC then, and what it holds stays in its generation {}, as long as \
             its policy keeps that",
            extent.generation, found.generation
        ),
        Source::Url(client) => format!(
            ", or have SRC go into a later generation than {0} (`logmirror checkpoint {1}`) and give --adopt then: what DST holds stays \
             in its generation {0}, as long as its policy keeps that",
            found.generation,
            client.url()
        ),
    };
    let reason = format!("{error} (it ends at offset {} of generation {})", found.durable, found.generation);
    MirrorError::Diverged { place: sink.place(), reason, adoption }
}

/// Notes in a log, before it is given a base, where that is to come from; and takes it from what feeds it, or from the clients that
/// it was handed over to, where that is wanted.
///
/// # Errors
/// When the log cannot be reached or written, or goes on meanwhile.
pub(super) async fn announce(mirror: &Mirror, sink: &Sink, generation: Generation) -> Result<(), MirrorError> {
    let Sink::Url(client) = sink else {
        return Ok(());
    };
    let Some(status) = client.find().await? else {
        return Ok(());
    };
    let (found, identity) = (positions(&status)?, mirror.identity());
    let is_others = status.source.is_some_and(|noted| noted.identity != identity) || status.promoted_from.is_some();
    if found.generation == generation && found.durable == found.first {
        sink.claim(&fed::awaited(&identity, generation), mirror.adopt).await
    } else if mirror.adopt && is_others {
        sink.claim(&fed::name(&identity, found.generation, found.durable), true).await
    } else {
        Ok(())
    }
}

/// Whether a log notes that it is a copy of what is mirrored.
pub(super) async fn is_of(client: &Client, identity: &str) -> Result<bool, MirrorError> {
    Ok(client.find().await?.and_then(|status| status.source).is_some_and(|noted| noted.identity == identity))
}

/// When the source is rolled over and how much of it is kept, if it says so.
pub(super) async fn policy_of(source: &Source) -> Result<Option<CheckpointPolicy>, MirrorError> {
    match source {
        Source::Url(client) => Ok(client.status().await?.checkpoint),
        Source::Dir(_) => Ok(None),
    }
}
