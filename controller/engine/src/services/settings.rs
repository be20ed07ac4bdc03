//! The same version otherwise: another number of instances, other settings, started afresh.

use super::deploy::{Content, Deployment, Wish};
use super::layers::Layers;
use super::problems::{bad_option, nothing_deployed, refused};
use super::{NewOperation, existing, idle, rules as odd, swap};
use crate::apply::Scene;
use crate::network::check_ports;
use crate::read::{Reader, Repute};
use crate::{Call, Engine, Fault, read};
use beanpole_planner::{Goal, Plan, Stage, grow};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{self, OperationKind, PlanView, Tier};
use beanpole_protocol::options::{self, Change, DeploymentPolicy, OptionSettings};
use beanpole_protocol::problem::Problem;
use beanpole_store::Tx;
use beanpole_store::model::{
    EnvironmentRecord, InstanceRecord, OperationRecord, QueuedWish, ReleaseRecord, VersionRecord,
};
use std::collections::BTreeSet;

impl Engine {
    /// Changes the number of instances.
    pub fn scale(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Scale,
    ) -> Result<api::Operation, Problem> {
        let queue = body.queue;
        if !queue && let Some(operation) = self.grow(call, name, body.instances)? {
            return Ok(operation);
        }
        self.now_or_next(call, name, queue, &QueuedWish::Scale(body))
    }

    /// More instances for an environment whose requests are split, on both sides: the deployment goes on with
    /// them. None where nothing is split.
    fn grow(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        wanted: u32,
    ) -> Result<Option<api::Operation>, Problem> {
        let grown = self.store.update(|tx| {
            let mut environment = existing(tx, name)?;
            let operation = match &environment.operation {
                Some(id) => tx.get::<OperationRecord>(&OperationRecord::key_of(id))?,
                None => None,
            };
            let splits = |one: &OperationRecord| {
                one.back.is_none()
                    && one.aborted_by.is_none()
                    && one.promoted_by.is_none()
                    && one.plan.is_splitting(&one.progress)
            };
            let Some(mut operation) = operation.filter(splits) else {
                return Ok(None);
            };
            let now = environment.settings.instance_count();
            let layers = scaled(&environment, wanted)?;
            if wanted == now {
                return Ok(Some(operation));
            }
            let more = wanted.checked_sub(now);
            let (Some(more), Some(before)) = (more, operation.from) else {
                return Err(only_grows(name, now).into());
            };
            let world = self.world(tx, &environment, call.observed, call.now, true)?;
            let (plan, progress) = (&operation.plan, &operation.progress);
            let entry = grow(plan, progress, &world, before, more, call.bits).map_err(refused)?;
            let Some(entry) = entry else {
                return Ok(None);
            };
            layers.put_in(&mut environment);
            environment.updated_at = call.now;
            if let Some(before) = operation.settings_before.take() {
                operation.settings_before = Some(before.with_capacity_of(&environment.settings));
            }
            let mut scene = Scene {
                tx,
                environment: &mut environment,
                operation: &mut operation,
                now: call.now,
                ports: None,
            };
            scene.record(&world, &entry)?;
            tx.put(&operation)?;
            tx.put(&environment)?;
            Ok::<_, Fault>(Some(operation))
        });
        match grown.map_err(Problem::from)? {
            None => Ok(None),
            Some(operation) => self
                .operation(&operation.id, call.observed, call.now)
                .map(Some),
        }
    }

