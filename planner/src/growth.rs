//! More instances while two releases share the requests: a split may take hours, and traffic does not wait for
//! its end. Both sides get as many more, so that each could take all of it.
//!
//! As with a detour, the plan is not edited: a growth is an entry of the journal that says all of what is new,
//! and the plan as it is walked has it put in ([`Plan::around`]).

use crate::around::free_id;
use crate::{Action, Change, Happened, Plan, Progress, Refusal, Stage, World, place};
use beanpole_protocol::{HostId, InstanceId, ReleaseNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often an environment grows in one plan at most.
const MOST_GROWTHS: usize = 32;

/// What is new on both sides of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The stage that was under way, counted from 0: they start in it.
    pub stage: usize,
    /// Those of the new release, which stay.
    pub new: Vec<Joins>,
    /// Those of the release before, which leave with the others of it; on the way back they stay.
    pub old: Vec<Joins>,
}

/// One more instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joins {
    /// Which.
    pub instance: InstanceId,
    /// Where.
    pub host: HostId,
    /// What it runs.
    pub release: ReleaseNumber,
}

impl Joins {
    fn change(&self, action: Action) -> Change {
        Change {
            instance: self.instance.clone(),
            host: self.host.clone(),
            action,
        }
    }

    fn launch(&self) -> Change {
        self.change(Action::Launch {
            release: self.release,
        })
    }
}

impl Plan {
    /// Whether two releases share the requests, and go on doing so.
    pub fn is_splitting(&self, progress: &Progress) -> bool {
        matches!(self.stages.get(progress.stage), Some(Stage::Split(_)))
            && progress.since.is_some()
            && progress.share.is_some()
            && !progress.promoted
            && progress.failed.is_none()
    }

    pub(crate) fn put_in_growth(&mut self, growth: &Growth) {
        let later = |number: usize| number > growth.stage;
        for (number, stage) in self.stages.iter_mut().enumerate() {
            match stage {
                // What joins is prepared on its host as part of its start.
                Stage::Prepare { hosts, .. } => {
                    for one in &growth.new {
                        if !hosts.contains(&one.host) {
                            hosts.push(one.host.clone());
                        }
                    }
                }
                Stage::Split(split) if number == growth.stage => {
                    let all = growth.new.iter().chain(&growth.old);
                    split.changes.extend(all.map(Joins::launch));
                }
                Stage::Batch(batch) if later(number) => {
                    let leave = growth.old.iter().map(|one| one.change(Action::Remove));
                    batch.changes.extend(leave);
                }
                _ => {}
            }
        }
    }
}

/// `more` instances on each side of the split under way; `before` is the release of the old side. None where
/// nothing is split, or it has grown too often.
///
/// # Errors
/// There is no room for all of them.
pub fn grow(
    plan: &Plan,
    progress: &Progress,
    world: &World<'_>,
    before: ReleaseNumber,
    more: u32,
    seed: u128,
) -> Result<Option<Happened>, Refusal> {
    let walked = plan.around(progress);
    let Some(release) = walked.release else {
        return Ok(None);
    };
    if !walked.is_splitting(progress) || progress.growths.len() >= MOST_GROWTHS {
        return Ok(None);
    }
    let hosts = place(
        world,
        more.saturating_mul(2),
        &walked.needs,
        &BTreeMap::new(),
    )?;
    let mut growth = Growth {
        stage: progress.stage,
        new: Vec::new(),
        old: Vec::new(),
    };
    let mut made: Vec<InstanceId> = Vec::new();
    for (n, host) in hosts.into_iter().enumerate() {
        let instance = free_id(&walked, world, seed, &made);
        made.push(instance.clone());
        let is_new = n % 2 == 0;
        let side = if is_new {
            &mut growth.new
        } else {
            &mut growth.old
        };
        side.push(Joins {
            instance,
            host,
            release: if is_new { release } else { before },
        });
    }
    Ok(Some(Happened::Grew { growth }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, HostState, Reach, Share, Split, apply};
    use beanpole_protocol::agent::{HostFacts, HostReport};
    use beanpole_protocol::{EnvironmentId, Generation, Timestamp};
    use std::time::Duration;

    const OLD: ReleaseNumber = ReleaseNumber(1);
    const NEW: ReleaseNumber = ReleaseNumber(2);

    fn plan() -> Plan {
        let split = |percent| {
            Stage::Split(Split {
                percent,
                wait_ms: 60_000,
                enters: Vec::new(),
                changes: Vec::new(),
            })
        };
        Plan {
            release: Some(NEW),
            stages: vec![
                split(10),
                split(50),
                Stage::Batch(Batch {
                    number: 1,
                    drain: true,
                    force: false,
                    hold: false,
                    enters: Vec::new(),
                    changes: Vec::new(),
                }),
            ],
            ..Plan::default()
        }
    }

    fn splitting() -> Progress {
        Progress {
            since: Some(Timestamp::EPOCH),
            share: Some(Share {
                stage: 0,
                percent: 10,
                since: Timestamp::EPOCH,
                confirmed: None,
            }),
            ..Progress::default()
        }
    }

    /// What comes of one more on each side, on a host with that much memory.
    fn grown(progress: &Progress, memory_mib: u64) -> Result<Option<Happened>, Refusal> {
        let facts = HostFacts {
            memory_available_bytes: memory_mib << 20,
            memory_total_bytes: memory_mib << 20,
            ..HostFacts::default()
        };
        let report = HostReport {
            edge: None,
            sequence: 1,
            agent_version: String::new(),
            agent_digest: None,
            agent: None,
            owner: None,
            now: Timestamp::EPOCH,
            generation: Generation(1),
            facts,
            releases: Vec::new(),
            instances: Vec::new(),
        };
        let host = HostState {
            name: "h1".to_owned(),
            reach: Reach::Here,
            draining: false,
            labels: BTreeMap::new(),
            instances: 0,
            promised_memory: 0,
            heard: None,
            report: Some(&report),
            cannot: None,
        };
        let world = World {
            left_out: Vec::new(),
            environment: EnvironmentId::from_bits(1),
            operation: None,
            instances: BTreeMap::new(),
            hosts: [(HostId::from_bits(1), host)].into(),
            proxies: Vec::new(),
            web: true,
            replace_after: Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        };
        let mut plan = plan();
        plan.needs.memory = Some(512 << 20);
        grow(&plan, progress, &world, OLD, 1, 7)
    }

    #[test]
    fn both_sides_get_one_and_the_old_one_leaves_at_the_end() {
        let entry = grown(&splitting(), 4_096)
            .expect("there is room")
            .expect("it splits");
        let progress = apply(splitting(), Timestamp::EPOCH, &entry).expect("it may follow");
        let plan = plan();
        let walked = plan.around(&progress);
        let actions = |stage: usize| -> Vec<Action> {
            let changes = walked.stages[stage].changes().iter();
            changes.map(|change| change.action).collect()
        };
        let launch = |release| Action::Launch { release };
        assert_eq!(actions(0), [launch(NEW), launch(OLD)]);
        assert_eq!(actions(1), []);
        assert_eq!(actions(2), [Action::Remove]);
        let old = &walked.stages[2].changes()[0].instance;
        assert_eq!(progress.stand_in(old), Some(0));
    }

    #[test]
    fn nothing_grows_without_room_for_both_or_after_the_split() {
        assert!(grown(&splitting(), 768).is_err());
        let over = Progress {
            promoted: true,
            ..splitting()
        };
        assert_eq!(grown(&over, 4_096), Ok(None));
        let before = Progress {
            share: None,
            ..splitting()
        };
        assert_eq!(grown(&before, 4_096), Ok(None));
    }
}
