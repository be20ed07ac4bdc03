//! The heart of the controller: decides with the planner, remembers in the store.
//!
//! Two doors. *Services* ([`Engine::deploy`] and its like) check a call and write the operation with
//! its first event in one transaction; nothing is carried out. A *turn* ([`Engine::turn`]) takes every
//! open operation as far as what was observed allows, then derives what each host shall hold and the
//! routing table, with a new generation where the content changed. Links push those out and stream
//! back what they see; that wakes the next turn. So a restart, a lost message or a dead host is just
//! another turn.
//!
//! There is no clock, randomness, network or disk but the store in here: the same store, observations,
//! time and bits give the same result, which is what the simulator relies on.

mod answers;
mod apply;
mod compare;
mod derive;
mod events;
mod explain;
mod finish;
mod foretell;
mod health;
mod kept;
mod linger;
mod mend;
mod network;
mod observed;
mod pace;
mod read;
mod receipt;
mod routing;
mod services;
mod sleep;
mod traffic;
mod turn;
mod views;
mod watch;
mod withdraw;

pub use events::{Draft, emit, tell_restore};
pub use explain::Asked;
pub use kept::{Need, needed_releases};
pub use linger::with_lingering;
pub use observed::{HostObserved, Observed, ProxyObserved};
pub use pace::{Kept, Pace, Reading};
pub use read::Reader;
pub use services::{Closing, OwnPage, Target, write_application};
pub use turn::Turn;

use beanpole_planner::IllegalTransition;
use beanpole_protocol::agent::{ControllerIdentity, HostOrders};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::RoutingTable;
use beanpole_protocol::{HostId, OperationId, RequestId, Timestamp};
use beanpole_store::model::{HostOrdersRecord, TableRecord};
use beanpole_store::{Store, StoreError};
use derive::Derived;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

/// What an [`Engine`] needs to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Whose orders these are, for hosts.
    pub controller: Option<ControllerIdentity>,
    /// Environments answer at `CNAME.domain`.
    pub domain: String,
    /// The proxies' HTTP port, for URLs; 80 when absent.
    pub http_port: Option<u16>,
    /// The controller's own port, which no environment gets.
    pub api_port: Option<u16>,
    /// A host not heard of for that long is Unreachable, in milliseconds.
    pub unreachable_after_ms: u64,
    /// The instances of a host not heard of for that long are replaced elsewhere, in milliseconds.
    pub replace_after_ms: u64,
    /// Events kept per environment.
    pub events_kept: usize,
    /// Operations kept per environment, with their journals.
    pub operations_kept: usize,
    /// Releases kept per environment, beyond those that are needed.
    pub releases_kept: usize,
    /// Terminated environments kept.
    pub terminated_kept: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            controller: None,
            domain: "localhost".to_owned(),
            http_port: None,
            api_port: None,
            unreachable_after_ms: 30_000,
            replace_after_ms: 300_000,
            events_kept: 10_000,
            operations_kept: 200,
            releases_kept: 200,
            terminated_kept: 100,
        }
    }
}

/// What comes with every call of a service.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The call's id; every event of its operation carries it.
    pub request_id: RequestId,
    /// The time.
    pub now: Timestamp,
    /// Random bits, for ids.
    pub bits: u128,
    /// What is known of hosts and proxies: placement is decided when the call is accepted.
    pub observed: &'a Observed,
}

/// Why a turn failed. Nothing of what failed was written.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The journal holds what may not be: a bug.
    #[error("the journal of an operation is not consistent")]
    Journal(#[from] IllegalTransition),
}

/// Why a service did not do it.
#[derive(Debug)]
pub(crate) enum Fault {
    Store(StoreError),
    Problem(Box<Problem>),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => Self::Store(error),
            error @ EngineError::Journal(_) => Problem::internal(error.to_string()).into(),
        }
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Problem(problem) => *problem,
            Fault::Store(error) => error.problem(),
        }
    }
}

/// Called with the numbers of the journal entries that have just been recorded in one transaction,
/// before anything comes of them.
pub type Recorded = Arc<dyn Fn(&OperationId, RangeInclusive<u64>) + Send + Sync>;

/// Decides and remembers. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) config: EngineConfig,
    /// What the last derivation was made from, to leave out one that would give the same.
    pub(crate) derived: Arc<Mutex<Option<Derived>>>,
    pub(crate) recorded: Option<Recorded>,
}

impl Engine {
    /// An engine over a store.
    pub fn new(store: Store, config: EngineConfig) -> Self {
        Self {
            store,
            config,
            derived: Arc::default(),
            recorded: None,
        }
    }

    /// The same, and `recorded` is called with what it records in journals. For tests.
    #[must_use]
    pub fn telling(self, recorded: Recorded) -> Self {
        Self {
            recorded: Some(recorded),
            ..self
        }
    }

    /// What a host shall hold; generation 0 and empty before the first turn that knows the host.
    pub fn host_orders(&self, host: &HostId) -> Result<HostOrders, EngineError> {
        let stored: Option<HostOrdersRecord> = self.store.get(&HostOrdersRecord::key_of(host))?;
        Ok(stored.map(|record| record.orders).unwrap_or_default())
    }

    /// Where every request goes; generation 0 and empty before the first turn.
    pub fn routing_table(&self) -> Result<RoutingTable, EngineError> {
        let stored: Option<TableRecord> = self.store.get(&TableRecord::the_key())?;
        Ok(stored.map(|record| record.table).unwrap_or_default())
    }
}
