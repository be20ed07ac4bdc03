//! Mending: operations that the engine starts by itself, when the instances of an environment at
//! rest are not what they should be. Their host is drained, without a label that they need, gone or
//! lost for long; it was lost during a deployment and is back; or they were left out of service.

use crate::events::{Draft, emit_for};
use crate::finish::pause_mending;
use crate::read::Repute;
use crate::services::NewOperation;
use crate::sleep::wanted_size;
use crate::turn::Turn;
use crate::{Call, Engine, EngineError, Observed, read};
use beanpole_planner::{Goal, Place, Reach, Refusal, World, plan};
use beanpole_protocol::api::{EnvironmentStatus, OperationKind};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{HostId, ReleaseNumber, RequestId, Timestamp};
use beanpole_store::model::EnvironmentRecord;
use std::collections::BTreeSet;
use std::time::Duration;

impl Engine {
    pub(crate) fn mend(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        bits: &mut dyn FnMut() -> u128,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let Some(live) = environment.live.filter(|_| !environment.hold) else {
            return Ok(());
        };
        let world = self.world(&self.store, environment, observed, now, false)?;
        let size = wanted_size(environment);
        let needs = read::rules(
            &environment.settings,
            &environment.settings,
            environment.tier,
            Repute::Live,
        )
        .needs;
        let Some(away) = self.unwell(&world, &needs, live, size, now, turn) else {
            return Ok(());
        };
        if let Some(after) = environment.mend_after.filter(|after| now < *after) {
            turn.wake(after);
            return Ok(());
        }
        let (seed, id_bits, request_bits) = (bits(), bits(), bits());
        let call = Call {
            request_id: RequestId::from_bits(request_bits),
            now,
            bits: id_bits,
            observed,
        };
        let acted = self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut environment) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(false);
            };
            if environment.operation.is_some()
                || environment.next.is_some()
                || environment.status != EnvironmentStatus::Ready
                || environment.live != Some(live)
            {
                return Ok(false);
            }
            let Some(release) = read::release(tx, &environment.id, live)? else {
                return Ok(false);
            };
            let world = self.world(tx, &environment, observed, now, true)?;
            let goal = Goal::Mend {
                release: live,
                tree: release.tree,
                size: wanted_size(&environment),
                away,
                policy: DeploymentPolicy::Rolling,
                batch: BatchSize::Fixed(1),
            };
            let rules = read::rules(
                &environment.settings,
                &environment.settings,
                environment.tier,
                Repute::Live,
            );
            match plan(&world, &goal, &rules, seed) {
                Ok(plan) => {
                    NewOperation {
                        to: Some(live),
                        version: Some(release.version),
                        ..NewOperation::new(OperationKind::Replace, plan)
                    }
                    .write(tx, &mut environment, &call)?;
                }
                Err(refusal) => {
                    if refusal != Refusal::Nothing && environment.mend_failures == 0 {
                        let text = format!("Instances should be replaced, but {refusal}.");
                        let draft = Draft::new(Severity::Warn, "no-place", text, now);
                        emit_for(tx, &mut environment, draft)?;
                    }
                    pause_mending(&mut environment, now);
                    tx.put(&environment)?;
                }
            }
            Ok::<_, EngineError>(true)
        })?;
        if acted {
            turn.events = true;
            turn.wake(now);
        }
        Ok(())
    }

    /// The hosts to be emptied, when something is to be mended.
    fn unwell(
        &self,
        world: &World<'_>,
        needs: &Place,
        live: ReleaseNumber,
        size: u32,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Option<BTreeSet<HostId>> {
        let mut unwell = world.instances.len() != size as usize;
        let mut away = BTreeSet::new();
        let patience = Duration::from_millis(self.config.replace_after_ms);
        for instance in world.instances.values() {
            let Some(host) = world.hosts.get(&instance.host) else {
                unwell = true;
                continue;
            };
            match host.reach {
                _ if host.draining => {
                    away.insert(instance.host.clone());
                }
                Reach::Taken(_) | Reach::Leaving(_) => {
                    away.insert(instance.host.clone());
                }
                Reach::Lost(since) if now.since(since) >= patience => {
                    away.insert(instance.host.clone());
                }
                Reach::Lost(since) => turn.wake(since.after(patience)),
                Reach::Here | Reach::Silent(_) if !needs.labels_missing(host).is_empty() => {
                    away.insert(instance.host.clone());
                }
                Reach::Here | Reach::Silent(_) => {
                    if let Reach::Silent(since) = host.reach {
                        let lost = Duration::from_millis(self.config.unreachable_after_ms);
                        turn.wake(since.after(lost));
                    }
                    unwell |= host.report.is_some()
                        && (instance.release != live || instance.mode != Some(TargetMode::Serve));
                }
            }
        }
        (unwell || !away.is_empty()).then_some(away)
    }
}
