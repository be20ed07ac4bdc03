//! The releases' side of a turn: what to prepare, what to drop.

use super::work::{Done, Work};
use super::{Host, Release, Retry, State, release_pause_after};
use crate::containers;
use crate::fences::FenceError;
use crate::release::{Fault, Job, Prepared, build};
use crate::remove;
use beanpole_daemon::clock;
use beanpole_protocol::agent::{HostOrders, ReleaseKey, ReleaseOrder, ReleasePhase};
use beanpole_protocol::{ApplicationName, Digest, EnvironmentId, InstanceId, ReleaseNumber};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Releases prepared at once: unpacking and installing keep a small machine busy enough.
const AT_ONCE: usize = 2;

impl Host {
    /// What an earlier agent left half done goes away; what it finished counts.
    pub(super) fn recover_releases(&self) -> io::Result<()> {
        build::end_leftovers(&self.layout.builds())?;
        let mut found = Vec::new();
        for environment in fs::read_dir(self.layout.releases())? {
            let environment = environment?;
            let name = environment.file_name().to_string_lossy().into_owned();
            let Ok(id) = EnvironmentId::new(name) else {
                continue;
            };
            for entry in fs::read_dir(environment.path())? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                match name.parse::<u64>() {
                    Ok(number) => found.push(ReleaseKey {
                        environment: id.clone(),
                        number: ReleaseNumber(number),
                    }),
                    // Half a preparation: the sweep removes it, which may take its time.
                    Err(_) if remove::is_aside(&entry.path()) => {}
                    Err(_) => drop(remove::set_aside(&entry.path())?),
                }
            }
        }
        let mut state = self.state();
        for key in found {
            let release = match self.workshop.load(&key) {
                Some(prepared) => {
                    let mut release = Release::new(ReleasePhase::Ready);
                    release.prepared = Some(Arc::new(prepared));
                    release
                }
                None => Release::new(ReleasePhase::NeedsBundle),
            };
            state.releases.insert(key, release);
        }
        Ok(())
    }

    /// Starts preparations of what is ordered and not there.
    pub(super) fn prepare_releases(self: &Arc<Self>, work: &mut Work) {
        let mut changed = false;
        let mut state = self.state();
        let orders = Arc::clone(&state.orders);
        for order in &orders.releases {
            let running = state.releases.values().filter(|r| r.job.is_some()).count();
            let release = state.releases.entry(order.key.clone()).or_insert_with(|| {
                changed = true;
                Release::new(ReleasePhase::NeedsBundle)
            });
            if release.is_tried_again(order) {
                release.retry = None;
                release.enter(ReleasePhase::NeedsBundle);
                changed = true;
            }
            if release.is_of_another_bundle(order) {
                if !matches!(release.phase, ReleasePhase::Failed(_)) {
                    release.asked_by.clone_from(&order.asked_by);
                    let fault = Fault::other_bundle(order);
                    tracing::warn!(environment = %order.key.environment, release = order.key.number.0, %fault, "a release is not what is ordered");
                    release.fail(fault);
                    changed = true;
                }
                continue;
            }
            if release.prepared.is_some() && !matches!(release.phase, ReleasePhase::Ready) {
                release.retry = None;
                release.enter(ReleasePhase::Ready);
                changed = true;
            }
            let waits = matches!(release.phase, ReleasePhase::NeedsBundle)
                || matches!(release.phase, ReleasePhase::Unpacking) && release.job.is_none();
            if !waits {
                continue;
            }
            release.asked_by.clone_from(&order.asked_by);
            if !self.blobs.status(&order.bundle).complete {
                if let Err(error) = self.blobs.room_for(&order.bundle, order.bundle_size) {
                    let message = format!("The bundle does not fit on this host: {error}.");
                    tracing::warn!(environment = %order.key.environment, release = order.key.number.0, "{message}");
                    release.fail(Fault::new("disk-full", message));
                    changed = true;
                }
                continue;
            }
            changed |= !matches!(release.phase, ReleasePhase::Unpacking);
            release.enter(ReleasePhase::Unpacking);
            if running < AT_ONCE && work.may_build() {
                let cancel = CancellationToken::new();
                release.job = Some(cancel.clone());
                work.start(Self::prepare(Arc::clone(self), order.clone(), cancel));
            }
        }
        drop(state);
        if changed {
            self.touch();
        }
    }

    async fn prepare(self: Arc<Self>, order: ReleaseOrder, cancel: CancellationToken) -> Done {
        let key = order.key.clone();
        let (host, named) = (Arc::clone(&self), key.clone());
        let progress = move |phase| {
            if let Some(release) = host.state().releases.get_mut(&named) {
                release.enter(phase);
            }
            host.touch();
        };
        let digest = order.bundle.clone();
        let bundle = self.blobs.path(&digest);
        let _ = fs::remove_file(self.layout.build_log(&key));
        let user = {
            let (fences, application) = (self.workshop.fences.clone(), order.application.clone());
            tokio::task::spawn_blocking(move || fences.user(&application)).await
        };
        let user = user.unwrap_or_else(|error| Err(FenceError::User(error.to_string())));
        let outcome = match user {
            Err(error) => Err(Fault::new("fence-failed", format!("{error}."))),
            Ok(user) => {
                let job = Job {
                    order,
                    user,
                    cancel,
                    progress: Box::new(progress),
                };
                self.workshop.prepare(&job, &bundle).await
            }
        };
        Done::Prepared(key, Box::new(self.doubted(&digest, outcome).await))
    }

    /// A failure that is said to be the bundle's is the host's where its copy of it is not what was
    /// verified any more. That copy goes, so that the bundle is sent again.
    async fn doubted(
        self: &Arc<Self>,
        bundle: &Digest,
        outcome: Result<Prepared, Fault>,
    ) -> Result<Prepared, Fault> {
        let Err(fault) = outcome else { return outcome };
        if !fault.blames_the_bundle() {
            return Err(fault);
        }
        let (host, digest) = (Arc::clone(self), bundle.clone());
        let dropped = tokio::task::spawn_blocking(move || host.blobs.remove_damaged(&digest)).await;
        match dropped {
            Ok(Ok(true)) => Err(Fault::damaged_here(&fault)),
            Ok(Ok(false)) => Err(fault),
            Ok(Err(error)) => Err(Fault::io("remove", &self.blobs.path(bundle), &error)),
            Err(error) => Err(Fault::new("agent-broken", error.to_string())),
        }
    }

    /// Records how a preparation ended.
    pub(super) fn prepared(&self, key: &ReleaseKey, outcome: Result<Prepared, Fault>) {
        let mut state = self.state();
        let Some(release) = state.releases.get_mut(key) else {
            return;
        };
        release.job = None;
        match outcome {
            Ok(prepared) => {
                tracing::info!(environment = %key.environment, release = key.number.0, platform = %prepared.platform, "a release is ready");
                release.prepared = Some(Arc::new(prepared));
                release.attempts = 0;
                release.resent = false;
                release.enter(ReleasePhase::Ready);
            }
            Err(fault) if fault.0.code == "cancelled" => release.enter(ReleasePhase::NeedsBundle),
            Err(fault) if fault.is_damaged_here() && !release.resent => {
                tracing::warn!(environment = %key.environment, release = key.number.0, %fault, "a bundle is asked for again");
                release.resent = true;
                release.enter(ReleasePhase::NeedsBundle);
            }
            Err(fault) => {
                tracing::warn!(environment = %key.environment, release = key.number.0, %fault, "a release cannot be prepared");
                release.fail(fault);
            }
        }
        drop(state);
        self.touch();
    }

    /// Drops what is not ordered and not in use: releases, then caches and bundles.
    pub(super) fn drop_releases(self: &Arc<Self>, work: &mut Work) {
        let mut state = self.state();
        let orders = Arc::clone(&state.orders);
        let ordered: BTreeSet<&ReleaseKey> = orders.releases.iter().map(|o| &o.key).collect();
        for (key, release) in &state.releases {
            if !ordered.contains(key) {
                for job in release.job.iter().chain(&release.once_job) {
                    job.cancel();
                }
            }
        }
        if work.instances_move() {
            return;
        }
        let Some(used) = self.in_use(&orders) else {
            return;
        };
        let gone: Vec<ReleaseKey> = state
            .releases
            .iter()
            .filter(|(key, release)| {
                release.job.is_none()
                    && release.once_job.is_none()
                    && !ordered.contains(key)
                    && !used.contains(key)
            })
            .map(|(key, _)| key.clone())
            .collect();
        if gone.is_empty() || !work.may_drop() {
            return;
        }
        // Out of sight at once: an order for the same release starts from nothing.
        for key in gone {
            if let Err(error) = self.set_aside(&key) {
                tracing::warn!(environment = %key.environment, release = key.number.0, %error, "a release cannot be removed yet");
                continue;
            }
            state.releases.remove(&key);
            tracing::info!(environment = %key.environment, release = key.number.0, "dropped a release");
        }
        drop(state);
        self.touch();
        let host = Arc::clone(self);
        work.sweep(move || host.sweep());
    }

    /// Releases from which something runs; none while that cannot be told.
    fn in_use(&self, orders: &HostOrders) -> Option<BTreeSet<ReleaseKey>> {
        self.runtime
            .observe()
            .into_iter()
            .map(|seen| {
                let order = orders.instances.iter().find(|order| order.id == seen.id)?;
                Some(ReleaseKey {
                    environment: order.environment.clone(),
                    number: seen.release.unwrap_or(order.release),
                })
            })
            .collect()
    }

    fn set_aside(&self, key: &ReleaseKey) -> io::Result<()> {
        remove::set_aside(&self.layout.release(key))?;
        for path in [
            self.layout.build_log(key),
            self.layout.build_pid(key),
            self.layout.once(key),
            self.layout.once_log(key),
            self.layout.once_pid(key),
        ] {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// Removes what nothing refers to any more. Runs while nothing is being prepared.
    pub(super) fn sweep(&self) {
        if let Err(error) = self.try_sweep() {
            tracing::warn!(%error, "cleaning up did not get through");
        }
    }

    fn try_sweep(&self) -> io::Result<()> {
        let mut removed = self.runtime.sweep();
        for environment in fs::read_dir(self.layout.releases())? {
            let environment = environment?.path();
            removed = removed.and(remove::aside(&environment));
            // Only an empty one goes.
            let _ = fs::remove_dir(&environment);
        }
        let (bundles, caches) = self.state().referred();
        self.workshop.caches.sweep(&caches)?;
        let gone = self.blobs.sweep(&bundles)?;
        if gone > 0 {
            tracing::info!(gone, "removed bundles that no release needs");
        }
        self.sweep_engine();
        if let Some(trees) = self.workshop.fences.cgroups() {
            trees.remove_ownerless(|owner| self.layout.holds(owner));
        }
        // While a file of theirs is left, users stay: the next one with the same number would own it.
        removed?;
        if let Some(applications) = self.applications() {
            let edge = self.orders().edge.is_some() || !self.edge.is_gone();
            self.workshop.fences.keep_users(&applications, edge);
        }
        Ok(())
    }
}

impl Host {
    /// Removes what the Engine holds of releases and instances that are no more. Blocks.
    fn sweep_engine(&self) {
        let secret = self.layout.image_secret();
        // Without it no image was ever made here.
        if !secret.exists() {
            return;
        }
        let releases: BTreeSet<ReleaseKey> = {
            let state = self.state();
            let ordered = state.orders.releases.iter().map(|order| order.key.clone());
            ordered.chain(state.releases.keys().cloned()).collect()
        };
        let seen = self.runtime.observe().into_iter().map(|seen| seen.id);
        let ordered = self.orders();
        let ordered = ordered.instances.iter().map(|order| order.id.clone());
        let instances: BTreeSet<InstanceId> = seen.chain(ordered).collect();
        let swept = containers::clean::secret(&secret)
            .map_err(|error| error.to_string())
            .and_then(|secret| {
                let sweep = containers::clean::sweep(&secret, &releases, &instances);
                let runtime = tokio::runtime::Handle::current();
                runtime.block_on(sweep).map_err(|error| error.to_string())
            });
        if let Err(error) = swept {
            tracing::warn!(error, "images and containers that nobody needs may be left");
        }
    }

    /// The applications that have something on this host; none while something is here that is not
    /// ordered any more, since nobody knows whose it is. A release that is ordered later is prepared
    /// after the sweep, and makes its user then.
    fn applications(&self) -> Option<BTreeSet<ApplicationName>> {
        let state = self.state();
        let orders = &state.orders;
        let known = |key: &ReleaseKey| orders.releases.iter().any(|order| order.key == *key);
        let all_ordered = state.releases.keys().all(known)
            && self
                .runtime
                .observe()
                .iter()
                .all(|seen| orders.instances.iter().any(|order| order.id == seen.id));
        all_ordered.then(|| {
            let names = orders
                .releases
                .iter()
                .map(|order| order.application.clone());
            names.collect()
        })
    }
}

impl State {
    fn referred(&self) -> (BTreeSet<Digest>, BTreeSet<String>) {
        let bundles = self.orders.releases.iter().map(|o| o.bundle.clone());
        let prepared = self.releases.values().filter_map(|r| r.prepared.as_ref());
        let caches = prepared.flat_map(|p| p.caches.iter().chain(&p.keeps).cloned());
        (bundles.collect(), caches.collect())
    }
}

impl Release {
    fn fail(&mut self, fault: Fault) {
        let pause = release_pause_after(self.attempts, fault.is_full_disk());
        self.attempts = self.attempts.saturating_add(1);
        self.retry = Some(Retry {
            due: Instant::now() + pause,
            at: clock::now().after(pause),
        });
        self.resent = false;
        self.enter(ReleasePhase::Failed(fault.0));
    }

    /// Numbers do not come twice, unless records were lost. What runs is left as it is; nothing starts
    /// from the wrong tree.
    pub(super) fn is_of_another_bundle(&self, order: &ReleaseOrder) -> bool {
        let prepared = self.prepared.as_ref();
        prepared.is_some_and(|prepared| prepared.bundle != order.bundle)
    }

    /// Whether a failure has had its time: after a pause, or because an operation waits for it that did
    /// not when it failed.
    fn is_tried_again(&self, order: &ReleaseOrder) -> bool {
        let asked_anew = order.asked_by.is_some() && order.asked_by != self.asked_by;
        self.retry
            .is_some_and(|retry| asked_anew || retry.due <= Instant::now())
    }
}
