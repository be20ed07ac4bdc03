//! The release commands' side of a turn: each is started at most once for its operation.

use super::work::{Done, Work};
use super::{Host, Release};
use crate::fences::FenceError;
use crate::release::once::Once;
use crate::release::{Fault, Prepared};
use beanpole_daemon::clock;
use beanpole_protocol::agent::{
    OnceOrder, OncePhase, OnceReport, ReleaseKey, ReleaseOrder, ReleasePhase,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The code of an order that an agent finds at its start and that was not begun.
const NOT_STARTED: &str = "release-command-not-started";
const NOT_STARTED_SAID: &str =
    "The agent was started again before it had begun. Nothing was run: deploy again.";
/// The code of a command that an agent finds at its start and that was begun.
const INTERRUPTED: &str = "release-command-interrupted";
const INTERRUPTED_SAID: &str = "The agent was started again while it ran, which ended it. It is not \
                                known whether it ran to its end: look at what it changes, such as \
                                the database, then deploy again, which runs it again.";

impl Host {
    /// Takes stock of the release commands that an earlier agent was told to run. None is started
    /// that it has left: by the orders on disk, which may be old, its deployment may be over by now.
    pub(super) fn recover_once(&self) {
        let mut state = self.state();
        let orders = Arc::clone(&state.orders);
        for order in &orders.releases {
            let wanted = self.is_told(order);
            let not_started = |wanted| ended(wanted, NOT_STARTED, NOT_STARTED_SAID);
            let (report, known) = match self.workshop.recall_once(order) {
                // What was run for an operation before says nothing of this one.
                Ok(Some(report)) => match wanted.filter(|one| one.operation != report.operation) {
                    Some(wanted) => (not_started(wanted), false),
                    None if report.phase == OncePhase::Running => {
                        let fault = Fault::new(INTERRUPTED, INTERRUPTED_SAID);
                        let phase = OncePhase::Failed(fault.0);
                        (OnceReport { phase, ..report }, false)
                    }
                    None => (report, true),
                },
                Ok(None) => match wanted {
                    Some(wanted) => (not_started(wanted), false),
                    None => continue,
                },
                Err(error) => {
                    tracing::warn!(%error, "the record of a release command is of no use");
                    match wanted {
                        Some(wanted) => (ended(wanted, INTERRUPTED, INTERRUPTED_SAID), false),
                        None => continue,
                    }
                }
            };
            if !known {
                self.remember(order, &report);
            }
            let release = state.releases.entry(order.key.clone());
            let release = release.or_insert_with(|| Release::new(ReleasePhase::NeedsBundle));
            release.once = Some(report);
        }
    }

    /// The order to run a release command, if it is for this agent.
    fn is_told<'o>(&self, order: &'o ReleaseOrder) -> Option<&'o OnceOrder> {
        let wanted = order.run_once.as_ref();
        wanted.filter(|wanted| wanted.agent == self.id)
    }

    fn remember(&self, order: &ReleaseOrder, report: &OnceReport) {
        if let Err(error) = self.workshop.remember_once(order, report) {
            tracing::warn!(environment = %order.key.environment, release = order.key.number.0, %error, "how a release command ended could not be written down");
        }
    }

    /// Starts release commands that are ordered and were not started for their operation, and ends
    /// those that are not wanted any more.
    pub(super) fn run_release_commands(self: &Arc<Self>, work: &mut Work) {
        let mut changed = false;
        let mut state = self.state();
        let orders = Arc::clone(&state.orders);
        for order in &orders.releases {
            let Some(release) = state.releases.get_mut(&order.key) else {
                continue;
            };
            let wanted = self.is_told(order);
            if let Some(job) = &release.once_job {
                let runs = release.once.as_ref().map(|once| &once.operation);
                if wanted.map(|wanted| &wanted.operation) != runs {
                    job.cancel();
                }
                continue;
            }
            let Some(wanted) = wanted else { continue };
            let told_before = release
                .once
                .as_ref()
                .is_some_and(|once| once.operation == wanted.operation);
            if told_before || release.is_of_another_bundle(order) || !work.may_build() {
                continue;
            }
            let Some(prepared) = release.ready() else {
                continue;
            };
            let report = OnceReport {
                operation: wanted.operation.clone(),
                phase: OncePhase::Running,
                since: clock::now(),
            };
            tracing::info!(environment = %order.key.environment, release = order.key.number.0, operation = %wanted.operation, "runs a release command");
            let cancel = CancellationToken::new();
            release.once_job = Some(cancel.clone());
            release.once = Some(report.clone());
            work.start(Self::run_release_command(
                Arc::clone(self),
                order.clone(),
                prepared,
                report,
                cancel,
            ));
            changed = true;
        }
        drop(state);
        if changed {
            self.touch();
        }
    }

    async fn run_release_command(
        self: Arc<Self>,
        order: ReleaseOrder,
        prepared: Arc<Prepared>,
        begun: OnceReport,
        cancel: CancellationToken,
    ) -> Done {
        let user = {
            let (fences, application) = (self.workshop.fences.clone(), order.application.clone());
            tokio::task::spawn_blocking(move || fences.user(&application)).await
        };
        let user = user.unwrap_or_else(|error| Err(FenceError::User(error.to_string())));
        let outcome = match user {
            Err(error) => Err(Fault::new("fence-failed", format!("{error}."))),
            Ok(user) => {
                let once = Once {
                    order: &order,
                    prepared: &prepared,
                    user,
                    cancel: &cancel,
                };
                // On disk first: what is not recorded must not run.
                let begin = || self.workshop.remember_once(&order, &begun);
                self.workshop.run_once(&once, begin).await
            }
        };
        let phase = match outcome {
            Ok(log) => OncePhase::Succeeded { log },
            Err(fault) => OncePhase::Failed(fault.0),
        };
        let report = OnceReport {
            operation: begun.operation,
            phase,
            since: clock::now(),
        };
        self.remember(&order, &report);
        Done::Once(order.key, report)
    }

    /// Takes down how a release command ended.
    pub(super) fn ran_once(&self, key: &ReleaseKey, report: OnceReport) {
        match &report.phase {
            OncePhase::Failed(failure) => {
                tracing::warn!(environment = %key.environment, release = key.number.0, code = failure.code, "a release command failed: {}", failure.message);
            }
            _ => {
                tracing::info!(environment = %key.environment, release = key.number.0, "a release command succeeded");
            }
        }
        if let Some(release) = self.state().releases.get_mut(key) {
            release.once_job = None;
            release.once = Some(report);
        }
        self.touch();
    }
}

impl Release {
    /// What was prepared, once instances could start from it.
    fn ready(&self) -> Option<Arc<Prepared>> {
        let prepared = self.prepared.as_ref();
        prepared
            .filter(|_| self.phase == ReleasePhase::Ready)
            .cloned()
    }

    /// Whether it has something that runs once and could be run.
    pub(super) fn has_release_command(&self) -> bool {
        self.ready().is_some_and(|prepared| prepared.runs_once())
    }

    /// Whether it is ready and its host was set up for it.
    pub(super) fn is_set_up(&self) -> bool {
        self.ready().is_some_and(|prepared| prepared.set_up)
    }

    /// Whether it is ready and its container commands have run.
    pub(super) fn ran_container_commands(&self) -> bool {
        self.ready()
            .is_some_and(|prepared| prepared.ran_container_commands)
    }
}

fn ended(wanted: &OnceOrder, code: &str, message: &str) -> OnceReport {
    OnceReport {
        operation: wanted.operation.clone(),
        phase: OncePhase::Failed(Fault::new(code, message).0),
        since: clock::now(),
    }
}
