//! The real binary as processes: a service that is killed and restarted on its port, and mirrors with what they say.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logmirror::api::LogStatus;
use logmirror::client::{Client, ClientError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before the test gives up: far more than it ever does.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The same, or so many seconds as `LOGMIRROR_TEST_PATIENCE` says, for those who let a test do more than it does by itself.
fn patience() -> Duration {
    let given = std::env::var("LOGMIRROR_TEST_PATIENCE").ok().map(|text| text.parse().unwrap());
    given.map_or(PATIENCE, Duration::from_secs)
}

/// Pause between two looks at something that tells nobody when it changes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none for [`PATIENCE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < patience(), "waited in vain: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A child process whose output is taken in as it comes, and which does not outlive the test.
struct Process {
    child: Child,
    out: Arc<Out>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Out {
    so_far: Mutex<Output>,
    changed: Condvar,
}

impl Out {
    /// A test that fails may still want to see it.
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    errors: String,
    ended: bool,
}

impl Process {
    fn start(args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_logmirror"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOGMIRROR_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().unwrap();
        let out = Arc::new(Out::default());
        let (lines, mut errors) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
        let for_lines = out.clone();
        let for_errors = out.clone();
        let readers = vec![
            std::thread::spawn(move || {
                for line in lines.lines() {
                    for_lines.lock().lines.push(line.unwrap());
                    for_lines.changed.notify_all();
                }
                for_lines.lock().ended = true;
                for_lines.changed.notify_all();
            }),
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = errors.read(&mut piece) {
                    for_errors.lock().errors.push_str(&String::from_utf8_lossy(&piece[..count]));
                }
            }),
        ];
        Process { child, out, readers }
    }

    /// Waits until `find` finds something in the lines so far; none when they ended without it.
    fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut output = self.out.lock();
        loop {
            if let Some(found) = find(&output.lines) {
                return Some(found);
            }
            if output.ended {
                return None;
            }
            let left = patience().checked_sub(start.elapsed()).unwrap_or_else(|| panic!("waited in vain: {what}"));
            output = self.out.changed.wait_timeout(output, left).unwrap().0;
        }
    }

    fn signal(&self, signal: Signal) {
        // A process that has ended already does not mind.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end and for all that it said.
    fn ended(&mut self, what: &str) -> ExitStatus {
        let status = until(what, || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    fn errors(&self) -> String {
        self.out.lock().errors.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.out.lock();
            let from = output.lines.len().saturating_sub(20);
            eprintln!("--- process {}\n{}\n{}", self.child.id(), output.lines[from..].join("\n"), output.errors);
        }
    }
}

/// `logmirror serve`.
pub struct Service {
    process: Process,
    data: PathBuf,
    flags: Vec<String>,
    address: String,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    /// On a port that nobody takes while the service is down.
    pub fn start(data: &Path) -> Service {
        Service::start_with(data, &[])
    }

    /// The same with more flags.
    pub fn start_with(data: &Path, flags: &[&str]) -> Service {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (process, address) = serve(data, &free_address(), &flags);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Service { process, data: data.to_owned(), flags, address, runtime }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn id(&self) -> u32 {
        self.process.child.id()
    }

    pub fn url(&self, log: &str) -> String {
        format!("http://{}/logs/{log}", self.address)
    }

    /// Where its log keeps its segments.
    pub fn segments_of(&self, log: &str) -> PathBuf {
        self.data.join("logs").join(log).join("0000000001")
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.ended("the service to die");
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        (self.process, self.address) = serve(&self.data, &self.address, &self.flags);
    }

    /// SIGTERM; how it ended, and what it said on the way.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        self.process.signal(Signal::TERM);
        (self.process.ended("the service to end"), self.process.errors())
    }

    /// SIGHUP, as when its terminal goes; how it ended, and what it said on the way.
    pub fn hang_up(mut self) -> (ExitStatus, String) {
        self.process.signal(Signal::HUP);
        (self.process.ended("the service to end"), self.process.errors())
    }

    pub fn client(&self, log: &str) -> Client {
        Client::new(&self.url(log)).unwrap()
    }

    /// Runs a call of the client to its end.
    pub fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Where a log stands; none while there is none.
    pub fn status(&self, client: &Client) -> Result<Option<LogStatus>, ClientError> {
        self.call(client.find())
    }
}

/// A free address with a port below those that the kernel gives to outgoing connections.
pub fn free_address() -> String {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let candidates = std::iter::from_fn(|| Some(TRIED.fetch_add(1, Ordering::Relaxed)));
    let mut addresses = candidates.map(|tried| {
        let port = 10_000 + (std::process::id().wrapping_mul(97) + tried) % 20_000;
        format!("127.0.0.1:{port}")
    });
    addresses.find(|address| TcpListener::bind(address).is_ok()).unwrap()
}

fn serve(data: &Path, listen: &str, flags: &[String]) -> (Process, String) {
    let mut args = vec!["serve", "--data", data.to_str().unwrap(), "--listen", listen];
    args.extend(flags.iter().map(String::as_str));
    let process = Process::start(&args);
    let address = process.wait_for("the service to listen", |lines| {
        lines.iter().find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned))
    });
    let address = address.unwrap_or_else(|| panic!("the service did not start: {}", process.errors()));
    (process, address)
}

