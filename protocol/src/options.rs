//! Configuration options, namespaced as Elastic Beanstalk's, and the typed values read from them.
//!
//! Values travel as strings, as in the EB API. [`KNOWN`] is the one list: validation, defaults, the
//! reference page and `deploy.toml.example` all come from it.

use crate::agent::{Limits, Properties};
use crate::proxy::{Algorithm, HealthCheck, Probe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Environment properties live in this namespace; every name is allowed in it.
pub const PROPERTIES: &str = "aws:elasticbeanstalk:application:environment";
/// How deployments run.
pub const COMMAND: &str = "aws:elasticbeanstalk:command";
/// The process that gets the traffic: health checks and draining.
pub const PROCESS: &str = "aws:elasticbeanstalk:environment:process:default";
/// The legacy name of the health check's path.
pub const APPLICATION: &str = "aws:elasticbeanstalk:application";
/// Number of instances.
pub const ASG: &str = "aws:autoscaling:asg";
/// Load balanced or single instance.
pub const ENVIRONMENT: &str = "aws:elasticbeanstalk:environment";
/// Python's own options.
pub const PYTHON: &str = "aws:elasticbeanstalk:container:python";
/// Beanpole's own: what an instance may use.
pub const INSTANCE: &str = "beanpole:instance";
/// Beanpole's own: how releases are kept and prepared.
pub const RELEASE: &str = "beanpole:release";
/// Beanpole's own: how the proxy shares traffic.
pub const PROXY: &str = "beanpole:proxy";

/// What StartTimeout is when neither it nor Timeout is set, in seconds: four times what slow starters
/// need on a small machine.
const START_TIMEOUT_S: u64 = 120;

/// Beanpole's own: which hosts an environment's instances go to.
pub const PLACEMENT: &str = "beanpole:placement";

/// Option settings: namespace, name, value.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct OptionSettings(pub BTreeMap<String, BTreeMap<String, String>>);

/// Values of environment properties may be secret and are not printed.
impl std::fmt::Debug for OptionSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = f.debug_map();
        for (namespace, options) in &self.0 {
            for (name, value) in options {
                let shown = if namespace == PROPERTIES {
                    "***"
                } else {
                    value
                };
                map.entry(&format_args!("{namespace}:{name}"), &shown);
            }
        }
        map.finish()
    }
}

/// What a change of an option does to what runs (EB guide, "command-options-general").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing is interrupted.
    Nothing,
    /// Instances restart their processes, by the deployment policy.
    Restart,
    /// It cannot change after creation.
    Fixed,
}

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `true` or `false`, in any case.
    Bool,
    /// A whole number within bounds, both included.
    Number(u64, u64),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A path that begins with `/`.
    Path,
    /// Statuses and ranges: `200`, `200-399`, `200,204`.
    Statuses,
    /// Labels: `disk=ssd`, `disk=ssd,zone=a`.
    Labels,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What is in force when nothing is set; empty for none.
    pub default: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What a change does.
    pub change: Change,
    /// What it is for, in a sentence or two.
    pub about: &'static str,
}

const fn option(
    namespace: &'static str,
    name: &'static str,
    default: &'static str,
    kind: Kind,
    change: Change,
    about: &'static str,
) -> OptionSpec {
    OptionSpec {
        namespace,
        name,
        default,
        kind,
        change,
        about,
    }
}

