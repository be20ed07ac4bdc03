//! Preparing a release on this host: from a bundle to a tree that instances start from.
//!
//! Everything happens under a temporary name. Only a finished release gets its own, by a rename,
//! so that a crash midway leaves nothing that counts. Trees belong to root (where the agent is
//! root) and are read-only to the application.

pub mod build;
pub mod cache;
mod commands;
pub mod containers;
pub mod dotnet;
pub mod go;
mod hooks;
mod install;
pub mod java;
pub mod node;
pub mod once;
pub mod php;
pub mod platform;
pub mod programs;
pub mod python;
mod root;
pub mod ruby;
pub mod runtimes;
mod setup;
pub mod site;
pub mod tomcat;
pub mod tree;
pub mod unpack;

use crate::containers::Ready;
use crate::fences::Fences;
use crate::fences::users::User;
use crate::layout::Layout;
use crate::remove;
use crate::runtime::ProcessSpec;
use crate::runtime::process::ShimProgram;
use beanpole_bundle::ebextensions::{ContainerCommand, Extensions};
use beanpole_bundle::hooks::When;
use beanpole_bundle::procfile;
use beanpole_daemon::files;
use beanpole_protocol::Digest;
use beanpole_protocol::agent::{Failure, Platform, ReleaseKey, ReleaseOrder, ReleasePhase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Holds what a platform is configured by, beside a release's tree.
const PLATFORM: &str = "platform";

/// The most lines of output that a failure carries.
pub const FAILURE_LINES: usize = 20;

/// The code of a bundle whose copy on this host went bad.
const DAMAGED_HERE: &str = "bundle-copy-damaged";

/// Why a release cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", .0.code, .0.message)]
pub struct Fault(pub Failure);

impl Fault {
    /// A failure with a stable code and its sentence.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self(Failure {
            code: code.to_owned(),
            message: message.into(),
            log: Vec::new(),
        })
    }

    /// The file system refused to `action` at `path`.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let code = if full { "disk-full" } else { "host-io" };
        Self::new(
            code,
            format!("The agent could not {action} {}: {error}.", path.display()),
        )
    }

    /// It is not wanted any more.
    pub fn cancelled() -> Self {
        Self::new("cancelled", "The release is not wanted any more.")
    }

    /// With the last lines of `log`.
    pub fn with_log(mut self, log: Vec<String>) -> Self {
        self.0.log = log;
        self
    }

    /// `fault` came of a copy of the bundle that is not what was verified when it arrived.
    pub fn damaged_here(fault: &Self) -> Self {
        Self::new(
            DAMAGED_HERE,
            format!(
                "The bundle's copy on this host is damaged, so that it has to be sent again: see to \
                 the host's disk if this comes back. {}",
                fault.0.message
            ),
        )
    }

    /// Whether it is [`Fault::damaged_here`].
    pub fn is_damaged_here(&self) -> bool {
        self.0.code == DAMAGED_HERE
    }

    /// Another bundle was made into a release of this number before.
    pub fn other_bundle(ordered: &ReleaseOrder) -> Self {
        Self::new(
            "release-differs",
            format!(
                "Release {} was prepared on this host from another bundle than the ordered {}. A new \
                 deployment gets a number of its own.",
                ordered.key.number, ordered.bundle
            ),
        )
    }

    /// Whether it says that what was sent is of no use, and nothing was built yet.
    pub fn blames_the_bundle(&self) -> bool {
        let code = self.0.code.as_str();
        code.starts_with("bundle-")
            || matches!(
                code,
                "procfile-invalid"
                    | "package-invalid"
                    | "no-platform"
                    | "hook-invalid"
                    | "ebextensions-invalid"
                    | "containers-invalid"
            )
    }

    /// Whether it passes once there is room again.
    pub fn is_full_disk(&self) -> bool {
        self.0.code == "disk-full"
    }
}

