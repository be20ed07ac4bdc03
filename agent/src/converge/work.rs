//! The loop, and the instances' side of a turn.

use super::{Host, Release, Trouble, pause_after};
use crate::containers;
use crate::release::{Fault, Prepared, build};
use crate::runtime::{InstanceSpec, ProcessSpec, RunsAs, RuntimeError, Workload};
use crate::shim::spec::GateSpec;
use beanpole_daemon::clock;
use beanpole_protocol::agent::{
    InstanceOrder, InstancePhase, InstanceReport, OnceReport, Properties, ReleaseKey, ReleaseOrder,
    ReleasePhase,
};
use beanpole_protocol::options::port_variable;
use beanpole_protocol::{Incarnation, InstanceId, ReleaseNumber};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often a quiet loop cleans up.
const SWEEP_PERIOD: Duration = Duration::from_mins(5);
/// How soon a loop that waits for something from outside looks again.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// For instances whose orders are forgotten.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// How a piece of work ended.
pub(super) enum Done {
    /// A preparation.
    Prepared(ReleaseKey, Box<Result<Prepared, Fault>>),
    /// A release command.
    Once(ReleaseKey, OnceReport),
    /// A start, stop or removal of an instance, and for which order.
    Moved(
        InstanceId,
        Option<(ReleaseNumber, Incarnation)>,
        Result<(), RuntimeError>,
    ),
    /// A clean-up.
    Swept,
}

/// Work under way beside the loop.
#[derive(Default)]
pub(super) struct Work {
    tasks: JoinSet<Done>,
    /// Instances with a move under way; one at a time for each.
    moving: BTreeSet<InstanceId>,
    /// Ports and grace of instances, as last ordered.
    last: BTreeMap<InstanceId, (Vec<u16>, Duration)>,
    sweeping: bool,
    building: usize,
}

impl Work {
    pub(super) fn may_build(&self) -> bool {
        !self.sweeping
    }

    pub(super) fn may_drop(&self) -> bool {
        !self.sweeping && self.building == 0
    }

    pub(super) fn instances_move(&self) -> bool {
        !self.moving.is_empty()
    }

    pub(super) fn start(&mut self, job: impl Future<Output = Done> + Send + 'static) {
        self.building += 1;
        self.tasks.spawn(job);
    }

    pub(super) fn sweep(&mut self, clean: impl FnOnce() + Send + 'static) {
        self.sweeping = true;
        self.tasks.spawn(async {
            let _ = tokio::task::spawn_blocking(clean).await;
            Done::Swept
        });
    }
}

