//! The daemons on their own: what `up` starts, and what runs on hosts.

use super::proxy_check::{self, Check};
use crate::client::find;
use crate::context::Context;
use crate::local::children;
use crate::output::errors::Failure;
use crate::output::warn;
use beanpole_agent::AgentConfig;
use beanpole_controller::{ControllerConfig, ControllerError, Tls};
use beanpole_daemon::http::CallError;
use beanpole_daemon::supervise::{self, Supervised};
use beanpole_daemon::{logs, stop};
use beanpole_protocol::agent::INSTANCE_PORTS;
use beanpole_protocol::edge::{ALL_OF_THEM, AccessLog, AccessLogFormat, EdgeTerms};
use beanpole_proxy::{
    KeeperConfig, LINGER, LONGEST_HEADER_TIMEOUT, LogFormat, LogOptions, Network, PATIENCE,
    Program, ProxyConfig, Successor, Tracing,
};
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest time that requests may go on after a reload, in seconds: a week.
const LONGEST_LINGER: u64 = 7 * 24 * 60 * 60;

/// Run the controller alone: what remembers and decides
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  beanpole controller --data /var/lib/beanpole --api 127.0.0.1:7700\n\n`beanpole up` starts it together with a proxy and an agent."
)]
pub struct Controller {
    /// Where everything is kept; the token is written to DIR/token
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where the JSON API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700", value_parser = listen_address)]
    pub api: SocketAddr,
    /// The agent on this machine
    #[arg(long, value_name = "SOCKET")]
    pub local_agent: Option<PathBuf>,
    /// The address at which load balancers on other hosts reach instances on this machine; without it there are none
    /// here while such load balancers exist
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub instance_address: IpAddr,
    /// A proxy on this machine; may be given several times
    #[arg(long, value_name = "SOCKET")]
    pub local_proxy: Vec<PathBuf>,
    /// The domain below which environments get their hostnames
    #[arg(long, default_value = "localhost")]
    pub domain: String,
    /// The proxy's port for HTTP, for the URLs of environments
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// How the API is protected, and bounds
    #[command(flatten)]
    pub offer: Offer,
    /// End with the process that started it
    #[arg(long, value_name = "PID", hide = true)]
    pub die_with: Option<u32>,
}

/// Reads an address to listen on. A name would have to be looked up, and may be several.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is not an address to listen on: write IP:PORT, such as 127.0.0.1:8080 or 0.0.0.0:80",
            text.escape_debug()
        )
    })
}

/// What is to be said of addresses whose ports instances on this machine are given; each by its flag.
fn of_instances(given: &[(&str, SocketAddr)]) -> Vec<String> {
    let (first, last) = (INSTANCE_PORTS.start(), INSTANCE_PORTS.end());
    let odd = given
        .iter()
        .filter(|(_, at)| INSTANCE_PORTS.contains(&at.port()));
    odd.map(|(flag, at)| {
        let port = at.port();
        format!(
            "{flag} {at}: ports {first} to {last} are those of instances. One on this machine has port {port} where it comes first, \
             as after a restart, and nothing can listen here then. Choose a port below {first} by {flag}."
        )
    })
    .collect()
}

/// Warns of such addresses.
pub fn warn_of_instances(given: &[(&str, SocketAddr)]) {
    for text in of_instances(given) {
        warn(&text);
    }
}

/// How the controller offers its API: the same for `controller` and `up`.
#[derive(Clone, Debug, Default, Args)]
pub struct Offer {
    /// The API's certificate chain, PEM; some TLS is needed to listen beyond this machine
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The API's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Use a certificate of the controller's own making; clients trust it by --ca
    #[arg(long, conflicts_with = "tls_cert")]
    pub tls_self_signed: bool,
    /// Let the API listen beyond this machine without TLS: tokens and bundles travel in the open
    #[arg(long)]
    pub insecure: bool,
    /// The largest bundle that is accepted, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub bundle_limit_mib: u64,
    /// Executables for hosts of other architectures, named beanpole-ARCH
    #[arg(long, value_name = "DIR")]
    pub builds: Option<PathBuf>,
    /// Bytes per second for sending bundles to hosts, over all of them [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub push_limit: Option<u64>,
}