/// A prepared release, as kept beside its tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The bundle that it was made of.
    pub bundle: Digest,
    /// How it runs, `auto` resolved.
    pub platform: Platform,
    /// The processes: name and command line.
    pub processes: Vec<(String, String)>,
    /// What runs once for each deployment, before any of the processes.
    #[serde(default)]
    pub release_command: Option<String>,
    /// Container commands for the leader, which run before that, in their order.
    #[serde(default)]
    pub leader_commands: Vec<ContainerCommand>,
    /// Whether the other container commands of its bundle have run here, if it has any: agents of before
    /// knew of none.
    #[serde(default)]
    pub ran_container_commands: bool,
    /// Whether all else that the configuration files of its bundle tell a host was carried out, if there is any.
    #[serde(default)]
    pub set_up: bool,
    /// Hooks that run in each instance when it has started, below the tree, in their order.
    #[serde(default)]
    pub postdeploy: Vec<PathBuf>,
    /// Directories that come first in `PATH`.
    pub path: Vec<PathBuf>,
    /// What the platform adds to the environment of the processes; properties win over it.
    pub environment: BTreeMap<String, String>,
    /// The caches that the tree refers to.
    pub caches: Vec<String>,
    /// Caches that a later release may want, though this one does without.
    #[serde(default)]
    pub keeps: Vec<String>,
    /// What its processes run, where they are containers.
    #[serde(default)]
    pub containers: Option<Ready>,
    /// The boot in which it was made: until `synced` a later boot does not trust it.
    pub boot_id: String,
}

impl Prepared {
    /// What the application finds in its environment, wherever it runs on the host. Properties win over
    /// what the platform adds, but for `PATH`, which keeps the platform's directories in front.
    pub fn app_environment(&self, order: &ReleaseOrder) -> BTreeMap<String, String> {
        let mut environment = self.environment.clone();
        environment.extend(order.properties.0.clone());
        let mut path = programs::path_with(self.path.iter().map(|path| path.as_path()));
        if let Some(own) = order.properties.0.get("PATH") {
            let first: Vec<_> = self.path.iter().map(|p| p.to_string_lossy()).collect();
            path = first
                .iter()
                .map(|p| p.as_ref())
                .chain([own.as_str()])
                .collect::<Vec<_>>()
                .join(":");
        }
        environment.insert("PATH".to_owned(), path);
        environment.extend(named(order));
        environment
    }

    /// Agents of before took the release command for a process.
    fn without_release_process(mut self) -> Self {
        let command = procfile::take_release(&mut self.processes);
        self.release_command = self.release_command.or(command);
        self
    }

    /// Whether something of it runs once for each deployment.
    pub fn runs_once(&self) -> bool {
        self.release_command.is_some() || !self.leader_commands.is_empty()
    }

    /// The processes for a runtime.
    pub fn process_specs(&self) -> Vec<ProcessSpec> {
        self.processes
            .iter()
            .map(|(name, command)| ProcessSpec {
                name: name.clone(),
                command: command.clone(),
                runs_container: false,
            })
            .collect()
    }
}

