//! `deploy.toml`: every setting, checked with the line it stands on.
//!
//! [`SETTINGS`] lists every key once, with what it takes; unknown keys are errors with a suggestion, and keys that
//! begin with `x-` are free at every level. `deploy.toml.example` explains each of them, which a
//! test holds it to.

mod options;
mod read;
mod takes;
#[cfg(test)]
mod tests;

pub use read::parse;
pub use takes::Takes;

use crate::commands::source;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::{ApplicationName, Cname, EnvironmentName};
pub use options::InForce;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One key of `deploy.toml`, by its path, and what it takes; `*` stands for a name that the user chooses.
pub const SETTINGS: &[(&str, Takes)] = &[
    ("application", Takes::Text),
    ("description", Takes::Text),
    ("environment", Takes::Text),
    ("platform", Takes::Text),
    ("tier", Takes::OneOf(&["web", "worker"])),
    ("single", Takes::Flag),
    ("instances", Takes::Whole),
    ("cname", Takes::Text),
    ("policy", Takes::Text),
    ("batch", Takes::Size),
    ("auto-rollback", Takes::Flag),
    ("host-labels.*", Takes::Value),
    ("source.from", Takes::Text),
    ("source.git", Takes::Text),
    ("source.ignore", Takes::Texts),
    ("source.label", Takes::OneOf(&["auto", "time"])),
    ("source.size-limit-mib", Takes::Whole),
    ("health.protocol", Takes::Text),
    ("health.path", Takes::Text),
    ("health.interval", Takes::Whole),
    ("health.timeout", Takes::Whole),
    ("health.healthy-threshold", Takes::Whole),
    ("health.unhealthy-threshold", Takes::Whole),
    ("health.statuses", Takes::Text),
    ("health.drain-timeout", Takes::Whole),
    ("health.start-timeout", Takes::Whole),
    ("health.min-uptime", Takes::Whole),
    ("health.start-grace", Takes::Whole),
    ("health.ready-command", Takes::Text),
    ("health.ready-timeout", Takes::Whole),
    ("env.*", Takes::Value),
    ("options.*.*", Takes::Value),
    ("environments.*.platform", Takes::Text),
    ("environments.*.tier", Takes::OneOf(&["web", "worker"])),
    ("environments.*.single", Takes::Flag),
    ("environments.*.instances", Takes::Whole),
    ("environments.*.cname", Takes::Text),
    ("environments.*.policy", Takes::Text),
    ("environments.*.batch", Takes::Size),
    ("environments.*.auto-rollback", Takes::Flag),
    ("environments.*.host-labels.*", Takes::Value),
    ("environments.*.health.protocol", Takes::Text),
    ("environments.*.health.path", Takes::Text),
    ("environments.*.health.interval", Takes::Whole),
    ("environments.*.health.timeout", Takes::Whole),
    ("environments.*.health.healthy-threshold", Takes::Whole),
    ("environments.*.health.unhealthy-threshold", Takes::Whole),
    ("environments.*.health.statuses", Takes::Text),
    ("environments.*.health.drain-timeout", Takes::Whole),
    ("environments.*.health.start-timeout", Takes::Whole),
    ("environments.*.health.min-uptime", Takes::Whole),
    ("environments.*.health.start-grace", Takes::Whole),
    ("environments.*.health.ready-command", Takes::Text),
    ("environments.*.health.ready-timeout", Takes::Whole),
    ("environments.*.env.*", Takes::Value),
    ("environments.*.options.*.*", Takes::Value),
];

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// The application that this directory is the source of.
    pub application: Option<ApplicationName>,
    /// What the application is, for people.
    pub description: Option<String>,
    /// The environment that commands mean when none is named.
    pub environment: Option<EnvironmentName>,
    /// Where its bundles come from.
    #[serde(default)]
    pub source: Source,
    /// What holds for every environment. It stands beside the rest in the file; read on its own,
    /// because serde forgets the lines of flattened values.
    #[serde(skip)]
    pub common: Place,
    /// What holds for one environment, laid over the rest.
    #[serde(default)]
    pub environments: BTreeMap<EnvironmentName, Place>,
}

