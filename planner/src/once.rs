//! What runs once in a plan: on one host, between preparing the release and touching anything. And
//! what people read of the commands of a bundle.

use crate::{Plan, Reach, Stage, World};

/// As many commands are told by their names.
const TOLD: usize = 8;

/// What runs once of a release, for people: container commands for the leader by their names, and the
/// release command. None where there is neither.
pub fn told_once(leader: &[String], release: Option<&str>) -> Option<String> {
    let release = release.map(|command| format!("the release command `{command}`"));
    let parts: Vec<String> = told_commands(leader).into_iter().chain(release).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

/// Container commands by their names, for people: ``the container commands `a`, `b` ``. None where
/// there are none.
pub fn told_commands(names: &[String]) -> Option<String> {
    let mut told: Vec<String> = names
        .iter()
        .take(TOLD)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > TOLD {
        told.push(format!("{} more", names.len() - TOLD));
    }
    match names.len() {
        0 => None,
        1 => Some(format!("the container command {}", told[0])),
        _ => Some(format!("the container commands {}", told.join(", "))),
    }
}

/// Says in a plan that prepares its release anew which container commands run there.
pub fn run_everywhere(plan: &mut Plan, names: &[String]) {
    let of = plan.release;
    for stage in &mut plan.stages {
        if let Stage::Prepare {
            release,
            tree,
            commands,
            ..
        } = stage
            && Some(*release) == of
            && release == tree
        {
            names.clone_into(commands);
        }
    }
}

/// Adds the stage that runs what runs once to a plan that prepares its release; to any other plan it
/// adds nothing. `shown` is [`told_once`].
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
                ..
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
