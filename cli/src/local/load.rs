//! Requests at a steady rate, counted: what the demo sends while it deploys.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an answer may take before the request counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest body that is read, in bytes.
const LONGEST_BODY: u64 = 1024 * 1024;

/// Requests in the background, until it is stopped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    served: AtomicU64,
    failed: AtomicU64,
    by_version: Mutex<BTreeMap<String, u64>>,
    first_failure: Mutex<Option<String>>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Answers with a 2xx status.
    pub served: u64,
    /// Everything else.
    pub failed: u64,
    /// Answers by the version that gave them (`X-Demo-Version`).
    pub by_version: BTreeMap<String, u64>,
    /// The first thing that went wrong.
    pub first_failure: Option<String>,
}

impl Load {
    /// Sends `per_second` requests for `host` to `proxy`, over `connections` kept-alive
    /// connections.
    pub fn start(proxy: SocketAddr, host: &str, per_second: u32, connections: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let gap = Duration::from_secs(1) * connections / per_second.max(1);
        let threads = (0..connections)
            .map(|number| {
                let (shared, host) = (Arc::clone(&shared), host.to_owned());
                let first = Instant::now() + gap * number / connections.max(1);
                std::thread::spawn(move || send(&shared, proxy, &host, first, gap))
            })
            .collect();
        Self { shared, threads }
    }

    /// Ends it and tells what came of it.
    pub fn stop(self) -> Counted {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        let take =
            |of: &Mutex<Option<String>>| of.lock().unwrap_or_else(PoisonError::into_inner).take();
        Counted {
            served: self.shared.served.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            by_version: self
                .shared
                .by_version
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            first_failure: take(&self.shared.first_failure),
        }
    }
}

fn send(shared: &Shared, proxy: SocketAddr, host: &str, first: Instant, gap: Duration) {
    let mut due = first;
    let mut connection: Option<BufReader<TcpStream>> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += gap;
        // A connection that the proxy closed while nothing was sent is no failure.
        let kept = connection.take();
        let again = kept.is_some();
        let mut result = request(kept, proxy, host);
        if again && result.as_ref().is_err_and(Unanswered::before_sending) {
            result = request(None, proxy, host);
        }
        match result {
            Ok((answer, kept)) if (200..300).contains(&answer.status) => {
                shared.served.fetch_add(1, Ordering::Relaxed);
                if let Some(version) = answer.version {
                    let mut counts = shared
                        .by_version
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *counts.entry(version).or_default() += 1;
                }
                connection = kept;
            }
            Ok((answer, kept)) => {
                failed(shared, format!("status {}", answer.status));
                connection = kept;
            }
            Err(error) => failed(shared, error.to_string()),
        }
    }
}

fn failed(shared: &Shared, why: String) {
    shared.failed.fetch_add(1, Ordering::Relaxed);
    shared
        .first_failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(why);
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The version that gave it.
    pub version: Option<String>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The connection was closed before a byte of the answer came.
    #[error("the connection was closed")]
    Closed,
    /// Anything else.
    #[error("{0}")]
    Io(io::Error),
}

impl Unanswered {
    fn before_sending(&self) -> bool {
        matches!(self, Self::Closed)
            || matches!(self, Self::Io(error) if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ))
    }
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One `GET /`; gives the connection back where it can be used again.
pub fn request(
    kept: Option<BufReader<TcpStream>>,
    proxy: SocketAddr,
    host: &str,
) -> Result<(Answer, Option<BufReader<TcpStream>>), Unanswered> {
    let mut connection = match kept {
        Some(kept) => kept,
        None => {
            let stream = TcpStream::connect_timeout(&proxy, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            BufReader::new(stream)
        }
    };
    let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: beanpole-demo\r\n\r\n");
    connection.get_mut().write_all(text.as_bytes())?;
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Err(Unanswered::Closed);
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let (mut length, mut close, mut version) = (None, false, None);
    loop {
        line.clear();
        connection.read_line(&mut line)?;
        let header = line.trim();
        if header.is_empty() {
            break;
        }
        let Some((name, value)) = header.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse::<u64>().ok(),
            "connection" => close = value.eq_ignore_ascii_case("close"),
            "x-demo-version" => version = Some(value.to_owned()),
            _ => {}
        }
    }
    // Without a length the end of the body is the end of the connection.
    let Some(length) = length.filter(|length| *length <= LONGEST_BODY) else {
        return Ok((Answer { status, version }, None));
    };
    let mut body = vec![0; usize::try_from(length).unwrap_or_default()];
    connection.read_exact(&mut body)?;
    Ok((Answer { status, version }, (!close).then_some(connection)))
}
