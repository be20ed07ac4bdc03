//! The operation that waits for the one under way: one at most for each environment.
//!
//! What was asked for is kept as it was asked. It is planned when its turn has come, from how things are
//! then, in the transaction that begins it: a controller that dies before that has it waiting still, and
//! one that dies after it finds it under way.

use super::deploy::check_policy;
use super::layers::Layers;
use super::settings::scaled;
use super::{NewOperation, existing, no_release, version};
use crate::events::{Draft, emit_for};
use crate::read::{self, Reader};
use crate::turn::Turn;
use crate::{Call, Engine, EngineError, Fault, Observed};
use beanpole_protocol::api::{self, OperationFailure, OperationKind, OperationStatus};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{EnvironmentName, Timestamp};
use beanpole_store::model::{EnvironmentRecord, OperationRecord, QueuedWish};
use beanpole_store::{StoreError, Tx};

impl Engine {
    /// Does what is wished; with `queue`, when what is under way has ended.
    pub(super) fn now_or_next(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        queue: bool,
        wish: &QueuedWish,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            if !queue {
                super::free(tx, &environment, true)?;
            }
            let running = match &environment.operation {
                Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
                None => None,
            };
            let Some(running) = running else {
                let new = self.made_of(tx, &mut environment, wish, call)?;
                // It would have begun in a moment.
                let why = displaced(wish);
                drop_queued(tx, &mut environment, &why, call)?;
                return new.write(tx, &mut environment, call).map_err(Fault::from);
            };
            if running.kind == OperationKind::Terminate {
                return Err(Problem::conflict(
                    "environment-terminating",
                    format!("`{name}` is being taken down: nothing can wait for that."),
                )
                .hint(format!("Create it anew: beanpole create {name}"))
                .into());
            }
            check(tx, &environment, wish)?;
            let why = displaced(wish);
            drop_queued(tx, &mut environment, &why, call)?;
            enqueue(tx, &mut environment, &running, wish, call)
        });
        self.answer(operation, call)
    }

    /// Takes out what waits for the operation under way.
    pub fn abort_queued(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let why = "It was taken out before it had begun.";
            let dropped = drop_queued(tx, &mut environment, why, call)?;
            let dropped = dropped.ok_or_else(|| {
                Problem::conflict("nothing-queued", format!("Nothing is queued on `{name}`."))
                    .hint(format!("`beanpole status {name}` shows what is under way."))
            })?;
            tx.put(&environment)?;
            Ok::<_, Fault>(dropped)
        });
        self.answer(operation, call)
    }

    /// Begins what is queued on an environment at rest; one that cannot be planned any more ends there.
    pub(crate) fn begin_queued(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        bits: u128,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut environment) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(());
            };
            if environment.operation.is_some() {
                return Ok(());
            }
            let Some(queued) = take(tx, &mut environment)? else {
                return tx.put(&environment);
            };
            let call = Call {
                request_id: queued.request_id.clone(),
                now,
                bits,
                observed,
            };
            let mut ahead = environment.clone();
            let made = match &queued.wish {
                Some(wish) => self.made_of(tx, &mut ahead, wish, &call),
                None => Err(Problem::internal("What was asked for is not in its record.").into()),
            };
            match made {
                Ok(new) => new.write_queued(tx, &mut ahead, &call, &queued).map(|_| ()),
                Err(Fault::Store(error)) => Err(error),
                Err(Fault::Problem(problem)) => refuse(tx, &mut environment, queued, &problem, now),
            }
        })?;
        turn.events = true;
        turn.wake(now);
        Ok(())
    }

    /// The operation that a wish comes to, as things are.
    fn made_of(
        &self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        wish: &QueuedWish,
        call: &Call<'_>,
    ) -> Result<NewOperation, Fault> {
        match wish {
            QueuedWish::Deploy(body) => self.new_deploy(tx, environment, body, call),
            QueuedWish::Rollback(body) => self.new_rollback(tx, environment, body, call),
            QueuedWish::Scale(body) => {
                let layers = scaled(environment, body.instances)?;
                self.reconfigure(tx, environment, layers, OperationKind::Scale, call)
            }
            QueuedWish::Configure(body) => {
                let layers = Layers::changed(tx, environment, body)?;
                self.reconfigure(tx, environment, layers, OperationKind::Configure, call)
            }
        }
    }
}

