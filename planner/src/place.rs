//! Placement: which host gets a new instance.
//!
//! Spread first: the host with the fewest instances of the environment, then with the fewest in all,
//! then with the most memory left; ties break by name, so that the same input gives the same answer.

use crate::{HostState, Reach, World};
use beanpole_protocol::HostId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Memory that an instance without a limit is taken to need, in bytes: enough for a small app, so
/// that a full host is not given another one.
const UNLIMITED_NEEDS: u64 = 64 * 1024 * 1024;

/// What a new instance asks of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its memory limit in bytes.
    pub memory: Option<u64>,
    /// Labels that the host must have.
    pub labels: BTreeMap<String, String>,
}

impl Place {
    /// The labels that a host does not have, as `name=value`.
    pub fn labels_missing(&self, host: &HostState<'_>) -> Vec<String> {
        self.labels
            .iter()
            .filter(|(name, value)| host.labels.get(*name) != Some(value))
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No host can take an instance.
    #[error("no host can take {} more instance{}: {}", missing, if *missing == 1 { "" } else { "s" }, lacking(hosts))]
    NoPlace {
        /// Instances without a place.
        missing: u32,
        /// Each host by name, and what it lacks.
        hosts: Vec<(String, Lack)>,
    },
    /// No instance could be changed: a plan without proof is none.
    #[error("every host that holds its instances is unreachable")]
    Unreachable,
    /// There is no instance that could be restarted.
    #[error("there is no instance")]
    NoInstance,
    /// There is nothing to do.
    #[error("there is nothing to do")]
    Nothing,
}

/// Why a host cannot take an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// It is being drained.
    #[error("is draining")]
    Draining,
    /// It counts as Unreachable.
    #[error("is unreachable")]
    Unreachable,
    /// It is another controller's.
    #[error("belongs to another controller now")]
    Taken,
    /// It was not heard of since the controller started.
    #[error("is not connected")]
    NotConnected,
    /// It does not have these labels.
    #[error("lacks the label{} {}", if _0.len() == 1 { "" } else { "s" }, _0.join(" and "))]
    Labels(Vec<String>),
    /// Its memory is given away.
    #[error(
        "lacks memory ({promised} MiB of {capacity} MiB are promised, {needed} MiB are needed)"
    )]
    Promised {
        /// To other instances, in MiB.
        promised: u64,
        /// What can be promised at all, in MiB.
        capacity: u64,
        /// For this one, in MiB.
        needed: u64,
    },
    /// Its memory is in use.
    #[error("lacks memory ({free} MiB free, {needed} MiB are needed)")]
    Memory {
        /// In MiB.
        free: u64,
        /// In MiB.
        needed: u64,
    },
}

fn lacking(hosts: &[(String, Lack)]) -> String {
    if hosts.is_empty() {
        return "there are no hosts".to_owned();
    }
    let each: Vec<String> = hosts
        .iter()
        .map(|(name, why)| format!("{name} {why}"))
        .collect();
    each.join("; ")
}

/// Finds hosts for `count` new instances. `leaving` says how many instances of this environment on a
/// host will go away and do not count.
pub fn place(
    world: &World<'_>,
    count: u32,
    needs: &Place,
    leaving: &BTreeMap<HostId, u32>,
) -> Result<Vec<HostId>, Refusal> {
    let mut own: BTreeMap<&HostId, u32> = BTreeMap::new();
    for instance in world.instances.values() {
        *own.entry(&instance.host).or_default() += 1;
    }
    let mut given: BTreeMap<&HostId, u32> = BTreeMap::new();
    let mut chosen = Vec::new();
    for done in 0..count {
        let mut lacks = Vec::new();
        let best = world
            .hosts
            .iter()
            .filter_map(|(id, host)| {
                let new = given.get(id).copied().unwrap_or(0);
                match room(world, id, new, needs) {
                    Ok(left) => {
                        let stay = own
                            .get(id)
                            .copied()
                            .unwrap_or(0)
                            .saturating_sub(leaving.get(id).copied().unwrap_or(0));
                        let here = stay + new;
                        Some((
                            here,
                            host.instances + new,
                            std::cmp::Reverse(left),
                            &host.name,
                            id,
                        ))
                    }
                    Err(why) => {
                        lacks.push((host.name.clone(), why));
                        None
                    }
                }
            })
            .min();
        let Some((.., id)) = best else {
            return Err(Refusal::NoPlace {
                missing: count - done,
                hosts: lacks,
            });
        };
        *given.entry(id).or_default() += 1;
        chosen.push(id.clone());
    }
    Ok(chosen)
}

/// Memory left on a host after `new` instances there, or what the host lacks.
pub(crate) fn room(world: &World<'_>, id: &HostId, new: u32, needs: &Place) -> Result<u64, Lack> {
    let Some(host) = world.hosts.get(id) else {
        return Err(Lack::NotConnected);
    };
    if let Reach::Taken(_) = host.reach {
        return Err(Lack::Taken);
    }
    if host.draining {
        return Err(Lack::Draining);
    }
    if host.lost() {
        return Err(Lack::Unreachable);
    }
    let Some(report) = host.report else {
        return Err(Lack::NotConnected);
    };
    let missing = needs.labels_missing(host);
    if !missing.is_empty() {
        return Err(Lack::Labels(missing));
    }
    let facts = &report.facts;
    let new = u64::from(new);
    match needs.memory {
        Some(memory) => {
            // A tenth stays for the system.
            let capacity = facts.memory_total_bytes / 10 * 9;
            let promised = host.promised_memory + new * memory;
            if promised + memory > capacity {
                return Err(Lack::Promised {
                    promised: mib(promised),
                    capacity: mib(capacity),
                    needed: mib(memory),
                });
            }
            Ok(capacity - promised - memory)
        }
        None => {
            let free = facts
                .memory_available_bytes
                .saturating_sub(new * UNLIMITED_NEEDS);
            if free < UNLIMITED_NEEDS {
                return Err(Lack::Memory {
                    free: mib(free),
                    needed: mib(UNLIMITED_NEEDS),
                });
            }
            Ok(free)
        }
    }
}

const fn mib(bytes: u64) -> u64 {
    bytes / 1024 / 1024
}