impl Offer {
    /// As the arguments of a `controller`.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let paths = [
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--builds", &self.builds),
        ];
        for (flag, path) in paths {
            if let Some(path) = path {
                words.extend([flag.into(), path.as_os_str().to_owned()]);
            }
        }
        for (flag, given) in [
            ("--tls-self-signed", self.tls_self_signed),
            ("--insecure", self.insecure),
        ] {
            if given {
                words.push(flag.into());
            }
        }
        words.extend([
            "--bundle-limit-mib".into(),
            self.bundle_limit_mib.to_string().into(),
        ]);
        if let Some(limit) = self.push_limit {
            words.extend(["--push-limit".into(), limit.to_string().into()]);
        }
        words
    }

    /// Whether the API speaks TLS.
    pub fn encrypts(&self) -> bool {
        self.tls_cert.is_some() || self.tls_self_signed
    }

    /// Refuses what `api` could only be offered by in the open, and files that are not there.
    pub fn check(&self, api: SocketAddr) -> Result<(), Failure> {
        if !api.ip().is_loopback() && !self.encrypts() && !self.insecure {
            return Err(Failure::misuse(format!(
                "{api} can be reached from other machines, and without TLS tokens and bundles travel in the open."
            ))
            .hint("Give --tls-self-signed, or --tls-cert and --tls-key; or listen on 127.0.0.1; or say --insecure"));
        }
        for (flag, path) in [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)] {
            if let Some(path) = path {
                File::open(path).map_err(|error| {
                    Failure::caused(format!("{flag}: cannot read {}.", path.display()), &error)
                        .hint(format!("Name a PEM file that you may read: {flag} FILE"))
                        .into_misuse()
                })?;
            }
        }
        Ok(())
    }

    fn tls(&self) -> Tls {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Tls::Files {
                cert: cert.clone(),
                key: key.clone(),
            },
            _ if self.tls_self_signed => Tls::SelfSigned,
            _ => Tls::Off,
        }
    }
}

/// What stands in front of the load balancer: the same for `proxy` and `up`.
#[derive(Clone, Debug, Default, Args)]
pub struct Front {
    /// A proxy in front whose X-Forwarded-* headers are believed, by address or network (10.0.0.0/8); may be
    /// given several times
    #[arg(long, value_name = "NETWORK")]
    pub trust: Vec<Network>,
    /// The port by which clients reach HTTPS, where something in front changes it: redirects lead there
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub public_https_port: Option<u16>,
    /// A load balancer in front announces every client by the PROXY protocol, version 1 or 2; nobody else may
    /// reach this one then
    #[arg(long)]
    pub proxy_protocol: bool,
}

impl Front {
    /// The same as words of a command line.
    pub fn arguments(&self) -> Vec<OsString> {
        let trust = self
            .trust
            .iter()
            .map(|network| format!("--trust={network}"));
        let port = self.public_https_port;
        let port = port.map(|port| format!("--public-https-port={port}"));
        let announced = self.proxy_protocol.then(|| "--proxy-protocol".to_owned());
        let all = trust.chain(port).chain(announced);
        all.map(OsString::from).collect()
    }
}

/// Run the agent alone: what makes one host match its orders
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  beanpole agent --data /var/lib/beanpole --socket /run/beanpole/agent.sock\n\n`beanpole host add` installs it on a host."
)]
pub struct Agent {
    /// Where everything is kept, in DIR/agent
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where it listens
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,
    /// The group that may use the socket too
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Keep it running where no init system does
    #[arg(long)]
    pub supervise: bool,
    /// End with the process that started it
    #[arg(long, value_name = "PID", hide = true)]
    pub die_with: Option<u32>,
}