/// Refuses at once what could not be carried out whatever comes before it.
fn check(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    wish: &QueuedWish,
) -> Result<(), Fault> {
    let settings = match wish {
        QueuedWish::Deploy(body) => match &body.version {
            Some(label) => {
                let version = version(reader, &environment.application, label)?;
                Layers::with_version(environment, &version, &body.settings).settings
            }
            None => environment.settings.overlaid(&body.settings),
        },
        QueuedWish::Rollback(body) => {
            if let Some(number) = body.to
                && read::release(reader, &environment.id, number)?.is_none()
            {
                return Err(no_release(number, &environment.name).into());
            }
            return Ok(());
        }
        QueuedWish::Scale(body) => scaled(environment, body.instances)?.settings,
        QueuedWish::Configure(body) => Layers::changed(reader, environment, body)?.settings,
    };
    super::settings::acceptable(reader, environment, &settings)?;
    if let QueuedWish::Deploy(body) = wish {
        check_policy(environment, body, &settings)?;
    }
    Ok(())
}

/// Has a wish wait for `running`.
fn enqueue(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    running: &OperationRecord,
    wish: &QueuedWish,
    call: &Call<'_>,
) -> Result<OperationRecord, Fault> {
    let operation = NewOperation::queued(wish).record(environment, call, running.deadline);
    let operation = OperationRecord {
        status: OperationStatus::Queued,
        wish: Some(wish.clone()),
        queued_at: Some(call.now),
        ..operation
    };
    environment.next = Some(operation.id.clone());
    environment.updated_at = call.now;
    let text = format!(
        "The {} is queued: it begins when the {} ({}) has ended.",
        wish.kind(),
        running.kind,
        running.id
    );
    let draft = Draft::new(Severity::Info, "operation-queued", text, call.now);
    emit_for(tx, environment, draft.operation(&operation))?;
    tx.put(&operation.index())?;
    tx.put(&operation)?;
    tx.put(environment)?;
    Ok(operation)
}

/// What is queued on an environment, taken from it. The caller stores both.
fn take(
    tx: &Tx<'_>,
    environment: &mut EnvironmentRecord,
) -> Result<Option<OperationRecord>, StoreError> {
    match environment.next.take() {
        Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(&id)),
        None => Ok(None),
    }
}

/// Why what was queued goes when another wish comes.
fn displaced(wish: &QueuedWish) -> String {
    let version = wish.version();
    let version = version.map_or_else(String::new, |version| format!(" of {version}"));
    format!(
        "It never began: a later {}{version} took its place.",
        wish.kind()
    )
}

/// Ends what is queued on an environment, if something is, before it has begun. The caller stores the
/// environment.
pub(super) fn drop_queued(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    why: &str,
    call: &Call<'_>,
) -> Result<Option<OperationRecord>, StoreError> {
    let Some(queued) = take(tx, environment)? else {
        return Ok(None);
    };
    let version = queued.version.as_ref();
    let version = version.map_or_else(String::new, |version| format!(" of {version}"));
    let text = format!("The queued {}{version} is dropped. {why}", queued.kind);
    let draft = Draft::new(Severity::Warn, "queued-dropped", text, call.now)
        .request(&call.request_id)
        .operation_id(&queued.id);
    emit_for(tx, environment, draft)?;
    environment.updated_at = call.now;
    let dropped = OperationRecord {
        status: OperationStatus::Aborted,
        message: Some(why.to_owned()),
        finished_at: Some(call.now),
        wish: None,
        ..queued
    };
    tx.put(&dropped)?;
    Ok(Some(dropped))
}

