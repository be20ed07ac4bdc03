//! The life of an environment: created, taken down; and giving up what runs on it.

use super::deploy::{Content, Deployment, Wish};
use super::layers::Layers;
use super::problems::bad_option;
use super::queue::drop_queued;
use super::rules::of_version;
use super::settings::check_tier;
use super::{NewOperation, application, existing, free, version};
use crate::events::{Draft, emit, emit_for};
use crate::network::check_ports;
use crate::read::{Reader, Repute};
use crate::{Call, Engine, Fault, linger};
use beanpole_planner::{Goal, Plan, Stage};
use beanpole_protocol::api::{self, EnvironmentStatus, OperationKind, PlanView, Tier};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    Cname, EnvironmentId, EnvironmentName, InstanceId, ReleaseNumber, RequestId, Timestamp,
};
use beanpole_store::model::{
    ApplicationRecord, EnvironmentRecord, InstanceRecord, LingererRecord, OperationRecord,
};
use beanpole_store::{StoreError, Tx};

impl Engine {
    /// Creates an environment; with a version, its instances start.
    pub fn create_environment(
        &self,
        call: &Call<'_>,
        body: api::CreateEnvironment,
    ) -> Result<api::Operation, Problem> {
        check_body(&body)?;
        let operation = self.store.update(|tx| {
            let key = ApplicationRecord::key_of(&body.application);
            if let Some(description) = &body.new_application
                && tx.get::<ApplicationRecord>(&key)?.is_none()
            {
                let record = ApplicationRecord {
                    name: body.application.clone(),
                    description: description.clone(),
                    root: false,
                    created_at: call.now,
                };
                write_application(tx, &call.request_id, &record)?;
            }
            let (mut environment, deployment) = self.work_out_create(tx, call, &body)?;
            let new = match deployment {
                None => NewOperation::new(OperationKind::Create, Plan::default()),
                Some(deployment) => {
                    deployment.begin(tx, &mut environment, OperationKind::Create)?
                }
            };
            new.write(tx, &mut environment, call).map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// What creating an environment would do. Nothing is written.
    pub fn plan_create(
        &self,
        call: &Call<'_>,
        body: &api::CreateEnvironment,
    ) -> Result<PlanView, Problem> {
        check_body(body)?;
        let planned = || {
            let (environment, deployment) = self.work_out_create(&self.store, call, body)?;
            let plan = deployment.map(|one| one.plan).unwrap_or_default();
            let plan = self.foretell(&environment, &plan, &environment.settings, call)?;
            let version = match &body.version {
                Some(label) => Some(version(&self.store, &body.application, label)?),
                None => None,
            };
            let warnings = version
                .map(|version| of_version(&environment.name, &environment.settings, &version));
            Ok::<_, Fault>(PlanView {
                warnings: warnings.unwrap_or_default(),
                ..plan
            })
        };
        planned().map_err(Problem::from)
    }

    /// The environment, and the way to its first version.
    fn work_out_create(
        &self,
        reader: &impl Reader,
        call: &Call<'_>,
        body: &api::CreateEnvironment,
    ) -> Result<(EnvironmentRecord, Option<Deployment>), Fault> {
        if body.new_application.is_none() {
            application(reader, &body.application)?;
        }
        let cname = free_names(reader, body)?;
        let version = match &body.version {
            Some(label) => Some(version(reader, &body.application, label)?),
            None => None,
        };
        let layers = Layers::at_creation(&body.settings, version.as_ref());
        if layers.settings != body.settings {
            layers.settings.validate_whole().map_err(bad_option)?;
            check_tier(body.tier, &layers.settings)?;
        }
        check_ports(
            reader,
            call.observed,
            &body.name,
            &layers.settings,
            self.config.api_port,
        )?;
        let environment = EnvironmentRecord {
            id: EnvironmentId::from_bits(call.bits.rotate_left(40)),
            name: body.name.clone(),
            application: body.application.clone(),
            description: body.description.clone(),
            tier: body.tier,
            platform: body.platform,
            cname,
            domains: Vec::new(),
            content: Default::default(),
            routed: None,
            status: EnvironmentStatus::Launching,
            settings: layers.settings.clone(),
            brought: layers.brought.clone(),
            live: None,
            last_release: ReleaseNumber(0),
            operation: None,
            next: None,
            counted_after: None,
            hold: false,
            split: None,
            mend_after: None,
            mend_failures: 0,
            failed_by: None,
            asleep: None,
            closed_ports: Vec::new(),
            created_at: call.now,
            updated_at: call.now,
            terminated_at: None,
            last_event_at: Timestamp::EPOCH,
        };
        let Some(version) = version else {
            return Ok((environment, None));
        };
        let wish = Wish {
            content: Content::from(version),
            layers: &layers,
            tree: None,
            repute: Repute::New,
            runs_once: true,
            replaces: false,
            policy: None,
            batch: None,
            split: None,
            reason: "create".to_owned(),
        };
        let deployment = self.work_out(reader, &environment, call, wish)?;
        Ok((environment, Some(deployment)))
    }

    /// Takes an environment down. Its name and hostname are free afterwards. What was about to begin does not.
    pub fn terminate(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            if environment.operation.is_none() {
                let why = "It never began: the environment is taken down.";
                drop_queued(tx, &mut environment, why, call)?;
            }
            free(tx, &environment, false)?;
            let plan = self.way_to(tx, &environment, &Goal::Terminate, Repute::Live, call)?;
            NewOperation::new(OperationKind::Terminate, plan)
                .write(tx, &mut environment, call)
                .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// Has the new release of a split get all requests without further waiting.
    pub fn promote(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let mut operation = under_way(tx, &environment)?;
            if operation.back.is_some() || operation.aborted_by.is_some() {
                return Err(going_back(&operation, name).into());
            }
            let splits = operation
                .plan
                .stages
                .iter()
                .any(|stage| matches!(stage, Stage::Split(_)));
            if !splits {
                return Err(Problem::conflict(
                    "no-split",
                    format!(
                        "The {} of `{name}` splits no traffic: there is nothing to promote.",
                        operation.kind
                    ),
                )
                .hint(format!("`beanpole status {name}` shows what it does."))
                .into());
            }
            if operation.progress.share.is_none() {
                return Err(Problem::conflict(
                    "no-share-yet",
                    format!("The new release of `{name}` gets no requests yet."),
                )
                .hint(format!(
                    "Promote it once it has its first share: `beanpole status {name}` shows how far it is."
                ))
                .into());
            }
            if operation.promoted_by.is_none() {
                operation.promoted_by = Some(call.request_id.clone());
                environment.updated_at = call.now;
                let text = "The promotion of the new release is starting.";
                let draft = Draft::new(Severity::Info, "promotion-starting", text, call.now)
                    .request(&call.request_id)
                    .operation_id(&operation.id);
                emit_for(tx, &mut environment, draft)?;
                tx.put(&operation)?;
                tx.put(&environment)?;
            }
            Ok(operation)
        });
        self.answer(operation, call)
    }

    /// Ends instances that linger: what is open at them is cut.
    pub fn end_lingering(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: &api::EndLingering,
    ) -> Result<api::LingeringEnded, Problem> {
        let ended = self.store.update(|tx| {
            let environment = existing(tx, name)?;
            let prefix = LingererRecord::prefix(&environment.id);
            let all: Vec<LingererRecord> = tx.list_prefix(&prefix)?;
            let only = body.instance.as_ref();
            let mut ended = api::LingeringEnded {
                instances: Vec::new(),
                open: 0,
            };
            for mut record in all {
                if only.is_some_and(|id| *id != record.instance.id) {
                    continue;
                }
                ended.instances.push(record.instance.id.clone());
                if record.stopping_since.is_none() {
                    ended.open += linger::open(&record.instance, call.observed);
                    record.ended_by.get_or_insert(call.request_id.clone());
                    tx.put(&record)?;
                }
            }
            if ended.instances.is_empty() {
                return Err(lingers_not(tx, &environment, only)?);
            }
            Ok::<_, Fault>(ended)
        });
        ended.map_err(Problem::from)
    }

    /// Gives up the operation under way; what it changed is taken back.
    pub fn abort(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let mut operation = under_way(tx, &environment)?;
            if operation.kind == OperationKind::Terminate {
                return Err(Problem::conflict(
                    "not-abortable",
                    "Taking an environment down cannot be aborted.",
                )
                .into());
            }
            if operation.kind == OperationKind::Swap {
                return Err(Problem::conflict(
                    "not-abortable",
                    "The hostnames are exchanged already; it is only waited for the load balancers.",
                )
                .hint("`beanpole swap` with the same environments exchanges them back.")
                .into());
            }
            if operation.back.is_some() || operation.aborted_by.is_some() {
                return Err(going_back(&operation, name).into());
            }
            operation.aborted_by = Some(call.request_id.clone());
            environment.status = EnvironmentStatus::Aborting;
            environment.updated_at = call.now;
            let text = "abortEnvironmentUpdate is starting.";
            let draft = Draft::new(Severity::Info, "abort-starting", text, call.now)
                .request(&call.request_id)
                .operation_id(&operation.id);
            emit_for(tx, &mut environment, draft)?;
            tx.put(&operation)?;
            tx.put(&environment)?;
            Ok(operation)
        });
        self.answer(operation, call)
    }
}