    /// What a change of the number of instances would do. Nothing is written.
    pub fn plan_scale(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Scale,
    ) -> Result<PlanView, Problem> {
        let planned = || {
            let before = idle(&self.store, name)?;
            let layers = scaled(&before, body.instances)?;
            self.foretell_settings(&before, layers, call)
        };
        planned().map_err(Problem::from)
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
            if environment.asleep.is_some() {
                let text = format!("`{name}` sleeps: nothing of it runs.");
                return Err(Problem::conflict("asleep", text)
                    .hint("It starts afresh with the next request.")
                    .into());
            }
            let release = read::release(tx, &environment.id, live)?;
            let instances = InstanceRecord::prefix(&environment.id);
            let instances = tx.list_prefix::<InstanceRecord>(&instances)?;
            let deployment = environment.settings.deployment();
            let goal = Goal::Restart {
                live,
                policy: deployment.policy,
                batch: deployment.batch,
            };
            // What a failed deployment left is started again, too, and was never live.
            let lived = instances.iter().all(|one| one.release == live);
            let repute = if lived { Repute::Live } else { Repute::New };
            let plan = self.way_to(tx, &environment, &goal, repute, call)?;
            NewOperation {
                to: Some(live),
                version: release.map(|release| release.version),
                ..NewOperation::new(OperationKind::Restart, plan)
            }
            .write(tx, &mut environment, call)
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
        unambiguous(&body)?;
        let queue = body.queue;
        self.now_or_next(call, name, queue, &QueuedWish::Configure(body))
    }

    /// What a change of settings would do. Nothing is written.
    pub fn plan_settings(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: &api::UpdateSettings,
    ) -> Result<PlanView, Problem> {
        unambiguous(body)?;
        let planned = || {
            let before = idle(&self.store, name)?;
            let layers = Layers::changed(&self.store, &before, body)?;
            self.foretell_settings(&before, layers, call)
        };
        planned().map_err(Problem::from)
    }

    /// What putting new settings in force would do.
    fn foretell_settings(
        &self,
        before: &EnvironmentRecord,
        layers: Layers,
        call: &Call<'_>,
    ) -> Result<PlanView, Fault> {
        let settings = &layers.settings;
        let change = acceptable(&self.store, before, settings)?;
        check_tier(before.tier, settings)?;
        check_ports(
            &self.store,
            call.observed,
            &before.name,
            settings,
            self.config.api_port,
        )?;
        let live = match before.live {
            Some(live) => read::release(&self.store, &before.id, live)?,
            None => None,
        };
        let mut after = before.clone();
        layers.put_in(&mut after);
        let mut warnings = Vec::new();
        let plan = match live {
            None => Plan::default(),
            Some(release) if change > Change::Check => {
                let key = VersionRecord::key_of(&before.application, &release.version);
                if let Some(version) = self.store.one::<VersionRecord>(&key)? {
                    warnings = odd::unnamed_processes(&before.name, &after.settings, &version);
                }
                self.work_out_settings(&self.store, &after, &release, change, call)?
                    .plan
            }
            Some(release) => self.way_in_place(&self.store, &after, &release, change, call)?,
        };
        let plan = self.foretell(before, &plan, &after.settings, call)?;
        Ok(PlanView { warnings, ..plan })
    }

    /// The operation that puts new settings in force, by whatever their difference from the old ones needs.
    pub(super) fn reconfigure(
        &self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        layers: Layers,
        kind: OperationKind,
        call: &Call<'_>,
    ) -> Result<NewOperation, Fault> {
        let settings = &layers.settings;
        let change = acceptable(tx, environment, settings)?;
        check_tier(environment.tier, settings)?;
        check_ports(
            tx,
            call.observed,
            &environment.name,
            settings,
            self.config.api_port,
        )?;
        let before = layers.put_in(environment);
        let live = match environment.live {
            Some(live) => read::release(tx, &environment.id, live)?,
            None => None,
        };
        let mut new = match &live {
            None => NewOperation::new(kind, Plan::default()),
            Some(release) if change > Change::Check => self
                .work_out_settings(tx, environment, release, change, call)?
                .begin(tx, environment, kind)?,
            Some(release) => {
                let plan = self.way_in_place(tx, environment, release, change, call)?;
                NewOperation {
                    to: environment.live,
                    version: Some(release.version.clone()),
                    ..NewOperation::new(kind, plan)
                }
            }
        };
        new.settings_before = Some(before);
        Ok(new)
    }

    /// The way to settings that what is live takes on as it runs.
    fn way_in_place(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        live: &ReleaseRecord,
        change: Change,
        call: &Call<'_>,
    ) -> Result<Plan, Fault> {
        let goal = to_size(environment, live);
        let mut plan = self.way_to(reader, environment, &goal, Repute::Live, call)?;
        let ignored = environment.settings.deployment().ignore_health_check;
        if change == Change::Check && environment.tier == Tier::Web && !ignored {
            let check = environment.settings.health_check();
            plan.stages.insert(0, Stage::TryCheck { check });
        }
        Ok(plan)
    }

