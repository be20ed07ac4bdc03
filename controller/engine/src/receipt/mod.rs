//! Receipts: what an operation did and what its users noticed, put together when it ends.
//!
//! While it runs, marks in its record follow what no journal entry tells ([`advance`]): requests by
//! release and instance, bytes of bundles, when hosts had theirs. At its end [`close`] makes the receipt
//! from these and the journal (`times`, `instances`). What comes after the end is counted for a minute,
//! again from marks in the record, by [`Engine::count_after`]; another operation ends that early. So a
//! controller that restarts, or is killed, at any time goes on where the marks are.

mod instances;
mod times;

use crate::pace::behind;
use crate::read::Reader;
use crate::turn::Turn;
use crate::{Engine, EngineError, Observed, traffic};
use beanpole_planner::Stage;
use beanpole_protocol::agent::{ReleaseKey, ReleasePhase};
use beanpole_protocol::api::{
    OperationKind, OperationStatus, Receipt, ReceiptTraffic, ReleaseDeployment, ReleaseShare,
    SentTo, Tier,
};
use beanpole_protocol::latency::Latencies;
use beanpole_protocol::{Digest, HostId, HostName, InstanceId, Timestamp};
use beanpole_store::model::{
    EnvironmentRecord, HostRecord, InstanceRecord, JournalRecord, OperationRecord, ReceiptMarks,
    ReceiptRecord, ReleaseRecord, SentMark, TrafficMarks,
};
use beanpole_store::{StoreError, Tx};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long requests are counted before an operation, because proxies tell the latency of that time, and
/// after it.
const AROUND: Duration = Duration::from_mins(1);
/// How old the counts of an operation under way are at most: what a proxy has counted ends with it.
const COUNTED_EVERY: Duration = Duration::from_secs(2);
/// How long after that a proxy has to say how it went. Later, nobody knows what belongs to that minute.
const TOLD_WITHIN: Duration = Duration::from_mins(10);

/// Starts to follow an operation that is about to be written.
pub(crate) fn begin(
    reader: &impl Reader,
    operation: &mut OperationRecord,
    tier: Tier,
    observed: &Observed,
) -> Result<(), StoreError> {
    let of = instances(operation);
    operation.traffic = traffic::start(&operation.environment, observed, &|id| of.contains(id));
    let release = match operation.to.or(operation.from) {
        Some(number) => {
            let key = ReleaseRecord::key_of(&operation.environment, number);
            reader.one::<ReleaseRecord>(&key)?
        }
        None => None,
    };
    let bundle = release.map(|release| release.bundle);
    let seen = traffic::of_environment(&operation.environment, observed);
    let some = |us: u64| (us > 0 && tier == Tier::Web).then_some(us);
    operation.receipt_marks = ReceiptMarks {
        before: ReceiptTraffic {
            for_ms: millis(AROUND),
            p50_us: some(seen.p50_us),
            p99_us: some(seen.p99_us),
            ..ReceiptTraffic::default()
        },
        behind_ms: millis(behind(reader)?),
        sent: hosts(operation)
            .into_iter()
            .map(|host| {
                let mark = sent(observed, &host, bundle.as_ref(), 0);
                (host, mark)
            })
            .collect(),
        bundle,
        ..ReceiptMarks::default()
    };
    Ok(())
}

/// What a host was sent up to now, taken for `bytes`.
fn sent(observed: &Observed, host: &HostId, bundle: Option<&Digest>, bytes: u64) -> SentMark {
    let seen = observed.hosts.get(host);
    SentMark {
        run: observed.run.clone(),
        counted: seen
            .zip(bundle)
            .map_or(0, |(seen, bundle)| seen.sent_of(bundle)),
        bytes,
    }
}

/// The hosts that an operation prepares.
fn hosts(operation: &OperationRecord) -> BTreeSet<HostId> {
    let mut all = BTreeSet::new();
    for way in operation.ways() {
        for stage in &way.stages {
            if let Stage::Prepare { hosts, .. } = stage {
                all.extend(hosts.iter().cloned());
            }
        }
    }
    all
}

/// The instances that an operation is about.
fn instances(operation: &OperationRecord) -> BTreeSet<InstanceId> {
    let mut all = BTreeSet::new();
    for way in operation.ways() {
        all.extend(way.changes().map(|(_, change)| change.instance.clone()));
    }
    all
}

/// Whether there is something that [`advance`] has to write down now because it cannot be seen later: counts of a
/// proxy, for one, end with its run.
pub(crate) fn any_new(operation: &OperationRecord, observed: &Observed, now: Timestamp) -> bool {
    let counted = now.since(operation.traffic.at) >= COUNTED_EVERY
        && traffic::any_new(&operation.traffic, &operation.environment, observed);
    counted || !arrived(operation, observed).is_empty()
}

