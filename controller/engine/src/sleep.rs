//! Environments that need no instance while nobody asks for them (`MinSize` 0): when they fall asleep, and what
//! wakes them. Ending and starting their instances is mending's.

use crate::events::{Draft, emit_for};
use crate::turn::Turn;
use crate::{Engine, EngineError, Observed};
use beanpole_protocol::Timestamp;
use beanpole_protocol::api::{EnvironmentStatus, Tier};
use beanpole_protocol::event::Severity;
use beanpole_store::model::{EnvironmentRecord, InstanceRecord, SleepRecord};
use std::collections::BTreeSet;
use std::time::Duration;

/// How many instances an environment shall have now.
pub(crate) fn wanted_size(environment: &EnvironmentRecord) -> u32 {
    match environment.asleep {
        Some(_) => 0,
        None => environment.settings.instance_count(),
    }
}

impl Engine {
    /// Has an environment at rest fall asleep that nobody has asked for long enough, or wake where somebody does.
    /// Gives its record where that changed.
    pub(crate) fn sleep_or_wake(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<Option<EnvironmentRecord>, EngineError> {
        let text = match &environment.asleep {
            Some(_) => match wakes(environment, observed) {
                None => return Ok(None),
                Some(text) => text,
            },
            None => match self.falls_asleep(environment, observed, now)? {
                None => return Ok(None),
                Some(at) if at > now => {
                    turn.wake(at);
                    return Ok(None);
                }
                Some(_) => {
                    let idle = environment.settings.sleeps_after_ms().unwrap_or_default();
                    format!(
                        "Nobody has asked for it for {} s: it falls asleep, and wakes with the next request.",
                        idle / 1_000
                    )
                }
            },
        };
        let changed = self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut record) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(None);
            };
            if record.asleep != environment.asleep
                || record.operation.is_some()
                || record.next.is_some()
                || record.status != EnvironmentStatus::Ready
            {
                return Ok(None);
            }
            let code = match record.asleep.take() {
                Some(_) => "wakes",
                None => {
                    let prefix = InstanceRecord::prefix(&record.id);
                    let instances = tx.list_prefix::<InstanceRecord>(&prefix)?;
                    let hosts: BTreeSet<_> = instances.into_iter().map(|one| one.host).collect();
                    record.asleep = Some(SleepRecord {
                        since: now,
                        hosts: hosts.into_iter().collect(),
                    });
                    "falls-asleep"
                }
            };
            // What could not be mended before has nothing to do with it.
            record.mend_after = None;
            emit_for(tx, &mut record, Draft::new(Severity::Info, code, text, now))?;
            tx.put(&record)?;
            Ok::<_, EngineError>(Some(record))
        })?;
        turn.events |= changed.is_some();
        Ok(changed)
    }

    /// When one that is awake may fall asleep, by what is known so far; never while something is open, or a load
    /// balancer cannot say whether somebody asks for it.
    fn falls_asleep(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, EngineError> {
        let Some(idle_ms) = environment.settings.sleeps_after_ms() else {
            return Ok(None);
        };
        let says = observed
            .proxies
            .values()
            .all(|proxy| proxy.connected && proxy.report.is_some());
        if environment.tier != Tier::Web || environment.live.is_none() || environment.hold || !says
        {
            return Ok(None);
        }
        let Some(asked) = observed.asked.get(&environment.id) else {
            return Ok(None);
        };
        let since = (*asked).max(environment.updated_at);
        let at = since.after(Duration::from_millis(idle_ms));
        if at > now {
            return Ok(Some(at));
        }
        let prefix = InstanceRecord::prefix(&environment.id);
        let instances = self.store.list_prefix::<InstanceRecord>(&prefix)?;
        let open = |instance: &InstanceRecord| {
            let reports = observed
                .proxies
                .values()
                .filter_map(|seen| seen.report.as_ref());
            let mut targets = reports.flat_map(|report| &report.targets);
            targets.any(|target| target.instance == instance.id && target.in_flight > 0)
        };
        Ok((!instances.iter().any(open)).then_some(at))
    }
}

/// Why one that sleeps wakes, if it does.
fn wakes(environment: &EnvironmentRecord, observed: &Observed) -> Option<String> {
    if environment.settings.sleeps_after_ms().is_none() {
        return Some("It shall not sleep any more: it wakes.".to_owned());
    }
    let waiting: u32 = observed
        .proxies
        .values()
        .filter_map(|proxy| proxy.report.as_ref())
        .flat_map(|report| &report.environments)
        .filter(|of| of.environment == environment.id)
        .map(|of| of.traffic.waiting)
        .sum();
    (waiting > 0).then(|| "Somebody asks for it: it wakes.".to_owned())
}
