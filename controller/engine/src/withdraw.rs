//! Instances in service whose web process does not run leave the load balancer as soon as their host
//! says so, and come back when it runs and listens again. Requests would only find a closed port there,
//! or another program that was quicker to listen on it than the restart.

use crate::turn::Turn;
use crate::watch::in_service;
use crate::{Engine, EngineError, Observed};
use beanpole_planner::unready;
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{InstancePhase, InstanceReport, PortUse};
use beanpole_protocol::api::Tier;
use beanpole_store::StoreError;
use beanpole_store::model::{EnvironmentRecord, InstanceRecord};
use std::time::Duration;

/// The process type that gets the requests.
const WEB: &str = "web";
/// How long after its start a process that is not seen to listen stays withdrawn: where its agent
/// cannot see the socket, the load balancer's checks decide.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

impl Engine {
    /// Withdraws and brings back, as the latest reports say.
    pub(crate) fn withdraw(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        if environment.tier != Tier::Web {
            return Ok(());
        }
        let changed = |record: &InstanceRecord| {
            let seen = in_service(record, observed)?;
            let said_at = observed.hosts.get(&record.host)?.report.as_ref()?.now;
            let withdrawn = is_away(seen, said_at, record.withdrawn);
            (withdrawn != record.withdrawn).then(|| InstanceRecord {
                withdrawn,
                ..record.clone()
            })
        };
        let prefix = InstanceRecord::prefix(&environment.id);
        let instances = self.store.list_prefix::<InstanceRecord>(&prefix)?;
        if !instances.iter().any(|record| changed(record).is_some()) {
            return Ok(());
        }
        self.store.update(|tx| {
            for record in tx.list_prefix::<InstanceRecord>(&prefix)? {
                if let Some(record) = changed(&record) {
                    tx.put(&record)?;
                }
            }
            Ok::<_, StoreError>(())
        })?;
        // Its health is another one now.
        turn.events = true;
        Ok(())
    }
}

/// Whether an instance is to be withdrawn, by what its host says of it.
fn is_away(seen: &InstanceReport, said_at: Timestamp, withdrawn: bool) -> bool {
    match seen.phase {
        InstancePhase::Running | InstancePhase::Restarting => {}
        InstancePhase::Failed(_) => return true,
        // Its agent has not looked at it yet: what is known of it stays.
        InstancePhase::Waiting | InstancePhase::Stopping | InstancePhase::Stopped => {
            return withdrawn;
        }
    }
    let Some(web) = seen.processes.iter().find(|process| process.name == WEB) else {
        return false;
    };
    if web.pid.is_none() {
        return true;
    }
    // An agent that started afresh has not looked at the port yet: no reason to withdraw it.
    withdrawn
        && (unready(seen).is_some()
            || match seen.port {
                PortUse::Own | PortUse::Unknown => false,
                PortUse::Taken => true,
                PortUse::Free => web
                    .started_at
                    .is_none_or(|start| said_at.since(start) < LISTENS_WITHIN),
            })
}
