//! Another health check, tried before it is in force: what is well by the present one has to be well by it,
//! too. A path with a typo would take everything out of service otherwise, with nothing to go back to.

use super::failure::host_name;
use super::{Step, Turn};
use crate::{InstanceState, Serving};
use beanpole_protocol::InstanceId;
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::{HealthCheck, TargetReport, TriedCheck};

/// What is known of an instance under the check that is tried.
enum Known {
    Passes,
    Fails(TriedCheck),
    /// Why it is not known.
    Open(String),
}

impl Turn<'_, '_> {
    /// Whether everything that is well by the present check passes this one. What is not well cannot get
    /// worse, and may be what the new check is to mend.
    pub(super) fn try_check(&mut self, check: &HealthCheck) -> Step<bool> {
        let (world, mut all) = (self.world, true);
        // Those of other releases, which a failed deployment has left, keep the check that they have.
        let concerns = |(_, one): &(_, &InstanceState)| Some(one.release) == self.plan.release;
        for (id, _) in world.instances.iter().filter(concerns) {
            let known = match self.world.serving(id) {
                Serving::No => continue,
                Serving::Unknown => Known::Open(self.who_is_silent(id)),
                Serving::Yes => self.tried(id, check),
            };
            let text = match known {
                Known::Passes => continue,
                Known::Fails(tried) => return Err(self.not_passed(id, &tried)),
                Known::Open(text) => format!("Waiting for {id} under {}: {text}", check.probe),
            };
            all = false;
            if self.late(self.stage_bound()) {
                return Err(self.not_known(id, text));
            }
            self.wait(Some(id), text);
        }
        Ok(all)
    }

    fn tried(&self, id: &InstanceId, check: &HealthCheck) -> Known {
        let of_it = |target: &TargetReport| target.tried.clone().filter(|one| one.check == *check);
        for (proxy, target) in self.seen_by_proxies(id) {
            let Some(tried) = of_it(target) else {
                return Known::Open(format!("proxy {} has not asked it yet.", proxy.name));
            };
            match tried.passes() {
                Some(true) => {}
                Some(false) => return Known::Fails(tried),
                None => {
                    let answer = tried
                        .last
                        .map(|last| format!(", last answer {}", last.answer));
                    return Known::Open(format!(
                        "{} of {} good checks{}.",
                        tried.good_checks,
                        check.healthy_threshold,
                        answer.unwrap_or_default()
                    ));
                }
            }
        }
        Known::Passes
    }

    fn not_passed(&self, id: &InstanceId, tried: &TriedCheck) -> Box<OperationFailure> {
        let name = self.host_of(id);
        let said = tried.last.as_ref().map(|last| last.said());
        Box::new(OperationFailure {
            code: "check-not-passed".to_owned(),
            message: format!(
                "{id} on {name} is in service and would not be: {}. The health check stays as it was.",
                said.unwrap_or_else(|| tried.check.probe.to_string())
            ),
            instance: Some(id.clone()),
            host: host_name(&name),
            probe: Some(tried.check.probe.to_string()),
            answer: tried.last.as_ref().map(|last| last.answer.clone()),
            log: Vec::new(),
        })
    }

    fn not_known(&self, id: &InstanceId, text: String) -> Box<OperationFailure> {
        let name = self.host_of(id);
        let seconds = self.now.since(self.stage_bound().since).as_secs();
        Box::new(OperationFailure {
            code: "check-not-tried".to_owned(),
            message: format!(
                "Its time was up after {seconds} s. {text} The health check stays as it was."
            ),
            instance: Some(id.clone()),
            host: host_name(&name),
            probe: None,
            answer: None,
            log: Vec::new(),
        })
    }

