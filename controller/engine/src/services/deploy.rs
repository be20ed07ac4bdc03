//! To another release.

use super::layers::Layers;
use super::problems::{nothing_deployed, refused};
use super::settings::acceptable;
use super::{NewOperation, idle, rules as odd, version};
use crate::health::health;
use crate::network::check_ports;
use crate::read::{self, Reader, Repute};
use crate::{Call, Engine, Fault};
use beanpole_planner::{
    Gate, Goal, Place, Plan, Rules, World, plan, run_everywhere, run_once, told_once,
};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{self, InstanceHealth, OperationKind, PlanView, Tier};
use beanpole_protocol::options::{
    BatchSize, Change, DeploymentPolicy, OptionSettings, Replacement, SplitSteps,
};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    ApplicationName, Digest, EnvironmentName, ReleaseNumber, Timestamp, VersionLabel,
};
use beanpole_store::model::{
    ContainerCommands, EnvironmentRecord, InstanceRecord, QueuedWish, ReleaseRecord, SiteRecord,
    VersionRecord,
};
use beanpole_store::{StoreError, Tx};
use std::collections::BTreeMap;

/// A deployment worked out, not written.
pub(super) struct Deployment {
    pub(super) release: ReleaseRecord,
    pub(super) plan: Plan,
    /// How the release that is live is not well.
    pub(super) ill: Option<String>,
}

impl Deployment {
    /// Makes its release the environment's newest, and the operation that leads to it.
    pub(super) fn begin(
        self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        kind: OperationKind,
    ) -> Result<NewOperation, StoreError> {
        if let Some(live) = environment.live
            && let Some(mut left) = read::release(tx, &environment.id, live)?
            && left.ill != self.ill
        {
            left.ill = self.ill;
            tx.put(&left)?;
        }
        environment.last_release = self.release.number;
        tx.put(&self.release)?;
        Ok(NewOperation {
            to: Some(self.release.number),
            version: Some(self.release.version),
            ..NewOperation::new(kind, self.plan)
        })
    }
}

/// What a release is made from.
pub(super) struct Content {
    pub(super) version: VersionLabel,
    pub(super) bundle: Digest,
    pub(super) bundle_size: u64,
    pub(super) release_command: Option<String>,
    pub(super) container_commands: ContainerCommands,
    pub(super) site: Option<SiteRecord>,
}

impl From<VersionRecord> for Content {
    fn from(version: VersionRecord) -> Self {
        Self {
            version: version.label,
            bundle: version.bundle,
            bundle_size: version.bundle_size,
            release_command: version.release_command,
            container_commands: version.container_commands,
            site: version.site,
        }
    }
}

impl From<&ReleaseRecord> for Content {
    fn from(release: &ReleaseRecord) -> Self {
        Self {
            version: release.version.clone(),
            bundle: release.bundle.clone(),
            bundle_size: release.bundle_size,
            release_command: release.release_command.clone(),
            container_commands: release.container_commands.clone(),
            site: release.site.clone(),
        }
    }
}

/// What a deployment would run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The environment's application.
    pub application: ApplicationName,
    /// The version's bundle.
    pub bundle: Digest,
    /// The environment's platform.
    pub platform: Platform,
    /// The environment's tier.
    pub tier: Tier,
    /// What the load balancer would serve of it, as [`OptionSettings::static_files`].
    pub static_files: BTreeMap<String, String>,
    /// Options of its platform, as [`OptionSettings::platform_options`].
    pub options: BTreeMap<String, String>,
}

/// What a deployment is asked to do.
pub(super) struct Wish<'r> {
    pub(super) content: Content,
    pub(super) layers: &'r Layers,
    /// An earlier release with the same content, prepared on hosts.
    pub(super) tree: Option<ReleaseNumber>,
    pub(super) repute: Repute,
    /// Whether what runs once does, where there is some: when a version is deployed, not when one
    /// that was live comes back or only its settings change.
    pub(super) runs_once: bool,
    /// Whether instances that run cannot take on the settings, and no policy that makes a new set anyway was
    /// asked for.
    pub(super) replaces: bool,
    pub(super) policy: Option<DeploymentPolicy>,
    pub(super) batch: Option<BatchSize>,
    pub(super) split: Option<SplitSteps>,
    pub(super) reason: String,
}

