//! Watches over an instance's ports, see [`super::super::port`].

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

    /// Looks at the ports for as long as these very processes run: until all are their own often, and then now and
    /// then, for a process may stop to listen and go on.
    async fn secure(&self, instance: &Instance, spec: ShimSpec, runs: &Runs) {
        let ports = ports_of(&spec);
        let began = Instant::now();
        let (mut strange, mut secure, mut told_taken) = (0, false, false);
        while instance.runs().as_ref() == Some(runs) {
            let (shim, group, numbers) = (runs.shim, spec.cgroup.clone(), ports.clone());
            let looks = tokio::task::spawn_blocking(move || {
                let looks = numbers.into_iter();
                looks
                    .map(|number| (number, port::look(number, shim, group.as_ref())))
                    .collect::<Vec<_>>()
            });
            let looks = looks.await.unwrap_or_default();
            let Some((number, look)) = instance.verdict(&looks, shim) else {
                return;
            };
            let taken = look.port == PortUse::Taken;
            strange = if taken { strange + 1 } else { 0 };
            // Of those that had them all nothing but a stranger counts, and that it has left.
            let counts = if taken {
                strange == SURE_AFTER
            } else {
                !secure || told_taken
            };
            let all_own = looks.iter().all(|(_, look)| look.port == PortUse::Own);
            secure |= all_own;
            if counts {
                told_taken = taken;
                self.found(instance, *number, look, (runs, all_own));
            }
            let pace = PACE.iter().find(|(until, _)| began.elapsed() < *until);
            let mut pause = pace.map_or(PACE[3].1, |(_, pause)| *pause);
            if strange > 0 {
                pause = SURE_PAUSE;
            } else if secure {
                pause = PACE[3].1;
            }
            let mut changes = instance.changed.subscribe();
            // A process that ended ends the pause.
            let _ = tokio::time::timeout(pause, async {
                while instance.runs().as_ref() == Some(runs) && changes.changed().await.is_ok() {}
            })
            .await;
        }
    }

    fn found(&self, instance: &Instance, number: u16, look: &Look, (runs, all_own): (&Runs, bool)) {
        let taken = look.port == PortUse::Taken;
        {
            let mut known = lock(&instance.known);
            if all_own {
                known.had_its_ports = Some(runs.shim);
            }
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

    /// What looks at all its ports come to, and of which port that is; the first is that of the web process. One of
    /// its further processes that is started again takes nothing from what had all its ports once.
    fn verdict<'l>(&self, looks: &'l [(u16, Look)], shim: i32) -> Option<&'l (u16, Look)> {
        let is = |wanted: PortUse| move |(_, look): &&(u16, Look)| look.port == wanted;
        let web = looks.first()?;
        if let Some(taken) = looks.iter().find(is(PortUse::Taken)) {
            return Some(taken);
        }
        if web.1.port != PortUse::Own || lock(&self.known).had_its_ports == Some(shim) {
            return Some(web);
        }
        let missing = looks.iter().find(|(_, look)| look.port != PortUse::Own);
        Some(missing.unwrap_or(web))
    }

    /// What runs and has ports to watch over.
    fn port_to_watch(&self) -> Option<(ShimSpec, Runs)> {
        let runs = lock(&self.known).runs()?;
        let path = self.directory.join(files::SPEC);
        let spec: ShimSpec = beanpole_daemon::files::read_json(&path).ok().flatten()?;
        (!ports_of(&spec).is_empty()).then_some((spec, runs))
    }
}

/// The ports of an instance that is to listen on some: that of its web process, then those of further ones.
fn ports_of(spec: &ShimSpec) -> Vec<u16> {
    let web = spec.processes.iter().any(|process| process.name == WEB);
    let port = spec.environment.0.get("PORT").filter(|_| web);
    let Some(port) = port.and_then(|port| port.parse().ok()) else {
        return Vec::new();
    };
    let further = spec.ports.values().copied();
    std::iter::once(port).chain(further).collect()
}

pub(super) fn has_web(processes: &[crate::runtime::ProcessSpec]) -> bool {
    processes.iter().any(|process| process.name == WEB)
}
