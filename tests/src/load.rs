//! A load generator: a fixed rate over kept-alive connections. Every request that does not get the
//! application's own 200 counts as failed, a connection that breaks between two requests too.

use crate::http::Connection;
use crate::wait;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Load that runs until [`Load::stop`].
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Outcome>>,
    started: Instant,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests sent.
    pub sent: u64,
    /// Requests that failed.
    pub failed: u64,
    /// What the first failures were.
    pub failures: Vec<String>,
    /// The first word of the answer (the application's version) and how often it came.
    pub versions: BTreeMap<String, u64>,
    /// Latencies in microseconds, sorted.
    pub latencies_us: Vec<u64>,
    /// How long the load ran.
    pub lasted: Duration,
}

impl Outcome {
    /// The latency that `share` (0.0 to 1.0) of the requests stay within, in microseconds.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * share) as usize;
        self.latencies_us.get(at).copied().unwrap_or(0)
    }

    /// Requests per second, as sent.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.lasted.as_secs_f64().max(0.001)
    }
}

impl Load {
    /// Sends `rate` requests a second for `/` of `host` to `proxy`, over `connections` connections.
    pub fn start(proxy: SocketAddr, host: &str, rate: u32, connections: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let between = Duration::from_secs(1) * connections / rate;
        let workers = (0..connections)
            .map(|number| {
                let (stop, host) = (stop.clone(), host.to_owned());
                // Spread the workers over the interval.
                let first = started + between * number / connections;
                std::thread::spawn(move || work(proxy, &host, first, between, &stop))
            })
            .collect();
        Self {
            stop,
            workers,
            started,
        }
    }

    /// Ends it and sums up.
    ///
    /// # Panics
    /// When a worker did.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for worker in self.workers {
            let one = worker.join().expect("a worker of the load does not panic");
            all.sent += one.sent;
            all.failed += one.failed;
            all.failures.extend(one.failures);
            all.latencies_us.extend(one.latencies_us);
            for (version, count) in one.versions {
                *all.versions.entry(version).or_default() += count;
            }
        }
        all.latencies_us.sort_unstable();
        all.failures.truncate(20);
        all.lasted = self.started.elapsed();
        all
    }
}

fn work(
    proxy: SocketAddr,
    host: &str,
    first: Instant,
    between: Duration,
    stop: &AtomicBool,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = None;
    let mut next = first;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < next {
            wait::pause(next - now);
        }
        let start = Instant::now();
        outcome.sent += 1;
        let answer = match connection.take() {
            Some(open) => Ok(open),
            None => Connection::open(proxy, Duration::from_secs(10)),
        }
        .and_then(|mut open: Connection| {
            let answer = open.send("GET", host, "/", &[], b"")?;
            if !open.closing {
                connection = Some(open);
            }
            Ok(answer)
        });
        let failure = match answer {
            Ok(answer) if answer.status == 200 => {
                let took = start.elapsed().as_micros();
                outcome
                    .latencies_us
                    .push(u64::try_from(took).unwrap_or(u64::MAX));
                let text = answer.text();
                let version = text.split_whitespace().next().unwrap_or("?").to_owned();
                *outcome.versions.entry(version).or_default() += 1;
                None
            }
            Ok(answer) => Some(format!("{}: {}", answer.status, answer.text().trim())),
            Err(error) => Some(format!("{:?}: {error}", error.kind())),
        };
        if let Some(failure) = failure {
            outcome.failed += 1;
            if outcome.failures.len() < 5 {
                let at = first.elapsed().as_millis();
                let short: String = failure.chars().take(200).collect();
                outcome.failures.push(format!("at {at} ms: {short}"));
            }
        }
        // A late worker does not make up for what it missed in a burst.
        next = (next + between).max(Instant::now().checked_sub(between).unwrap_or(next));
    }
    outcome
}
