//! The step after this one: what to record now, what to wait for, or how it ended.
//!
//! A stage is looked at as a whole, each of its changes by how far it is: `prepare` and `once` before anything
//! is touched, `leave` on the way out of service, `enter` on the way into it, `split` while two releases
//! share the requests. `failure` says why a plan cannot go on, `proxies` what the proxies know of an instance.

mod enter;
mod failure;
mod leave;
mod once;
mod prepare;
mod proxies;
mod split;

use crate::{Batch, Change, ChangeState, Happened, Plan, Progress, Serving, Stage, World};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{InstanceId, Timestamp};
use std::time::Duration;

pub use enter::OTHER_PORTS;
pub use failure::{RESTARTS_THAT_FAIL, how_it_ended, listens_unreached, restarts};

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record these, with what they want of instances, then ask again.
    Record(Vec<Happened>),
    /// Nothing until something new is seen, or that time.
    Wait {
        /// When to ask again at the latest.
        until: Timestamp,
        /// What is waited for, one sentence each, with the instance where it is one.
        reasons: Vec<(Option<InstanceId>, String)>,
    },
    /// All is done.
    Finished,
    /// It cannot go on; the journal says why.
    Failed(OperationFailure),
}

/// Decides what comes next.
pub fn next(plan: &Plan, progress: &Progress, world: &World<'_>, now: Timestamp) -> Decision {
    if let Some(failure) = &progress.failed {
        return Decision::Failed(failure.clone());
    }
    let Some(stage) = plan.stages.get(progress.stage) else {
        return Decision::Finished;
    };
    let Some(since) = progress.since else {
        return Decision::Record(vec![Happened::StageStarted {
            stage: progress.stage,
        }]);
    };
    let mut turn = Turn {
        plan,
        progress,
        world,
        now,
        deadline: since.after(Duration::from_millis(plan.stage_ms(progress.stage))),
        entries: Vec::new(),
        reasons: Vec::new(),
        wake: None,
    };
    let done = turn.watch().and_then(|()| match stage {
        Stage::Prepare {
            release,
            tree,
            hosts,
        } => turn.prepare(*release, *tree, hosts),
        Stage::Once {
            release,
            tree,
            host,
            command,
        } => turn.once(once::Command {
            release: *release,
            tree: *tree,
            host,
            shown: command,
        }),
        Stage::Batch(batch) => turn.batch(batch),
        Stage::Split(split) => turn.split(split),
    });
    let done = match done {
        Ok(done) => done,
        Err(failure) => {
            // What was seen before still counts; the failure is the last entry.
            turn.entries.push(Happened::Failed { failure: *failure });
            return Decision::Record(turn.entries);
        }
    };
    if done {
        turn.entries.push(Happened::StageFinished {
            stage: progress.stage,
        });
    }
    if turn.entries.is_empty() {
        let until = turn.wake.map_or(turn.deadline, |at| at.min(turn.deadline));
        Decision::Wait {
            until,
            reasons: turn.reasons,
        }
    } else {
        Decision::Record(turn.entries)
    }
}

/// One look at a stage.
struct Turn<'t, 'w> {
    plan: &'t Plan,
    progress: &'t Progress,
    world: &'t World<'w>,
    now: Timestamp,
    deadline: Timestamp,
    entries: Vec<Happened>,
    reasons: Vec<(Option<InstanceId>, String)>,
    wake: Option<Timestamp>,
}

/// What one look at a part of a stage gives, unless the plan fails by it.
type Step<T> = Result<T, Box<OperationFailure>>;

/// Until when a phase may last.
#[derive(Clone, Copy, Debug)]
struct Bound {
    since: Timestamp,
    at: Timestamp,
}

impl Turn<'_, '_> {
    /// The bound of a phase, within that of the stage.
    fn bound(&self, since: Timestamp, ms: u64) -> Bound {
        Bound {
            since,
            at: since.after(Duration::from_millis(ms)).min(self.deadline),
        }
    }

    /// The bound of the whole stage.
    fn stage_bound(&self) -> Bound {
        Bound {
            since: self.progress.since.unwrap_or(self.now),
            at: self.deadline,
        }
    }

    fn late(&self, bound: Bound) -> bool {
        self.now >= bound.at
    }

    fn wait(&mut self, instance: Option<&InstanceId>, reason: String) {
        self.reasons.push((instance.cloned(), reason));
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    /// Whether every change of the batch is done.
    fn batch(&mut self, batch: &Batch) -> Step<bool> {
        let mut serving = self.capacity();
        // Before its successors serve, nothing of what leaves is stopped.
        let entered = self.enter(&batch.enters, &batch.changes)?;
        let mut all = entered;
        let under_way = batch.changes.iter().any(|change| {
            !matches!(
                self.progress.of(&change.instance),
                ChangeState::Pending | ChangeState::Done
            )
        });
        // While others of the batch change, they may be what is waited for.
        let spare = if under_way {
            self.stage_bound()
        } else {
            let starts = batch.starts();
            let since = self.stage_bound().since;
            self.bound(since, self.plan.timeouts.spared_ms(starts))
        };
        for change in &batch.changes {
            let id = &change.instance;
            let state = self.progress.of(id);
            all &= state == ChangeState::Done || (batch.hold && state == ChangeState::Held);
            match state {
                ChangeState::Done | ChangeState::Held => {}
                ChangeState::Pending | ChangeState::Drained if !entered => {}
                ChangeState::Pending => self.begin(batch, change, spare, &mut serving)?,
                ChangeState::Draining { since } => self.draining(batch, change, since)?,
                ChangeState::Drained => self.act(change)?,
                ChangeState::Stopping { since } => self.stopping(change, since),
                ChangeState::Starting { since } => {
                    let bound = self.bound(since, self.plan.timeouts.started_ms(self.plan.gate));
                    self.starting(batch, change, bound, false)?;
                }
                ChangeState::Checking { since } => {
                    let proven = self.plan.timeouts.proven_ms(self.plan.gate);
                    self.starting(batch, change, self.bound(since, proven), true)?;
                }
                ChangeState::Serving { since, forced } => self.put_in(change, since, forced)?,
            }
        }
        Ok(all)
    }

    /// Instances that count for the floor: those that serve and, where health is ignored, those that this
    /// plan has put in whatever they answer. Without them no batch but the first could ever go.
    fn capacity(&self) -> u32 {
        let forced = |change: &&Change| {
            self.plan.ignore_health
                && self.progress.of(&change.instance) == ChangeState::Done
                && self.world.serving(&change.instance) == Serving::No
                && self
                    .world
                    .instances
                    .get(&change.instance)
                    .is_some_and(|instance| instance.mode == Some(TargetMode::Serve))
        };
        let changes = self.plan.changes().map(|(_, change)| change);
        let forced = u32::try_from(changes.filter(forced).count()).unwrap_or(u32::MAX);
        self.world.serving_count().saturating_add(forced)
    }

    /// Waits until a bound, then fails.
    fn blocked(&mut self, change: &Change, bound: Bound, code: &str, text: String) -> Step<()> {
        if self.late(bound) {
            let seconds = self.now.since(bound.since).as_secs();
            let text = format!("Its time was up after {seconds} s. {text}");
            return Err(self.failure(change, code, text));
        }
        self.wake_at(bound.at);
        self.wait(Some(&change.instance), text);
        Ok(())
    }
}