    fn host_of(&self, id: &InstanceId) -> String {
        let instance = self.world.instances.get(id);
        instance.map_or_else(String::new, |one| self.world.host_name(&one.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Decision, Happened, HostState, Plan, Progress, ProxyState, Reach, Stage, World, next,
    };
    use beanpole_protocol::proxy::{
        CheckResult, HttpDetails, Probe, ProxyReport, TargetMode, Traffic,
    };
    use beanpole_protocol::{
        EnvironmentId, Generation, HostId, Incarnation, ReleaseNumber, Timestamp,
    };
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn check(path: &str) -> HealthCheck {
        HealthCheck {
            probe: Probe::Http {
                path: path.to_owned(),
                statuses: vec![(200, 399)],
                details: HttpDetails::default(),
            },
            ..HealthCheck::default()
        }
    }

    fn tried(path: &str, good: &[bool]) -> TriedCheck {
        let mut tried = TriedCheck::new(check(path));
        for good in good {
            tried.note(CheckResult {
                at: Timestamp::EPOCH,
                asked: format!("GET {path}"),
                good: *good,
                connected: true,
                answer: if *good { "200 in 1 ms" } else { "404 in 1 ms" }.to_owned(),
            });
        }
        tried
    }

    /// What comes after `seconds` when `/up` is tried on these: whether each is well, and what is known.
    fn after(seconds: u64, instances: &[(bool, Option<TriedCheck>)]) -> Decision {
        let host = HostId::from_bits(1);
        let ids = (1..).map(InstanceId::from_bits);
        let targets = instances.iter().zip(ids.clone());
        let targets = targets.map(|((healthy, tried), instance)| TargetReport {
            process: String::new(),
            processes: Vec::new(),
            instance,
            incarnation: Incarnation(1),
            mode: TargetMode::Serve,
            healthy: *healthy,
            good_checks: 9,
            good_for_ms: 9_000,
            bad_checks: 0,
            bad_for_ms: 0,
            last_check: None,
            in_flight: 0,
            traffic: Traffic::default(),
            tried: tried.clone(),
            ejected: None,
        });
        let report = ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: Generation(1),
            now: Timestamp::EPOCH,
            targets: targets.collect(),
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        };
        let state = InstanceState {
            host: host.clone(),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            mode: Some(TargetMode::Serve),
            routed: Some(Generation(1)),
            ordered: Some(Generation(1)),
            asks_ready: false,
        };
        let there = HostState {
            name: "h1".to_owned(),
            reach: Reach::Here,
            draining: false,
            labels: BTreeMap::new(),
            instances: 0,
            promised_memory: 0,
            heard: None,
            report: None,
            cannot: None,
        };
        let world = World {
            left_out: Vec::new(),
            environment: EnvironmentId::from_bits(1),
            operation: None,
            instances: ids
                .take(instances.len())
                .map(|id| (id, state.clone()))
                .collect(),
            hosts: [(host, there)].into(),
            proxies: vec![ProxyState::new(
                "proxy".to_owned(),
                Some(Timestamp::EPOCH),
                Some(&report),
            )],
            web: true,
            replace_after: Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        };
        let plan = Plan {
            release: Some(ReleaseNumber(1)),
            stages: vec![Stage::TryCheck {
                check: check("/up"),
            }],
            ..Plan::default()
        };
        let progress = Progress {
            since: Some(Timestamp::EPOCH),
            ..Progress::default()
        };
        next(
            &plan,
            &progress,
            &world,
            Timestamp::from_millis(seconds * 1_000),
        )
    }

    fn passed() -> Decision {
        Decision::Record(vec![Happened::StageFinished { stage: 0 }])
    }

    #[track_caller]
    fn fails_with(decision: Decision, text: &str) {
        let Decision::Record(entries) = decision else {
            panic!("{decision:?}");
        };
        let Some(Happened::Failed { failure }) = entries.last() else {
            panic!("{entries:?}");
        };
        assert!(failure.message.contains(text), "{}", failure.message);
    }

    #[track_caller]
    fn waits_for(decision: Decision, text: &str) {
        let Decision::Wait { reasons, .. } = decision else {
            panic!("{decision:?}");
        };
        assert!(
            reasons.iter().any(|(_, reason)| reason.contains(text)),
            "{reasons:?}"
        );
    }

    #[test]
    fn everything_that_is_well_has_to_pass() {
        let good = || (true, Some(tried("/up", &[true, true])));
        assert_eq!(after(1, &[good(), good()]), passed());
        let bad = (true, Some(tried("/up", &[false, false, false])));
        fails_with(after(1, &[good(), bad]), "GET /up answered: 404 in 1 ms");
        let open = (true, Some(tried("/up", &[false, true])));
        waits_for(
            after(1, &[good(), open]),
            "1 of 2 good checks, last answer 200 in 1 ms",
        );
    }

    #[test]
    fn what_is_not_well_may_be_what_the_check_is_to_mend() {
        let sick = (false, Some(tried("/up", &[false, false, false])));
        assert_eq!(after(1, &[sick]), passed());
    }

    #[test]
    fn what_was_known_of_another_check_is_no_answer() {
        let other = (true, Some(tried("/", &[true, true])));
        waits_for(
            after(1, std::slice::from_ref(&other)),
            "proxy proxy has not asked it yet",
        );
        fails_with(after(90, &[other]), "Its time was up after 90 s.");
    }
}
