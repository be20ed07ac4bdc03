//! Instances as plain processes, each instance under a shim of its own.
//!
//! A task per instance watches its shim. When a shim dies without having been told to, the task
//! ends what it left and starts the instance anew. What is on disk is enough to go on after a
//! restart of the agent: the spec, the state file, the socket.

mod guard;

use super::client::Client;
use super::recover::{self, MARK};
use super::{InstanceSpec, RunsAs, Runtime, RuntimeError, Workload, port, tail};
use crate::containers;
use crate::fences::Fences;
use crate::fences::users::User;
use crate::remove;
use crate::shim::spec::{self, Backoff, LogBounds, Program, ShimSpec, VERSION, files};
use crate::shim::wire::{Op, Stage, Status};
use crate::sys;
use beanpole_daemon::clock::now;
use beanpole_protocol::agent::{InstancePhase, InstanceReport, PortUse, ProcessReport, Properties};
use beanpole_protocol::{InstanceId, Timestamp};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a shim may take to start its processes.
const START: Duration = Duration::from_secs(15);
/// On top of the grace period: what SIGKILL and tidying up may take.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Pauses before a shim that cannot be started anew is tried again: doubled from the first to the
/// last.
const RECOVER_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A shim that lives but cannot be heard is looked for again this often, with this pause, before it
/// counts as dead.
const DEAF_LOOKS: u32 = 40;
const DEAF_PAUSE: Duration = Duration::from_millis(50);
/// An instance's last lines are reported for this long after it was started, too: that is when a
/// deployment may have to tell why it is not healthy.
const YOUNG: Duration = Duration::from_mins(15);
/// Where programs are looked for when the release brings no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How to start a shim; the path of its spec is added as the last argument.
#[derive(Clone, Debug)]
pub struct ShimProgram {
    /// The executable.
    pub program: PathBuf,
    /// What comes before the spec's path.
    pub arguments: Vec<String>,
    /// How many files it, and what it runs, may have open (the soft limit); none: as many as this
    /// process.
    pub open_files: Option<u64>,
}

impl ShimProgram {
    /// The executable that runs now, even when another has taken its place on disk: an upgrade
    /// must not break the starts of the agent that it replaces.
    pub fn current() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec!["shim".to_owned()],
            open_files: None,
        }
    }

    /// Starts it with nothing of this process: `last` is its last argument.
    pub(crate) fn command(&self, last: impl AsRef<OsStr>) -> tokio::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command
            // The path may be `/proc/self/exe`, which tells nobody anything in a list of processes.
            .arg0("beanpole")
            .args(&self.arguments)
            .arg(last)
            .env_clear()
            .current_dir("/");
        if let Some(most) = self.open_files {
            sys::allow_open_files(&mut command, most);
        }
        command.into()
    }
}

/// Settings of a [`ProcessRuntime`].
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// A directory per instance is made in here. Its parents must let other users through where
    /// instances run as users of their own.
    pub directory: PathBuf,
    /// How to start a shim.
    pub shim: ShimProgram,
    /// Bounds of the logs.
    pub logs: LogBounds,
    /// Pauses before processes are started again.
    pub backoff: Backoff,
}

impl ProcessSettings {
    /// With the defaults and this very executable.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            shim: ShimProgram::current(),
            logs: LogBounds::default(),
            backoff: Backoff::default(),
        }
    }
}

/// Runs instances as processes under shims. Cheap to clone.
#[derive(Clone)]
pub struct ProcessRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ProcessSettings,
    fences: Fences,
    instances: Mutex<BTreeMap<InstanceId, Arc<Instance>>>,
    changed: watch::Sender<u64>,
}

/// What is known of one instance.
struct Instance {
    id: InstanceId,
    directory: PathBuf,
    /// Held while it is started, stopped or recovered.
    gate: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
    /// Rises with every change of `known`.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    status: Option<Status>,
    /// It shall run: a dead shim is replaced.
    wanted: bool,
    /// A task watches its shim.
    watched: bool,
    /// Why its shim could not be started anew.
    trouble: Option<(beanpole_protocol::agent::Failure, Timestamp)>,
    /// A task watches over its port.
    guarded: bool,
    /// What was last seen of its port, and what ran then.
    port: PortUse,
    port_seen: Option<guard::Runs>,
    /// The shim whose processes had all their ports once.
    had_its_ports: Option<i32>,
    /// Another program has its port.
    taken: Option<(beanpole_protocol::agent::Failure, Timestamp)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::Io {
        action,
        path,
        source,
    }
}

