//! A plan: the whole way to a goal, as data. It is stored for good and never edited, so variants
//! and fields are only ever added.

use crate::{Place, Progress, Serving, World, told_commands};
use beanpole_protocol::api::{LeftOut, PlanBatch, PlanView};
use beanpole_protocol::options::{DeploymentPolicy, GuardLimits, SplitStep, SplitSteps};
use beanpole_protocol::proxy::{HealthCheck, TargetMode};
use beanpole_protocol::{EnvironmentName, HostId, InstanceId, ReleaseNumber};
use serde::{Deserialize, Serialize};

/// The whole way from here to a goal: stages, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The policy it follows, where there is one.
    pub policy: Option<DeploymentPolicy>,
    /// The release that instances end up with.
    pub release: Option<ReleaseNumber>,
    /// Healthy serving instances that it never goes below by its own doing.
    pub floor: u32,
    /// What is lost with its host does not count for the floor: one version weighs more. Of ways back.
    #[serde(default)]
    pub insists: bool,
    /// What happens, in order.
    pub stages: Vec<Stage>,
    /// When a started instance may serve.
    pub gate: Gate,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Go on with instances that run but are not healthy in time.
    #[serde(default)]
    pub ignore_health: bool,
    /// An instance that passed the gate and ends or loses its health before the plan is done fails it.
    #[serde(default)]
    pub watch: bool,
    /// How much worse its release may be than the one before while both get requests; any where absent.
    #[serde(default)]
    pub guard: Option<GuardLimits>,
    /// Instances that are left out, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    /// What a new instance asks of its host.
    #[serde(default)]
    pub needs: Place,
    /// Instances that change in place though their connections should get the time of
    /// [`Timeouts::linger_ms`], and why no successor starts beside them.
    #[serde(default)]
    pub in_place: Vec<Skipped>,
}

/// One stage. The next one starts when it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// A release is made ready on hosts, while nothing that runs is touched.
    Prepare {
        /// The release, as people know it.
        release: ReleaseNumber,
        /// The release whose prepared tree it uses on hosts; itself, or an earlier one of the same
        /// content.
        tree: ReleaseNumber,
        /// Where.
        hosts: Vec<HostId>,
        /// The names of the container commands that run there.
        #[serde(default)]
        commands: Vec<String>,
    },
    /// What runs once runs, on one host, while nothing that runs is touched. A plan has one at most.
    Once {
        /// The release, as people know it.
        release: ReleaseNumber,
        /// The release whose prepared tree it runs in.
        tree: ReleaseNumber,
        /// Where.
        host: HostId,
        /// What runs, for people: ``the release command `./migrate` ``.
        command: String,
    },
    /// Another health check is tried on what is well by the present one, beside it, and has to find it well
    /// too.
    TryCheck {
        /// Which one.
        check: HealthCheck,
    },
    /// Instances that change together.
    Batch(Batch),
    /// The new release gets a share of the requests for a while.
    Split(Split),
    /// The hostnames of the environment, which it has exchanged with another, are in force on every load balancer.
    Swap {
        /// The other one.
        with: EnvironmentName,
    },
}

impl Stage {
    /// What it does to instances.
    pub fn changes(&self) -> &[Change] {
        match self {
            Self::Batch(batch) => &batch.changes,
            Self::Split(split) => &split.changes,
            Self::Prepare { .. }
            | Self::Once { .. }
            | Self::TryCheck { .. }
            | Self::Swap { .. } => &[],
        }
    }
}

/// A share of the requests for the plan's release; all others go to what serves besides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Per cent, 1 to 100.
    pub percent: u8,
    /// How long, in milliseconds, from when every proxy has confirmed the share.
    pub wait_ms: u64,
    /// Instances that wait, of earlier batches, and go into service with it.
    #[serde(default)]
    pub enters: Vec<InstanceId>,
    /// New instances in the place of some whose host was lost; see [`Plan::around`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Instances that change together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Counted from 1.
    pub number: u32,
    /// Take instances out of the load balancer and let them finish before they change.
    pub drain: bool,
    /// At the bound of each phase go on, whatever proxies and agents say. Only for taking down.
    #[serde(default)]
    pub force: bool,
    /// Instances that it starts get no traffic when they have passed the gate: they wait for a later
    /// batch that `enters` them.
    #[serde(default)]
    pub hold: bool,
    /// Instances that wait, of earlier batches: all go into service in one change of routes, in which all
    /// that leaves here is drained; nothing is stopped before they serve.
    #[serde(default)]
    pub enters: Vec<InstanceId>,
    /// What happens to each.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Whether any instance of it has to become healthy.
    pub fn starts(&self) -> bool {
        !self.enters.is_empty()
            || self
                .changes
                .iter()
                .any(|change| change.action != Action::Remove)
    }
}

