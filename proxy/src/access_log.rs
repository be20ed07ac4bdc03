//! The access log: lines, gathered per thread and written in batches by a thread of its own,
//! so that no request waits for the disk. Where the disk cannot follow, lines are dropped and
//! counted. Query strings are left out unless asked for: they carry secrets too often. Of headers, only those are
//! ever written that the combined format has.

mod line;

pub use line::LogFormat;

use crate::forwarded;
use crate::service::BROKEN_OFF;
use beanpole_daemon::clock;
use line::Spelled;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
/// Size at which a file is put aside unless told otherwise, in bytes, and how many are kept besides the current one.
const ROTATE_AT: u64 = 64 * 1024 * 1024;
const KEPT: u32 = 3;
/// How long a request takes that is logged in any case, unless told otherwise.
const SLOW: Duration = Duration::from_secs(1);

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogOptions {
    /// How requests are written.
    pub format: LogFormat,
    /// The share of requests that is logged, from 0 to 1. Those that failed, or were answered with a status of 500
    /// or above, and slow ones are logged in any case.
    pub sample: f64,
    /// From here on a request is slow.
    pub slow: Duration,
    /// Write the query strings of targets and referers, too.
    pub query: bool,
    /// Size at which the file is put aside, in bytes; 0 where something else does that.
    pub rotate_at: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            sample: 1.0,
            slow: SLOW,
            query: false,
            rotate_at: ROTATE_AT,
        }
    }
}

/// One request, as it is logged.
#[derive(Clone, Copy, Debug)]
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
    /// The query; none where there is none, or none is logged.
    pub query: Option<&'a str>,
    /// `HTTP/1.1`.
    pub version: &'static str,
    /// The headers of those names, if the log has them.
    pub referer: &'a [u8],
    /// As that.
    pub user_agent: &'a [u8],
    /// The id of the trace that it belongs to, in hexadecimal (W3C Trace Context).
    pub trace: Option<[u8; 32]>,
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

impl Entry<'_> {
    /// Of nobody, and empty.
    pub const NONE: Self = Self {
        request_id: b"",
        client: b"",
        host: "",
        method: "",
        path: "",
        query: None,
        version: "HTTP/1.1",
        referer: b"",
        user_agent: b"",
        trace: None,
        status: None,
        bytes: 0,
        duration: Duration::ZERO,
        environment: None,
        instance: None,
        release: None,
        why: None,
    };

    /// Whether it is logged, however few are: it failed, or took long.
    fn is_of_note(&self, slow: Duration) -> bool {
        let failed = self.status.is_some_and(|status| status >= 500);
        failed || self.why == Some(BROKEN_OFF) || self.duration >= slow
    }
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

#[derive(Default)]
struct Shard {
    lines: Vec<u8>,
    time: Spelled,
}

/// Which requests are logged that are nothing special.
struct Sample {
    /// Of the numbers from 0 to this - 1, none is; all are from there.
    from: u64,
    /// For how many each stands, as it is written.
    weight: String,
}

impl Sample {
    /// None where all are logged.
    fn new(share: f64) -> Option<Self> {
        if share >= 1.0 {
            return None;
        }
        let share = share.max(0.0);
        let weight = if share > 0.0 { 1.0 / share } else { 0.0 };
        Some(Self {
            // Exact enough: a share has far fewer digits than this has bits.
            from: ((1.0 - share) * u64::MAX as f64) as u64,
            weight: format!("{weight:.4}")
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned(),
        })
    }
}

/// Where requests leave their lines.
pub struct AccessLog {
    shards: [Mutex<Shard>; SHARDS],
    dropped: AtomicU64,
    options: LogOptions,
    sample: Option<Sample>,
}

