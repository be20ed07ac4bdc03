//! What the controller and a proxy say to each other: HTTP over the proxy's Unix socket.
//!
//! | Call | Meaning |
//! |---|---|
//! | `PUT /v1/table` | a [`RoutingTable`]; answered after it is in force for every new request and on disk. 409 `stale-generation`, 409 `generation-reused` as for an agent's orders, 422 `invalid-table` changes nothing |
//! | `PUT /v1/table/next` | a [`RoutingTable`], refused as above; answered when it is on disk and can be put in force at once |
//! | `POST /v1/table/next` | a [`Ready`]: puts that table in force; answered as `PUT /v1/table`. 409 `not-ready` where another one is, or none |
//! | `GET /v1/pages` | the digests of the pages that are there |
//! | `PUT /v1/pages/DIGEST` | a [`PageText`](crate::content::PageText); answered when it is on disk. It stays while a table that is in force, or ready, names it: pages come before their table. 422 `invalid-page` |
//! | `GET /v1/static` | the [sets of static files](crate::statics::StaticSet) of which every file is there |
//! | `PUT /v1/static/SET` | a [`StaticSet`](crate::statics::StaticSet); answered with the digests of the files that are lacking, after which come those. It stays while the table that is in force names it. 422 `invalid-static-files` |
//! | `POST /v1/static/SET` | files of it, one after the other, each behind a [head](crate::statics::FileHead); answered when they are on disk. What came before the connection broke is kept. 404 `static-set-not-found`, 422 `invalid-static-files` |
//! | `GET /v1/report` | a [`ProxyReport`] |
//! | `GET /v1/requests/ID` | a [`TracedRequest`], once that request is over; 404 `request-not-found` after a second |
//! | `GET /v1/watch` | a stream of [`ProxyReport`]s as JSON lines: one at once, one after each change of a target's state (ten a second in the long run, twenty at once), one at least every 2 s |

mod capacity;
mod probe;
mod processes;
mod rules;
mod stream;
mod upstream;

pub use capacity::{Capacity, Retries};
pub use probe::{
    BodyMatch, HttpDetails, LAST_GRPC_CODE, LONGEST_PATTERN, MATCHED_BODY, answered, grpc_code,
};
pub use rules::RouteRule;
pub use stream::{Stream, StreamMode, StreamReport};
pub use upstream::{ProxyProtocol, Upstream, UpstreamProtocol};

use crate::content::PoolContent;
use crate::latency::Latencies;
use crate::statics::StaticFiles;
use crate::{
    ApplicationName, Digest, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Where every request goes. An immutable value, replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingTable {
    /// Rises with every change of content.
    pub generation: Generation,
    /// Hostnames and where they lead.
    pub routes: Vec<Route>,
    /// The instances that share traffic.
    pub pools: Vec<TargetPool>,
    /// Where connections go that are no requests to this proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
}

impl RoutingTable {
    /// The pages that it names.
    pub fn pages(&self) -> BTreeSet<&Digest> {
        let pools = self.pools.iter();
        pools.flat_map(|pool| pool.content.all_pages()).collect()
    }

    /// The static files that it names, each set once; those in service come before those that are on their way.
    pub fn static_files(&self) -> Vec<&StaticFiles> {
        let pools = self.pools.iter();
        let mut all: Vec<_> = pools.flat_map(|pool| &pool.content.static_files).collect();
        all.sort_by_key(|files| files.coming);
        let mut seen = BTreeSet::new();
        all.retain(|files| seen.insert(&files.set));
        all
    }
}

/// Which table that was made ready is put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its generation.
    pub generation: Generation,
}

/// A hostname, or a part of its paths, and what answers there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Lower-case, without a port. `*.example.org` is every name below `example.org`, `*` every name; the most
    /// exact one counts.
    pub host: String,
    /// Patterns of paths, in which `*` stands for any characters and `?` for one, as in Elastic Beanstalk's
    /// listener rules. None: whatever no other route of the host takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Which of the host's routes with patterns is tried first: the lowest. Among equals, the longest pattern.
    #[serde(default)]
    pub priority: u32,
    /// The pools and their shares. Weights are relative; a pool of weight 0 gets nothing.
    pub pools: Vec<WeightedPool>,
    /// What goes to other pools: by the first of these that is for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RouteRule>,
    /// What keeps a client at the pool that it came to first, where there are several.
    #[serde(default)]
    pub sticky: Option<Sticky>,
    /// Where clients are sent instead of to the pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Clients that come over plain HTTP are sent to HTTPS, where the proxy serves it.
    #[serde(default)]
    pub only_https: bool,
}