/// What happens to one instance. An instance has at most one change in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which instance.
    pub instance: InstanceId,
    /// Its host.
    pub host: HostId,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// A new instance.
    Launch {
        /// The release it runs.
        release: ReleaseNumber,
    },
    /// The same instance on another release, in place.
    Replace {
        /// The release it runs then.
        release: ReleaseNumber,
    },
    /// The same instance and release, started afresh.
    Restart,
    /// It goes away.
    Remove,
    /// It was taken out of the load balancer, unchanged, and serves again.
    Return,
}

impl Action {
    /// The word for it in a [`PlanBatch`].
    pub const fn word(self) -> &'static str {
        match self {
            Self::Launch { .. } => "launch",
            Self::Replace { .. } => "replace",
            Self::Restart => "restart",
            Self::Remove => "remove",
            Self::Return => "return",
        }
    }
}

/// When a started instance may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "gate", rename_all = "kebab-case")]
pub enum Gate {
    /// It runs, every proxy saw that many good checks in a row, and it was up for that long without a
    /// restart.
    Proxies {
        /// Good checks in a row.
        good_checks: u32,
        /// Bad checks in a row after which one that had passed is well no more.
        #[serde(default = "three")]
        bad_checks: u32,
        /// Milliseconds without a restart.
        #[serde(default)]
        up_ms: u64,
        /// Every instance has to be up for so long, not only the first that passes.
        #[serde(default)]
        every: bool,
    },
    /// It ran for that long without a restart; for environments without traffic.
    Settle {
        /// Milliseconds.
        for_ms: u64,
    },
}

impl Default for Gate {
    fn default() -> Self {
        Self::Proxies {
            good_checks: 2,
            bad_checks: three(),
            up_ms: 0,
            every: false,
        }
    }
}

const fn three() -> u32 {
    3
}

/// How long things may take, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Preparing a release on all hosts; running what runs once.
    pub prepare_ms: u64,
    /// From the first moment that a started instance runs until it has to be healthy: its grace and its
    /// time-out.
    pub batch_ms: u64,
    /// Finishing requests.
    pub drain_ms: u64,
    /// SIGTERM to SIGKILL.
    pub stop_ms: u64,
    /// From the order to drain until an instance that leaves for good and still has open requests is
    /// stopped. After `drain_ms` the plan goes on without it. No longer than `drain_ms` where 0.
    #[serde(default)]
    pub linger_ms: u64,
}

/// The bound of each phase of a change. Every wait has its own, so that one that cannot end well ends
/// soon, whatever the other phases might have taken; a stage as a whole is bound by
/// [`Plan::stage_ms`].
impl Timeouts {
    /// From the start of a stage until enough others serve for the first instance to leave. Long enough for
    /// a host that is lost meanwhile to count as lost, however soon the app has to have started.
    pub fn spared_ms(&self, starts: bool) -> u64 {
        if starts {
            self.batch_ms.max(MARGIN_MS)
        } else {
            MARGIN_MS
        }
    }

    /// From the order to drain until every proxy has confirmed.
    pub const fn drained_ms(&self) -> u64 {
        self.drain_ms + MARGIN_MS
    }

    /// From the order to stop until the instance is gone.
    pub const fn stopped_ms(&self) -> u64 {
        self.stop_ms + MARGIN_MS
    }

    /// From the switch until the new incarnation runs, and has for as long as it has to where that is all
    /// that is asked of it; the one before has to end first.
    pub fn started_ms(&self, gate: Gate) -> u64 {
        let runs = self.stop_ms + self.batch_ms.max(MARGIN_MS);
        match gate {
            Gate::Proxies { .. } => runs,
            Gate::Settle { for_ms } => runs + for_ms,
        }
    }

    /// From the first moment that it runs until it passes the gate.
    pub const fn proven_ms(&self, gate: Gate) -> u64 {
        match gate {
            Gate::Proxies { up_ms, .. } => self.batch_ms + up_ms,
            Gate::Settle { for_ms } => self.batch_ms + for_ms,
        }
    }

    /// From exchanging hostnames until every proxy has confirmed that, or is left behind. Clients of the EB API
    /// wait for a minute.
    pub const fn routed_ms(&self) -> u64 {
        ROUTED_MS
    }

