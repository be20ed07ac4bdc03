//! Active checks: one task per target asks it, in words for people says what came back.

mod grpc;
mod http1;
mod http2;

use crate::announcing;
use crate::fault;
use crate::target::{TargetState, lock};
use beanpole_daemon::rarely::Rarely;
use beanpole_protocol::proxy::{
    BodyMatch, CheckResult, HealthCheck, Probe, ProxyProtocol, TargetMode, TriedCheck, grpc_code,
};
use futures::stream::{FuturesUnordered, StreamExt};
use regex::bytes::Regex;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

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
/// Who asks, as applications are told.
const USER_AGENT: &str = concat!("Beanpole-HealthCheck/", env!("CARGO_PKG_VERSION"));

/// Checks that this machine could not make.
static NOT_ASKED: Rarely = Rarely::new();

/// Checks `target` at once and then again and again, until it has left the table or `enough`.
pub fn start(target: Arc<TargetState>, enough: CancellationToken) {
    tokio::spawn(async move {
        let gone = target.gone.clone();
        let checks = gone.run_until_cancelled(run(&target));
        enough.run_until_cancelled(checks).await;
    });
}

/// Tries another check on `target` until it is known how it goes, or nobody wants to know.
pub fn try_out(target: Arc<TargetState>, tried: Arc<Mutex<TriedCheck>>) {
    tokio::spawn(async move {
        let gone = target.gone.clone();
        let announce = target.target.upstream.announce;
        let plan = Plan::new(lock(&tried).check.clone(), announce);
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

/// A check, with what its answers are compared with made ready.
#[derive(Debug)]
pub struct Plan {
    check: HealthCheck,
    regex: Option<Regex>,
    /// The connection begins by saying that it is of nobody, in this version of the PROXY protocol.
    announce: Option<ProxyProtocol>,
}

impl Plan {
    /// Of a check that the table has been looked at for: one whose pattern is none matches nothing.
    pub fn new(check: HealthCheck, announce: Option<ProxyProtocol>) -> Self {
        let body = match &check.probe {
            Probe::Http { details, .. } => details.body.as_ref(),
            Probe::Grpc { .. } | Probe::Tcp => None,
        };
        let regex = body.and_then(|body| body.regex().ok().flatten());
        Self {
            check,
            regex,
            announce,
        }
    }

    /// Whether a body is what `wanted` says.
    fn matches(&self, wanted: &BodyMatch, body: &[u8]) -> bool {
        match wanted {
            BodyMatch::Contains(text) => {
                let text = text.as_bytes();
                body.windows(text.len().max(1)).any(|part| part == text)
            }
            BodyMatch::Matches(_) => self
                .regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(body)),
        }
    }

    /// Whether an answer is good, and how it is told.
    fn judge(&self, came: &Came, ms: u128) -> (bool, String) {
        match (&self.probe, came) {
            (
                Probe::Http {
                    statuses, details, ..
                },
                Came::Http { status, body },
            ) => {
                if !within(*status, statuses) {
                    return (
                        false,
                        format!("{status} in {ms} ms, wanted {}", ranges(statuses)),
                    );
                }
                match &details.body {
                    Some(wanted) if !self.matches(wanted, body) => (
                        false,
                        format!("{status} in {ms} ms, but the body does not {wanted}"),
                    ),
                    _ => (true, format!("{status} in {ms} ms")),
                }
            }
            (Probe::Grpc { codes, .. }, Came::Grpc { code, serving }) => {
                let name = match serving {
                    Some(serving) if *code == 0 => grpc::serving(*serving).to_owned(),
                    _ => grpc_code(*code),
                };
                let good = within(*code, codes) && (*code != 0 || *serving == Some(grpc::SERVING));
                if good {
                    return (true, format!("{name} in {ms} ms"));
                }
                let health = within(0, codes).then(|| "SERVING".to_owned());
                let others = codes.iter().filter(|codes| **codes != (0, 0));
                let others = others.map(|codes| format!("status {}", ranges(&[*codes])));
                let wanted: Vec<String> = health.into_iter().chain(others).collect();
                (
                    false,
                    format!("{name} in {ms} ms, wanted {}", wanted.join(" or ")),
                )
            }
            (_, Came::Http { status, .. }) => (
                false,
                format!("{status} in {ms} ms, wanted an answer of gRPC"),
            ),
            _ => (true, format!("connected in {ms} ms")),
        }
    }
}

impl Deref for Plan {
    type Target = HealthCheck;

    fn deref(&self) -> &HealthCheck {
        &self.check
    }
}

/// What came of what was asked.
enum Came {
    /// A connection, and nothing else was wanted.
    Connected,
    /// An answer, with its body as far as it is looked at.
    Http { status: u16, body: Vec<u8> },
    /// The status of a call, and what it says of the service, if it does.
    Grpc { code: u16, serving: Option<u64> },
}

/// Asks once.
pub async fn check(address: SocketAddr, plan: &Plan) -> Outcome {
    let limit = Duration::from_millis(plan.timeout_ms);
    let begun = Instant::now();
    let mut connected = false;
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        connected = true;
        if let Some(version) = plan.announce {
            stream
                .write_all(&announcing::preface(version, None)?)
                .await?;
        }
        match &plan.probe {
            Probe::Tcp => Ok(Came::Connected),
            Probe::Http {
                path,
                details,
                statuses,
            } => {
                let asks = Asks {
                    address,
                    path,
                    headers: &details.headers,
                    // What is bad by its status is bad whatever it says.
                    body_of: |status| details.body.is_some() && within(status, statuses),
                };
                if details.http2 {
                    http2::ask(stream, &asks, limit).await
                } else {
                    http1::ask(stream, &asks).await
                }
            }
            Probe::Grpc { service, .. } => grpc::ask(stream, address, service, limit).await,
        }
    };
    let outcome = timeout(limit, asked).await;
    let ms = begun.elapsed().as_millis();
    let heard = outcome.is_ok();
    let ours = matches!(&outcome, Ok(Err(error)) if fault::is_ours(error));
    let (good, answer) = match outcome {
        Err(_) => {
            let what = if connected { "answer" } else { "connection" };
            (false, format!("no {what} within {} ms", plan.timeout_ms))
        }
        Ok(Err(error)) if ours => (false, format!("the load balancer has no room ({error})")),
        Ok(Err(error)) => (false, in_words(&error)),
        Ok(Ok(came)) => plan.judge(&came, ms),
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

/// A path, and how it is asked for.
struct Asks<'a, F> {
    address: SocketAddr,
    path: &'a str,
    headers: &'a [(String, String)],
    /// Whether the body of an answer with that status is looked at.
    body_of: F,
}

impl<'a, F> Asks<'a, F> {
    /// The header of that name, in lower case, that is set.
    fn header(&self, name: &str) -> Option<&'a str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(set, _)| set == name)
            .map(|(_, value)| value.as_str())
    }

    /// Of whom it is asked.
    fn host(&self) -> String {
        self.header("host")
            .map_or_else(|| self.address.to_string(), ToOwned::to_owned)
    }

    /// What is sent besides the host.
    fn all_headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let usual = [("user-agent", USER_AGENT), ("accept", "*/*")];
        let usual: Vec<_> = usual
            .into_iter()
            .filter(|(name, _)| self.header(name).is_none())
            .collect();
        let set = self.headers.iter().filter(|(name, _)| name != "host");
        let set = set.map(|(name, value)| (name.as_str(), value.as_str()));
        usual.into_iter().chain(set)
    }
}

