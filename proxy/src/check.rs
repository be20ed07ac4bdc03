//! Active checks: one task per target asks it, in words for people says what came back.

use crate::fault;
use crate::target::{TargetState, lock};
use beanpole_daemon::rarely::Rarely;
use beanpole_protocol::proxy::{CheckResult, HealthCheck, NOT_HTTP, Probe, TargetMode, TriedCheck};
use futures::stream::{FuturesUnordered, StreamExt};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// From one check to the next while a deployment waits for the target, which gets no requests yet.
const EAGER_INTERVAL_MS: u64 = 50;
/// The same for one that should get requests and is not well.
const SICK_INTERVAL_MS: u64 = 100;
/// Least time between checks, whatever asks for them.
const LEAST_GAP: Duration = Duration::from_millis(20);
/// Checks of one target that may be under way.
const MOST_AT_ONCE: usize = 3;
/// After how long without an answer to a check a target counts as silent: other targets are asked
/// before it, long before its checks have failed.
const SILENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether requests wait in vain, which asks for a check; and the least time
/// between two checks for that reason.
const LOOK: Duration = Duration::from_millis(500);
const LEAST_WATCHED: Duration = Duration::from_secs(1);
/// Longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
/// Most headers of an answer.
const MOST_HEADERS: usize = 256;
/// How much of an answer's body is read, so that the app sees its answer taken and no reset.
const TAKEN_BODY: usize = 64 * 1024;
/// How long that may take.
const TAKING_TIME: Duration = Duration::from_millis(250);

/// Checks that this machine could not make.
static NOT_ASKED: Rarely = Rarely::new();

/// Checks `target` at once and then again and again, until it has left the table.
pub fn start(target: Arc<TargetState>) {
    tokio::spawn(async move {
        let gone = target.gone.clone();
        gone.run_until_cancelled(run(&target)).await;
    });
}

/// Tries another check on `target` until it is known how it goes, or nobody wants to know.
pub fn try_out(target: Arc<TargetState>, tried: Arc<Mutex<TriedCheck>>) {
    tokio::spawn(async move {
        let gone = target.gone.clone();
        let plan = lock(&tried).check.clone();
        let pause = Duration::from_millis(plan.awaited_interval_ms(SICK_INTERVAL_MS));
        let tries = async {
            loop {
                let due = Instant::now() + pause;
                let outcome = check(target.target.address, &plan).await;
                // What this machine could not ask says nothing.
                if !outcome.ours && !target.tried(&tried, outcome.result()) {
                    break;
                }
                sleep_until(due).await;
            }
        };
        gone.run_until_cancelled(tries).await;
    });
}

async fn run(target: &TargetState) {
    let mut asked = FuturesUnordered::new();
    // When the checks began that got no answer, and none that began later did.
    let mut unheard: Vec<Instant> = Vec::new();
    let mut waiting = Waiting::default();
    loop {
        target.keep_time();
        let begun = Instant::now();
        // A check without an answer keeps no other one waiting: a target that hangs reaches the
        // threshold one interval after the other, not one time-out after the other.
        if asked.len() < MOST_AT_ONCE {
            asked.push(ask_now(target));
            if unheard.len() < MOST_AT_ONCE {
                unheard.push(begun);
            }
        }
        let due = begun + interval(target);
        let soon = due.min(begun + LEAST_WATCHED);
        loop {
            tokio::select! {
                Some((from, outcome)) = asked.next() => {
                    if outcome.ours {
                        unheard.retain(|begun| *begun != from);
                        if let Some(checks) = NOT_ASKED.again() {
                            tracing::warn!(checks, why = outcome.answer,
                                "this machine is short of what checks take: targets stay as they were");
                        }
                        target.unchecked(format!("not asked: {}", outcome.answer));
                        continue;
                    }
                    if outcome.heard {
                        asked.clear();
                        unheard.retain(|begun| *begun > from);
                    }
                    target.checked(outcome.result());
                }
                () = sleep_until(due) => break,
                () = target.nudge.notified() => {
                    sleep(LEAST_GAP).await;
                    break;
                }
                () = sleep(LOOK) => {
                    if waiting.in_vain(target) && asked.is_empty() && Instant::now() >= soon {
                        break;
                    }
                }
            }
            target.keep_time();
            let silence = SILENCE.min(Duration::from_millis(target.plan.load().timeout_ms));
            target.falls_silent(
                unheard
                    .first()
                    .is_some_and(|begun| begun.elapsed() >= silence),
            );
        }
    }
}

async fn ask_now(target: &TargetState) -> (Instant, Outcome) {
    let begun = Instant::now();
    let plan = target.plan.load_full();
    (begun, check(target.target.address, &plan).await)
}

/// What requests tell between checks.
#[derive(Default)]
struct Waiting {
    requests: u32,
    answers: u32,
}

impl Waiting {
    /// Whether requests have been waiting since the last look, and none has been answered.
    fn in_vain(&mut self, target: &TargetState) -> bool {
        let (requests, answers) = target.answering();
        let vain = self.requests > 0 && requests > 0 && answers == self.answers;
        *self = Self { requests, answers };
        vain
    }
}

/// How a check ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it counts as good.
    pub good: bool,
    /// Whether a connection came about.
    pub connected: bool,
    /// Whether something came back, good or bad.
    heard: bool,
    /// Whether the target was not asked, for want of something here.
    ours: bool,
    /// What was asked, in words.
    asked: String,
    /// What came back, in words.
    pub answer: String,
}

impl Outcome {
    fn result(self) -> CheckResult {
        CheckResult {
            at: beanpole_daemon::clock::now(),
            asked: self.asked,
            good: self.good,
            connected: self.connected,
            answer: self.answer,
        }
    }
}

