//! Two releases that share the requests, compared by what their operation counts of each.

use crate::{Observed, receipt};
use beanpole_planner::Stage;
use beanpole_planner::guard::{Sample, Sides};
use beanpole_protocol::{ReleaseNumber, Timestamp};
use beanpole_store::model::{OperationRecord, TrafficMarks};
use std::collections::BTreeSet;
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
    let Some(taken) = operation.guard.taken_at else {
        return Some(confirmed);
    };
    // A step does not end without a last look, however short it is.
    let over = match operation.plan.stages.get(share.stage) {
        Some(Stage::Split(split)) => confirmed.after(Duration::from_millis(split.wait_ms)),
        _ => confirmed,
    };
    let next = taken.after(LOOK);
    Some(if taken < over { next.min(over) } else { next })
}

/// Takes what was counted since the last look. The first look only remembers where the counts are.
///
/// `run` are the releases that instances of the environment run. What lingers of others ends requests of
/// days ago, which say nothing.
pub(crate) fn advance(
    operation: &mut OperationRecord,
    run: &BTreeSet<ReleaseNumber>,
    observed: &Observed,
    now: Timestamp,
) {
    let Some(release) = operation.plan.release else {
        return;
    };
    receipt::advance(operation, observed, now);
    let seen = sides(&operation.traffic, release, run);
    let guard = &mut operation.guard;
    if guard.taken_at.is_some() {
        guard.evidence.take(Sides {
            new: difference(&seen.new, &guard.seen.new),
            old: difference(&seen.old, &guard.seen.old),
        });
    }
    guard.seen = seen;
    guard.taken_at = Some(now);
}

/// What was counted of the release, and of all others that its environment runs.
fn sides(counted: &TrafficMarks, release: ReleaseNumber, run: &BTreeSet<ReleaseNumber>) -> Sides {
    let mut sides = Sides::default();
    for (number, sample) in &counted.releases {
        if *number == release {
            sides.new.add(sample);
        } else if run.contains(number) {
            sides.old.add(sample);
        }
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
