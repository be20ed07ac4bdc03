//! `beanpole host`: the machines.

use super::{all, ask, can_ask, host_add};
use crate::client::escape;
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use crate::output::{Output, ago, bytes, plural, table};
use beanpole_daemon::clock;
use beanpole_protocol::HostName;
use beanpole_protocol::api::{AcceptHostKey, Host as View, HostRemoved, UpdateLabels};
use clap::{Args, Subcommand};

/// Add, show, label, drain, upgrade and remove hosts
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole host add deploy@192.0.2.10 --identity ~/.ssh/id_ed25519\n  beanpole host list\n  beanpole host drain web-1\n  beanpole host remove web-1"
)]
pub struct Host {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    Add(Box<host_add::Add>),
    /// List hosts
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  beanpole host list --json"
    )]
    List,
    /// Show a host: its machine, its agent, what is odd about it
    #[command(after_help = "Example:\n  beanpole host show web-1")]
    Show {
        /// Its name
        host: HostName,
    },
    /// Change a host's labels, which decide what it may run
    #[command(
        after_help = "Examples:\n  beanpole host label web-1 disk=ssd zone=a\n  beanpole host label web-1 --remove zone\n  beanpole config shop-prod --set HostLabels=disk=ssd       only hosts with it get instances\n\nInstances whose environment asks for a label that the host does not have any more move elsewhere,\nwhere there is room."
    )]
    Label {
        /// Its name
        host: HostName,
        /// Labels to set
        #[arg(value_name = "NAME=VALUE", required_unless_present = "remove")]
        labels: Vec<String>,
        /// Labels to remove
        #[arg(long, value_name = "NAME")]
        remove: Vec<String>,
    },
    /// Move a host's instances elsewhere and give it no new ones
    #[command(after_help = "Example:\n  beanpole host drain web-1")]
    Drain {
        /// Its name
        host: HostName,
    },
    /// Let a drained host have instances again
    #[command(after_help = "Example:\n  beanpole host resume web-1")]
    Resume {
        /// Its name
        host: HostName,
    },
    /// Put this version's agent on a host; applications keep running
    #[command(
        after_help = "Examples:\n  beanpole host upgrade web-1\n  beanpole host upgrade --all"
    )]
    Upgrade {
        /// Its name
        #[arg(required_unless_present = "all")]
        host: Option<HostName>,
        /// Every host
        #[arg(long, conflicts_with = "host")]
        all: bool,
    },
    /// Remove a host and everything that Beanpole put on it
    #[command(
        after_help = "Examples:\n  beanpole host remove web-1 --yes\n  beanpole host remove web-1 --yes --force     it is gone for good and cannot be asked"
    )]
    Remove {
        /// Its name
        host: HostName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Forget a host that cannot be reached; what is on it stays there
        #[arg(long)]
        force: bool,
    },
    /// Accept a host's changed key
    #[command(
        after_help = "Example:\n  beanpole host accept-key web-1 --host-key SHA256:…\n\nCompare it on the host itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    )]
    AcceptKey {
        /// Its name
        host: HostName,
        /// The new fingerprint
        #[arg(long, value_name = "SHA256:…", value_parser = host_add::fingerprint)]
        host_key: String,
    },
}

fn path(name: &HostName) -> String {
    format!("/v1/hosts/{}", escape(name.as_str()))
}