fn interval(target: &TargetState) -> Duration {
    let plan = target.plan.load();
    let wanted = match target.mode() {
        TargetMode::Probe if target.is_awaited() => plan.awaited_interval_ms(EAGER_INTERVAL_MS),
        // One that is back is needed at once, however far apart the checks are.
        TargetMode::Serve if target.is_awaited() => plan.interval_ms.min(SICK_INTERVAL_MS),
        _ => plan.interval_ms,
    };
    let wanted = Duration::from_millis(wanted);
    // Up to a tenth less, so that checks of many targets do not fall together.
    let tenth = u64::try_from(wanted.as_micros() / 10).unwrap_or(0);
    let less = beanpole_daemon::clock::random_bits() as u64 % (tenth + 1);
    wanted.saturating_sub(Duration::from_micros(less))
}

/// Asks once.
pub async fn check(address: SocketAddr, plan: &HealthCheck) -> Outcome {
    let limit = Duration::from_millis(plan.timeout_ms);
    let begun = Instant::now();
    let mut connected = false;
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        connected = true;
        match &plan.probe {
            Probe::Tcp => Ok(None),
            Probe::Http { path, .. } => ask(stream, address, path).await.map(Some),
        }
    };
    let outcome = timeout(limit, asked).await;
    let ms = begun.elapsed().as_millis();
    let heard = outcome.is_ok();
    let ours = matches!(&outcome, Ok(Err(error)) if fault::is_ours(error));
    let (good, answer) = match (outcome, &plan.probe) {
        (Err(_), _) => {
            let what = if connected { "answer" } else { "connection" };
            (false, format!("no {what} within {} ms", plan.timeout_ms))
        }
        (Ok(Err(error)), _) if ours => (false, format!("the load balancer has no room ({error})")),
        (Ok(Err(error)), _) => (false, in_words(&error)),
        (Ok(Ok(Some(status))), Probe::Http { statuses, .. }) => {
            let good = statuses
                .iter()
                .any(|(low, high)| (*low..=*high).contains(&status));
            let answer = if good {
                format!("{status} in {ms} ms")
            } else {
                format!("{status} in {ms} ms, wanted {}", ranges(statuses))
            };
            (good, answer)
        }
        (Ok(Ok(_)), _) => (true, format!("connected in {ms} ms")),
    };
    Outcome {
        good,
        asked: plan.probe.to_string(),
        connected,
        heard,
        ours,
        answer,
    }
}

fn ranges(statuses: &[(u16, u16)]) -> String {
    let words: Vec<String> = statuses
        .iter()
        .map(|(low, high)| {
            if low == high {
                low.to_string()
            } else {
                format!("{low}-{high}")
            }
        })
        .collect();
    words.join(" or ")
}

/// What went wrong with a connection, in words for people.
pub fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "connection closed without an answer".to_owned(),
        _ => error.to_string(),
    }
}

async fn ask(mut stream: TcpStream, address: SocketAddr, path: &str) -> io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Beanpole-HealthCheck/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(1024);
    let status = loop {
        if let Some(status) = status_of(&mut head)? {
            break status;
        }
        if head.len() > LONGEST_HEAD {
            return Err(io::Error::other(NOT_HTTP));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    // The answer is known; one that goes on, or keeps the connection open, holds nobody up.
    let rest = async move {
        let mut sink = [0u8; 4096];
        let mut taken = 0;
        while taken < TAKEN_BODY {
            match stream.read(&mut sink).await {
                Ok(count) if count > 0 => taken += count,
                _ => break,
            }
        }
    };
    tokio::spawn(timeout(TAKING_TIME, rest));
    Ok(status)
}

/// The status of the first final answer in `head`, once its head is whole: one that never ends answers no
/// request either. Interim answers (1xx) are dropped from `head`.
fn status_of(head: &mut Vec<u8>) -> io::Result<Option<u16>> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        // As lenient as with the answers to requests.
        let mut parser = httparse::ParserConfig::default();
        parser.allow_spaces_after_header_name_in_responses(true);
        parser.allow_obsolete_multiline_headers_in_responses(true);
        let end = match parser.parse_response(&mut answer, head) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(io::Error::other(NOT_HTTP)),
        };
        match answer.code {
            Some(100..200) => drop(head.drain(..end)),
            status => return Ok(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn answering(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn answers_are_told_in_words() {
        let plan = HealthCheck::default();
        let ok = answering(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
        let Outcome { good, answer, .. } = check(ok, &plan).await;
        assert!(good && answer.starts_with("200 in "), "{answer}");

        let endless = answering(b"HTTP/1.1 200 OK\r\nServer: x\r\n").await;
        let Outcome { good, answer, .. } = check(endless, &plan).await;
        assert!(!good, "{answer}");

        let Outcome { good, answer, .. } =
            check(answering(b"HTTP/1.1 500 No\r\n\r\n").await, &plan).await;
        assert!(!good && answer.ends_with(", wanted 200-399"), "{answer}");

        let Outcome { good, answer, .. } = check(answering(b"SSH-2.0-x\r\n").await, &plan).await;
        assert!(!good && answer == NOT_HTTP, "{answer}");

        let Outcome { good, answer, .. } = check(answering(b"").await, &plan).await;
        assert!(
            !good && answer == "connection closed without an answer",
            "{answer}"
        );
    }

    #[tokio::test]
    async fn silence_and_refusal_are_bad() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let plan = HealthCheck {
            timeout_ms: 50,
            ..HealthCheck::default()
        };
        assert_eq!(check(address, &plan).await.answer, "no answer within 50 ms");
        let tcp = HealthCheck {
            probe: Probe::Tcp,
            ..plan.clone()
        };
        assert!(check(address, &tcp).await.good);
        drop(listener);
        assert_eq!(check(address, &plan).await.answer, "connection refused");
    }
}
