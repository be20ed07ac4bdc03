//! An operation, written with its first event.

use super::rules::{idle_rules, passed_over, unnamed_processes};
use crate::events::{Draft, emit_for};
use crate::{Call, receipt};
use beanpole_planner::Plan;
use beanpole_protocol::api::{EnvironmentStatus, OperationKind, OperationStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::{OperationId, ReleaseNumber, Timestamp, VersionLabel};
use beanpole_store::model::{EnvironmentRecord, OperationRecord, QueuedWish, VersionRecord};
use beanpole_store::{StoreError, Tx};
use std::time::Duration;

/// What an operation may take beyond its stages, there and back, in milliseconds (EB waits `Timeout`
/// plus this long).
const GRACE_MS: u64 = 240_000;

/// An operation to be written.
pub(crate) struct NewOperation {
    pub kind: OperationKind,
    pub to: Option<ReleaseNumber>,
    pub version: Option<VersionLabel>,
    pub plan: Plan,
    pub no_auto_rollback: bool,
    pub settings_before: Option<OptionSettings>,
}

impl NewOperation {
    /// One that ends with what was live before.
    pub fn new(kind: OperationKind, plan: Plan) -> Self {
        Self {
            kind,
            to: None,
            version: None,
            plan,
            no_auto_rollback: false,
            settings_before: None,
        }
    }

    /// One that waits for its turn, and has no plan before that.
    pub fn queued(wish: &QueuedWish) -> Self {
        Self {
            version: wish.version().cloned(),
            ..Self::new(wish.kind(), Plan::default())
        }
    }

    /// Its record, before it has begun.
    pub fn record(
        self,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        deadline: Timestamp,
    ) -> OperationRecord {
        OperationRecord {
            id: OperationId::from_bits(call.bits),
            environment: environment.id.clone(),
            environment_name: environment.name.clone(),
            application: environment.application.clone(),
            kind: self.kind,
            status: OperationStatus::Running,
            request_id: call.request_id.clone(),
            from: environment.live,
            to: self.to,
            version: self.version,
            plan: self.plan,
            progress: Default::default(),
            back: None,
            back_progress: Default::default(),
            no_auto_rollback: self.no_auto_rollback,
            aborted_by: None,
            promoted_by: None,
            guard: Default::default(),
            settings_before: self.settings_before,
            failure: None,
            message: None,
            entries: 0,
            answers: Default::default(),
            answers_told: 0,
            leftovers: Vec::new(),
            traffic: Default::default(),
            receipt_marks: Default::default(),
            receipt: None,
            wish: None,
            queued_at: None,
            started_at: call.now,
            finished_at: None,
            deadline,
        }
    }

    /// Writes it, its first event and the environment.
    pub fn write(
        self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        call: &Call<'_>,
    ) -> Result<OperationRecord, StoreError> {
        self.begin(tx, environment, call, None)
    }

    /// The same for what had been queued: its turn has come.
    pub fn write_queued(
        self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        call: &Call<'_>,
        queued: &OperationRecord,
    ) -> Result<OperationRecord, StoreError> {
        self.begin(tx, environment, call, Some(queued))
    }

    fn begin(
        self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        call: &Call<'_>,
        queued: Option<&OperationRecord>,
    ) -> Result<OperationRecord, StoreError> {
        let (now, kind) = (call.now, self.kind);
        let allowed = self.plan.total_ms() * 2 + GRACE_MS;
        receipt::settle(tx, environment, call.observed, now)?;
        let deadline = now.after(Duration::from_millis(allowed));
        let mut operation = self.record(environment, call, deadline);
        if let Some(queued) = queued {
            operation.id = queued.id.clone();
            operation.queued_at = queued.queued_at;
        }
        receipt::begin(tx, &mut operation, environment.tier, call.observed)?;
        environment.operation = Some(operation.id.clone());
        environment.updated_at = now;
        // What a failed deployment left for a look stays when only the number of instances changes, when they are
        // started afresh, or when what is live takes on other settings as it runs.
        environment.hold &= match kind {
            OperationKind::Scale | OperationKind::Restart | OperationKind::Swap => true,
            OperationKind::Configure => operation.to == environment.live,
            _ => false,
        };
        environment.status = match kind {
            OperationKind::Create => EnvironmentStatus::Launching,
            OperationKind::Terminate => EnvironmentStatus::Terminating,
            _ => EnvironmentStatus::Updating,
        };
        // Whatever else is done with it is done to its instances.
        if !matches!(
            kind,
            OperationKind::Swap | OperationKind::Terminate | OperationKind::Replace
        ) {
            environment.asleep = None;
        }
        let text = match environment.asleep {
            Some(_) if kind == OperationKind::Replace => {
                "Its instances end until somebody asks for it."
            }
            _ => starting(kind),
        };
        let draft =
            Draft::new(Severity::Info, "operation-starting", text, now).operation(&operation);
        emit_for(tx, environment, draft)?;
        for skipped in &operation.plan.skipped {
            let text = format!("{} is left out: {}.", skipped.instance, skipped.reason);
            let draft = Draft::new(Severity::Warn, "instance-skipped", text, now)
                .operation(&operation)
                .instance(Some(&skipped.instance));
            emit_for(tx, environment, draft)?;
        }
        for kept in &operation.plan.in_place {
            let text = format!(
                "{} changes in place, which cuts connections that are open after {} s: {}.",
                kept.instance,
                operation.plan.timeouts.drain_ms / 1_000,
                kept.reason
            );
            let draft = Draft::new(Severity::Warn, "changes-in-place", text, now)
                .operation(&operation)
                .instance(Some(&kept.instance));
            emit_for(tx, environment, draft)?;
        }
        let before = operation.settings_before.as_ref();
        if kind == OperationKind::Create
            || before.is_some_and(|before| *before != environment.settings)
        {
            for text in idle_rules(environment) {
                let draft =
                    Draft::new(Severity::Warn, "rule-idle", text, now).operation(&operation);
                emit_for(tx, environment, draft)?;
            }
        }
        let new_release = operation.to.is_some() && operation.to != environment.live;
        if new_release
            && matches!(
                kind,
                OperationKind::Create | OperationKind::Deploy | OperationKind::Configure
            )
            && let Some(label) = &operation.version
            && let Some(version) =
                tx.get::<VersionRecord>(&VersionRecord::key_of(&environment.application, label))?
        {
            for text in unnamed_processes(&environment.name, &environment.settings, &version) {
                let draft = Draft::new(Severity::Warn, "process-not-in-procfile", text, now)
                    .operation(&operation);
                emit_for(tx, environment, draft)?;
            }
            if let Some(text) = passed_over(&version).filter(|_| kind != OperationKind::Configure) {
                let draft = Draft::new(Severity::Info, "options-passed-over", text, now)
                    .operation(&operation);
                emit_for(tx, environment, draft)?;
            }
        }
        tx.put(&operation.index())?;
        tx.put(&operation)?;
        tx.put(environment)?;
        Ok(operation)
    }
}

/// The words of the first event, Elastic Beanstalk's where it has some.
const fn starting(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "createEnvironment is starting.",
        OperationKind::Terminate => "terminateEnvironment is starting.",
        OperationKind::Restart => "restartAppServer is starting.",
        OperationKind::Swap => "swapEnvironmentCNAMEs is starting.",
        OperationKind::Replace => {
            "Replacing or restoring instances that are not as they should be."
        }
        OperationKind::Deploy
        | OperationKind::Rollback
        | OperationKind::Scale
        | OperationKind::Configure => "Environment update is starting.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Observed;
    use crate::derive::tests::environment;
    use beanpole_protocol::options::process_namespace;
    use beanpole_protocol::{Digest, RequestId};
    use beanpole_store::Store;
    use beanpole_store::model::EventRecord;

    #[test]
    fn a_deployment_tells_at_once_of_a_process_that_its_procfile_does_not_name() {
        let store = Store::in_memory();
        let mut environment = environment();
        let settings = &mut environment.settings;
        settings.set(&process_namespace("api"), "HealthCheckPath", "/up");
        let label = VersionLabel::new("v7").expect("a label");
        let version = VersionRecord {
            application: environment.application.clone(),
            label: label.clone(),
            description: String::new(),
            bundle: Digest::new("0".repeat(64)).expect("a digest"),
            bundle_size: 1,
            release_command: None,
            container_commands: Default::default(),
            site: None,
            options: OptionSettings::default(),
            manifest: OptionSettings::default(),
            options_passed_over: Vec::new(),
            processes: Some(vec!["web".to_owned()]),
            created_at: Timestamp::EPOCH,
        };
        let observed = Observed::default();
        let call = Call {
            request_id: RequestId::from_bits(1),
            now: Timestamp::EPOCH,
            bits: 1,
            observed: &observed,
        };
        let written = store.update(|tx| {
            tx.put(&version)?;
            NewOperation {
                to: Some(ReleaseNumber(2)),
                version: Some(label.clone()),
                ..NewOperation::new(OperationKind::Deploy, Plan::default())
            }
            .write(tx, &mut environment, &call)
        });
        written.expect("memory");
        let events = store.list::<EventRecord>().expect("memory");
        let told = events
            .iter()
            .find(|event| event.0.code == "process-not-in-procfile");
        let told = &told.expect("it is told").0;
        assert_eq!(told.severity, Severity::Warn);
        assert!(told.message.contains("`api: COMMAND`"), "{told:?}");
    }
}