/// What is told of requests: the same for `proxy` and `up`.
#[derive(Clone, Debug, Args)]
pub struct Telling {
    /// How requests are logged: a JSON object each, or in the combined format of Apache and NCSA
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Json)]
    pub access_log_format: Format,
    /// The share of requests that is logged, 0 to 1; failed ones (500 and above) and slow ones are in any case
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    pub access_log_sample: f64,
    /// From so many milliseconds on a request is slow
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    pub access_log_slow: u64,
    /// Log the query strings of URLs, too; they often hold secrets
    #[arg(long)]
    pub access_log_query: bool,
    /// Put the access log aside at that size, and keep three such files; 0 leaves that to logrotate
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(..=1_048_576))]
    pub access_log_max_size: u64,
    /// Requests without a valid `traceparent` (W3C Trace Context) go on as they are, or get a new one, sampled
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Traceparent::Pass)]
    pub traceparent: Traceparent,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // A JSON object each.
    Json,
    // As Apache and NCSA do.
    Combined,
}

/// What is done about requests that belong to no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Traceparent {
    // They go on as they are.
    Pass,
    // They get a new one.
    Create,
}

/// Reads a share.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "it must be a number from 0 to 1, such as 0.1 for every tenth".to_owned())
}

/// A share in thousandths; one that is none of nothing is at least one of them.
fn thousandths(share: f64) -> u16 {
    let found = (0..=ALL_OF_THEM).find(|count| f64::from(*count) >= share * f64::from(ALL_OF_THEM));
    found.unwrap_or(ALL_OF_THEM)
}

/// A value as it is typed.
fn word(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Telling {
    /// The same as words of a command line.
    pub fn arguments(&self) -> Vec<OsString> {
        let query = self
            .access_log_query
            .then(|| "--access-log-query".to_owned());
        let all = [
            format!("--access-log-format={}", word(&self.access_log_format)),
            format!("--access-log-sample={}", self.access_log_sample),
            format!("--access-log-slow={}", self.access_log_slow),
            format!("--access-log-max-size={}", self.access_log_max_size),
            format!("--traceparent={}", word(&self.traceparent)),
        ];
        all.into_iter().chain(query).map(OsString::from).collect()
    }

    fn of(log: AccessLog, new_traces: bool) -> Self {
        Self {
            access_log_format: match log.format {
                AccessLogFormat::Json => Format::Json,
                AccessLogFormat::Combined => Format::Combined,
            },
            access_log_sample: f64::from(log.sample) / f64::from(ALL_OF_THEM),
            access_log_slow: log.slow_ms,
            access_log_query: log.query,
            access_log_max_size: log.max_mib,
            traceparent: if new_traces {
                Traceparent::Create
            } else {
                Traceparent::Pass
            },
        }
    }

    /// The same for a load balancer on a host, and whether it begins traces.
    pub fn terms(&self) -> (AccessLog, bool) {
        let log = AccessLog {
            format: match self.access_log_format {
                Format::Json => AccessLogFormat::Json,
                Format::Combined => AccessLogFormat::Combined,
            },
            sample: thousandths(self.access_log_sample),
            slow_ms: self.access_log_slow,
            query: self.access_log_query,
            max_mib: self.access_log_max_size,
        };
        (log, self.traceparent == Traceparent::Create)
    }

    fn options(&self) -> LogOptions {
        LogOptions {
            format: match self.access_log_format {
                Format::Json => LogFormat::Json,
                Format::Combined => LogFormat::Combined,
            },
            sample: self.access_log_sample,
            slow: Duration::from_millis(self.access_log_slow),
            query: self.access_log_query,
            rotate_at: self.access_log_max_size * 1024 * 1024,
        }
    }

    fn tracing(&self) -> Tracing {
        match self.traceparent {
            Traceparent::Pass => Tracing::Pass,
            Traceparent::Create => Tracing::Create,
        }
    }
}

/// Run the proxy alone: what carries traffic
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  beanpole proxy --data /var/lib/beanpole/proxy --socket /run/beanpole/proxy.sock --http 0.0.0.0:80 --https 0.0.0.0:443\n  beanpole proxy reload --socket /run/beanpole/proxy.sock\n  beanpole proxy check 127.0.0.1:80       exit 0 if one answers there, for the check script of keepalived\n\nSIGHUP has it reload as well."
)]
pub struct Proxy {
    /// What to have a running one do
    #[command(subcommand)]
    pub action: Option<ProxyAction>,
    /// How it runs
    #[command(flatten)]
    pub runs: ProxyRuns,
}

/// What a running proxy is told.
#[derive(Debug, Subcommand)]
pub enum ProxyAction {
    Reload(Reload),
    Check(Check),
}