/// `logmirror mirror --json`, or another command that tells in lines of JSON.
pub struct Mirror(Process);

/// How a mirror ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// Its lines of JSON.
    pub lines: Vec<Value>,
    pub errors: String,
}

impl Ended {
    /// The line that says how it ended: `done`, `failed` or `interrupted`.
    pub fn last(&self, event: &str) -> &Value {
        let found = self.lines.iter().find(|line| line["event"] == event);
        found.unwrap_or_else(|| panic!("no {event:?} in {self:?}"))
    }

    /// What went wrong, as the last line says.
    pub fn error(&self) -> &str {
        self.last("error")["message"].as_str().unwrap()
    }
}

fn parsed(line: &String) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
}

impl Mirror {
    pub fn start(source: impl AsRef<str>, sink: impl AsRef<str>, flags: &[&str]) -> Mirror {
        let mut args = vec!["mirror", source.as_ref(), sink.as_ref(), "--json"];
        args.extend(flags);
        Mirror(Process::start(&args))
    }

    /// Another command that tells in lines of JSON.
    pub fn command(args: &[&str]) -> Mirror {
        Mirror(Process::start(args))
    }

    pub fn id(&self) -> u32 {
        self.0.child.id()
    }

    /// Runs `work` while none of its threads runs.
    pub fn stopped<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.signal(Signal::STOP);
        // The signal is on its way to each of them.
        until("it is stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
            let state = |stat: String| stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
            let mut stats =
                threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).ok());
            stats.all(|stat| matches!(state(stat), Some('T' | 't' | 'Z'))).then_some(())
        });
        let done = work();
        self.0.signal(Signal::CONT);
        done
    }

    /// Its lines so far.
    pub fn lines(&self) -> Vec<Value> {
        self.0.out.lock().lines.iter().map(parsed).collect()
    }

    /// Waits for a line.
    ///
    /// # Panics
    /// When it ends without one.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut seen = 0;
        let found = self.0.wait_for(what, |lines| {
            let fresh = lines[seen..].iter().map(parsed).find(|line| wanted(line));
            seen = lines.len();
            fresh
        });
        found.unwrap_or_else(|| panic!("the command ended before {what}: {}", self.0.errors()))
    }

    /// Waits until it says that everything before `offset` is durable in its sink.
    pub fn wait_durable(&self, offset: u64) -> Value {
        self.wait_for(&format!("offset {offset} to be durable"), |line| line["durable"].as_u64() >= Some(offset))
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Ended {
        self.0.signal(Signal::KILL);
        self.end()
    }

    /// As Ctrl-C does.
    pub fn interrupt(mut self) -> Ended {
        self.0.signal(Signal::INT);
        self.end()
    }

    /// As a service manager does.
    pub fn terminate(mut self) -> Ended {
        self.0.signal(Signal::TERM);
        self.end()
    }

    /// As when the terminal goes.
    pub fn hang_up(mut self) -> Ended {
        self.0.signal(Signal::HUP);
        self.end()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        self.end()
    }

    fn end(&mut self) -> Ended {
        let code = self.0.ended("the command to end").code();
        Ended { code, lines: self.lines(), errors: self.0.errors() }
    }
}

/// A mirror that runs to its end.
pub fn mirror(source: impl AsRef<str>, sink: impl AsRef<str>, flags: &[&str]) -> Ended {
    Mirror::start(source, sink, flags).ended()
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
