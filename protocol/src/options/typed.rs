//! Options as values: what is in force, with its type.

use super::kind::{parse_bool, parse_labels};
use super::processes::process_namespace;
use super::split::{GuardLimits, SplitStep};
use super::{
    APPLICATION, ASG, BatchSize, COMMAND, CONNECTIONS, DeploymentPolicy, ENVIRONMENT, HEALTH,
    INSTANCE, OptionSettings, PLACEMENT, PROCESS, PROPERTIES, PROXY, RELEASE, SPLIT, SPLITTING,
    SplitSteps,
};
use crate::agent::{Limits, Properties, ReadyOrder};
use crate::proxy::{Algorithm, Hold};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What StartTimeout is when neither it nor Timeout is set, in seconds: four times what slow starters
/// need on a small machine.
const START_TIMEOUT_S: u64 = 120;

/// The options that govern a deployment, as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentOptions {
    /// How the release reaches the instances.
    pub policy: DeploymentPolicy,
    /// How many change together under Rolling.
    pub batch: BatchSize,
    /// For preparing, in milliseconds.
    pub timeout_ms: u64,
    /// From the first moment that an instance runs: what it answers in that time does not count, in
    /// milliseconds.
    #[serde(default)]
    pub start_grace_ms: u64,
    /// From the end of that until it has to be healthy, in milliseconds.
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

impl OptionSettings {
    pub(super) fn number(&self, namespace: &str, name: &str) -> Option<u64> {
        self.effective(namespace, name).parse().ok()
    }

    pub(super) fn flag(&self, namespace: &str, name: &str) -> bool {
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
        let policy = match self.effective(COMMAND, "DeploymentPolicy").parse() {
            Ok(policy) => policy,
            Err(_) if batch == BatchSize::Percentage(100) => DeploymentPolicy::AllAtOnce,
            Err(_) => DeploymentPolicy::Rolling,
        };
        DeploymentOptions {
            policy,
            batch,
            timeout_ms: self.number(COMMAND, "Timeout").unwrap_or(600) * 1_000,
            start_grace_ms: self.number(INSTANCE, "StartGrace").unwrap_or(0) * 1_000,
            start_timeout_ms: self
                .number(INSTANCE, "StartTimeout")
                .or_else(|| self.get(COMMAND, "Timeout")?.parse().ok())
                .unwrap_or(START_TIMEOUT_S)
                * 1_000,
            min_uptime_ms: self.number(INSTANCE, "MinUptime").unwrap_or(5) * 1_000,
            ignore_health_check: self.flag(COMMAND, "IgnoreHealthCheck")
                || self.effective(HEALTH, "HealthCheckSuccessThreshold") == "Severe",
            drain_timeout_ms: self.drain_s() * 1_000,
            keep_releases: u32::try_from(self.number(RELEASE, "Keep").unwrap_or(5)).unwrap_or(5),
        }
    }

    /// How long an instance has to finish its requests, in seconds: as long as the slowest of its processes may take.
    fn drain_s(&self) -> u64 {
        let processes = std::iter::once("").chain(self.processes());
        let delays = processes
            .filter_map(|process| self.number(&process_namespace(process), "DeregistrationDelay"));
        delays.max().unwrap_or(20)
    }

    /// Whether the only instance may run beside its successor for a moment.
    pub fn overlap(&self) -> bool {
        self.flag(INSTANCE, "Overlap")
    }

    /// How long an instance that leaves may keep its open requests, in milliseconds from when it begins to;
    /// 0 where it is not waited for longer than its drain time. An application that must not run twice does
    /// not do so for the sake of a connection either.
    pub fn linger_ms(&self) -> u64 {
        if !self.overlap() {
            return 0;
        }
        self.number(CONNECTIONS, "LingerLimit").unwrap_or(0) * 1_000
    }

    /// The steps of a split.
    pub fn split(&self) -> SplitSteps {
        let own = self.get(SPLIT, "Steps").and_then(|text| text.parse().ok());
        let steps: SplitSteps = own.unwrap_or_else(|| {
            let percent = self.number(SPLITTING, "NewVersionPercent").unwrap_or(10);
            SplitSteps(vec![SplitStep {
                percent: u8::try_from(percent.clamp(1, 100)).unwrap_or(100),
                wait_s: None,
            }])
        });
        steps.with_waits(self.evaluation_s())
    }

    /// How long a step of a split lasts that has no time of its own, in seconds.
    pub fn evaluation_s(&self) -> u64 {
        self.number(SPLITTING, "EvaluationTime").unwrap_or(5) * 60
    }