/// Have the executable on disk take over, without a lost request: an upgrade, or a restart
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole proxy reload\n  beanpole proxy reload --socket /run/beanpole/proxy.sock\n\nWhat is started has to serve before what runs ends. Where it cannot, nothing changes and the exit code is 1."
)]
pub struct Reload {
    /// The proxy's socket [default: that of `beanpole up`]
    #[arg(long, value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
}

/// Started by the proxy that keeps the listeners: what carries its traffic.
#[derive(Debug, Args)]
pub struct ProxyProcess {
    /// As the proxy runs.
    #[command(flatten)]
    pub runs: ProxyRuns,
}

/// How a proxy runs.
#[derive(Debug, Args)]
pub struct ProxyRuns {
    /// Where its table and certificates are kept
    #[arg(long, value_name = "DIR", required = true)]
    pub data: Option<PathBuf>,
    /// Where the controller reaches it
    #[arg(long, value_name = "SOCKET", required = true)]
    pub socket: Option<PathBuf>,
    /// How long it waits at its start to be told the newest routing table before it takes requests [default: half a
    /// second where it has one of its last run]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    pub table_wait: Option<u64>,
    /// Where it answers by HTTP; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub http: Vec<SocketAddr>,
    /// Where it answers by HTTPS; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub https: Vec<SocketAddr>,
    /// The domain below which environments get their hostnames
    #[arg(long, default_value = "localhost")]
    pub domain: String,
    /// Log every request to this file
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// What is told of requests
    #[command(flatten)]
    pub telling: Telling,
    /// Threads that carry traffic; 0 means one per CPU
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// How long a client has for the first byte after it connected, and for the whole head of a
    /// request
    #[arg(long, value_name = "SECONDS", default_value_t = LONGEST_HEADER_TIMEOUT, value_parser = clap::value_parser!(u64).range(1..=LONGEST_HEADER_TIMEOUT))]
    pub header_timeout: u64,
    /// How long requests and WebSockets that are under way at a reload may go on
    #[arg(long, value_name = "SECONDS", default_value_t = LINGER.as_secs(), value_parser = clap::value_parser!(u64).range(..=LONGEST_LINGER))]
    pub linger: u64,
    /// What stands in front
    #[command(flatten)]
    pub front: Front,
    /// The most connections of clients; fewer where the limit of open files is low
    #[arg(long, value_name = "NUMBER", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// What an agent wants it to go by besides its addresses, read at every start of the process that serves
    #[arg(long, value_name = "FILE", hide = true)]
    pub terms: Option<PathBuf>,
    /// End with the process that started it
    #[arg(long, value_name = "PID", hide = true)]
    pub die_with: Option<u32>,
}

impl ProxyRuns {
    /// The same by the terms in their file, where there is one.
    fn by_terms(mut self) -> Result<Self, Failure> {
        let Some(path) = &self.terms else {
            return Ok(self);
        };
        let terms = beanpole_daemon::files::read_json::<EdgeTerms>(path)
            .map_err(|error| {
                Failure::caused(format!("{} cannot be read.", path.display()), &error)
            })?
            .ok_or_else(|| Failure::new(format!("{} is not there.", path.display())))?;
        let networks = terms.trust.iter().map(|network| network.parse());
        self.front = Front {
            trust: networks.collect::<Result<_, _>>().map_err(|error| {
                Failure::new(format!("{} holds no network.", path.display())).cause(error)
            })?,
            public_https_port: terms.public_https_port,
            proxy_protocol: terms.proxy_protocol,
        };
        self.access_log = terms
            .access_log
            .and(self.data.as_ref().map(|data| data.join("access.log")));
        self.telling = Telling::of(terms.access_log.unwrap_or_default(), terms.new_traces);
        Ok(self)
    }

    /// Its data directory and its socket, which only a subcommand does without.
    fn places(&self) -> Result<(PathBuf, PathBuf), Failure> {
        match (&self.data, &self.socket) {
            (Some(data), Some(socket)) => Ok((data.clone(), socket.clone())),
            _ => {
                Err(Failure::misuse("It needs --data and --socket.")
                    .hint("See: beanpole proxy --help"))
            }
        }
    }
}

