//! Every cap, with its reason. What a user may change has its default here and nowhere else.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

/// Largest commit taken unless the user says otherwise: any. It is a policy; what a commit takes of the memory is bounded by
/// [`COMMIT_HELD_MAX`].
pub const COMMIT_BYTES_MAX: u64 = u64::MAX;

/// A commit that claims to be larger than this is not believed when its offset is nowhere near the one expected, or when its
/// segment ends before it and nothing says that it was not durable.
pub const COMMIT_BYTES_DOUBTED: u64 = 64 << 20;

/// Bytes of a commit held in memory until it is whole. More are kept in a file: SpacetimeDB's own commits are a few KiB to a
/// few MiB, and a transaction of SQLite, such as VACUUM, is as large as its database.
pub const COMMIT_HELD_MAX: u64 = 8 << 20;
/// What of it is held at least where the memory budget is small, of which it is [a part](COMMIT_HELD_PART) otherwise.
pub const COMMIT_HELD_MIN: u64 = 16 << 10;
/// See [`COMMIT_HELD_MIN`].
pub const COMMIT_HELD_PART: u64 = 16;

/// What a large commit must leave free on the disk where it is kept, beside the room for its copy in the log: other logs are
/// written there.
pub const SPOOL_RESERVE_BYTES: u64 = 64 << 20;
/// How often that is checked.
pub const SPOOL_CHECK_BYTES: u64 = 16 << 20;

/// Threads of a service that copy large commits into their logs: more would only share the disk.
pub const LARGE_APPEND_THREADS: usize = 2;
/// A commit in a file is copied into a segment in blocks of this size.
pub const LARGE_COPY_BYTES: usize = 1 << 20;

/// Largest transaction of the SQL engine: it writes one into memory.
pub const SQL_TRANSACTION_BYTES_MAX: u64 = 64 << 20;

/// A segment of a WAL is followed by another from this length on: short enough to be folded, indexed and fetched as one
/// piece, long enough that the files of a large log stay few.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;

/// Page indexes of a log in memory at once: 128 KiB each for pages of 4,096 bytes, 1 MiB for the smallest.
pub const PAGE_INDEXES_MAX: usize = 16;

/// Frames in them, 16 MiB: a segment with a large transaction is longer than others.
pub const PAGE_INDEX_FRAMES_MAX: u64 = 2 << 20;

/// Up to this many frames their pages are told by their own headers, 0.5 µs each, and above by the index of their segment.
pub const HEADERS_READ_MAX: u64 = 256;

/// Log bytes in memory at once, over all senders and readers of a service.
pub const MEMORY_MAX: u64 = 256 << 20;

/// Bytes of commits between two entries of an offset index: SpacetimeDB's default, so indexes look alike.
pub const INDEX_INTERVAL: u64 = 4096;

/// How an offset index starts and by how much it grows at the most: room for 16 MiB of log, then 256 MiB more.
pub const INDEX_BYTES_START: u64 = 64 << 10;
/// See [`INDEX_BYTES_START`].
pub const INDEX_BYTES_STEP_MAX: u64 = 1 << 20;

/// One read from a segment. Large enough that the system call costs nothing, small enough to stay in the L2 cache
/// between the copy out of the page cache and the checksum.
pub const READ_BLOCK: usize = 256 << 10;

/// Segments are verified in pieces of about this many bytes: small enough that the last one does not keep a single core
/// busy for long, large enough that finding the cuts costs nothing.
pub const VERIFY_PIECE_BYTES: NonZeroU64 = NonZeroU64::new(32 << 20).unwrap();

/// Faults named in one segment before a verification leaves it: whoever reads the list has seen enough.
pub const SEGMENT_FAULTS_MAX: usize = 1000;

/// Bytes appended to a log but not yet synced before a bulk sender is made to wait: bounds what is lost to a power
/// failure and how long the last sync of a stream takes.
pub const UNSYNCED_MAX: u64 = 64 << 20;

/// A bulk stream is synced each time this much has come, so that acknowledgements stay near.
pub const SYNC_EVERY: u64 = 8 << 20;

/// How long a sync in a bulk stream waits for that much to come.
pub const SYNC_PATIENCE: Duration = Duration::from_millis(5);

/// Messages a writer thread takes in before senders wait.
pub const SHARD_QUEUE: usize = 256;

/// Threads that own writers. More than the disk can use is waste; a log belongs to exactly one.
pub const WRITER_THREADS_MAX: usize = 4;

