//! How operations end: what they leave behind, and the last event, which clients wait for.

use crate::apply::Scene;
use crate::{Engine, Observed, kept, receipt};
use beanpole_planner::{Action, Change, Skipped, Stage};
use beanpole_protocol::api::{EnvironmentStatus, OperationKind, OperationStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{ReleaseNumber, Timestamp};
use beanpole_store::model::{
    EnvironmentRecord, EventIndexRecord, EventRecord, InstanceRecord, JournalRecord,
    OperationIndexRecord, OperationRecord, ReceiptRecord, ReleaseRecord,
};
use beanpole_store::{Record, StoreError, Tx};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The pause after mending failed, doubled each time, in milliseconds.
const MEND_PAUSE_MS: u64 = 60_000;
/// The longest pause.
const MEND_PAUSE_MAX_MS: u64 = 3_600_000;

/// Sets when mending may be tried again.
pub(crate) fn pause_mending(environment: &mut EnvironmentRecord, now: Timestamp) {
    let pause = MEND_PAUSE_MS
        .saturating_mul(1 << environment.mend_failures.min(10))
        .min(MEND_PAUSE_MAX_MS);
    environment.mend_failures += 1;
    environment.mend_after = Some(now.after(Duration::from_millis(pause)));
}

impl Engine {
    /// Ends an operation. The caller stores the records.
    pub(crate) fn finish(
        &self,
        scene: &mut Scene<'_, '_>,
        observed: &Observed,
        status: OperationStatus,
    ) -> Result<(), StoreError> {
        let now = scene.now;
        let succeeded = status == OperationStatus::Succeeded;
        let kind = scene.operation.kind;
        receipt::advance(scene.operation, observed, now);
        scene.operation.status = status;
        scene.operation.finished_at = Some(now);
        if let Some(to) = scene.operation.to
            && scene.operation.from != Some(to)
        {
            let key = ReleaseRecord::key_of(&scene.environment.id, to);
            if let Some(mut release) = scene.tx.get::<ReleaseRecord>(&key)? {
                release.outcome = Some(status);
                if succeeded {
                    release.live_at = Some(now);
                    scene.environment.live = Some(to);
                }
                scene.tx.put(&release)?;
            }
        }
        if succeeded {
            follow_settings(scene)?;
        }
        let held = !succeeded && scene.operation.no_auto_rollback && scene.operation.back.is_none();
        // What a failed deployment left for a look has its own settings, in its release; those in force are the
        // live release's, whatever else runs.
        if !succeeded {
            restore_settings(scene)?;
        }
        scene.environment.hold |= held;
        if succeeded {
            scene.environment.mend_failures = 0;
            scene.environment.mend_after = None;
        } else if kind == OperationKind::Replace {
            pause_mending(scene.environment, now);
        } else if left_behind(scene.operation).is_some()
            || !scene.operation.progress.growths.is_empty()
        {
            // It follows as soon as its host is back; what had been asked for while requests were split is
            // wanted all the same.
            scene.environment.mend_after = None;
        } else {
            let pause = Duration::from_millis(MEND_PAUSE_MS);
            scene.environment.mend_after = Some(now.after(pause));
        }
        let failure = scene.operation.failure.as_ref();
        scene.environment.failed_by = failure
            .filter(|_| !succeeded)
            .map(|failure| failure.message.clone());
        scene.environment.operation = None;
        let trial = scene.environment.split.take().map(|split| split.release);
        if held && let Some(trial) = trial {
            end_trial(scene, trial)?;
        }
        scene.environment.updated_at = now;
        scene.environment.status = EnvironmentStatus::Ready;
        if kind == OperationKind::Terminate && succeeded {
            scene.environment.status = EnvironmentStatus::Terminated;
            scene.environment.terminated_at = Some(now);
            let prefix = InstanceRecord::prefix(&scene.environment.id);
            for left in scene.tx.list_prefix::<InstanceRecord>(&prefix)? {
                scene.tx.delete::<InstanceRecord>(&left.key())?;
            }
        }
        let mut message = message(scene.operation, scene.environment);
        if status == OperationStatus::Failed
            && let Some(runs) = who_runs_what(scene)?
        {
            message = format!("{message} {runs}");
            if held && let Some(trial) = trial {
                message = format!("{message} Release {trial} gets no requests.");
            }
            if held && scene.operation.from.is_some() {
                let name = &scene.environment.name;
                message =
                    format!("{message} `beanpole rollback {name}` takes back what is left of it.");
            }
        }
        scene.operation.message = Some(message);
        receipt::close(scene.tx, scene.environment, scene.operation, observed)?;
        Self::last_words(scene)?;
        self.trim(scene.tx, scene.environment, kind)
    }

    /// The last events of an operation. What a waiting client ends on comes last.
    fn last_words(scene: &mut Scene<'_, '_>) -> Result<(), StoreError> {
        use OperationKind as K;
        let kind = scene.operation.kind;
        let name = scene.environment.name.clone();
        if scene.operation.status == OperationStatus::Succeeded {
            if let Some(text) = left_out(scene.operation) {
                scene.say(Severity::Warn, "instances-left-out", text)?;
            }
            if let Some(text) = unproven(scene.operation) {
                scene.say(Severity::Warn, "health-ignored", text)?;
            }
            let last = match kind {
                K::Create => format!("Successfully launched environment: {name}"),
                K::Deploy | K::Rollback => {
                    scene.say(
                        Severity::Info,
                        "version-deployed",
                        "New application version was deployed to running instances.",
                    )?;
                    "Environment update completed successfully.".to_owned()
                }
                K::Configure | K::Scale => {
                    "Successfully deployed new configuration to environment.".to_owned()
                }
                K::Restart => "restartAppServer completed successfully.".to_owned(),
                K::Replace if scene.environment.asleep.is_some() => {
                    "The environment sleeps until somebody asks for it.".to_owned()
                }
                K::Replace => "The environment's instances are complete again.".to_owned(),
                K::Swap => format!(
                    "Completed swapping CNAMEs for environments '{name}' and '{}'.",
                    swapped_with(scene.operation)
                ),
                K::Terminate => match unreached(scene.operation) {
                    None => "terminateEnvironment completed successfully.".to_owned(),
                    Some(text) => format!("terminateEnvironment completed. {text}"),
                },
            };
            return scene.say(Severity::Info, "operation-succeeded", last);
        }
        let detail = scene.operation.message.clone().unwrap_or_default();
        let severity = if scene.operation.status == OperationStatus::Failed {
            Severity::Error
        } else {
            Severity::Warn
        };
        scene.say(severity, "operation-outcome", detail)?;
        if let Some(request) = scene.operation.aborted_by.clone() {
            let draft = crate::Draft::new(
                Severity::Info,
                "abort-completed",
                "abortEnvironmentUpdate completed successfully.",
                scene.now,
            )
            .request(&request)
            .operation_id(&scene.operation.id.clone());
            scene.say_draft(draft)?;
        }
        let last = match kind {
            K::Create => "Failed to launch environment.",
            K::Deploy | K::Rollback => "Failed to deploy application.",
            K::Configure | K::Scale => "Failed to deploy configuration.",
            K::Restart => "Failed to restart application servers.",
            K::Replace => "Failed to complete the environment's instances.",
            K::Terminate => "Failed to terminate environment.",
            K::Swap => "Failed to swap CNAMEs.",
        };
        scene.say(Severity::Error, "operation-failed", last)
    }

    /// Forgets the oldest events of an environment beyond the bound.
    pub(crate) fn trim_events(
        &self,
        tx: &mut Tx<'_>,
        environment: &EnvironmentRecord,
    ) -> Result<(), StoreError> {
        let events =
            tx.list_prefix::<EventIndexRecord>(&EventIndexRecord::prefix(&environment.id))?;
        let surplus = events.len().saturating_sub(self.config.events_kept);
        drop_events(tx, &events[..surplus])
    }

    /// Keeps the history within its bounds.
    fn trim(
        &self,
        tx: &mut Tx<'_>,
        environment: &EnvironmentRecord,
        kind: OperationKind,
    ) -> Result<(), StoreError> {
        self.trim_events(tx, environment)?;
        let operations =
            tx.list_prefix::<OperationIndexRecord>(&OperationIndexRecord::prefix(&environment.id))?;
        let surplus = operations.len().saturating_sub(self.config.operations_kept);
        drop_operations(tx, &operations[..surplus])?;
        let releases = tx.list_prefix::<ReleaseRecord>(&ReleaseRecord::prefix(&environment.id))?;
        let surplus = releases.len().saturating_sub(self.config.releases_kept);
        if surplus > 0 {
            // A release keeps its bundle, and one that is not needed for years should not.
            let needed = kept::needed_releases(tx, environment)?;
            // Without the release that its tree was prepared for, a later one could not be gone back to.
            let trees: BTreeSet<ReleaseNumber> = releases
                .iter()
                .filter(|release| release.tree != release.number)
                .map(|release| release.tree)
                .collect();
            let old = releases.iter().filter(|release| {
                !needed.contains_key(&release.number) && !trees.contains(&release.number)
            });
            for release in old.take(surplus) {
                drop_release(tx, release)?;
            }
        }
        if kind == OperationKind::Terminate {
            let mut gone: Vec<EnvironmentRecord> = tx
                .list::<EnvironmentRecord>()?
                .into_iter()
                .filter(|env| env.terminated_at.is_some() && env.id != environment.id)
                .collect();
            gone.sort_by_key(|env| (env.terminated_at, env.id.clone()));
            let surplus = gone.len().saturating_sub(self.config.terminated_kept);
            for env in &gone[..surplus] {
                forget(tx, env)?;
            }
        }
        Ok(())
    }
}

/// The environment that an operation exchanges hostnames with.
fn swapped_with(operation: &OperationRecord) -> &str {
    let mut stages = operation.plan.stages.iter();
    let with = stages.find_map(|stage| match stage {
        Stage::Swap { with } => Some(with.as_str()),
        _ => None,
    });
    with.unwrap_or_default()
}

/// A release that failed its trial, and was to be left for a look, is left without requests: nobody promised it
/// more of them than its share, and that ends with the operation.
fn end_trial(scene: &mut Scene<'_, '_>, release: ReleaseNumber) -> Result<(), StoreError> {
    let prefix = InstanceRecord::prefix(&scene.environment.id);
    for mut record in scene.tx.list_prefix::<InstanceRecord>(&prefix)? {
        if record.release == release && record.mode == Some(TargetMode::Serve) {
            record.mode = Some(TargetMode::Probe);
            record.routed = None;
            scene.tx.put(&record)?;
        }
    }
    Ok(())
}

/// What failed is undone in the settings, too: those of the live release are in force, with the capacity of before.
fn restore_settings(scene: &mut Scene<'_, '_>) -> Result<(), StoreError> {
    let Some(from) = scene.operation.from else {
        return Ok(());
    };
    let before = scene.operation.settings_before.clone();
    let mut before = before.unwrap_or_else(|| scene.environment.settings.clone());
    let key = ReleaseRecord::key_of(&scene.environment.id, from);
    if let Some(live) = scene.tx.get::<ReleaseRecord>(&key)? {
        before = live.settings.with_capacity_of(&before);
        scene.environment.brought = live.brought.also_in(&before);
    }
    scene.environment.settings = before;
    Ok(())
}

/// Settings that were changed in place hold for the release that they were changed under: instances of
/// a release go by its settings, whatever the environment's are by then.
fn follow_settings(scene: &mut Scene<'_, '_>) -> Result<(), StoreError> {
    let operation = &*scene.operation;
    let (Some(before), Some(live)) = (&operation.settings_before, operation.from) else {
        return Ok(());
    };
    if operation.to != Some(live) {
        return Ok(());
    }
    let key = ReleaseRecord::key_of(&scene.environment.id, live);
    if let Some(mut release) = scene.tx.get::<ReleaseRecord>(&key)? {
        release.settings.follow(before, &scene.environment.settings);
        release.brought = scene.environment.brought.also_in(&release.settings);
        scene.tx.put(&release)?;
    }
    Ok(())
}

/// Forgets a terminated environment and all that belongs to it.
fn forget(tx: &mut Tx<'_>, environment: &EnvironmentRecord) -> Result<(), StoreError> {
    let id = &environment.id;
    let events = tx.list_prefix::<EventIndexRecord>(&EventIndexRecord::prefix(id))?;
    drop_events(tx, &events)?;
    let operations = tx.list_prefix::<OperationIndexRecord>(&OperationIndexRecord::prefix(id))?;
    drop_operations(tx, &operations)?;
    for release in tx.list_prefix::<ReleaseRecord>(&ReleaseRecord::prefix(id))? {
        drop_release(tx, &release)?;
    }
    tx.delete::<EnvironmentRecord>(&environment.key())
}

fn drop_release(tx: &mut Tx<'_>, release: &ReleaseRecord) -> Result<(), StoreError> {
    tx.delete::<ReleaseRecord>(&release.key())?;
    tx.delete::<ReceiptRecord>(&ReceiptRecord::key_of(&release.environment, release.number))
}

fn drop_events(tx: &mut Tx<'_>, events: &[EventIndexRecord]) -> Result<(), StoreError> {
    for index in events {
        tx.delete::<EventRecord>(&EventRecord::key_of(index.event))?;
        tx.delete::<EventIndexRecord>(&index.key())?;
    }
    Ok(())
}

fn drop_operations(tx: &mut Tx<'_>, operations: &[OperationIndexRecord]) -> Result<(), StoreError> {
    for index in operations {
        for entry in tx.list_prefix::<JournalRecord>(&JournalRecord::prefix(&index.operation))? {
            tx.delete::<JournalRecord>(&entry.key())?;
        }
        tx.delete::<OperationRecord>(&OperationRecord::key_of(&index.operation))?;
        tx.delete::<OperationIndexRecord>(&index.key())?;
    }
    Ok(())
}

/// A sentence on what could not be reached.
fn unreached(operation: &OperationRecord) -> Option<String> {
    let names: Vec<String> = operation
        .leftovers
        .iter()
        .map(|left| format!("{} on {}", left.instance, left.host))
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "Could not be reached, may run on, and is removed when its host is back: {}.",
            names.join(", ")
        )
    })
}

