//! The way back from a plan that failed or was aborted: exactly the instances that it touched, and those
//! it was to bring together with them.

use crate::around::FOLLOWS;
use crate::draft::Draft;
use crate::{Action, Change, ChangeState, Plan, Progress, Rules, Skipped, Stage, World};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{InstanceId, ReleaseNumber};
use std::collections::{BTreeMap, BTreeSet};

/// Makes the plan back. `from` is the release before and the one whose prepared tree it uses; without
/// one, new instances are removed and the others left as they are.
///
/// Instances whose host is lost are left out; they are mended when it is back. Ids of new instances, where
/// successors take the place of what shall keep its connections, come from `seed`.
pub fn plan_back(
    world: &World<'_>,
    plan: &Plan,
    progress: &Progress,
    from: Option<(ReleaseNumber, ReleaseNumber)>,
    rules: &Rules,
    seed: u128,
) -> Plan {
    let given_up = given_up(plan, progress);
    let mut surplus = surplus(plan);
    let plan = &*plan.around(progress);
    let mut back: Vec<InstanceId> = Vec::new();
    let mut gone: Vec<InstanceId> = Vec::new();
    let mut back_in: Vec<Change> = Vec::new();
    let mut skipped: Vec<Skipped> = Vec::new();
    // For each old instance that is gone a successor stays, and goes back in place: removing all of them
    // would leave too few.
    let removed = plan.changes().filter(|(_, change)| {
        change.action == Action::Remove
            && progress.stand_in(&change.instance).is_none()
            && given_up.get(&change.instance) != Some(&true)
            && matches!(
                progress.of(&change.instance),
                ChangeState::Stopping { .. } | ChangeState::Done
            )
    });
    let mut successors = removed.count();
    let mut widest = 1;
    let beside = plan.timeouts.linger_ms > 0;
    for stage in &plan.stages {
        if let Stage::Batch(batch) = stage {
            let replaced = batch
                .changes
                .iter()
                .filter(|change| match change.action {
                    Action::Replace { .. } | Action::Restart => true,
                    Action::Launch { .. } => beside,
                    Action::Remove | Action::Return => false,
                })
                .count();
            widest = widest.max(replaced);
        }
    }
    for (_, change) in plan.changes().filter(|(_, change)| progress.is_of(change)) {
        let id = &change.instance;
        let state = progress.of(id);
        if !world.instances.contains_key(id) {
            continue;
        }
        let on_another = from.is_some_and(|(release, _)| release != world.instances[id].release);
        // Left on another release by a deployment before, which nobody took back.
        let strays = matches!(change.action, Action::Replace { .. } | Action::Remove)
            && on_another
            && !given_up.contains_key(id)
            && !world.host_lost(&change.host);
        match (change.action, state) {
            (
                Action::Remove,
                ChangeState::Pending | ChangeState::Draining { .. } | ChangeState::Drained,
            ) if on_another && given_up.contains_key(id) => {
                if given_up[id] {
                    gone.push(id.clone());
                } else if world.host_lost(&change.host) {
                    skipped.push(follows(change));
                } else {
                    back.push(id.clone());
                }
            }
            (_, ChangeState::Pending | ChangeState::Draining { .. } | ChangeState::Drained)
                if strays =>
            {
                let serves = world.instances[id].mode == Some(TargetMode::Serve);
                if surplus > 0 && change.action == Action::Remove && !serves {
                    surplus -= 1;
                    gone.push(id.clone());
                } else {
                    back.push(id.clone());
                }
            }
            (_, ChangeState::Pending) => {}
            (Action::Launch { .. }, ChangeState::Serving { .. } | ChangeState::Done)
                if progress.stand_in(id).is_some()
                    && !on_another
                    && !world.host_lost(&change.host) => {}
            (Action::Launch { .. }, ChangeState::Done)
                if successors > 0 && !(from.is_some() && world.host_lost(&change.host)) =>
            {
                successors -= 1;
                let runs = world.instances[id].release;
                if from.is_some_and(|(release, _)| release != runs) {
                    back.push(id.clone());
                }
            }
            (Action::Launch { .. }, _) => gone.push(id.clone()),
            (Action::Remove, ChangeState::Stopping { .. }) => gone.push(id.clone()),
            (_, ChangeState::Draining { .. } | ChangeState::Drained) => back_in.push(Change {
                instance: id.clone(),
                host: change.host.clone(),
                action: Action::Return,
            }),
            (Action::Remove | Action::Return, _) => {}
            (Action::Replace { .. } | Action::Restart, _) => {
                if from.is_some() && world.host_lost(&change.host) {
                    skipped.push(follows(change));
                } else if from.is_some() {
                    back.push(id.clone());
                }
            }
        }
    }
    let mut draft = Draft::new(world, rules, seed);
    draft.plan.insists = true;
    draft.plan.policy = plan.policy;
    draft.plan.skipped = skipped;
    draft.plan.ignore_health = plan.ignore_health;
    draft.batch(back_in, true, false);
    if let Some((release, tree)) = from {
        draft.plan.release = Some(release);
        draft.prepare(release, tree, &back, &[]);
        let policy = plan.policy.unwrap_or(DeploymentPolicy::Rolling);
        let size = BatchSize::Fixed(u32::try_from(widest).unwrap_or(u32::MAX));
        let all = u32::try_from(back.len()).unwrap_or(u32::MAX);
        draft.change(&back, Action::Replace { release }, policy, size, all);
    }
    draft.remove(&gone, true);
    // As on the way there, but no higher than what can serve without the new ones, once the failed
    // ones are back.
    let best = world
        .instances
        .keys()
        .filter(|id| !gone.contains(id))
        .filter(|id| back.contains(id) || world.serving(id) == crate::world::Serving::Yes)
        .count();
    let best = u32::try_from(best).unwrap_or(u32::MAX);
    draft.plan.floor = plan.floor.min(best.saturating_sub(1));
    draft.plan
}

/// How many instances more leave by the plan than come.
fn surplus(plan: &Plan) -> usize {
    let count = |is: fn(Action) -> bool| {
        let changes = plan.changes();
        changes.filter(|(_, change)| is(change.action)).count()
    };
    let leave = count(|action| action == Action::Remove);
    leave.saturating_sub(count(|action| matches!(action, Action::Launch { .. })))
}

/// Instances that the plan gave up with their hosts, each with whether it was one of the plan's new ones.
fn given_up<'p>(plan: &'p Plan, progress: &'p Progress) -> BTreeMap<&'p InstanceId, bool> {
    let launched = plan
        .changes()
        .filter(|(_, change)| matches!(change.action, Action::Launch { .. }));
    let moved = progress.detours.iter().flat_map(|detour| &detour.moved);
    let new: BTreeSet<&InstanceId> = launched
        .map(|(_, change)| &change.instance)
        .chain(moved.clone().map(|one| &one.to))
        .collect();
    moved
        .map(|one| (&one.from, new.contains(&one.from)))
        .collect()
}

fn follows(change: &Change) -> Skipped {
    Skipped {
        instance: change.instance.clone(),
        host: change.host.clone(),
        reason: FOLLOWS.to_owned(),
    }
}