    /// What is live, as a new release under the environment's settings.
    fn work_out_settings(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        live: &ReleaseRecord,
        change: Change,
        call: &Call<'_>,
    ) -> Result<Deployment, Fault> {
        let settings = &environment.settings;
        // Limits alone do not change what is prepared on hosts.
        let same_tree = settings.properties() == live.settings.properties()
            && settings.platform_options() == live.settings.platform_options();
        let layers = Layers {
            settings: settings.clone(),
            brought: environment.brought.clone(),
        };
        let wish = Wish {
            content: Content::from(live),
            layers: &layers,
            tree: same_tree.then_some(live.tree),
            repute: Repute::New,
            runs_once: false,
            replaces: change == Change::Replace,
            policy: None,
            batch: None,
            split: None,
            reason: ReleaseRecord::OF_SETTINGS.to_owned(),
        };
        self.work_out(reader, environment, call, wish)
    }
}

fn only_grows(name: &EnvironmentName, now: u32) -> Problem {
    Problem::conflict(
        "split-only-grows",
        format!(
            "While its requests are split, `{name}` can only get more instances than the {now} that each \
             side has."
        ),
    )
    .hint(format!(
        "Have it get fewer when the split is over (`--queue`), or end the split: `beanpole promote {name}`, \
         `beanpole abort {name}`."
    ))
}

/// As many instances of what is live as the settings ask for.
fn to_size(environment: &EnvironmentRecord, live: &ReleaseRecord) -> Goal {
    Goal::Scale {
        release: live.number,
        tree: live.tree,
        size: environment.settings.instance_count(),
    }
}

/// An environment's settings with another number of instances.
pub(super) fn scaled(environment: &EnvironmentRecord, instances: u32) -> Result<Layers, Problem> {
    if instances > 10_000 {
        return Err(Problem::invalid(
            "instances-out-of-range",
            format!("{instances} is not a number of instances: it must be 0 to 10,000."),
        ));
    }
    let mut settings = environment.settings.clone();
    settings.set(options::ASG, "MinSize", instances.to_string());
    if settings.instance_count() != instances.max(1) {
        return Err(Problem::conflict(
            "single-instance",
            format!("`{}` is a single-instance environment.", environment.name),
        )
        .hint(format!(
            "Have it be one of several first: beanpole config {} --set EnvironmentType=LoadBalanced",
            environment.name
        )));
    }
    let mut brought = environment.brought.clone();
    brought.remove(options::ASG, "MinSize");
    Ok(Layers { settings, brought })
}

/// Refuses a call that sets and removes the same option.
fn unambiguous(body: &api::UpdateSettings) -> Result<(), Problem> {
    for (namespace, names) in &body.remove {
        for option in names {
            if body.set.get(namespace, option).is_some() {
                return Err(Problem::invalid(
                    "option-set-and-removed",
                    format!("Option `{option}` ({namespace}) is both set and removed."),
                )
                .hint("Say which of the two you want."));
            }
        }
    }
    Ok(())
}

/// Refuses a policy that an environment of its tier has no use for, before it stands in the way of everything.
pub(super) fn check_tier(tier: Tier, settings: &OptionSettings) -> Result<(), Problem> {
    let splits = settings.deployment().policy == DeploymentPolicy::TrafficSplitting;
    if tier == Tier::Worker && splits {
        return Err(Problem::invalid(
            "policy-needs-traffic",
            "A worker has no requests that a new release could get a share of.",
        )
        .hint("Set DeploymentPolicy to Immutable, Rolling or another one."));
    }
    if tier == Tier::Worker && settings.is_network() {
        return Err(Problem::invalid(
            "policy-needs-traffic",
            "A worker gets no connections from outside: it has no use for a network load balancer.",
        )
        .hint("Leave LoadBalancerType out, or create a `web` environment."));
    }
    if tier == Tier::Worker && settings.sleeps_after_ms().is_some() {
        return Err(Problem::invalid(
            "nothing-wakes-it",
            "A worker with no instances would sleep for ever: it has no requests that could wake it.",
        )
        .hint(
            "Give it 1 instance at the least: beanpole scale ENV 1, or take it down: beanpole terminate ENV. Environments that \
             get requests sleep with 0, after `IdleTime` seconds without one: beanpole config ENV --set MinSize=0 --set IdleTime=900",
        ));
    }
    Ok(())
}