/// Threads that wait for fdatasync. File systems merge syncs that overlap, so several logs synced at once share one
/// journal commit.
pub const SYNC_THREADS: usize = 8;

/// A writer without work for this long gives its files back.
pub const WRITER_IDLE: Duration = Duration::from_secs(60);

/// Longest token that a service asks of its clients: it has to fit into a header beside others.
pub const TOKEN_BYTES_MAX: usize = 4 << 10;

/// Largest JSON body of a request.
pub const JSON_BYTES_MAX: usize = 64 << 10;

/// Longest wait for a share of the memory budget before a sender is told to come back.
pub const BUDGET_WAIT: Duration = Duration::from_secs(20);

/// What is read of a request's remaining body, at most, so that a sender still writing gets to see our error.
pub const DRAIN_BYTES_MAX: u64 = 256 << 20;
/// How long that may take.
pub const DRAIN_WAIT: Duration = Duration::from_secs(2);

/// Room made at once for a body that is announced to be so long or longer; more as it is received.
pub const BODY_BYTES_ROOM: usize = 1 << 20;

/// What a connection may hold of a request not yet handed on. Bodies arrive in pieces of at most this: a full push of libSQL
/// frames, 515 KiB, in two.
pub const CONNECTION_BUFFER: usize = 288 << 10;

/// Pause after a connection could not be accepted.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Silence after which the kernel asks whether the peer is still there.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Connections at once; more wait in the listener's backlog.
pub const CONNECTIONS_MAX: usize = 4096;

/// Default patience with clients, in seconds: for the head of a request; for more of an append that stands on a
/// boundary; for a commit to come whole; for a reader to take any bytes; for requests to end at shutdown.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// See [`HEADER_TIMEOUT`].
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(900);
/// See [`HEADER_TIMEOUT`].
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes a second that a commit or another body must keep once it took longer than that: the slowest links that are of any
/// use have more, and a sender that trickles holds its memory for an hour at most.
pub const MIN_RATE: NonZeroU64 = NonZeroU64::new(16 << 10).unwrap();
/// See [`HEADER_TIMEOUT`].
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// See [`HEADER_TIMEOUT`].
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a live append waits for its first line of answer, which the service gives at once, before something between is
/// taken to hold back what is sent.
pub const FIRST_ACK_WAIT: Duration = Duration::from_secs(3);
/// The wait for that line doubles this many times at most while the service does not answer a request for its status either.
pub const FIRST_ACK_DOUBLINGS: u32 = 4;
/// How long a live append under way may neither send nor be acknowledged anything.
pub const LIVE_STALL: Duration = Duration::from_secs(15);
/// How often an append repeats its last acknowledgement while a large commit is copied into the log: a third of what a sender
/// waits for.
pub const ACK_REPEAT: Duration = Duration::from_secs(5);
/// A live append that breaks off within this time breaks off early.
pub const LIVE_EARLY: Duration = Duration::from_secs(60);
/// A live append is tried again so long after it was found to be held back, and twice as long each time.
pub const LIVE_AGAIN: Duration = Duration::from_secs(600);
/// Pieces of a live append are at most this long, so that it shows on a slow link that they are being sent.
pub const LIVE_PIECE: usize = 256 << 10;
/// Bodies of bounded requests to begin with: what nginx takes unless told otherwise.
pub const REQUEST_BYTES_START: usize = 1 << 20;
/// What they grow to at most where nothing refuses them, and shrink to at least where something does.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;
/// See [`REQUEST_BYTES_MAX`].
pub const REQUEST_BYTES_MIN: usize = 16 << 10;
/// A part of an upload is sent so many times before the upload is given up.
pub const PART_ATTEMPTS: u32 = 5;

/// How long a stream of commits may be silent before the service is asked whether there are more: at first, and doubling up
/// to the second.
pub const SILENCE_FIRST: Duration = Duration::from_secs(1);
/// See [`SILENCE_FIRST`].
pub const SILENCE_LAST: Duration = Duration::from_secs(10);
/// How long commits may be durable in the service before a stream that has not brought them is taken to be held back.
pub const HELD_BACK_AFTER: Duration = Duration::from_secs(2);
/// How often a follower then asks for what is new.
pub const FOLLOW_POLL: Duration = Duration::from_millis(500);