/// Every option that Beanpole knows. Defaults are EB's where a comment does not say otherwise.
pub const KNOWN: &[OptionSpec] = &[
    option(
        COMMAND,
        "DeploymentPolicy",
        "",
        Kind::OneOf(&["AllAtOnce", "Rolling"]),
        Change::Nothing,
        "How a new release reaches the instances. Without it: Rolling when BatchSize is below 100 %, else AllAtOnce.",
    ),
    option(
        COMMAND,
        "BatchSizeType",
        "Percentage",
        Kind::OneOf(&["Percentage", "Fixed"]),
        Change::Nothing,
        "Whether BatchSize is a share of the instances or a number of them.",
    ),
    // EB's default is 100; whoever wants every instance to go at once asks for AllAtOnce.
    option(
        COMMAND,
        "BatchSize",
        "30",
        Kind::Number(1, 10_000),
        Change::Nothing,
        "How many instances change together in a rolling deployment.",
    ),
    option(
        COMMAND,
        "Timeout",
        "600",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds that preparing a release on a host may take. Also StartTimeout, where that is not set.",
    ),
    option(
        COMMAND,
        "IgnoreHealthCheck",
        "false",
        Kind::Bool,
        Change::Nothing,
        "Go on to the next batch when instances start but do not become healthy in time.",
    ),
    option(
        ENVIRONMENT,
        "EnvironmentType",
        "LoadBalanced",
        Kind::OneOf(&["LoadBalanced", "SingleInstance"]),
        Change::Nothing,
        "Many instances behind the load balancer, or just one.",
    ),
    option(
        ENVIRONMENT,
        "LoadBalancerType",
        "application",
        Kind::OneOf(&["application"]),
        Change::Fixed,
        "The kind of load balancer; fixed when the environment is created.",
    ),
    option(
        ASG,
        "MinSize",
        "1",
        Kind::Number(1, 10_000),
        Change::Nothing,
        "The number of instances.",
    ),
    // EB: 20 s. Own hosts answer in milliseconds; a long-running request still gets its 20 s.
    option(
        PROCESS,
        "DeregistrationDelay",
        "20",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds that an instance leaving the load balancer has to finish its requests.",
    ),
    option(
        PROCESS,
        "HealthCheckPath",
        "/",
        Kind::Path,
        Change::Nothing,
        "What the health check asks for. With an empty HealthCheckPath a TCP connection is enough.",
    ),
    // EB: 15 s, meant for load balancers far away. Own hosts are near: a deployment need not wait.
    option(
        PROCESS,
        "HealthCheckInterval",
        "1",
        Kind::Number(1, 300),
        Change::Nothing,
        "Seconds from one health check to the next.",
    ),
    option(
        PROCESS,
        "HealthCheckTimeout",
        "5",
        Kind::Number(1, 60),
        Change::Nothing,
        "Seconds that the answer to a health check may take.",
    ),
    option(
        PROCESS,
        "HealthyThresholdCount",
        "2",
        Kind::Number(1, 10),
        Change::Nothing,
        "Good checks in a row after which an instance gets traffic.",
    ),
    option(
        PROCESS,
        "UnhealthyThresholdCount",
        "3",
        Kind::Number(1, 10),
        Change::Nothing,
        "Bad checks in a row after which it gets none.",
    ),
    option(
        PROCESS,
        "MatcherHTTPCode",
        "200-399",
        Kind::Statuses,
        Change::Nothing,
        "The statuses of a good check.",
    ),
    option(
        PROCESS,
        "Protocol",
        "HTTP",
        Kind::OneOf(&["HTTP", "TCP"]),
        Change::Nothing,
        "HTTP asks for HealthCheckPath, TCP only connects.",
    ),
    option(
        APPLICATION,
        "Application Healthcheck URL",
        "",
        Kind::Path,
        Change::Nothing,
        "The older name of HealthCheckPath; HealthCheckPath wins.",
    ),
    option(
        PYTHON,
        "WSGIPath",
        "application",
        Kind::Text,
        Change::Restart,
        "The module, or module:callable, that gunicorn runs when there is no Procfile.",
    ),
    option(
        PYTHON,
        "NumProcesses",
        "1",
        Kind::Number(1, 256),
        Change::Restart,
        "gunicorn's worker processes per instance.",
    ),
    option(
        PYTHON,
        "NumThreads",
        "15",
        Kind::Number(1, 256),
        Change::Restart,
        "gunicorn's threads per worker process.",
    ),
    option(
        INSTANCE,
        "MemoryMax",
        "",
        Kind::Number(16, 4_194_304),
        Change::Restart,
        "MiB of memory that one instance may use; more is killed and reported. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "CpuMax",
        "",
        Kind::Number(1, 1_024_000),
        Change::Restart,
        "Thousandths of a core that one instance may use. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "ProcessesMax",
        "512",
        Kind::Number(1, 4_194_304),
        Change::Restart,
        "Processes and threads of one instance. Needs an agent with root.",
    ),
    option(
        INSTANCE,
        "OpenFilesMax",
        "",
        Kind::Number(64, 1_048_576),
        Change::Restart,
        "Open files per process; without it the host's own limit.",
    ),
    option(
        INSTANCE,
        "StopGrace",
        "10",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds from SIGTERM to SIGKILL.",
    ),
    // EB's gate lasts as long as Timeout, 600 s: on own hosts that is far too long to look at an app
    // that does not come up.
    option(
        INSTANCE,
        "StartTimeout",
        "",
        Kind::Number(1, 3_600),
        Change::Nothing,
        "Seconds from the first moment that an instance runs until it has to answer its health checks well. Without it: Timeout where that is set, else 120.",
    ),
    // Kubernetes' minReadySeconds is 0 unless set, Nomad's min_healthy_time 10 s, and EB's enhanced health
    // looks at a batch for 2 minutes. 5 s outlast an app that ends every second or two together with its
    // first pauses, and a rolling update still takes no longer than people wait for.
    option(
        INSTANCE,
        "MinUptime",
        "5",
        Kind::Number(0, 3_600),
        Change::Nothing,
        "Seconds that an instance of a new release has to run without a restart before it gets traffic. A release that was live before needs none.",
    ),
    option(
        RELEASE,
        "Keep",
        "5",
        Kind::Number(1, 50),
        Change::Nothing,
        "Releases that stay prepared on each host, so that going back is a restart.",
    ),
    option(
        RELEASE,
        "BuildMemoryMax",
        "",
        Kind::Number(64, 4_194_304),
        Change::Nothing,
        "MiB of memory that preparing a release may use; more is killed and reported. Without it: half of the host's, at least 512. Needs an agent with root.",
    ),
    option(
        RELEASE,
        "BuildCpuMax",
        "",
        Kind::Number(10, 1_024_000),
        Change::Nothing,
        "Thousandths of a core that preparing a release may use. Without it: all cores but one, at least one. Needs an agent with root.",
    ),
    option(
        RELEASE,
        "BuildProcessesMax",
        "",
        Kind::Number(16, 4_194_304),
        Change::Nothing,
        "Processes and threads of preparing a release. Without it: 1024. Needs an agent with root.",
    ),
    option(
        PLACEMENT,
        "HostLabels",
        "",
        Kind::Labels,
        Change::Nothing,
        "Labels that a host must have to get instances. On a change, instances move off hosts that lack one: their successors serve before they go.",
    ),
    option(
        PROXY,
        "Algorithm",
        "round-robin",
        Kind::OneOf(&["round-robin", "least-connections"]),
        Change::Nothing,
        "Which instance gets the next request.",
    ),
];