impl ProcessRuntime {
    /// Makes the directory for the instances. Nothing is looked at before [`Runtime::adopt`].
    pub fn new(settings: ProcessSettings, fences: Fences) -> Result<Self, RuntimeError> {
        let directory = &settings.directory;
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o711))
            .map_err(failed("set the mode of", directory))?;
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                fences,
                instances: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        })
    }

    fn instance(&self, id: &InstanceId) -> Option<Arc<Instance>> {
        lock(&self.inner.instances).get(id).cloned()
    }

    fn instance_or_new(&self, id: &InstanceId) -> Arc<Instance> {
        let mut instances = lock(&self.inner.instances);
        let new = || {
            Arc::new(Instance {
                id: id.clone(),
                directory: self.inner.settings.directory.join(id.as_str()),
                gate: tokio::sync::Mutex::default(),
                known: Mutex::default(),
                changed: watch::Sender::new(0),
            })
        };
        instances.entry(id.clone()).or_insert_with(new).clone()
    }

    fn note(&self, instance: &Instance, change: impl FnOnce(&mut Known)) {
        change(&mut lock(&instance.known));
        instance.changed.send_modify(|n| *n += 1);
        self.inner.changed.send_modify(|n| *n += 1);
    }

    async fn adopt_all(&self) -> Result<Vec<InstanceId>, RuntimeError> {
        let directory = &self.inner.settings.directory;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
            let entry = entry.map_err(failed("list", directory))?;
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| InstanceId::new(name).ok()) else {
                continue;
            };
            let has_spec = entry.path().join(files::SPEC).exists();
            // A full disk may have kept its state from being written: then the socket tells.
            let socket = entry.path().join(files::SOCKET).exists();
            let status = recover::last_status(&entry.path());
            let stopped = status.as_ref().is_none_or(|s| s.stage == Stage::Stopped);
            let status = match status {
                // The agent was killed while it made or removed this one.
                None if !has_spec => {
                    remove::set_aside(&entry.path()).map_err(failed("remove", &entry.path()))?;
                    continue;
                }
                // The same, a step further on.
                None if !socket => recover::never_started(&entry.path()),
                status => status,
            };
            let instance = self.instance_or_new(&id);
            self.note(&instance, |known| known.status = status);
            if has_spec && (!stopped || socket) {
                self.note(&instance, |known| known.wanted = true);
                self.watch(&instance);
            }
            found.push(id);
        }
        Ok(found)
    }

    async fn start_one(&self, spec: InstanceSpec) -> Result<(), RuntimeError> {
        let Workload {
            directory,
            processes,
        } = &spec.workload;
        let wrong = processes.iter().find(|process| !is_name(&process.name));
        if processes.is_empty() || wrong.is_some() {
            let why = wrong.map_or("it has no process".to_owned(), |process| {
                format!("`{}` is not a name for a process", process.name)
            });
            return Err(RuntimeError::Unsupported { id: spec.id, why });
        }
        let instance = self.instance_or_new(&spec.id);
        let _gate = instance.gate.lock().await;
        {
            let mut known = lock(&instance.known);
            if let Some(status) = &known.status
                && status.stage != Stage::Stopped
            {
                let incarnation = status.incarnation;
                if incarnation == spec.incarnation && status.stage == Stage::Supervising {
                    known.wanted = true;
                    return Ok(());
                }
                return Err(RuntimeError::StillRunning {
                    id: spec.id,
                    incarnation,
                });
            }
        }
        let web = guard::has_web(processes).then_some(spec.port);
        for number in web.into_iter().chain(spec.ports.values().copied()) {
            let look = tokio::task::spawn_blocking(move || port::look_before(number)).await;
            if let Ok(look) = look
                && look.port == PortUse::Taken
            {
                return Err(RuntimeError::PortTaken(look.failure(number)));
            }
        }
        let user = self.user(&spec).await?;
        let shim_spec = ShimSpec {
            v: VERSION,
            instance: spec.id.clone(),
            release: spec.release,
            incarnation: spec.incarnation,
            processes: processes
                .iter()
                .map(|process| Program {
                    name: process.name.clone(),
                    command: process.command.clone(),
                    port: spec.ports.get(&process.name).copied(),
                    runs_container: process.runs_container,
                })
                .collect(),
            ports: spec.ports.clone(),
            directory: directory.clone(),
            environment: self.environment(&spec, &instance.directory, user.as_ref()),
            user,
            cgroup: self
                .inner
                .fences
                .cgroups()
                .map(|trees| trees.group(&spec.id)),
            limits: spec.limits,
            private_tmp: self.inner.fences.private_tmp(),
            grace_ms: u64::try_from(spec.stop_grace.as_millis()).unwrap_or(u64::MAX),
            logs: self.inner.settings.logs,
            backoff: self.inner.settings.backoff,
            gate: spec.gate,
            low_ports: spec.runs_as == RunsAs::Edge,
        };
        prepare(&instance.directory, &shim_spec)?;
        if let Err(error) = self.launch(&instance).await {
            // Half a start must not hold the port or the lock against the next one.
            let _ = self.clean(&instance).await;
            return Err(error);
        }
        self.note(&instance, |known| {
            known.wanted = true;
            known.trouble = None;
            known.taken = None;
            known.status = recover::last_status(&instance.directory);
        });
        self.watch(&instance);
        Ok(())
    }

    async fn user(&self, spec: &InstanceSpec) -> Result<Option<User>, RuntimeError> {
        let (fences, application) = (self.inner.fences.clone(), spec.application.clone());
        let runs_as = spec.runs_as;
        let making = move || match runs_as {
            RunsAs::Application => fences.user(&application),
            RunsAs::Edge => fences.edge_user(),
        };
        let made = tokio::task::spawn_blocking(making).await;
        let made = made.map_err(|error| RuntimeError::Shim {
            id: spec.id.clone(),
            why: error.to_string(),
        })?;
        Ok(made?)
    }

    /// The whole environment of the processes: nothing comes from the agent's own.
    fn environment(
        &self,
        spec: &InstanceSpec,
        directory: &Path,
        user: Option<&User>,
    ) -> Properties {
        let mut all = spec.environment.0.clone();
        let tmp = if self.inner.fences.private_tmp() {
            PathBuf::from("/tmp")
        } else {
            directory.join(files::TMP)
        };
        let home = directory.join(files::HOME);
        let mut default = |name: &str, value: String| {
            all.entry(name.to_owned()).or_insert(value);
        };
        default("PATH", PATH.to_owned());
        default("HOME", home.to_string_lossy().into_owned());
        default("LANG", "C.UTF-8".to_owned());
        default("SHELL", "/bin/sh".to_owned());
        default("TMPDIR", tmp.to_string_lossy().into_owned());
        default("PORT", spec.port.to_string());
        if let Some(user) = user {
            default("USER", user.name.clone());
            default("LOGNAME", user.name.clone());
        }
        all.insert(MARK.to_owned(), spec.id.to_string());
        Properties(all)
    }

    /// Runs the shim program until it says that its processes are started.
    async fn launch(&self, instance: &Instance) -> Result<(), RuntimeError> {
        let shim = |why: String| RuntimeError::Shim {
            id: instance.id.clone(),
            why,
        };
        let program = &self.inner.settings.shim;
        let starting = program
            .command(instance.directory.join(files::SPEC))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(START, starting)
            .await
            .map_err(|_| shim(format!("no answer within {} s", START.as_secs())))?
            .map_err(|error| shim(format!("{}: {error}", program.program.display())))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("beanpole shim: ");
        Err(shim(if said.is_empty() {
            output.status.to_string()
        } else {
            said.to_owned()
        }))
    }

    /// Sees to it that a task watches the instance's shim.
    fn watch(&self, instance: &Arc<Instance>) {
        if std::mem::replace(&mut lock(&instance.known).watched, true) {
            return;
        }
        self.guard(instance);
        let (runtime, instance) = (self.clone(), instance.clone());
        tokio::spawn(async move {
            let mut pause = RECOVER_PAUSE.0;
            let mut deaf = 0;
            loop {
                if runtime.follow(&instance).await {
                    deaf = 0;
                }
                let gate = instance.gate.lock().await;
                let status = instance.final_status();
                let stopped = status.as_ref().is_none_or(|s| s.stage == Stage::Stopped);
                if stopped || !lock(&instance.known).wanted {
                    runtime.note(&instance, |known| {
                        known.watched = false;
                        known.status = status;
                    });
                    return;
                }
                // A stop and a start may have come between: then this is the next shim, and well.
                if status.is_some_and(|s| s.shim.lives()) && deaf < DEAF_LOOKS {
                    deaf += 1;
                    drop(gate);
                    tokio::time::sleep(DEAF_PAUSE).await;
                    continue;
                }
                tracing::warn!(instance = %instance.id, "its supervisor died: starting it anew");
                match runtime.recover(&instance).await {
                    Ok(()) => {
                        pause = RECOVER_PAUSE.0;
                        runtime.note(&instance, |known| {
                            known.trouble = None;
                            known.status = recover::last_status(&instance.directory);
                        });
                    }
                    Err(error) => {
                        let failure = error.failure();
                        tracing::warn!(instance = %instance.id, why = failure.message, "cannot start it anew");
                        runtime.note(&instance, |known| known.trouble = Some((failure, now())));
                        let mut changes = instance.changed.subscribe();
                        drop(gate);
                        // A start or stop meanwhile ends the pause.
                        let _ = tokio::time::timeout(pause, changes.changed()).await;
                        pause = (pause * 2).min(RECOVER_PAUSE.1);
                    }
                }
            }
        });
    }

    /// Listens to the shim until it is gone; whether it could be heard at all.
    async fn follow(&self, instance: &Instance) -> bool {
        let Ok(mut client) = Client::connect(&instance.directory).await else {
            return false;
        };
        let Ok(first) = client.ask(Op::Watch).await else {
            return false;
        };
        self.note(instance, |known| known.status = Some(first));
        while let Ok(Some(status)) = client.next().await {
            self.note(instance, |known| known.status = Some(status));
        }
        true
    }

    /// Ends what a dead shim left and starts it anew on the same spec.
    async fn recover(&self, instance: &Instance) -> Result<(), RuntimeError> {
        self.clean(instance).await?;
        self.launch(instance).await
    }

    async fn clean(&self, instance: &Instance) -> Result<(), RuntimeError> {
        let stuck = |why: String| RuntimeError::Stuck {
            id: instance.id.clone(),
            why,
        };
        let directory = instance.directory.clone();
        let path = directory.join(files::SPEC);
        let spec: Option<ShimSpec> =
            beanpole_daemon::files::read_json(&path).map_err(|error| stuck(error.to_string()))?;
        let Some(spec) = spec else { return Ok(()) };
        let runs_containers = spec.runs_containers();
        tokio::task::spawn_blocking(move || recover::clean(&directory, &spec))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(stuck)?;
        if runs_containers {
            containers::clean::remove_instance(&instance.id)
                .await
                .map_err(stuck)?;
        }
        Ok(())
    }

    /// Ends what an instance's containers left that were killed before they could be.
    async fn end_containers(&self, instance: &Instance) -> Result<(), RuntimeError> {
        let path = instance.directory.join(files::SPEC);
        let spec: Option<ShimSpec> = beanpole_daemon::files::read_json(&path).ok().flatten();
        if !spec.is_some_and(|spec| spec.runs_containers()) {
            return Ok(());
        }
        let ended = containers::clean::remove_instance(&instance.id).await;
        ended.map_err(|why| RuntimeError::Stuck {
            id: instance.id.clone(),
            why,
        })
    }

    async fn stop_one(&self, id: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(instance) = self.instance(id) else {
            return Ok(());
        };
        let mut changes = instance.changed.subscribe();
        lock(&instance.known).wanted = false;
        let gate = instance.gate.lock().await;
        let runs = |known: &Known| {
            let status = known.status.as_ref();
            status.is_some_and(|status| status.stage != Stage::Stopped)
        };
        if !runs(&lock(&instance.known)) {
            return Ok(());
        }
        let grace_ms = Some(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let told = match Client::connect(&instance.directory).await {
            Ok(mut client) => client.ask(Op::Stop { grace_ms }).await,
            Err(error) => Err(error),
        };
        // The watching task takes the gate when the shim has gone.
        drop(gate);
        if told.is_ok() {
            let gone = async {
                while runs(&lock(&instance.known)) && lock(&instance.known).watched {
                    if changes.changed().await.is_err() {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(grace + STOP_MARGIN, gone).await;
        }
        let _gate = instance.gate.lock().await;
        if !runs(&lock(&instance.known)) {
            return self.end_containers(&instance).await;
        }
        {
            // Its shim is dead or stuck.
            self.clean(&instance).await?;
            let mut status = lock(&instance.known).status.clone();
            if let Some(status) = &mut status {
                status.stage = Stage::Stopped;
                status.since = now();
                for process in &mut status.processes {
                    process.running = None;
                    process.starts_at = None;
                }
                let path = instance.directory.join(files::STATE);
                if let Err(error) = beanpole_daemon::files::write_json(&path, status, 0o600) {
                    tracing::warn!(instance = %id, %error, "cannot write that it has stopped");
                }
            }
            self.note(&instance, |known| known.status = status);
        }
        Ok(())
    }

    async fn remove_one(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.stop_one(id, Duration::ZERO).await?;
        if let Some(instance) = self.instance(id) {
            // A shim that was killed at its very end leaves a group; without the spec nobody would
            // know whose that is.
            let _gate = instance.gate.lock().await;
            self.clean(&instance).await?;
        }
        let directory = self.inner.settings.directory.join(id.as_str());
        let aside = remove::set_aside(&directory).map_err(failed("remove", &directory))?;
        lock(&self.inner.instances).remove(id);
        self.inner.changed.send_modify(|n| *n += 1);
        // What is left then, or when the agent ends before, is removed by the next sweep.
        if let Some(aside) = aside {
            let removed = tokio::task::spawn_blocking(move || remove::tree(&aside)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(instance = %id, %error, "what it left is not all removed yet");
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Makes the instance's directory and writes the spec. Other users may pass through it; what is
/// not theirs in it is closed.
fn prepare(directory: &Path, spec: &ShimSpec) -> Result<(), RuntimeError> {
    let make = |path: &Path, mode: u32| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(failed("make", path))
    };
    make(directory, 0o711)?;
    let logs = directory.join(files::LOGS);
    make(&logs, 0o700)?;
    if let Err(error) = drop_logs_of_others(&logs, spec) {
        tracing::warn!(directory = %logs.display(), %error, "logs of processes that are no more stay");
    }
    let home = directory.join(files::HOME);
    make(&home, 0o700)?;
    let mut theirs = vec![home.clone()];
    if spec.private_tmp {
        let private = directory.join(files::PRIVATE);
        // What an earlier incarnation left in its /tmp is of no use to this one.
        remove::tree(&private).map_err(failed("remove", &private))?;
        make(&private, 0o700)?;
        make(&private.join("tmp"), 0o1777)?;
    } else {
        // Beside the home directory, not in it: there its user could put a link in its place.
        let tmp = directory.join(files::TMP);
        remove::tree(&tmp).map_err(failed("remove", &tmp))?;
        make(&tmp, 0o700)?;
        theirs.push(tmp);
    }
    if let Some(user) = &spec.user {
        for path in theirs {
            std::os::unix::fs::lchown(&path, Some(user.uid), Some(user.gid))
                .map_err(failed("change the owner of", &path))?;
        }
    }
    let path = directory.join(files::SPEC);
    beanpole_daemon::files::write_json(&path, spec, 0o600).map_err(failed("write", &path))
}

/// Removes the logs of processes that the instance has no more: each process has a bound for its own,
/// and how many names the releases of an instance have in the course of time has none.
fn drop_logs_of_others(logs: &Path, spec: &ShimSpec) -> io::Result<()> {
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((process, _number)) = name.split_once(".log") else {
            continue;
        };
        let gate = process == files::READY_LOG && spec.gate.ready.is_some()
            || process == files::HOOKS_LOG && !spec.gate.hooks.is_empty();
        if !gate && !spec.processes.iter().any(|program| program.name == process) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Instance {
    /// How things were when its shim had gone: its last word, else the state file.
    fn final_status(&self) -> Option<Status> {
        let said = lock(&self.known).status.clone();
        said.filter(|status| status.stage == Stage::Stopped)
            .or_else(|| recover::last_status(&self.directory))
    }

    fn report(&self) -> Option<InstanceReport> {
        let known = lock(&self.known);
        let status = known.status.clone()?;
        let trouble = known.trouble.clone().or_else(|| known.taken.clone());
        let port = known.port_use();
        drop(known);
        let all_run = status.processes.iter().all(|p| p.running.is_some());
        let (phase, since) = match (trouble, status.stage) {
            (_, Stage::Stopped) => (InstancePhase::Stopped, status.since),
            (Some((failure, since)), _) => (InstancePhase::Failed(failure), since),
            (None, Stage::Stopping) => (InstancePhase::Stopping, status.since),
            (None, Stage::Supervising) if all_run => (InstancePhase::Running, status.since),
            (None, Stage::Supervising) => (InstancePhase::Restarting, status.since),
        };
        let kills = &status.memory_kills;
        let last_trouble = kills
            .last_at
            .map_or(status.since, |at| at.max(status.since));
        let well = phase == InstancePhase::Running && now().since(last_trouble) > YOUNG;
        let log = if well || phase == InstancePhase::Stopped {
            Vec::new()
        } else {
            tail::last_lines(&self.directory.join(files::LOGS))
        };
        let phase = match phase {
            InstancePhase::Failed(failure) => {
                InstancePhase::Failed(beanpole_protocol::agent::Failure {
                    log: log.clone(),
                    ..failure
                })
            }
            phase => phase,
        };
        Some(InstanceReport {
            id: self.id.clone(),
            release: Some(status.release),
            incarnation: status.incarnation,
            phase,
            since,
            processes: status.processes.iter().map(process_report).collect(),
            log,
            port,
            startup: status.gate.startup(),
            memory_kills: status.memory_kills,
        })
    }
}

fn process_report(process: &crate::shim::wire::ProcessStatus) -> ProcessReport {
    let pid = process.running.and_then(|one| u32::try_from(one.pid).ok());
    ProcessReport {
        name: process.name.clone(),
        pid,
        started_at: process.started_at,
        restarts: process.restarts,
        last_exit: process.last_exit.clone(),
        ended_at: process.ended_at.clone(),
        memory_bytes: pid.and_then(resident_bytes),
    }
}

/// Resident memory: the second field of `/proc/PID/statm`, in pages.
fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

impl Runtime for ProcessRuntime {
    fn adopt(&self) -> BoxFuture<'_, Result<Vec<InstanceId>, RuntimeError>> {
        self.adopt_all().boxed()
    }

    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<(), RuntimeError>> {
        self.start_one(spec).boxed()
    }

    fn stop<'a>(
        &'a self,
        id: &'a InstanceId,
        grace: Duration,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.stop_one(id, grace).boxed()
    }

    fn remove<'a>(&'a self, id: &'a InstanceId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.remove_one(id).boxed()
    }

    fn observe(&self) -> Vec<InstanceReport> {
        let instances: Vec<Arc<Instance>> = lock(&self.inner.instances).values().cloned().collect();
        instances.iter().filter_map(|one| one.report()).collect()
    }

    fn sweep(&self) -> io::Result<()> {
        remove::aside(&self.inner.settings.directory)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    fn log_directory(&self, id: &InstanceId) -> PathBuf {
        let directory = &self.inner.settings.directory;
        directory.join(id.as_str()).join(spec::files::LOGS)
    }
}
