//! Several processes of an instance that take requests: each is a target of its own, in a pool of its own.

use super::{ProxyReport, TargetReport};
use crate::{Incarnation, InstanceId};
use std::collections::BTreeMap;

impl TargetReport {
    /// What is seen of that process: of these, where there are several.
    pub fn of_process(&self, process: &str) -> Option<&Self> {
        if self.processes.is_empty() {
            return (self.process == process).then_some(self);
        }
        self.processes.iter().find(|one| one.process == process)
    }

    /// `` of process `api` ``; nothing of the one that is alone, or `web`.
    pub fn whose(&self) -> String {
        if self.process.is_empty() {
            String::new()
        } else {
            format!(" of process `{}`", self.process)
        }
    }
}

impl ProxyReport {
    /// One entry for each instance: it is well when all its processes are, and what it has in flight is what they
    /// have. What is seen of each stays with it, in [`TargetReport::processes`].
    pub fn by_instance(&mut self) {
        if self.targets.iter().all(|target| target.process.is_empty()) {
            return;
        }
        let mut instances: BTreeMap<(InstanceId, Incarnation), Vec<TargetReport>> = BTreeMap::new();
        for target in std::mem::take(&mut self.targets) {
            let key = (target.instance.clone(), target.incarnation);
            instances.entry(key).or_default().push(target);
        }
        self.targets = instances.into_values().filter_map(together).collect();
    }
}

/// The processes of an instance as one: as the first of them that is not well, or as the first of all.
fn together(mut processes: Vec<TargetReport>) -> Option<TargetReport> {
    processes.sort_by(|one, other| one.process.cmp(&other.process));
    let sick = processes.iter().find(|one| !one.healthy);
    let mut whole = sick.or(processes.first())?.clone();
    if let [_] = processes[..] {
        return Some(whole);
    }
    if !whole.process.is_empty() {
        // What it waits for may be less than this process does.
        whole.good_checks = 0;
        let whose = whole.whose();
        if let Some(check) = &mut whole.last_check {
            check.asked.push_str(&whose);
        }
    }
    let ejected = processes.iter().find(|one| one.ejected.is_some());
    whole.ejected = ejected.and_then(|one| {
        let mut ejection = one.ejected.clone()?;
        if !one.process.is_empty() {
            ejection.why = format!("process `{}`: {}", one.process, ejection.why);
        }
        Some(ejection)
    });
    // What is tried is the check of one of them.
    whole.tried = processes.iter().find_map(|one| one.tried.clone());
    whole.good_for_ms = processes.iter().map(|one| one.good_for_ms).min()?;
    whole.in_flight = processes.iter().map(|one| one.in_flight).sum();
    let mut traffic = processes[0].traffic;
    for one in &processes[1..] {
        traffic.add_beside(&one.traffic);
    }
    whole.traffic = traffic;
    whole.processes = processes;
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::proxy::{CheckResult, TargetMode, Traffic};

    fn target(process: &str, healthy: bool) -> TargetReport {
        TargetReport {
            instance: InstanceId::from_bits(1),
            process: process.to_owned(),
            incarnation: Incarnation(1),
            mode: TargetMode::Serve,
            healthy,
            good_checks: if healthy { 4 } else { 1 },
            good_for_ms: 100,
            bad_checks: u32::from(!healthy) * 5,
            bad_for_ms: 0,
            last_check: Some(CheckResult {
                at: Timestamp::from_millis(1),
                asked: "GET /".to_owned(),
                good: healthy,
                connected: true,
                answer: "200 in 1 ms".to_owned(),
            }),
            in_flight: 2,
            traffic: Traffic {
                requests: 10,
                p50_us: 5,
                ..Traffic::default()
            },
            tried: None,
            ejected: None,
            processes: Vec::new(),
        }
    }

    fn report(targets: Vec<TargetReport>) -> ProxyReport {
        ProxyReport {
            streams: Vec::new(),
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: crate::Generation(1),
            now: Timestamp::from_millis(1),
            targets,
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
        }
    }

    #[test]
    fn an_instance_is_well_when_all_its_processes_are() {
        let mut well = report(vec![target("api", true), target("", true)]);
        well.by_instance();
        let [whole] = &well.targets[..] else {
            panic!("one instance: {well:?}");
        };
        assert!(whole.healthy && whole.process.is_empty());
        assert_eq!((whole.good_checks, whole.in_flight), (4, 4));
        assert_eq!((whole.traffic.requests, whole.traffic.p50_us), (20, 5));
        assert!(whole.of_process("api").is_some() && whole.of_process("x").is_none());

        let mut ill = report(vec![target("", true), target("api", false)]);
        ill.by_instance();
        let whole = &ill.targets[0];
        assert!(!whole.healthy);
        assert_eq!((whole.good_checks, whole.bad_checks), (0, 5));
        let asked = whole.last_check.as_ref().map(|check| check.asked.as_str());
        assert_eq!(asked, Some("GET / of process `api`"));
        assert_eq!(whole.of_process("").map(|one| one.healthy), Some(true));
    }

    #[test]
    fn what_has_one_process_stays_as_it_is() {
        let mut one = report(vec![target("", false)]);
        one.by_instance();
        assert_eq!(one, report(vec![target("", false)]));
    }
}
