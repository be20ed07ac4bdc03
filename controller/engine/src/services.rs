//! What callers may ask for. Each service checks the call, writes the operation with its first event
//! in one transaction and answers with it; the next turn carries it on.

use crate::events::{Draft, emit_for};
use crate::read::{self, Reader, find_environment};
use crate::{Call, Engine, Fault, Observed, traffic};
use beanpole_planner::{Goal, Lack, Plan, Refusal, plan};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{
    self, EnvironmentStatus, OperationKind, OperationStatus, PlanView, Tier,
};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::{self, BatchSize, Change, DeploymentPolicy, OptionSettings};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    ApplicationName, Cname, EnvironmentId, EnvironmentName, OperationId, ReleaseNumber, RequestId,
    Timestamp, VersionLabel,
};
use beanpole_store::model::{
    ApplicationRecord, EnvironmentRecord, OperationIndexRecord, OperationRecord, ReleaseRecord,
    VersionRecord,
};
use beanpole_store::{StoreError, Tx};
use std::time::Duration;

/// What an operation may take beyond its stages, there and back, in milliseconds (EB waits `Timeout`
/// plus this long).
const GRACE_MS: u64 = 240_000;

/// An operation to be written.
pub(crate) struct NewOperation {
    pub kind: OperationKind,
    pub request_id: RequestId,
    pub to: Option<ReleaseNumber>,
    pub version: Option<VersionLabel>,
    pub plan: Plan,
    pub no_auto_rollback: bool,
    pub settings_before: Option<OptionSettings>,
    pub starting: String,
}

impl NewOperation {
    /// Writes it, its first event and the environment.
    pub fn write(
        self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        bits: u128,
    ) -> Result<OperationRecord, StoreError> {
        let allowed = self.plan.total_ms() * 2 + GRACE_MS;
        let operation = OperationRecord {
            id: OperationId::from_bits(bits),
            environment: environment.id.clone(),
            environment_name: environment.name.clone(),
            application: environment.application.clone(),
            kind: self.kind,
            status: OperationStatus::Running,
            request_id: self.request_id,
            from: environment.live,
            to: self.to,
            version: self.version,
            plan: self.plan,
            progress: Default::default(),
            back: None,
            back_progress: Default::default(),
            no_auto_rollback: self.no_auto_rollback,
            aborted_by: None,
            settings_before: self.settings_before,
            failure: None,
            message: None,
            entries: 0,
            traffic: traffic::start(&environment.id, observed),
            started_at: now,
            finished_at: None,
            deadline: now.after(Duration::from_millis(allowed)),
        };
        environment.operation = Some(operation.id.clone());
        environment.updated_at = now;
        environment.hold = false;
        environment.status = match self.kind {
            OperationKind::Create => EnvironmentStatus::Launching,
            OperationKind::Terminate => EnvironmentStatus::Terminating,
            _ => EnvironmentStatus::Updating,
        };
        let draft = Draft::new(Severity::Info, "operation-starting", self.starting, now)
            .operation(&operation);
        emit_for(tx, environment, draft)?;
        for skipped in &operation.plan.skipped {
            let text = format!("{} is left out: {}.", skipped.instance, skipped.reason);
            let draft = Draft::new(Severity::Warn, "instance-skipped", text, now)
                .operation(&operation)
                .instance(Some(&skipped.instance));
            emit_for(tx, environment, draft)?;
        }
        tx.put(&OperationIndexRecord {
            environment: environment.id.clone(),
            started_at: now,
            operation: operation.id.clone(),
        })?;
        tx.put(&operation)?;
        tx.put(environment)?;
        Ok(operation)
    }
}

/// A deployment worked out, not written.
struct Deployment {
    release: ReleaseRecord,
    plan: Plan,
}

/// What a deployment is asked to do.
struct Wish<'r> {
    version: &'r VersionRecord,
    settings: &'r OptionSettings,
    /// An earlier release with the same content, prepared on hosts.
    tree: Option<ReleaseNumber>,
    policy: Option<DeploymentPolicy>,
    batch: Option<BatchSize>,
    reason: String,
}

