//! Setting a host up: from nothing but sshd to an agent that answers through a restricted key.
//!
//! This is the only time that Beanpole runs commands on a host. It may be repeated at will: what is
//! there already stays, what is missing or different is put right, apps are never touched.

mod elf;
mod executables;
mod quote;
mod scripts;

pub use executables::{Executables, ExecutablesError};
pub use quote::quoted;

use crate::client::Executable;
use crate::dial::{DialError, Dialer};
use crate::ssh::{self, ControllerKey, ExecError, HostKey, Options, Session, SshError, Target};
use crate::{chain, push::Pushes};
use beanpole_protocol::agent::{HostReport, Installed};
use beanpole_protocol::problem::Problem;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

/// How long a short script may take.
const SCRIPT_LIMIT: Duration = Duration::from_mins(1);
/// How long the upload of the executable may take.
const UPLOAD_LIMIT: Duration = Duration::from_mins(15);
/// The pause between two looks at an agent that is starting.
const READY_PAUSE: Duration = Duration::from_millis(200);
/// Bytes that go to the host in one piece.
const PIECE: usize = 256 * 1024;

/// Where things lie on a host. The defaults are what the agent's uninstall knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Executables, by version: `/usr/local/lib/beanpole`.
    pub lib: PathBuf,
    /// The agent's data: `/var/lib/beanpole`.
    pub data: PathBuf,
    /// The agent's socket and process ids: `/run/beanpole`.
    pub run: PathBuf,
    /// The home of the system user: `/var/lib/beanpole-ssh`.
    pub home: PathBuf,
    /// Units: `/etc/systemd/system`.
    pub units: PathBuf,
    /// What shows that systemd runs the machine: `/run/systemd/system`.
    pub systemd: PathBuf,
    /// The system user and its group: `beanpole`.
    pub user: String,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            lib: "/usr/local/lib/beanpole".into(),
            data: "/var/lib/beanpole".into(),
            run: "/run/beanpole".into(),
            home: "/var/lib/beanpole-ssh".into(),
            units: "/etc/systemd/system".into(),
            systemd: "/run/systemd/system".into(),
            user: "beanpole".to_owned(),
        }
    }
}

impl Paths {
    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }
}

/// A host to set up.
#[derive(Clone, Debug)]
pub struct HostSetup {
    /// The way in for the admin: root, or a user with passwordless sudo.
    pub admin: Target,
    /// The key that the host shall let the controller in by.
    pub controller_key: ControllerKey,
    /// What to install.
    pub executables: Executables,
    /// Where.
    pub paths: Paths,
    /// How long the agent may take to answer.
    pub ready_within: Duration,
    /// Bounds of the connections.
    pub options: Options,
}

impl HostSetup {
    /// With the usual paths and bounds.
    pub fn new(admin: Target, controller_key: ControllerKey, executables: Executables) -> Self {
        Self {
            admin,
            controller_key,
            executables,
            paths: Paths::default(),
            ready_within: Duration::from_secs(30),
            options: Options::default(),
        }
    }
}

/// What the setting up is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Connecting and authenticating.
    Connecting,
    /// What was found.
    Detected {
        /// For example `Debian GNU/Linux 12 (bookworm)`.
        os: String,
        /// For example `x86_64`.
        arch: String,
        /// Whether systemd runs the machine.
        systemd: bool,
        /// Whether the admin becomes root by sudo.
        sudo: bool,
    },
    /// The executable is there already.
    UpToDate,
    /// The executable is on its way.
    Uploading {
        /// Bytes sent.
        sent: u64,
        /// Its size.
        size: u64,
    },
    /// User, key, directories and service are put right.
    Installing,
    /// The agent is starting; it is asked through the restricted key.
    Waiting,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Detected {
                os, arch, systemd, ..
            } => write!(
                f,
                "found {os} on {arch}, {}",
                if *systemd {
                    "with systemd"
                } else {
                    "without systemd"
                }
            ),
            Self::UpToDate => f.write_str("the executable is there already"),
            Self::Uploading { sent, size } => write!(f, "uploading, {sent} of {size} bytes"),
            Self::Installing => f.write_str("installing"),
            Self::Waiting => f.write_str("waiting for the agent"),
        }
    }
}

/// What keeps the agent running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A systemd unit, started at boot.
    Systemd,
    /// A parent process that starts it again; gone after a reboot.
    Supervised,
}

