//! Going back: to an earlier release, as a new one, or from what a failed deployment has left.

use super::deploy::{Asked, Content, Deployment, Wish, chosen_policy};
use super::layers::Layers;
use super::problems::{is_live, no_release, nothing_before, only_ill, refused};
use super::{NewOperation, idle};
use crate::read::{self, Reader, Repute};
use crate::{Call, Engine, Fault};
use beanpole_planner::{Goal, Plan, Refusal, plan};
use beanpole_protocol::api::{self, BackTo, OperationKind, PlanView};
use beanpole_protocol::options::{DeploymentPolicy, OptionSettings};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{EnvironmentName, ReleaseNumber};
use beanpole_store::Tx;
use beanpole_store::model::{EnvironmentRecord, QueuedWish, ReleaseRecord};
use std::collections::BTreeSet;

/// Where a rollback leads.
struct Back {
    /// The release, by the number that it has.
    to: ReleaseNumber,
    way: WayBack,
    /// The environment's settings then.
    layers: Layers,
}

/// How a rollback gets there.
enum WayBack {
    /// An earlier release is deployed again, as a new one.
    Deploy(Box<Deployment>),
    /// What a failed deployment has left leaves; the release is live, and stays what it is.
    Leave(Box<ReleaseRecord>, Box<Plan>),
}

/// Where going back leads when nobody says: to the live release, where instances were left on one that
/// failed; else to the last one that was live and differs from it.
fn before<'r>(
    environment: &EnvironmentRecord,
    releases: &'r [ReleaseRecord],
) -> Result<&'r ReleaseRecord, Option<&'r ReleaseRecord>> {
    let live = releases
        .iter()
        .find(|release| Some(release.number) == environment.live);
    if environment.hold
        && let Some(live) = live
    {
        return Ok(live);
    }
    // What a rollback made is the release that it went back to, but for its number; so is what the same
    // version was deployed as again.
    let without_capacity = |release: &ReleaseRecord| {
        let settings = release.settings.clone();
        (
            release.bundle.clone(),
            settings.with_capacity_of(&OptionSettings::default()),
        )
    };
    let runs = live.map(without_capacity);
    let same = |release: &&ReleaseRecord| {
        Some(release.number) == environment.live || runs == Some(without_capacity(release))
    };
    let mut were_live: Vec<&ReleaseRecord> = releases
        .iter()
        .filter(|release| release.live_at.is_some() && !same(release))
        .collect();
    were_live.sort_by_key(|release| std::cmp::Reverse((release.live_at, release.number)));
    // How the same did the last time counts.
    let mut known = Vec::new();
    for release in &were_live {
        let content = without_capacity(release);
        if known.contains(&content) {
            continue;
        }
        if release.ill.is_none() {
            return Ok(release);
        }
        known.push(content);
    }
    Err(were_live.first().copied())
}

impl Engine {
    /// Goes back to an earlier release: its version, settings and properties, as a new release. The
    /// number of instances stays as it is.
    pub fn rollback(
        &self,
        call: &Call<'_>,
        name: &EnvironmentName,
        body: &api::Rollback,
    ) -> Result<api::Operation, Problem> {
        self.now_or_next(call, name, body.queue, &QueuedWish::Rollback(body.clone()))
    }

    /// The operation that goes back.
    pub(super) fn new_rollback(
        &self,
        tx: &mut Tx<'_>,
        environment: &mut EnvironmentRecord,
        body: &api::Rollback,
        call: &Call<'_>,
    ) -> Result<NewOperation, Fault> {
        let Back { way, layers, .. } = self.work_out_rollback(tx, environment, call, body)?;
        let before = layers.put_in(environment);
        match way {
            WayBack::Deploy(deployment) => {
                let mut new = deployment.begin(tx, environment, OperationKind::Rollback)?;
                new.settings_before = (before != environment.settings).then_some(before);
                Ok(new)
            }
            // Wherever it ends, the live release's settings are those in force.
            WayBack::Leave(live, plan) => Ok(NewOperation {
                to: Some(live.number),
                version: Some(live.version),
                ..NewOperation::new(OperationKind::Rollback, *plan)
            }),
        }
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
            let Back { to, way, layers } =
                self.work_out_rollback(&self.store, &environment, call, body)?;
            let (plan, version) = match way {
                WayBack::Deploy(new) => (new.plan, new.release.version),
                WayBack::Leave(live, plan) => (*plan, live.version),
            };
            let plan = self.foretell(&environment, &plan, &layers.settings, call)?;
            Ok::<_, Fault>(PlanView {
                back_to: Some(BackTo {
                    release: to,
                    version,
                }),
                ..plan
            })
        };
        planned().map_err(Problem::from)
    }

    /// Where a rollback leads, and how.
    fn work_out_rollback(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        call: &Call<'_>,
        body: &api::Rollback,
    ) -> Result<Back, Fault> {
        let releases = reader.under::<ReleaseRecord>(&ReleaseRecord::prefix(&environment.id))?;
        let target = match body.to {
            Some(number) if Some(number) == environment.live && !environment.hold => {
                return Err(is_live(number, &environment.name).into());
            }
            Some(number) => releases
                .iter()
                .find(|release| release.number == number)
                .ok_or_else(|| no_release(number, &environment.name))?,
            None => before(environment, &releases).map_err(|ill| {
                ill.map_or_else(
                    || nothing_before(environment),
                    |ill| only_ill(environment, ill),
                )
            })?,
        };
        // How much capacity there is belongs to now, not to the release: going back must not take
        // away the instances that today's traffic needs.
        let layers = Layers::of_release(target, environment);
        let settings = &layers.settings;
        // How to go there is today's choice, whatever the release was deployed by. What was live and healthy
        // needs no trial: whoever goes back wants to be back.
        let today = environment.settings.deployment();
        let own = match today.policy {
            DeploymentPolicy::TrafficSplitting if body.batch.is_none() => {
                DeploymentPolicy::Immutable
            }
            own => own,
        };
        let asked = Asked {
            policy: body.policy,
            batch: body.batch,
            splits: false,
        };
        let policy = chosen_policy(environment, asked, own)?;
        let batch = body.batch.unwrap_or(today.batch);
        if Some(target.number) == environment.live {
            // What is live was not touched everywhere: only what a failed deployment has left goes.
            let goal = Goal::Mend {
                release: target.number,
                tree: target.tree,
                size: settings.instance_count(),
                away: BTreeSet::new(),
                policy,
                batch,
            };
            let world = self.world(reader, environment, call.observed, call.now, true)?;
            let rules = read::rules(settings, settings, environment.tier, Repute::Live);
            let plan = match plan(&world, &goal, &rules, call.bits) {
                Ok(plan) => plan,
                Err(Refusal::Nothing) => Plan::default(),
                Err(refusal) => return Err(refused(refusal).into()),
            };
            return Ok(Back {
                to: target.number,
                way: WayBack::Leave(Box::new(target.clone()), Box::new(plan)),
                layers,
            });
        }
        let wish = Wish {
            content: Content::from(target),
            layers: &layers,
            tree: target.live_at.map(|_| target.tree),
            repute: target.live_at.map_or(Repute::New, |_| Repute::Live),
            runs_once: target.live_at.is_none(),
            replaces: false,
            policy: Some(policy),
            batch: Some(batch),
            split: None,
            reason: format!("rollback to {}", target.number),
        };
        let deployment = self.work_out(reader, environment, call, wish)?;
        Ok(Back {
            to: target.number,
            way: WayBack::Deploy(Box::new(deployment)),
            layers,
        })
    }
}