/// Where clients are sent: the same path and query of another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Lower-case, without a port.
    pub host: String,
    /// Over HTTPS in any case; else as the client came.
    #[serde(default)]
    pub https: bool,
}

/// What keeps a client at one pool of a route. Each client has a number, by which the shares are dealt:
/// one that a pool's share takes in stays in as the share grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// A cookie, given with the first answer.
    Cookie,
    /// The value of this header of its requests, in lower case; a request without one goes by turns.
    Header(String),
}

/// A pool and its share of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedPool {
    /// The [`TargetPool::name`].
    pub pool: String,
    /// Its share, relative to the others of the route.
    pub weight: u32,
}

/// Instances that share traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetPool {
    /// Unique in the table.
    pub name: String,
    /// The environment it belongs to.
    pub environment: EnvironmentId,
    /// Its name, for pages and logs.
    pub environment_name: EnvironmentName,
    /// Its application, for pages and logs.
    pub application: ApplicationName,
    /// Who gets the next request.
    pub algorithm: Algorithm,
    /// Requests wait while no instance can take them; absent: they get a 503 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// What else decides about that.
    #[serde(default)]
    pub rules: PoolRules,
    /// What requests may take.
    #[serde(default)]
    pub limits: PoolLimits,
    /// What is done to answers.
    #[serde(default, skip_serializing_if = "PoolContent::is_nothing")]
    pub content: PoolContent,
    /// The instances.
    pub targets: Vec<Target>,
}

/// What requests may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLimits {
    /// How long an instance, or a client, may stay silent over a request, in milliseconds.
    pub idle_ms: u64,
    /// The largest body of a request, in bytes; any where 0.
    pub body_bytes: u64,
    /// How long an answer may take to begin, in milliseconds; as long as it likes where 0.
    #[serde(default)]
    pub answer_ms: u64,
    /// How long a request may take from its head to the end of its answer, in milliseconds; as long as it likes
    /// where 0. Of no WebSocket.
    #[serde(default)]
    pub whole_ms: u64,
    /// How many requests may come.
    #[serde(default)]
    pub rates: Rates,
    /// How many may be in flight.
    #[serde(default)]
    pub capacity: Capacity,
    /// How many may be sent again.
    #[serde(default)]
    pub retries: Retries,
}

/// How many requests may come to an environment at each proxy; more get a 429.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// All of them.
    pub all: Rate,
    /// Those of one client, by its address (of IPv6, its /64).
    pub by_client: Rate,
}

/// A number of requests for each second, and how many may come at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Any where 0.
    pub per_second: u32,
    /// As many as in a second where 0.
    pub burst: u32,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            idle_ms: 60_000,
            body_bytes: 0,
            answer_ms: 0,
            whole_ms: 0,
            rates: Rates::default(),
            capacity: Capacity::default(),
            retries: Retries::default(),
        }
    }
}

/// How requests wait for an instance. Their bodies stay where they are, with their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// How long each waits at most, in milliseconds.
    pub for_ms: u64,
    /// How many wait at a time, in each proxy; others get a 503 at once.
    pub most: u32,
}

/// Who gets the next request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
    /// Of two that are drawn, the one that would answer first: by how long its answers lately took to
    /// begin (a moving average that follows peaks at once), and how many requests it has in flight.
    PeakEwma,
    /// Always the same for the same [`PoolRules::hash_by`], unless it has more than its share.
    ConsistentHash,
}

/// What decides who gets the next request, besides an [`Algorithm`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRules {
    /// What requests are told apart by under [`Algorithm::ConsistentHash`].
    #[serde(default)]
    pub hash_by: HashBy,
    /// What keeps a client at the target that it came to first, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Stickiness>,
    /// When a target is to get no requests for a while because of how it answered them, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outliers: Option<Outliers>,
    /// How long the share of a target grows that begins to get requests, or gets them again, in milliseconds;
    /// 0 where it has all of it at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slow_start_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// When a target is ejected, and for how long: what passes its checks may fail requests all the same. At least