/// Ends what was queued, since it cannot be planned as things are.
fn refuse(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    queued: OperationRecord,
    problem: &Problem,
    now: Timestamp,
) -> Result<(), StoreError> {
    let hint = problem.hint.as_ref();
    let hint = hint.map_or_else(String::new, |hint| format!(" {hint}"));
    let message = format!("It could not begin: {}{hint}", problem.detail);
    let text = format!("The queued {} is refused. {message}", queued.kind);
    let draft = Draft::new(Severity::Error, "queued-refused", text, now).operation(&queued);
    emit_for(tx, environment, draft)?;
    environment.updated_at = now;
    tx.put(&OperationRecord {
        status: OperationStatus::Failed,
        failure: Some(OperationFailure {
            code: problem.code.clone(),
            message: message.clone(),
            instance: None,
            host: None,
            probe: None,
            answer: None,
            log: Vec::new(),
        }),
        message: Some(message),
        finished_at: Some(now),
        wish: None,
        ..queued
    })?;
    tx.put(environment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineConfig;
    use crate::derive::tests::environment;
    use beanpole_planner::{Plan, Stage, Timeouts};
    use beanpole_protocol::options::{OptionSettings, PROPERTIES};
    use beanpole_protocol::{HostId, ReleaseNumber, RequestId, VersionLabel};
    use beanpole_store::Store;
    use beanpole_store::model::{ApplicationRecord, VersionRecord};

    const NOW: Timestamp = Timestamp::EPOCH;

    fn call(bits: u128, observed: &Observed) -> Call<'_> {
        Call {
            request_id: RequestId::from_bits(bits),
            now: NOW,
            bits,
            observed,
        }
    }

    /// An environment on which a deployment waits for a host that says nothing.
    fn busy() -> (Store, EnvironmentName) {
        let store = Store::in_memory();
        let mut environment = environment();
        let name = environment.name.clone();
        let plan = Plan {
            stages: vec![Stage::Prepare {
                release: ReleaseNumber(1),
                tree: ReleaseNumber(1),
                hosts: vec![HostId::from_bits(1)],
                commands: Vec::new(),
            }],
            timeouts: Timeouts {
                prepare_ms: 600_000,
                ..Timeouts::default()
            },
            ..Plan::default()
        };
        let observed = Observed::default();
        store
            .update(|tx| {
                tx.put(&ApplicationRecord {
                    name: environment.application.clone(),
                    description: String::new(),
                    root: false,
                    created_at: NOW,
                })?;
                let new = NewOperation::new(OperationKind::Deploy, plan.clone());
                new.write(tx, &mut environment, &call(1, &observed))
            })
            .expect("memory");
        (store, name)
    }

    fn property(value: &str, queue: bool) -> api::UpdateSettings {
        let mut set = OptionSettings::default();
        set.set(PROPERTIES, "A", value);
        api::UpdateSettings {
            set,
            queue,
            ..api::UpdateSettings::default()
        }
    }

    /// Takes turns until nothing runs or waits, each by a controller that was started afresh.
    fn rest(store: &Store, name: &EnvironmentName) -> api::Environment {
        let observed = Observed::default();
        for bits in 100..120 {
            let engine = Engine::new(store.clone(), EngineConfig::default());
            let mut bits = || bits;
            engine
                .turn_at_most(&observed, NOW, &mut bits, 1)
                .expect("a turn");
            let seen = engine
                .environment(name, &observed, NOW)
                .expect("it is there");
            if seen.operation.is_none() && seen.queued.is_none() {
                return seen;
            }
        }
        panic!("it never comes to rest");
    }

    #[test]
    fn the_newest_wish_begins_when_what_is_under_way_has_ended_and_an_older_one_never_does() {
        let (store, name) = busy();
        let engine = Engine::new(store.clone(), EngineConfig::default());
        let observed = Observed::default();
        let refused = engine
            .update_settings(&call(2, &observed), &name, property("0", false))
            .expect_err("busy");
        assert_eq!(refused.code, "operation-in-progress");
        assert!(refused.hint.expect("a hint").contains("`--queue`"));
        let queue = |bits, value| {
            let call = call(bits, &observed);
            let queued = engine.update_settings(&call, &name, property(value, true));
            queued.expect("queued")
        };
        let (older, newer) = (queue(3, "1"), queue(4, "2"));
        assert_eq!(newer.status, OperationStatus::Queued);
        let waits = newer.waiting.first().expect("a reason");
        assert!(
            waits.starts_with("It begins when the deploy (op-"),
            "{waits}"
        );
        let seen = engine.environment(&name, &observed, NOW).expect("there");
        assert_eq!(seen.queued.map(|queued| queued.id), Some(newer.id.clone()));
        let older = engine.operation(&older.id, &observed, NOW).expect("there");
        assert_eq!(older.status, OperationStatus::Aborted);
        let why = older.message.expect("why");
        assert!(why.contains("took its place"), "{why}");

        engine.abort(&call(5, &observed), &name).expect("aborted");
        rest(&store, &name);
        let newer = engine.operation(&newer.id, &observed, NOW).expect("there");
        assert_eq!(newer.status, OperationStatus::Succeeded);
        let settings = engine.settings(&name).expect("settings");
        assert_eq!(settings.get(PROPERTIES, "A"), Some("2"));
    }

    #[test]
    fn what_is_queued_can_be_taken_out() {
        let (store, name) = busy();
        let engine = Engine::new(store.clone(), EngineConfig::default());
        let observed = Observed::default();
        let nothing = engine.abort_queued(&call(2, &observed), &name);
        assert_eq!(nothing.expect_err("none").code, "nothing-queued");
        engine
            .update_settings(&call(3, &observed), &name, property("1", true))
            .expect("queued");
        let out = engine.abort_queued(&call(4, &observed), &name);
        assert_eq!(out.expect("taken out").status, OperationStatus::Aborted);
        engine.abort(&call(5, &observed), &name).expect("aborted");
        rest(&store, &name);
        let settings = engine.settings(&name).expect("settings");
        assert_eq!(settings.get(PROPERTIES, "A"), None);
    }

    #[test]
    fn what_cannot_be_planned_any_more_says_so_and_changes_nothing() {
        let (store, name) = busy();
        let engine = Engine::new(store.clone(), EngineConfig::default());
        let observed = Observed::default();
        let label = VersionLabel::new("v9").expect("a label");
        let deploy = api::Deploy {
            version: Some(label.clone()),
            queue: true,
            ..api::Deploy::default()
        };
        let none = engine.deploy(&call(2, &observed), &name, deploy.clone());
        assert_eq!(none.expect_err("unknown").code, "version-not-found");
        let record = VersionRecord {
            application: environment().application,
            label,
            description: String::new(),
            bundle: beanpole_protocol::Digest::new("0".repeat(64)).expect("a digest"),
            bundle_size: 1,
            release_command: None,
            processes: None,
            container_commands: Default::default(),
            site: None,
            options: OptionSettings::default(),
            manifest: OptionSettings::default(),
            options_passed_over: Vec::new(),
            created_at: NOW,
        };
        store.update(|tx| tx.put(&record)).expect("memory");
        let queued = engine.deploy(&call(3, &observed), &name, deploy);
        let queued = queued.expect("queued").id;
        // There is no host that could hold it.
        engine.abort(&call(4, &observed), &name).expect("aborted");
        let seen = rest(&store, &name);
        assert_eq!(seen.instances.len(), 0);
        let refused = engine.operation(&queued, &observed, NOW).expect("there");
        assert_eq!(refused.status, OperationStatus::Failed);
        let message = refused.message.expect("why");
        assert!(message.starts_with("It could not begin:"), "{message}");
    }
}