/// Started by the agent; `main` dispatches it before anything else runs.
#[derive(Debug, Args)]
pub struct Shim {
    /// What to run
    pub spec: PathBuf,
}

/// Runs the agent, or keeps one running.
pub fn agent(command: Agent) -> Result<(), Failure> {
    if command.supervise {
        let pid_file = command.socket.with_file_name("supervisor.pid");
        return serve(
            command.die_with,
            1,
            "agent",
            |_| None,
            move |_| async move {
                let what = Supervised::from_own_arguments(pid_file)?;
                supervise::run(&what).await
            },
        );
    }
    let mut config = AgentConfig::new(&command.data, &command.socket);
    config.socket_group = command.socket_group;
    serve(
        command.die_with,
        2,
        "agent",
        |_| None,
        move |stop| beanpole_agent::run(config, stop),
    )
}

/// Runs the proxy, or has a running one do something.
pub fn proxy(context: &Context, command: Proxy) -> Result<(), Failure> {
    match command.action {
        Some(ProxyAction::Reload(reload)) => have_reloaded(context, &reload),
        Some(ProxyAction::Check(asked)) => proxy_check::run(&asked),
        None => keep_proxy(command.runs),
    }
}

/// Keeps the listeners, and a process that serves.
fn keep_proxy(runs: ProxyRuns) -> Result<(), Failure> {
    let path =
        own_path().map_err(|error| Failure::caused("This executable cannot be found.", &error))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (data, socket) = runs.places()?;
    let http = runs.http.iter().map(|at| ("--http", *at));
    let https = runs.https.iter().map(|at| ("--https", *at));
    warn_of_instances(&http.chain(https).collect::<Vec<_>>());
    let config = ProxyConfig::new(data, &socket);
    let keeper = KeeperConfig {
        socket,
        http: runs.http,
        https: runs.https,
        program: Program {
            path: path.clone(),
            arguments: of_the_process(&arguments),
        },
        successor: Some(Successor { path, arguments }),
        drain: config.drain,
        patience: PATIENCE,
        table_wait: runs.table_wait.map(Duration::from_secs),
    };
    serve(
        runs.die_with,
        1,
        "proxy",
        |_| None,
        move |stop| beanpole_proxy::keep(keeper, stop),
    )
}

/// This executable by a path that stays the same over upgrades: a link by which it was started is followed anew.
fn own_path() -> std::io::Result<PathBuf> {
    let named = std::env::args_os().next().map(PathBuf::from);
    match named.filter(|path| path.is_absolute()) {
        Some(path) => Ok(path),
        None => std::env::current_exe(),
    }
}

/// A proxy's arguments as those of the process that serves for it.
fn of_the_process(arguments: &[OsString]) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut rest = arguments.iter();
    let mut seen = false;
    while let Some(word) = rest.next() {
        if word == "--die-with" {
            rest.next();
        } else if word == "proxy" && !seen {
            seen = true;
            words.push("proxy-process".into());
        } else if !word.as_encoded_bytes().starts_with(b"--die-with=") {
            words.push(word.clone());
        }
    }
    words
}

