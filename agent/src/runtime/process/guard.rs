//! Watches over an instance's port while it starts, see [`super::super::port`].

use super::{Instance, Known, ProcessRuntime, lock};
use crate::runtime::port::{self, Look};
use crate::shim::spec::{ShimSpec, WEB, files};
use crate::shim::wire::Stage;
use beanpole_daemon::clock::now;
use beanpole_protocol::agent::PortUse;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Looks in a row that must find a stranger: between two looks at `/proc` a process of the instance
/// may have been born.
const SURE_AFTER: u32 = 3;
/// The pause between these looks.
const SURE_PAUSE: Duration = Duration::from_millis(250);
/// How often to look, by how long ago the processes were started: often while a deployment waits, and
/// rarely at an app that does not listen at all.
const PACE: [(Duration, Duration); 4] = [
    (Duration::from_secs(2), Duration::from_millis(50)),
    (Duration::from_secs(15), Duration::from_millis(250)),
    (Duration::from_mins(2), Duration::from_secs(1)),
    (Duration::MAX, Duration::from_secs(10)),
];

impl ProcessRuntime {
    /// Sees to it that a task watches over the instance's port for as long as its shim is watched.
    pub(super) fn guard(&self, instance: &Arc<Instance>) {
        if std::mem::replace(&mut lock(&instance.known).guarded, true) {
            return;
        }
        let (runtime, instance) = (self.clone(), Arc::clone(instance));
        tokio::spawn(async move {
            let mut changes = instance.changed.subscribe();
            while !instance.guard_ends() {
                changes.borrow_and_update();
                match instance.port_to_watch() {
                    Some((spec, runs)) => runtime.secure(&instance, spec, &runs).await,
                    None => {
                        if changes.changed().await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }

    /// Looks at the port until these very processes have it, or are not the ones that run any more.
    async fn secure(&self, instance: &Instance, spec: ShimSpec, runs: &Runs) {
        let Some(number) = port_of(&spec) else { return };
        let began = Instant::now();
        let mut strange = 0;
        while instance.runs().as_ref() == Some(runs) {
            let (shim, group) = (runs.shim, spec.cgroup.clone());
            let look =
                tokio::task::spawn_blocking(move || port::look(number, shim, group.as_ref()));
            let look = look.await.unwrap_or_else(|_| Look::unknown());
            strange = match look.port {
                PortUse::Taken => strange + 1,
                _ => 0,
            };
            if look.port != PortUse::Taken || strange == SURE_AFTER {
                self.found(instance, number, &look, runs);
            }
            if look.port == PortUse::Own {
                return;
            }
            let pace = PACE.iter().find(|(until, _)| began.elapsed() < *until);
            let mut pause = pace.map_or(PACE[3].1, |(_, pause)| *pause);
            if strange > 0 {
                pause = SURE_PAUSE;
            }
            let mut changes = instance.changed.subscribe();
            // A process that ended ends the pause.
            let _ = tokio::time::timeout(pause, async {
                while instance.runs().as_ref() == Some(runs) && changes.changed().await.is_ok() {}
            })
            .await;
        }
    }

    fn found(&self, instance: &Instance, number: u16, look: &Look, runs: &Runs) {
        let taken = look.port == PortUse::Taken;
        {
            let known = lock(&instance.known);
            if known.port_seen.as_ref() == Some(runs)
                && known.port == look.port
                && known.taken.is_some() == taken
            {
                return;
            }
        }
        let failure = taken.then(|| (look.failure(number), now()));
        if let Some((failure, _)) = &failure {
            tracing::warn!(instance = %instance.id, "{}", failure.message);
        }
        self.note(instance, |known| {
            known.port = look.port;
            known.port_seen = Some(runs.clone());
            known.taken = failure;
        });
    }
}

/// The processes of an instance, as far as its port is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    shim: i32,
    processes: Vec<Option<i32>>,
}

impl Known {
    /// Who uses the port of what runs now.
    pub(super) fn port_use(&self) -> PortUse {
        let web = self
            .status
            .iter()
            .flat_map(|status| &status.processes)
            .any(|process| process.name == WEB);
        match self.runs() {
            Some(runs) if self.port_seen.as_ref() == Some(&runs) => self.port,
            // Not looked at yet.
            Some(_) if web => PortUse::Free,
            _ => PortUse::Unknown,
        }
    }

    pub(super) fn runs(&self) -> Option<Runs> {
        let status = self.status.as_ref()?;
        (status.stage == Stage::Supervising).then(|| Runs {
            shim: status.shim.pid,
            processes: status
                .processes
                .iter()
                .map(|process| process.running.map(|one| one.pid))
                .collect(),
        })
    }
}

impl Instance {
    fn runs(&self) -> Option<Runs> {
        lock(&self.known).runs()
    }

    /// Whether nobody watches the shim any more; then the task that asks ends, and another one may begin.
    fn guard_ends(&self) -> bool {
        let mut known = lock(&self.known);
        if !known.watched {
            known.guarded = false;
        }
        !known.watched
    }

    /// What runs, when its port is not known to be its own yet.
    fn port_to_watch(&self) -> Option<(ShimSpec, Runs)> {
        let runs = {
            let known = lock(&self.known);
            let runs = known.runs()?;
            if known.port == PortUse::Own && known.port_seen.as_ref() == Some(&runs) {
                return None;
            }
            runs
        };
        let path = self.directory.join(files::SPEC);
        let spec: ShimSpec = beanpole_daemon::files::read_json(&path).ok().flatten()?;
        port_of(&spec)?;
        Some((spec, runs))
    }
}

/// The port of an instance that is to listen on one.
fn port_of(spec: &ShimSpec) -> Option<u16> {
    let web = spec.processes.iter().any(|process| process.name == WEB);
    let port = spec.environment.0.get("PORT").filter(|_| web)?;
    port.parse().ok()
}

pub(super) fn has_web(processes: &[crate::runtime::ProcessSpec]) -> bool {
    processes.iter().any(|process| process.name == WEB)
}
