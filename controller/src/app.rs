//! What every part of the controller shares.

use crate::auth::Tokens;
use crate::links::Links;
use crate::observations::Observations;
use crate::services::certificates::Shown;
use crate::services::hosts::Removals;
use crate::time::Time;
use beanpole_daemon::clock;
use beanpole_engine::{Call, Engine};
use beanpole_fleet::bootstrap::Executables;
use beanpole_fleet::ssh::ControllerKey;
use beanpole_protocol::agent::ControllerIdentity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{RequestId, api};
use beanpole_store::blobs::Blobs;
use beanpole_store::{Store, StoreError};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// Uploads, downloads and backups at a time.
pub(crate) const TRANSFERS: usize = 64;
/// How long another one waits for its place.
const TRANSFER_WAIT: Duration = Duration::from_secs(20);

/// Cheap to clone: clones are the same controller.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) engine: Engine,
    pub(crate) observations: Observations,
    pub(crate) time: Time,
    pub(crate) links: Links,
    pub(crate) removals: Removals,
    pub(crate) certificates: Shown,
    pub(crate) tokens: Tokens,
    pub(crate) identity: ControllerIdentity,
    pub(crate) controller_key: ControllerKey,
    pub(crate) executables: Executables,
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The default domain.
    pub(crate) domain: String,
    /// Whether an agent, and a proxy, on this machine belong to this controller.
    pub(crate) expects: Expects,
    pub(crate) stop: CancellationToken,
    /// Changes whenever events may have been written.
    pub(crate) news: watch::Sender<u64>,
    /// Told when a bundle may have become unneeded.
    pub(crate) unneeded: Notify,
    /// Uploads, downloads and backups under way. Each holds a thread that may wait for its caller, and
    /// every other call needs such a thread, too.
    pub(crate) transfers: Arc<Semaphore>,
    /// Wakes the engine's thread. A wake carries no data and one that waits is enough.
    pub(crate) wakes: SyncSender<()>,
}

/// Which daemons on this machine belong to the controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expects {
    pub(crate) agent: bool,
    pub(crate) proxies: usize,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// A place among the transfers, after a wait if need be.
    pub(crate) async fn transfer(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.transfers).acquire_owned();
        match tokio::time::timeout(TRANSFER_WAIT, place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Problem::new(
                503,
                "too-many-transfers",
                "Too many uploads and downloads at once",
                format!("{TRANSFERS} uploads, downloads and backups are under way, and none of them ended within {} s.", TRANSFER_WAIT.as_secs()),
            )
            .hint("Try again when some of them are over.")),
        }
    }

    /// Lets the engine look at everything again.
    pub(crate) fn wake(&self) {
        // Full means that a wake is waiting already.
        let _ = self.wakes.try_send(());
    }

    /// Lets those who follow events look for new ones.
    pub(crate) fn tell_news(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    /// Runs what touches the disk on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&App) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = self.clone();
        let span = Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(|| work(&app)))
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "a call's work broke down");
                Err(Problem::internal(
                    "The controller could not finish the call.",
                ))
            })
    }

    /// Makes a change through the engine: an operation, accepted and on disk when this returns.
    pub(crate) async fn operate(
        &self,
        request_id: RequestId,
        change: impl FnOnce(&Engine, &Call<'_>) -> Result<api::Operation, Problem> + Send + 'static,
    ) -> Result<api::Operation, Problem> {
        self.changed(request_id, move |engine, call| {
            let operation = change(engine, call)?;
            tracing::info!(
                operation = %operation.id,
                environment = %operation.environment_name,
                kind = %operation.kind,
                "operation accepted"
            );
            Ok(operation)
        })
        .await
    }

    /// Changes something through the engine, which looks at it at once.
    pub(crate) async fn changed<A: Send + 'static>(
        &self,
        request_id: RequestId,
        change: impl FnOnce(&Engine, &Call<'_>) -> Result<A, Problem> + Send + 'static,
    ) -> Result<A, Problem> {
        // Within the call's own work: a client that hangs up ends this future, and not that.
        self.called(request_id, |app, call| {
            let answer = change(&app.engine, call)?;
            app.wake();
            app.tell_news();
            Ok(answer)
        })
        .await
    }

    /// Asks the engine, with what is observed and the time of now.
    pub(crate) async fn called<A: Send + 'static>(
        &self,
        request_id: RequestId,
        ask: impl FnOnce(&Self, &Call<'_>) -> Result<A, Problem> + Send + 'static,
    ) -> Result<A, Problem> {
        self.blocking(move |app| {
            let _keeps_its_time = app.time.call();
            let observed = app.observations.snapshot();
            let call = Call {
                request_id,
                now: app.time.now(),
                bits: clock::random_bits(),
                observed: &observed,
            };
            ask(app, &call)
        })
        .await
    }
}

/// A failure of the store as users meet it; the cause goes to the log.
pub(crate) fn store_problem(error: StoreError) -> Problem {
    error.problem()
}

/// Why a transaction of a service did not happen.
pub(crate) enum Refused {
    Store(StoreError),
    Problem(Box<Problem>),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => store_problem(error),
            Refused::Problem(problem) => *problem,
        }
    }
}