/// Writes what was gathered until it is stopped.
pub struct Writer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// Opens `path` and starts the writer.
    pub fn open(path: &Path, options: LogOptions) -> io::Result<(Arc<Self>, Writer)> {
        let mut output = Output::open(path, options.rotate_at)?;
        let log = Arc::new(Self::new(options));
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

    fn new(options: LogOptions) -> Self {
        Self {
            shards: Default::default(),
            dropped: AtomicU64::new(0),
            sample: Sample::new(options.sample),
            options,
        }
    }

    /// Whether it has the headers `Referer` and `User-Agent`.
    pub fn has_headers(&self) -> bool {
        self.options.format == LogFormat::Combined
    }

    /// What of a query it has.
    pub fn query<'a>(&self, query: Option<&'a str>) -> Option<&'a str> {
        query.filter(|_| self.options.query)
    }

    /// What of a referer it has.
    pub fn referer<'a>(&self, referer: &'a [u8]) -> &'a [u8] {
        let end = referer.iter().position(|byte| *byte == b'?');
        match end {
            Some(end) if !self.options.query => &referer[..end],
            _ => referer,
        }
    }

    /// Adds a line, leaves it out, or counts it as dropped.
    pub fn add(&self, entry: &Entry<'_>) {
        let weight = match &self.sample {
            None => None,
            Some(_) if entry.is_of_note(self.options.slow) => Some("1"),
            Some(sample) if forwarded::random() < sample.from => return,
            Some(sample) => Some(sample.weight.as_str()),
        };
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
        let shard = &mut *shard;
        let format = self.options.format;
        let time = shard.time.time(format, clock::now().as_millis());
        match format {
            LogFormat::Json => line::json(&mut shard.lines, time, entry, weight),
            LogFormat::Combined => line::combined(&mut shard.lines, time, entry),
        }
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
        self.follow()?;
        if self.rotate_at > 0 && self.size > 0 && self.size + lines.len() as u64 > self.rotate_at {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Goes on in a file of its name where the one that is open was moved away or removed, and learns its size
    /// where it was cut short: logrotate does either.
    fn follow(&mut self) -> io::Result<()> {
        let open = self.file.metadata()?;
        self.size = open.len();
        let named = std::fs::metadata(&self.path);
        let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()));
        if !same {
            *self = Self::open(&self.path, self.rotate_at)?;
        }
        Ok(())
    }

    /// Puts the file aside, unless another process of this load balancer has done that.
    fn rotate(&mut self) -> io::Result<()> {
        let number = |file: &Metadata| (file.dev(), file.ino());
        let own = number(&self.file.metadata()?);
        if std::fs::metadata(&self.path).is_ok_and(|there| number(&there) != own) {
            *self = Self::open(&self.path, self.rotate_at)?;
            return Ok(());
        }
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
            release: Some(3),
            ..Entry::NONE
        }
    }

    /// The lines that a log with such options writes of `entries`.
    fn logged(options: LogOptions, entries: &[Entry<'_>]) -> Vec<serde_json::Value> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("access.log");
        let (log, writer) = AccessLog::open(&path, options).expect("open");
        for entry in entries {
            log.add(entry);
        }
        writer.stop();
        let text = std::fs::read_to_string(&path).expect("read");
        let read = |line: &str| serde_json::from_str(line).expect("JSON");
        text.lines().map(read).collect()
    }

    #[test]
    fn of_many_requests_a_share_is_logged_with_its_weight() {
        let options = LogOptions {
            sample: 0.1,
            ..LogOptions::default()
        };
        let lines = logged(options, &vec![entry("/"); 20_000]);
        // 2,000 are awaited; six standard deviations are 255.
        assert!((1_745..=2_255).contains(&lines.len()), "{}", lines.len());
        assert!(lines.iter().all(|line| line["weight"] == 10));
    }

    #[test]
    fn what_failed_or_was_slow_is_logged_in_any_case() {
        let of_note = [
            Entry {
                status: Some(502),
                ..entry("/failed")
            },
            Entry {
                why: Some(BROKEN_OFF),
                ..entry("/broken")
            },
            Entry {
                duration: Duration::from_secs(2),
                ..entry("/slow")
            },
        ];
        let options = LogOptions {
            sample: 0.0,
            ..LogOptions::default()
        };
        let all: Vec<Entry<'_>> = of_note.into_iter().chain([entry("/plain")]).collect();
        let lines = logged(options, &all);
        let paths: Vec<&str> = lines
            .iter()
            .filter_map(|line| line["path"].as_str())
            .collect();
        assert_eq!(paths, ["/failed", "/broken", "/slow"]);
        assert!(lines.iter().all(|line| line["weight"] == 1));
        assert!(
            logged(LogOptions::default(), &all)[3]
                .get("weight")
                .is_none()
        );
    }

    #[test]
    fn a_trace_and_a_query_are_logged_where_there_is_one() {
        let of_trace = Entry {
            trace: Some(*b"0af7651916cd43dd8448eb211c80319c"),
            query: Some("a=\"b"),
            ..entry("/")
        };
        let lines = logged(LogOptions::default(), &[of_trace, entry("/")]);
        assert_eq!(lines[0]["trace"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(lines[0]["query"], "a=\"b");
        assert!(lines[1].get("trace").is_none() && lines[1].get("query").is_none());
    }

    #[test]
    fn queries_are_kept_back_unless_asked_for() {
        let log = AccessLog::new(LogOptions::default());
        assert_eq!(log.query(Some("token=x")), None);
        assert_eq!(log.referer(b"http://a/b?token=x"), b"http://a/b");
        let log = AccessLog::new(LogOptions {
            query: true,
            ..LogOptions::default()
        });
        assert_eq!(log.query(Some("token=x")), Some("token=x"));
        assert_eq!(log.referer(b"http://a/b?token=x"), b"http://a/b?token=x");
    }

    #[test]
    fn a_file_that_was_moved_away_or_cut_short_is_noticed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("access.log");
        let moved = directory.path().join("access.log-20261130");
        let mut output = Output::open(&path, 0).expect("open");
        output.write(b"one\n").expect("write");
        std::fs::rename(&path, &moved).expect("rename");
        output.write(b"two\n").expect("write");
        let read = |path: &Path| std::fs::read_to_string(path).expect("read");
        assert_eq!(
            (read(&moved), read(&path)),
            ("one\n".into(), "two\n".into())
        );
        std::fs::remove_file(&path).expect("remove");
        output.write(b"three\n").expect("write");
        assert_eq!(read(&path), "three\n");
        File::create(&path).expect("cut short");
        output.write(b"four\n").expect("write");
        assert_eq!((read(&path), output.size), ("four\n".into(), 5));
    }

    #[test]
    fn lines_are_json_whatever_the_path() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("access.log");
        let (log, writer) = AccessLog::open(&path, LogOptions::default()).expect("open");
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
            let options = LogOptions {
                rotate_at: 150,
                ..LogOptions::default()
            };
            let (log, writer) = AccessLog::open(&path, options).expect("open");
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
        let log = AccessLog::new(LogOptions::default());
        let long = "/x".repeat(512 * 1024);
        for _ in 0..5 {
            log.add(&entry(&long));
        }
        assert!(log.dropped.load(Relaxed) >= 2);
    }
}