fn have_reloaded(context: &Context, command: &Reload) -> Result<(), Failure> {
    let socket = command.socket.clone();
    let socket = socket.unwrap_or_else(|| find::data_directory(None).join("proxy/proxy.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::caused("The runtime cannot be started.", &error))?;
    match runtime.block_on(beanpole_proxy::reload(&socket)) {
        Ok(reloaded) => {
            context.output.say(format!(
                "Reloaded: process {} serves. What the one before began, it finishes.",
                reloaded.pid
            ));
            Ok(())
        }
        Err(CallError::Refused(problem)) => Err(Failure::new(format!("{}.", problem.title))
            .cause(problem.detail)
            .hint(
                "Its log says more. Nothing has changed for clients: mend it, then reload again",
            )),
        Err(error @ CallError::TimedOut(_)) => Err(Failure::caused(
            "It is not known how the reload went.",
            &error,
        )
        .hint("Its log says how it went")),
        Err(error) => Err(Failure::caused(
            format!("No proxy can be reached by {}.", socket.display()),
            &error,
        )
        .hint("Name the socket that it was started with: beanpole proxy reload --socket SOCKET")),
    }
}

/// Carries traffic for a proxy that keeps the listeners.
pub fn proxy_process(command: ProxyProcess) -> Result<(), Failure> {
    let command = command.runs.by_terms()?;
    let (data, socket) = command.places()?;
    let mut config = ProxyConfig::new(data, socket);
    config.table_wait = command.table_wait.map(Duration::from_secs);
    config.http = command.http;
    if let Some(all) = command.front.trust.iter().find(|network| network.bits == 0) {
        warn(&format!(
            "--trust {all} believes what any client says of its address, scheme and host. Name the proxies in front alone."
        ));
    }
    config.trusted = command.front.trust;
    config.public_https_port = command.front.public_https_port;
    config.proxy_protocol = command.front.proxy_protocol;
    config.https = command.https;
    config.default_domain = command.domain;
    config.access_log = command.access_log;
    config.log_options = command.telling.options();
    config.tracing = command.telling.tracing();
    config.threads = command.threads;
    config.header_timeout = Duration::from_secs(command.header_timeout);
    config.max_connections = usize::try_from(command.max_connections).unwrap_or(usize::MAX);
    config.linger = Duration::from_secs(command.linger);
    serve(
        None,
        2,
        "proxy",
        |_| None,
        move |stop| beanpole_proxy::serve_kept(config, stop),
    )
}

/// Runs the controller.
pub fn controller(command: Controller) -> Result<(), Failure> {
    command.offer.check(command.api)?;
    warn_of_instances(&[("--api", command.api)]);
    let mut config = ControllerConfig::new(&command.data, command.api);
    config.tls = command.offer.tls();
    config.insecure = command.offer.insecure;
    config.local_agent = command.local_agent;
    config.instance_address = command.instance_address;
    config.local_proxies = command.local_proxy;
    config.domain = command.domain;
    config.http_port = command.http_port;
    config.bundle_limit_bytes = command.offer.bundle_limit_mib * 1024 * 1024;
    config.builds = command.offer.builds;
    config.push_bytes_per_second = command.offer.push_limit;
    serve(
        command.die_with,
        2,
        "controller",
        move |error: &ControllerError| error.hint(&command.data),
        move |stop| beanpole_controller::run(config, stop),
    )
}

/// Runs a daemon until SIGTERM or SIGINT: logs, runtime, the signal to stop. `hint` says what to do
/// about an error.
fn serve<F, W, E>(
    die_with: Option<u32>,
    threads: usize,
    name: &str,
    hint: impl FnOnce(&E) -> Option<String>,
    run: F,
) -> Result<(), Failure>
where
    F: FnOnce(CancellationToken) -> W,
    W: Future<Output = Result<(), E>>,
    E: std::error::Error,
{
    if let Some(parent) = die_with
        && !children::die_with(parent)
    {
        return Err(Failure::new("The process that started this one is gone."));
    }
    // What a client writes into its greeting is no news, and would fill the log.
    logs::init("info,rustls=error");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Failure::caused("The runtime cannot be started.", &error))?;
    let result = runtime.block_on(async {
        let stop = stop::on_signal()
            .map_err(|error| Failure::caused("Signals cannot be listened for.", &error))?;
        run(stop).await.map_err(|error| {
            let mut failure = Failure::caused(format!("The {name} cannot go on."), &error);
            failure.hint = hint(&error);
            failure
        })
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_instances_is_warned_of() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let given = [
            ("--http", at(19_999)),
            ("--https", at(20_000)),
            ("--api", at(29_999)),
            ("--api", at(30_000)),
        ];
        let said = of_instances(&given);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("--https 127.0.0.1:20000: ports 20000 to 29999"),
            "{said:?}"
        );
        assert!(said[1].ends_with("below 20000 by --api."), "{said:?}");
    }

    #[test]
    fn the_process_that_serves_has_the_proxys_arguments() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for die_with in ["--die-with 7", "--die-with=7"] {
            let given = words(&format!(
                "proxy --data proxy --linger 5 {die_with} --socket s"
            ));
            let wanted = words("proxy-process --data proxy --linger 5 --socket s");
            assert_eq!(of_the_process(&given), wanted);
        }
    }
}
