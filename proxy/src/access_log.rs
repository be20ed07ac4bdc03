//! The access log: JSON lines, gathered per thread and written in batches by a thread of its own,
//! so that no request waits for the disk. Where the disk cannot follow, lines are dropped and
//! counted. Query strings are left out: they carry secrets too often.

use beanpole_daemon::clock;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Places in which threads gather lines; more threads share.
const SHARDS: usize = 8;
/// How much is gathered in one place before lines are dropped, in bytes.
const MOST_GATHERED: usize = 2 * 1024 * 1024;
/// From one batch to the next.
const BATCH: Duration = Duration::from_millis(200);
/// Size at which a file is put aside, in bytes, and how many are kept besides the current one.
const ROTATE_AT: u64 = 64 * 1024 * 1024;
const KEPT: u32 = 3;

/// One request, as it is logged.
pub struct Entry<'a> {
    /// The request's id.
    pub request_id: &'a [u8],
    /// Who asked: an address.
    pub client: &'a [u8],
    /// The host asked for; as the method and the path, it is empty where the head could not be read.
    pub host: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path, without its query.
    pub path: &'a str,
    /// What was answered; none if the client left before.
    pub status: Option<u16>,
    /// Bytes of the answer's body.
    pub bytes: usize,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// The environment, if the host is known.
    pub environment: Option<&'a str>,
    /// The instance that answered.
    pub instance: Option<&'a str>,
    /// The release that it ran.
    pub release: Option<u64>,
    /// Why the proxy answered itself.
    pub why: Option<&'static str>,
}

#[derive(Default)]
struct Shard {
    lines: Vec<u8>,
    /// The millisecond of `time`, so that it is spelled once.
    at: u64,
    time: String,
}

/// Where requests leave their lines.
pub struct AccessLog {
    shards: [Mutex<Shard>; SHARDS],
    dropped: AtomicU64,
}

/// Writes what was gathered until it is stopped.
pub struct Writer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// Opens `path` and starts the writer.
    pub fn open(path: &Path) -> io::Result<(Arc<Self>, Writer)> {
        Self::open_rotating(path, ROTATE_AT)
    }

    fn open_rotating(path: &Path, rotate_at: u64) -> io::Result<(Arc<Self>, Writer)> {
        let mut output = Output::open(path, rotate_at)?;
        let log = Arc::new(Self {
            shards: Default::default(),
            dropped: AtomicU64::new(0),
        });
        let (stop, stopped) = mpsc::channel();
        let gathered = log.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                let mut told = 0;
                loop {
                    let end = stopped.recv_timeout(BATCH) != Err(mpsc::RecvTimeoutError::Timeout);
                    gathered.write_out(&mut output, &mut told);
                    if end {
                        break;
                    }
                }
            })?;
        Ok((log, Writer { stop, thread }))
    }

    /// Adds a line, or counts it as dropped.
    pub fn add(&self, entry: &Entry<'_>) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Relaxed) % SHARDS;
        }
        let shard = MINE.with(|mine| &self.shards[*mine]);
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if shard.lines.len() > MOST_GATHERED {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let now = clock::now();
        if shard.at != now.as_millis() {
            shard.at = now.as_millis();
            shard.time = now.to_string();
        }
        let shard = &mut *shard;
        write_line(&mut shard.lines, &shard.time, entry);
    }

    fn write_out(&self, output: &mut Output, told: &mut u64) {
        let mut lines = Vec::new();
        for shard in &self.shards {
            // The empty buffer goes into the shard and keeps the capacity of the last round.
            lines.clear();
            std::mem::swap(
                &mut shard.lock().unwrap_or_else(PoisonError::into_inner).lines,
                &mut lines,
            );
            if !lines.is_empty()
                && let Err(error) = output.write(&lines)
            {
                let lost = lines.split(|byte| *byte == b'\n').count() - 1;
                self.dropped.fetch_add(lost as u64, Relaxed);
                tracing::warn!(%error, path = %output.path.display(), "cannot write the access log");
            }
        }
        let dropped = self.dropped.load(Relaxed);
        if dropped > *told {
            tracing::warn!(
                lines = dropped - *told,
                "lines of the access log were dropped"
            );
            *told = dropped;
        }
    }
}

