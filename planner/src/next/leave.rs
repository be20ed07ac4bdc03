//! The way out of service: drained while others serve, then switched or stopped.

use super::{Bound, Step, Turn};
use crate::world::Serving;
use crate::{Action, Batch, Change, Happened, Reach};
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::proxy::TargetMode;
use std::time::Duration;

/// How long taking down waits for a host that does not take orders now, in milliseconds: it stops what it is
/// not to run whenever it does.
const DEAF_MS: u64 = 5_000;

impl Turn<'_, '_> {
    /// Takes an instance out of the load balancer first, where it is in and that can be afforded.
    pub(super) fn begin(
        &mut self,
        batch: &Batch,
        change: &Change,
        spare: Bound,
        serving: &mut u32,
    ) -> Step<()> {
        let id = &change.instance;
        let Some(instance) = self.world.instances.get(id) else {
            match change.action {
                Action::Launch { .. } => return self.act(change),
                // Somebody else removed it: nothing is left to do.
                _ => {
                    self.entries.push(Happened::Removed {
                        instance: id.clone(),
                        unreached: false,
                    });
                    return Ok(());
                }
            }
        };
        if change.action == Action::Return {
            self.entries.push(Happened::PutIn {
                instance: id.clone(),
                forced: true,
                restarts: None,
            });
            return Ok(());
        }
        // One that left service by itself may get requests from a proxy that has not heard of it.
        let gets_some = |mode| matches!(mode, TargetMode::Serve | TargetMode::Drain);
        let routed = instance.mode.is_some_and(gets_some)
            || self.targets(id).flatten().any(|seen| gets_some(seen.mode));
        if !routed || !(batch.drain || change.action == Action::Remove) {
            return self.act(change);
        }
        let floor = self.plan.floor_in(self.world);
        if instance.mode == Some(TargetMode::Serve) {
            match self.world.serving(id) {
                Serving::No => {}
                Serving::Yes if *serving > floor => *serving -= 1,
                // Draining waits for the proxies all the same.
                Serving::Unknown if batch.force => {}
                Serving::Yes if batch.force && self.late(spare) => {}
                Serving::Yes => {
                    let text = format!(
                        "{id} stays in service: without it {} of at least {} healthy instances would serve.",
                        serving.saturating_sub(1),
                        floor
                    );
                    return self.blocked(change, spare, "too-few-healthy", text);
                }
                Serving::Unknown => {
                    let text = format!("{id}: {}.", self.who_is_silent(id));
                    return self.blocked(change, spare, "proxy-silent", text);
                }
            }
        }
        self.entries.push(Happened::DrainStarted {
            instance: id.clone(),
        });
        Ok(())
    }

    /// Waits until every proxy has confirmed that it gives the instance nothing new, and until its
    /// requests are over or out of time. A proxy that does not answer may still send requests by its
    /// old table, so nothing is done behind its back.
    pub(super) fn draining(
        &mut self,
        batch: &Batch,
        change: &Change,
        since: Timestamp,
    ) -> Step<()> {
        let id = &change.instance;
        let Some(instance) = self.world.instances.get(id) else {
            self.entries.push(Happened::Drained {
                instance: id.clone(),
                cut: 0,
            });
            return Ok(());
        };
        let silent = self.unconfirmed(instance.routed);
        let in_flight: u32 = self
            .targets(id)
            .filter_map(|target| target.map(|target| target.in_flight))
            .sum();
        let confirm = self.bound(since, self.plan.timeouts.drained_ms());
        let over = since.after(Duration::from_millis(self.plan.timeouts.drain_ms));
        match silent {
            Some(who) if !(batch.force && self.late(confirm)) => self.blocked(
                change,
                confirm,
                "proxy-silent",
                format!("Draining {id}: {who} has not confirmed yet."),
            ),
            silent if in_flight == 0 || self.now >= over => {
                let lingers = self.lingers(change, since).filter(|_| in_flight > 0);
                let lingers = lingers.filter(|_| silent.is_none());
                let instance = id.clone();
                self.entries.push(match lingers {
                    Some(until) => Happened::Lingers {
                        instance,
                        open: in_flight,
                        since,
                        until,
                    },
                    None => Happened::Drained {
                        instance,
                        cut: in_flight,
                    },
                });
                Ok(())
            }
            _ => {
                self.wake_at(over);
                self.wait(
                    Some(id),
                    match in_flight {
                        1 => format!("Draining {id}: 1 request is under way."),
                        _ => format!("Draining {id}: {in_flight} requests are under way."),
                    },
                );
                Ok(())
            }
        }
    }

    /// Until when an instance may finish its requests though nobody waits for it: one that leaves for good,
    /// on a host that can keep it.
    fn lingers(&self, change: &Change, since: Timestamp) -> Option<Timestamp> {
        let until = since.after(Duration::from_millis(self.plan.timeouts.linger_ms));
        let may = change.action == Action::Remove
            && self.now < until
            && !self.world.host_lost(&change.host);
        may.then_some(until)
    }

    /// The change itself, now that no requests are lost by it.
    pub(super) fn act(&mut self, change: &Change) -> Step<()> {
        let instance = change.instance.clone();
        let lost_host = self.world.host_lost(&change.host);
        match change.action {
            Action::Return => self.entries.push(Happened::PutIn {
                instance,
                forced: true,
                restarts: None,
            }),
            Action::Remove if lost_host => self.entries.push(Happened::Removed {
                instance,
                // One whose host was removed has nowhere to come back to.
                unreached: self.world.hosts.contains_key(&change.host),
            }),
            Action::Remove => self.entries.push(Happened::StopOrdered { instance }),
            _ if lost_host => return Err(self.host_lost(change)),
            _ => self.entries.push(Happened::Switched { instance }),
        }
        Ok(())
    }

    pub(super) fn stopping(&mut self, batch: &Batch, change: &Change, since: Timestamp) {
        let id = &change.instance;
        let gone = match (
            self.world.instances.get(id),
            self.world.hosts.get(&change.host),
        ) {
            (Some(instance), Some(host)) => match host.report {
                Some(report) if instance.ordered.is_some_and(|at| report.generation >= at) => host
                    .instance(id)
                    .is_none_or(|seen| seen.phase == InstancePhase::Stopped),
                _ => false,
            },
            _ => true,
        };
        let host = self.world.hosts.get(&change.host);
        let is_deaf = host.is_some_and(|host| host.cannot.is_some() || host.reach != Reach::Here);
        let may_take = if batch.force && is_deaf {
            DEAF_MS
        } else {
            self.plan.timeouts.stopped_ms()
        };
        let bound = self.bound(since, may_take);
        if gone || self.late(bound) || self.world.host_lost(&change.host) {
            self.entries.push(Happened::Removed {
                instance: id.clone(),
                unreached: !gone,
            });
        } else {
            let seconds = self.now.since(since).as_secs();
            self.wake_at(bound.at);
            let cannot = host.and_then(|host| Some((&host.name, host.cannot?)));
            let why = cannot.map_or_else(String::new, |(name, why)| {
                format!(": {name} cannot take orders: {why}")
            });
            self.wait(
                Some(id),
                format!("Waiting for {id} to stop, for {seconds} s{why}."),
            );
        }
    }
}