/// Why option settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("There is no option `{}` in namespace `{}`.{}", crate::ids::shown(name), crate::ids::shown(namespace), suggestion.as_ref().map(|s| format!(" Did you mean `{s}`?")).unwrap_or_default())]
    Unknown {
        /// The namespace given.
        namespace: String,
        /// The name given.
        name: String,
        /// A known option of nearly this name.
        suggestion: Option<String>,
    },
    /// A value that the option does not take.
    #[error(
        "`{}` is not a value of option `{name}` ({namespace}): it takes {rule}",
        crate::ids::shown(value)
    )]
    Value {
        /// The namespace.
        namespace: String,
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        rule: String,
    },
    /// Environment properties break EB's limits (guide, "environments-cfg-softwaresettings").
    #[error("Environment property `{}`: {rule}", crate::ids::shown(name))]
    Property {
        /// The property; its value may be secret.
        name: String,
        /// The limit.
        rule: String,
    },
}

/// The option of that namespace and name.
pub fn spec(namespace: &str, name: &str) -> Option<&'static OptionSpec> {
    KNOWN
        .iter()
        .find(|known| known.namespace == namespace && known.name == name)
}

/// The word among `known` that is most like `word`, if any is near enough to be a slip.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min_by_key(|(distance, candidate)| (*distance, *candidate))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Kind {
    /// The rule in words, for messages and reference pages.
    pub fn rule(self) -> String {
        match self {
            Self::Text => "any text".to_owned(),
            Self::Bool => "`true` or `false`".to_owned(),
            Self::Number(low, high) => format!("a whole number from {low} to {high}"),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Path => "a path that begins with `/`, or nothing".to_owned(),
            Self::Labels => "labels such as `disk=ssd` or `disk=ssd,zone=a`, or nothing".to_owned(),
            Self::Statuses => "statuses or ranges such as `200`, `200-399` or `200,204`".to_owned(),
        }
    }

    fn accepts(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Bool => parse_bool(value).is_some(),
            Self::Number(low, high) => value
                .parse::<u64>()
                .is_ok_and(|number| (low..=high).contains(&number)),
            Self::OneOf(words) => words.contains(&value),
            Self::Path => {
                value.is_empty()
                    || (value.starts_with('/')
                        && value.len() <= 1024
                        && value.bytes().all(|byte| byte.is_ascii_graphic()))
            }
            Self::Statuses => parse_statuses(value).is_some(),
            Self::Labels => parse_labels(value).is_some(),
        }
    }
}