/// Settings of an environment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Place {
    /// How versions are built and run.
    #[serde(default, deserialize_with = "platform")]
    pub platform: Option<Platform>,
    /// Web server or worker.
    pub tier: Option<Tier>,
    /// One instance, without its siblings.
    pub single: Option<bool>,
    /// How many instances, when it is created.
    pub instances: Option<u32>,
    /// The first label of its hostname.
    pub cname: Option<Cname>,
    /// How a new release reaches the instances.
    #[serde(default, deserialize_with = "policy")]
    pub policy: Option<DeploymentPolicy>,
    /// How many at a time.
    #[serde(default, deserialize_with = "batch")]
    pub batch: Option<BatchSize>,
    /// Whether a failed deployment goes back by itself.
    pub auto_rollback: Option<bool>,
    /// Labels that a host must have to get instances.
    #[serde(default)]
    pub host_labels: BTreeMap<String, Scalar>,
    /// How instances are checked.
    #[serde(default)]
    pub health: Health,
    /// Environment properties.
    #[serde(default)]
    pub env: BTreeMap<String, Scalar>,
    /// Any option by namespace and name.
    #[serde(default)]
    pub options: BTreeMap<String, BTreeMap<String, Scalar>>,
}

/// Where bundles come from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// A directory or a ZIP, relative to `deploy.toml`.
    pub from: Option<PathBuf>,
    /// A git ref, instead of the files as they lie there.
    pub git: Option<String>,
    /// Patterns to leave out, beside `.ebignore` or `.gitignore`.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// How versions are named.
    #[serde(default)]
    pub label: LabelStyle,
    /// Bundles above this are refused before they are sent, in MiB.
    pub size_limit_mib: Option<u64>,
}

/// How versions are named when no label is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelStyle {
    /// `app-<git hash>` for a git ref, `app-<time>` otherwise.
    #[default]
    Auto,
    /// `app-<time>` always.
    Time,
}

/// How the load balancer checks instances.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Health {
    /// `HTTP` or `TCP`.
    pub protocol: Option<String>,
    /// What is asked for.
    pub path: Option<String>,
    /// Seconds from one check to the next.
    pub interval: Option<u64>,
    /// Seconds that an answer may take.
    pub timeout: Option<u64>,
    /// Good checks in a row before traffic comes.
    pub healthy_threshold: Option<u64>,
    /// Bad checks in a row before it goes.
    pub unhealthy_threshold: Option<u64>,
    /// Good statuses.
    pub statuses: Option<String>,
    /// Seconds to finish requests.
    pub drain_timeout: Option<u64>,
    /// Seconds from the start of an instance until it has to pass its checks.
    pub start_timeout: Option<u64>,
    /// Seconds that an instance of a new release has to run without a restart before traffic comes.
    pub min_uptime: Option<u64>,
    /// Seconds from the start of an instance in which what it answers does not count.
    pub start_grace: Option<u64>,
    /// A command that has to exit with 0 in an instance before it counts as started.
    pub ready_command: Option<String>,
    /// Seconds that one run of it may take.
    pub ready_timeout: Option<u64>,
}

/// A value that travels as text.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// As it is.
    Text(String),
    /// `8080`.
    Number(i64),
    /// `true`.
    Flag(bool),
    /// `0.5`.
    Decimal(f64),
}

/// Values may be secret and are not printed.
impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Decimal(number) => number.to_string(),
        }
    }
}

fn platform<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Platform>, D::Error> {
    let text = String::deserialize(d)?;
    source::platform(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

fn policy<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<DeploymentPolicy>, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn batch<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<BatchSize>, D::Error> {
    let text = match Scalar::deserialize(d)? {
        Scalar::Number(number) => number.to_string(),
        other => other.text(),
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}
