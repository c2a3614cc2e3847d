//! The database that a generation of a WAL starts from, on its way from a source to a sink.

use std::io;
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
use super::others;
use super::run::{Event, Progress};
use super::sink::Sink;
use super::source::{Extent, Source};
use crate::client::{Client, ClientError, compared, comparing};
use crate::format::{LogFormat, database, name};
use crate::limits::{BASE_PROGRESS_EVERY, LIBSQL_PAGE_SIZE, READ_BLOCK};
use crate::offset::Generation;
use crate::repo::{FsRepo, Repo};
use crate::segment::base::{BaseBuilder, BaseDigest, BaseFault, BaseReader};
use crate::stream::known_base;

pub(super) type Blocks = BoxStream<'static, io::Result<Bytes>>;

/// A base on its way, and what its source says of it.
pub(super) struct BaseStream {
    pub(super) blocks: Blocks,
    /// The digest that it has, if that is known before its end.
    pub(super) digest: Option<BaseDigest>,
    /// Whether nothing vouches for it.
    pub(super) unproven: bool,
    /// Whether the digest is only what a service says, and the blocks must be compared with it.
    pub(super) is_claimed: bool,
}

impl BaseStream {
    /// Of a source that reads it now, and knows no digest.
    pub(super) fn new(blocks: Blocks) -> BaseStream {
        BaseStream { blocks, digest: None, unproven: false, is_claimed: false }
    }

    /// The same, which ends with [`ClientError::OtherContent`] where the blocks are not what a service says they are.
    fn compared(self) -> BaseStream {
        let expected = self.digest.filter(|_| self.is_claimed);
        BaseStream { blocks: comparing(self.blocks, expected, io::Error::other), is_claimed: false, ..self }
    }
}

/// Copies the base of a generation from `source`, which holds that by `extent`, to `sink`. After Ok it is durable there, and the
/// sink has that generation.
///
/// # Errors
/// [`ClientError::OtherContent`] when it is another base than `extent` says.
pub(super) async fn bring(
    source: &Source,
    extent: &Extent,
    sink: &Sink,
    instead: Instead,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let base = of(source, extent.generation).await?;
    if let Source::Url(_) = source {
        others::check_base(base.digest, extent.base)?;
    }
    put(base, extent.generation, sink, instead, progress, told).await
}

async fn of(source: &Source, generation: Generation) -> Result<BaseStream, MirrorError> {
    match source {
        Source::Url(client) => of_url(client, generation).await,
        Source::Dir(_) => {
            let source = source.clone();
            off(move || of_dir(&source.dir_of(generation)?)).await?
        }
    }
}

/// Makes `base` the base of `generation` of `sink`, once they came to a good end, and counts their bytes. A directory is one
/// generation: what it holds stays.
pub(super) async fn put(
    base: BaseStream,
    generation: Generation,
    sink: &Sink,
    instead: Instead,
    progress: &mut Progress,
    told: &mut impl FnMut(Event),
) -> Result<(), MirrorError> {
    let (moved, before) = (Arc::new(AtomicU64::new(0)), progress.bytes);
    let count = moved.clone();
    let counted = base.blocks.inspect_ok(move |block| {
        count.fetch_add(block.len() as u64, Ordering::Relaxed);
    });
    let counted = BaseStream { blocks: counted.boxed(), ..base };
    let mut storing = std::pin::pin!(put_counted(counted, generation, sink, instead));
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

async fn put_counted(
    base: BaseStream,
    generation: Generation,
    sink: &Sink,
    instead: Instead,
) -> Result<(), MirrorError> {
    match sink {
        Sink::Url(client) => {
            base_url::put(client, generation, base.compared()).await.map_err(|error| sink.own(error))?
        }
        Sink::Dir(dir) => {
            let preparing = dir.clone();
            let repo = off(move || preparing.prepare(LogFormat::Wal, generation, instead)).await??;
            match store(&repo, base).await {
                Ok(digest) => {
                    let giving = dir.clone();
                    let given = off(move || giving.has_given_base(generation, instead, digest)).await?;
                    given.inspect_err(|_| dir.let_go())?;
                }
                Err(error) => {
                    dir.let_go();
                    return Err(of_source(&error).unwrap_or_else(|| at(&repo, error)));
                }
            }
        }
    }
    Ok(())
}

pub(super) fn at(repo: &FsRepo, error: io::Error) -> MirrorError {
    MirrorError::Dir { place: repo.place(), error }
}

/// The fault of a source's base that ended a stream of it: that of a file, or an answer with another base.
pub(super) fn of_source(error: &io::Error) -> Option<MirrorError> {
    if let Some(ClientError::OtherContent { what }) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return Some(ClientError::OtherContent { what: what.clone() }.into());
    }
    // A stream wraps what a body was made of.
    let fault = BaseFault::of(error).or_else(|| {
        let inner = error.get_ref()?;
        std::iter::successors(inner.source(), |inner| inner.source()).find_map(|inner| {
            let fault = inner.downcast_ref::<BaseFault>();
            fault.or_else(|| BaseFault::of(inner.downcast_ref::<io::Error>()?))
        })
    });
    fault.map(|fault| MirrorError::BaseDamaged { side: "source", fault: fault.clone() })
}

