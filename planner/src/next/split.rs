//! Two releases that share the requests: the share set and confirmed, then both compared for a while.

use super::{Step, Turn};
use crate::{Batch, Happened, Split, around};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::TargetMode;
use std::time::Duration;

impl Turn<'_, '_> {
    /// Whether the share had its time.
    pub(super) fn split(&mut self, split: &Split) -> Step<bool> {
        let joined = self.joined(split)?;
        let share = self.progress.share;
        let share = share.filter(|share| share.stage == self.progress.stage);
        let Some(share) = share else {
            return self.begin_split(split);
        };
        let (entered, _) = self.entering(&split.enters)?;
        if !self.entries.is_empty() {
            // What has just joined is in no table that a share could be confirmed by.
            return Ok(false);
        }
        let Some(confirmed) = share.confirmed else {
            self.confirm_share(split)?;
            return Ok(false);
        };
        self.compare()?;
        if !entered || !joined {
            return Ok(false);
        }
        let over = confirmed.after(Duration::from_millis(split.wait_ms));
        if self.progress.promoted || self.now >= over {
            return Ok(true);
        }
        self.wake_at(over);
        if let Some(at) = around::stand_ins_at(self.plan, self.progress, self.world) {
            // Where nobody can stand in, now as before.
            if at > self.now {
                self.wake_at(at);
            }
        }
        let left = match over.since(self.now).as_secs() {
            seconds @ 0..120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds.div_ceil(60)),
        };
        let release = self.plan.release.unwrap_or_default();
        let evidence = self.world.evidence.as_ref();
        let seen = evidence
            .and_then(|evidence| evidence.total.told())
            .map_or_else(String::new, |told| format!(": {told}"));
        self.wait(
            None,
            format!(
                "Release {release} gets {} % of the requests for {left} more{seen}.",
                split.percent
            ),
        );
        Ok(false)
    }

    /// Whether those serve that took the place of others meanwhile.
    fn joined(&mut self, split: &Split) -> Step<bool> {
        if split.changes.is_empty() {
            return Ok(true);
        }
        let batch = Batch {
            number: 0,
            drain: true,
            force: false,
            hold: false,
            enters: split.enters.clone(),
            changes: split.changes.clone(),
        };
        self.changes(&batch, true)
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

    /// Waits until every proxy shares as it is wanted.
    fn confirm_share(&mut self, split: &Split) -> Step<()> {
        let (plan, world) = (self.plan, self.world);
        let silent = plan.changes().find_map(|(_, change)| {
            let instance = world.instances.get(&change.instance)?;
            let shares =
                Some(instance.release) == plan.release && instance.mode == Some(TargetMode::Serve);
            let who = self.unconfirmed(instance.routed).filter(|_| shares)?;
            Some((change, who))
        });
        let Some((change, who)) = silent else {
            self.entries.push(Happened::ShareConfirmed {
                percent: split.percent,
            });
            return Ok(());
        };
        let since = self.progress.share.map_or(self.now, |share| share.since);
        let bound = self.bound(since, plan.timeouts.confirmed_ms());
        let text = format!(
            "Giving the new release {} % of the requests: {who} has not confirmed yet.",
            split.percent
        );
        self.blocked(change, bound, "proxy-silent", text)
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