/// one other target that is well always stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outliers {
    /// After so many requests in a row without an answer of it (none in time, one that breaks off, a status
    /// of 502 to 504); 0 for never.
    pub failures: u32,
    /// After so many requests in a row that were answered with a status of 500 or above, or not; 0 for never.
    pub errors: u32,
    /// When so many per cent of the requests within a window were; 0 for never.
    pub error_percent: u8,
    /// How long a window is, in seconds.
    pub window_s: u32,
    /// For how long, in seconds, the first time; longer each time that comes soon after another.
    pub lasts_s: u32,
    /// How many per cent of the targets at most, 1 to 100. One always may be.
    pub most_percent: u8,
}

/// Why a target gets no requests for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejection {
    /// For people: `5 requests in a row failed`.
    pub why: String,
    /// For how long altogether, in milliseconds.
    pub lasts_ms: u64,
    /// How much of that is left, in milliseconds.
    pub left_ms: u64,
    /// How many times one soon after the other.
    pub times: u32,
}

/// What keeps a client at one target of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stickiness {
    /// A cookie that is given with the first answer.
    Cookie {
        /// How long the client keeps it, in seconds.
        lasts_s: u32,
    },
    /// The client's address.
    Address,
    /// The value of this header of its requests, in lower case; one without it goes by the algorithm.
    Header(String),
}

/// What requests are told apart by. Those that lack it go by turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashBy {
    /// The client's address, as its nearest proxy that is not trusted has it.
    #[default]
    Address,
    /// The path, without the query.
    Path,
    /// The value of this header, in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// How a target is checked, and when it counts as healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// From one check to the next, in milliseconds.
    pub interval_ms: u64,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Good checks in a row after which an unhealthy target is healthy.
    pub healthy_threshold: u32,
    /// Bad checks in a row after which a healthy target is unhealthy.
    pub unhealthy_threshold: u32,
}

impl HealthCheck {
    /// From one check to the next while somebody waits for it, in milliseconds: `most_ms`, unless the checks are
    /// to be more than a second apart. Whoever asks for that wants as much time between the answers that count.
    pub fn awaited_interval_ms(&self, most_ms: u64) -> u64 {
        if self.interval_ms <= 1_000 {
            self.interval_ms.min(most_ms)
        } else {
            self.interval_ms
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::default(),
            interval_ms: 1_000,
            timeout_ms: 5_000,
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// `GET path`, any status within one of the ranges is good.
    Http {
        /// Begins with `/`.
        path: String,
        /// Inclusive ranges of good statuses.
        statuses: Vec<(u16, u16)>,
        /// What else is asked and wanted.
        #[serde(default, skip_serializing_if = "HttpDetails::is_plain")]
        details: HttpDetails,
    },
    /// `grpc.health.v1.Health/Check` over HTTP/2 without TLS: `SERVING` is good, and so is any other of these
    /// statuses of the call.
    Grpc {
        /// Of which service; of the server as a whole where empty.
        service: String,
        /// Inclusive ranges of good statuses. Within OK (0), the service has to be `SERVING`.
        codes: Vec<(u16, u16)>,
    },
    /// A connection that is accepted is good.
    Tcp,
}

impl Default for Probe {
    fn default() -> Self {
        Self::Http {
            path: "/".to_owned(),
            statuses: vec![(200, 399)],
            details: HttpDetails::default(),
        }
    }
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { path, .. } => write!(f, "GET {path}"),
            Self::Grpc { service, .. } if service.is_empty() => f.write_str("gRPC health"),
            Self::Grpc { service, .. } => write!(f, "gRPC health of {service}"),
            Self::Tcp => f.write_str("TCP connect"),
        }
    }
}

/// A process of an instance as a target. Counters belong to (instance, process, incarnation): a new
/// incarnation starts from nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Which instance.
    pub instance: InstanceId,
    /// Which of its processes, by its name in the Procfile; empty for `web`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// The release it runs.
    pub release: ReleaseNumber,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is for.
    pub mode: TargetMode,
    /// How it is checked: as its release is to be. The release before may not have what the next one is
    /// asked for.
    #[serde(default)]
    pub check: HealthCheck,
    /// A check that is tried beside that one and decides nothing: whether it would pass is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<HealthCheck>,
    /// How it is spoken to.
    #[serde(default, skip_serializing_if = "Upstream::is_usual")]
    pub upstream: Upstream,
}

/// What a target is for.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum TargetMode {
    /// Checked, given no requests.
    Probe,
    /// Checked and given requests while healthy.
    Serve,
    /// Finishes what it has, given nothing new.
    Drain,
}

