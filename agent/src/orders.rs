//! The orders of this host: kept on disk before they are answered, refused when they are not the
//! newest.

use beanpole_daemon::files::{self, ReadError};
use beanpole_protocol::agent::HostOrders;
use beanpole_protocol::problem::Problem;
use std::collections::BTreeSet;
use std::path::Path;

/// Reads the orders; none yet are orders for nothing.
pub fn load(path: &Path) -> Result<HostOrders, ReadError> {
    Ok(files::read_json(path)?.unwrap_or_default())
}

/// Writes the orders so that they are whole or absent. They hold secrets: for the agent alone.
pub fn store(path: &Path, orders: &HostOrders) -> std::io::Result<()> {
    files::write_json(path, orders, 0o600)
}

/// Whether `new` may follow `held`. `Ok(false)`: they are the same, nothing is to be done.
pub fn check(held: &HostOrders, new: &HostOrders) -> Result<bool, Problem> {
    if new.generation < held.generation {
        return Err(Problem::conflict(
            "stale-generation",
            format!(
                "These orders are generation {}, but this host already holds generation {}.",
                new.generation, held.generation
            ),
        )
        .hint(
            "Another controller may command this host, or this one was restored from a backup.",
        ));
    }
    if new.generation == held.generation {
        if new == held {
            return Ok(false);
        }
        return Err(Problem::conflict(
            "generation-reused",
            format!(
                "This host holds other orders of the same generation {}.",
                new.generation
            ),
        )
        .hint("Send them again with a higher generation."));
    }
    consistent(new)?;
    Ok(true)
}

/// Refuses orders that contradict themselves, before any of them is carried out.
fn consistent(orders: &HostOrders) -> Result<(), Problem> {
    let refuse = |what: String| Err(Problem::invalid("orders-inconsistent", what));
    let mut releases = BTreeSet::new();
    for release in &orders.releases {
        if !releases.insert((&release.key.environment, release.key.number)) {
            return refuse(format!(
                "Release {} of {} is ordered twice.",
                release.key.number, release.key.environment
            ));
        }
    }
    let mut instances = BTreeSet::new();
    for instance in &orders.instances {
        if !instances.insert(&instance.id) {
            return refuse(format!("Instance {} is ordered twice.", instance.id));
        }
        if !releases.contains(&(&instance.environment, instance.release)) {
            return refuse(format!(
                "Instance {} shall run release {} of {}, which is not among the releases ordered.",
                instance.id, instance.release, instance.environment
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::agent::{InstanceOrder, Limits};
    use beanpole_protocol::{EnvironmentId, Generation, Incarnation, InstanceId, ReleaseNumber};

    fn orders(generation: u64) -> HostOrders {
        HostOrders {
            generation: Generation(generation),
            ..HostOrders::default()
        }
    }

    fn instance() -> InstanceOrder {
        InstanceOrder {
            id: InstanceId::from_bits(1),
            environment: EnvironmentId::from_bits(1),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            run: true,
            port: 20_000,
            ports: Default::default(),
            stop_grace_ms: 1000,
            limits: Limits::default(),
            ready: None,
        }
    }

    #[test]
    fn only_newer_orders_are_taken() {
        assert!(check(&orders(3), &orders(4)).expect("newer"));
        assert!(!check(&orders(3), &orders(3)).expect("the same"));
        let stale = check(&orders(3), &orders(2)).expect_err("older");
        assert_eq!((stale.status, &*stale.code), (409, "stale-generation"));
        let mut other = orders(3);
        other.instances.push(instance());
        let reused = check(&orders(3), &other).expect_err("reused");
        assert_eq!((reused.status, &*reused.code), (409, "generation-reused"));
    }

    #[test]
    fn an_instance_needs_its_release_among_the_orders() {
        let mut new = orders(4);
        new.instances.push(instance());
        let problem = check(&orders(3), &new).expect_err("inconsistent");
        assert_eq!(problem.code, "orders-inconsistent");
    }

    #[test]
    fn orders_survive_on_disk_for_the_agent_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("orders.json");
        assert_eq!(load(&path).expect("none yet"), HostOrders::default());
        store(&path, &orders(7)).expect("store");
        assert_eq!(load(&path).expect("load"), orders(7));
        let mode = std::fs::metadata(&path).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
