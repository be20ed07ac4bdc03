//! Makes the host match its orders.
//!
//! One task owns the work. Each turn compares what is ordered with what is there and starts what
//! brings them together: preparations of releases, starts and stops of instances, removals. The
//! work itself runs beside the loop, so that one release that fails or takes long never holds up
//! another. A restart of the agent is just another first turn.

mod once;
mod releases;
mod report;
mod work;

use crate::blobs::Blobs;
use crate::edge::Edge;
use crate::facts::Facts;
use crate::layout::Layout;
use crate::orders;
use crate::owner;
use crate::release::Prepared;
use crate::release::Workshop;
use crate::runtime::Runtime;
use beanpole_daemon::{clock, files};
use beanpole_protocol::agent::{
    Claim, Failure, HostOrders, OnceReport, Owner, ReleaseKey, ReleasePhase,
};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    AgentId, ControllerId, Digest, Incarnation, InstanceId, OperationId, ReleaseNumber, Timestamp,
};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// The host as the agent knows it: shared by the loop and the calls of the controller.
pub struct Host {
    /// Where things lie.
    pub layout: Layout,
    /// Bundles.
    pub blobs: Blobs,
    /// Where releases are prepared.
    pub workshop: Workshop,
    /// What runs.
    pub runtime: Arc<dyn Runtime>,
    /// The load balancer of this host.
    pub edge: Arc<Edge>,
    /// The machine.
    pub facts: Facts,
    /// SHA-256 of the agent's own executable, once known.
    pub digest: OnceLock<Digest>,
    id: AgentId,
    state: Mutex<State>,
    wake: Notify,
    changed: watch::Sender<u64>,
    sequence: AtomicU64,
}

/// What runs on this host.
pub struct Runs {
    /// Instances.
    pub instances: Arc<dyn Runtime>,
    /// The load balancer.
    pub edge: Arc<Edge>,
}

/// Which agent this is, and whose host.
pub struct Whose {
    /// The agent's own id.
    pub agent: AgentId,
    /// The controller that it obeys, if one has spoken yet.
    pub owner: Option<Owner>,
}

/// What the agent holds in memory.
struct State {
    owner: Option<Owner>,
    orders: Arc<HostOrders>,
    releases: BTreeMap<ReleaseKey, Release>,
    troubles: BTreeMap<InstanceId, Trouble>,
    /// Since when instances without processes are as they are.
    since: BTreeMap<InstanceId, (&'static str, Timestamp)>,
    /// No new orders are taken: everything is being removed.
    closing: bool,
}

/// A release on this host.
struct Release {
    phase: ReleasePhase,
    since: Timestamp,
    prepared: Option<Arc<Prepared>>,
    /// Set while it is being prepared.
    job: Option<CancellationToken>,
    /// When it is tried again, after a failure.
    retry: Option<Retry>,
    /// Failures in a row.
    attempts: u32,
    /// The operation that waited for it when the last attempt began.
    asked_by: Option<OperationId>,
    /// Its bundle was damaged here and is asked for once more.
    resent: bool,
    /// How far its release command is, for the operation that ran it last.
    once: Option<OnceReport>,
    /// Set while that runs.
    once_job: Option<CancellationToken>,
}

/// The next attempt: when, and what the report says of that.
#[derive(Clone, Copy)]
struct Retry {
    due: Instant,
    at: Timestamp,
}

/// An instance that could not be started or stopped.
struct Trouble {
    release: ReleaseNumber,
    incarnation: Incarnation,
    failure: Failure,
    attempts: u32,
    retry_at: Instant,
    since: Timestamp,
}

impl Release {
    fn new(phase: ReleasePhase) -> Self {
        Self {
            phase,
            since: clock::now(),
            prepared: None,
            job: None,
            retry: None,
            attempts: 0,
            asked_by: None,
            resent: false,
            once: None,
            once_job: None,
        }
    }

    /// Whether something from outside has to come first: the bundle.
    fn waits(&self) -> bool {
        self.job.is_none()
            && matches!(
                self.phase,
                ReleasePhase::NeedsBundle | ReleasePhase::Unpacking
            )
    }