/// A sentence on what is not back on the release before.
fn left_behind(operation: &OperationRecord) -> Option<String> {
    sentence_on(&operation.way_back()?.skipped)
}

/// A sentence on what stays as it was, though the others changed.
fn left_out(operation: &OperationRecord) -> Option<String> {
    sentence_on(&operation.way_there().skipped)
}

fn sentence_on(skipped: &[Skipped]) -> Option<String> {
    let names: Vec<&str> = skipped.iter().map(|one| one.instance.as_str()).collect();
    let reason = &skipped.first()?.reason;
    Some(format!("Left out: {} ({reason}).", names.join(", ")))
}

/// A sentence on what serves though it was not seen to be well.
fn unproven(operation: &OperationRecord) -> Option<String> {
    let plan = operation.way_there();
    let started: Vec<&Change> = plan
        .changes()
        .map(|(_, change)| change)
        .filter(|change| !matches!(change.action, Action::Remove | Action::Return))
        .collect();
    let proven = &operation.progress.proven;
    let unwell = started
        .iter()
        .filter(|one| !proven.contains_key(&one.instance))
        .count();
    (plan.ignore_health && unwell > 0).then(|| {
        format!(
            "{unwell} of {} new instances were not healthy when they were put into service: IgnoreHealthCheck is set.",
            started.len()
        )
    })
}