fn parse_bool(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn parse_statuses(value: &str) -> Option<Vec<(u16, u16)>> {
    let ranges = value
        .split(',')
        .map(|part| {
            let (low, high) = part
                .trim()
                .split_once('-')
                .unwrap_or((part.trim(), part.trim()));
            let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
            (100 <= low && low <= high && high <= 599).then_some((low, high))
        })
        .collect::<Option<Vec<(u16, u16)>>>()?;
    (!ranges.is_empty()).then_some(ranges)
}

/// Reads one label: `NAME=VALUE`, each of letters, digits and `.`, `_`, `-`, `/`; a value may be empty.
pub fn parse_label(text: &str) -> Option<(String, String)> {
    let (name, value) = text.trim().split_once('=')?;
    let fits = |word: &str| {
        word.len() <= 63
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
    };
    (!name.is_empty() && fits(name) && fits(value)).then(|| (name.to_owned(), value.to_owned()))
}

fn parse_labels(value: &str) -> Option<BTreeMap<String, String>> {
    if value.trim().is_empty() {
        return Some(BTreeMap::new());
    }
    let mut labels = BTreeMap::new();
    for part in value.split(',') {
        let (name, value) = parse_label(part)?;
        // A host has one value for a name: asking for two would never be met.
        if labels.insert(name, value).is_some() {
            return None;
        }
    }
    Some(labels)
}

impl OptionSettings {
    /// The value set, if any; never a default.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&str> {
        self.0.get(namespace)?.get(name).map(String::as_str)
    }

    /// Sets a value, without checking it.
    pub fn set(&mut self, namespace: &str, name: &str, value: impl Into<String>) {
        self.0
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), value.into());
    }

    /// Removes a value and says whether it was there.
    pub fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(options) = self.0.get_mut(namespace) else {
            return false;
        };
        let was_there = options.remove(name).is_some();
        if options.is_empty() {
            self.0.remove(namespace);
        }
        was_there
    }

    /// These settings with `over` laid upon them.
    pub fn overlaid(&self, over: &Self) -> Self {
        let mut all = self.clone();
        for (namespace, options) in &over.0 {
            for (name, value) in options {
                all.set(namespace, name, value.clone());
            }
        }
        all
    }

    /// Checks every option and value.
    pub fn validate(&self) -> Result<(), OptionError> {
        for (namespace, options) in &self.0 {
            for (name, value) in options {
                if namespace == PROPERTIES {
                    validate_property(name, value)?;
                    continue;
                }
                let Some(spec) = spec(namespace, name) else {
                    let suggestion = nearest(name, KNOWN.iter().map(|known| known.name));
                    return Err(OptionError::Unknown {
                        namespace: namespace.clone(),
                        name: name.clone(),
                        suggestion: suggestion.and_then(|name| {
                            let known = KNOWN.iter().find(|known| known.name == name)?;
                            Some(format!("{}:{}", known.namespace, known.name))
                        }),
                    });
                };
                if !spec.kind.accepts(value) {
                    return Err(OptionError::Value {
                        namespace: namespace.clone(),
                        name: name.clone(),
                        value: value.clone(),
                        rule: spec.kind.rule(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The value in force: what is set, else the default. Empty when neither is there.
    pub fn effective(&self, namespace: &str, name: &str) -> &str {
        self.get(namespace, name)
            .unwrap_or_else(|| spec(namespace, name).map_or("", |spec| spec.default))
    }

    fn number(&self, namespace: &str, name: &str) -> Option<u64> {
        self.effective(namespace, name).parse().ok()
    }

    fn flag(&self, namespace: &str, name: &str) -> bool {
        parse_bool(self.effective(namespace, name)).unwrap_or(false)
    }

    /// The environment properties.
    pub fn properties(&self) -> Properties {
        Properties(self.0.get(PROPERTIES).cloned().unwrap_or_default())
    }

    /// How deployments run. EB's rule: no policy and a BatchSize below 100 % mean Rolling.
    pub fn deployment(&self) -> DeploymentOptions {
        let size = self.number(COMMAND, "BatchSize").unwrap_or(30);
        let batch = if self.effective(COMMAND, "BatchSizeType") == "Fixed" {
            BatchSize::Fixed(u32::try_from(size).unwrap_or(u32::MAX))
        } else {
            BatchSize::Percentage(u8::try_from(size.min(100)).unwrap_or(100))
        };
        let policy = match self.effective(COMMAND, "DeploymentPolicy") {
            "AllAtOnce" => DeploymentPolicy::AllAtOnce,
            "Rolling" => DeploymentPolicy::Rolling,
            _ if batch == BatchSize::Percentage(100) => DeploymentPolicy::AllAtOnce,
            _ => DeploymentPolicy::Rolling,
        };
        DeploymentOptions {
            policy,
            batch,
            timeout_ms: self.number(COMMAND, "Timeout").unwrap_or(600) * 1_000,
            start_timeout_ms: self
                .number(INSTANCE, "StartTimeout")
                .or_else(|| self.get(COMMAND, "Timeout")?.parse().ok())
                .unwrap_or(START_TIMEOUT_S)
                * 1_000,
            min_uptime_ms: self.number(INSTANCE, "MinUptime").unwrap_or(5) * 1_000,
            ignore_health_check: self.flag(COMMAND, "IgnoreHealthCheck"),
            drain_timeout_ms: self.number(PROCESS, "DeregistrationDelay").unwrap_or(20) * 1_000,
            keep_releases: u32::try_from(self.number(RELEASE, "Keep").unwrap_or(5)).unwrap_or(5),
        }
    }

    /// How the load balancer checks instances.
    pub fn health_check(&self) -> HealthCheck {
        let path = self
            .get(PROCESS, "HealthCheckPath")
            .or_else(|| self.get(APPLICATION, "Application Healthcheck URL"))
            .unwrap_or("/");
        let probe = if self.effective(PROCESS, "Protocol") == "TCP" || path.is_empty() {
            Probe::Tcp
        } else {
            Probe::Http {
                path: path.to_owned(),
                statuses: parse_statuses(self.effective(PROCESS, "MatcherHTTPCode"))
                    .unwrap_or_else(|| vec![(200, 399)]),
            }
        };
        let small = |name, default| {
            self.number(PROCESS, name)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(default)
        };
        HealthCheck {
            probe,
            interval_ms: self.number(PROCESS, "HealthCheckInterval").unwrap_or(1) * 1_000,
            timeout_ms: self.number(PROCESS, "HealthCheckTimeout").unwrap_or(5) * 1_000,
            healthy_threshold: small("HealthyThresholdCount", 2),
            unhealthy_threshold: small("UnhealthyThresholdCount", 3),
        }
    }

    /// Who gets the next request.
    pub fn algorithm(&self) -> Algorithm {
        match self.effective(PROXY, "Algorithm") {
            "least-connections" => Algorithm::LeastConnections,
            _ => Algorithm::RoundRobin,
        }
    }

    /// What an instance may use.
    pub fn limits(&self) -> Limits {
        Limits {
            memory_bytes: self
                .number(INSTANCE, "MemoryMax")
                .map(|mib| mib * 1024 * 1024),
            cpu_millis: self.number(INSTANCE, "CpuMax"),
            pids: self.number(INSTANCE, "ProcessesMax"),
            open_files: self.number(INSTANCE, "OpenFilesMax"),
        }
    }

    /// Labels that a host must have to get instances.
    pub fn host_labels(&self) -> BTreeMap<String, String> {
        parse_labels(self.effective(PLACEMENT, "HostLabels")).unwrap_or_default()
    }

    /// SIGTERM to SIGKILL, in milliseconds.
    pub fn stop_grace_ms(&self) -> u64 {
        self.number(INSTANCE, "StopGrace").unwrap_or(10) * 1_000
    }

    /// How many instances the environment shall have.
    pub fn instance_count(&self) -> u32 {
        if self.effective(ENVIRONMENT, "EnvironmentType") == "SingleInstance" {
            return 1;
        }
        self.number(ASG, "MinSize")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1)
    }

    /// Options of the platform, for the agent: name to value in force.
    pub fn platform_options(&self) -> BTreeMap<String, String> {
        KNOWN
            .iter()
            .filter(|known| {
                known.namespace == PYTHON
                    || known.namespace == RELEASE && known.name.starts_with("Build")
            })
            .map(|known| (known, self.effective(known.namespace, known.name)))
            // Limits that are not set are the agent's to decide.
            .filter(|(known, value)| known.namespace == PYTHON || !value.is_empty())
            .map(|(known, value)| (known.name.to_owned(), value.to_owned()))
            .collect()
    }
}

fn validate_property(name: &str, value: &str) -> Result<(), OptionError> {
    let refuse = |rule: &str| {
        Err(OptionError::Property {
            name: name.to_owned(),
            rule: rule.to_owned(),
        })
    };
    if name.is_empty() || name.len() > 128 {
        return refuse("a name has 1 to 128 characters");
    }
    if !name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.:/+\\-@".contains(c))
    {
        return refuse("a name has letters, digits and _ . : / + \\ - @ only");
    }
    if name.starts_with(|c: char| !c.is_ascii_alphabetic() && c != '_') {
        return refuse(
            "a name begins with a letter or `_`, or shells and many programs cannot read it",
        );
    }
    if name == "PORT" {
        return refuse(
            "Beanpole sets PORT itself, to the port on which each instance has to listen",
        );
    }
    if value.contains('\0') {
        return refuse("a value may not hold a NUL character");
    }
    // EB stops at 256 characters per value and 4,096 in all; own hosts need no such limit, but a
    // bound keeps one property from filling a process's environment.
    if value.len() > 32 * 1024 {
        return refuse("a value has at most 32,768 bytes");
    }
    Ok(())
}

/// How a new release reaches the instances.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub enum DeploymentPolicy {
    /// Every instance at once: fast, with an interruption.
    AllAtOnce,
    /// Batch after batch, each out of the load balancer while it changes.
    #[default]
    Rolling,
}

impl std::fmt::Display for DeploymentPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AllAtOnce => "AllAtOnce",
            Self::Rolling => "Rolling",
        })
    }
}