/// The variables that say what this is.
fn named(order: &ReleaseOrder) -> BTreeMap<String, String> {
    [
        ("BEANPOLE_ENVIRONMENT", order.environment_name.to_string()),
        ("BEANPOLE_RELEASE", order.key.number.to_string()),
        ("BEANPOLE_VERSION", order.version.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What preparing needs beside the order.
pub struct Workshop {
    /// Where things lie.
    pub layout: Layout,
    /// Bounds of bundles.
    pub limits: unpack::UnpackLimits,
    /// Bytes that stay free on the disk.
    pub reserve_bytes: u64,
    /// The caches of dependencies.
    pub caches: cache::Caches,
    /// This boot.
    pub boot_id: String,
    /// What builds are fenced in by.
    pub fences: Fences,
    /// What runs their commands.
    pub guard: ShimProgram,
    /// The executable that instances start for what the agent serves itself.
    pub program: PathBuf,
    /// Held by whoever installs something on the host.
    pub installing: tokio::sync::Mutex<()>,
}

/// One preparation under way.
pub struct Job {
    /// What to prepare.
    pub order: ReleaseOrder,
    /// For whom, under root.
    pub user: Option<User>,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Told each phase.
    pub progress: Box<dyn Fn(ReleasePhase) + Send + Sync>,
}

impl Workshop {
    /// Reads a release prepared earlier; none if there is none that can be trusted.
    pub fn load(&self, key: &ReleaseKey) -> Option<Prepared> {
        let directory = self.layout.release(key);
        let prepared: Prepared = files::read_json(&directory.join("release.json"))
            .ok()
            .flatten()?;
        let lasting = prepared.boot_id == self.boot_id || directory.join("synced").exists();
        let whole = lasting
            && directory.join("app").is_dir()
            && prepared
                .caches
                .iter()
                .all(|name| self.caches.is_complete(name));
        whole.then(|| prepared.without_release_process())
    }

    /// Prepares the release of `job` from the bundle at `bundle`, within the order's time.
    pub async fn prepare(&self, job: &Job, bundle: &Path) -> Result<Prepared, Fault> {
        let limit = Duration::from_millis(job.order.prepare_timeout_ms);
        let work = self.layout.release_work(&job.order.key);
        let pause = Arc::new(AtomicBool::new(false));
        let _pause = SetOnDrop(Arc::clone(&pause));
        let outcome = tokio::select! {
            outcome = self.prepare_in(&work, job, bundle, &pause) => outcome,
            () = job.cancel.cancelled() => Err(Fault::cancelled()),
            () = tokio::time::sleep(limit) => Err(Fault::new(
                "build-timeout",
                format!(
                    "Preparing the release took longer than {} s and was stopped.",
                    limit.as_secs_f64()
                ),
            )
            .with_log(build::last_lines(&self.layout.build_log(&job.order.key)))),
        };
        // A thread that still unpacks stops at its next file; its directory is removed after it.
        pause.store(true, Ordering::Relaxed);
        if outcome.is_err() {
            let record = self.layout.build_pid(&job.order.key);
            let _ = tokio::task::spawn_blocking(move || {
                build::end_build(&record);
                remove::tree(&work)
            })
            .await;
        }
        outcome
    }

    async fn prepare_in(
        &self,
        work: &Path,
        job: &Job,
        bundle: &Path,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Prepared, Fault> {
        (job.progress)(ReleasePhase::Unpacking);
        let tree = work.join("app");
        let extensions = self.unpack(work, &tree, job, bundle, cancelled).await?;
        let site = build::Site {
            work: work.to_owned(),
            tree: tree.clone(),
            log: self.layout.build_log(&job.order.key),
            pid_file: self.layout.build_pid(&job.order.key),
            order: &job.order,
            user: job.user.clone(),
            root: false,
            progress: &*job.progress,
        };
        self.set_up(&site, &extensions, cancelled).await?;
        let kind = self.kind_of_hooks(&job.order);
        self.run_hooks(
            &site,
            (kind, When::Prebuild),
            &programs::path_with([]),
            &named(&job.order),
        )
        .await?;
        let plan = platform::find(&tree, &job.order)?;
        let made = self.install(&site, &plan).await?;
        // The tree has not its final name yet.
        let place = self.layout.release(&job.order.key).join("app");
        let path: Vec<PathBuf> = made
            .path
            .iter()
            .map(|path| {
                path.strip_prefix(&place)
                    .map_or(path.clone(), |below| tree.join(below))
            })
            .collect();
        let path = programs::path_with(path.iter().map(PathBuf::as_path));
        let mut extra = made.environment.clone();
        extra.extend(named(&job.order));
        let plan = self.build(&site, plan, &made, &path, &extra).await?;
        let around = commands::Around {
            site: &site,
            path: &path,
            extra: &extra,
        };
        let mut commands = extensions.container_commands;
        self.run_container_commands(&around, &commands).await?;
        self.run_hooks(&site, (kind, When::Predeploy), &path, &extra)
            .await?;
        commands.retain(|command| command.leader_only);
        let postdeploy = {
            let tree = tree.clone();
            blocking(move || hooks::find(&tree, kind, When::Postdeploy)).await?
        };
        let prepared = Prepared {
            bundle: job.order.bundle.clone(),
            platform: plan.platform,
            processes: made.processes.unwrap_or(plan.processes),
            release_command: plan.release_command,
            leader_commands: commands,
            ran_container_commands: true,
            set_up: true,
            postdeploy,
            path: made.path,
            environment: made.environment,
            caches: made.caches,
            keeps: made.keeps,
            containers: made.containers,
            boot_id: self.boot_id.clone(),
        };
        self.finish(work, job, prepared).await
    }

    /// Installs what a release of a platform needs.
    async fn install(
        &self,
        site: &build::Site<'_>,
        plan: &platform::Plan,
    ) -> Result<build::Made, Fault> {
        match plan.platform {
            Platform::Node => node::install(self, site).await,
            Platform::Python => python::install(self, site, plan).await,
            Platform::Ruby => ruby::install(self, site).await,
            Platform::Php => php::install(self, site, plan.from_procfile).await,
            Platform::Go => go::install(self, site, plan).await,
            Platform::Java => java::install(self, site, plan).await,
            Platform::Tomcat => tomcat::install(self, site, plan).await,
            Platform::Dotnet => dotnet::install(self, site, plan).await,
            Platform::Static => site::install(self, site, plan),
            Platform::Docker => containers::install(self, site, plan).await,
            Platform::Auto | Platform::Procfile => Ok(build::Made::default()),
        }
    }

    /// Runs what builds a release, and looks again how it runs then.
    async fn build(
        &self,
        site: &build::Site<'_>,
        plan: platform::Plan,
        made: &build::Made,
        path: &str,
        extra: &BTreeMap<String, String>,
    ) -> Result<platform::Plan, Fault> {
        if plan.build.is_empty() {
            return Ok(plan);
        }
        let mut environment = extra.clone();
        environment.extend(made.build_environment.clone());
        node::hand_over(site).await?;
        for (name, command) in &plan.build {
            let step = build::Step {
                program: Path::new(commands::SHELL),
                arguments: &["-c".to_owned(), command.clone()],
                directory: &site.tree,
                path,
            };
            let shown = format!("{name}: {}", procfile::shown(command));
            self.run_as(site, &step, &shown, &build::CODES, &environment)
                .await?;
        }
        node::take_back(site).await?;
        let built = platform::find(&site.tree, site.order)?;
        if built.processes.is_empty() && made.processes.is_none() {
            return Err(Fault::new(
                "no-platform",
                format!(
                    "The build of this {} application left nothing that can be started: put a Procfile with a line \
                     such as `web: java -jar target/app.jar` at the top of the bundle.",
                    built.platform.title()
                ),
            ));
        }
        Ok(built)
    }

    /// Unpacks the bundle and makes it fit to run; gives what its configuration files say.
    async fn unpack(
        &self,
        work: &Path,
        tree: &Path,
        job: &Job,
        bundle: &Path,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Extensions, Fault> {
        let (work, tree, bundle) = (work.to_owned(), tree.to_owned(), bundle.to_owned());
        let (limits, reserve) = (self.limits, self.reserve_bytes);
        let environment = self.layout.environment(&job.order.key);
        let user = job.user.clone();
        let cancelled = Arc::clone(cancelled);
        let key = job.order.key.clone();
        blocking(move || {
            remove::tree(&work).map_err(|error| Fault::io("remove", &work, &error))?;
            tree::make_private(&environment, user.as_ref())?;
            fs::create_dir_all(&tree).map_err(|error| Fault::io("make", &tree, &error))?;
            let room = |bytes| {
                crate::blobs::check_space(&environment, bytes, reserve).map_err(|error| {
                    Fault::new(
                        "disk-full",
                        format!("The release does not fit on this host: {error}."),
                    )
                })
            };
            let started = std::time::Instant::now();
            let unpacked = unpack::unpack(&bundle, &tree, &limits, room, &cancelled)?;
            hooks::make_fit(&tree)?;
            let extensions = platform::extensions(&tree)?;
            tracing::info!(
                environment = %key.environment,
                release = key.number.0,
                files = unpacked.files,
                bytes = unpacked.bytes,
                took_ms = started.elapsed().as_millis() as u64,
                "unpacked a bundle"
            );
            Ok(extensions)
        })
        .await
    }

    async fn finish(&self, work: &Path, job: &Job, prepared: Prepared) -> Result<Prepared, Fault> {
        let (work, whole) = (work.to_owned(), self.layout.release(&job.order.key));
        let value = prepared.clone();
        let ready = whole.clone();
        blocking(move || {
            let failed = |error: &io::Error| Fault::io("finish the release in", &work, error);
            // Of use to the build alone: its home directory, and what was its `/tmp`.
            for own in [build::HOME, install::HOME, build::PRIVATE, setup::FETCHED] {
                let _ = remove::tree(&work.join(own));
            }
            files::write_json(&work.join("release.json"), &value, 0o600)
                .map_err(|error| failed(&error))?;
            remove::tree(&whole).map_err(|error| failed(&error))?;
            fs::rename(&work, &whole).map_err(|error| failed(&error))?;
            whole
                .parent()
                .map_or(Ok(()), files::sync_directory)
                .map_err(|error| failed(&error))
        })
        .await?;
        // Thousands of small files reach the disk after the release is in use, not before.
        tokio::task::spawn_blocking(move || {
            let synced = fs::File::open(&ready).and_then(|directory| {
                rustix::fs::syncfs(&directory)?;
                fs::write(ready.join("synced"), b"")
            });
            if let Err(error) = synced {
                tracing::debug!(release = %ready.display(), %error, "a release was not synced");
            }
        });
        Ok(prepared)
    }
}

/// Tells a thread to stop, also when the future that waits for it is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Workshop {
    /// A cache that is the application's own, and stays so: its builds write into it, also two at once.
    async fn own_cache(&self, site: &build::Site<'_>, name: &str) -> Result<PathBuf, Fault> {
        let cache = self.caches.path(name);
        let _turn = self.caches.turn(name).await;
        if !cache.is_dir() {
            tree::make_private(&cache, site.user.as_ref())?;
            if let Some(user) = &site.user {
                tree::give(&cache, user)?;
            }
        }
        Ok(cache)
    }
}

/// The executable that instances start for what the agent serves itself.
fn own_program(workshop: &Workshop, for_others: bool) -> Result<PathBuf, Fault> {
    if !for_others || programs::open_to_others(&workshop.program) {
        return Ok(workshop.program.clone());
    }
    Err(Fault::new(
        "program-out-of-reach",
        format!(
            "The application's user cannot reach {}, which serves its files: put it where every user may run it, for \
             example into /usr/local/bin.",
            workshop.program.display()
        ),
    ))
}

/// Runs `work` where it may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Fault::new(
                "agent-broken",
                format!("The agent's own work broke off: {error}."),
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::{
        ApplicationName, EnvironmentId, EnvironmentName, ReleaseNumber, VersionLabel,
    };

    #[tokio::test]
    async fn what_only_a_build_needs_is_no_part_of_the_release() {
        let home = tempfile::tempdir().expect("temporary directory");
        let layout = Layout::new(home.path());
        layout.create().expect("directories");
        let workshop = Workshop {
            layout: layout.clone(),
            limits: unpack::UnpackLimits::default(),
            reserve_bytes: 0,
            caches: cache::Caches::new(layout.caches()),
            boot_id: "this".to_owned(),
            fences: Fences::none(),
            guard: ShimProgram::current(),
            program: PathBuf::new(),
            installing: tokio::sync::Mutex::default(),
        };
        let order = ReleaseOrder {
            key: ReleaseKey {
                environment: EnvironmentId::from_bits(1),
                number: ReleaseNumber(1),
            },
            application: ApplicationName::new("shop").expect("name"),
            environment_name: EnvironmentName::new("shop-prod").expect("name"),
            version: VersionLabel::new("v1").expect("label"),
            bundle: Digest::new("0".repeat(64)).expect("digest"),
            bundle_size: 0,
            platform: Platform::Procfile,
            properties: Default::default(),
            options: BTreeMap::new(),
            install: false,
            configures: false,
            prepare_timeout_ms: 1000,
            root: false,
            asked_by: None,
            run_once: None,
        };
        let work = layout.release_work(&order.key);
        let whole = layout.release(&order.key);
        for directory in ["app", build::HOME, build::PRIVATE] {
            let below = work.join(directory).join("tmp");
            fs::create_dir_all(&below).expect("make");
            fs::write(below.join("file"), "x").expect("write");
        }
        let job = Job {
            order,
            user: None,
            cancel: CancellationToken::new(),
            progress: Box::new(|_| {}),
        };
        let prepared = Prepared {
            bundle: job.order.bundle.clone(),
            platform: Platform::Procfile,
            processes: Vec::new(),
            release_command: None,
            leader_commands: Vec::new(),
            ran_container_commands: true,
            set_up: true,
            postdeploy: Vec::new(),
            path: Vec::new(),
            environment: BTreeMap::new(),
            caches: Vec::new(),
            keeps: Vec::new(),
            containers: None,
            boot_id: "this".to_owned(),
        };
        workshop.finish(&work, &job, prepared).await.expect("whole");
        assert!(!work.exists());
        assert!(whole.join("app/tmp/file").exists());
        assert!(!whole.join(build::HOME).exists());
        assert!(!whole.join(build::PRIVATE).exists());
    }
}