/// Refuses settings that are not valid or may not change so; else the heaviest consequence.
pub(super) fn acceptable(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    to: &OptionSettings,
) -> Result<Change, Fault> {
    if environment.settings.is_network() != to.is_network() {
        let live = match environment.live {
            Some(live) => read::release(reader, &environment.id, live)?,
            None => None,
        };
        return Err(type_is_fixed(environment, to, live.as_ref()).into());
    }
    to.validate_whole().map_err(bad_option)?;
    Ok(change(&environment.settings, to)?)
}

/// Why an environment's load balancer stays of its type, and how to get one of the other.
fn type_is_fixed(
    environment: &EnvironmentRecord,
    to: &OptionSettings,
    live: Option<&ReleaseRecord>,
) -> Problem {
    let EnvironmentRecord {
        name, application, ..
    } = environment;
    let is = if environment.settings.is_network() {
        "network"
    } else {
        "application"
    };
    // Names have 40 characters at most.
    let mut other = name.to_string();
    other.truncate(38);
    // Where nothing was deployed, the other one begins as empty.
    let mut more = match environment.settings.instance_count() {
        1 => String::new(),
        count => format!(" --instances {count}"),
    };
    if let Some(live) = live {
        more.push_str(&format!(" --version {}", live.version));
    }
    let create = if to.is_network() {
        let listener = to.listeners().first().map(|listener| listener.port);
        let port = listener.map_or_else(|| "PORT".to_owned(), |port| port.to_string());
        format!(
            "beanpole create {other}-2 --application {application} --load-balancer network --listen {port}{more}"
        )
    } else {
        format!(
            "beanpole create {other}-2 --application {application} --load-balancer application{more}"
        )
    };
    let mut steps = vec![format!("`{create}`")];
    if to.is_network() {
        steps.extend(swap::removals(environment));
    }
    steps.push(format!("`beanpole swap {name} {other}-2`"));
    steps.push(format!("`beanpole terminate {name}`"));
    let steps = steps.join(", ");
    Problem::conflict(
        "option-fixed",
        format!(
            "LoadBalancer type option cannot be changed: that of `{name}` is `{is}` since it was created."
        ),
    )
    .hint(format!(
        "Create another environment beside it and have it take over: {steps}. Options and properties do not come along: see \
         those by `beanpole config {name}`, and copy these by `beanpole printenv {name} | beanpole setenv {other}-2 --file -`."
    ))
}

/// The heaviest consequence of going from one set of settings to another.
fn change(from: &OptionSettings, to: &OptionSettings) -> Result<Change, Problem> {
    let mut heaviest = Change::Nothing;
    if from.properties() != to.properties() || from.static_files() != to.static_files() {
        heaviest = Change::Restart;
    }
    // Each has a port of its own, which instances learn when they start.
    if from.processes() != to.processes() {
        heaviest = Change::Restart;
    }
    let named: BTreeSet<&String> = from.0.keys().chain(to.0.keys()).collect();
    let named = named
        .into_iter()
        .flat_map(|namespace| options::named(namespace).map(move |known| (&**namespace, known)));
    let all = options::KNOWN.iter().map(|known| (known.namespace, known));
    for (namespace, known) in all.chain(named) {
        let name = known.name;
        if from.effective(namespace, name) == to.effective(namespace, name) {
            continue;
        }
        match known.change {
            // Of the type it was asked before: two words mean the same one.
            Change::Fixed if name == "LoadBalancerType" => {}
            // What they come to together is looked at below.
            Change::Check => {}
            Change::Nothing | Change::Restart | Change::Replace => {
                heaviest = heaviest.max(known.change);
            }
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
    if from.checks_differently(to) {
        heaviest = heaviest.max(Change::Check);
    }
    Ok(heaviest)
}