/// Hosts that have had their bundle since the last look.
fn arrived(operation: &OperationRecord, observed: &Observed) -> Vec<HostId> {
    let (plan, progress) = operation.under_way();
    let Some(Stage::Prepare { tree, hosts, .. }) = plan.stages.get(progress.stage) else {
        return Vec::new();
    };
    let key = ReleaseKey {
        environment: operation.environment.clone(),
        number: *tree,
    };
    let known = &operation.receipt_marks.bundle_at;
    let new = hosts.iter().filter(|host| {
        !known.contains_key(*host)
            && observed
                .hosts
                .get(*host)
                .and_then(|seen| seen.report.as_ref())
                .and_then(|report| report.releases.iter().find(|one| one.key == key))
                .is_some_and(|seen| seen.phase != ReleasePhase::NeedsBundle)
    });
    new.cloned().collect()
}

/// Accounts for everything up to what is seen now.
pub(crate) fn advance(operation: &mut OperationRecord, observed: &Observed, now: Timestamp) {
    if operation.status.is_over() {
        return;
    }
    let of = instances(operation);
    traffic::advance(
        &mut operation.traffic,
        &operation.environment,
        observed,
        &|id| of.contains(id),
    );
    operation.traffic.at = now;
    let arrived = arrived(operation, observed);
    let hosts = hosts(operation);
    let marks = &mut operation.receipt_marks;
    for host in arrived {
        marks.bundle_at.insert(host, now);
    }
    for host in hosts {
        let seen = sent(observed, &host, marks.bundle.as_ref(), 0);
        let mark = marks.sent.entry(host).or_default();
        let counted = if mark.run == seen.run {
            mark.counted
        } else {
            0
        };
        mark.bytes += seen.counted.saturating_sub(counted);
        mark.counted = seen.counted;
        mark.run = seen.run;
    }
}

/// Makes the receipt of an operation that has just ended, and starts the minute after it.
pub(crate) fn close(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    operation: &mut OperationRecord,
    observed: &Observed,
) -> Result<(), StoreError> {
    let Some(finished_at) = operation.finished_at else {
        return Ok(());
    };
    if operation.plan.stages.is_empty() && operation.back.is_none() {
        // Nothing that runs was changed.
        operation.traffic = TrafficMarks::default();
        operation.receipt_marks = ReceiptMarks::default();
        return Ok(());
    }
    let names: BTreeMap<HostId, HostName> = tx
        .list::<HostRecord>()?
        .into_iter()
        .map(|host| (host.id, host.name))
        .collect();
    let journal: Vec<JournalRecord> = tx.list_prefix(&JournalRecord::prefix(&operation.id))?;
    let prefix = InstanceRecord::prefix(&environment.id);
    let records: BTreeMap<InstanceId, InstanceRecord> = tx
        .list_prefix::<InstanceRecord>(&prefix)?
        .into_iter()
        .map(|record| (record.id.clone(), record))
        .collect();
    let web = environment.tier == Tier::Web;
    let (phases, batches) = times::of(operation, &journal, finished_at);
    let took = finished_at.since(operation.started_at);
    let counted = web.then_some(&operation.traffic);
    let sent = operation.receipt_marks.sent.iter();
    let receipt = Receipt {
        complete: false,
        took_ms: millis(took),
        away_ms: millis(behind(tx)?).saturating_sub(operation.receipt_marks.behind_ms),
        before: operation.receipt_marks.before.clone(),
        during: over(counted, took),
        after: None,
        releases: shares(&operation.traffic),
        phases,
        batches,
        sent: sent
            .filter(|(_, mark)| mark.bytes > 0)
            .map(|(host, mark)| SentTo {
                host: name_of(&names, host),
                bytes: mark.bytes,
            })
            .collect(),
        instances: instances::of(operation, &journal, &records, &names, observed),
    };
    operation.receipt_marks = ReceiptMarks {
        after: traffic::afresh(&operation.traffic),
        ..ReceiptMarks::default()
    };
    operation.traffic.marks.clear();
    operation.receipt = Some(receipt);
    let gone = operation.kind == OperationKind::Terminate
        && operation.status == OperationStatus::Succeeded;
    if web && !gone {
        environment.counted_after = Some(operation.id.clone());
        keep(tx, operation)
    } else {
        complete(tx, operation, None)
    }
}

