//! The load balancer beside nginx, HAProxy, Caddy and a bare pingora: one worker each, alone on one core;
//! who asks and who answers share the other. All take turns within a round, so that what else goes on
//! meets all of them.
//!
//! | File | Idea |
//! |---|---|
//! | `rows`, `peers` | what is measured, and on whom: data |
//! | `beanpole` | starting Beanpole's proxy, its tables |
//! | `load`, `idle`, `change` | one run of a row of that kind |
//! | `knock` | the client for connections that are new or at rest |
//! | `report`, `verdict`, `plot` | what came of it: tables, the targets, the picture |

mod beanpole;
mod change;
mod idle;
pub mod knock;
mod load;
mod peers;
mod plot;
pub mod report;
pub mod rows;
mod verdict;

use crate::{Failed, Setup};
use beanpole_daemon::connections::raise_open_files;
use peers::{PEERS, Peer, Server, host};
use report::Report;
use rows::{Kind, Plan, Row};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The core of the load balancers.
pub const PROXY_CORE: u32 = 0;
/// The core of all others: load generators and upstream.
pub const LOAD_CORE: u32 = 1;

/// Where the upstream listens: addresses in 127.1.0.0/24, one for each target.
const TARGETS: u8 = 200;
/// The most connections that a load balancer is set up for, where the limit of open files allows it.
const CONNECTIONS: u64 = 32_768;
/// Rounds of rows that start everything anew each time.
const IDLE_ROUNDS: usize = 3;

/// The certificate that all show.
pub struct Identity {
    /// The data directory of Beanpole's proxy that it was made in.
    home: PathBuf,
    /// The certificate (PEM).
    certificate: PathBuf,
    /// Its key (PEM).
    key: PathBuf,
    /// One after the other, as HAProxy wants it.
    both: PathBuf,
}

/// What a load balancer stands in front of.
pub struct Site<'a> {
    /// How much of everything.
    plan: Plan,
    /// The addresses of all targets.
    targets: Vec<SocketAddr>,
    /// What it shows to TLS clients.
    identity: &'a Identity,
    /// Connections of clients that it has to bear.
    connections: u64,
}

/// Where a load balancer is set up.
pub struct Stage<'a> {
    /// What for.
    site: &'a Site<'a>,
    /// A directory of its own.
    dir: &'a Path,
}

/// What can be told of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Requests answered, per second.
    RequestsPerSecond,
    /// Median latency, in milliseconds.
    P50Ms,
    /// The 99th percentile, in milliseconds.
    P99Ms,
    /// CPU time of the load balancer's processes per request, in microseconds.
    CpuUsPerRequest,
    /// Memory of its processes (PSS), in MB: after a load, or with all connections at rest.
    MemoryMb,
    /// The part of its core that its processes used.
    ProxyBusy,
    /// The part of that core that was used at all: by them, by the system for packets, by others.
    CoreBusy,
    /// The part of its core that other programs used: none, on a quiet machine.
    Disturbed,
    /// The part of the other core that was used.
    LoadBusy,
    /// The part of the TLS sessions that were resumed.
    Resumed,
    /// Connections at rest.
    Connections,
    /// Memory (PSS) per connection at rest, in KB (1,024 bytes).
    KbPerConnection,
    /// Median time from handing over a table until it was in force, in milliseconds.
    AppliedMs,
    /// The longest of these.
    AppliedMostMs,
    /// The 99th percentile while tables changed, in milliseconds.
    P99ChangingMs,
    /// Requests per second while tables changed.
    RequestsChanging,
}

/// One run of a row on one load balancer.
pub type Run = BTreeMap<Measure, f64>;

/// All runs of a row on one load balancer.
pub struct Measured {
    /// The row.
    row: &'static Row,
    /// The load balancer.
    peer: &'static Peer,
    /// One for each round: the same number, at the same place, for all of a group.
    runs: Vec<Run>,
    /// Why there are none.
    failed: Option<String>,
}

/// A load balancer that takes part in a row.
struct Contestant<'a> {
    measured: Measured,
    program: &'a Path,
    site: Site<'a>,
    dir: PathBuf,
    /// Where it stays for all rounds.
    server: Option<Server>,
}