/// Why nothing was ended.
fn lingers_not(
    tx: &Tx<'_>,
    environment: &EnvironmentRecord,
    only: Option<&InstanceId>,
) -> Result<Fault, StoreError> {
    let name = &environment.name;
    let own = match only {
        Some(id) => tx.get::<InstanceRecord>(&InstanceRecord::key_of(&environment.id, id))?,
        None => None,
    };
    let problem = match (only, own) {
        (Some(id), Some(_)) => Problem::conflict(
            "not-lingering",
            format!("{id} does not linger: it is one of the instances of `{name}`."),
        ),
        (Some(id), None) => Problem::not_found("instance", id),
        (None, _) => Problem::conflict("not-lingering", format!("Nothing of `{name}` lingers.")),
    };
    let hint = format!("See what lingers: beanpole status {name}");
    Ok(problem.hint(hint).into())
}

/// The operation that runs on an environment.
fn under_way(tx: &Tx<'_>, environment: &EnvironmentRecord) -> Result<OperationRecord, Fault> {
    let operation = match &environment.operation {
        Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
        None => None,
    };
    let name = &environment.name;
    operation.ok_or_else(|| {
        Problem::conflict("no-operation", format!("No operation runs on `{name}`."))
            .hint(format!("`beanpole events {name}` shows what ran."))
            .into()
    })
}

