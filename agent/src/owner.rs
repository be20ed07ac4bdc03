//! Whose host this is: one controller's, from the first that speaks to it until another takes it over.

use beanpole_daemon::{clock, files};
use beanpole_protocol::agent::{Claim, ControllerIdentity, FOREIGN_CONTROLLER, Owner};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{AgentId, ControllerId};
use std::io;
use std::path::Path;

/// The agent's own id: made at its first start on this data, the same by every address.
pub fn identity(path: &Path) -> io::Result<AgentId> {
    match files::read_json(path) {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => {}
        // Nothing depends on it but the controller's sight of one machine with two addresses.
        Err(error) => tracing::warn!(%error, "the agent's id cannot be read and is made anew"),
    }
    let id = AgentId::from_bits(clock::random_bits());
    files::write_json(path, &id, 0o644)?;
    Ok(id)
}

/// Whose host this is; none until a controller has spoken.
pub fn load(path: &Path) -> Result<Option<Owner>, files::ReadError> {
    files::read_json(path)
}

/// Whether the host of `owner` does what `who` says.
pub fn admit(owner: Option<&Owner>, who: Option<&ControllerId>) -> Result<(), Problem> {
    match owner {
        Some(owner) if who != Some(&owner.controller.id) => Err(foreign(owner, who)),
        _ => Ok(()),
    }
}

/// The owner after a claim, or none where it stays the same.
pub fn claimed(owner: Option<&Owner>, claim: &Claim) -> Result<Option<Owner>, Problem> {
    if !claim.take_over {
        admit(owner, Some(&claim.controller.id))?;
    }
    Ok(succeed(owner, &claim.controller))
}

/// The owner once `controller` has spoken, or none where nothing changes. A new name is no new owner.
pub fn succeed(owner: Option<&Owner>, controller: &ControllerIdentity) -> Option<Owner> {
    let same = owner.filter(|owner| owner.controller.id == controller.id);
    if same.is_some_and(|owner| owner.controller == *controller) {
        return None;
    }
    Some(Owner {
        controller: controller.clone(),
        since: same.map_or_else(clock::now, |owner| owner.since),
    })
}

fn foreign(owner: &Owner, who: Option<&ControllerId>) -> Problem {
    let from = match who {
        Some(who) => format!("the controller {who}"),
        None => "a controller that does not say which it is".to_owned(),
    };
    Problem::conflict(
        FOREIGN_CONTROLLER,
        format!(
            "This host belongs to the controller {} since {}. It does nothing for {from}.",
            owner.controller, owner.since
        ),
    )
    .hint("Remove it at its own controller first, or take it over: beanpole host add … --take-over")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(bits: u128) -> ControllerIdentity {
        ControllerIdentity {
            id: ControllerId::from_bits(bits),
            name: format!("machine-{bits}"),
        }
    }

    fn claim(bits: u128, take_over: bool) -> Claim {
        Claim {
            controller: controller(bits),
            take_over,
        }
    }

    #[test]
    fn a_host_belongs_to_its_first_controller_until_it_is_taken_over() {
        let first = claimed(None, &claim(1, false))
            .expect("nobody's")
            .expect("new");
        assert_eq!(first.controller, controller(1));
        assert_eq!(claimed(Some(&first), &claim(1, false)), Ok(None));
        let refused = claimed(Some(&first), &claim(2, false)).expect_err("another's");
        assert_eq!((refused.status, &*refused.code), (409, FOREIGN_CONTROLLER));
        assert!(refused.detail.contains("machine-1"), "{}", refused.detail);
        let second = claimed(Some(&first), &claim(2, true))
            .expect("taken")
            .expect("new");
        assert_eq!(second.controller, controller(2));
        admit(Some(&second), Some(&controller(1).id)).expect_err("no more");
        admit(Some(&second), None).expect_err("nobody in particular");
        admit(None, None).expect("a host of before there were ids");
    }

    #[test]
    fn a_controller_on_another_machine_is_still_the_same() {
        let first = succeed(None, &controller(1)).expect("new");
        let mut moved = controller(1);
        moved.name = "elsewhere".to_owned();
        let now = succeed(Some(&first), &moved).expect("another name");
        assert_eq!((now.controller, now.since), (moved, first.since));
    }

    #[test]
    fn an_agent_keeps_its_id() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("identity.json");
        let id = identity(&path).expect("made");
        assert_eq!(identity(&path).expect("read"), id);
    }
}
