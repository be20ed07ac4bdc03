//! From the settings of a place to option settings.

use super::{Place, Scalar, Settings};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use beanpole_protocol::options::{
    ASG, BatchSize, COMMAND, ENVIRONMENT, INSTANCE, OptionSettings, PLACEMENT, PROCESS, PROPERTIES,
};
use beanpole_protocol::{Cname, EnvironmentName};
use std::collections::BTreeMap;

/// What holds for one environment: its own section laid over the rest of the file.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// How versions are built and run.
    pub platform: Option<Platform>,
    /// Web server or worker.
    pub tier: Option<Tier>,
    /// The first label of its hostname.
    pub cname: Option<Cname>,
    /// Whether a failed deployment goes back by itself.
    pub auto_rollback: Option<bool>,
    /// The option settings that it is created with.
    pub creation: OptionSettings,
    /// The option settings that every deployment sets: what `single` and `instances` stand for is left
    /// to `create` and `scale`.
    pub deployment: OptionSettings,
}

impl Settings {
    /// What holds for `environment`: the short settings, over them the options, over both the short
    /// settings of its own section, over all of that the options there.
    pub fn of(&self, environment: &EnvironmentName) -> InForce {
        let mut all = InForce::default();
        for place in [Some(&self.common), self.environments.get(environment)]
            .into_iter()
            .flatten()
        {
            place.lay_over(&mut all);
        }
        all
    }
}

impl Place {
    /// The option settings of this section alone, as for a new environment.
    pub fn own_settings(&self) -> OptionSettings {
        let mut own = InForce::default();
        self.lay_over(&mut own);
        own.creation
    }

    fn lay_over(&self, all: &mut InForce) {
        all.platform = self.platform.or(all.platform);
        all.tier = self.tier.or(all.tier);
        all.cname = self.cname.clone().or(all.cname.take());
        all.auto_rollback = self.auto_rollback.or(all.auto_rollback);
        self.lay_size_over(all);
        for settings in [&mut all.creation, &mut all.deployment] {
            self.lay_settings_over(settings);
        }
    }

    /// `single` and `instances` count when the environment is created. A deployment leaves alone what
    /// they stand for, also where options below them set it.
    fn lay_size_over(&self, all: &mut InForce) {
        if let Some(single) = self.single {
            for settings in [&mut all.creation, &mut all.deployment] {
                settings.remove(ENVIRONMENT, "EnvironmentType");
                if single {
                    settings.remove(ASG, "MinSize");
                }
            }
            if single {
                all.creation
                    .set(ENVIRONMENT, "EnvironmentType", "SingleInstance");
            }
        }
        if let Some(instances) = self.instances {
            all.creation.set(ASG, "MinSize", instances.to_string());
            all.deployment.remove(ASG, "MinSize");
        }
    }

    fn lay_settings_over(&self, all: &mut OptionSettings) {
        if let Some(policy) = self.policy {
            all.set(COMMAND, "DeploymentPolicy", policy.to_string());
        }
        if let Some(batch) = self.batch {
            set_batch(all, batch);
        }
        if !self.host_labels.is_empty() {
            set_labels(all, &self.host_labels);
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
            ("ReadyTimeout", health.ready_timeout),
            ("StartGrace", health.start_grace),
        ];
        for (name, value) in seconds {
            if let Some(value) = value {
                all.set(INSTANCE, name, value.to_string());
            }
        }
        if let Some(command) = &health.ready_command {
            all.set(INSTANCE, "ReadyCommand", command.clone());
        }
        for (name, value) in &self.env {
            all.set(PROPERTIES, name, value.text());
        }
        for (namespace, options) in &self.options {
            for (name, value) in options {
                all.set(namespace, name, value.text());
            }
        }
    }
}

/// Sets labels, and keeps those of other names that are there.
fn set_labels(settings: &mut OptionSettings, labels: &BTreeMap<String, Scalar>) {
    let before = settings
        .get(PLACEMENT, "HostLabels")
        .unwrap_or_default()
        .to_owned();
    let mut all: BTreeMap<&str, String> = before
        .split(',')
        .filter_map(|label| label.trim().split_once('='))
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    all.extend(
        labels
            .iter()
            .map(|(name, value)| (name.as_str(), value.text())),
    );
    let all: Vec<String> = all
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    settings.set(PLACEMENT, "HostLabels", all.join(","));
}

/// Sets a batch size: a share or a number.
fn set_batch(settings: &mut OptionSettings, batch: BatchSize) {
    let (kind, size) = match batch {
        BatchSize::Percentage(percent) => ("Percentage", u32::from(percent)),
        BatchSize::Fixed(count) => ("Fixed", count),
    };
    settings.set(COMMAND, "BatchSizeType", kind);
    settings.set(COMMAND, "BatchSize", size.to_string());
}