/// Keeps a receipt with the release that the operation led to.
fn keep(tx: &mut Tx<'_>, operation: &OperationRecord) -> Result<(), StoreError> {
    let (Some(to), Some(receipt), Some(finished_at)) =
        (operation.to, &operation.receipt, operation.finished_at)
    else {
        return Ok(());
    };
    let key = ReleaseRecord::key_of(&operation.environment, to);
    // A release that is forgotten meanwhile takes its receipt along.
    if operation.from == Some(to) || tx.get::<ReleaseRecord>(&key)?.is_none() {
        return Ok(());
    }
    tx.put(&ReceiptRecord {
        environment: operation.environment.clone(),
        release: to,
        deployment: ReleaseDeployment {
            operation: operation.id.clone(),
            kind: operation.kind,
            from: operation.from,
            message: operation.message.clone(),
            started_at: operation.started_at,
            finished_at,
            receipt: receipt.clone(),
        },
    })
}

/// Completes a receipt with what came after, where somebody counted.
fn complete(
    tx: &mut Tx<'_>,
    operation: &mut OperationRecord,
    after: Option<ReceiptTraffic>,
) -> Result<(), StoreError> {
    operation.receipt_marks = ReceiptMarks::default();
    if let Some(receipt) = &mut operation.receipt {
        receipt.complete = true;
        receipt.after = after;
    }
    keep(tx, operation)
}

/// Completes the receipt that waits for the minute after its operation, with what was seen up to now. The
/// caller stores the environment.
pub(crate) fn settle(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    observed: &Observed,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(id) = environment.counted_after.take() else {
        return Ok(());
    };
    let key = OperationRecord::key_of(&id);
    let Some(mut operation) = tx.get::<OperationRecord>(&key)? else {
        return Ok(());
    };
    let passed = operation
        .finished_at
        .filter(|end| *end < now)
        .map(|end| now.since(end))
        .filter(|passed| *passed < AROUND + TOLD_WITHIN);
    let after = passed.map(|passed| {
        let marks = &mut operation.receipt_marks.after;
        traffic::advance(marks, &environment.id, observed, &|_| false);
        over(Some(marks), passed)
    });
    complete(tx, &mut operation, after)?;
    tx.put(&operation)
}

impl Engine {
    /// Completes the receipt of the last operation once a minute has passed after it.
    pub(crate) fn count_after(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let Some(id) = &environment.counted_after else {
            return Ok(());
        };
        let operation: Option<OperationRecord> = self.store.get(&OperationRecord::key_of(id))?;
        if let Some(end) = operation.and_then(|operation| operation.finished_at)
            // The clock was set back: nobody knows how long that minute is.
            && end <= now
        {
            let due = end.after(AROUND);
            let told_by = due.after(TOLD_WITHIN);
            let mut proxies = observed.proxies.values();
            let told = proxies.all(|proxy| proxy.last_seen.is_some_and(|seen| seen >= due));
            if now < due {
                turn.wake(due);
                return Ok(());
            }
            // A proxy's report wakes the engine.
            if !told && now < told_by {
                turn.wake(told_by);
                return Ok(());
            }
        }
        self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut environment) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(());
            };
            settle(tx, &mut environment, observed, now)?;
            tx.put(&environment)
        })?;
        Ok(())
    }
}

/// Requests over some time.
fn over(counted: Option<&TrafficMarks>, time: Duration) -> ReceiptTraffic {
    let mut all = Latencies::default();
    for of in counted
        .into_iter()
        .flat_map(|marks| marks.releases.values())
    {
        all.add(&of.latency);
    }
    ReceiptTraffic {
        for_ms: millis(time),
        requests: counted.map(|marks| marks.served),
        failed: counted.map(|marks| marks.failed),
        restarts: counted.map_or(0, |marks| marks.restarts),
        p50_us: all.percentile_us(50),
        p99_us: all.percentile_us(99),
    }
}

/// What each release was given.
fn shares(marks: &TrafficMarks) -> Vec<ReleaseShare> {
    let counted = marks.releases.iter().filter(|(_, of)| of.requests > 0);
    counted
        .map(|(release, of)| ReleaseShare {
            release: *release,
            requests: of.requests,
            errors: of.errors,
            p50_us: of.latency.percentile_us(50),
            p99_us: of.latency.percentile_us(99),
        })
        .collect()
}

/// A host's name; its id where it was removed meanwhile.
fn name_of(names: &BTreeMap<HostId, HostName>, host: &HostId) -> HostName {
    names
        .get(host)
        .cloned()
        .unwrap_or_else(|| HostName::new(host.as_str()).expect("a host's id is a valid name"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
