//! A service, a mirror that follows a database into it, and what that costs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use logmirror_e2e_support::process::{Process, Program, free_address};
use logmirror_e2e_support::wait_for;
use rusqlite::Connection;

use crate::app;
use crate::model::States;

/// For everything that should not take long.
const LIMIT: Duration = Duration::from_secs(120);

/// A directory that goes when all went well.
pub struct Work(pub PathBuf);

impl Work {
    /// Of this workload.
    pub fn create(what: &str) -> Result<Work> {
        let path = std::env::temp_dir().join(format!("logmirror-sqlite-{what}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Work(path))
    }

    /// Its database.
    pub fn app(&self) -> PathBuf {
        self.0.join("app.db")
    }

    /// Removes it.
    pub fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.0)?)
    }
}

/// A service with a log that follows a database.
pub struct Followed {
    program: Program,
    work: PathBuf,
    url: String,
    address: String,
    /// The service.
    pub service: Process,
    /// The mirror.
    pub mirror: Process,
    compared: u64,
    started: bool,
}

impl Followed {
    /// Starts both, and waits until the log has what the database holds now.
    pub fn start(work: &Work) -> Result<Followed> {
        let program = Program::find()?;
        let (address, data) = (free_address()?, work.0.join("data"));
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path in plain UTF-8");
        let data = text(&data)?;
        let mut service = program.start(&["serve", "--data", &data, "--listen", &address], &work.0, "service")?;
        service.listening(LIMIT)?;
        let url = format!("http://{address}/logs/app");
        let app = text(&work.app())?;
        let mirror = program.start(&["mirror", &app, &url, "--follow", "--json"], &work.0, "mirror")?;
        let work = work.0.clone();
        Ok(Followed { program, work, url, address, service, mirror, compared: 0, started: false })
    }

    /// Starts the mirror once more.
    pub fn start_mirror(&mut self, work: &Work) -> Result<()> {
        let app = work.app().to_str().map(str::to_owned).context("a path in plain UTF-8")?;
        self.read_lines()?;
        self.mirror = self.program.start(&["mirror", &app, &self.url, "--follow", "--json"], &self.work, "mirror")?;
        self.started = false;
        Ok(())
    }

    /// `kill -9` for the service, and a new one in its place.
    pub fn restart_service(&mut self, work: &Work) -> Result<()> {
        self.service.kill()?;
        let data = work.0.join("data").to_str().map(str::to_owned).context("a path in plain UTF-8")?;
        self.service =
            self.program.start(&["serve", "--data", &data, "--listen", &self.address], &self.work, "service")?;
        self.service.listening(LIMIT)
    }

    /// Has the log rolled over after so many frames. All generations are kept.
    pub fn roll_after(&self, frames: u64, keep: u64) -> Result<()> {
        let body = format!(r#"{{"policy":"roll","frames":{frames},"keep":{keep}}}"#);
        for (path, body) in [("", r#"{"format":"wal"}"#), ("/checkpoint", &*body)] {
            let mut stream = TcpStream::connect(&self.address)?;
            let length = body.len();
            write!(
                stream,
                "PUT /logs/app{path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        }
        Ok(())
    }

    /// Waits until the log holds this state of a history, which nobody writes meanwhile.
    pub fn caught_up_with(&mut self, states: &States, number: i64) -> Result<()> {
        let out = self.work.join("restored.db");
        let text = out.to_str().context("a path in plain UTF-8")?.to_owned();
        let (program, url, work) = (self.program.clone(), self.url.clone(), self.work.clone());
        wait_for(&format!("the log to hold state {number}"), LIMIT, || {
            let status = program.run(&["restore", &url, &text, "--force"], &work, "restore", LIMIT)?;
            if !status.success() {
                return Ok(None);
            }
            let found = states.find(&Connection::open(&out)?)?;
            Ok((found == Some(number)).then_some(()))
        })
        .with_context(|| self.mirror.errors())?;
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{text}{suffix}"));
        }
        Ok(())
    }

    /// The log's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the log stands.
    pub fn status(&self) -> Result<serde_json::Value> {
        let said = self.program.command(&["status", &self.url, "--json"]).output()?;
        Ok(serde_json::from_slice(&said.stdout)?)
    }

    /// The database as of the last commit at or before a frame of the current generation; none when there is none.
    pub fn restored(&self, frame: u64) -> Result<Option<PathBuf>> {
        let out = self.work.join("commit.db");
        let text = out.to_str().context("a path in plain UTF-8")?;
        let mut frame = frame;
        for _ in 0..2 {
            let said =
                self.program.command(&["restore", &self.url, text, "--to", &frame.to_string(), "--force"]).output()?;
            if said.status.success() {
                return Ok(Some(out));
            }
            // "no transaction ends with frame 7; 5 and 9 are the nearest commits"
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            let nearest = said.split("; ").nth(1).and_then(|text| text.split_whitespace().next()?.parse().ok());
            match nearest {
                Some(before) if before > 0 => frame = before,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Waits until the log holds the rows of the database, which nobody writes meanwhile. The connection stays open.
    pub fn caught_up(&mut self, db: &Connection) -> Result<()> {
        let wanted = app::content(db)?;
        let out = self.work.join("restored.db");
        let text = out.to_str().context("a path in plain UTF-8")?.to_owned();
        let (program, url, work) = (self.program.clone(), self.url.clone(), self.work.clone());
        wait_for("the log to hold what the database holds", LIMIT, || {
            let status = program.run(&["restore", &url, &text, "--force"], &work, "restore", LIMIT)?;
            if !status.success() {
                return Ok(None);
            }
            // It may not have the table yet.
            Ok(app::content(&Connection::open(&out)?).is_ok_and(|found| found == wanted).then_some(()))
        })
        .with_context(|| self.mirror.errors())?;
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{text}{suffix}"));
        }
        Ok(())
    }

    /// Bytes of the log on disk, but for bases: segments and indexes; of bases; and how many generations.
    pub fn disk(&self) -> Result<(u64, u64, u64)> {
        let (mut log, mut bases, mut generations) = (0, 0, 0);
        for entry in fs::read_dir(self.work.join("data/logs/app"))? {
            let path = entry?.path();
            if !path.is_dir() {
                continue;
            }
            generations += 1;
            for file in fs::read_dir(path)? {
                let file = file?;
                let bytes = file.metadata()?.len();
                if file.file_name() == "base.db" { bases += bytes } else { log += bytes }
            }
        }
        Ok((log, bases, generations))
    }

    /// How often pages were compared since it was asked last.
    pub fn compared(&mut self) -> Result<u64> {
        self.read_lines()?;
        Ok(std::mem::take(&mut self.compared))
    }

    fn read_lines(&mut self) -> Result<()> {
        for line in self.mirror.json_lines()? {
            self.compared += u64::from(line["event"] == "compared");
            self.started |= line["event"] == "started";
        }
        Ok(())
    }

    /// Waits until the mirror has found out where it goes on.
    pub fn started(&mut self) -> Result<()> {
        wait_for("the mirror to start", LIMIT, || {
            self.read_lines()?;
            Ok(self.started.then_some(()))
        })
    }

    /// Ends the mirror, so that what it sent is counted.
    pub fn end(mut self) -> Result<()> {
        self.mirror.signal(rustix::process::Signal::INT)?;
        let ended = self.mirror.ended(LIMIT)?;
        ensure!(ended.success(), "the mirror ended with {ended}: {}", self.mirror.errors());
        Ok(())
    }
}