/// Whether deployments change instances in place instead of making a new set.
fn in_place(settings: &OptionSettings) -> bool {
    !matches!(
        settings.deployment().policy,
        DeploymentPolicy::Immutable | DeploymentPolicy::TrafficSplitting
    )
}

/// Refuses what no host has at all: where no successor has room, instances change in place, whatever they ask for.
fn fits_somewhere(world: &World<'_>, needs: &Place) -> Result<(), Problem> {
    let reports = world.hosts.values().filter_map(|host| host.report);
    let known = reports.map(|report| report.facts.memory_total_bytes);
    let largest = known.filter(|bytes| *bytes > 0).max();
    let (Some(wanted), Some(largest)) = (needs.memory, largest) else {
        return Ok(());
    };
    if wanted <= largest {
        return Ok(());
    }
    Err(Problem::conflict(
        "memory-max-too-large",
        format!(
            "`MemoryMax` asks for {} MiB, and the largest host has {} MiB.",
            wanted >> 20,
            largest >> 20
        ),
    )
    .hint("Lower it, or add a larger host with `beanpole host add`."))
}

/// What holds for a plan that replaces instances.
fn replace_by(rules: &mut Rules, replacement: Replacement) {
    let Replacement::Rolling {
        in_service,
        pause_ms,
        timeout_ms,
        ..
    } = replacement
    else {
        return;
    };
    rules.renews = true;
    rules.in_service = in_service;
    rules.timeouts.batch_ms = timeout_ms.unwrap_or(rules.timeouts.batch_ms);
    match &mut rules.gate {
        Gate::Proxies { up_ms, every, .. } => {
            *up_ms = pause_ms.max(*up_ms);
            *every |= pause_ms > 0;
        }
        Gate::Settle { for_ms, .. } => *for_ms = pause_ms.max(*for_ms),
    }
}

/// What a call says of how to go about it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) policy: Option<DeploymentPolicy>,
    pub(super) batch: Option<BatchSize>,
    /// It gives steps of a split.
    pub(super) splits: bool,
}

/// Refuses a deployment that contradicts itself, or the environment.
pub(super) fn check_policy(
    environment: &EnvironmentRecord,
    body: &api::Deploy,
    settings: &OptionSettings,
) -> Result<(), Problem> {
    let asked = Asked {
        policy: body.policy,
        batch: body.batch,
        splits: body.split.is_some(),
    };
    chosen_policy(environment, asked, settings.deployment().policy).map(|_| ())
}

/// The policy that a call names or asks for by what it gives, else the environment's own.
pub(super) fn chosen_policy(
    environment: &EnvironmentRecord,
    asked: Asked,
    own: DeploymentPolicy,
) -> Result<DeploymentPolicy, Problem> {
    use DeploymentPolicy as P;
    let policy = if asked.splits {
        let other = asked.policy.filter(|policy| *policy != P::TrafficSplitting);
        let against = match (other, asked.batch) {
            (Some(policy), _) => Some(format!("The policy {policy} has no steps of a split.")),
            (None, Some(_)) => Some("A split has steps, and no batches.".to_owned()),
            (None, None) => None,
        };
        if let Some(against) = against {
            return Err(Problem::invalid("split-and-policy", against)
                .hint("Give the steps of a split, or another policy and its batch size."));
        }
        P::TrafficSplitting
    } else {
        // A batch given without a policy asks for one that has batches, as in the settings.
        asked.policy.unwrap_or(match (asked.batch, own) {
            (Some(_), P::AllAtOnce | P::Immutable | P::TrafficSplitting) => P::Rolling,
            (_, own) => own,
        })
    };
    if policy == P::TrafficSplitting && environment.tier == Tier::Worker {
        return Err(Problem::invalid(
            "policy-needs-traffic",
            format!(
                "`{}` is a worker: it has no requests that a new release could get a share of.",
                environment.name
            ),
        )
        .hint("Use the policy Immutable."));
    }
    Ok(policy)
}

impl Engine {
    /// What a deployment of `version` (the live one when absent) with these settings would run; none where there is no
    /// such environment or version, which [`Engine::deploy`] says.
    pub fn target(
        &self,
        name: &EnvironmentName,
        version: Option<&VersionLabel>,
        settings: &OptionSettings,
    ) -> Result<Option<Target>, Problem> {
        self.target_with(name, version, |environment, version| {
            Ok(match version {
                Some(version) => Layers::with_version(environment, version, settings).settings,
                None => environment.settings.overlaid(settings),
            })
        })
    }

