//! Requests served and failed while an operation runs, from counters of proxies that may restart.

use crate::Observed;
use beanpole_protocol::EnvironmentId;
use beanpole_protocol::proxy::Traffic;
use beanpole_store::model::{TrafficMark, TrafficMarks};

/// Accounts for everything up to what is seen now.
pub(crate) fn advance(marks: &mut TrafficMarks, environment: &EnvironmentId, observed: &Observed) {
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
        let mark = marks.marks.entry(name.clone()).or_insert(TrafficMark {
            run: report.run.clone(),
            requests: 0,
            failed: 0,
        });
        if mark.run != report.run {
            // Another run of the proxy: its counters began at zero.
            *mark = TrafficMark {
                run: report.run.clone(),
                requests: 0,
                failed: 0,
            };
        }
        marks.served += seen.requests.saturating_sub(mark.requests);
        marks.failed += seen.failed.saturating_sub(mark.failed);
        mark.requests = seen.requests.max(mark.requests);
        mark.failed = seen.failed.max(mark.failed);
    }
}

/// Starts counting from what is seen now.
pub(crate) fn start(environment: &EnvironmentId, observed: &Observed) -> TrafficMarks {
    let mut marks = TrafficMarks::default();
    advance(&mut marks, environment, observed);
    marks.served = 0;
    marks.failed = 0;
    marks
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
        total.requests += one.requests;
        total.failed += one.failed;
        for (class, count) in total.by_class.iter_mut().zip(one.by_class) {
            *class += count;
        }
        total.p50_us = total.p50_us.max(one.p50_us);
        total.p99_us = total.p99_us.max(one.p99_us);
    }
    total
}
