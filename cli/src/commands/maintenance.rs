//! `beanpole maintenance`: closes an environment for a while, and opens it again.

use super::{environment_path, page, source};
use crate::context::Context;
use crate::output::errors::Failure;
use beanpole_protocol::api::{MaintenanceView, SetMaintenance};
use beanpole_protocol::{EnvironmentName, Network};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Close an environment for a while: clients get a page instead of the application
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole maintenance on shop-prod\n  beanpole maintenance on shop-prod --page closed.html --retry-after 3600\n  beanpole maintenance on shop-prod --allow 203.0.113.7          who looks at it meanwhile\n  beanpole maintenance off shop-prod\n\nClients get a 503 with Retry-After. Instances run on, are checked and can be deployed to."
)]
pub struct Maintenance {
    #[command(subcommand)]
    command: MaintenanceCommand,
}

#[derive(Debug, Subcommand)]
enum MaintenanceCommand {
    /// Close it, or change how it is closed
    On {
        /// The environment [default: `environment` of deploy.toml]
        environment: Option<EnvironmentName>,
        /// A page of HTML for clients, at most 64 KiB; {{status}} and {{request_id}} stand for what they say
        /// [default: the page for 503, else a plain one]
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
        /// An address or a network whose clients get to the application all the same; may be repeated
        #[arg(long, value_name = "CIDR")]
        allow: Vec<Network>,
        /// After how many seconds clients may try again
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
        retry_after: u32,
        /// Do not wait for the load balancers
        #[arg(long)]
        detach: bool,
    },
    /// Open it again
    Off {
        /// The environment [default: `environment` of deploy.toml]
        environment: Option<EnvironmentName>,
    },
}

/// Closes or opens.
pub fn run(context: &Context, command: Maintenance) -> Result<(), Failure> {
    match command.command {
        MaintenanceCommand::On {
            environment,
            page,
            allow,
            retry_after,
            detach,
        } => {
            let name = context.environment(environment.as_ref())?;
            let wanted = SetMaintenance {
                page: page.as_deref().map(page::read).transpose()?,
                allow,
                retry_after_s: Some(retry_after),
            };
            close(context, &name, &wanted, detach)
        }
        MaintenanceCommand::Off { environment } => {
            let name = context.environment(environment.as_ref())?;
            context.client()?.remove(&maintenance_path(&name))?;
            context.output.result(
                &serde_json::json!({ "environment": name, "maintenance": null }),
                format!("{name} is open: clients get to the application."),
            )
        }
    }
}

fn maintenance_path(name: &EnvironmentName) -> String {
    format!("{}/maintenance", environment_path(name))
}

fn close(
    context: &Context,
    name: &EnvironmentName,
    wanted: &SetMaintenance,
    detach: bool,
) -> Result<(), Failure> {
    let closed: MaintenanceView = context.client()?.post(&maintenance_path(name), wanted)?;
    let closed = if detach {
        closed
    } else {
        page::in_force(
            context,
            closed,
            |closed| closed.in_force,
            || {
                let now = source::environment(context, name)?.maintenance;
                now.ok_or_else(|| Failure::new(format!("{name} was opened again meanwhile.")))
            },
        )?
    };
    if !detach && !closed.in_force {
        return Err(page::not_everywhere(name));
    }
    let mut text = format!("{name} is closed: clients get a 503.");
    if !closed.allow.is_empty() {
        text.push_str(&format!("\nNot for those at {}.", allowed(&closed)));
    }
    text.push_str(&format!("\nTo open it: beanpole maintenance off {name}"));
    context.output.result(&closed, text)
}

/// Who gets to a closed environment.
pub fn allowed(closed: &MaintenanceView) -> String {
    let allow: Vec<String> = closed.allow.iter().map(ToString::to_string).collect();
    allow.join(", ")
}
