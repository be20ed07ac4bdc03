//! Requests served and failed while an operation runs, from counters of proxies that may restart.

use crate::Observed;
use beanpole_planner::guard::Sample;
use beanpole_protocol::proxy::Traffic;
use beanpole_protocol::{EnvironmentId, InstanceId, ReleaseNumber};
use beanpole_store::model::{TrafficMark, TrafficMarks};
use std::collections::BTreeMap;

/// Accounts for everything up to what is seen now. Requests are counted by instance, too, for those that
/// `counts` names: a report has the targets of every environment.
pub(crate) fn advance(
    marks: &mut TrafficMarks,
    environment: &EnvironmentId,
    observed: &Observed,
    counts: &dyn Fn(&InstanceId) -> bool,
) {
    for (name, proxy) in &observed.proxies {
        let Some(report) = &proxy.report else {
            continue;
        };
        let seen = report
            .environments
            .iter()
            .find(|of| of.environment == *environment)
            .map(|of| of.traffic)
            .unwrap_or_default();
        let mark = marks.marks.entry(name.clone()).or_default();
        if mark.run != report.run {
            // Another run of the proxy: its counters began at zero.
            marks.restarts += u32::from(!mark.run.is_empty());
            *mark = TrafficMark {
                run: report.run.clone(),
                ..TrafficMark::default()
            };
        }
        marks.served += seen.requests.saturating_sub(mark.requests);
        // What the app answered with 500 was no answer to whoever asked, as for the guard.
        let failed = seen.errors.max(seen.failed);
        marks.failed += failed.saturating_sub(mark.failed);
        mark.requests = seen.requests.max(mark.requests);
        mark.failed = failed.max(mark.failed);
        let ours = report
            .releases
            .iter()
            .filter(|of| of.environment == *environment);
        let mut held: BTreeMap<ReleaseNumber, Sample> = BTreeMap::new();
        for of in ours {
            let before = mark.releases.remove(&of.release).unwrap_or_default();
            // It left the table and came back, and began at zero then.
            let before = if of.requests < before.requests {
                Sample::default()
            } else {
                before
            };
            let total = marks.releases.entry(of.release).or_default();
            total.requests += of.requests - before.requests;
            total.errors += of.errors.saturating_sub(before.errors);
            total.latency.add(&of.latency.since(&before.latency));
            held.insert(
                of.release,
                Sample {
                    requests: of.requests,
                    errors: of.errors,
                    latency: of.latency.clone(),
                },
            );
        }
        mark.releases = held;
        for target in report.targets.iter().filter(|one| counts(&one.instance)) {
            let now = (target.incarnation, target.traffic.requests);
            let before = mark.instances.insert(target.instance.clone(), now);
            // A new incarnation starts from nothing.
            let before = before
                .filter(|(incarnation, count)| *incarnation == now.0 && *count <= now.1)
                .map_or(0, |(_, count)| count);
            *marks.instances.entry(target.instance.clone()).or_default() += now.1 - before;
        }
    }
}

/// Whether a proxy has counted requests that are not accounted for.
pub(crate) fn any_new(
    marks: &TrafficMarks,
    environment: &EnvironmentId,
    observed: &Observed,
) -> bool {
    observed.proxies.iter().any(|(name, proxy)| {
        let Some(report) = &proxy.report else {
            return false;
        };
        let mut seen = report.environments.iter();
        let seen = seen.find(|of| of.environment == *environment);
        let mark = marks.marks.get(name);
        mark.is_none_or(|mark| {
            mark.run != report.run || seen.is_some_and(|of| of.traffic.requests > mark.requests)
        })
    })
}

/// Starts counting from what is seen now.
pub(crate) fn start(
    environment: &EnvironmentId,
    observed: &Observed,
    counts: &dyn Fn(&InstanceId) -> bool,
) -> TrafficMarks {
    let mut marks = TrafficMarks::default();
    advance(&mut marks, environment, observed, counts);
    afresh(&marks)
}

/// Goes on counting from where these marks are.
pub(crate) fn afresh(marks: &TrafficMarks) -> TrafficMarks {
    TrafficMarks {
        marks: marks.marks.clone(),
        ..TrafficMarks::default()
    }
}

/// The environment's traffic over all proxies.
pub(crate) fn of_environment(environment: &EnvironmentId, observed: &Observed) -> Traffic {
    let all = observed
        .proxies
        .values()
        .filter_map(|proxy| proxy.report.as_ref())
        .flat_map(|report| &report.environments)
        .filter(|of| of.environment == *environment)
        .map(|of| of.traffic);
    sum(all)
}

/// Adds counters up. Latencies cannot be added; the worst is kept.
pub(crate) fn sum(all: impl Iterator<Item = Traffic>) -> Traffic {
    let mut total = Traffic::default();
    for one in all {
        total.add_beside(&one);
    }
    total
}
