//! The step after this one: what to record now, what to wait for, or how it ended.
//!
//! A stage is looked at as a whole, each of its changes by how far it is: `prepare` and `once` before anything
//! is touched, `try_check` where only the check changes, `leave` on the way out of service, `enter` on the way into it, `split` while two releases
//! share the requests. `failure` says why a plan cannot go on, `proxies` what the proxies know of an instance.

mod enter;
mod failure;
mod leave;
mod once;
mod prepare;
mod proxies;
mod split;
mod try_check;

use crate::{
    Action, Batch, Change, ChangeState, Gate, Happened, Plan, Progress, Reach, Serving, Stage,
    World, around,
};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{InstanceId, Timestamp};
use std::time::Duration;

pub use enter::OTHER_PORTS;
pub(crate) use failure::gone;
pub use failure::{RESTARTS_THAT_FAIL, how_it_ended, listens_unreached, restarts};

/// How long after one word of a host the next one comes at the latest: agents report every five seconds at
/// least.
const NEXT_WORD: Duration = Duration::from_secs(6);

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
    let plan = &*plan.around(progress);
    let Some(stage) = plan.stages.get(progress.stage) else {
        return Decision::Finished;
    };
    let Some(since) = progress.since else {
        return Decision::Record(vec![Happened::StageStarted {
            stage: progress.stage,
        }]);
    };
    if let Some(detour) = around::detour(plan, progress, world, now) {
        return Decision::Record(vec![detour]);
    }
    let mut turn = Turn {
        plan,
        progress,
        world,
        now,
        deadline: since.after(Duration::from_millis(plan.bound_ms(progress))),
        entries: Vec::new(),
        reasons: Vec::new(),
        wake: None,
    };
    let done = turn.watch().and_then(|()| match stage {
        Stage::Prepare {
            release,
            tree,
            hosts,
            ..
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
        Stage::TryCheck { check } => turn.try_check(check),
        Stage::Swap { .. } => Ok(turn.swap()),
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

    /// The bound of a phase that only its host can tell the end of: it is over by a word of the host from
    /// then. While the host is silent it will soon be either heard of or lost, and neither is the release's
    /// fault: until then the bound of the stage holds.
    fn while_heard(&self, change: &Change, bound: Bound) -> Bound {
        let Some(host) = self.world.hosts.get(&change.host) else {
            return bound;
        };
        let at = match (host.reach, host.heard) {
            (Reach::Silent(_), _) => self.deadline,
            (Reach::Here, Some(heard)) if heard < bound.at => {
                let due = heard.after(NEXT_WORD);
                if self.now < due {
                    due.max(bound.at)
                } else {
                    self.deadline
                }
            }
            _ => bound.at,
        };
        Bound {
            at: at.min(self.deadline),
            ..bound
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
        // Before its successors serve, nothing of what leaves is stopped.
        let entered = self.enter(&batch.enters, &batch.changes)?;
        let all = self.changes(batch, entered)?;
        Ok(all && entered && self.all_stay_up())
    }

    /// Whether what the plan has started, once it has started everything, has run for as long as the first of
    /// it had to. Until then it is watched.
    fn all_stay_up(&mut self) -> bool {
        let Gate::Proxies { up_ms, .. } = self.plan.gate else {
            return true;
        };
        let later = self.plan.stages.iter().skip(self.progress.stage + 1);
        let starts = |change: &Change| !matches!(change.action, Action::Remove | Action::Return);
        if up_ms == 0 || later.flat_map(Stage::changes).any(starts) {
            return true;
        }
        let progress = self.progress;
        let proven = || progress.proven.keys();
        let young = proven().find_map(|id| self.stood(id, up_ms)?.err());
        // Where nothing served, the first got traffic at once: somebody has to have stayed up by now.
        let nobody = || {
            proven()
                .next()
                .filter(|_| proven().all(|id| self.stood(id, up_ms).is_none()))
        };
        let young = young
            .or_else(|| nobody().map(|id| format!("Waiting for a word on whether {id} stays up.")));
        if let Some(text) = young.filter(|_| !self.late(self.stage_bound())) {
            self.wake_at(self.deadline);
            self.wait(None, text);
            return false;
        }
        true
    }

    /// Whether every change of the batch is done; `entered` where what enters with it serves.
    fn changes(&mut self, batch: &Batch, entered: bool) -> Step<bool> {
        let mut serving = self.capacity();
        let mut all = true;
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
                ChangeState::Pending | ChangeState::Drained
                    if !entered && !batch.enters.contains(id) => {}
                ChangeState::Pending => self.begin(batch, change, spare, &mut serving)?,
                ChangeState::Draining { since } => self.draining(batch, change, since)?,
                ChangeState::Drained => self.act(change)?,
                ChangeState::Stopping { since } => self.stopping(batch, change, since),
                ChangeState::Starting { since } => {
                    let bound = self.bound(since, self.plan.start_ms(self.progress, id));
                    let bound = self.while_heard(change, bound);
                    self.starting(batch, change, bound, false)?;
                }
                ChangeState::Checking { since } => {
                    let proven = self.plan.timeouts.proven_ms(self.plan.gate);
                    let bound = self.while_heard(change, self.bound(since, proven));
                    self.starting(batch, change, bound, true)?;
                }
                // What enters with others is seen to by `entering`.
                ChangeState::Serving { .. } if batch.enters.contains(id) => {}
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
