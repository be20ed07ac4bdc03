//! How it went with each instance of an operation, told by its journal.

use super::name_of;
use crate::Observed;
use beanpole_planner::{Action, Change, ChangeState, Happened, Plan, restarts};
use beanpole_protocol::api::InstanceReceipt;
use beanpole_protocol::{HostId, HostName, InstanceId, Timestamp};
use beanpole_store::model::{InstanceRecord, JournalRecord, OperationRecord};
use std::collections::{BTreeMap, BTreeSet};

/// One instance, followed through the journal.
#[derive(Default)]
struct Track {
    /// When what is under way began.
    out: Option<Timestamp>,
    drain: Option<Timestamp>,
    start: Option<Timestamp>,
    check: Option<Timestamp>,
    stop: Option<Timestamp>,
    /// Milliseconds, of what is over.
    out_ms: Option<u64>,
    drained_ms: Option<u64>,
    started_ms: Option<u64>,
    checked_ms: Option<u64>,
    stopped_ms: Option<u64>,
    cut: u32,
    lingers: bool,
    restarts: u32,
    unreached: bool,
    message: Option<String>,
}

/// Every instance that the plan, or the way back, is about, in their order.
pub(super) fn of(
    operation: &OperationRecord,
    journal: &[JournalRecord],
    records: &BTreeMap<InstanceId, InstanceRecord>,
    names: &BTreeMap<HostId, HostName>,
    observed: &Observed,
) -> Vec<InstanceReceipt> {
    let (there, back) = (operation.way_there(), operation.way_back());
    let back = back.as_deref();
    // Where nothing is drained, the order to change takes an instance out of service.
    let undrained: BTreeSet<(bool, &InstanceId)> = undrained(&there)
        .map(|id| (false, id))
        .chain(back.into_iter().flat_map(undrained).map(|id| (true, id)))
        .collect();
    let mut tracks: BTreeMap<&InstanceId, Track> = BTreeMap::new();
    for record in journal {
        if let Some(id) = instance_of(&record.entry) {
            let track = tracks.entry(id).or_default();
            track.follow(record, undrained.contains(&(record.back, id)));
        }
    }
    let mut order: Vec<&InstanceId> = Vec::new();
    let mut last: BTreeMap<&InstanceId, (u32, &Change, bool)> = BTreeMap::new();
    // Those that were left out later are in no way as it was walked.
    let left_out = left_out(operation);
    let planned = operation.plan.changes();
    let planned = planned.filter(|(_, change)| left_out.contains(&change.instance));
    let walked = planned.chain(there.changes()).map(|one| (one, false));
    let and_back = back.into_iter().flat_map(Plan::changes);
    let and_back = and_back.map(|one| (one, true));
    for ((batch, change), is_back) in walked.chain(and_back) {
        let id = &change.instance;
        if last.insert(id, (batch, change, is_back)).is_none() {
            order.push(id);
        }
    }
    let untracked = Track::default();
    order
        .into_iter()
        .map(|id| {
            let (batch, change, is_back) = last[id];
            let track = tracks.get(id).unwrap_or(&untracked);
            let record = records.get(id);
            let seen = record.and_then(|record| {
                let report = observed.hosts.get(&record.host)?.report.as_ref()?;
                let of_id = |seen: &&_| is_same(seen, record);
                report.instances.iter().find(of_id).map(restarts)
            });
            let progress = if is_back {
                &operation.back_progress
            } else {
                &operation.progress
            };
            InstanceReceipt {
                instance: id.clone(),
                host: name_of(names, &change.host),
                batch,
                change: change.action.word().to_owned(),
                result: if left_out.contains(id) {
                    "left-out"
                } else {
                    result(change.action, &progress.of(id), track, is_back)
                }
                .to_owned(),
                release: record.map(|record| record.release),
                out_of_service_ms: track.out_ms,
                drained_ms: track.drained_ms,
                started_ms: track.started_ms,
                checked_ms: track.checked_ms,
                stopped_ms: track.stopped_ms,
                cut: track.cut,
                restarts: track.restarts.max(seen.unwrap_or(0)),
                requests: operation.traffic.instances.get(id).copied().unwrap_or(0),
                message: track.message.clone(),
            }
        })
        .collect()
}

