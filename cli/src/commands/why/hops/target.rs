//! The instances that could answer.

use super::{Hop, Known, Name, State};
use crate::output::plural;
use beanpole_protocol::api::ExplainedTarget;

/// Instances that are told one by one.
const MOST_TARGETS: usize = 12;

impl Known<'_> {
    pub(super) fn target(&self) -> Hop {
        if self.told.is_err() && self.why() == Some("no-healthy-instance") {
            return Hop::failed(
                Name::Target,
                "the load balancer has no instance that takes requests",
            )
            .hint("See how they are: beanpole health");
        }
        if let Some(hop) = self.not_met(Name::Target) {
            return hop;
        }
        if self.why() == Some("static-file") {
            return Hop::skipped(Name::Target, "a static file needs none");
        }
        let Some(told) = self.explained() else {
            return Hop::skipped(Name::Target, "unknown");
        };
        if told.targets.is_empty() {
            return Hop::skipped(Name::Target, "there are no instances");
        }
        let serving: u32 = told.pools.iter().map(|pool| pool.serving).sum();
        let taking: u32 = told.pools.iter().map(|pool| pool.taking).sum();
        let load = self.load();
        let text = format!(
            "{taking} of {} {} {load}",
            plural(u64::from(serving), "instance"),
            if serving == 1 { "takes" } else { "take" }
        );
        // What is odd comes first, and is not lost behind what is not.
        let mut targets: Vec<&ExplainedTarget> = told.targets.iter().collect();
        targets.sort_by_key(|target| target.taking && target.why.is_none());
        let more = targets.len().saturating_sub(MOST_TARGETS);
        let more = (more > 0).then(|| format!("and {more} more"));
        let lines = targets.iter().take(MOST_TARGETS).map(|one| targeted(one));
        let mut hop = Hop::ok(Name::Target, text).all(lines).and_if(more);
        let refused = self.why() == Some("no-healthy-instance");
        if self.is_answered() || (taking > 0 && !refused) {
            return hop;
        }
        hop.state = State::Failed;
        let any_connected = told.balancers.iter().any(|one| one.connected);
        if taking > 0 {
            hop.evidence.insert(
                0,
                "the load balancer found none that takes requests".to_owned(),
            );
        } else if !any_connected {
            let line =
                format!("no load balancer is connected that could say which instance takes {load}");
            return Hop {
                state: State::Skipped,
                ..hop.with_first(&line)
            };
        } else {
            hop.evidence[0] = format!(
                "none of {} takes {load}",
                plural(told.targets.len() as u64, "instance")
            );
        }
        match &told.environment {
            Some(one) => {
                let name = &one.name;
                hop.hint(format!(
                    "See why: beanpole health {name}, beanpole logs {name}"
                ))
            }
            None => hop,
        }
    }
}

fn targeted(target: &ExplainedTarget) -> String {
    let host = match &target.host {
        Some(host) => format!("on {host}"),
        None => format!("at {}", target.address),
    };
    let mut text = format!(
        "{} {host}, release {}: {}",
        target.instance, target.release, target.health
    );
    if let Some(why) = &target.why {
        text.push_str(&format!("; {why}"));
    }
    if let Some(check) = &target.last_check {
        let said = check.said();
        if !target.why.as_ref().is_some_and(|why| why.contains(&said)) {
            text.push_str(&format!("; last check: {said}"));
        }
    }
    text
}
