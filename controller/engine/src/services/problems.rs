//! Why a call is refused, in words.

use beanpole_planner::{Lack, Refusal};
use beanpole_protocol::options;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{EnvironmentName, ReleaseNumber};
use beanpole_store::model::{EnvironmentRecord, ReleaseRecord};

pub(super) fn nothing_deployed(environment: &EnvironmentRecord) -> Problem {
    let name = &environment.name;
    let text = if environment.last_release == ReleaseNumber(0) {
        format!("No version is deployed to `{name}` yet.")
    } else {
        format!("No release of `{name}` is live: none was deployed with success.")
    };
    Problem::conflict("nothing-deployed", text)
        .hint(format!("Deploy one: `beanpole deploy {name} --from DIR`."))
}

pub(super) fn nothing_before(environment: &EnvironmentRecord) -> Problem {
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

pub(super) fn is_live(number: ReleaseNumber, name: &EnvironmentName) -> Problem {
    Problem::conflict(
        "release-is-live",
        format!("Release {number} is what `{name}` runs: there is nothing to go back from."),
    )
    .hint(format!(
        "`beanpole restart {name}` starts its instances afresh."
    ))
}

/// Every other release that was live was not well when another took its place; `ill` is the last of them.
pub(super) fn only_ill(environment: &EnvironmentRecord, ill: &ReleaseRecord) -> Problem {
    let (name, number) = (&environment.name, ill.number);
    let how = ill.ill.as_deref().unwrap_or("it was not well");
    Problem::conflict(
        "nothing-to-roll-back-to",
        format!(
            "No release of `{name}` that was live before this one was well to the end: of release {number}, {how}."
        ),
    )
    .hint(format!(
        "`beanpole rollback {name} --to {number}` goes there all the same."
    ))
}

pub(crate) fn no_release(number: ReleaseNumber, name: &EnvironmentName) -> Problem {
    Problem::not_found("release", number).hint(format!("`beanpole releases {name}` lists them."))
}

pub(super) fn bad_option(error: options::OptionError) -> Problem {
    let problem = Problem::invalid("option-invalid", error.to_string());
    match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

pub(super) fn refused(refusal: Refusal) -> Problem {
    match &refusal {
        Refusal::NoPlace { hosts, .. } => {
            let text = refusal.to_string();
            let lacks = |of: fn(&Lack) -> bool| hosts.iter().any(|(_, lack)| of(lack));
            // What has the labels and no room is nearer to it.
            let full = lacks(|lack| matches!(lack, Lack::Promised { .. } | Lack::Memory { .. }));
            let unlabelled = !full && lacks(|lack| matches!(lack, Lack::Labels(_)));
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
        Refusal::NoInstance => Problem::conflict(
            "no-instances",
            "The environment has no instance that could be restarted.",
        )
        .hint("`beanpole scale ENV 1` starts as many as it says at once."),
        Refusal::Nothing => Problem::conflict("nothing-to-do", "There is nothing to do."),
    }
}