/// Longest wait for a connection to a service.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for an answer that is not a stream and costs the service little, such as a status.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for the answer to a checkpoint on request: a service folds some hundred MB a second.
pub const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Longest answer of a service that is not a stream: the segments of a log of some 100 TiB.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Longest line of an answer that acknowledges appends.
pub const ACK_LINE_BYTES_MAX: usize = 64 << 10;

/// Batches on their way from a source to a sink; each is at most a read block or a commit.
pub const BATCHES_UNDER_WAY: usize = 8;

/// How often a followed directory is looked at even when the file system says nothing of it, as on a network share.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// The same where the file system cannot say anything.
pub const POLL_EVERY_UNWATCHED: Duration = Duration::from_millis(50);

/// Commits become visible in a read replica file when so many bytes of them are waiting, or no more comes.
pub const REPLICA_PUBLISH_BYTES: u64 = 8 << 20;
/// A read replica file that has another name is made again once its WAL, which is not copied into it, is so much larger than itself.
pub const REPLICA_LINKED_WAL_BYTES: u64 = 64 << 20;
/// The record of a read replica file that was written says what it looks like after so long without a commit.
pub const REPLICA_SETTLE_AFTER: Duration = Duration::from_millis(300);
/// How often the bytes of a base are reported while it is copied.
pub const BASE_PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// How often the end of a followed source is measured to say how far the sink is behind: a directory or database, and a log
/// of a service, which costs a request.
pub const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// See [`MEASURE_EVERY`].
pub const MEASURE_LOG_EVERY: Duration = Duration::from_secs(5);
/// A measurement that takes longer than this leaves the distance unknown until it is done.
pub const MEASURE_LATE: Duration = Duration::from_secs(10);
/// Longest time that a measurement reads commits for which there is no index entry; the next one goes on from there.
pub const MEASURE_TIME_MAX: Duration = Duration::from_millis(20);
/// Commits that a measurement reads after an index entry to find a byte position; above that it is estimated.
pub const MEASURE_COMMITS_MAX: u64 = 256;

/// How often a directory that is written is looked at while there is nothing to write: whether it is still there, and whether
/// another process has written it.
pub const SINK_LOOK_EVERY: Duration = Duration::from_secs(2);

/// A source that ends inside a commit is taken to be still once it was not written for this long.
pub const STILL_AFTER: Duration = Duration::from_secs(1);
/// How long a mirror that does not follow waits for such a source to be still; how often it looks.
pub const STILL_WAIT: Duration = Duration::from_secs(5);
/// See [`STILL_WAIT`].
pub const STILL_LOOK: Duration = Duration::from_millis(100);

/// What looks like damage at the end of a log that is being written is looked at again this many times, this far
/// apart, before it is believed: a writer may be in the middle of it.
pub const DAMAGE_LOOKS: u32 = 10;
/// See [`DAMAGE_LOOKS`].
pub const DAMAGE_LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Longest wait for SQLite's locks on a database that is read while it is in use: a checkpoint of a WAL of some 100 MiB.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often they are looked at meanwhile: nobody tells when one is given back.
pub const LOCK_LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How often a database that is followed is looked at right after something moved: a checkpoint that wants our lock waits for
/// the next look.
pub const LOOK_AT_ONCE: Duration = Duration::from_millis(1);
/// For how long.
pub const LOOK_AT_ONCE_FOR: Duration = Duration::from_millis(100);
/// How often it is looked at after that while its WAL is held.
pub const LOOK_BUSY: Duration = Duration::from_millis(5);
/// For how long.
pub const LOOK_BUSY_FOR: Duration = Duration::from_secs(2);
/// How often after that.
pub const LOOK_IDLE: Duration = Duration::from_millis(25);
/// The largest WAL of a database that is followed which may have grown because of us: it is let go of then.
pub const HELD_WAL_BYTES_MAX: u64 = 64 << 20;

/// Bytes of the name of what feeds a log: more than a path or a URL has.
pub const SOURCE_IDENTITY_BYTES_MAX: usize = 8192;

/// How long the locks of a database that is followed are held on to while the log that it is mirrored to is rolled over, if the
/// service answers meanwhile: the fold of some gigabytes. Nobody waits for them: what is written is read on.
pub const ROLL_PATIENCE: Duration = Duration::from_secs(30);
/// How often the service is asked whether it is done.
pub const ROLL_LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Bytes of a database that is followed which are kept in memory until they are durable in the log: they may have to be sent again
/// when that is rolled over. As many may wait for a sink before their reader waits too.
pub const RETAINED_BYTES_MAX: u64 = 16 << 20;
/// How long: what the sync of a slow disk may take, or the fold of a small log. What is written meanwhile is read on.
pub const WAITING_MAX: Duration = Duration::from_secs(2);

