//! How far a plan is: the fold of its journal. [`apply`] is the one function of legal transitions.

use crate::around::Detour;
use crate::{Action, Change, Growth};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::{AgentId, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a plan is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage under way, or to start next; counted from 0.
    pub stage: usize,
    /// When that stage started; absent before it has.
    pub since: Option<Timestamp>,
    /// Instances that are not pending any more.
    pub changes: BTreeMap<InstanceId, ChangeState>,
    /// Why it cannot go on, when it failed.
    pub failed: Option<OperationFailure>,
    /// Instances that passed the gate, with the restarts that each had had by then.
    #[serde(default)]
    pub proven: BTreeMap<InstanceId, u32>,
    /// Instances whose port turned out taken, and how often.
    #[serde(default)]
    pub taken: BTreeMap<InstanceId, u32>,
    /// The share of the requests that the plan's release has; absent before it has one.
    #[serde(default)]
    pub share: Option<Share>,
    /// It shall get all requests without further waiting.
    #[serde(default)]
    pub promoted: bool,
    /// The agent that the release command was ordered from.
    #[serde(default)]
    pub once_by: Option<AgentId>,
    /// Hosts that were lost meanwhile, and how the plan goes on without each.
    #[serde(default)]
    pub detours: Vec<Detour>,
    /// What has joined both sides of its split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growths: Vec<Growth>,
}

/// A share of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The stage that gave it, counted from 0.
    pub stage: usize,
    /// Per cent.
    pub percent: u8,
    /// Since when it is wanted.
    pub since: Timestamp,
    /// When every proxy had confirmed it.
    pub confirmed: Option<Timestamp>,
}

impl Progress {
    /// How far an instance is.
    pub fn of(&self, instance: &InstanceId) -> ChangeState {
        self.changes
            .get(instance)
            .cloned()
            .unwrap_or(ChangeState::Pending)
    }

    /// Whether an instance came to the plan while it was under way, on a host that may not be prepared: in
    /// the place of one on a host that was lost, or because the environment grew.
    pub fn is_moved(&self, instance: &InstanceId) -> bool {
        let detours = self.detours.iter();
        let mut moved = detours.flat_map(|detour| detour.moved.iter().chain(&detour.stand_ins));
        let grown = self.growths.iter();
        let mut grown = grown.flat_map(|growth| growth.new.iter().chain(&growth.old));
        moved.any(|moved| moved.to == *instance) || grown.any(|one| one.instance == *instance)
    }

    /// Those that joined the old side of a split, to leave with it, with the stage that each starts in.
    fn stand_ins(&self) -> impl Iterator<Item = (&InstanceId, usize)> {
        let detours = self.detours.iter();
        let stand_ins = detours.flat_map(|detour| &detour.stand_ins);
        let grown = self.growths.iter();
        let grown = grown.flat_map(|one| one.old.iter().map(|join| (&join.instance, one.stage)));
        stand_ins.map(|one| (&one.to, one.stage)).chain(grown)
    }

    /// The stage that an instance starts in which joined the old side of a split, where it did.
    pub(crate) fn stand_in(&self, instance: &InstanceId) -> Option<usize> {
        self.stand_ins()
            .find(|(id, _)| *id == instance)
            .map(|(_, stage)| stage)
    }

    /// Whether what is known of an instance is of this change: one that joined the old side of a split has two,
    /// its launch and, from the stages after it on, its removal.
    pub fn is_of(&self, change: &Change) -> bool {
        let removes = change.action == Action::Remove;
        self.stand_in(&change.instance)
            .is_none_or(|stage| removes == (self.stage > stage))
    }
}

/// How far the change of one instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ChangeState {
    /// Nothing was done yet.
    Pending,
    /// Out of the load balancer, finishing requests.
    Draining {
        /// Since when.
        since: Timestamp,
    },
    /// Has no requests; nothing else was changed.
    Drained,
    /// Ordered to stop, in order to be removed.
    Stopping {
        /// Since when.
        since: Timestamp,
    },
    /// Ordered to start; not in the table, because whatever listens on its port may still be the
    /// incarnation before.
    Starting {
        /// Since when.
        since: Timestamp,
    },
    /// The new incarnation runs, and proxies check it.
    Checking {
        /// Since when.
        since: Timestamp,
    },
    /// Passed the gate; gets no traffic yet, because it enters together with others.
    Held,
    /// Passed the gate and is put into the load balancer; proxies have not confirmed it.
    Serving {
        /// Since when.
        since: Timestamp,
        /// It did not pass the gate: health is ignored.
        forced: bool,
    },
    /// Nothing more to do.
    Done,
}

