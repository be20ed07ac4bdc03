//! Why a host cannot be set up, and what the user does about it.

use super::ExecutablesError;
use super::keys::{Obstacle, advice};
use crate::chain;
use crate::dial::DialError;
use crate::ssh::{ExecError, SshError};
use beanpole_protocol::agent::FOREIGN_CONTROLLER;
use beanpole_protocol::problem::Problem;
use std::time::Duration;

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
    /// Somebody else's user has the name of ours.
    #[error("there is a user `{user}` on {host} that Beanpole did not make (its home is {home})")]
    UserTaken {
        /// The host.
        host: String,
        /// The name.
        user: String,
        /// That user's home directory.
        home: String,
    },
    /// It belongs to another controller.
    #[error("{host} belongs to {whose}, and holds {holds}; nothing was changed there")]
    Foreign {
        /// The host.
        host: String,
        /// Which controller, and since when.
        whose: String,
        /// What would end.
        holds: String,
    },
    /// The caller will not have this host.
    #[error("{}", .0.detail)]
    NotAdmitted(Box<Problem>),
    /// Its agent does not take the controller for its own.
    #[error("the agent on {host} does not take this controller for its own")]
    NotClaimed {
        /// The host.
        host: String,
        /// Why.
        source: Box<DialError>,
    },
    /// There is nothing to install on such a machine.
    #[error(transparent)]
    Executable(#[from] ExecutablesError),
    /// The executable arrived damaged.
    #[error(
        "the executable arrived damaged on {host}: its SHA-256 is {}, not {sent}",
        or_gone(arrived)
    )]
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
        /// What its sshd is set to that keeps the key out.
        obstacles: Vec<Obstacle>,
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
            | Self::UserTaken { .. }
            | Self::Foreign { .. }
            | Self::NotAdmitted(_)
            | Self::Executable(_)
            | Self::DoesNotRun { .. }
            | Self::Bastion { .. } => true,
            Self::Exec { .. }
            | Self::Failed { .. }
            | Self::Damaged { .. }
            | Self::NotClaimed { .. }
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
            Self::UserTaken { user, .. } => problem(409, "user-taken", "The user's name is taken").hint(format!(
                "Beanpole logs in as a user `{user}` of its own. Rename the other one there, then add the host again: usermod -l NEW {user}"
            )),
            Self::Foreign { .. } => problem(409, FOREIGN_CONTROLLER, "The host belongs to another controller")
                .hint("Remove it there first: beanpole host remove NAME. If that controller is gone, take the host over, which ends and removes all that it holds: beanpole host add … --take-over"),
            Self::NotAdmitted(problem) => (**problem).clone(),
            Self::Executable(error) => {
                problem(422, "no-executable", "There is nothing to install on such a machine")
                    .hint(error.hint())
            }
            Self::DoesNotRun { .. } => problem(422, "executable-does-not-run", "The executable does not run there")
                .hint("Put a statically linked build into the controller's builds directory (`--builds DIR`) and add the host again."),
            Self::NoAnswer { obstacles, .. } => problem(504, "agent-silent", "The agent does not answer").hint(
                advice(obstacles).unwrap_or_else(|| "Look at `journalctl -u beanpole-agent` there, or at /var/lib/beanpole/agent.log where systemd does not run. sshd must let the user `beanpole` in by its key (see AllowUsers and DenyUsers).".to_owned()),
            ),
            Self::Bastion { line, .. } => problem(422, "bastion-refuses", "The bastion does not let the controller in")
                .hint(format!("Add this line to the user's ~/.ssh/authorized_keys on the bastion (or its `permitopen` to the line with that key, if there is one), then add the host again: {line}")),
            Self::Damaged { .. } | Self::NotClaimed { .. } | Self::Exec { .. } | Self::Failed { .. } => {
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
            "Compare it on the host itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub. If it is right, add a new host with --host-key {0}, and accept it for one that is there: beanpole host accept-key HOST --host-key {0}",
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
        )
        .hint("Try it from the controller's machine: ssh -p PORT USER@ADDRESS. Another port is written ADDRESS:PORT, a bastion is given with --jump."),
    }
}

fn or_gone(arrived: &str) -> &str {
    if arrived.is_empty() {
        "none, for it is gone (is it being added or removed by somebody else?)"
    } else {
        arrived
    }
}