/// Which instance runs what, where they differ.
fn who_runs_what(scene: &Scene<'_, '_>) -> Result<Option<String>, StoreError> {
    let prefix = InstanceRecord::prefix(&scene.environment.id);
    let mut by_release: BTreeMap<ReleaseNumber, Vec<String>> = BTreeMap::new();
    for instance in scene.tx.list_prefix::<InstanceRecord>(&prefix)? {
        let ids = by_release.entry(instance.release).or_default();
        ids.push(instance.id.to_string());
    }
    if by_release.is_empty() || by_release.keys().eq(scene.environment.live.iter()) {
        return Ok(None);
    }
    let parts: Vec<String> = by_release
        .into_iter()
        .map(|(release, ids)| format!("release {release} on {}", ids.join(", ")))
        .collect();
    Ok(Some(format!("There is {}.", parts.join("; "))))
}

/// How it ended, in a sentence or two.
fn message(operation: &OperationRecord, environment: &EnvironmentRecord) -> String {
    let why = operation.failure.as_ref().map_or_else(
        || "It was aborted.".to_owned(),
        |failure| failure.message.clone(),
    );
    match operation.status {
        OperationStatus::Succeeded => match (operation.kind, &operation.version, operation.to) {
            (OperationKind::Deploy | OperationKind::Rollback, Some(version), Some(to)) => {
                let live = format!("Version {version} is live as release {to}.");
                let more = [left_out(operation), unproven(operation)];
                let all = std::iter::once(live).chain(more.into_iter().flatten());
                all.collect::<Vec<String>>().join(" ")
            }
            _ => match unreached(operation).or_else(|| left_out(operation)) {
                None => "Done.".to_owned(),
                Some(text) => format!("Done. {text}"),
            },
        },
        OperationStatus::RolledBack | OperationStatus::Aborted => {
            let why = match operation.status {
                OperationStatus::Aborted => "It was aborted.",
                _ => &why,
            };
            let back = match environment.live {
                Some(live) if operation.touched_nothing() => {
                    format!("{why} The environment is as it was, on release {live}.")
                }
                Some(live) => format!("{why} The environment is back on release {live}."),
                None => format!("{why} No release is live."),
            };
            match left_behind(operation) {
                None => back,
                Some(text) => format!("{back} {text}"),
            }
        }
        _ if operation.back_progress.failed.is_some() => format!(
            "{why} Going back failed too: {} It is tried again by itself after a pause; the next deployment does not \
             wait for that.",
            operation
                .back_progress
                .failed
                .as_ref()
                .map(|failure| failure.message.clone())
                .unwrap_or_default()
        ),
        _ if operation.changes_no_release() => {
            format!("{why} What did not come up is tried again after a pause.")
        }
        _ if operation.from.is_none() => {
            format!("{why} There is no release to go back to; the environment was left as it is.")
        }
        _ => format!(
            "{why} During an aborted deployment, some instances may have deployed the new application version. To ensure all instances are running the same version, re-deploy the appropriate application version."
        ),
    }
}