/// Times a SQLite database is read anew because it changed while it was read. What SQLite does can make it change at
/// most twice: it is opened, and its WAL is started anew; then there are locks to hold it.
pub const SNAPSHOT_ROUNDS: u32 = 5;
/// How often a restore begins again with the current generation because the one it began with was deleted.
pub const RESTORE_ROUNDS: u32 = 5;

/// Waits between attempts to reach a service: doubling from the first to the last, each shortened by chance by up to
/// half so that many clients do not come back at once.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// See [`BACKOFF_FIRST`].
pub const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// How long the body of an answer waits before it breaks off with an error, so that what was sent before is received.
pub const BODY_ERROR_DELAY: Duration = Duration::from_millis(250);
/// Attempts without progress before a copy that does not follow is given up.
pub const ATTEMPTS_MAX: u32 = 7;

/// Read blocks kept for reuse: as many as one stream has under way.
pub const IDLE_BLOCKS_MAX: usize = 24;

/// The one page size that libSQL's clients sync.
pub const LIBSQL_PAGE_SIZE: u32 = 4096;

/// How many checkpoints a libSQL replica's database may have had before it is taken for one with another history: clients
/// never checkpoint but at the start of a generation, and 1 is the most that was ever seen.
pub const SEQUENCES_TRIED: u32 = 64;

/// Senders of one generation of which it is remembered how many checkpoints their databases have had.
pub const SENDERS_KNOWN_MAX: usize = 1024;

/// Senders with an unfinished transaction in one log, and the bytes of all of them. Above that the one that sent nothing
/// for the longest time is forgotten, and sends again.
pub const STAGED_SENDERS_MAX: usize = 64;
/// See [`STAGED_SENDERS_MAX`].
pub const STAGED_BYTES_MAX: u64 = 32 << 20;

/// Uploads in parts under way at once, of one log and of all: more would only be leftovers of senders that came back.
pub const UPLOADS_PER_LOG_MAX: usize = 8;
/// See [`UPLOADS_PER_LOG_MAX`].
pub const UPLOADS_MAX: usize = 64;
/// Longest name of an upload.
pub const UPLOAD_ID_BYTES_MAX: usize = 64;
/// An upload of which no part is received for so long is given up.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(900);
/// After so long it is given up for another one.
pub const UPLOAD_EVICT_AFTER: Duration = Duration::from_secs(30);

/// A sender that is silent for this long in the middle of a transaction is forgotten for another push that needs its memory.
pub const STAGED_WAIT: Duration = Duration::from_secs(5);

/// A sender that is silent for this long in the middle of a transaction is forgotten, and sends again.
pub const STAGE_IDLE: Duration = Duration::from_secs(60);
/// How often silent senders are checked for.
pub const STAGE_LOOK_EVERY: Duration = Duration::from_secs(2);

/// Largest body of a push of frames. Clients send 128 frames at once, 515 KiB, unless told otherwise.
pub const PUSH_BYTES_MAX: u64 = 16 << 20;
/// A writer thread that heard of one log only for so long syncs it by itself.
pub const ALONE: Duration = Duration::from_millis(20);
/// Bodies of pushes whose memory is kept for the next ones, none longer than [`JUDGED_AT_ONCE`].
pub const BODIES_KEPT: usize = 4;
/// How long a writer waits for those before it to end their transactions.
pub const WRITE_TURN_WAIT: Duration = Duration::from_secs(30);
/// How long a reader waits until what it has seen is durable: a sync, on a disk that is slow.
pub const SETTLE_WAIT: Duration = Duration::from_secs(30);
/// A database that nobody has used for so long is closed.
pub const ENGINE_IDLE: Duration = Duration::from_secs(60);
/// Databases open at once, unless more are in use: each holds its cache and the places of all frames of its WAL.
pub const ENGINES_MAX: usize = 128;
/// Pages that a connection to a database keeps, 2 MiB.
pub const ENGINE_CACHE_PAGES: i32 = 512;
/// Longest push that is judged where it came in, in 0.1 ms or so.
pub const JUDGED_AT_ONCE: usize = 1 << 20;
/// Segments that a fold has open at once: it jumps between them, and a process has few files to spare.
pub const OPEN_SEGMENTS_MAX: usize = 128;