impl std::str::FromStr for DeploymentPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
            "allatonce" => Ok(Self::AllAtOnce),
            "rolling" => Ok(Self::Rolling),
            _ => Err(format!(
                "`{text}` is not a deployment policy: use `AllAtOnce` or `Rolling`"
            )),
        }
    }
}

/// How many instances change together. Written `2` or `30%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BatchSize {
    /// A share of the instances at the start, rounded down, at least one. 1 to 100.
    Percentage(u8),
    /// A number of instances. At least 1.
    Fixed(u32),
}

impl BatchSize {
    /// The number of instances per batch, for an environment of `instances`.
    pub fn of(self, instances: u32) -> u32 {
        match self {
            Self::Percentage(percent) => {
                let share = u64::from(instances) * u64::from(percent.min(100)) / 100;
                u32::try_from(share).unwrap_or(u32::MAX).max(1)
            }
            Self::Fixed(count) => count.clamp(1, instances.max(1)),
        }
    }
}

impl std::fmt::Display for BatchSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Percentage(percent) => write!(f, "{percent}%"),
            Self::Fixed(count) => count.fmt(f),
        }
    }
}

impl std::str::FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is not a batch size: use a number such as `2`, or a share such as `30%`"
            )
        };
        match text.strip_suffix('%') {
            Some(share) => match share.trim().parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percentage(percent)),
                _ => Err(wrong()),
            },
            None => match text.trim().parse() {
                Ok(count @ 1..) => Ok(Self::Fixed(count)),
                _ => Err(wrong()),
            },
        }
    }
}

