//! Setting a host up: from nothing but sshd to an agent that answers through a restricted key.
//!
//! This is the only time that Beanpole runs commands on a host. It may be repeated at will: what is
//! there already stays, what is missing or different is put right, apps are never touched.

mod bastion;
mod elf;
mod error;
mod executables;
mod keys;
mod progress;
pub(crate) mod quote;
mod scripts;
mod standing;
mod steps;

pub use error::{BootstrapError, ssh_problem};
pub use executables::{Executables, ExecutablesError};
pub use keys::Obstacle;
pub use progress::Progress;
pub use quote::quoted;
pub use standing::Standing;

use crate::client::Executable;
use crate::dial::Dialer;
use crate::ssh::{self, ControllerKey, HostKey, Options, Target};
use beanpole_protocol::agent::{ControllerIdentity, HostReport};
use beanpole_protocol::problem::Problem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use steps::Host;

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
    /// Where cron is told what to start at boot, where systemd does not: `/etc/cron.d`.
    pub cron: PathBuf,
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
            cron: "/etc/cron.d".into(),
            user: "beanpole".to_owned(),
        }
    }
}

impl Paths {
    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// What starts the agent where systemd does not, unless it runs: for whatever starts things at
    /// boot there.
    pub fn start_agent(&self) -> PathBuf {
        self.lib.join("start-agent")
    }

    /// The file by which cron starts the agent at boot.
    fn cron_file(&self) -> PathBuf {
        self.cron.join("beanpole-agent")
    }
}

/// A host to set up.
#[derive(Clone, Debug)]
pub struct HostSetup {
    /// The way in for the admin: root, or a user with passwordless sudo.
    pub admin: Target,
    /// Whose the host shall be.
    pub controller: ControllerIdentity,
    /// Also when it belongs to another controller: all that runs there ends.
    pub take_over: bool,
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
    pub fn new(
        admin: Target,
        controller: ControllerIdentity,
        controller_key: ControllerKey,
        executables: Executables,
    ) -> Self {
        Self {
            admin,
            controller,
            take_over: false,
            controller_key,
            executables,
            paths: Paths::default(),
            ready_within: Duration::from_secs(30),
            options: Options::default(),
        }
    }
}

/// What keeps the agent running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A systemd unit, started at boot.
    Systemd,
    /// A parent process that starts it again; cron starts that one at boot.
    Cron,
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
    /// The controller that it was taken over from, as people are told.
    pub taken_from: Option<String>,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Sets the host up, or repairs it. `admit` is asked once the host has said which it is, before
/// anything is changed there.
pub async fn add_host(
    setup: &HostSetup,
    progress: &(dyn Fn(Progress) + Send + Sync),
    admit: &(dyn Fn(&Standing) -> Result<(), Problem> + Send + Sync),
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
    let standing = host.standing(&found).await?;
    admit(&standing).map_err(|problem| BootstrapError::NotAdmitted(Box::new(problem)))?;
    let taken_from = standing.of_another(setup);
    if let Some(whose) = &taken_from
        && !setup.take_over
    {
        return Err(BootstrapError::Foreign {
            host: setup.admin.ssh.to_string(),
            whose: whose.clone(),
            holds: standing.holds(),
        });
    }
    let executable = setup.executables.find(&found.kernel, &found.arch).await?;
    let uploaded = host.upload(&found, &executable, progress).await?;
    progress(Progress::Installing);
    host.install(&found, &executable).await?;
    let jump = match &setup.admin.jump {
        None => None,
        Some(jump) => Some(Arc::new(
            bastion::authorise(setup, jump, &setup.admin.ssh).await?,
        )),
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
    host.wait(&found, &dialer, &executable).await?;
    let report = host.claim(&dialer).await?;
    let mut notes = Vec::new();
    if let Some(whose) = &taken_from {
        notes.push(format!(
            "It was taken over from {whose}. What it held for that one is ended and removed: {}.",
            standing.holds()
        ));
    }
    let service = match (found.systemd, found.cron) {
        (true, _) => Service::Systemd,
        (false, true) => Service::Cron,
        (false, false) => Service::Supervised,
    };
    match service {
        Service::Systemd => {}
        Service::Cron => notes.push(
            "systemd does not run this machine: a parent process keeps the agent running, and cron starts that one at boot."
                .to_owned(),
        ),
        Service::Supervised => notes.push(format!(
            "Neither systemd nor cron runs on this machine: a parent process keeps the agent running, and after a reboot nothing starts it. Have the machine's own init run {} at boot, or add the host again then.",
            setup.paths.start_agent().display()
        )),
    }
    Ok(HostAdded {
        dialer,
        host_key: target.host_key.clone(),
        target,
        report,
        service,
        executable,
        uploaded,
        taken_from,
        notes,
    })
}