/// Pieces of a download on their way to the thread that folds them.
pub const PIECES_UNDER_WAY: usize = 16;

/// Waits before a log whose checkpoint failed is tried again: doubling from the first to the last.
pub const CHECKPOINT_RETRY_FIRST: Duration = Duration::from_millis(250);
/// See [`CHECKPOINT_RETRY_FIRST`].
pub const CHECKPOINT_RETRY_LAST: Duration = Duration::from_secs(60);
/// Failures of a log in a row after which somebody is called: it is not going to mend itself. From then on it is tried
/// only once in [`CHECKPOINT_RETRY_LAST`].
pub const CHECKPOINT_FAILURES_MAX: u32 = 16;

/// Generations kept readable when a log is rolled over by itself, unless its policy says otherwise: the current one and the
/// one before, so that a replica that was reading it can step on.
pub const GENERATIONS_KEPT: u64 = 2;

/// Checkpoints at once unless told otherwise: each copies a database.
pub const CHECKPOINT_CONCURRENCY: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// The last generation of a log: clients of the libSQL protocol keep the number in 32 bits.
pub const GENERATION_MAX: u64 = i32::MAX as u64;

/// How often logs are looked at for whether their policy asks for a checkpoint.
pub const CHECKPOINT_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Frames in one request of the libSQL sync protocol unless the user says otherwise: what libSQL's own client sends.
pub const SYNC_BATCH: u32 = 128;
/// The most the user may ask for: 16 MiB, which is held in memory whole.
pub const SYNC_BATCH_MAX: u32 = 4096;

/// Bytes a second of bases without checksums that are read to make them.
pub const BASE_SUMS_RATE: u64 = 64 << 20;
/// The wait between two looks for such bases.
pub const BASE_SUMS_EVERY: Duration = Duration::from_secs(60);

/// Largest export of a database taken: the most pages SQLite can number.
pub const EXPORT_BYTES_MAX: u64 = (u32::MAX as u64 - 1) * 4096;

/// Bytes of transactions that wait to be pushed to a libSQL server before no more is read of the database.
pub const PUSH_HELD_MAX: usize = 64 << 20;

/// Bytes of frames of a push to a libSQL server that are noted at once before they are sent. As many are read and noted while these
/// are sent.
pub const PUSH_AHEAD_BYTES: usize = 8 << 20;
/// How often a libSQL server is asked what it has while nothing is sent to it.
pub const SERVER_CHECK_EVERY: Duration = Duration::from_secs(10);
/// Runs of frames in a note: of both, and of what was confirmed of a transaction whose end was not.
pub const RUNS_NOTED_MAX: usize = 96;

/// Largest metadata file of the libSQL sync protocol; real ones have some 80 bytes, and ours some 160 more for each run of frames
/// that is being pushed, and 50 for each end of an earlier push.
pub const METADATA_BYTES_MAX: u64 = 24 << 10;
/// Ends of earlier pushes that are noted there: a server that was put back to one of them is gone on with.
pub const ENDS_NOTED_MAX: usize = 128;

/// A temporary file as old as this belongs to a process that crashed; writing one takes milliseconds.
pub const DRAFT_STALE_AFTER: Duration = Duration::from_secs(60);

/// What is read of an answer that refuses, to show it.
pub const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// How long after a replica of a libSQL server was set aside a follower makes it again, while no more than that one are there: twice as
/// long for each more, up to the last. What another program writes to it again and again must not fill the disk.
pub const REMADE_AFTER_FIRST: Duration = Duration::from_secs(5);
/// See [`REMADE_AFTER_FIRST`].
pub const REMADE_AFTER_LAST: Duration = Duration::from_secs(24 * 3600);

/// Attempts after a sync server said 5xx, with waits that double from [`BACKOFF_FIRST`].
pub const SYNC_RETRIES: u32 = 6;

/// Largest body of a pull of the Turso sync protocol: a page selector of 16 million single pages, 64 GiB, in its longest form.
pub const PULL_BYTES_MAX: usize = 2 << 20;
/// Up to this length it is taken without a share of the memory budget, and may wait for news.
pub const PULL_BYTES_SMALL: usize = 16 << 10;

/// Longest time that a pull waits for news: a client that wants to wait longer asks again.
pub const LONG_POLL_MAX: Duration = Duration::from_secs(300);