/// What a proxy sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Rises with every report of one run of the proxy.
    pub sequence: u64,
    /// Differs for every run of the proxy: counters start at zero in each.
    pub run: String,
    /// The proxy's version.
    pub version: String,
    /// The table in force.
    pub generation: Generation,
    /// The proxy's clock when it wrote this.
    pub now: Timestamp,
    /// Every target of the table in force.
    pub targets: Vec<TargetReport>,
    /// Every environment of the table in force.
    pub environments: Vec<EnvironmentTraffic>,
    /// Every release that a target of the table in force runs.
    #[serde(default)]
    pub releases: Vec<ReleaseTraffic>,
    /// The addresses it listens on.
    #[serde(default)]
    pub listeners: Vec<String>,
    /// How it goes with each port of the table's streams.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamReport>,
}

/// What the ids (`X-Request-Id`) of requests begin with of which a proxy can say later what became of them. It
/// remembers the last few.
pub const TRACED: &str = "why-";

/// What became of one request. Nothing of it that its client or the app wrote is in here, but its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TracedRequest {
    /// When it was over, by the proxy's clock.
    pub at: Timestamp,
    /// The table that was in force then.
    pub generation: Generation,
    /// What was answered; none if the client left before.
    pub status: Option<u16>,
    /// Why the proxy answered itself, as the `code` of its problem documents or `redirect`; `broken-off` where an answer of the app is not whole;
    /// none where an app answered.
    pub why: Option<String>,
    /// The name of the environment that it was for, where that is known.
    pub environment: Option<String>,
    /// The instance that was asked last, if one was.
    pub instance: Option<InstanceId>,
    /// The release that it ran.
    pub release: Option<ReleaseNumber>,
    /// From its head to the end of the answer, in microseconds.
    pub duration_us: u64,
}

/// What a proxy sees of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Which instance.
    pub instance: InstanceId,
    /// Which of its processes, as [`Target::process`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// What it is for, by the table in force.
    pub mode: TargetMode,
    /// Whether checks and traffic find it well.
    pub healthy: bool,
    /// Good checks in a row, up to now.
    pub good_checks: u32,
    /// How long ago the first of these was, in milliseconds.
    #[serde(default)]
    pub good_for_ms: u64,
    /// Bad checks in a row, up to now.
    pub bad_checks: u32,
    /// How long ago the first of these was, in milliseconds.
    #[serde(default)]
    pub bad_for_ms: u64,
    /// The last check.
    pub last_check: Option<CheckResult>,
    /// Requests being answered, WebSockets included.
    pub in_flight: u32,
    /// What it was given and how it answered.
    pub traffic: Traffic,
    /// How the check that is tried goes, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<TriedCheck>,
    /// Why it gets no requests for a while although it is healthy, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected: Option<Ejection>,
    /// After [`ProxyReport::by_instance`]: what this is made of, where its instance has several processes that
    /// take requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Self>,
}

/// How a check goes that is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedCheck {
    /// Which one.
    pub check: HealthCheck,
    /// Good ones in a row, up to now or to when that many were enough.
    pub good_checks: u32,
    /// Bad ones in a row, up to now or to when that many were enough.
    pub bad_checks: u32,
    /// The last one.
    pub last: Option<CheckResult>,
}

impl TriedCheck {
    /// Nothing is known yet of how `check` goes.
    pub fn new(check: HealthCheck) -> Self {
        Self {
            check,
            good_checks: 0,
            bad_checks: 0,
            last: None,
        }
    }

    /// Whether it passes; none while that is open.
    pub fn passes(&self) -> Option<bool> {
        if self.good_checks >= self.check.healthy_threshold {
            Some(true)
        } else if self.bad_checks >= self.check.unhealthy_threshold {
            Some(false)
        } else {
            None
        }
    }

    /// Counts one more outcome.
    pub fn note(&mut self, result: CheckResult) {
        if result.good {
            self.good_checks += 1;
            self.bad_checks = 0;
        } else {
            self.bad_checks += 1;
            self.good_checks = 0;
        }
        self.last = Some(result);
    }
}

/// How one check went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckResult {
    /// When it ended.
    pub at: Timestamp,
    /// What was asked: `GET /`, `TCP connect`.
    #[serde(default = "a_check")]
    pub asked: String,
    /// Whether it was good.
    pub good: bool,
    /// Whether a connection came about. Where none did, the application was never asked: it does not
    /// listen, or something in between lets nobody through.
    #[serde(default = "yes")]
    pub connected: bool,
    /// For people: `200 in 3 ms`, `connection refused`, `no answer within 5000 ms`.
    pub answer: String,
}