    /// From putting it into service until every proxy has confirmed that.
    pub const fn confirmed_ms(&self) -> u64 {
        MARGIN_MS
    }
}

/// An instance that a plan treats in another way than the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Which instance.
    pub instance: InstanceId,
    /// Where it runs.
    pub host: HostId,
    /// Why, in a sentence without its end.
    pub reason: String,
}

impl Plan {
    /// Every change, in order, with the number of its batch.
    pub fn changes(&self) -> impl Iterator<Item = (u32, &Change)> {
        self.stages.iter().flat_map(|stage| {
            let number = match stage {
                Stage::Batch(batch) => batch.number,
                _ => 0,
            };
            stage.changes().iter().map(move |change| (number, change))
        })
    }

    /// The floor in a world: see [`Plan::floor`] and [`Plan::insists`].
    pub fn floor_in(&self, world: &World<'_>) -> u32 {
        if !self.insists {
            return self.floor;
        }
        let lost = world.instances.iter().filter(|(id, instance)| {
            instance.mode == Some(TargetMode::Serve)
                && world.host_lost(&instance.host)
                && world.serving(id) != Serving::Yes
                // What the plan changes it sees to.
                && self.changes().all(|(_, change)| change.instance != **id)
        });
        let lost = u32::try_from(lost.count()).unwrap_or(u32::MAX);
        self.floor.saturating_sub(lost)
    }

    /// How long a stage may take, in milliseconds: the bound around the bounds of its phases, see
    /// [`Timeouts`]. Zero for a stage that is not there.
    pub fn stage_ms(&self, stage: usize) -> u64 {
        let t = &self.timeouts;
        match self.stages.get(stage) {
            None => 0,
            Some(Stage::Prepare { .. }) => t.prepare_ms,
            Some(Stage::Split(split)) => {
                t.spared_ms(true) + t.confirmed_ms() + split.wait_ms + t.confirmed_ms()
            }
            Some(Stage::Swap { .. }) => t.routed_ms(),
            // The agent ends it when its time is up, and has to be able to say so.
            Some(Stage::Once { .. }) => t.prepare_ms + MARGIN_MS,
            Some(Stage::TryCheck { check }) => {
                let most = check.healthy_threshold.max(check.unhealthy_threshold);
                u64::from(most) * (check.interval_ms + check.timeout_ms) + MARGIN_MS
            }
            Some(Stage::Batch(batch)) => {
                let starts = batch.starts();
                let leaving = t.drained_ms() + t.stopped_ms();
                let proven = if starts { t.proven_ms(self.gate) } else { 0 };
                t.spared_ms(starts) + leaving + proven
            }
        }
    }

    /// How long the stage under way may take, in milliseconds: with what joined it because a host was lost.
    pub fn bound_ms(&self, progress: &Progress) -> u64 {
        let t = &self.timeouts;
        let stage = self.stages.get(progress.stage);
        let mut changes = stage.into_iter().flat_map(Stage::changes);
        let more = if changes.any(|change| progress.is_moved(&change.instance)) {
            t.prepare_ms + t.started_ms(self.gate) + t.proven_ms(self.gate)
        } else {
            0
        };
        self.stage_ms(progress.stage) + more
    }

    /// How long an instance may take from the switch until it runs, in milliseconds. On a host that a plan had
    /// not meant it for, its release is prepared first.
    pub fn start_ms(&self, progress: &Progress, instance: &InstanceId) -> u64 {
        let more = if progress.is_moved(instance) {
            self.timeouts.prepare_ms
        } else {
            0
        };
        self.timeouts.started_ms(self.gate) + more
    }

    /// How long all of it may take, in milliseconds.
    pub fn total_ms(&self) -> u64 {
        (0..self.stages.len())
            .map(|stage| self.stage_ms(stage))
            .sum()
    }

