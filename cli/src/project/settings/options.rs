//! From the settings of a place to option settings.

use super::{Health, Place, Settings};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::options::{
    ASG, BatchSize, COMMAND, ENVIRONMENT, INSTANCE, OptionSettings, PLACEMENT, PROCESS, PROPERTIES,
};

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
fn set_batch(settings: &mut OptionSettings, batch: BatchSize) {
    let (kind, size) = match batch {
        BatchSize::Percentage(percent) => ("Percentage", u32::from(percent)),
        BatchSize::Fixed(count) => ("Fixed", count),
    };
    settings.set(COMMAND, "BatchSizeType", kind);
    settings.set(COMMAND, "BatchSize", size.to_string());
}