fn within(number: u16, ranges: &[(u16, u16)]) -> bool {
    ranges
        .iter()
        .any(|(low, high)| (*low..=*high).contains(&number))
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

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::proxy::{HttpDetails, NOT_HTTP};
    use tokio::io::AsyncReadExt;
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
        let plan = Plan::new(HealthCheck::default(), None);
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
        let quick = HealthCheck {
            timeout_ms: 50,
            ..HealthCheck::default()
        };
        let plan = Plan::new(quick.clone(), None);
        assert_eq!(check(address, &plan).await.answer, "no answer within 50 ms");
        let tcp = Plan::new(
            HealthCheck {
                probe: Probe::Tcp,
                ..quick
            },
            None,
        );
        assert!(check(address, &tcp).await.good);
        drop(listener);
        assert_eq!(check(address, &plan).await.answer, "connection refused");
    }

    fn wanting(body: BodyMatch, headers: &[(&str, &str)]) -> Plan {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Plan::new(
            HealthCheck {
                probe: Probe::Http {
                    path: "/up".to_owned(),
                    statuses: vec![(200, 299)],
                    details: HttpDetails {
                        headers: headers.collect(),
                        body: Some(body),
                        http2: false,
                    },
                },
                timeout_ms: 1_000,
                ..HealthCheck::default()
            },
            None,
        )
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_end_however_that_is_told() {
        let plan = wanting(BodyMatch::Matches("^(ok|ready)$".to_owned()), &[]);
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nre\r\n3\r\nady\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nready",
        ] {
            let Outcome { good, answer, .. } =
                check(answering(answer.as_bytes()).await, &plan).await;
            assert!(good, "{answer}");
        }
        let other = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nalready").await;
        let Outcome { good, answer, .. } = check(other, &plan).await;
        assert!(!good, "{answer}");
        let wrong = answer.split_once(" ms, ").expect("a reason").1;
        assert_eq!(wrong, "but the body does not match /^(ok|ready)$/");
        let bad = answering(b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nready").await;
        let answer = check(bad, &plan).await.answer;
        assert!(answer.ends_with(", wanted 200-299"), "{answer}");
    }

    #[tokio::test]
    async fn a_body_without_an_end_is_looked_at_as_far_as_its_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nready").await;
                while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            }
        });
        let plan = wanting(BodyMatch::Contains("ready".to_owned()), &[]);
        assert!(check(address, &plan).await.good);
        let plan = wanting(BodyMatch::Contains("never".to_owned()), &[]);
        let answer = check(address, &plan).await.answer;
        assert!(
            answer.ends_with("but the body does not contain \"never\""),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn headers_that_are_set_take_the_place_of_the_usual_ones() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a check");
            let mut head = vec![0; 1024];
            let count = stream.read(&mut head).await.expect("a head");
            head.truncate(count);
            String::from_utf8(head).expect("text")
        });
        let set = [
            ("host", "shop.example"),
            ("x-probe", "1"),
            ("accept", "text/x"),
        ];
        let plan = wanting(BodyMatch::Contains("x".to_owned()), &set);
        check(address, &plan).await;
        let head = asked.await.expect("no panic");
        assert!(
            head.starts_with("GET /up HTTP/1.1\r\nHost: shop.example\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\nX-Probe: 1\r\n"), "{head}");
        assert!(head.contains("\r\nAccept: text/x\r\n"), "{head}");
        assert_eq!(head.matches("Accept").count(), 1, "{head}");
        assert!(
            head.contains("\r\nUser-Agent: Beanpole-HealthCheck/"),
            "{head}"
        );
    }
}