/// A host that has been set up.
#[derive(Clone, Debug)]
pub struct HostAdded {
    /// How to reach its agent from now on, with the controller's own key: give it to a link.
    pub dialer: Dialer,
    /// The same, as the SSH target alone.
    pub target: Target,
    /// The host key, with its algorithm: to be pinned.
    pub host_key: HostKey,
    /// What the agent says.
    pub report: HostReport,
    /// What keeps the agent running.
    pub service: Service,
    /// What was installed.
    pub executable: Executable,
    /// Whether it was uploaded, rather than there already.
    pub uploaded: bool,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Why a host cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// SSH does not get there.
    #[error("cannot get into {host}")]
    Ssh {
        /// The host.
        host: String,
        /// Why.
        source: SshError,
    },
    /// A command could not be run.
    #[error("cannot run the set-up on {host} ({step})")]
    Exec {
        /// The host.
        host: String,
        /// What was going on.
        step: &'static str,
        /// Why.
        source: ExecError,
    },
    /// A command failed.
    #[error("the set-up failed on {host} ({step}): {message}")]
    Failed {
        /// The host.
        host: String,
        /// What was going on.
        step: &'static str,
        /// What it wrote last.
        message: String,
    },
    /// The admin is not root and sudo asks for a password, or is not there.
    #[error("{user} on {host} is not root and cannot use sudo without a password: {message}")]
    NeedsRoot {
        /// The host.
        host: String,
        /// The admin.
        user: String,
        /// What sudo says.
        message: String,
    },
    /// There is nothing to install on such a machine.
    #[error(transparent)]
    Executable(#[from] ExecutablesError),
    /// The executable arrived damaged.
    #[error("the executable arrived damaged on {host}: its SHA-256 is {arrived}, not {sent}")]
    Damaged {
        /// The host.
        host: String,
        /// What should have arrived.
        sent: String,
        /// What arrived.
        arrived: String,
    },
    /// The executable does not run there.
    #[error("the executable does not run on {host} ({arch}): {message}")]
    DoesNotRun {
        /// The host.
        host: String,
        /// Its architecture.
        arch: String,
        /// What it says.
        message: String,
    },
    /// The agent does not answer through the restricted key.
    #[error("the agent on {host} did not answer within {} s", .within.as_secs())]
    NoAnswer {
        /// The host.
        host: String,
        /// The bound.
        within: Duration,
        /// The last failure.
        source: Box<DialError>,
    },
    /// The bastion does not take the controller's key.
    #[error("the bastion {bastion} does not let the controller's key in: {message}")]
    Bastion {
        /// The bastion.
        bastion: String,
        /// Why.
        message: String,
        /// The line that its `authorized_keys` needs.
        line: String,
    },
}

impl BootstrapError {
    /// Whether only the user can put it right, so that trying again is idle.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Ssh { source, .. } => source.is_permanent(),
            Self::NeedsRoot { .. }
            | Self::Executable(_)
            | Self::DoesNotRun { .. }
            | Self::Bastion { .. } => true,
            Self::Exec { .. }
            | Self::Failed { .. }
            | Self::Damaged { .. }
            | Self::NoAnswer { .. } => false,
        }
    }

    /// As users meet it.
    pub fn problem(&self) -> Problem {
        let detail = format!("{}.", chain(self));
        let problem = |status, code, title| Problem::new(status, code, title, detail.clone());
        match self {
            Self::Ssh { source, .. } => ssh_problem(source, detail),
            Self::NeedsRoot { user, .. } => problem(422, "host-needs-root", "The set-up needs root").hint(format!(
                "Log in as root, or let the user in without a password: echo '{user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{user}"
            )),
            Self::Executable(error) => {
                problem(422, "no-executable", "There is nothing to install on such a machine")
                    .hint(error.hint())
            }
            Self::DoesNotRun { .. } => problem(422, "executable-does-not-run", "The executable does not run there")
                .hint("Put a statically linked build into the controller's builds directory (`--builds DIR`) and add the host again."),
            Self::NoAnswer { .. } => problem(504, "agent-silent", "The agent does not answer").hint(
                "Look at `journalctl -u beanpole-agent` there. sshd must allow public keys and AllowStreamLocalForwarding for the user `beanpole` (see AllowUsers and DenyUsers).",
            ),
            Self::Bastion { line, .. } => problem(422, "bastion-refuses", "The bastion does not let the controller in")
                .hint(format!("Add this line to the user's ~/.ssh/authorized_keys on the bastion, then add the host again: {line}")),
            Self::Damaged { .. } | Self::Exec { .. } | Self::Failed { .. } => {
                problem(502, "host-setup-failed", "The host could not be set up")
                    .hint("Adding a host again repairs what is there.")
            }
        }
    }
}