    /// What would run under other settings; none where nothing is live.
    pub fn target_under(
        &self,
        name: &EnvironmentName,
        body: &api::UpdateSettings,
    ) -> Result<Option<Target>, Problem> {
        self.target_with(name, None, |environment, _| {
            Ok(Layers::changed(&self.store, environment, body)?.settings)
        })
    }

    fn target_with(
        &self,
        name: &EnvironmentName,
        version: Option<&VersionLabel>,
        settings: impl Fn(&EnvironmentRecord, Option<&VersionRecord>) -> Result<OptionSettings, Fault>,
    ) -> Result<Option<Target>, Problem> {
        let found = || {
            let Some(environment) = read::find_environment(&self.store, name)? else {
                return Ok(None);
            };
            let live = match environment.live {
                Some(live) => read::release(&self.store, &environment.id, live)?,
                None => None,
            };
            let Some(label) = version.or(live.as_ref().map(|live| &live.version)) else {
                return Ok(None);
            };
            let key = VersionRecord::key_of(&environment.application, label);
            let found = self.store.one::<VersionRecord>(&key)?;
            let bundle = match (version, live) {
                (None, Some(live)) => Some(live.bundle),
                _ => found.as_ref().map(|version| version.bundle.clone()),
            };
            let Some(bundle) = bundle else {
                return Ok(None);
            };
            let settings = settings(&environment, found.as_ref())?;
            Ok::<_, Fault>(Some(Target {
                application: environment.application.clone(),
                bundle,
                platform: environment.platform,
                tier: environment.tier,
                static_files: settings.static_files(),
                options: settings.platform_options(),
            }))
        };
        found().map_err(Problem::from)
    }

    /// Deploys a version.
    pub fn deploy(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: api::Deploy,
    ) -> Result<api::Operation, Problem> {
        let queue = body.queue;
        self.now_or_next(call, name, queue, &QueuedWish::Deploy(body))
    }

