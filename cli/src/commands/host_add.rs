//! `beanpole host add`: trust a host's key, then have the controller install its agent.

use super::{ask, can_ask};
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use beanpole_daemon::files;
use beanpole_protocol::HostName;
use beanpole_protocol::api::{AddHost, AdminKey, Host, HostKey, Jump, ProbeHost, SshAddress};
use beanpole_protocol::ids::shown;
use beanpole_protocol::options::parse_label;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Add a host over SSH, as root or as a user with passwordless sudo
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole host add 192.0.2.10 --identity ~/.ssh/id_ed25519\n  beanpole host add deploy@web-1.example.com:2222 --agent --name web-1\n  beanpole host add root@10.0.0.7 --identity key --host-key SHA256:…          for scripts\n  beanpole host add root@10.0.0.7 --identity key --jump deploy@bastion.example.com\n\nThe host's key is shown and pinned. Your own key is used this once: the controller gets a key of\nits own on the host that reaches nothing but its agent. A passphrase can be given in\nBEANPOLE_PASSPHRASE. Adding a host again repairs it; under its name with another address it\nchanges that. A host that belongs to another controller is refused, and left as it is, without\n--take-over."
)]
pub struct Add {
    /// Where it answers SSH
    #[arg(value_name = "[USER@]ADDRESS[:PORT]")]
    ssh: SshAddress,
    /// Its name in Beanpole [default: its address]
    #[arg(long)]
    name: Option<HostName>,
    /// The private key to get in with
    #[arg(long, short, value_name = "FILE", required_unless_present = "agent")]
    identity: Option<PathBuf>,
    /// Get in with the ssh-agent of the controller's machine ($SSH_AUTH_SOCK)
    #[arg(long, conflicts_with = "identity")]
    agent: bool,
    /// The fingerprint of its key, instead of being asked
    #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
    host_key: Option<String>,
    /// A bastion to go through
    #[arg(long, value_name = "[USER@]ADDRESS[:PORT]")]
    jump: Option<SshAddress>,
    /// The fingerprint of the bastion's key, instead of being asked
    #[arg(long, value_name = "SHA256:…", requires = "jump", value_parser = fingerprint)]
    jump_host_key: Option<String>,
    /// The private key for the bastion [default: that of the host]
    #[arg(long, value_name = "FILE", requires = "jump")]
    jump_identity: Option<PathBuf>,
    /// The address at which the load balancer reaches its instances [default: its SSH address]
    #[arg(long, value_name = "ADDRESS")]
    instance_address: Option<String>,
    /// Take it over from another controller that is gone: everything that it runs for that one ends and is removed
    #[arg(long)]
    take_over: bool,
    /// A label for placement
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Install nothing on it that platforms need (runtimes, by its package manager): deployments name what is missing
    /// instead
    #[arg(long)]
    no_install: bool,
}

/// Shows the key, asks, adds.
pub fn run(context: &Context, command: &Add) -> Result<(), Failure> {
    let admin = admin(command.identity.as_deref(), command.agent)?;
    let jump = match &command.jump {
        None => None,
        Some(ssh) => Some(Jump {
            ssh: ssh.clone(),
            host_key: trusted(
                context,
                ssh,
                None,
                command.jump_host_key.as_deref(),
                "--jump-host-key",
            )?,
            admin: match &command.jump_identity {
                Some(path) => admin_of(path)?,
                None => admin.clone(),
            },
        }),
    };
    let host_key = trusted(
        context,
        &command.ssh,
        jump.clone(),
        command.host_key.as_deref(),
        "--host-key",
    )?;
    let labels = labels(&command.labels)?;
    context
        .output
        .say(format!("Adding {}: installing the agent …", command.ssh));
    let body = AddHost {
        name: command.name.clone(),
        ssh: command.ssh.clone(),
        jump,
        admin,
        host_key,
        take_over: command.take_over,
        instance_address: command.instance_address.clone(),
        labels,
        no_install: command.no_install,
    };
    let told = interrupt::failure(format!(
        "Stopped waiting; the controller goes on adding {}.",
        command.ssh
    ))
    .hint("See whether it is there: beanpole host list. Adding it again repairs it");
    let client = context.client()?.clone();
    let host: Host = interrupt::unless(told, move || client.post("/v1/hosts", &body))?;
    let mut text = format!("Host {} is added ({}).", host.name, host.status);
    for warning in &host.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    context.output.result(&host, text)
}

/// Reads labels, `NAME=VALUE` each.
pub(super) fn labels(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for label in given {
        let (name, value) = read_label(label)?;
        if labels.insert(name.clone(), value).is_some() {
            return Err(
                Failure::misuse(format!("The label `{name}` is given twice."))
                    .hint("Leave one of the two out"),
            );
        }
    }
    Ok(labels)
}