    /// For people and clients. `host_name` names a host.
    pub fn view(&self, host_name: &dyn Fn(&HostId) -> String) -> PlanView {
        let mut batches = Vec::new();
        let mut lines = Vec::new();
        let mut shared = false;
        for stage in &self.stages {
            match stage {
                Stage::Prepare {
                    release,
                    hosts,
                    commands,
                    ..
                } => {
                    let names: Vec<String> = hosts.iter().map(host_name).collect();
                    let with = told_commands(commands)
                        .map(|commands| format!(", with {commands}"))
                        .unwrap_or_default();
                    lines.push(format!(
                        "Prepare release {release} on {}{with}.",
                        names.join(", ")
                    ));
                }
                Stage::Split(split) => {
                    shared = true;
                    let step = SplitStep {
                        percent: split.percent,
                        wait_s: Some(split.wait_ms / 1_000),
                    };
                    let text = SplitSteps(vec![step]).to_string();
                    let lasts = text.split(':').nth(1).unwrap_or_default();
                    let guarded = if self.guard.is_some() && split.percent < 100 {
                        ", and compare it with the release before"
                    } else {
                        ""
                    };
                    lines.push(format!(
                        "Give the new instances {} % of the requests for {lasts}{guarded}.",
                        split.percent
                    ));
                    let joins: Vec<&Change> = split.changes.iter().collect();
                    if !joins.is_empty() {
                        lines.push(format!("Launch {}.", launches(&joins, host_name)));
                    }
                }
                Stage::TryCheck { check } => {
                    lines.push(format!(
                        "Try {} on every instance in service. Where one is well and does not pass, nothing changes.",
                        check.probe
                    ));
                }
                Stage::Swap { with } => {
                    lines.push(format!("Exchange hostnames with {with}."));
                }
                Stage::Once { host, command, .. } => {
                    lines.push(format!("Run {command} once, on {}.", host_name(host)));
                }
                Stage::Batch(batch) => {
                    if !batch.enters.is_empty() || shared {
                        lines.push(format!(
                            "Batch {}: move all traffic to the new instances.",
                            batch.number
                        ));
                    }
                    for word in ["launch", "replace", "restart", "return", "remove"] {
                        let of_kind: Vec<&Change> = batch
                            .changes
                            .iter()
                            .filter(|change| change.action.word() == word)
                            .collect();
                        if of_kind.is_empty() {
                            continue;
                        }
                        let what = if word == "launch" {
                            launches(&of_kind, host_name)
                        } else {
                            let named: Vec<String> = of_kind
                                .iter()
                                .map(|change| {
                                    format!("{} on {}", change.instance, host_name(&change.host))
                                })
                                .collect();
                            named.join(", ")
                        };
                        lines.push(format!("Batch {}: {word} {what}.", batch.number));
                        batches.push(PlanBatch {
                            number: batch.number,
                            change: word.to_owned(),
                            instances: of_kind.iter().map(|c| c.instance.clone()).collect(),
                        });
                    }
                }
            }
        }
        let in_place =
            |change: &&Change| matches!(change.action, Action::Replace { .. } | Action::Restart);
        let changed = self.changes().map(|(_, change)| change).filter(in_place);
        if self.policy == Some(DeploymentPolicy::Rolling) && self.floor == 0 && changed.count() > 1
        {
            lines.push(
                "Every instance is in one batch: the service is interrupted meanwhile.".to_owned(),
            );
        }
        for kept in &self.in_place {
            lines.push(format!(
                "Change {} on {} in place, which cuts connections that are open after {} s: {}.",
                kept.instance,
                host_name(&kept.host),
                self.timeouts.drain_ms / 1_000,
                kept.reason
            ));
        }
        let mut left_out = Vec::new();
        for skipped in &self.skipped {
            let host = host_name(&skipped.host);
            lines.push(format!(
                "Leave {} on {host} out: {}.",
                skipped.instance, skipped.reason
            ));
            left_out.push(LeftOut {
                instance: skipped.instance.clone(),
                host,
                reason: skipped.reason.clone(),
            });
        }
        PlanView {
            policy: self.policy,
            batches,
            floor: self.floor,
            lines,
            left_out,
            ..PlanView::default()
        }
    }
}

/// `3 instances: 2 on h1, 1 on h2`. Without their ids: those of a plan that is only shown are never
/// given to anyone.
fn launches(changes: &[&Change], host_name: &dyn Fn(&HostId) -> String) -> String {
    let mut by_host: Vec<(&HostId, u32)> = Vec::new();
    for change in changes {
        match by_host.iter_mut().find(|(host, _)| **host == change.host) {
            Some((_, count)) => *count += 1,
            None => by_host.push((&change.host, 1)),
        }
    }
    let places: Vec<String> = by_host
        .into_iter()
        .map(|(host, count)| format!("{count} on {}", host_name(host)))
        .collect();
    let plural = if changes.len() == 1 { "" } else { "s" };
    format!("{} instance{plural}: {}", changes.len(), places.join(", "))
}

/// What orders, tables and reports may take to arrive on top of what they ask for: links may have to
/// be re-dialled, daemons may be started again.
const MARGIN_MS: u64 = 60_000;

/// How long the hostnames that two environments have exchanged may take to be in force everywhere.
const ROUTED_MS: u64 = 30_000;