/// A failure of SSH as users meet it.
pub fn ssh_problem(error: &SshError, detail: String) -> Problem {
    match error {
        SshError::KeyChanged { shown, .. } => Problem::new(
            409,
            "host-key-changed",
            "The host shows another key",
            detail,
        )
        .hint(format!(
            "If you know why it changed: beanpole host accept-key HOST --host-key {}",
            shown.fingerprint
        )),
        SshError::Denied { .. } => {
            Problem::new(422, "ssh-denied", "The host does not let us in", detail)
                .hint("Check the user and the key: beanpole host add USER@ADDRESS --identity FILE")
        }
        SshError::Agent { .. } => Problem::new(
            422,
            "ssh-agent-unusable",
            "The ssh-agent cannot be used",
            detail,
        )
        .hint("Check $SSH_AUTH_SOCK and `ssh-add -l`, or give a key: --identity FILE"),
        SshError::Jump { source, .. } => {
            let inner = ssh_problem(source, detail.clone());
            Problem { detail, ..inner }
        }
        _ => Problem::new(
            502,
            "host-unreachable",
            "The host cannot be reached",
            detail,
        ),
    }
}

/// Sets the host up, or repairs it.
pub async fn add_host(
    setup: &HostSetup,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<HostAdded, BootstrapError> {
    progress(Progress::Connecting);
    let session = ssh::connect(&setup.admin, &setup.options)
        .await
        .map_err(|source| BootstrapError::Ssh {
            host: setup.admin.ssh.to_string(),
            source,
        })?;
    let host = Host {
        setup,
        session: &session,
    };
    let found = host.detect().await?;
    progress(Progress::Detected {
        os: found.os.clone(),
        arch: found.arch.clone(),
        systemd: found.systemd,
        sudo: found.sudo,
    });
    let executable = setup.executables.find(&found.kernel, &found.arch).await?;
    let uploaded = host.upload(&found, &executable, progress).await?;
    progress(Progress::Installing);
    host.install(&found, &executable).await?;
    let jump = match &setup.admin.jump {
        None => None,
        Some(jump) => Some(Arc::new(authorise_bastion(setup, jump).await?)),
    };
    let target = Target {
        ssh: beanpole_protocol::api::SshAddress {
            user: setup.paths.user.clone(),
            ..setup.admin.ssh.clone()
        },
        host_key: session.host_key().clone(),
        credential: setup.controller_key.credential(),
        jump,
    };
    let dialer = Dialer::Ssh {
        target: Box::new(target.clone()),
        socket: setup.paths.socket().display().to_string(),
        options: setup.options,
    };
    progress(Progress::Waiting);
    let report = host.wait(&dialer, &executable).await?;
    let mut notes = Vec::new();
    let service = if found.systemd {
        Service::Systemd
    } else {
        notes.push(
            "systemd does not run this machine: the agent is kept running by a parent process, and after a reboot the host must be added again (or `beanpole agent --supervise` be started by its own init)."
                .to_owned(),
        );
        Service::Supervised
    };
    Ok(HostAdded {
        dialer,
        host_key: target.host_key.clone(),
        target,
        report,
        service,
        executable,
        uploaded,
        notes,
    })
}

/// What a host said about itself.
struct Found {
    kernel: String,
    arch: String,
    os: String,
    systemd: bool,
    sudo: bool,
}

struct Host<'a> {
    setup: &'a HostSetup,
    session: &'a Session,
}