impl Contestant<'_> {
    fn start(&self) -> Result<Server, Failed> {
        std::fs::create_dir_all(&self.dir)?;
        let stage = Stage {
            site: &self.site,
            dir: &self.dir,
        };
        let server = (self.measured.peer.start)(self.program, &stage)?;
        let hosts = self.site.plan.hosts;
        for number in [0, hosts - 1] {
            let answer = beanpole_tests::http::get(server.http, &host(number), rows::SMALL)?;
            if answer.status != 200 || answer.body.len() != 1_024 {
                let host = host(number);
                return Err(format!("answers {} for {host} before the load", answer.status).into());
            }
        }
        Ok(server)
    }

    fn run(&self, seconds: u32) -> Result<Run, Failed> {
        let server = self.server.as_ref().ok_or("it does not run")?;
        let plan = &self.site.plan;
        match self.measured.row.kind {
            Kind::Load(load) => load::run(&load, server, plan, seconds, &self.dir),
            Kind::Idle { tls } => idle::run(server, tls, self.site.connections),
            Kind::Change => change::run(server, plan, &self.site.targets, seconds, &self.dir),
        }
    }

    /// One round; a failure is the last.
    fn take_turn(&mut self, seconds: u32, counts: bool) {
        if self.measured.failed.is_some() {
            return;
        }
        let anew = matches!(self.measured.row.kind, Kind::Idle { .. });
        let run = (|| {
            if anew || self.server.is_none() {
                self.server = None;
                self.server = Some(self.start()?);
            }
            self.run(seconds)
        })();
        if anew {
            self.server = None;
        }
        match run {
            Ok(run) if counts => self.measured.runs.push(run),
            Ok(_) => {}
            Err(error) => {
                self.measured.failed = Some(error.to_string());
                self.server = None;
            }
        }
    }
}

/// Measures the rows of the setup.
pub fn measure(setup: &Setup) -> Result<Report, Failed> {
    let rows = rows::chosen(&setup.rows)?;
    let dir = tempfile::tempdir()?;
    let open_files = raise_open_files();
    let connections = (open_files.saturating_sub(1_000) / 2).min(CONNECTIONS);
    let identity = beanpole::identity(setup, dir.path())?;
    let port = beanpole_tests::ports::reserve();
    let targets: Vec<SocketAddr> = (1..=TARGETS)
        .map(|last| SocketAddr::from(([127, 1, 0, last], port.address.port())))
        .collect();
    let _upstream = peers::upstream(dir.path(), 2 * connections, &targets)?;
    let programs: Vec<_> = PEERS.iter().map(|peer| (peer.program)(setup)).collect();
    let mut all = Vec::new();
    for group in rows::groups(rows) {
        let mut contestants = Vec::new();
        for row in group {
            progress(&format!("  {}: {}", row.name, row.title));
            for (peer, program) in PEERS.iter().zip(&programs) {
                let cannot = (peer.cannot)(row).map(str::to_owned);
                contestants.push(Contestant {
                    measured: Measured {
                        row,
                        peer,
                        runs: Vec::new(),
                        failed: cannot.or_else(|| program.as_ref().err().cloned()),
                    },
                    program: program.as_ref().map_or(Path::new(""), PathBuf::as_path),
                    site: Site {
                        plan: row.plan,
                        targets: targets[..row.plan.targets].to_vec(),
                        identity: &identity,
                        connections,
                    },
                    dir: dir.path().join(row.name).join(peer.name),
                    server: None,
                });
            }
        }
        take_turns(setup, &mut contestants);
        all.extend(contestants.into_iter().map(|one| one.measured));
    }
    Ok(Report::new(setup, &programs, all))
}

/// Rounds of one group. All run while one is measured: the others have nothing to do.
fn take_turns(setup: &Setup, contestants: &mut [Contestant<'_>]) {
    let idle = matches!(contestants[0].measured.row.kind, Kind::Idle { .. });
    // The first round warms up, where anything stays for the second.
    let unmeasured = usize::from(!idle && !setup.quick);
    let rounds = if idle {
        setup.rounds.min(IDLE_ROUNDS)
    } else {
        setup.rounds
    };
    for round in 0..unmeasured + rounds {
        // Nobody is always the first.
        for step in 0..contestants.len() {
            let next = (round + step) % contestants.len();
            contestants[next].take_turn(setup.seconds, round >= unmeasured);
        }
    }
}

#[expect(clippy::print_stderr, reason = "a program for people")]
fn progress(line: &str) {
    eprintln!("{line}");
}
