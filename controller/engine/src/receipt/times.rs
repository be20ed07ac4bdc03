//! Where the time of an operation went, told by its journal.

use super::millis;
use beanpole_planner::{Batch, ChangeState, Happened, Plan, Progress, Stage, apply};
use beanpole_protocol::Timestamp;
use beanpole_protocol::api::{BatchReceipt, Phase, PhaseTime};
use beanpole_store::model::{JournalRecord, OperationRecord};
use std::collections::BTreeMap;

/// Milliseconds by phase.
type Spent = BTreeMap<Phase, u64>;

/// A way being walked again.
struct Walk<'o> {
    plan: &'o Plan,
    progress: Progress,
    back: bool,
}

/// The phases of an operation, and of each batch. Every moment counts for one phase.
pub(super) fn of(
    operation: &OperationRecord,
    journal: &[JournalRecord],
    end: Timestamp,
) -> (Vec<PhaseTime>, Vec<BatchReceipt>) {
    let mut walk = Walk {
        plan: &operation.plan,
        progress: Progress::default(),
        back: false,
    };
    let mut all = Spent::new();
    let mut batches: Vec<(BatchReceipt, Spent)> = Vec::new();
    let mut last = operation.started_at;
    let arrived = operation.receipt_marks.bundle_at.values().max().copied();
    let mut spend = |walk: &Walk<'_>, from: Timestamp, to: Timestamp| {
        let plan = walk.plan.around(&walk.progress);
        let stage = plan.stages.get(walk.progress.stage);
        let under_way = stage.filter(|_| walk.progress.since.is_some());
        let spent: Vec<(Phase, u64)> = match under_way {
            None => vec![(Phase::Waiting, ms(from, to))],
            Some(Stage::Prepare { .. }) => {
                // On the way back hosts hold what they ran before.
                let had = arrived.filter(|_| !walk.back).unwrap_or(from);
                let had = had.max(from).min(to);
                vec![
                    (Phase::Bundle, ms(from, had)),
                    (Phase::Preparing, ms(had, to)),
                ]
            }
            Some(Stage::Once { .. }) => vec![(Phase::ReleaseCommand, ms(from, to))],
            Some(Stage::TryCheck { .. }) => vec![(Phase::Checking, ms(from, to))],
            Some(Stage::Swap { .. }) => vec![(Phase::Switching, ms(from, to))],
            Some(Stage::Split(_)) => vec![(Phase::Splitting, ms(from, to))],
            Some(Stage::Batch(batch)) => vec![(laggard(batch, &walk.progress), ms(from, to))],
        };
        for (phase, ms) in &spent {
            *all.entry(*phase).or_default() += ms;
        }
        if let Some(Stage::Batch(batch)) = under_way {
            let same = |of: &BatchReceipt| of.number == batch.number && of.back == walk.back;
            if !batches.last().is_some_and(|(of, _)| same(of)) {
                batches.push((empty(batch, walk.back), Spent::new()));
            }
            if let Some((of, by_phase)) = batches.last_mut() {
                for (phase, ms) in spent {
                    of.took_ms += ms;
                    *by_phase.entry(phase).or_default() += ms;
                }
            }
        }
    };
    for entry in journal {
        // The clock may have been set back since.
        let at = entry.at.min(end);
        spend(&walk, last, at);
        last = last.max(at);
        if entry.back
            && !walk.back
            && let Some(back) = &operation.back
        {
            walk = Walk {
                plan: back,
                progress: Progress::default(),
                back: true,
            };
        }
        if matches!(entry.entry, Happened::Failed { .. }) {
            // What was under way is over, though nothing finished it.
            walk.progress.since = None;
            continue;
        }
        if let Ok(progress) = apply(walk.progress.clone(), entry.at, &entry.entry) {
            walk.progress = progress;
        }
    }
    spend(&walk, last, end);
    let batches = batches.into_iter().map(|(of, spent)| BatchReceipt {
        phases: listed(spent),
        ..of
    });
    let batches = batches.collect();
    (listed(all), batches)
}

fn empty(batch: &Batch, back: bool) -> BatchReceipt {
    BatchReceipt {
        number: batch.number,
        back,
        instances: u32::try_from(batch.changes.len()).unwrap_or(u32::MAX),
        took_ms: 0,
        phases: Vec::new(),
    }
}

/// The first phase that an instance of the batch is in. Those that are done, or have not begun while
/// others are under way, hold nobody up.
fn laggard(batch: &Batch, progress: &Progress) -> Phase {
    let changes = batch.changes.iter().map(|change| &change.instance);
    changes
        .chain(&batch.enters)
        .filter_map(|id| match progress.of(id) {
            ChangeState::Pending | ChangeState::Held | ChangeState::Done => None,
            ChangeState::Draining { .. } | ChangeState::Drained => Some(Phase::Draining),
            ChangeState::Stopping { .. } => Some(Phase::Stopping),
            ChangeState::Starting { .. } => Some(Phase::Starting),
            ChangeState::Checking { .. } => Some(Phase::Checking),
            ChangeState::Serving { .. } => Some(Phase::Switching),
        })
        .min()
        .unwrap_or(Phase::Waiting)
}

fn ms(from: Timestamp, to: Timestamp) -> u64 {
    millis(to.since(from))
}

fn listed(spent: Spent) -> Vec<PhaseTime> {
    let some = spent.into_iter().filter(|(_, ms)| *ms > 0);
    some.map(|(phase, ms)| PhaseTime { phase, ms }).collect()
}