/// Whether a directory has a base.
pub(super) fn is_in(repo: &FsRepo) -> Result<bool, MirrorError> {
    let names = repo.list().map_err(|error| at(repo, error))?;
    Ok(names.iter().any(|file| file == name::BASE))
}

/// The base that a service sends, once its first bytes are those of a database.
///
/// # Errors
/// [`ClientError::NotFromService`] when they are not: the service has no other. [`ClientError::OtherContent`] when it is empty, or
/// another one than the service names.
pub(super) async fn of_url(client: &Client, generation: Generation) -> Result<BaseStream, MirrorError> {
    let base = client.base(generation).await?;
    let (digest, unproven) = (base.digest(), base.is_unproven());
    // It may be at its end already when what follows the head is asked for.
    let mut blocks = base.uncompared().fuse();
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
    let blocks = head.chain(blocks.map_err(io::Error::other)).boxed();
    Ok(BaseStream { blocks, digest, unproven, is_claimed: true })
}

/// The base in a directory, each block of which is checked; nothing where there is none. Blocks.
///
/// # Errors
/// [`MirrorError::BaseDamaged`] when it is missing, or is not the one that is known to be there.
pub(super) fn of_dir(repo: &FsRepo) -> Result<BaseStream, MirrorError> {
    let opened = known_base(repo.path()).and_then(|known| Ok((BaseReader::open_known(repo, &known)?, known)));
    match opened {
        Ok((None, _)) => {
            Ok(BaseStream { blocks: stream::empty().boxed(), digest: None, unproven: true, is_claimed: false })
        }
        Ok((Some(base), known)) => {
            let (digest, unproven) = (base.id().map(|id| id.sha256).or(known.sha256), base.is_unproven_beside(&known));
            Ok(BaseStream { blocks: blocks_of(base, BaseReader::read_at), digest, unproven, is_claimed: false })
        }
        Err(error) => Err(of_source(&error).unwrap_or_else(|| at(repo, error))),
    }
}

/// All that `read` finds in `source`, in blocks.
pub(super) fn blocks_of<S: Send + Sync + 'static>(
    source: S,
    read: fn(&S, &mut [u8], u64) -> io::Result<usize>,
) -> Blocks {
    let blocks = stream::try_unfold((source, 0), move |(source, at)| async move {
        let reading = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; READ_BLOCK];
            let count = read(&source, &mut block, at)?;
            block.truncate(count);
            Ok::<_, io::Error>((block, source))
        });
        let (block, source) = reading.await.map_err(io::Error::other)??;
        let at = at + block.len() as u64;
        Ok((!block.is_empty()).then_some((Bytes::from(block), (source, at))))
    });
    blocks.boxed()
}