fn going_back(operation: &OperationRecord, name: &EnvironmentName) -> Problem {
    Problem::conflict(
        "already-going-back",
        format!("The {} is on its way back already.", operation.kind),
    )
    .hint(format!("`beanpole status {name}` shows how far it is."))
}

/// The hostname of an environment to be created, when neither that nor its name is taken.
/// Refuses what cannot be an environment, whatever there is besides.
fn check_body(body: &api::CreateEnvironment) -> Result<(), Problem> {
    body.settings.validate_whole().map_err(bad_option)?;
    check_tier(body.tier, &body.settings)?;
    body.name.check_new().map_err(|error| {
        Problem::invalid("environment-name-reserved", format!("{error}."))
            .hint("Choose another name, such as one that begins with the application's.")
    })
}

/// Writes an application that is not there yet, with its event.
pub fn write_application(
    tx: &mut Tx<'_>,
    request_id: &RequestId,
    record: &ApplicationRecord,
) -> Result<(), StoreError> {
    tx.put(record)?;
    let message = format!("Application {} created.", record.name);
    let draft = Draft::new(
        Severity::Info,
        "application-created",
        message,
        record.created_at,
    );
    emit(tx, draft.request(request_id).application(&record.name)).map(drop)
}

fn free_names(reader: &impl Reader, body: &api::CreateEnvironment) -> Result<Option<Cname>, Fault> {
    let environments: Vec<EnvironmentRecord> = reader
        .all::<EnvironmentRecord>()?
        .into_iter()
        .filter(|env| env.status != EnvironmentStatus::Terminated)
        .collect();
    if environments.iter().any(|env| env.name == body.name) {
        return Err(Problem::conflict(
            "environment-exists",
            format!("There is an environment `{}` already.", body.name),
        )
        .hint("Choose another name, or `beanpole terminate` it first.")
        .into());
    }
    let cname = match (&body.cname, body.tier) {
        (_, Tier::Worker) => return Ok(None),
        (Some(cname), Tier::Web) => cname.clone(),
        (None, Tier::Web) => Cname::new(body.name.as_str().to_lowercase())
            .map_err(|error| Problem::invalid("cname-invalid", error.to_string()))?,
    };
    let taken = environments
        .iter()
        .find(|env| env.cname.as_ref() == Some(&cname));
    if let Some(taken) = taken {
        return Err(Problem::conflict(
            "cname-taken",
            format!(
                "The hostname `{cname}` belongs to environment `{}`.",
                taken.name
            ),
        )
        .hint("Give another one with `--cname`.")
        .into());
    }
    Ok(Some(cname))
}
