//! Two releases that share the requests: the share set and confirmed, then both compared for a while.

use super::{Step, Turn};
use crate::guard::{Evidence, p95, percent};
use crate::{Change, Happened, Split};
use beanpole_protocol::Generation;
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::TargetMode;
use std::time::Duration;

impl Turn<'_, '_> {
    /// Whether the share had its time.
    pub(super) fn split(&mut self, split: &Split) -> Step<bool> {
        let share = self.progress.share;
        let share = share.filter(|share| share.stage == self.progress.stage);
        let Some(share) = share else {
            return self.begin_split(split);
        };
        let (entered, _) = self.entering(&split.enters)?;
        let Some(confirmed) = share.confirmed else {
            self.confirm_share(split)?;
            return Ok(false);
        };
        self.compare()?;
        if !entered {
            return Ok(false);
        }
        let over = confirmed.after(Duration::from_millis(split.wait_ms));
        if self.progress.promoted || self.now >= over {
            return Ok(true);
        }
        self.wake_at(over);
        let left = over.since(self.now).as_secs();
        let release = self.plan.release.unwrap_or_default();
        let seen = self
            .world
            .evidence
            .as_ref()
            .map_or_else(String::new, sides_text);
        self.wait(
            None,
            format!(
                "Release {release} gets {} % of the requests for {left} s more{seen}.",
                split.percent
            ),
        );
        Ok(false)
    }

    /// Sets the share, together with the instances that go into service with it.
    fn begin_split(&mut self, split: &Split) -> Step<bool> {
        if self.progress.promoted {
            return Ok(true);
        }
        let (_, put_in) = self.entering(&split.enters)?;
        if split.enters.is_empty() || !put_in.is_empty() {
            // Before the instances: in no table do they have a share of their own making.
            self.entries.insert(
                0,
                Happened::ShareSet {
                    percent: split.percent,
                },
            );
        }
        Ok(false)
    }

    /// Waits until every proxy shares as it is wanted. Where nobody can say so any more because all the
    /// instances are gone, the plan fails by their own absence.
    fn confirm_share(&mut self, split: &Split) -> Step<()> {
        let changes: Vec<Change> = self.new_side().cloned().collect();
        let mut routed: Vec<Option<Generation>> = Vec::new();
        for change in &changes {
            if let Some(instance) = self.world.instances.get(&change.instance) {
                routed.push(instance.routed);
            }
        }
        let silent = routed.into_iter().find_map(|at| self.unconfirmed(at));
        let Some(who) = silent else {
            self.entries.push(Happened::ShareConfirmed {
                percent: split.percent,
            });
            return Ok(());
        };
        let since = self.progress.share.map_or(self.now, |share| share.since);
        let bound = self.bound(since, self.plan.timeouts.confirmed_ms());
        let text = format!(
            "Giving the new release {} % of the requests: {who} has not confirmed yet.",
            split.percent
        );
        match changes.first() {
            Some(change) => self.blocked(change, bound, "proxy-silent", text),
            None => Ok(()),
        }
    }

    /// Changes whose instances serve the new release.
    fn new_side(&self) -> impl Iterator<Item = &Change> {
        let (plan, world) = (self.plan, self.world);
        plan.changes().map(|(_, change)| change).filter(|change| {
            let instance = world.instances.get(&change.instance);
            instance.is_some_and(|instance| {
                Some(instance.release) == plan.release && instance.mode == Some(TargetMode::Serve)
            })
        })
    }

    /// Fails when the new release has proven worse than the limits allow.
    fn compare(&self) -> Step<()> {
        let (Some(limits), Some(evidence)) = (self.plan.guard, &self.world.evidence) else {
            return Ok(());
        };
        if self.progress.promoted {
            return Ok(());
        }
        let Some(worse) = evidence.worse(limits) else {
            return Ok(());
        };
        Err(Box::new(OperationFailure {
            code: "worse".to_owned(),
            message: worse.sentence(self.plan.release.unwrap_or_default()),
            instance: None,
            host: None,
            probe: None,
            answer: None,
            log: Vec::new(),
        }))
    }
}

/// `: 0.2 % of its 612 requests failed, 0.1 % of the other's 5508; …`.
fn sides_text(evidence: &Evidence) -> String {
    let sides = &evidence.total;
    if sides.new.requests == 0 {
        return String::new();
    }
    format!(
        ": so far {} of its {} requests failed and 95 % took at most {}; of the other's {} requests {} and {}",
        percent(&sides.new),
        sides.new.requests,
        p95(&sides.new),
        sides.old.requests,
        percent(&sides.old),
        p95(&sides.old),
    )
}