impl Host {
    /// Makes the host match until `stop`. Apps go on running after it.
    pub async fn converge(self: Arc<Self>, stop: CancellationToken) {
        let mut work = Work::default();
        let mut seen = self.runtime.changes();
        let mut swept = Instant::now();
        let host = Arc::clone(&self);
        work.sweep(move || host.sweep());
        loop {
            self.turn(&mut work);
            if swept.elapsed() >= SWEEP_PERIOD && work.may_drop() {
                swept = Instant::now();
                let host = Arc::clone(&self);
                work.sweep(move || host.sweep());
            }
            let pause = self.pause();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wake.notified() => {}
                changed = seen.changed() => {
                    if changed.is_err() {
                        tracing::error!("the runtime is gone");
                        break;
                    }
                    self.touch();
                }
                Some(done) = work.tasks.join_next() => self.done(&mut work, done),
                () = tokio::time::sleep(pause) => {}
            }
        }
        // Builds are killed with their process groups, instances stay.
        work.tasks.shutdown().await;
    }

    fn turn(self: &Arc<Self>, work: &mut Work) {
        self.prepare_releases(work);
        self.run_release_commands(work);
        self.move_instances(work);
        self.drop_releases(work);
    }

    /// How long nothing needs to be looked at.
    fn pause(&self) -> Duration {
        let state = self.state();
        let waiting = state.releases.values().any(Release::waits);
        let releases = state.releases.values().filter_map(|r| Some(r.retry?.due));
        let instances = state.troubles.values().map(|t| t.retry_at);
        let retry = releases
            .chain(instances)
            .map(|at| at.saturating_duration_since(Instant::now()))
            .min();
        let most = if waiting { LOOK_PERIOD } else { SWEEP_PERIOD };
        retry.map_or(most, |retry| retry.max(Duration::from_millis(50)).min(most))
    }

    fn done(&self, work: &mut Work, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Prepared(key, outcome)) => {
                work.building -= 1;
                self.prepared(&key, *outcome);
            }
            Ok(Done::Once(key, report)) => {
                work.building -= 1;
                self.ran_once(&key, report);
            }
            Ok(Done::Moved(id, wanted, outcome)) => {
                work.moving.remove(&id);
                self.moved(id, wanted, outcome);
            }
            Ok(Done::Swept) => work.sweeping = false,
            // Nothing here panics on purpose; the agent's own restart puts such a case right.
            Err(error) => tracing::error!(%error, "a piece of work broke off"),
        }
    }

    fn moved(
        &self,
        id: InstanceId,
        wanted: Option<(ReleaseNumber, Incarnation)>,
        outcome: Result<(), RuntimeError>,
    ) {
        let mut state = self.state();
        match outcome {
            Ok(()) => {
                state.troubles.remove(&id);
            }
            // No failure of its own: it starts when its release is made ready again.
            Err(error @ RuntimeError::ImageGone { .. }) => {
                tracing::warn!(instance = %id, "{error}: its release is prepared again");
                state.troubles.remove(&id);
                let order = state.orders.instances.iter().find(|order| order.id == id);
                let key = order.map(|order| ReleaseKey {
                    environment: order.environment.clone(),
                    number: order.release,
                });
                if let Some(release) = key.and_then(|key| state.releases.get_mut(&key)) {
                    release.prepared = None;
                    release.enter(ReleasePhase::NeedsBundle);
                }
            }
            Err(error) => {
                let failure = error.failure();
                tracing::warn!(instance = %id, code = failure.code, "{}", failure.message);
                let earlier = state.troubles.get(&id);
                let attempts = earlier.map_or(0, |trouble| trouble.attempts + 1);
                let (release, incarnation) = wanted.unwrap_or_default();
                let trouble = Trouble {
                    release,
                    incarnation,
                    failure,
                    attempts,
                    retry_at: Instant::now() + pause_after(attempts),
                    since: earlier.map_or_else(clock::now, |trouble| trouble.since),
                };
                state.troubles.insert(id, trouble);
            }
        }
        drop(state);
        self.touch();
    }

    /// Starts and stops instances so that they become what is ordered.
    fn move_instances(self: &Arc<Self>, work: &mut Work) {
        let orders = self.orders();
        let observed: BTreeMap<InstanceId, InstanceReport> = self
            .runtime
            .observe()
            .into_iter()
            .map(|report| (report.id.clone(), report))
            .collect();
        let wanted: BTreeMap<&InstanceId, &InstanceOrder> = orders
            .instances
            .iter()
            .map(|order| (&order.id, order))
            .collect();
        self.state()
            .troubles
            .retain(|id, _| wanted.contains_key(id) || observed.contains_key(id));
        let leaving: BTreeSet<u16> = observed
            .keys()
            .filter(|id| !wanted.contains_key(id))
            .filter_map(|id| work.last.get(id))
            .flat_map(|last| last.0.iter().copied())
            .collect();
        for id in observed.keys().filter(|id| !wanted.contains_key(id)) {
            if work.moving.contains(id) || self.must_wait(id, None) {
                continue;
            }
            let grace = work.last.get(id).map_or(DEFAULT_GRACE, |last| last.1);
            work.moving.insert(id.clone());
            work.tasks
                .spawn(Self::remove_instance(Arc::clone(self), id.clone(), grace));
        }
        for order in &orders.instances {
            if !work.moving.contains(&order.id)
                && !ports_of(order).any(|port| leaving.contains(&port))
                && let Some(move_) =
                    self.next_move(order, observed.get(&order.id), &orders.releases)
            {
                work.moving.insert(order.id.clone());
                work.tasks
                    .spawn(Self::move_instance(Arc::clone(self), order.clone(), move_));
            }
        }
        work.last.retain(|id, _| observed.contains_key(id));
        for order in &orders.instances {
            let grace = Duration::from_millis(order.stop_grace_ms);
            let ports = ports_of(order).collect();
            work.last.insert(order.id.clone(), (ports, grace));
        }
    }

    fn must_wait(&self, id: &InstanceId, wanted: Option<(ReleaseNumber, Incarnation)>) -> bool {
        self.state().troubles.get(id).is_some_and(|trouble| {
            wanted.is_none_or(|wanted| wanted == (trouble.release, trouble.incarnation))
                && trouble.retry_at > Instant::now()
        })
    }

    fn next_move(
        &self,
        order: &InstanceOrder,
        seen: Option<&InstanceReport>,
        releases: &[ReleaseOrder],
    ) -> Option<Move> {
        if self.must_wait(&order.id, Some((order.release, order.incarnation))) {
            return None;
        }
        let alive = seen.is_some_and(|report| {
            !matches!(
                report.phase,
                InstancePhase::Stopped | InstancePhase::Failed(_)
            )
        });
        if !order.run {
            // A failed one may have processes, too.
            let stopped = seen.is_none_or(|report| report.phase == InstancePhase::Stopped);
            return (!stopped).then_some(Move::Stop);
        }
        // An incarnation has one release. Where the order names another, its controller's records are of
        // a time before: it asks for a new incarnation when it is this instance's turn to change.
        let same = seen.is_some_and(|report| report.incarnation == order.incarnation);
        if same && alive {
            return None;
        }
        let release = releases.iter().find(|release| {
            release.key.environment == order.environment && release.key.number == order.release
        })?;
        let prepared = {
            let state = self.state();
            let known = state.releases.get(&release.key)?;
            if known.is_of_another_bundle(release) {
                return None;
            }
            known.prepared.clone()?
        };
        let place = self.layout.release(&release.key);
        let processes = match &prepared.containers {
            None => prepared.process_specs(),
            Some(ready) => {
                let all = ready.containers.containers.iter();
                let program = &self.workshop.program;
                all.map(|one| ProcessSpec {
                    name: one.name.clone(),
                    command: containers::command(
                        program,
                        &place,
                        &release.key,
                        &one.name,
                        &order.limits,
                    ),
                    runs_container: true,
                })
                .collect()
            }
        };
        let workload = Workload {
            directory: place.join("app"),
            processes,
        };
        Some(Move::Start {
            stop_first: seen.is_some(),
            spec: Box::new(spec(order, release, &prepared, workload)),
        })
    }

    /// Refuses to start an instance whose images the Engine has no more, before its processes try in vain.
    async fn has_images(&self, order: &InstanceOrder) -> Result<(), RuntimeError> {
        let key = ReleaseKey {
            environment: order.environment.clone(),
            number: order.release,
        };
        let prepared = {
            let state = self.state();
            let release = state.releases.get(&key);
            release.and_then(|release| release.prepared.clone())
        };
        let Some(ready) = prepared.as_ref().and_then(|one| one.containers.as_ref()) else {
            return Ok(());
        };
        match containers::clean::lacks(ready.images.values()).await {
            Ok(None) => Ok(()),
            Ok(Some(image)) => Err(RuntimeError::ImageGone { image }),
            Err(error) => Err(RuntimeError::Engine {
                why: error.to_string(),
            }),
        }
    }

    async fn remove_instance(self: Arc<Self>, id: InstanceId, grace: Duration) -> Done {
        let outcome = async {
            self.runtime.stop(&id, grace).await?;
            self.runtime.remove(&id).await
        }
        .await;
        Done::Moved(id, None, outcome)
    }

    async fn move_instance(self: Arc<Self>, order: InstanceOrder, what: Move) -> Done {
        let grace = Duration::from_millis(order.stop_grace_ms);
        let outcome = match what {
            Move::Stop => self.runtime.stop(&order.id, grace).await,
            Move::Start { stop_first, spec } => {
                async {
                    if stop_first {
                        self.runtime.stop(&order.id, grace).await?;
                    }
                    self.has_images(&order).await?;
                    self.runtime.start(*spec).await
                }
                .await
            }
        };
        let wanted = Some((order.release, order.incarnation));
        Done::Moved(order.id, wanted, outcome)
    }
}

