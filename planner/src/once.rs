//! The release command in a plan: on one host, between preparing the release and touching anything.

use crate::{Plan, Reach, Stage, World};

/// Adds the stage that runs a release command to a plan that prepares its release; to any other plan
/// it adds nothing. `shown` is the command, for people.
///
/// One of the hosts that the release is prepared on runs it: the first by name that was heard of
/// lately, so that the choice is the same whenever it is made from the same world.
pub fn run_once(plan: &mut Plan, world: &World<'_>, shown: &str) {
    let prepared = plan
        .stages
        .iter()
        .enumerate()
        .find_map(|(at, stage)| match stage {
            Stage::Prepare {
                release,
                tree,
                hosts,
            } if Some(*release) == plan.release => Some((at, *release, *tree, hosts)),
            _ => None,
        });
    let Some((at, release, tree, hosts)) = prepared else {
        return;
    };
    let leader = hosts.iter().min_by_key(|id| {
        let here = world.hosts.get(*id).map(|host| host.reach) == Some(Reach::Here);
        (!here, world.host_name(id), (*id).clone())
    });
    if let Some(host) = leader.cloned() {
        let stage = Stage::Once {
            release,
            tree,
            host,
            command: shown.to_owned(),
        };
        plan.stages.insert(at + 1, stage);
    }
}