/// Instances that a plan went on without, because their hosts were lost.
fn left_out(operation: &OperationRecord) -> BTreeSet<&InstanceId> {
    let detours = operation.progress.detours.iter();
    let left_out = detours.flat_map(|detour| &detour.left_out);
    left_out.map(|one| &one.instance).collect()
}

fn is_same(seen: &beanpole_protocol::agent::InstanceReport, record: &InstanceRecord) -> bool {
    seen.id == record.id && seen.incarnation == record.incarnation
}

/// Instances that change without being drained.
fn undrained(plan: &Plan) -> impl Iterator<Item = &InstanceId> {
    let batches = plan.stages.iter().filter_map(|stage| match stage {
        beanpole_planner::Stage::Batch(batch) if !batch.drain => Some(batch),
        _ => None,
    });
    let changes = batches.flat_map(|batch| &batch.changes);
    changes
        .filter(|change| matches!(change.action, Action::Replace { .. } | Action::Restart))
        .map(|change| &change.instance)
}

fn instance_of(entry: &Happened) -> Option<&InstanceId> {
    match entry {
        Happened::DrainStarted { instance }
        | Happened::Drained { instance, .. }
        | Happened::Lingers { instance, .. }
        | Happened::Switched { instance }
        | Happened::ProbeStarted { instance }
        | Happened::StopOrdered { instance }
        | Happened::Removed { instance, .. }
        | Happened::PutIn { instance, .. }
        | Happened::Held { instance, .. }
        | Happened::PortTaken { instance, .. }
        | Happened::InService { instance } => Some(instance),
        Happened::Failed { failure } => failure.instance.as_ref(),
        _ => None,
    }
}

impl Track {
    fn follow(&mut self, record: &JournalRecord, undrained: bool) {
        let at = record.at;
        match &record.entry {
            Happened::DrainStarted { .. } => {
                self.drain = Some(at);
                self.out.get_or_insert(at);
            }
            Happened::Drained { cut, .. } => {
                end(&mut self.drain, &mut self.drained_ms, at);
                self.cut += cut;
            }
            Happened::Lingers { .. } => {
                end(&mut self.drain, &mut self.drained_ms, at);
                self.lingers = true;
            }
            Happened::Switched { .. } => {
                if undrained {
                    self.out.get_or_insert(at);
                }
                self.check = None;
                self.start = Some(at);
            }
            Happened::ProbeStarted { .. } => {
                end(&mut self.start, &mut self.started_ms, at);
                self.check = Some(at);
            }
            Happened::PutIn { restarts, .. } | Happened::Held { restarts, .. } => {
                // One without traffic is not checked, but stays up for a while.
                end(&mut self.start, &mut self.started_ms, at);
                end(&mut self.check, &mut self.checked_ms, at);
                self.restarts = self.restarts.max(restarts.unwrap_or(0));
            }
            Happened::InService { .. } => end(&mut self.out, &mut self.out_ms, at),
            Happened::StopOrdered { .. } => self.stop = Some(at),
            Happened::Removed { unreached, .. } => {
                end(&mut self.stop, &mut self.stopped_ms, at);
                self.unreached = *unreached;
            }
            Happened::Failed { failure } => self.message = Some(failure.message.clone()),
            _ => {}
        }
    }
}

/// Adds what began to what is over.
fn end(since: &mut Option<Timestamp>, total: &mut Option<u64>, at: Timestamp) {
    if let Some(since) = since.take() {
        *total.get_or_insert(0) += super::millis(at.since(since));
    }
}

/// What happened to it, in a word.
fn result(action: Action, state: &ChangeState, track: &Track, back: bool) -> &'static str {
    match (action, state) {
        (_, ChangeState::Done) if track.unreached => "not-reached",
        (Action::Remove, ChangeState::Done) if track.lingers => "lingers",
        (Action::Remove, ChangeState::Done) => "removed",
        (Action::Return, ChangeState::Done) => "returned",
        (_, ChangeState::Done) if back => "taken-back",
        (Action::Launch { .. }, ChangeState::Done) => "launched",
        (Action::Replace { .. }, ChangeState::Done) => "replaced",
        (Action::Restart, ChangeState::Done) => "restarted",
        _ if track.message.is_some() => "failed",
        (_, ChangeState::Pending) => "untouched",
        _ => "unfinished",
    }
}