impl Engine {
    /// Creates an environment; with a version, its instances start.
    pub fn create_environment(
        &self,
        call: &Call<'_>,
        body: api::CreateEnvironment,
    ) -> Result<api::Operation, Problem> {
        body.settings.validate().map_err(bad_option)?;
        if body.platform == Platform::Docker {
            return Err(Problem::invalid(
                "platform-not-available",
                "The platform `docker` is not available yet.",
            )
            .hint("Use `auto`, `procfile`, `node` or `python`."));
        }
        let operation = self.store.update(|tx| {
            application(tx, &body.application)?;
            let environments: Vec<EnvironmentRecord> = tx
                .list::<EnvironmentRecord>()?
                .into_iter()
                .filter(|env| env.status != EnvironmentStatus::Terminated)
                .collect();
            if environments.iter().any(|env| env.name == body.name) {
                return Err(Fault::from(
                    Problem::conflict(
                        "environment-exists",
                        format!("There is an environment `{}` already.", body.name),
                    )
                    .hint("Choose another name, or `beanpole terminate` it first."),
                ));
            }
            let cname =
                match (&body.cname, body.tier) {
                    (_, Tier::Worker) => None,
                    (Some(cname), Tier::Web) => Some(cname.clone()),
                    (None, Tier::Web) => {
                        let name = body.name.as_str().to_lowercase();
                        Some(Cname::new(name).map_err(|error| {
                            Problem::invalid("cname-invalid", error.to_string())
                        })?)
                    }
                };
            if let Some(taken) = environments
                .iter()
                .find(|env| cname.is_some() && env.cname == cname)
            {
                return Err(Problem::conflict(
                    "cname-taken",
                    format!(
                        "The hostname `{}` belongs to environment `{}`.",
                        cname.as_ref().map_or("", Cname::as_str),
                        taken.name
                    ),
                )
                .hint("Give another one with `--cname`.")
                .into());
            }
            let mut environment = EnvironmentRecord {
                id: EnvironmentId::from_bits(call.bits.rotate_left(40)),
                name: body.name.clone(),
                application: body.application.clone(),
                description: body.description.clone(),
                tier: body.tier,
                platform: body.platform,
                cname,
                status: EnvironmentStatus::Launching,
                settings: body.settings.clone(),
                live: None,
                last_release: ReleaseNumber(0),
                operation: None,
                hold: false,
                mend_after: None,
                mend_failures: 0,
                created_at: call.now,
                updated_at: call.now,
                terminated_at: None,
                last_event_at: Timestamp::EPOCH,
            };
            let mut new = NewOperation {
                kind: OperationKind::Create,
                request_id: call.request_id.clone(),
                to: None,
                version: None,
                plan: Plan::default(),
                no_auto_rollback: false,
                settings_before: None,
                starting: "createEnvironment is starting.".to_owned(),
            };
            if let Some(label) = &body.version {
                let version = version(tx, &body.application, label)?;
                let settings = environment.settings.clone();
                let wish = Wish {
                    version: &version,
                    settings: &settings,
                    tree: None,
                    policy: None,
                    batch: None,
                    reason: "create".to_owned(),
                };
                let deployment = self.work_out(tx, &environment, call, &wish)?;
                environment.last_release = deployment.release.number;
                tx.put(&deployment.release)?;
                new.to = Some(deployment.release.number);
                new.version = Some(version.label);
                new.plan = deployment.plan;
            }
            new.write(tx, &mut environment, call.observed, call.now, call.bits)
                .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// Deploys a version.
    pub fn deploy(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Deploy,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = idle(tx, name)?;
            let (deployment, settings) = self.work_out_deploy(tx, &environment, call, &body)?;
            let before = std::mem::replace(&mut environment.settings, settings);
            environment.last_release = deployment.release.number;
            tx.put(&deployment.release)?;
            NewOperation {
                kind: OperationKind::Deploy,
                request_id: call.request_id.clone(),
                to: Some(deployment.release.number),
                version: Some(deployment.release.version),
                plan: deployment.plan,
                no_auto_rollback: body.no_auto_rollback,
                settings_before: (before != environment.settings).then_some(before),
                starting: "Environment update is starting.".to_owned(),
            }
            .write(tx, &mut environment, call.observed, call.now, call.bits)
            .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// What a deployment would do. Nothing is written.
    pub fn plan_deploy(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Deploy,
    ) -> Result<PlanView, Problem> {
        let planned = || {
            let environment = idle(&self.store, name)?;
            let (deployment, _) = self.work_out_deploy(&self.store, &environment, call, &body)?;
            let world = self.world(&self.store, &environment, call.observed, call.now, false)?;
            Ok::<_, Fault>(deployment.plan.view(&|host| world.host_name(host)))
        };
        planned().map_err(Problem::from)
    }

    /// Goes back to an earlier release: its version, settings and properties, as a new release. The
    /// number of instances stays as it is.
    pub fn rollback(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: &api::Rollback,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = idle(tx, name)?;
            let (deployment, settings) = self.work_out_rollback(tx, &environment, call, body)?;
            let before = std::mem::replace(&mut environment.settings, settings);
            environment.last_release = deployment.release.number;
            tx.put(&deployment.release)?;
            NewOperation {
                kind: OperationKind::Rollback,
                request_id: call.request_id.clone(),
                to: Some(deployment.release.number),
                version: Some(deployment.release.version),
                plan: deployment.plan,
                no_auto_rollback: false,
                settings_before: (before != environment.settings).then_some(before),
                starting: "Environment update is starting.".to_owned(),
            }
            .write(tx, &mut environment, call.observed, call.now, call.bits)
            .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// What a rollback would do. Nothing is written.
    pub fn plan_rollback(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: &api::Rollback,
    ) -> Result<PlanView, Problem> {
        let planned = || {
            let environment = idle(&self.store, name)?;
            let (deployment, _) = self.work_out_rollback(&self.store, &environment, call, body)?;
            let world = self.world(&self.store, &environment, call.observed, call.now, false)?;
            Ok::<_, Fault>(deployment.plan.view(&|host| world.host_name(host)))
        };
        planned().map_err(Problem::from)
    }

    /// Changes the number of instances.
    pub fn scale(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Scale,
    ) -> Result<api::Operation, Problem> {
        if !(1..=10_000).contains(&body.instances) {
            return Err(Problem::invalid(
                "instances-out-of-range",
                format!(
                    "{} is not a number of instances: it must be 1 to 10,000.",
                    body.instances
                ),
            ));
        }
        let operation = self.store.update(|tx| {
            let environment = idle(tx, name)?;
            let mut settings = environment.settings.clone();
            settings.set(options::ASG, "MinSize", body.instances.to_string());
            if settings.instance_count() != body.instances {
                return Err(Problem::conflict(
                    "single-instance",
                    format!("`{name}` is a single-instance environment."),
                )
                .hint("Set `aws:elasticbeanstalk:environment:EnvironmentType` to `LoadBalanced` first.")
                .into());
            }
            self.reconfigure(tx, environment, settings, OperationKind::Scale, call)
        });
        self.answer(operation, call)
    }

    /// Restarts every instance, by the deployment policy.
    pub fn restart(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = idle(tx, name)?;
            let Some(live) = environment.live else {
                return Err(nothing_deployed(&environment).into());
            };
            let release = read::release(tx, &environment.id, live)?;
            let world = self.world(tx, &environment, call.observed, call.now, false)?;
            let deployment = environment.settings.deployment();
            let goal = Goal::Restart {
                policy: deployment.policy,
                batch: deployment.batch,
            };
            let rules = read::rules(&environment.settings, environment.tier);
            let plan = plan(&world, &goal, &rules, call.bits).map_err(refused)?;
            NewOperation {
                kind: OperationKind::Restart,
                request_id: call.request_id.clone(),
                to: Some(live),
                version: release.map(|release| release.version),
                plan,
                no_auto_rollback: false,
                settings_before: None,
                starting: "restartAppServer is starting.".to_owned(),
            }
            .write(tx, &mut environment, call.observed, call.now, call.bits)
            .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// Changes settings. What needs a restart makes a new release and runs as a deployment.
    pub fn update_settings(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::UpdateSettings,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let environment = idle(tx, name)?;
            let mut settings = environment.settings.overlaid(&body.set);
            for (namespace, names) in &body.remove {
                for option in names {
                    settings.remove(namespace, option);
                }
            }
            self.reconfigure(tx, environment, settings, OperationKind::Configure, call)
        });
        self.answer(operation, call)
    }

    /// Takes an environment down. Its name and hostname are free afterwards.
    pub fn terminate(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = idle(tx, name)?;
            let world = self.world(tx, &environment, call.observed, call.now, false)?;
            let rules = read::rules(&environment.settings, environment.tier);
            let plan = plan(&world, &Goal::Terminate, &rules, call.bits).map_err(refused)?;
            NewOperation {
                kind: OperationKind::Terminate,
                request_id: call.request_id.clone(),
                to: None,
                version: None,
                plan,
                no_auto_rollback: false,
                settings_before: None,
                starting: "terminateEnvironment is starting.".to_owned(),
            }
            .write(tx, &mut environment, call.observed, call.now, call.bits)
            .map_err(Fault::from)
        });
        self.answer(operation, call)
    }

    /// Gives up the operation under way; what it changed is taken back.
    pub fn abort(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
    ) -> Result<api::Operation, Problem> {
        let operation = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let operation = match &environment.operation {
                Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
                None => None,
            };
            let Some(mut operation) = operation else {
                return Err(Problem::conflict(
                    "no-operation",
                    format!("No operation runs on `{name}`."),
                )
                .into());
            };
            if operation.kind == OperationKind::Terminate {
                return Err(Problem::conflict(
                    "not-abortable",
                    "Taking an environment down cannot be aborted.",
                )
                .into());
            }
            if operation.back.is_some() || operation.aborted_by.is_some() {
                return Err(Problem::conflict(
                    "already-going-back",
                    format!("The {} is on its way back already.", operation.kind),
                )
                .hint(format!("`beanpole status {name}` shows how far it is."))
                .into());
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

    /// Puts new settings in force, by whatever their difference from the old ones needs.
    fn reconfigure(
        &self,
        tx: &mut Tx<'_>,
        mut environment: EnvironmentRecord,
        settings: OptionSettings,
        kind: OperationKind,
        call: &Call<'_>,
    ) -> Result<OperationRecord, Fault> {
        settings.validate().map_err(bad_option)?;
        let change = change(&environment.settings, &settings)?;
        let before = std::mem::replace(&mut environment.settings, settings);
        let mut new = NewOperation {
            kind,
            request_id: call.request_id.clone(),
            to: environment.live,
            version: None,
            plan: Plan::default(),
            no_auto_rollback: false,
            settings_before: Some(before),
            starting: "Environment update is starting.".to_owned(),
        };
        if let Some(live) = environment.live
            && let Some(release) = read::release(tx, &environment.id, live)?
        {
            new.version = Some(release.version.clone());
            if change == Change::Restart {
                let version = VersionRecord {
                    application: environment.application.clone(),
                    label: release.version.clone(),
                    description: String::new(),
                    bundle: release.bundle.clone(),
                    bundle_size: release.bundle_size,
                    created_at: release.created_at,
                };
                let settings = environment.settings.clone();
                // Limits alone do not change what is prepared on hosts.
                let same_tree = settings.properties() == release.settings.properties()
                    && settings.platform_options() == release.settings.platform_options();
                let wish = Wish {
                    version: &version,
                    settings: &settings,
                    tree: same_tree.then_some(release.tree),
                    policy: None,
                    batch: None,
                    reason: "settings".to_owned(),
                };
                let deployment = self.work_out(tx, &environment, call, &wish)?;
                environment.last_release = deployment.release.number;
                tx.put(&deployment.release)?;
                new.to = Some(deployment.release.number);
                new.plan = deployment.plan;
            } else {
                let world = self.world(tx, &environment, call.observed, call.now, true)?;
                let goal = Goal::Scale {
                    release: live,
                    tree: release.tree,
                    size: environment.settings.instance_count(),
                };
                let rules = read::rules(&environment.settings, environment.tier);
                new.plan = plan(&world, &goal, &rules, call.bits).map_err(refused)?;
            }
        }
        new.write(tx, &mut environment, call.observed, call.now, call.bits)
            .map_err(Fault::from)
    }

    fn work_out_deploy(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        body: &api::Deploy,
    ) -> Result<(Deployment, OptionSettings), Fault> {
        let settings = environment.settings.overlaid(&body.settings);
        settings.validate().map_err(bad_option)?;
        change(&environment.settings, &settings)?;
        let label = match (&body.version, environment.live) {
            (Some(label), _) => label.clone(),
            (None, Some(live)) => read::release(reader, &environment.id, live)?
                .map(|release| release.version)
                .ok_or_else(|| nothing_deployed(environment))?,
            (None, None) => return Err(nothing_deployed(environment).into()),
        };
        let version = version(reader, &environment.application, &label)?;
        let wish = Wish {
            version: &version,
            settings: &settings,
            tree: None,
            policy: body.policy,
            batch: body.batch,
            reason: "deploy".to_owned(),
        };
        let deployment = self.work_out(reader, environment, call, &wish)?;
        Ok((deployment, settings))
    }

    /// The release to go back to, as a new one, the plan to it, and the environment's settings then.
    fn work_out_rollback(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        body: &api::Rollback,
    ) -> Result<(Deployment, OptionSettings), Fault> {
        let releases = reader.under::<ReleaseRecord>(&ReleaseRecord::prefix(&environment.id))?;
        let target = match body.to {
            Some(number) => releases
                .iter()
                .find(|release| release.number == number)
                .ok_or_else(|| {
                    Problem::not_found("release", number).hint(format!(
                        "`beanpole releases {}` lists them.",
                        environment.name
                    ))
                })?,
            None => releases
                .iter()
                .filter(|r| r.live_at.is_some() && Some(r.number) != environment.live)
                .max_by_key(|release| (release.live_at, release.number))
                .ok_or_else(|| nothing_before(environment))?,
        };
        let version = VersionRecord {
            application: environment.application.clone(),
            label: target.version.clone(),
            description: String::new(),
            bundle: target.bundle.clone(),
            bundle_size: target.bundle_size,
            created_at: target.created_at,
        };
        // How much capacity there is belongs to now, not to the release: going back must not take
        // away the instances that today's traffic needs.
        let mut settings = target.settings.clone();
        for option in ["MinSize", "MaxSize"] {
            if let Some(now) = environment.settings.get(options::ASG, option) {
                settings.set(options::ASG, option, now.to_owned());
            }
        }
        let wish = Wish {
            version: &version,
            settings: &settings,
            tree: target.live_at.map(|_| target.tree),
            policy: body.policy,
            batch: body.batch,
            reason: format!("rollback to {}", target.number),
        };
        let deployment = self.work_out(reader, environment, call, &wish)?;
        Ok((deployment, settings))
    }

    /// The next release and the way to it.
    fn work_out(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        wish: &Wish<'_>,
    ) -> Result<Deployment, Fault> {
        let number = environment.last_release.next();
        let release = ReleaseRecord {
            environment: environment.id.clone(),
            number,
            tree: wish.tree.unwrap_or(number),
            version: wish.version.label.clone(),
            bundle: wish.version.bundle.clone(),
            bundle_size: wish.version.bundle_size,
            platform: environment.platform,
            settings: wish.settings.clone(),
            reason: wish.reason.clone(),
            outcome: None,
            live_at: None,
            created_at: call.now,
        };
        let options = wish.settings.deployment();
        // A batch given without a policy asks for Rolling, as in the settings.
        let policy = wish.policy.unwrap_or(match wish.batch {
            Some(_) => DeploymentPolicy::Rolling,
            None => options.policy,
        });
        let goal = Goal::Deploy {
            release: number,
            tree: release.tree,
            size: wish.settings.instance_count(),
            policy,
            batch: wish.batch.unwrap_or(options.batch),
        };
        let world = self.world(reader, environment, call.observed, call.now, true)?;
        let rules = read::rules(wish.settings, environment.tier);
        let plan = plan(&world, &goal, &rules, call.bits.rotate_left(17)).map_err(refused)?;
        Ok(Deployment { release, plan })
    }

    fn answer(
        &self,
        operation: Result<OperationRecord, Fault>,
        call: &Call<'_>,
    ) -> Result<api::Operation, Problem> {
        let operation = operation.map_err(Problem::from)?;
        self.operation(&operation.id, call.observed, call.now)
    }
}

/// The environment, or a problem that says there is none.
pub(crate) fn existing(
    reader: &impl Reader,
    name: &EnvironmentName,
) -> Result<EnvironmentRecord, Fault> {
    find_environment(reader, name)?.ok_or_else(|| {
        Problem::not_found("environment", name)
            .hint("`beanpole list` shows the environments there are.")
            .into()
    })
}

/// The environment, when no operation runs on it.
fn idle(reader: &impl Reader, name: &EnvironmentName) -> Result<EnvironmentRecord, Fault> {
    let environment = existing(reader, name)?;
    if let Some(id) = &environment.operation {
        let kind = reader
            .one::<OperationRecord>(&OperationRecord::key_of(id))?
            .map_or_else(|| "operation".to_owned(), |op| op.kind.to_string());
        return Err(Problem::conflict(
            "operation-in-progress",
            format!("Another operation ({kind}, {id}) is under way on `{name}`."),
        )
        .hint(format!(
            "Wait for it to end, or give it up with `beanpole abort {name}`."
        ))
        .into());
    }
    Ok(environment)
}

fn application(reader: &impl Reader, name: &ApplicationName) -> Result<(), Fault> {
    let found: Option<ApplicationRecord> = reader.one(&ApplicationRecord::key_of(name))?;
    found.map(|_| ()).ok_or_else(|| {
        Problem::not_found("application", name)
            .hint(format!("Create it with `beanpole init {name}`."))
            .into()
    })
}

fn version(
    reader: &impl Reader,
    application: &ApplicationName,
    label: &VersionLabel,
) -> Result<VersionRecord, Fault> {
    reader
        .one(&VersionRecord::key_of(application, label))?
        .ok_or_else(|| {
            Problem::not_found("version", label)
                .hint(format!(
                    "Application `{application}` has no version of that label; `beanpole deploy --from DIR --label {label}` makes one."
                ))
                .into()
        })
}

fn nothing_deployed(environment: &EnvironmentRecord) -> Problem {
    let name = &environment.name;
    let text = if environment.last_release == ReleaseNumber(0) {
        format!("No version is deployed to `{name}` yet.")
    } else {
        format!("No release of `{name}` is live: none was deployed with success.")
    };
    Problem::conflict("nothing-deployed", text)
        .hint(format!("Deploy one: `beanpole deploy {name} --from DIR`."))
}

fn nothing_before(environment: &EnvironmentRecord) -> Problem {
    let name = &environment.name;
    let code = "nothing-to-roll-back-to";
    if environment.live.is_some() {
        return Problem::conflict(
            code,
            format!("No release of `{name}` was live before this one."),
        )
        .hint(format!("`beanpole releases {name}` lists its releases."));
    }
    Problem::conflict(
        code,
        format!("No release of `{name}` was ever live: there is nothing to go back to."),
    )
    .hint(format!(
        "Deploy a version that works: `beanpole deploy {name} --from DIR`."
    ))
}

fn bad_option(error: options::OptionError) -> Problem {
    Problem::invalid("option-invalid", error.to_string())
}

fn refused(refusal: Refusal) -> Problem {
    match &refusal {
        Refusal::NoPlace { hosts, .. } => {
            let text = refusal.to_string();
            let unlabelled = hosts
                .iter()
                .any(|(_, lack)| matches!(lack, Lack::Labels(_)));
            Problem::conflict("no-place", format!("There is not enough room: {text}.")).hint(
                if unlabelled {
                    "Give a host the label with `beanpole host label`, or ask for others with `beanpole config ENV --set HostLabels=…`."
                } else {
                    "Add a host with `beanpole host add`, or lower `beanpole:instance:MemoryMax`."
                },
            )
        }
        Refusal::Unreachable => Problem::conflict(
            "hosts-unreachable",
            "Every host that holds the environment's instances is unreachable.",
        )
        .hint("`beanpole host list` shows since when; instances are replaced elsewhere after a while."),
        Refusal::Nothing => Problem::conflict("nothing-to-do", "There is nothing to do."),
    }
}

/// The heaviest consequence of going from one set of settings to another.
fn change(from: &OptionSettings, to: &OptionSettings) -> Result<Change, Problem> {
    let mut heaviest = Change::Nothing;
    if from.properties() != to.properties() {
        heaviest = Change::Restart;
    }
    for known in options::KNOWN {
        let (namespace, name) = (known.namespace, known.name);
        if from.effective(namespace, name) == to.effective(namespace, name) {
            continue;
        }
        match known.change {
            Change::Nothing => {}
            Change::Restart => heaviest = Change::Restart,
            Change::Fixed => {
                return Err(Problem::conflict(
                    "option-fixed",
                    format!(
                        "Option `{name}` ({namespace}) is fixed when an environment is created."
                    ),
                )
                .hint("Create another environment with the value you want."));
            }
        }
    }
    Ok(heaviest)
}
