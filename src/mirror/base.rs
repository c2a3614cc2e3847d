//! The database that a generation of a WAL starts from, on its way from a source to a sink.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::base_due::Instead;
use super::base_url;
use super::database::off;
use super::failure::MirrorError;
use super::run::{Event, Progress};
use super::sink::Sink;
use super::source::Source;
use crate::client::{Client, ClientError};
use crate::format::{LogFormat, database, name};
use crate::limits::{BASE_PROGRESS_EVERY, LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::offset::Generation;
use crate::repo::{FsRepo, Repo, RepoFile};

pub(super) type Blocks = BoxStream<'static, io::Result<Bytes>>;

/// The SHA-256 of a base.
pub(super) type BaseSum = [u8; 32];

/// Copies the base of `generation` from `source` to `sink`. After Ok it is durable there, and the sink has that generation.
pub(super) async fn bring(
    source: &Source,
    generation: Generation,
    sink: &Sink,
    instead: Instead,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let blocks = match source {
        Source::Url(client) => of_url(client, generation).await?,
        Source::Dir(repo) => of_dir(repo)?,
    };
    put(blocks, generation, sink, instead, progress, told).await
}

/// Makes `blocks` the base of `generation` of `sink`, once they came to a good end, and counts their bytes. A directory is one
/// generation: what it holds stays.
pub(super) async fn put(
    blocks: Blocks,
    generation: Generation,
    sink: &Sink,
    instead: Instead,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let (moved, before) = (Arc::new(AtomicU64::new(0)), progress.bytes);
    let count = moved.clone();
    let counted = blocks.inspect_ok(move |block| {
        count.fetch_add(block.len() as u64, Ordering::Relaxed);
    });
    let mut storing = std::pin::pin!(put_counted(counted.boxed(), generation, sink, instead));
    loop {
        let ended = tokio::select! {
            ended = storing.as_mut() => Some(ended),
            () = sleep(BASE_PROGRESS_EVERY) => None,
        };
        progress.bytes = match &ended {
            Some(Err(_)) => before,
            _ => before + moved.load(Ordering::Relaxed),
        };
        told(Event::Moved(*progress));
        if let Some(ended) = ended {
            return ended;
        }
    }
}

async fn put_counted(blocks: Blocks, generation: Generation, sink: &Sink, instead: Instead) -> Result<(), MirrorError> {
    match sink {
        Sink::Url(client) => base_url::put(client, generation, blocks).await.map_err(|error| sink.own(error))?,
        Sink::Dir(dir) => {
            let preparing = dir.clone();
            let repo = off(move || preparing.prepare(LogFormat::Wal, generation, instead)).await??;
            match store(&repo, blocks).await {
                Ok(sum) => dir.has_base(sum),
                Err(error) => {
                    dir.let_go();
                    return Err(at(&repo, error));
                }
            }
        }
    }
    Ok(())
}

pub(super) fn at(repo: &FsRepo, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: repo.place(), error }
}

/// Whether a directory has a base.
pub(super) fn is_in(repo: &FsRepo) -> Result<bool, MirrorError> {
    match repo.open(name::BASE) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(repo, error)),
    }
}

/// The base that a service sends, once it has begun as a database does.
///
/// # Errors
/// [`ClientError::NotFromService`] when it is none: the service has no other.
pub(super) async fn of_url(client: &Client, generation: Generation) -> Result<Blocks, MirrorError> {
    let mut blocks = client.base(generation).await?.boxed();
    let mut head = BytesMut::new();
    while head.len() < database::MAGIC.len()
        && let Some(block) = blocks.try_next().await?
    {
        head.extend_from_slice(&block);
    }
    if !head.is_empty() && !head.starts_with(database::MAGIC) {
        let what = "the answer to a request for the base of the log is no SQLite database".to_owned();
        return Err(ClientError::NotFromService { what }.into());
    }
    let head = stream::iter((!head.is_empty()).then(|| Ok(head.freeze())));
    Ok(head.chain(blocks.map_err(io::Error::other)).boxed())
}