/// A past fact of a plan. Entries of the journal; some change what is wanted of an instance, in the
/// same transaction (said at each).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "happened", rename_all = "kebab-case")]
pub enum Happened {
    /// A stage began.
    StageStarted {
        /// Which, counted from 0.
        stage: usize,
    },
    /// Wanted: the release command runs, on that agent alone.
    OnceOrdered {
        /// Which agent.
        agent: AgentId,
    },
    /// Wanted: mode Drain.
    DrainStarted {
        /// Which.
        instance: InstanceId,
    },
    /// Every proxy confirmed, and its requests are over (or out of time).
    Drained {
        /// Which.
        instance: InstanceId,
        /// Requests that were still open when its time was up.
        cut: u32,
    },
    /// Every proxy confirmed, its requests are not over, and nobody waits for them: it goes on outside of
    /// the plan, as one that lingers, until they are or that time comes. Wanted: nothing else.
    Lingers {
        /// Which.
        instance: InstanceId,
        /// Requests that were open.
        open: u32,
        /// Since when it gets nothing new.
        since: Timestamp,
        /// When it is stopped at the latest.
        until: Timestamp,
    },
    /// Wanted: the new release, the next incarnation, running, out of the table. Makes the instance
    /// when it is a launch.
    Switched {
        /// Which.
        instance: InstanceId,
    },
    /// The new incarnation runs. Wanted: mode Probe.
    ProbeStarted {
        /// Which.
        instance: InstanceId,
    },
    /// Wanted: not running, out of the table.
    StopOrdered {
        /// Which.
        instance: InstanceId,
    },
    /// It is gone (or its host is): forgotten, dropped from the orders.
    Removed {
        /// Which.
        instance: InstanceId,
        /// Its host has not said so: what ran may run on there until the host is back.
        #[serde(default)]
        unreached: bool,
    },
    /// It passed the gate. Wanted: mode Serve.
    PutIn {
        /// Which.
        instance: InstanceId,
        /// Without passing the gate: health is ignored.
        forced: bool,
        /// How often its processes had been restarted by then; absent when it did not pass the gate.
        #[serde(default)]
        restarts: Option<u32>,
    },
    /// It passed the gate (or health is ignored), and waits for others to enter with.
    Held {
        /// Which.
        instance: InstanceId,
        /// How often its processes had been restarted by then; absent when it did not pass the gate.
        restarts: Option<u32>,
    },
    /// Another program has its port. Wanted: the next incarnation, running on another port, out of the
    /// table.
    PortTaken {
        /// Which.
        instance: InstanceId,
        /// What its agent says.
        message: String,
    },
    /// Every proxy confirmed that it serves.
    InService {
        /// Which.
        instance: InstanceId,
    },
    /// Wanted: this share of the requests for the plan's release.
    ShareSet {
        /// Per cent.
        percent: u8,
    },
    /// Every proxy confirmed the share.
    ShareConfirmed {
        /// Per cent.
        percent: u8,
    },
    /// Somebody wants all requests to go to the plan's release now.
    Promoted,
    /// The stage is done.
    StageFinished {
        /// Which, counted from 0.
        stage: usize,
    },
    /// A host was lost, and the plan goes on without it.
    Detoured {
        /// How.
        detour: Detour,
    },
    /// The environment got more instances while its requests are split.
    Grew {
        /// Which.
        growth: Growth,
    },
    /// A proxy has not put the environment's hostnames in force, and is not waited for any more.
    RoutesUnconfirmed {
        /// Which, for people.
        who: String,
    },
    /// The plan cannot go on.
    Failed {
        /// Why.
        failure: OperationFailure,
    },
}

/// An entry that may not follow what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("journal entry {entry} may not follow {state}")]
pub struct IllegalTransition {
    /// The entry.
    pub entry: String,
    /// What it was to follow.
    pub state: String,
}