/// Does it.
pub fn run(context: &Context, command: Host) -> Result<(), Failure> {
    let client = context.client()?;
    let nothing = serde_json::json!({});
    match command.command {
        HostCommand::Add(add) => host_add::run(context, &add),
        HostCommand::List => list(context),
        HostCommand::Show { host } => {
            let view: View = client.get(&path(&host))?;
            context.output.result(&view, show(context.output, &view))
        }
        HostCommand::Label {
            host,
            labels,
            remove,
        } => {
            let change = UpdateLabels {
                set: host_add::labels(&labels)?,
                remove,
            };
            let view: View = client.patch(&format!("{}/labels", path(&host)), &change)?;
            let text = match labels_of(&view) {
                none if none.is_empty() => format!("{host} has no labels any more."),
                labels => format!("{host} has the labels {labels}."),
            };
            context.output.result(&view, text)
        }
        HostCommand::Drain { host } => {
            let view: View = client.post(&format!("{}/drain", path(&host)), &nothing)?;
            let text = match view.instances {
                0 => format!("{host} gets no instances any more."),
                left => format!(
                    "{host} gets no instances any more; its {} move elsewhere.\nSee it: beanpole host show {host}",
                    plural(u64::from(left), "instance")
                ),
            };
            context.output.result(&view, text)
        }
        HostCommand::Resume { host } => {
            let view: View = client.post(&format!("{}/resume", path(&host)), &nothing)?;
            context
                .output
                .result(&view, format!("{host} may have instances again."))
        }
        HostCommand::Upgrade { host, .. } => upgrade(context, host),
        HostCommand::Remove { host, yes, force } => remove(context, &host, yes, force),
        HostCommand::AcceptKey { host, host_key } => {
            let view: View = client.post(
                &format!("{}/host-key", path(&host)),
                &AcceptHostKey { host_key },
            )?;
            context
                .output
                .result(&view, format!("{host}'s new key is accepted."))
        }
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let hosts: Vec<View> = all(context.client()?, "/v1/hosts")?;
    if context.output.json {
        return context.output.json(&hosts);
    }
    let now = clock::now();
    let rows = hosts
        .iter()
        .map(|host| {
            let facts = host.facts.as_ref();
            vec![
                host.name.to_string(),
                host.address.clone(),
                context.output.status(host.status),
                host.instances.to_string(),
                facts
                    .map(|facts| facts.cpus.to_string())
                    .unwrap_or_default(),
                facts
                    .map(|facts| bytes(facts.memory_available_bytes))
                    .unwrap_or_default(),
                host.agent_version.clone().unwrap_or_default(),
                host.last_seen
                    .map(|seen| ago(seen, now))
                    .unwrap_or_default(),
                host.warnings.first().cloned().unwrap_or_default(),
            ]
        })
        .collect();
    context.output.line(table::render(
        &[
            "NAME",
            "ADDRESS",
            "STATUS",
            "INSTANCES",
            "CPUS",
            "FREE",
            "AGENT",
            "SEEN",
            "WARNING",
        ],
        rows,
    ));
    Ok(())
}

fn show(output: Output, host: &View) -> String {
    let now = clock::now();
    let mut pairs = vec![
        ("host", format!("{} ({})", host.name, host.id)),
        ("address", host.address.clone()),
        ("status", output.status(host.status)),
        ("host key", host.host_key.clone().unwrap_or_default()),
        ("instances", host.instances.to_string()),
        (
            "seen",
            host.last_seen
                .map(|seen| ago(seen, now))
                .unwrap_or_default(),
        ),
        ("agent", host.agent_version.clone().unwrap_or_default()),
        (
            "clock",
            host.clock_skew_ms
                .map(|skew| format!("{skew:+} ms from the controller's"))
                .unwrap_or_default(),
        ),
        ("labels", labels_of(host)),
    ];
    if let Some(facts) = &host.facts {
        pairs.extend([
            (
                "system",
                format!("{}, {} {}", facts.os, facts.kernel, facts.arch),
            ),
            (
                "cpu",
                format!(
                    "{}, load {:.2}",
                    plural(u64::from(facts.cpus), "core"),
                    f64::from(facts.load_1m_hundredths) / 100.0
                ),
            ),
            (
                "memory",
                format!(
                    "{} free of {}",
                    bytes(facts.memory_available_bytes),
                    bytes(facts.memory_total_bytes)
                ),
            ),
            (
                "disk",
                format!(
                    "{} free of {}",
                    bytes(facts.disk_available_bytes),
                    bytes(facts.disk_total_bytes)
                ),
            ),
            (
                "docker",
                facts.docker.clone().unwrap_or_else(|| "none".to_owned()),
            ),
        ]);
    }
    let mut text = table::fields(&pairs);
    for fence in host.facts.iter().flat_map(|facts| &facts.fences) {
        let state = if fence.active { "on" } else { "off" };
        text.push_str(&format!("\n  {} {state}: {}", fence.name, fence.detail));
    }
    for warning in &host.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

fn labels_of(host: &View) -> String {
    host.labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn upgrade(context: &Context, named: Option<HostName>) -> Result<(), Failure> {
    let client = context.client()?;
    let names = match named {
        Some(name) => vec![name],
        None => all::<View>(client, "/v1/hosts")?
            .into_iter()
            .map(|host| host.name)
            .collect(),
    };
    let mut upgraded = Vec::new();
    for name in names {
        let view: View =
            client.post(&format!("{}/upgrade", path(&name)), &serde_json::json!({}))?;
        context.output.say(format!(
            "{name} gets this version's agent; its applications keep running."
        ));
        upgraded.push(view);
    }
    if context.output.json {
        return context.output.json(&upgraded);
    }
    Ok(())
}

fn remove(context: &Context, host: &HostName, yes: bool, force: bool) -> Result<(), Failure> {
    if !yes {
        if !can_ask() {
            return Err(
                Failure::misuse(format!("Nobody can be asked whether to remove {host}."))
                    .hint(format!("Say so: beanpole host remove {host} --yes")),
            );
        }
        let answer = ask(&format!(
            "This removes everything that Beanpole put on {host}. Type its name to go on:"
        ))?;
        if answer != host.as_str() {
            return Err(Failure::new(format!("{host} is left as it is.")));
        }
    }
    let query = if force { "?force=true" } else { "" };
    let told = interrupt::failure(format!(
        "Stopped waiting; the controller goes on removing {host}."
    ))
    .hint("See whether it is gone: beanpole host list");
    let (client, target) = (context.client()?.clone(), format!("{}{query}", path(host)));
    let removed: HostRemoved = interrupt::unless(told, move || client.delete(&target))?;
    let mut text = format!("Host {host} is removed.");
    match &removed.uninstalled {
        Some(what) => {
            for line in &what.removed {
                text.push_str(&format!("\n  removed {line}"));
            }
            for line in &what.left {
                text.push_str(&format!("\n  left {line}"));
            }
        }
        None => text.push_str("\nIt could not be asked: what Beanpole put on it is still there."),
    }
    if !removed.left.is_empty() {
        let ids: Vec<&str> = removed.left.iter().map(|id| id.as_str()).collect();
        text.push_str(&format!(
            "\nRuns on there, with its settings, and nobody ends it any more: {}.\nShould the machine come back, add it again (beanpole host add), or erase it.",
            ids.join(", ")
        ));
    }
    context.output.result(&removed, text)
}
