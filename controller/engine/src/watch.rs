//! What befalls instances in service: a process ends, the kernel kills one for memory, or another
//! program has taken the port. Told in events, whether or not an operation runs; an instance without
//! its port leaves the load balancer at once, and mending gives it another.

use crate::events::{Draft, emit_for};
use crate::health::killed;
use crate::turn::Turn;
use crate::{Engine, EngineError, Observed};
use beanpole_planner::{how_it_ended, restarts};
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{InstancePhase, InstanceReport, MemoryKills, PortUse};
use beanpole_protocol::event::Severity;
use beanpole_protocol::proxy::TargetMode;
use beanpole_store::model::{EndsTold, EnvironmentRecord, HostRecord, InstanceRecord};
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
                let news = news_of(&mut record, seen, now);
                if news.is_empty() {
                    continue;
                }
                tx.put(&record)?;
                let host = tx
                    .get::<HostRecord>(&HostRecord::key_of(&record.host))?
                    .map_or_else(String::new, |host| format!(" on {}", host.name));
                for News {
                    severity,
                    code,
                    text,
                } in news
                {
                    let text = format!("{}{host}: {text}", record.id);
                    let draft = Draft::new(severity, code, text, now)
                        .instance(Some(&record.id))
                        .host(Some(&record.host))
                        .details(seen.log.clone());
                    emit_for(tx, &mut environment, draft)?;
                }
            }
            tx.put(&environment)?;
            // An app that ends again and again may do so for months without any operation.
            self.trim_events(tx, &environment)?;
            Ok::<_, EngineError>(())
        })?;
        turn.events = true;
        turn.wake(now);
        Ok(())
    }
}

/// An event to come.
struct News {
    severity: Severity,
    code: &'static str,
    text: String,
}

/// What is to be told of an instance, noted in its record as told.
fn news_of(record: &mut InstanceRecord, seen: &InstanceReport, now: Timestamp) -> Vec<News> {
    if let Some(who) = taken(seen) {
        record.mode = Some(TargetMode::Probe);
        record.routed = None;
        return vec![News {
            severity: Severity::Error,
            code: "port-lost",
            text: format!("{who} It leaves service."),
        }];
    }
    if untold(record, seen).is_none_or(|after| now < after) {
        return Vec::new();
    }
    let (restarts_told, kills_told) = told(record);
    record.told = Some(EndsTold {
        incarnation: record.incarnation,
        restarts: restarts(seen),
        memory_kills: seen.memory_kills.count,
        at: now,
    });
    let mut news = Vec::new();
    if restarts(seen) > restarts_told {
        news.push(News {
            severity: Severity::Warn,
            code: "process-ended",
            text: last_end(seen),
        });
    }
    if seen.memory_kills.count > kills_told {
        news.push(News {
            severity: Severity::Warn,
            code: "process-killed",
            text: last_kill(&seen.memory_kills),
        });
    }
    news
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

/// How many restarts and kills of its present incarnation were told.
fn told(record: &InstanceRecord) -> (u32, u64) {
    present(record).map_or((0, 0), |told| (told.restarts, told.memory_kills))
}

fn present(record: &InstanceRecord) -> Option<&EndsTold> {
    let told = record.told.as_ref();
    told.filter(|told| told.incarnation == record.incarnation)
}

/// From when on the ends of its processes may be told, if there are any that were not.
fn untold(record: &InstanceRecord, seen: &InstanceReport) -> Option<Timestamp> {
    let (restarts_told, kills_told) = told(record);
    let after = present(record).map_or(Timestamp::EPOCH, |told| told.at.after(TELL_AGAIN_AFTER));
    let news = restarts(seen) > restarts_told || seen.memory_kills.count > kills_told;
    news.then_some(after)
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
    let times = match process.restarts {
        1 => "once".to_owned(),
        n => format!("{n} times"),
    };
    format!(
        "Process `{}` ended{how} and is started again ({times} so far).",
        process.name
    )
}

/// What the kernel killed, and what to do about it.
fn last_kill(kills: &MemoryKills) -> String {
    let most = kills.limit_bytes.map_or_else(String::new, |bytes| {
        format!(
            " All its processes together used more than the {} MiB that it may.",
            bytes >> 20
        )
    });
    format!(
        "The kernel killed {}, for memory; the application goes on.{most} Give it more \
         (`beanpole config --set MemoryMax=MIB`) or have it start fewer processes.",
        killed(kills)
    )
}