/// Folds one entry into the progress.
pub fn apply(
    mut progress: Progress,
    at: Timestamp,
    entry: &Happened,
) -> Result<Progress, IllegalTransition> {
    use ChangeState as S;
    if progress.failed.is_some() {
        return Err(illegal(entry, &"the end of the plan"));
    }
    let moved = match entry {
        Happened::StageStarted { stage } => {
            if *stage != progress.stage || progress.since.is_some() {
                return Err(illegal(entry, &progress.stage));
            }
            progress.since = Some(at);
            None
        }
        Happened::StageFinished { stage } => {
            if *stage != progress.stage || progress.since.is_none() {
                return Err(illegal(entry, &progress.stage));
            }
            progress.stage += 1;
            progress.since = None;
            // They serve; what is left to do with them is to remove them.
            let joined = progress.stand_ins().filter(|(_, at)| at == stage);
            let joined: Vec<InstanceId> = joined.map(|(id, _)| id.clone()).collect();
            for id in joined {
                progress.changes.remove(&id);
            }
            None
        }
        Happened::OnceOrdered { agent } => {
            if progress.since.is_none() || progress.once_by.is_some() {
                return Err(illegal(entry, &progress.once_by));
            }
            progress.once_by = Some(agent.clone());
            None
        }
        Happened::Detoured { detour } => {
            if progress.since.is_none() || detour.stage != progress.stage {
                return Err(illegal(entry, &progress.stage));
            }
            for moved in &detour.moved {
                let leaves = matches!(progress.of(&moved.from), S::Draining { .. } | S::Drained);
                if !leaves {
                    progress.changes.remove(&moved.from);
                }
                progress.proven.remove(&moved.from);
            }
            progress.detours.push(detour.clone());
            // What joins the stage has all of its time.
            progress.since = Some(at);
            None
        }
        Happened::Grew { growth } => {
            if progress.since.is_none() || growth.stage != progress.stage {
                return Err(illegal(entry, &progress.stage));
            }
            progress.growths.push(growth.clone());
            progress.since = Some(at);
            None
        }
        Happened::Failed { failure } => {
            progress.failed = Some(failure.clone());
            None
        }
        Happened::ShareSet { percent } => {
            let is_new = progress
                .share
                .is_none_or(|share| share.stage < progress.stage);
            if progress.since.is_none() || !is_new {
                return Err(illegal(entry, &progress.share));
            }
            progress.share = Some(Share {
                stage: progress.stage,
                percent: *percent,
                since: at,
                confirmed: None,
            });
            None
        }
        Happened::ShareConfirmed { percent } => {
            match &mut progress.share {
                Some(share) if share.percent == *percent && share.confirmed.is_none() => {
                    share.confirmed = Some(at);
                }
                share => return Err(illegal(entry, share)),
            }
            None
        }
        Happened::RoutesUnconfirmed { .. } => {
            if progress.since.is_none() {
                return Err(illegal(entry, &progress.stage));
            }
            None
        }
        Happened::Promoted => {
            if progress.share.is_none() || progress.promoted {
                return Err(illegal(entry, &progress.share));
            }
            progress.promoted = true;
            None
        }
        Happened::DrainStarted { instance } => {
            Some((instance, &[0][..], S::Draining { since: at }))
        }
        Happened::Drained { instance, .. } => Some((instance, &[1][..], S::Drained)),
        Happened::Lingers { instance, .. } => Some((instance, &[1][..], S::Done)),
        Happened::Switched { instance } => Some((instance, &[0, 2][..], S::Starting { since: at })),
        Happened::ProbeStarted { instance } => {
            Some((instance, &[4][..], S::Checking { since: at }))
        }
        Happened::StopOrdered { instance } => {
            Some((instance, &[0, 2][..], S::Stopping { since: at }))
        }
        Happened::Removed { instance, .. } => Some((instance, &[0, 2, 3][..], S::Done)),
        Happened::PutIn {
            instance, forced, ..
        } => Some((
            instance,
            &[0, 4, 7, 8][..],
            S::Serving {
                since: at,
                forced: *forced,
            },
        )),
        Happened::Held { instance, .. } => Some((instance, &[4, 7][..], S::Held)),
        Happened::PortTaken { instance, .. } => {
            Some((instance, &[4, 7][..], S::Starting { since: at }))
        }
        Happened::InService { instance } => Some((instance, &[5][..], S::Done)),
    };
    if let Some((instance, from, to)) = moved {
        let state = progress.of(instance);
        if progress.since.is_none() || !from.contains(&rank(&state)) {
            return Err(illegal(entry, &state));
        }
        progress.changes.insert(instance.clone(), to);
        match entry {
            Happened::PutIn {
                restarts: Some(restarts),
                ..
            }
            | Happened::Held {
                restarts: Some(restarts),
                ..
            } => {
                progress.proven.insert(instance.clone(), *restarts);
            }
            Happened::PortTaken { .. } => {
                *progress.taken.entry(instance.clone()).or_default() += 1;
            }
            _ => {}
        }
    }
    Ok(progress)
}

/// A number for each state, to spell out which may follow which.
const fn rank(state: &ChangeState) -> u8 {
    match state {
        ChangeState::Pending => 0,
        ChangeState::Draining { .. } => 1,
        ChangeState::Drained => 2,
        ChangeState::Stopping { .. } => 3,
        ChangeState::Starting { .. } => 4,
        ChangeState::Serving { .. } => 5,
        ChangeState::Done => 6,
        ChangeState::Checking { .. } => 7,
        ChangeState::Held => 8,
    }
}

fn illegal(entry: &Happened, state: &dyn std::fmt::Debug) -> IllegalTransition {
    IllegalTransition {
        entry: format!("{entry:?}"),
        state: format!("{state:?}"),
    }
}