impl utoipa::PartialSchema for BatchSize {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[1-9][0-9]*%?$"))
            .into()
    }
}

impl utoipa::ToSchema for BatchSize {}

impl TryFrom<String> for BatchSize {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BatchSize> for String {
    fn from(size: BatchSize) -> Self {
        size.to_string()
    }
}

/// The options that govern a deployment, as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentOptions {
    /// How the release reaches the instances.
    pub policy: DeploymentPolicy,
    /// How many change together under Rolling.
    pub batch: BatchSize,
    /// For preparing, in milliseconds.
    pub timeout_ms: u64,
    /// From the first moment that an instance runs until it has to be healthy, in milliseconds.
    pub start_timeout_ms: u64,
    /// How long an instance of a new release has to run without a restart, in milliseconds.
    pub min_uptime_ms: u64,
    /// Go on when a batch runs but is not healthy in time.
    pub ignore_health_check: bool,
    /// For finishing requests, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Releases kept prepared on each host.
    pub keep_releases: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_that_its_option_takes() {
        for known in KNOWN {
            if !known.default.is_empty() {
                assert!(
                    known.kind.accepts(known.default),
                    "{}:{}",
                    known.namespace,
                    known.name
                );
            }
        }
    }

    #[test]
    fn an_unknown_option_suggests_the_nearest_one() {
        let mut settings = OptionSettings::default();
        settings.set(COMMAND, "BatchSise", "3");
        let error = settings.validate().expect_err("unknown").to_string();
        assert_eq!(
            error,
            "There is no option `BatchSise` in namespace `aws:elasticbeanstalk:command`. Did you mean `aws:elasticbeanstalk:command:BatchSize`?"
        );
    }

