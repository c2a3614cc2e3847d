//! Feeding a directory: one thread writes, another one syncs.

use tokio::sync::{mpsc, watch};

use super::failure::MirrorError;
use crate::limits::SYNC_EVERY;
use crate::offset::Offset;
use crate::stream::{Appended, Batch, MirrorRecord, StreamWriter, SyncJob, Synced};

#[derive(Debug)]
pub(super) enum ToWriter {
    Batch(Batch),
    Synced(Synced),
    /// Look for the writes of other processes.
    Look,
    End,
}

/// Writes batches and syncs them, on another thread, while it goes on writing. Calls `left` with the record, as it was written
/// last, when the writer has ended.
pub(super) fn write(
    mut writer: StreamWriter,
    messages: mpsc::Receiver<ToWriter>,
    back: mpsc::WeakSender<ToWriter>,
    told: &watch::Sender<Offset>,
    left: impl FnOnce(MirrorRecord),
) -> Result<Offset, MirrorError> {
    let written = write_all(&mut writer, messages, back, told);
    let record = writer.mirror_record().cloned();
    drop(writer);
    if let Some(record) = record {
        left(record);
    }
    written
}

fn write_all(
    writer: &mut StreamWriter,
    mut messages: mpsc::Receiver<ToWriter>,
    back: mpsc::WeakSender<ToWriter>,
    told: &watch::Sender<Offset>,
) -> Result<Offset, MirrorError> {
    let (jobs, todo) = std::sync::mpsc::channel::<SyncJob>();
    std::thread::spawn(move || {
        for job in todo {
            let synced = job.run();
            match back.upgrade() {
                Some(back) if back.blocking_send(ToWriter::Synced(synced)).is_ok() => {}
                _ => return,
            }
        }
    });
    let mut done = Appended::default();
    let (mut syncing, mut unsynced) = (false, 0);
    while let Some(message) = messages.blocking_recv() {
        match message {
            ToWriter::Batch(batch) => {
                let before = done.bytes;
                if let Err(refused) = writer.append_batch(&batch, &mut done) {
                    // What came before is kept, unless the writer has failed.
                    if let Ok(durable) = writer.sync() {
                        told.send_replace(durable);
                    }
                    return Err(refused.into());
                }
                unsynced += done.bytes - before;
            }
            ToWriter::Synced(synced) => {
                told.send_replace(writer.finish_sync(synced)?);
                syncing = false;
            }
            ToWriter::Look => writer.look()?,
            ToWriter::End => break,
        }
        // When nothing more is waiting, or enough has come, what there is gets synced.
        if !syncing
            && (messages.is_empty() || unsynced >= SYNC_EVERY)
            && let Some(job) = writer.begin_sync()?
        {
            unsynced = 0;
            syncing = jobs.send(job).is_ok();
        }
    }
    let durable = writer.sync()?;
    told.send_replace(durable);
    Ok(durable)
}