impl CheckResult {
    /// What was asked and what came back: `GET / answered: 500 in 3 ms`, `GET / got no answer: connection
    /// refused`.
    pub fn said(&self) -> String {
        said(&self.asked, &self.answer)
    }
}

/// [`CheckResult::said`] of its parts.
pub fn said(asked: &str, answer: &str) -> String {
    let came =
        answer == NOT_HTTP || answer.starts_with("connected in ") || answered(answer).is_some();
    let how = if came { "answered" } else { "got no answer" };
    format!("{asked} {how}: {answer}")
}

/// What the answer of a check is when something else than HTTP comes back.
pub const NOT_HTTP: &str = "no HTTP";

/// What a proxy that does not say counts as having seen.
fn yes() -> bool {
    true
}

fn a_check() -> String {
    "a check".to_owned()
}

/// Counts of one run of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Traffic {
    /// Requests answered.
    pub requests: u64,
    /// By status class: 1xx (WebSockets), 2xx, 3xx, 4xx, 5xx.
    pub by_class: [u64; 5],
    /// Requests that got no answer from an app: the proxy answered 502, 503 or 504 itself, or the
    /// connection broke midway. They are also in `by_class` where a status was sent.
    pub failed: u64,
    /// Those, and all that were answered with a status of 500 or above. An older proxy counts none.
    #[serde(default)]
    pub errors: u64,
    /// Median latency over the last minute, in microseconds.
    pub p50_us: u64,
    /// 99th percentile over the last minute, in microseconds.
    pub p99_us: u64,
    /// 90th percentile over the last minute, in microseconds. An older proxy says 0, here and below.
    #[serde(default)]
    pub p90_us: u64,
    /// 99.9th percentile over the last minute, in microseconds.
    #[serde(default)]
    pub p999_us: u64,
    /// Further attempts that were made for requests, of an environment.
    #[serde(default)]
    pub retried: u64,
    /// Those that the budget for them had no room for.
    #[serde(default)]
    pub retries_denied: u64,
    /// Requests for which there was no room within [`PoolLimits::capacity`].
    #[serde(default)]
    pub over_capacity: u64,
    /// Requests that waited for an instance, of an environment.
    #[serde(default)]
    pub held: u64,
    /// How many of them wait now.
    #[serde(default)]
    pub waiting: u32,
    /// Requests that came too soon after others and got a 429, of an environment.
    #[serde(default)]
    pub limited: u64,
    /// How often an instance was left out for a while because of how it answered.
    #[serde(default)]
    pub ejections: u64,
    /// Bytes that clients of a network environment sent; absent where there were none, as of requests, whose bytes are not
    /// counted. What its connections are is in `requests`, which counts each when it reaches an instance, or none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_in: u64,
    /// Bytes that they were sent; absent where there were none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_out: u64,
}

impl Traffic {
    /// Adds what was counted elsewhere. Percentiles cannot be added and stay.
    pub fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        for (sum, more) in self.by_class.iter_mut().zip(more.by_class) {
            *sum += more;
        }
        self.failed += more.failed;
        self.errors += more.errors;
        self.retried += more.retried;
        self.retries_denied += more.retries_denied;
        self.over_capacity += more.over_capacity;
        self.held += more.held;
        self.waiting += more.waiting;
        self.limited += more.limited;
        self.ejections += more.ejections;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
    }

    /// The same; of the latencies, the worst is kept.
    pub fn add_beside(&mut self, more: &Self) {
        self.add(more);
        self.p50_us = self.p50_us.max(more.p50_us);
        self.p90_us = self.p90_us.max(more.p90_us);
        self.p99_us = self.p99_us.max(more.p99_us);
        self.p999_us = self.p999_us.max(more.p999_us);
    }
}

/// What a proxy saw for one environment, including requests that no target was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentTraffic {
    /// Which environment.
    pub environment: EnvironmentId,
    /// Its counts.
    pub traffic: Traffic,
}

/// What a proxy saw of all targets of one release together, in one run of the proxy: counts that only
/// rise, so that what lies between two reports can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseTraffic {
    /// Of which environment.
    pub environment: EnvironmentId,
    /// Which release.
    pub release: ReleaseNumber,
    /// Requests that its targets were given and that ended.
    pub requests: u64,
    /// Those of them that were answered with a status of 500 or above, or not, or not to the end.
    pub errors: u64,
    /// How long its answers took to begin.
    pub latency: Latencies,
}