    #[test]
    fn a_batch_below_a_hundred_per_cent_without_a_policy_means_rolling() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.deployment().policy, DeploymentPolicy::Rolling);
        settings.set(COMMAND, "BatchSize", "100");
        assert_eq!(settings.deployment().policy, DeploymentPolicy::AllAtOnce);
    }

    #[test]
    fn labels_are_pairs_of_plain_words() {
        let mut settings = OptionSettings::default();
        settings.set(PLACEMENT, "HostLabels", "disk=ssd, example.org/zone=a");
        settings.validate().expect("labels");
        let labels = settings.host_labels();
        assert_eq!(labels["disk"], "ssd");
        assert_eq!(labels["example.org/zone"], "a");
        for wrong in ["disk", "=ssd", "disk=a b", "disk=ssd,disk=hdd", "disk=ssd,"] {
            settings.set(PLACEMENT, "HostLabels", wrong);
            assert!(settings.validate().is_err(), "{wrong}");
        }
        settings.set(PLACEMENT, "HostLabels", "");
        settings.validate().expect("none");
        assert!(settings.host_labels().is_empty());
    }

    #[test]
    fn an_instance_has_two_minutes_to_answer_unless_told_otherwise() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.deployment().start_timeout_ms, 120_000);
        settings.set(COMMAND, "Timeout", "900");
        assert_eq!(settings.deployment().start_timeout_ms, 900_000);
        settings.set(INSTANCE, "StartTimeout", "30");
        assert_eq!(settings.deployment().start_timeout_ms, 30_000);
        assert_eq!(settings.deployment().timeout_ms, 900_000);
    }

    #[test]
    fn batch_sizes_round_down_and_never_to_nothing() {
        assert_eq!(BatchSize::Percentage(30).of(10), 3);
        assert_eq!(BatchSize::Percentage(30).of(3), 1);
        assert_eq!(BatchSize::Percentage(1).of(3), 1);
        assert_eq!(BatchSize::Fixed(9).of(3), 3);
        assert_eq!("30%".parse(), Ok(BatchSize::Percentage(30)));
        assert!("0".parse::<BatchSize>().is_err());
        assert!("101%".parse::<BatchSize>().is_err());
    }

    #[test]
    fn names_that_no_process_could_use_are_refused_with_a_reason() {
        for (name, why) in [
            ("1A", "begins with a letter"),
            ("-x", "begins with a letter"),
            ("PORT", "Beanpole sets PORT itself"),
            ("A B", "letters, digits and"),
            ("", "1 to 128"),
        ] {
            let mut settings = OptionSettings::default();
            settings.set(PROPERTIES, name, "secret");
            let error = settings.validate().expect_err(name).to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let mut settings = OptionSettings::default();
        settings.set(PROPERTIES, "_a.b-C1", "x");
        settings.validate().expect("a fine name");
    }

    #[test]
    fn values_of_properties_are_not_printed() {
        let mut settings = OptionSettings::default();
        settings.set(PROPERTIES, "PASSWORD", "hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!format!("{:?}", settings.properties()).contains("hunter2"));
    }
}