impl Writer {
    /// Writes what is left and ends.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

struct Output {
    path: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
}

impl Output {
    fn open(path: &Path, rotate_at: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            rotate_at,
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + lines.len() as u64 > self.rotate_at {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let name = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            match std::fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, name(1))?;
        *self = Self::open(&self.path, self.rotate_at)?;
        Ok(())
    }
}

fn write_line(out: &mut Vec<u8>, time: &str, entry: &Entry<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\",\"request\":\"");
    write_text(out, entry.request_id);
    out.extend_from_slice(b"\",\"client\":\"");
    out.extend_from_slice(entry.client);
    if !entry.method.is_empty() {
        out.extend_from_slice(b"\",\"host\":\"");
        write_text(out, entry.host.as_bytes());
        out.extend_from_slice(b"\",\"method\":\"");
        write_text(out, entry.method.as_bytes());
        out.extend_from_slice(b"\",\"path\":\"");
        write_text(out, entry.path.as_bytes());
    }
    out.push(b'"');
    if let Some(status) = entry.status {
        out.extend_from_slice(b",\"status\":");
        write_number(out, u64::from(status));
    }
    out.extend_from_slice(b",\"bytes\":");
    write_number(out, entry.bytes as u64);
    out.extend_from_slice(b",\"us\":");
    write_number(
        out,
        u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX),
    );
    for (name, text) in [
        ("environment", entry.environment),
        ("instance", entry.instance),
        ("why", entry.why),
    ] {
        if let Some(text) = text {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":\"");
            write_text(out, text.as_bytes());
            out.push(b'"');
        }
    }
    if let Some(release) = entry.release {
        out.extend_from_slice(b",\"release\":");
        write_number(out, release);
    }
    out.extend_from_slice(b"}\n");
}

/// The inside of a JSON string; bytes beyond ASCII become `?`, as they have no place in what is
/// logged here (hosts and paths are ASCII on the wire).
fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |byte: u8| matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\';
    // Counted to the end: without a way out, many bytes are looked at at once.
    if text.iter().filter(|byte| !plain(**byte)).count() == 0 {
        out.extend_from_slice(text);
        return;
    }
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            _ => out.push(b'?'),
        }
    }
}

/// As `write!` does, for a fraction of the time.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry<'_> {
        Entry {
            request_id: b"abc",
            client: b"127.0.0.1",
            host: "app.localhost",
            method: "GET",
            path,
            status: Some(200),
            bytes: 12,
            duration: Duration::from_micros(345),
            environment: Some("prod"),
            instance: None,
            release: Some(3),
            why: None,
        }
    }

    #[test]
    fn lines_are_json_whatever_the_path() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("access.log");
        let (log, writer) = AccessLog::open(&path).expect("open");
        log.add(&entry("/a\"b\\c\n\u{e9}"));
        writer.stop();
        let text = std::fs::read_to_string(&path).expect("read");
        let line: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
        assert_eq!(line["path"], "/a\"b\\c???");
        assert_eq!(line["us"], 345);
        assert_eq!(line["release"], 3);
    }

    #[test]
    fn a_full_file_is_put_aside_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("access.log");
        for _ in 0..8 {
            let (log, writer) = AccessLog::open_rotating(&path, 150).expect("open");
            log.add(&entry("/"));
            writer.stop();
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).expect("list").count(),
            4
        );
    }

    #[test]
    fn lines_that_find_no_room_are_counted() {
        let log = AccessLog {
            shards: Default::default(),
            dropped: AtomicU64::new(0),
        };
        let long = "/x".repeat(512 * 1024);
        for _ in 0..5 {
            log.add(&entry(&long));
        }
        assert!(log.dropped.load(Relaxed) >= 2);
    }
}