    /// How much worse a new release may be in a split; none where releases are not compared.
    pub fn guard(&self) -> Option<GuardLimits> {
        self.flag(SPLIT, "Guard").then(|| {
            let limit = |name, default| {
                let number = self.number(SPLIT, name);
                number
                    .and_then(|n| u32::try_from(n).ok())
                    .unwrap_or(default)
            };
            GuardLimits {
                errors_points: limit("GuardErrors", 1),
                latency_percent: limit("GuardLatency", 50),
            }
        })
    }

    /// What the load balancer asks instances for, by whichever name it is set.
    pub fn health_check_path(&self) -> &str {
        self.get(PROCESS, "HealthCheckPath")
            .or_else(|| self.get(APPLICATION, "Application Healthcheck URL"))
            .unwrap_or("/")
    }

    /// Whether a good answer to a health check is another one under these settings than under `others`.
    pub fn checks_differently(&self, others: &Self) -> bool {
        let (here, there) = (self.health_check(), others.health_check());
        (here.probe, here.timeout_ms) != (there.probe, there.timeout_ms)
    }

    /// What has to succeed in an instance before it counts as started.
    pub fn ready(&self) -> Option<ReadyOrder> {
        let command = self.effective(INSTANCE, "ReadyCommand").trim();
        (!command.is_empty()).then(|| ReadyOrder {
            command: command.to_owned(),
            timeout_ms: self.number(INSTANCE, "ReadyTimeout").unwrap_or(10) * 1_000,
        })
    }

    /// Who gets the next request.
    pub fn algorithm(&self) -> Algorithm {
        match self.effective(PROXY, "Algorithm") {
            "least-connections" => Algorithm::LeastConnections,
            "peak-ewma" => Algorithm::PeakEwma,
            "consistent-hash" => Algorithm::ConsistentHash,
            _ => Algorithm::RoundRobin,
        }
    }

    /// How requests wait while no instance can take them; none where they do not.
    pub fn hold(&self) -> Option<Hold> {
        let seconds = self.number(PROXY, "HoldTimeout").unwrap_or_default();
        let most = self.number(PROXY, "HoldMax").unwrap_or_default();
        (seconds > 0).then(|| Hold {
            for_ms: seconds * 1_000,
            most: u32::try_from(most).unwrap_or(u32::MAX),
        })
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

    /// After how long without a request the environment needs no instance, in milliseconds; absent where it always
    /// does.
    pub fn sleeps_after_ms(&self) -> Option<u64> {
        let sleeps = self.number(ASG, "MinSize") == Some(0);
        let seconds = || self.number(PROXY, "IdleTime").unwrap_or(900);
        sleeps.then(|| seconds() * 1_000)
    }

    /// How requests wait for the first instance of an environment that sleeps.
    pub fn wakes(&self) -> Hold {
        self.hold().unwrap_or(Hold {
            for_ms: 30_000,
            most: 1_000,
        })
    }

    /// How many instances the environment shall have, while it does not sleep.
    pub fn instance_count(&self) -> u32 {
        if self.effective(ENVIRONMENT, "EnvironmentType") == "SingleInstance" {
            return 1;
        }
        self.number(ASG, "MinSize")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1)
            .max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_below_a_hundred_per_cent_without_a_policy_means_rolling() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.deployment().policy, DeploymentPolicy::Rolling);
        settings.set(COMMAND, "BatchSize", "100");
        assert_eq!(settings.deployment().policy, DeploymentPolicy::AllAtOnce);
    }

    #[test]
    fn what_must_not_run_twice_does_not_linger() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.linger_ms(), 0);
        settings.set(CONNECTIONS, "LingerLimit", "7200");
        assert_eq!(settings.linger_ms(), 7_200_000);
        settings.set(INSTANCE, "Overlap", "false");
        assert_eq!(settings.linger_ms(), 0);
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
    fn a_readiness_command_is_one_line_and_blanks_are_none() {
        let mut settings = OptionSettings::default();
        assert_eq!(settings.ready(), None);
        settings.set(INSTANCE, "ReadyCommand", " bin/ready --quick ");
        settings.validate().expect("a command");
        let ready = settings.ready().expect("one");
        assert_eq!(ready.command, "bin/ready --quick");
        assert_eq!(ready.timeout_ms, 10_000);
        settings.set(INSTANCE, "ReadyCommand", "  ");
        assert_eq!(settings.ready(), None);
        let long = "x".repeat(4097);
        for wrong in ["true\nfalse", "a\0b", long.as_str()] {
            settings.set(INSTANCE, "ReadyCommand", wrong);
            assert!(settings.validate().is_err(), "{wrong}");
        }
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
}
