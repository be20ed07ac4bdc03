//! What befalls instances in service: a process ends, or another program has taken the port. Told in
//! events, whether or not an operation runs; an instance without its port leaves the load balancer at
//! once, and mending gives it another.

use crate::events::{Draft, emit_for};
use crate::turn::Turn;
use crate::{Engine, EngineError, Observed};
use beanpole_planner::{how_it_ended, restarts};
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{InstancePhase, InstanceReport, PortUse};
use beanpole_protocol::event::Severity;
use beanpole_protocol::proxy::TargetMode;
use beanpole_store::model::{EnvironmentRecord, HostRecord, InstanceRecord, RestartsTold};
use std::time::Duration;

/// Between two events on the ends of one instance's processes: one that ends every second would fill
/// the list with them.
const TELL_AGAIN_AFTER: Duration = Duration::from_mins(1);

impl Engine {
    pub(crate) fn watch(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let prefix = InstanceRecord::prefix(&environment.id);
        let instances = self.store.list_prefix::<InstanceRecord>(&prefix)?;
        let mut news = false;
        for record in &instances {
            let Some(seen) = in_service(record, observed) else {
                continue;
            };
            if taken(seen).is_some() {
                news = true;
            } else if let Some(after) = untold(record, seen) {
                if now >= after {
                    news = true;
                } else {
                    turn.wake(after);
                }
            }
        }
        if !news {
            return Ok(());
        }
        self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut environment) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(());
            };
            for mut record in tx.list_prefix::<InstanceRecord>(&prefix)? {
                let Some(seen) = in_service(&record, observed) else {
                    continue;
                };
                let host = tx
                    .get::<HostRecord>(&HostRecord::key_of(&record.host))?
                    .map_or_else(String::new, |host| format!(" on {}", host.name));
                let (severity, code, text) = if let Some(who) = taken(seen) {
                    record.mode = Some(TargetMode::Probe);
                    record.routed = None;
                    let text = format!("{who} {}{host} leaves service.", record.id);
                    (Severity::Error, "port-lost", text)
                } else if untold(&record, seen).is_some_and(|after| now >= after) {
                    record.told = Some(RestartsTold {
                        incarnation: record.incarnation,
                        restarts: restarts(seen),
                        at: now,
                    });
                    let text = format!("{}{host}: {}", record.id, last_end(seen));
                    (Severity::Warn, "process-ended", text)
                } else {
                    continue;
                };
                tx.put(&record)?;
                let draft = Draft::new(severity, code, text, now)
                    .instance(Some(&record.id))
                    .host(Some(&record.host))
                    .details(seen.log.clone());
                emit_for(tx, &mut environment, draft)?;
            }
            tx.put(&environment)?;
            Ok::<_, EngineError>(())
        })?;
        turn.events = true;
        turn.wake(now);
        Ok(())
    }
}

/// What its host says of an instance that shall get traffic.
pub(crate) fn in_service<'o>(
    record: &InstanceRecord,
    observed: &'o Observed,
) -> Option<&'o InstanceReport> {
    if record.mode != Some(TargetMode::Serve) || !record.run {
        return None;
    }
    let report = observed.hosts.get(&record.host)?.report.as_ref()?;
    report
        .instances
        .iter()
        .find(|seen| seen.id == record.id && seen.incarnation == record.incarnation)
}

/// Who has the instance's port, when it is not the instance.
fn taken(seen: &InstanceReport) -> Option<String> {
    match &seen.phase {
        InstancePhase::Failed(failure) if failure.code == "port-taken" => {
            Some(failure.message.clone())
        }
        _ if seen.port == PortUse::Taken => {
            Some("Another program has taken the instance's port.".to_owned())
        }
        _ => None,
    }
}

/// From when on the ends of its processes may be told, if there are any that were not.
fn untold(record: &InstanceRecord, seen: &InstanceReport) -> Option<Timestamp> {
    let told = record
        .told
        .as_ref()
        .filter(|told| told.incarnation == record.incarnation);
    let (before, after) = told.map_or((0, Timestamp::EPOCH), |told| {
        (told.restarts, told.at.after(TELL_AGAIN_AFTER))
    });
    (restarts(seen) > before).then_some(after)
}

/// The last end of one of its processes, in a sentence.
fn last_end(seen: &InstanceReport) -> String {
    let Some(process) = seen
        .processes
        .iter()
        .max_by_key(|process| process.last_exit.as_ref().map(|exit| exit.at))
    else {
        return "A process ended and is started again.".to_owned();
    };
    let how = how_it_ended(process).map_or_else(String::new, |how| format!(" {how}"));
    let times = match restarts(seen) {
        1 => "once".to_owned(),
        n => format!("{n} times"),
    };
    format!(
        "Process `{}` ended{how} and is started again ({times} so far).",
        process.name
    )
}