/// Up to this many selected pages are looked up one by one; more are found in one pass over the indexes.
pub const PAGES_LOOKED_UP_MAX: u64 = 256;
/// Largest body of SQL: a client sends all that it wrote offline at once.
pub const SQL_BODY_BYTES_MAX: usize = 64 << 20;
/// Arrays and objects in each other in a body of SQL, as deep as the JSON library goes.
pub const JSON_DEPTH_MAX: usize = 127;
/// Bodies and answers of SQL in memory at once, over all clients: three bodies of the largest kind, one of which is set aside
/// so that one request can always go on. As JSON and as what was read out of it a body is there twice for a moment.
pub const SQL_MEMORY_MAX: usize = 3 * SQL_BODY_BYTES_MAX;
/// What of it the requests to one log may take, beside what is set aside: others must be served meanwhile.
pub const SQL_LOG_MEMORY_MAX: usize = (SQL_MEMORY_MAX - SQL_BODY_BYTES_MAX) / 4 * 3;
/// What of either of the two is left to requests that are there, by bodies that are being received.
pub const SQL_RECEIVED_MEMORY_MIN: usize = 32 << 20;
/// A body of so many bytes takes nothing of it while it is received: it is part of what its connection may hold.
pub const SQL_BODY_BYTES_SMALL: usize = 64 << 10;
/// Rows of one answer, in bytes of memory: what a client can be expected to take at once. A cursor has no such cap.
pub const SQL_ANSWER_BYTES_MAX: usize = 16 << 20;
/// An answer of so many rows is written where it is sent; a longer one elsewhere.
pub const SQL_ROWS_AT_ONCE: usize = 100;
/// A cursor is answered in pieces of about this many bytes.
pub const SQL_CURSOR_PIECE: usize = 64 << 10;
/// Parentheses in parentheses of a statement. The engine recurses, and takes some 100 KiB of stack for each in a debug build.
pub const SQL_NESTING_MAX: usize = 200;
/// Queries of a compound SELECT: SQLite's default.
pub const SQL_COMPOUND_MAX: usize = 500;
/// Stack of a thread that runs SQL. Views that select from views nest without bound; only what is used is ever backed.
pub const SQL_STACK_BYTES: usize = 256 << 20;
/// SQL texts of which it is remembered what they do, and the longest of which that or anything else is.
pub const SQL_SEEN_MAX: usize = 1024;
/// See [`SQL_SEEN_MAX`].
pub const SQL_SEEN_BYTES_MAX: usize = 2048;
/// Connections of a database that are kept for the next call.
pub const SPARE_CONNECTIONS_MAX: usize = 2;
/// Prepared statements that each of them keeps.
pub const PROGRAMS_KEPT_MAX: usize = 16;
/// Threads that run SQL, and so statements at once; more wait.
pub const SQL_THREADS_MAX: usize = 32;
/// SQL that has not begun after so long gets a thread of its own.
pub const SQL_BEGIN_WAIT: Duration = Duration::from_millis(20);
/// SQL that has run for so long goes on with less of the processor than others, by [`SQL_LONG_NICE`].
pub const SQL_LONG: Duration = Duration::from_millis(50);
/// See [`SQL_LONG`]: a ninth of what others get.
pub const SQL_LONG_NICE: i32 = 10;
/// See [`SQL_VERY_LONG_NICE`].
pub const SQL_VERY_LONG: Duration = Duration::from_secs(1);
/// After [`SQL_VERY_LONG`], for SQL that goes on: what others leave.
pub const SQL_VERY_LONG_NICE: i32 = 19;
/// Longest time a statement may run: it may hold up all other writers.
pub const SQL_STATEMENT_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest time that a statement may take to be prepared, beside [`SQL_INTERRUPT_WAIT`]. The engine cannot be interrupted there.
pub const SQL_PREPARE_TIME_MAX: Duration = Duration::from_secs(5);
/// A statement that was interrupted must end within this time; one that does not is ended with its worker.
pub const SQL_INTERRUPT_WAIT: Duration = Duration::from_secs(5);
/// Times that a call is begun anew because the database was opened anew under it.
pub const SQL_ATTEMPTS_MAX: u32 = 4;
/// SQL texts that a stream may store, and their bytes.
pub const SQL_STORED_MAX: usize = 256;
/// See [`SQL_STORED_MAX`].
pub const SQL_STORED_BYTES_MAX: usize = 1 << 20;
/// Default patience with a stream between two calls, and with the reader of a cursor that holds up writers.
pub const SQL_STREAM_IDLE: Duration = Duration::from_secs(10);
/// A stream that keeps the turn to write between two calls is looked at so often: if others wait for it, it is rolled back.
pub const SQL_TURN_IDLE: Duration = Duration::from_secs(2);
/// Streams of a log in which nothing is open and which keep the cache of their connection between calls; more give it up.
pub const SQL_STREAMS_WARM_MAX: usize = 2;
/// Streams of a log, those that are in a call included.
pub const SQL_STREAMS_PER_LOG_MAX: usize = 256;
/// Streams that logs share, those that are in a call included: each log gets half of what the others leave.
pub const SQL_STREAMS_MAX: usize = 1024;
/// Streams beside those: one for each log that has none.
pub const SQL_STREAMS_MORE_MAX: usize = 1024;
/// Streams that ended of which is remembered how, for those who come back. Some 100 bytes each.
pub const SQL_GONE_MAX: usize = 16384;
/// What is logged of a value that a client chose, such as a path.
pub const LOG_VALUE_CHARS_MAX: usize = 500;
/// What is logged of an SQL text.
pub const SQL_LOGGED_CHARS: usize = 200;