/// The base in a directory; nothing where there is none.
pub(super) fn of_dir(repo: &FsRepo) -> Result<Blocks, MirrorError> {
    match repo.open(name::BASE) {
        Ok(file) => Ok(of_file(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(stream::empty().boxed()),
        Err(error) => Err(at(repo, error)),
    }
}

fn of_file(file: Arc<dyn RepoFile>) -> Blocks {
    let blocks = stream::try_unfold((file, 0), |(file, at)| async move {
        let reading = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = file.read_at(&mut block, at)?;
            block.truncate(count);
            Ok::<_, io::Error>((block, file))
        });
        let (block, file) = reading.await.map_err(io::Error::other)??;
        let at = at + block.len() as u64;
        Ok((!block.is_empty()).then_some((Bytes::from(block), (file, at))))
    });
    blocks.boxed()
}

/// The checksum of a base, as it is stored: no database is an empty one.
pub(super) async fn sum(mut blocks: Blocks) -> io::Result<BaseSum> {
    let (mut sum, mut is_empty) = (Sha256::new(), true);
    while let Some(block) = blocks.try_next().await? {
        is_empty &= block.is_empty();
        sum.update(&block);
    }
    Ok(if is_empty { sum_of_bytes(&database::empty(LIBSQL_PAGE_SIZE)) } else { sum.finalize().into() })
}

pub(super) fn sum_of_bytes(bytes: &[u8]) -> BaseSum {
    Sha256::digest(bytes).into()
}

/// Writes a base beside, and gives it its name when it is whole and synced. Returns its checksum. After Err nothing of it is left.
async fn store(repo: &FsRepo, blocks: Blocks) -> io::Result<BaseSum> {
    let draft = format!("{}.tmp", name::BASE);
    remove(repo, &draft)?;
    let stored = store_as(repo, &draft, blocks).await;
    if stored.is_err()
        && let Err(error) = remove(repo, &draft)
    {
        log::warn!("{}/{draft} is left behind: {error}", repo.place());
    }
    stored
}

fn remove(repo: &FsRepo, draft: &str) -> io::Result<()> {
    match repo.remove(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn store_as(repo: &FsRepo, draft: &str, mut blocks: Blocks) -> io::Result<BaseSum> {
    let (file, mut at, mut sum) = (repo.create(draft)?, 0, Sha256::new());
    while let Some(block) = blocks.try_next().await? {
        sum.update(&block);
        at = write(&file, block, at).await?;
    }
    if at == 0 {
        let empty = database::empty(LIBSQL_PAGE_SIZE);
        sum.update(&empty);
        write(&file, empty.into(), 0).await?;
    }
    let (repo, draft) = (repo.clone(), draft.to_owned());
    let named = tokio::task::spawn_blocking(move || {
        file.sync()?;
        repo.rename(&draft, name::BASE)?;
        repo.sync_dir()
    });
    named.await.map_err(io::Error::other)??;
    Ok(sum.finalize().into())
}

async fn write(file: &Arc<dyn RepoFile>, block: Bytes, at: u64) -> io::Result<u64> {
    let file = file.clone();
    let written = tokio::task::spawn_blocking(move || {
        file.write_at(&mut [IoSlice::new(&block)], at)?;
        Ok(at + block.len() as u64)
    });
    written.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_a_base_whose_copy_failed() {
        let dir = tempfile::tempdir().expect("a directory");
        let repo = FsRepo::open(dir.path()).expect("opened");
        let whole = || vec![Ok(Bytes::from_static(b"base"))];
        let cut = whole().into_iter().chain([Err(io::Error::other("the source is gone"))]);
        store(&repo, stream::iter(cut).boxed()).await.expect_err("it failed");
        assert_eq!(repo.list().expect("listed"), [""; 0]);
        store(&repo, stream::iter(whole()).boxed()).await.expect("stored");
        assert_eq!(repo.list().expect("listed"), [name::BASE]);
    }
}
