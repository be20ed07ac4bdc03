//! What the agent tells its controller.

use super::{Host, Release, State};
use beanpole_daemon::clock;
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{
    HostReport, InstanceOrder, InstancePhase, InstanceReport, MemoryKills, PortUse, ReleaseKey,
    ReleasePhase, ReleaseReport,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

impl Host {
    /// How the host is now.
    pub async fn report(&self) -> HostReport {
        let facts = self.facts.get().await;
        let mut observed: BTreeMap<_, _> = self
            .runtime
            .observe()
            .into_iter()
            .map(|report| (report.id.clone(), report))
            .collect();
        let edge = self.edge.report(self.orders().edge.as_ref());
        let mut state = self.state();
        let orders = state.orders.clone();
        let releases = orders
            .releases
            .iter()
            .map(|order| {
                let known = state.releases.get(&order.key);
                let phase = known.map_or(ReleasePhase::NeedsBundle, |r| r.phase.clone());
                let bundle_have = match phase {
                    ReleasePhase::NeedsBundle | ReleasePhase::Failed(_) => {
                        self.blobs.status(&order.bundle).have
                    }
                    _ => order.bundle_size,
                };
                ReleaseReport {
                    key: order.key.clone(),
                    phase,
                    bundle: order.bundle.clone(),
                    bundle_have,
                    since: known.map_or_else(clock::now, |r| r.since),
                    asked_by: known.and_then(|r| r.asked_by.clone()),
                    again_at: known.and_then(|r| Some(r.retry?.at)),
                    has_release_command: known.is_some_and(Release::has_release_command),
                    ran_container_commands: known.is_some_and(Release::ran_container_commands),
                    set_up: known.is_some_and(Release::is_set_up),
                    once: known.and_then(|r| r.once.clone()),
                }
            })
            .collect();
        let mut instances: Vec<InstanceReport> = orders
            .instances
            .iter()
            .map(|order| state.instance(order, observed.remove(&order.id)))
            .collect();
        // No longer ordered, not gone yet.
        instances.extend(observed.into_values());
        state
            .since
            .retain(|id, _| orders.instances.iter().any(|order| order.id == *id));
        HostReport {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_digest: self.digest.get().cloned(),
            agent: Some(self.id.clone()),
            owner: state.owner.clone(),
            now: clock::now(),
            generation: orders.generation,
            facts,
            releases,
            instances,
            edge,
        }
    }
}

impl State {
    /// An instance that is ordered: as the runtime sees it, or why there is nothing to see.
    fn instance(&mut self, order: &InstanceOrder, seen: Option<InstanceReport>) -> InstanceReport {
        let current = seen.as_ref().is_some_and(|report| {
            report.release == Some(order.release) && report.incarnation == order.incarnation
        });
        let runs = seen.as_ref().is_some_and(|report| {
            !matches!(
                report.phase,
                InstancePhase::Stopped | InstancePhase::Failed(_) | InstancePhase::Waiting
            )
        });
        if let Some(report) = seen.as_ref()
            && (runs || (!order.run && current))
        {
            return report.clone();
        }
        if let Some(trouble) = self.troubles.get(&order.id)
            && (trouble.release, trouble.incarnation) == (order.release, order.incarnation)
        {
            return InstanceReport {
                id: order.id.clone(),
                release: Some(order.release),
                incarnation: order.incarnation,
                phase: InstancePhase::Failed(trouble.failure.clone()),
                since: trouble.since,
                processes: Vec::new(),
                log: seen.map(|report| report.log).unwrap_or_default(),
                port: PortUse::Unknown,
                memory_kills: MemoryKills::default(),
                startup: None,
            };
        }
        if let Some(report) = seen {
            return report;
        }
        let key = ReleaseKey {
            environment: order.environment.clone(),
            number: order.release,
        };
        let (name, phase) = match self.releases.get(&key).map(|release| &release.phase) {
            _ if !order.run => ("stopped", InstancePhase::Stopped),
            Some(ReleasePhase::Failed(failure)) => {
                ("failed", InstancePhase::Failed(failure.clone()))
            }
            _ => ("waiting", InstancePhase::Waiting),
        };
        InstanceReport {
            id: order.id.clone(),
            release: None,
            incarnation: order.incarnation,
            phase,
            since: self.since_when(order, name),
            processes: Vec::new(),
            log: Vec::new(),
            port: PortUse::Unknown,
            memory_kills: MemoryKills::default(),
            startup: None,
        }
    }

    fn since_when(&mut self, order: &InstanceOrder, name: &'static str) -> Timestamp {
        let since = self
            .since
            .entry(order.id.clone())
            .or_insert_with(|| (name, clock::now()));
        if since.0 != name {
            *since = (name, clock::now());
        }
        since.1
    }
}