/// Largest `P-info` of a replica that is read: real ones have some 700 bytes, and those conflicts that were not told yet.
pub const REPLICA_INFO_BYTES_MAX: u64 = 256 << 20;
/// Frames in one request of a replica unless told otherwise. They are taken as they come.
pub const REPLICA_PULL_BATCH: u32 = 100_000;
/// Frames after which the WAL of a replica's image, or of its draft, is folded into its database: 16 MiB.
pub const REPLICA_FOLD_FRAMES: u64 = 4096;
/// Pieces of a pull on their way to the disk.
pub const REPLICA_PIECES_UNDER_WAY: usize = 16;
/// How long a sync waits for a transaction of the application to end.
pub const REPLICA_LOCK_WAIT: Duration = Duration::from_secs(30);
/// Statements in one request of a push, and about their bytes.
pub const REPLICA_PUSH_STATEMENTS: usize = 1000;
/// See [`REPLICA_PUSH_STATEMENTS`].
pub const REPLICA_PUSH_BYTES: usize = 1 << 20;
/// Texts and blobs of a row that a replica changes, at most, in the draft as in a push: as JSON they are a third larger,
/// and with what else is in a request less than [`SQL_BODY_BYTES_MAX`].
pub const REPLICA_ROW_BYTES_MAX: usize = 40 << 20;
/// Largest answer to a request of a push.
pub const REPLICA_ANSWER_BYTES_MAX: usize = 8 << 20;
/// A pull counts what it has taken, and syncs it, whenever it has become as much as this.
pub const REPLICA_STORE_BYTES: usize = 32 << 20;

/// Until a log that failed is opened again for the first time; each further time waits twice as long as the one before.
pub const REOPEN_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two attempts to open a log that failed.
pub const REOPEN_LAST: Duration = Duration::from_secs(5);
/// Threads that open logs that failed again. One on a disk that hangs keeps its thread.
pub const REOPEN_THREADS: usize = 4;
/// How long a segment that is gone under a running service is waited for before the log is opened as a restart would.
pub const MISSING_PATIENCE: Duration = Duration::from_secs(5);
/// The wait between two attempts to open a damaged log in whose directory no file was added or removed: each may read all
/// of a segment.
pub const REOPEN_DAMAGED: Duration = Duration::from_secs(300);
/// How often `log.json` is read again of a log of which it could not be read.
pub const LOAD_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// How long after the last stream of a mirror that follows its log still counts as fed: it opens another one within that.
pub const FED_WITHIN: Duration = Duration::from_secs(60);