fn read_label(label: &str) -> Result<(String, String), Failure> {
    parse_label(label).ok_or_else(|| {
        Failure::misuse(format!(
            "`{}` is not a label: write NAME=VALUE",
            shown(label)
        ))
        .hint("Letters, digits and . _ - / only: disk=ssd")
    })
}

/// Reads a fingerprint of a host key, as `ssh-keygen -l` writes it.
pub(super) fn fingerprint(text: &str) -> Result<String, String> {
    let digits = text
        .strip_prefix("SHA256:")
        .map(|rest| rest.trim_end_matches('='));
    let right = digits.is_some_and(|digits| {
        digits.len() == 43
            && digits
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    });
    if right {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{}` is not a fingerprint: it is SHA256: and 43 characters, as ssh-keygen -l shows it",
            shown(text)
        ))
    }
}

/// The fingerprint to pin: the one given, else the one that the user confirms.
fn trusted(
    context: &Context,
    ssh: &SshAddress,
    jump: Option<Jump>,
    given: Option<&str>,
    flag: &str,
) -> Result<String, Failure> {
    if let Some(fingerprint) = given {
        return Ok(fingerprint.to_owned());
    }
    let shown: HostKey = context.client()?.post(
        "/v1/hosts/probe",
        &ProbeHost {
            ssh: ssh.clone(),
            jump,
        },
    )?;
    let text = format!(
        "{ssh} shows the key {} ({}).",
        shown.fingerprint, shown.algorithm
    );
    if !can_ask() {
        return Err(Failure::misuse(text).hint(format!(
            "Compare it on the host (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then accept it: {flag} {}",
            shown.fingerprint
        )));
    }
    crate::output::warn(&text);
    crate::output::warn("Compare it on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
    match ask("Is it the host's key? [yes/no]")?.as_str() {
        "yes" | "y" => Ok(shown.fingerprint),
        _ => Err(Failure::new("The host is not added.")),
    }
}

fn admin(identity: Option<&Path>, agent: bool) -> Result<AdminKey, Failure> {
    if agent {
        let socket = std::env::var("SSH_AUTH_SOCK").map_err(|_| {
            Failure::misuse("There is no ssh-agent here: SSH_AUTH_SOCK is not set.")
                .hint("Start one (eval $(ssh-agent); ssh-add), or use --identity FILE")
        })?;
        return Ok(AdminKey::Agent { socket });
    }
    match identity {
        Some(path) => admin_of(path),
        None => Err(Failure::misuse("How to get in?").hint("Give --identity FILE or --agent")),
    }
}

fn admin_of(path: &Path) -> Result<AdminKey, Failure> {
    let private_key = files::read_text(path, files::LARGEST).map_err(|error| {
        Failure::caused(format!("Cannot read the key {}.", path.display()), &error)
            .hint(
                "Name a private key that you may read, such as ~/.ssh/id_ed25519: --identity FILE",
            )
            .into_misuse()
    })?;
    if private_key.starts_with("ssh-") || private_key.starts_with("ecdsa-") {
        return Err(
            Failure::misuse(format!("{} is a public key.", path.display()))
                .hint("Give the private one, usually the same name without .pub"),
        );
    }
    let passphrase = std::env::var("BEANPOLE_PASSPHRASE").ok();
    let passphrase = match passphrase {
        None if is_encrypted(&private_key) => Some(ask_secret(path)?),
        given => given,
    };
    Ok(AdminKey::Identity {
        private_key,
        passphrase,
    })
}

/// Whether a private key needs a passphrase: OpenSSH's format names its cipher in the first bytes,
/// and `none` always looks like this in base64.
fn is_encrypted(key: &str) -> bool {
    const UNENCRYPTED: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
    match key.lines().nth(1) {
        Some(first) if key.contains("BEGIN OPENSSH PRIVATE KEY") => !first.starts_with(UNENCRYPTED),
        _ => key.contains("ENCRYPTED"),
    }
}

/// Asks for a passphrase without showing it.
fn ask_secret(path: &Path) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    if !can_ask() {
        return Err(
            Failure::misuse(format!("The key {} has a passphrase.", path.display()))
                .hint("Give it in BEANPOLE_PASSPHRASE, or use --agent"),
        );
    }
    let cannot = |error: rustix::io::Errno| {
        Failure::caused("The terminal cannot be told to hide what is typed.", &error)
    };
    let stdin = std::io::stdin();
    let shown = tcgetattr(&stdin).map_err(cannot)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &hidden).map_err(cannot)?;
    let answer = ask(&format!("Passphrase of {}:", path.display()));
    let restored = tcsetattr(&stdin, OptionalActions::Now, &shown).map_err(cannot);
    crate::output::warn("");
    restored?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_a_passphrase_is_told_from_one_without() {
        let plain =
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n";
        let locked = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0\n";
        assert!(!is_encrypted(plain));
        assert!(is_encrypted(locked));
        assert!(is_encrypted("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII"));
        assert!(!is_encrypted("-----BEGIN RSA PRIVATE KEY-----\nMII"));
    }
}