/// The digest of the base of a source, as it says or as it is read; no database is an empty one.
pub(super) async fn digest_of(source: &Source, generation: Generation) -> Result<BaseDigest, MirrorError> {
    let base = of(source, generation).await?;
    let (mut hash, mut is_empty, mut blocks) = (Sha256::new(), true, base.blocks);
    if let Some(digest) = base.digest {
        return Ok(digest);
    }
    while let Some(block) = blocks.try_next().await.map_err(|error| match source {
        Source::Url(client) => MirrorError::Interrupted(format!("the base of {}: {error}", client.url())),
        Source::Dir(repo) => of_source(&error).unwrap_or_else(|| at(repo, error)),
    })? {
        is_empty &= block.is_empty();
        hash.update(&block);
    }
    Ok(if is_empty { unset() } else { BaseDigest(hash.finalize().into()) })
}

/// That of the base that a log is created with.
pub(super) fn unset() -> BaseDigest {
    BaseDigest::of(&database::empty(LIBSQL_PAGE_SIZE))
}

/// The digest of the base that a sink holds, all of which is read. Blocks.
///
/// # Errors
/// [`MirrorError::BaseDamaged`].
pub(super) fn digest_held(repo: &FsRepo) -> Result<BaseDigest, MirrorError> {
    let checked = BaseReader::open(repo).and_then(|base| base.map(|base| base.check_all(|_| ())).transpose());
    let fault = match checked {
        Ok(None) => return Ok(unset()),
        Ok(Some((digest, faults))) => match faults.into_iter().next() {
            None => return Ok(digest),
            Some(fault) => fault,
        },
        Err(error) => BaseFault::of(&error).cloned().ok_or_else(|| at(repo, error))?,
    };
    Err(MirrorError::BaseDamaged { side: "sink", fault })
}

/// Writes a base beside, with its sums, and gives it its name when it is whole, as its source said, and synced. Returns its
/// digest. After Err nothing of it is left.
async fn store(repo: &FsRepo, base: BaseStream) -> io::Result<BaseDigest> {
    let repo: Arc<dyn Repo> = Arc::new(repo.clone());
    let stored = store_in(repo.clone(), base).await;
    if stored.is_err() {
        BaseBuilder::discard(&*repo);
    }
    stored
}

async fn store_in(repo: Arc<dyn Repo>, base: BaseStream) -> io::Result<BaseDigest> {
    let BaseStream { mut blocks, digest, unproven, is_claimed } = base;
    let mut builder = blocking(move || BaseBuilder::create(repo)).await?;
    while let Some(block) = blocks.try_next().await? {
        builder = blocking(move || builder.write(block).map(|()| builder)).await?;
    }
    blocking(move || {
        let received = builder.bytes();
        if received == 0 {
            builder.write(database::empty(LIBSQL_PAGE_SIZE))?;
        }
        let finished = builder.finish(!unproven)?;
        let found = finished.id().sha256;
        match digest {
            Some(digest) if is_claimed => compared(digest, received, found).map_err(io::Error::other)?,
            Some(digest) if digest != found => {
                let text = format!("the base that was copied has the SHA-256 {found}, and its source says {digest}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            _ => {}
        }
        finished.publish()?;
        Ok(found)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
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
        let base = |blocks: Vec<io::Result<Bytes>>| BaseStream::new(stream::iter(blocks).boxed());
        store(&repo, base(cut.collect())).await.expect_err("it failed");
        assert_eq!(repo.list().expect("listed"), [""; 0]);
        let other = BaseStream { digest: Some(BaseDigest::of(b"another")), ..base(whole()) };
        store(&repo, other).await.expect_err("it is another one");
        assert_eq!(repo.list().expect("listed"), [""; 0]);
        store(&repo, base(whole())).await.expect("stored");
        let mut names = repo.list().expect("listed");
        names.sort_unstable();
        assert_eq!(names, [name::BASE, name::BASE_SUMS]);
    }
}