/// Open files kept for logs where the process may open many.
pub const FILES_RESERVED_MAX: u64 = 1024;
/// Files that the process itself needs: its listener, its outputs, its directories.
pub const FILES_OWN: u64 = 16;
/// Files that a connection may need: its socket, and those of the log that it appends to or reads.
pub const FILES_PER_CONNECTION: u64 = 4;
/// Threads that a service must be able to start when it begins, beside one a core: for SQL, and for what blocks.
pub const THREADS_SPARE: usize = 16;
/// Files that a process for SQL needs in the service: its sockets, its standard error, and as many while it starts.
pub const FILES_PER_SQL_WORKER: u64 = 8;
/// How long a read waits for a file while the process has as many open as it may: before its answer begins, and after.
pub const FILES_WAIT: Duration = Duration::from_secs(5);
/// See [`FILES_WAIT`].
pub const FILES_WAIT_ANSWERING: Duration = Duration::from_secs(60);
/// How often it tries.
pub const FILES_RETRY: Duration = Duration::from_millis(20);
/// A log that was not written for this long closes its files when a reader needs some.
pub const FILES_IDLE: Duration = Duration::from_millis(100);
/// How long a connection must have been idle to be closed for another client that waits.
pub const IDLE_BEFORE_CLOSED: Duration = Duration::from_millis(500);
/// How often an idle connection is sought while a client waits.
pub const MAKE_ROOM_EVERY: Duration = Duration::from_millis(50);
/// How long a client must have waited for a place until that is reported: longer than it takes to close an idle connection.
pub const ALL_BUSY_AFTER: Duration = Duration::from_secs(1);
/// It is reported again after so long.
pub const ALL_BUSY_EVERY: Duration = Duration::from_secs(60);
/// A log that was not used for so long in another process of the service is forgotten there.
pub const LOG_UNUSED: Duration = Duration::from_secs(600);
/// What is read at once of the messages between a service and an SQL worker.
pub const WORKER_READ_BYTES: usize = 64 << 10;
/// Longest message between a service and an SQL worker that is one packet.
pub const WORKER_PACKET_BYTES_MAX: usize = 64 << 10;
/// Threads of a worker that receive packets, and run the calls in them but for one at a time, which goes on receiving.
pub const WORKER_CALL_THREADS: usize = 3;
/// Longest head of a message between a service and an SQL worker: an update of a log with a hundred thousand segments.
pub const WORKER_HEAD_BYTES_MAX: usize = 64 << 20;
/// Its longest body: rows of [`SQL_ANSWER_BYTES_MAX`] as JSON, or a transaction.
pub const WORKER_BODY_BYTES_MAX: usize = 256 << 20;
/// Processes for SQL that may be asked for.
pub const SQL_WORKERS_ASKED_MAX: usize = 256;
/// Most processes that run SQL where none were asked for.
pub const SQL_WORKERS_MAX: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Processes that run SQL where none were asked for: one a processor, up to [`SQL_WORKERS_MAX`].
#[must_use]
pub fn sql_workers() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).min(SQL_WORKERS_MAX)
}
/// Fewest threads that run SQL in a worker, however little memory it has.
pub const WORKER_THREADS_MIN: usize = 2;
/// Stack of a thread that runs SQL in a worker: one that overflows ends the worker only.
pub const WORKER_STACK_BYTES: usize = 64 << 20;
/// Memory of an SQL worker: the caches of its databases, what its statements sort, and the stacks of its threads but those of the
/// [`WORKER_CALL_THREADS`].
pub const WORKER_MEMORY_BYTES_MAX: u64 = 3 << 30;
/// The least that an SQL worker may have.
pub const WORKER_MEMORY_BYTES_MIN: u64 = 512 << 20;
/// Largest temporary file of an SQL worker.
pub const WORKER_FILE_BYTES_MAX: u64 = 4 << 30;
/// A worker looks so often for statements that should have ended.
pub const WORKER_CHECK_EVERY: Duration = Duration::from_secs(1);
/// A worker that says nothing for so long has failed.
pub const WORKER_SILENCE_MAX: Duration = Duration::from_secs(20);
/// A worker is asked so often whether it is there.
pub const WORKER_PING_EVERY: Duration = Duration::from_secs(5);
/// A log whose calls were under way when so many workers ended gets a worker of its own.
pub const WORKER_STRIKES_ALONE: u32 = 2;
/// A log that ends a worker of its own waits for so long until it gets another; twice as long each time, up to
/// [`WORKER_PAUSE_MAX`].
pub const WORKER_PAUSE: Duration = Duration::from_secs(10);
/// See [`WORKER_PAUSE`].
pub const WORKER_PAUSE_MAX: Duration = Duration::from_secs(600);
/// Ends of workers that are so old do not count against a log.
pub const WORKER_STRIKES_KEPT: Duration = Duration::from_secs(600);
/// Workers of one log each, at once.
pub const WORKERS_ALONE_MAX: usize = 8;
/// How long a worker may take to start.
pub const WORKER_START_WAIT: Duration = Duration::from_secs(20);
/// Longest line of what a worker says that is passed on as one.
pub const WORKER_LINE_BYTES_MAX: u64 = 16 << 10;
/// What is kept of the last that a worker said before it ended.
pub const WORKER_LAST_WORDS_BYTES: usize = 2 << 10;