/// What an instance is told.
enum Move {
    Stop,
    Start {
        stop_first: bool,
        spec: Box<InstanceSpec>,
    },
}

fn ports_of(order: &InstanceOrder) -> impl Iterator<Item = u16> {
    std::iter::once(order.port).chain(order.ports.values().copied())
}

/// An instance of a prepared release.
fn spec(
    order: &InstanceOrder,
    release: &ReleaseOrder,
    prepared: &Prepared,
    workload: Workload,
) -> InstanceSpec {
    let mut environment = prepared.app_environment(release);
    for (name, value) in [
        ("PORT", order.port.to_string()),
        ("BEANPOLE_INSTANCE", order.id.to_string()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    for (process, port) in &order.ports {
        environment.insert(port_variable(process), port.to_string());
    }
    InstanceSpec {
        id: order.id.clone(),
        application: release.application.clone(),
        release: order.release,
        incarnation: order.incarnation,
        workload,
        port: order.port,
        ports: order.ports.clone(),
        environment: Properties(environment),
        limits: order.limits,
        stop_grace: Duration::from_millis(order.stop_grace_ms),
        gate: GateSpec {
            ready: order.ready.clone(),
            hooks: prepared.postdeploy.clone(),
            hook_timeout_ms: release.prepare_timeout_ms,
            hooks_as_root: build::acts_as_root(release),
        },
        runs_as: RunsAs::Application,
    }
}
