//! Two releases that share the requests, compared by what the proxies count of each.

use crate::Observed;
use beanpole_planner::guard::{Sample, Sides};
use beanpole_protocol::proxy::ProxyReport;
use beanpole_protocol::{EnvironmentId, ReleaseNumber, Timestamp};
use beanpole_store::model::{GuardMark, OperationRecord};
use std::time::Duration;

/// How long from one look to the next.
const LOOK: Duration = Duration::from_secs(5);

/// When the next look is due; absent while no share is in force.
pub(crate) fn due_at(operation: &OperationRecord) -> Option<Timestamp> {
    let share = operation.progress.share?;
    let is_shared = operation.back.is_none()
        && operation.progress.failed.is_none()
        && operation.plan.guard.is_some()
        && share.stage == operation.progress.stage;
    let confirmed = share.confirmed.filter(|_| is_shared)?;
    Some(match operation.guard.taken_at {
        Some(taken) => taken.after(LOOK),
        None => confirmed,
    })
}

/// Takes what was counted since the last look. The first look only sets the marks.
pub(crate) fn advance(operation: &mut OperationRecord, observed: &Observed, now: Timestamp) {
    if due_at(operation).is_none_or(|due| now < due) {
        return;
    }
    let Some(release) = operation.plan.release else {
        return;
    };
    let guard = &mut operation.guard;
    let mut gained = Sides::default();
    for (name, proxy) in &observed.proxies {
        let Some(report) = &proxy.report else {
            continue;
        };
        let seen = sides(report, &operation.environment, release);
        let before = match guard.marks.get(name) {
            Some(mark) if mark.run == report.run => mark.seen.clone(),
            // Another run of the proxy: its counters began at zero.
            Some(_) => Sides::default(),
            None => seen.clone(),
        };
        gained.new.add(&difference(&seen.new, &before.new));
        gained.old.add(&difference(&seen.old, &before.old));
        let mark = GuardMark {
            run: report.run.clone(),
            seen,
        };
        guard.marks.insert(name.clone(), mark);
    }
    if guard.taken_at.is_some() {
        guard.evidence.take(gained);
    }
    guard.taken_at = Some(now);
}

/// What a proxy has counted of the release and of all others of its environment.
fn sides(report: &ProxyReport, environment: &EnvironmentId, release: ReleaseNumber) -> Sides {
    let mut sides = Sides::default();
    let of_environment = report
        .releases
        .iter()
        .filter(|of| of.environment == *environment);
    for of in of_environment {
        let side = if of.release == release {
            &mut sides.new
        } else {
            &mut sides.old
        };
        side.add(&Sample {
            requests: of.requests,
            errors: of.errors,
            latency: of.latency.clone(),
        });
    }
    sides
}

fn difference(now: &Sample, before: &Sample) -> Sample {
    Sample {
        requests: now.requests.saturating_sub(before.requests),
        errors: now.errors.saturating_sub(before.errors),
        latency: now.latency.since(&before.latency),
    }
}
