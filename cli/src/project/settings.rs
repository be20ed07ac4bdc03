//! `deploy.toml`: every setting, checked with the line it stands on.
//!
//! [`SETTINGS`] lists every key once; unknown keys are errors with a suggestion, and keys that
//! begin with `x-` are free at every level. `deploy.toml.example` explains each of them, which a
//! test holds it to.

use crate::output::errors::Failure;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use beanpole_protocol::options::{
    self, ASG, BatchSize, COMMAND, DeploymentPolicy, ENVIRONMENT, INSTANCE, KNOWN, OptionSettings,
    PLACEMENT, PROCESS, PROPERTIES, nearest,
};
use beanpole_protocol::{ApplicationName, Cname, EnvironmentName};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// One key of `deploy.toml`, by its path; `*` stands for a name that the user chooses.
pub const SETTINGS: &[&str] = &[
    "application",
    "description",
    "environment",
    "platform",
    "tier",
    "single",
    "instances",
    "cname",
    "policy",
    "batch",
    "auto-rollback",
    "host-labels.*",
    "source.from",
    "source.git",
    "source.ignore",
    "source.label",
    "source.size-limit-mib",
    "health.protocol",
    "health.path",
    "health.interval",
    "health.timeout",
    "health.healthy-threshold",
    "health.unhealthy-threshold",
    "health.statuses",
    "health.drain-timeout",
    "health.start-timeout",
    "health.min-uptime",
    "env.*",
    "options.*.*",
    "environments.*.platform",
    "environments.*.tier",
    "environments.*.single",
    "environments.*.instances",
    "environments.*.cname",
    "environments.*.policy",
    "environments.*.batch",
    "environments.*.auto-rollback",
    "environments.*.host-labels.*",
    "environments.*.health.protocol",
    "environments.*.health.path",
    "environments.*.health.interval",
    "environments.*.health.timeout",
    "environments.*.health.healthy-threshold",
    "environments.*.health.unhealthy-threshold",
    "environments.*.health.statuses",
    "environments.*.health.drain-timeout",
    "environments.*.health.start-timeout",
    "environments.*.health.min-uptime",
    "environments.*.env.*",
    "environments.*.options.*.*",
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

impl Settings {
    /// What holds for `environment`: its own section laid over the common settings.
    pub fn place(&self, environment: &EnvironmentName) -> Place {
        match self.environments.get(environment) {
            Some(own) => self.common.overlaid(own),
            None => self.common.clone(),
        }
    }
}

impl Place {
    fn overlaid(&self, over: &Self) -> Self {
        let mut all = self.clone();
        all.platform = over.platform.or(all.platform);
        all.tier = over.tier.or(all.tier);
        all.single = over.single.or(all.single);
        all.instances = over.instances.or(all.instances);
        all.cname = over.cname.clone().or(all.cname);
        all.policy = over.policy.or(all.policy);
        all.batch = over.batch.or(all.batch);
        all.auto_rollback = over.auto_rollback.or(all.auto_rollback);
        all.host_labels.extend(over.host_labels.clone());
        let Health {
            protocol,
            path,
            interval,
            timeout,
            healthy_threshold,
            unhealthy_threshold,
            statuses,
            drain_timeout,
            start_timeout,
            min_uptime,
        } = over.health.clone();
        let health = &mut all.health;
        health.protocol = protocol.or(health.protocol.take());
        health.path = path.or(health.path.take());
        health.interval = interval.or(health.interval);
        health.timeout = timeout.or(health.timeout);
        health.healthy_threshold = healthy_threshold.or(health.healthy_threshold);
        health.unhealthy_threshold = unhealthy_threshold.or(health.unhealthy_threshold);
        health.statuses = statuses.or(health.statuses.take());
        health.drain_timeout = drain_timeout.or(health.drain_timeout);
        health.start_timeout = start_timeout.or(health.start_timeout);
        health.min_uptime = min_uptime.or(health.min_uptime);
        all.env.extend(over.env.clone());
        for (namespace, options) in &over.options {
            all.options
                .entry(namespace.clone())
                .or_default()
                .extend(options.clone());
        }
        all
    }

    /// As option settings, for a deployment: what is about the number of instances is left to
    /// `create` and `scale`.
    pub fn option_settings(&self) -> OptionSettings {
        let mut all = OptionSettings::default();
        if let Some(policy) = self.policy {
            all.set(COMMAND, "DeploymentPolicy", policy.to_string());
        }
        if let Some(batch) = self.batch {
            set_batch(&mut all, batch);
        }
        if !self.host_labels.is_empty() {
            let labels: Vec<String> = self
                .host_labels
                .iter()
                .map(|(name, value)| format!("{name}={}", value.text()))
                .collect();
            all.set(PLACEMENT, "HostLabels", labels.join(","));
        }
        let health = &self.health;
        let numbers = [
            ("HealthCheckInterval", health.interval),
            ("HealthCheckTimeout", health.timeout),
            ("HealthyThresholdCount", health.healthy_threshold),
            ("UnhealthyThresholdCount", health.unhealthy_threshold),
            ("DeregistrationDelay", health.drain_timeout),
        ];
        let texts = [
            (
                "Protocol",
                health.protocol.as_ref().map(|p| p.to_uppercase()),
            ),
            ("HealthCheckPath", health.path.clone()),
            ("MatcherHTTPCode", health.statuses.clone()),
        ];
        let numbers = numbers.map(|(name, value)| (name, value.map(|value| value.to_string())));
        for (name, value) in numbers.into_iter().chain(texts) {
            if let Some(value) = value {
                all.set(PROCESS, name, value);
            }
        }
        let seconds = [
            ("StartTimeout", health.start_timeout),
            ("MinUptime", health.min_uptime),
        ];
        for (name, value) in seconds {
            if let Some(value) = value {
                all.set(INSTANCE, name, value.to_string());
            }
        }
        for (name, value) in &self.env {
            all.set(PROPERTIES, name, value.text());
        }
        for (namespace, options) in &self.options {
            for (name, value) in options {
                all.set(namespace, name, value.text());
            }
        }
        all
    }

    /// As option settings, for a new environment.
    pub fn creation_settings(&self) -> OptionSettings {
        let mut all = OptionSettings::default();
        if let Some(instances) = self.instances {
            all.set(ASG, "MinSize", instances.to_string());
        }
        if self.single == Some(true) {
            all.set(ENVIRONMENT, "EnvironmentType", "SingleInstance");
        }
        all.overlaid(&self.option_settings())
    }
}

/// Sets a batch size: a share or a number.
pub fn set_batch(settings: &mut OptionSettings, batch: BatchSize) {
    let (kind, size) = match batch {
        BatchSize::Percentage(percent) => ("Percentage", u32::from(percent)),
        BatchSize::Fixed(count) => ("Fixed", count),
    };
    settings.set(COMMAND, "BatchSizeType", kind);
    settings.set(COMMAND, "BatchSize", size.to_string());
}

/// Why a `deploy.toml` is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Counted from 1; none when it concerns the whole file.
    pub line: Option<usize>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Wrong {
    /// As users see it, with the file and line.
    pub fn into_failure(self, path: &Path) -> Failure {
        let place = match self.line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        let failure = Failure::misuse(format!("{place}: {}", self.message));
        failure.hint(self.hint.unwrap_or_else(|| {
            "Every setting is explained in deploy.toml.example: beanpole init --explain".to_owned()
        }))
    }
}

/// Reads the text of a `deploy.toml`.
pub fn parse(text: &str) -> Result<Settings, Wrong> {
    let syntax = |error: toml::de::Error| Wrong {
        line: error.span().map(|span| line_of(text, span.start)),
        message: sentence(error.message()),
        hint: None,
    };
    let mut table = DeTable::parse(text).map_err(syntax)?;
    check_keys(text, table.get_mut(), &mut Vec::new())?;
    let common = Place::deserialize(toml::Deserializer::from(table.clone())).map_err(syntax)?;
    let settings = Settings {
        common,
        ..Settings::deserialize(toml::Deserializer::from(table)).map_err(syntax)?
    };
    check_options(text, &settings)?;
    if settings.source.from.is_some() && settings.source.git.is_some() {
        return Err(Wrong {
            line: find_key(text, "git"),
            message: "`source.from` and `source.git` exclude each other.".to_owned(),
            hint: Some(
                "Keep `git` to deploy what is committed, `from` to deploy files as they are."
                    .to_owned(),
            ),
        });
    }
    Ok(settings)
}

fn sentence(message: &str) -> String {
    let mut text = message.trim().replace('\n', ", ");
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

/// The line on which `key = …` or `"key" = …` first stands.
fn find_key(text: &str, key: &str) -> Option<usize> {
    text.lines()
        .position(|line| {
            let left = line.split('=').next().unwrap_or_default().trim();
            line.contains('=') && left.trim_matches(|c| c == '"' || c == '\'') == key
        })
        .map(|index| index + 1)
}

/// Refuses unknown keys and takes `x-` keys out.
fn check_keys(text: &str, table: &mut DeTable<'_>, path: &mut Vec<String>) -> Result<(), Wrong> {
    let names: Vec<(String, usize)> = table
        .iter()
        .map(|(key, _)| (key.get_ref().to_string(), key.span().start))
        .collect();
    for (name, offset) in names {
        if name.starts_with("x-") && !known_children(path).contains(&"*") {
            table.remove(name.as_str());
            continue;
        }
        let children = known_children(path);
        if !children.contains(&name.as_str()) && !children.contains(&"*") {
            return Err(unknown_key(text, path, &name, offset, &children));
        }
        path.push(name.clone());
        if let Some((_, value)) = table
            .iter_mut()
            .find(|(key, _)| key.get_ref().as_ref() == name)
            && let DeValue::Table(inner) = value.get_mut()
        {
            check_keys(text, inner, path)?;
        }
        path.pop();
    }
    Ok(())
}

fn unknown_key(text: &str, path: &[String], name: &str, offset: usize, children: &[&str]) -> Wrong {
    let place = if path.is_empty() {
        String::new()
    } else {
        format!(" in [{}]", path.join("."))
    };
    let hint = nearest(name, children.iter().copied())
        .map(|near| format!("Did you mean `{near}`? Keys that begin with `x-` are free."))
        .or_else(|| {
            let spec = KNOWN
                .iter()
                .find(|spec| spec.name.eq_ignore_ascii_case(name))?;
            Some(format!(
                "That option goes into [options.\"{}\"].",
                spec.namespace
            ))
        })
        .or_else(|| {
            (!children.is_empty()).then(|| format!("Known here: {}.", children.join(", ")))
        });
    Wrong {
        line: Some(line_of(text, offset)),
        message: format!("There is no setting `{name}`{place}."),
        hint,
    }
}

/// The keys that may stand below `path`.
fn known_children(path: &[String]) -> Vec<&'static str> {
    let mut children: Vec<&'static str> = SETTINGS
        .iter()
        .filter_map(|setting| {
            let mut parts = setting.split('.');
            for name in path {
                let part = parts.next()?;
                if part != "*" && part != name {
                    return None;
                }
            }
            parts.next()
        })
        .collect();
    children.dedup();
    children
}

/// Checks option names and values while the line is still known.
fn check_options(text: &str, settings: &Settings) -> Result<(), Wrong> {
    let places = std::iter::once(&settings.common).chain(settings.environments.values());
    for place in places {
        let all = place.creation_settings();
        let Err(error) = all.validate() else {
            continue;
        };
        let (line, hint) = match &error {
            options::OptionError::Unknown { name, .. } => (
                find_key(text, name),
                Some("Every option is in deploy.toml.example.".to_owned()),
            ),
            options::OptionError::Value {
                namespace, name, ..
            } => (
                find_key(text, name).or_else(|| find_key(text, setting_of(namespace, name))),
                None,
            ),
            options::OptionError::Property { name, .. } => (find_key(text, name), None),
        };
        return Err(Wrong {
            line,
            message: sentence(&error.to_string()),
            hint,
        });
    }
    Ok(())
}

/// The short setting that stands for an option.
fn setting_of<'a>(namespace: &str, name: &'a str) -> &'a str {
    match (namespace, name) {
        (PROCESS, "Protocol") => "protocol",
        (PROCESS, "HealthCheckPath") => "path",
        (PROCESS, "HealthCheckInterval") => "interval",
        (PROCESS, "HealthCheckTimeout") => "timeout",
        (PROCESS, "HealthyThresholdCount") => "healthy-threshold",
        (PROCESS, "UnhealthyThresholdCount") => "unhealthy-threshold",
        (PROCESS, "MatcherHTTPCode") => "statuses",
        (PROCESS, "DeregistrationDelay") => "drain-timeout",
        (INSTANCE, "StartTimeout") => "start-timeout",
        (INSTANCE, "MinUptime") => "min-uptime",
        (PLACEMENT, "HostLabels") => "host-labels",
        (ASG, "MinSize") => "instances",
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../deploy.toml.example");

    fn wrong(text: &str) -> Wrong {
        parse(text).expect_err("must be refused")
    }

    /// The example with every setting that is switched off (`#name = …`, no space) switched on.
    fn everything_on() -> String {
        EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with([' ', '#']) => rest,
                _ => line,
            })
            .filter(|line| !line.starts_with("git = "))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_parses_as_it_stands() {
        let settings = parse(EXAMPLE).expect("the example");
        assert!(settings.application.is_some());
    }

    #[test]
    fn the_example_explains_every_setting() {
        let text = everything_on();
        parse(&text).unwrap_or_else(|wrong| panic!("with everything on: {wrong:?}"));
        let table: toml::Table = text.parse().expect("toml");
        let missing: Vec<&&str> = SETTINGS
            .iter()
            .filter(|setting| **setting != "source.git")
            .filter(|setting| !has(&toml::Value::Table(table.clone()), setting))
            .collect();
        assert!(
            missing.is_empty(),
            "missing in deploy.toml.example: {missing:?}"
        );
        assert!(EXAMPLE.contains("\n#git = "), "source.git");
    }

    #[test]
    fn the_example_reaches_every_option() {
        let table: toml::Table = everything_on().parse().expect("toml");
        let options = table["options"].as_table().expect("options");
        for spec in KNOWN {
            assert!(
                options
                    .get(spec.namespace)
                    .and_then(|names| names.get(spec.name))
                    .is_some(),
                "missing in deploy.toml.example: {}:{}",
                spec.namespace,
                spec.name
            );
        }
    }

    fn has(value: &toml::Value, path: &str) -> bool {
        let (first, rest) = path
            .split_once('.')
            .map_or((path, None), |(a, b)| (a, Some(b)));
        let Some(table) = value.as_table() else {
            return false;
        };
        table
            .iter()
            .filter(|(key, _)| first == "*" || *key == first)
            .any(|(_, inner)| rest.is_none_or(|rest| has(inner, rest)))
    }

    /// Every field that serde knows is in SETTINGS, or it could not be written.
    #[test]
    fn the_list_of_settings_is_the_structs() {
        let fields = |error: String| -> Vec<String> {
            error
                .split('`')
                .skip(3)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let source = toml::from_str::<Source>("zzz = 1")
            .expect_err("unknown")
            .to_string();
        let health = toml::from_str::<Health>("zzz = 1")
            .expect_err("unknown")
            .to_string();
        let source = source.lines().last().unwrap_or_default().to_owned();
        let health = health.lines().last().unwrap_or_default().to_owned();
        for (section, names) in [("source", fields(source)), ("health", fields(health))] {
            assert!(names.len() > 2, "{section}: {names:?}");
            for name in names {
                let path = format!("{section}.{name}");
                assert!(SETTINGS.contains(&path.as_str()), "{path}");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
        let error = wrong("application = \"shop\"\n\n[health]\ninterval = 2\npaht = \"/\"\n");
        assert_eq!(error.line, Some(5));
        assert_eq!(error.message, "There is no setting `paht` in [health].");
        assert_eq!(
            error.hint.as_deref(),
            Some("Did you mean `path`? Keys that begin with `x-` are free.")
        );
    }

    #[test]
    fn keys_that_begin_with_x_are_free_at_every_level() {
        let text = "x-owner = \"me\"\n[health]\nx-why = { a = [1] }\npath = \"/up\"\n[environments.shop-prod]\nx-1 = 1\n[x-own.deep]\na = 1\n";
        let settings = parse(text).expect("free keys");
        assert_eq!(settings.common.health.path.as_deref(), Some("/up"));
    }

    #[test]
    fn a_property_may_begin_with_x() {
        let settings = parse("[env]\nx-a = \"1\"\n").expect("property");
        let options = settings.common.option_settings();
        assert_eq!(options.get(PROPERTIES, "x-a"), Some("1"));
    }

    #[test]
    fn values_are_checked_with_their_line() {
        assert_eq!(wrong("instances = \"three\"").line, Some(1));
        let error = wrong("application = \"a\"\n[health]\ninterval = 900\n");
        assert_eq!(error.line, Some(3));
        assert!(
            error.message.contains("a whole number from 1 to 300"),
            "{error:?}"
        );
        let error = wrong("policy = \"Immutible\"");
        assert!(
            error.message.contains("not a deployment policy"),
            "{error:?}"
        );
        let error = wrong("[options.\"aws:elasticbeanstalk:command\"]\nBatchSise = 3\n");
        assert_eq!(error.line, Some(2));
        assert!(error.message.contains("BatchSize"), "{error:?}");
    }

    #[test]
    fn a_section_of_an_environment_lies_over_the_common_settings() {
        let text = "instances = 3\nbatch = 1\n[env]\nA = 1\nB = true\n[environments.shop-prod]\ninstances = 5\n[environments.shop-prod.env]\nA = \"2\"\n";
        let settings = parse(text).expect("settings");
        let prod = settings.place(&EnvironmentName::new("shop-prod").expect("name"));
        let options = prod.creation_settings();
        assert_eq!(options.get(ASG, "MinSize"), Some("5"));
        assert_eq!(options.get(PROPERTIES, "A"), Some("2"));
        assert_eq!(options.get(PROPERTIES, "B"), Some("true"));
        assert_eq!(options.get(COMMAND, "BatchSizeType"), Some("Fixed"));
    }
}