impl Host<'_> {
    fn name(&self) -> String {
        self.setup.admin.ssh.to_string()
    }

    /// Runs one of our scripts with `values` as its variables, as root where `sudo` says how.
    async fn script(
        &self,
        step: &'static str,
        sudo: bool,
        script: &str,
        values: &[(&str, &str)],
    ) -> Result<String, BootstrapError> {
        let output = scripts::run(self.session, sudo, script, values, SCRIPT_LIMIT)
            .await
            .map_err(|source| BootstrapError::Exec {
                host: self.name(),
                step,
                source,
            })?;
        if output.status == Some(0) {
            return Ok(output.stdout);
        }
        Err(BootstrapError::Failed {
            host: self.name(),
            step,
            message: last_words(&output),
        })
    }

    async fn detect(&self) -> Result<Found, BootstrapError> {
        let systemd = self.setup.paths.systemd.display().to_string();
        let said = self
            .script(
                "detecting",
                false,
                scripts::DETECT,
                &[("SYSTEMD", &systemd)],
            )
            .await?;
        let said: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let get = |name: &str| said.get(name).map_or("", |text| text.trim());
        let root = get("uid") == "0";
        if !root && get("sudo") != "yes" {
            return Err(BootstrapError::NeedsRoot {
                host: self.name(),
                user: self.setup.admin.ssh.user.clone(),
                message: get("sudo").to_owned(),
            });
        }
        Ok(Found {
            kernel: get("kernel").to_owned(),
            arch: get("arch").to_owned(),
            os: get("os").to_owned(),
            systemd: get("systemd") == "yes",
            sudo: !root,
        })
    }

    /// Where this version's executable lies on the host.
    fn directory(&self, executable: &Executable) -> PathBuf {
        let name = format!("{}-{}", executable.version, executable.digest.short());
        self.setup.paths.lib.join(name)
    }

    fn temporary(&self, executable: &Executable) -> PathBuf {
        let name = format!(".upload-{}", executable.digest.short());
        self.setup.paths.lib.join(name)
    }

    /// Uploads the executable unless it is there; returns whether it did.
    async fn upload(
        &self,
        found: &Found,
        executable: &Executable,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<bool, BootstrapError> {
        let installed = self.directory(executable).join("beanpole");
        let installed = installed.display().to_string();
        let digest = |path: String| async move {
            self.script(
                "reading the executable's digest",
                found.sudo,
                scripts::DIGEST,
                &[("FILE", &path)],
            )
            .await
            .map(|said| said.trim().to_owned())
        };
        if digest(installed).await? == executable.digest.as_str() {
            progress(Progress::UpToDate);
            return Ok(false);
        }
        let failed = |error: std::io::Error| BootstrapError::Exec {
            host: self.name(),
            step: "uploading",
            source: ExecError::Input(error),
        };
        let file = tokio::fs::File::open(&executable.path)
            .await
            .map_err(failed)?;
        let size = file.metadata().await.map_err(failed)?.len();
        progress(Progress::Uploading { sent: 0, size });
        let state = (file, 0_u64);
        let pieces = futures::stream::try_unfold(state, |(mut file, sent)| async move {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece).await?;
            if length == 0 {
                return Ok(None);
            }
            piece.truncate(length);
            let sent = sent + length as u64;
            progress(Progress::Uploading { sent, size });
            Ok(Some((Bytes::from(piece), (file, sent))))
        });
        let temporary = self.temporary(executable).display().to_string();
        let directory = self.setup.paths.lib.display().to_string();
        let command = scripts::command(
            found.sudo,
            scripts::UPLOAD,
            &[("DIRECTORY", &directory), ("FILE", &temporary)],
        );
        let output = self
            .session
            .exec(&command, pieces, UPLOAD_LIMIT)
            .await
            .map_err(|source| BootstrapError::Exec {
                host: self.name(),
                step: "uploading",
                source,
            })?;
        if output.status != Some(0) {
            return Err(BootstrapError::Failed {
                host: self.name(),
                step: "uploading",
                message: last_words(&output),
            });
        }
        let arrived = digest(temporary).await?;
        if arrived != executable.digest.as_str() {
            return Err(BootstrapError::Damaged {
                host: self.name(),
                sent: executable.digest.to_string(),
                arrived,
            });
        }
        Ok(true)
    }

    async fn install(&self, found: &Found, executable: &Executable) -> Result<(), BootstrapError> {
        let paths = &self.setup.paths;
        let text = |path: PathBuf| path.display().to_string();
        let place = [
            ("FILE", text(self.temporary(executable))),
            ("DIRECTORY", text(self.directory(executable))),
        ];
        let place: Vec<(&str, &str)> = place.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let step = "placing the executable";
        let output = scripts::run(
            self.session,
            found.sudo,
            scripts::PLACE,
            &place,
            SCRIPT_LIMIT,
        )
        .await
        .map_err(|source| BootstrapError::Exec {
            host: self.name(),
            step,
            source,
        })?;
        match output.status {
            Some(0) => {}
            Some(scripts::DOES_NOT_RUN) => {
                return Err(BootstrapError::DoesNotRun {
                    host: self.name(),
                    arch: found.arch.clone(),
                    message: last_words(&output),
                });
            }
            _ => {
                return Err(BootstrapError::Failed {
                    host: self.name(),
                    step,
                    message: last_words(&output),
                });
            }
        }
        let authorized = format!(
            "restrict,port-forwarding {}",
            self.setup.controller_key.public_line()
        );
        let installed = Installed {
            user: paths.user.clone(),
            home: text(paths.home.clone()),
            executables: text(paths.lib.clone()),
            data: text(paths.data.clone()),
            run: text(paths.run.clone()),
            unit: found
                .systemd
                .then(|| text(paths.units.join("beanpole-agent.service"))),
        };
        let installed = serde_json::to_string_pretty(&installed)
            .expect("strings are always representable as JSON");
        let values = [
            ("LIB", text(paths.lib.clone())),
            ("VERSION_DIR", text(self.directory(executable))),
            ("DATA", text(paths.data.clone())),
            ("RUN", text(paths.run.clone())),
            ("HOME_DIR", text(paths.home.clone())),
            ("UNITS", text(paths.units.clone())),
            ("BEANPOLE_USER", paths.user.clone()),
            ("SOCKET", text(paths.socket())),
            ("AUTHORIZED", authorized),
            ("INSTALLED", installed),
            ("UNIT", scripts::unit(paths)),
            (
                "WITH_SYSTEMD",
                if found.systemd { "yes" } else { "no" }.to_owned(),
            ),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(n, v)| (*n, v.as_str())).collect();
        self.script("installing", found.sudo, scripts::INSTALL, &values)
            .await?;
        Ok(())
    }

    /// Asks the agent through the restricted key until it answers with the right executable.
    async fn wait(
        &self,
        dialer: &Dialer,
        executable: &Executable,
    ) -> Result<HostReport, BootstrapError> {
        let within = self.setup.ready_within;
        let deadline = Instant::now() + within;
        loop {
            let asked = async {
                let transport = dialer.dial().await?;
                let mut connection = transport.open().await?;
                let report: HostReport =
                    connection.get("/v1/report", Duration::from_secs(5)).await?;
                transport.close().await;
                Ok::<_, DialError>(report)
            };
            let failure = match asked.await {
                Ok(report)
                    if report
                        .agent_digest
                        .as_ref()
                        .is_none_or(|digest| *digest == executable.digest) =>
                {
                    return Ok(report);
                }
                // The old one, on its way out.
                Ok(_) => None,
                Err(error) => Some(error),
            };
            if Instant::now() >= deadline {
                return Err(BootstrapError::NoAnswer {
                    host: self.name(),
                    within,
                    source: Box::new(failure.unwrap_or(DialError::TimedOut(within))),
                });
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }
}

/// Lets the controller's own key through the bastion (to forward only), so that the admin's need
/// not be kept, and returns the bastion with that key.
async fn authorise_bastion(setup: &HostSetup, jump: &Target) -> Result<Target, BootstrapError> {
    let line = format!(
        "restrict,port-forwarding {}",
        setup.controller_key.public_line()
    );
    let failed = |message: String| BootstrapError::Bastion {
        bastion: jump.ssh.to_string(),
        message,
        line: line.clone(),
    };
    let mut own = Target {
        credential: setup.controller_key.credential(),
        ..jump.clone()
    };
    if let Some(next) = &jump.jump {
        own.jump = Some(Arc::new(Box::pin(authorise_bastion(setup, next)).await?));
    }
    match ssh::connect(&own, &setup.options).await {
        Ok(session) => {
            own.host_key = session.host_key().clone();
            return Ok(own);
        }
        Err(SshError::Denied { .. }) => {}
        Err(error) => return Err(failed(chain(&error))),
    }
    let session = ssh::connect(jump, &setup.options)
        .await
        .map_err(|error| failed(chain(&error)))?;
    let output = scripts::run(
        &session,
        false,
        scripts::AUTHORISE,
        &[("AUTHORIZED", &line)],
        SCRIPT_LIMIT,
    )
    .await
    .map_err(|error| failed(chain(&error)))?;
    if output.status != Some(0) {
        return Err(failed(last_words(&output)));
    }
    let session = ssh::connect(&own, &setup.options)
        .await
        .map_err(|error| failed(chain(&error)))?;
    own.host_key = session.host_key().clone();
    Ok(own)
}

/// The last line that a command wrote, for an error.
fn last_words(output: &ssh::Output) -> String {
    let text = if output.stderr.trim().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    match (lines.is_empty(), output.status) {
        (false, _) => lines[lines.len().saturating_sub(3)..].join("; "),
        (true, Some(status)) => format!("it ended with status {status}"),
        (true, None) => "it was ended by a signal".to_owned(),
    }
}

/// Unlimited pushes, for callers that have no budget to share.
pub fn unlimited() -> Arc<Pushes> {
    Pushes::new(None, 16)
}