    /// The operation that deploys a version.
    pub(super) fn new_deploy(
        &self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        body: &api::Deploy,
        call: &Call<'_>,
    ) -> Result<NewOperation, Fault> {
        let (deployment, layers) = self.work_out_deploy(tx, environment, call, body)?;
        let mut new = deployment.begin(tx, environment, OperationKind::Deploy)?;
        let before = layers.put_in(environment);
        new.settings_before = (before != environment.settings).then_some(before);
        new.no_auto_rollback = body.no_auto_rollback;
        Ok(new)
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
            let (deployment, Layers { settings, .. }) =
                self.work_out_deploy(&self.store, &environment, call, &body)?;
            let plan = self.foretell(&environment, &deployment.plan, &settings, call)?;
            let label = &deployment.release.version;
            let version = version(&self.store, &environment.application, label)?;
            Ok::<_, Fault>(PlanView {
                warnings: odd::of_version(name, &settings, &version),
                ..plan
            })
        };
        planned().map_err(Problem::from)
    }

    fn work_out_deploy(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        body: &api::Deploy,
    ) -> Result<(Deployment, Layers), Fault> {
        let label = match (&body.version, environment.live) {
            (Some(label), _) => label.clone(),
            (None, Some(live)) => read::release(reader, &environment.id, live)?
                .map(|release| release.version)
                .ok_or_else(|| nothing_deployed(environment))?,
            (None, None) => return Err(nothing_deployed(environment).into()),
        };
        let version = version(reader, &environment.application, &label)?;
        let layers = Layers::with_version(environment, &version, &body.settings);
        let settings = &layers.settings;
        let change = acceptable(reader, environment, settings)?;
        check_ports(
            reader,
            call.observed,
            &environment.name,
            settings,
            self.config.api_port,
        )?;
        let wish = Wish {
            content: Content::from(version),
            layers: &layers,
            tree: None,
            repute: Repute::New,
            runs_once: true,
            replaces: change == Change::Replace && body.policy.is_none() && in_place(settings),
            policy: body.policy,
            batch: body.batch,
            split: body.split.clone(),
            reason: "deploy".to_owned(),
        };
        let deployment = self.work_out(reader, environment, call, wish)?;
        Ok((deployment, layers))
    }

    /// The next release and the way to it.
    pub(super) fn work_out(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        wish: Wish<'_>,
    ) -> Result<Deployment, Fault> {
        let Layers { settings, brought } = wish.layers;
        let options = settings.deployment();
        let asked = Asked {
            policy: wish.policy,
            batch: wish.batch,
            splits: wish.split.is_some(),
        };
        let policy = chosen_policy(environment, asked, options.policy)?;
        let number = environment.last_release.next();
        let release = ReleaseRecord {
            environment: environment.id.clone(),
            number,
            tree: wish.tree.unwrap_or(number),
            version: wish.content.version,
            bundle: wish.content.bundle,
            bundle_size: wish.content.bundle_size,
            platform: environment.platform,
            settings: settings.clone(),
            brought: brought.clone(),
            reason: wish.reason,
            release_command: wish.content.release_command,
            container_commands: wish.content.container_commands,
            site: wish.content.site,
            outcome: None,
            live_at: None,
            ill: None,
            created_at: call.now,
        };
        let size = settings.instance_count();
        let replacement = Some(settings.replacement(size)).filter(|_| wish.replaces);
        let (policy, batch) = match replacement {
            Some(Replacement::Disabled) => (DeploymentPolicy::AllAtOnce, options.batch),
            Some(Replacement::Immutable) => (DeploymentPolicy::Immutable, options.batch),
            Some(Replacement::Rolling { batch, .. }) => {
                (DeploymentPolicy::Rolling, BatchSize::Fixed(batch))
            }
            None => (policy, options.batch),
        };
        let goal = Goal::Deploy {
            release: number,
            tree: release.tree,
            size,
            policy,
            batch: wish.batch.unwrap_or(batch),
        };
        let world = self.world(reader, environment, call.observed, call.now, true)?;
        let live = match environment.live {
            Some(live) => read::release(reader, &environment.id, live)?,
            None => None,
        };
        let leaves = live.map_or_else(|| settings.clone(), |live| live.settings);
        let mut rules = read::rules(settings, &leaves, environment.tier, wish.repute);
        if let Some(replacement) = replacement {
            fits_somewhere(&world, &rules.needs)?;
            replace_by(&mut rules, replacement);
        }
        if let Some(steps) = wish.split {
            // A step without a time of its own lasts as long as one of the settings would.
            let own = settings.evaluation_s();
            rules.split = steps.with_waits(own).0;
        }
        let mut plan = plan(&world, &goal, &rules, call.bits.rotate_left(17)).map_err(refused)?;
        odd::know_ports(settings, &world, &plan)?;
        let commands = &release.container_commands;
        run_everywhere(&mut plan, &commands.everywhere);
        let once = told_once(&commands.leader, release.release_command.as_deref());
        if let Some(command) = once.filter(|_| wish.runs_once) {
            run_once(&mut plan, &world, &command);
        }
        let ill = ill(reader, environment, &world, call.now)?;
        Ok(Deployment { release, plan, ill })
    }

    /// The way to a goal that needs no new release.
    pub(super) fn way_to(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        goal: &Goal,
        repute: Repute,
        call: &Call<'_>,
    ) -> Result<Plan, Fault> {
        let places = !matches!(goal, Goal::Terminate);
        let world = self.world(reader, environment, call.observed, call.now, places)?;
        let settings = &environment.settings;
        let rules = read::rules(settings, settings, environment.tier, repute);
        Ok(plan(&world, goal, &rules, call.bits).map_err(refused)?)
    }
}

/// How the live release is not well: half or more of its instances, on hosts that are there. Whoever goes
/// back later does not want to come back to that.
fn ill(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    world: &World<'_>,
    now: Timestamp,
) -> Result<Option<String>, Fault> {
    let records = reader.under::<InstanceRecord>(&InstanceRecord::prefix(&environment.id))?;
    let (mut all, mut sick, mut how) = (0_usize, 0, None);
    for record in records
        .iter()
        .filter(|one| Some(one.release) == environment.live)
    {
        let (health, why) = health(world, environment, record, now);
        all += 1;
        if matches!(health, InstanceHealth::Unhealthy | InstanceHealth::Warning) {
            sick += 1;
            how = how.or(why);
        }
    }
    let how = how.map_or_else(String::new, |how| {
        format!(": {}", how.trim_end_matches('.'))
    });
    let text = || format!("{sick} of {all} instances were not well{how}");
    Ok((sick > 0 && sick * 2 >= all).then(text))
}