    fn enter(&mut self, phase: ReleasePhase) {
        if self.phase != phase {
            self.phase = phase;
            self.since = clock::now();
        }
    }
}

/// Grows from 1 s to a minute: instances that cannot be started.
fn pause_after(attempts: u32) -> Duration {
    Duration::from_secs(1 << attempts.min(6)).min(Duration::from_mins(1))
}

/// Grows from 10 s to five minutes for releases that wait for room on the disk, and to an hour for all
/// others: a build that never gets through costs as much each time.
fn release_pause_after(attempts: u32, full_disk: bool) -> Duration {
    let most = Duration::from_mins(if full_disk { 5 } else { 60 });
    Duration::from_secs(10 << attempts.min(9)).min(most)
}

/// Why orders, or whose they are, did not get to the disk.
fn not_written(error: &std::io::Error) -> Problem {
    let detail = format!("The orders could not be written: {error}.");
    if error.kind() == std::io::ErrorKind::StorageFull {
        let title = "The host has no room for its orders";
        return Problem::new(507, "disk-full", title, detail);
    }
    Problem::internal(detail)
}

impl Host {
    /// The host with the orders it holds on disk.
    pub fn new(
        layout: Layout,
        blobs: Blobs,
        workshop: Workshop,
        runs: Runs,
        facts: Facts,
        orders: HostOrders,
        whose: Whose,
    ) -> Self {
        Self {
            layout,
            blobs,
            workshop,
            runtime: runs.instances,
            edge: runs.edge,
            facts,
            digest: OnceLock::new(),
            id: whose.agent,
            state: Mutex::new(State {
                owner: whose.owner,
                orders: Arc::new(orders),
                releases: BTreeMap::new(),
                troubles: BTreeMap::new(),
                since: BTreeMap::new(),
                closing: false,
            }),
            wake: Notify::new(),
            changed: watch::Sender::new(0),
            sequence: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes stock of the releases on disk. Call it once, before [`Host::converge`].
    pub fn recover(&self) -> std::io::Result<()> {
        self.recover_releases()?;
        self.recover_once();
        Ok(())
    }

    /// The orders in force.
    pub fn orders(&self) -> Arc<HostOrders> {
        Arc::clone(&self.state().orders)
    }

    /// Takes new orders: on disk first, then in force.
    pub fn accept(&self, new: HostOrders) -> Result<(), Problem> {
        let mut state = self.state();
        if state.closing {
            return Err(Problem::conflict(
                "uninstalling",
                "This host is being uninstalled and takes no orders.",
            ));
        }
        let who = new.controller.as_ref();
        owner::admit(state.owner.as_ref(), who.map(|who| &who.id))?;
        let changed = orders::check(&state.orders, &new)?;
        // First: orders of one controller in the hands of another would be ended by it.
        if let Some(who) = who
            && let Some(owner) = owner::succeed(state.owner.as_ref(), who)
        {
            self.belong(&mut state, owner)?;
        }
        if !changed {
            return Ok(());
        }
        // Under the lock, so that what is on disk and what is in force change in the same order.
        orders::store(&self.layout.orders(), &new).map_err(|error| not_written(&error))?;
        tracing::info!(
            generation = new.generation.0,
            releases = new.releases.len(),
            instances = new.instances.len(),
            "took new orders"
        );
        state.orders = Arc::new(new);
        drop(state);
        self.wake();
        self.touch();
        Ok(())
    }

    /// Makes the host a controller's own, if it is nobody's, its own already, or taken over.
    pub fn claim(&self, claim: &Claim) -> Result<(), Problem> {
        let mut state = self.state();
        if let Some(owner) = owner::claimed(state.owner.as_ref(), claim)? {
            self.belong(&mut state, owner)?;
        }
        drop(state);
        self.touch();
        Ok(())
    }

    /// Whether this host does what a controller says.
    pub fn admit(&self, controller: Option<&ControllerId>) -> Result<(), Problem> {
        owner::admit(self.state().owner.as_ref(), controller)
    }

    /// Under the lock, so that what is on disk and what is in force change in the same order.
    fn belong(&self, state: &mut State, owner: Owner) -> Result<(), Problem> {
        files::write_json(&self.layout.owner(), &owner, 0o600)
            .map_err(|error| not_written(&error))?;
        match &state.owner {
            Some(before) if before.controller.id != owner.controller.id => {
                tracing::warn!(from = %before.controller, to = %owner.controller, "this host was taken over");
            }
            _ => tracing::info!(controller = %owner.controller, "this host's controller"),
        }
        state.owner = Some(owner);
        Ok(())
    }

    /// Orders nothing from now on, for good; done when no instance is left or after `patience`.
    pub async fn empty(&self, patience: Duration) -> bool {
        {
            let mut state = self.state();
            state.closing = true;
            state.orders = Arc::new(HostOrders {
                generation: state.orders.generation,
                ..HostOrders::default()
            });
        }
        let mut changes = self.changed.subscribe();
        let mut seen = self.runtime.changes();
        self.wake();
        self.touch();
        let gone = async {
            while !self.runtime.observe().is_empty()
                || !self.state().releases.is_empty()
                || !self.edge.is_gone()
            {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = seen.changed() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        };
        tokio::time::timeout(patience, gone).await.is_ok()
    }

    /// Has the loop look again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Changes whenever a report would.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Has a report go out.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}
