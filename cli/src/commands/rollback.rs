//! `beanpole rollback`: back to an older release.

use super::{deploy, environment_path};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::api::{Operation, PlanView, Rollback as Body};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::{EnvironmentName, ReleaseNumber};
use clap::Args;

/// Take an environment back to the release before, or to any older one
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole rollback shop-prod\n  beanpole rollback shop-prod --to 3\n  beanpole rollback shop-prod --policy AllAtOnce\n  beanpole rollback shop-prod --plan            show what would happen"
)]
pub struct Rollback {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// The release to return to; list them with `beanpole releases`
    #[arg(long, value_name = "RELEASE")]
    to: Option<ReleaseNumber>,
    /// AllAtOnce or Rolling [default: the environment's]
    #[arg(long)]
    policy: Option<DeploymentPolicy>,
    /// How many instances at a time, `1` or `30%` [default: the environment's]
    #[arg(long, value_name = "N|P%")]
    batch: Option<BatchSize>,
    /// Show what would happen, and stop
    #[arg(long, conflicts_with = "detach")]
    plan: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Goes back and waits.
pub fn run(context: &Context, command: &Rollback) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let client = context.client()?;
    let path = format!("{}/rollback", environment_path(&name));
    let body = Body {
        to: command.to,
        policy: command.policy,
        batch: command.batch,
    };
    if command.plan {
        let plan: PlanView = client.post(&format!("{path}?plan=true"), &body)?;
        if context.output.json {
            return context.output.json(&plan);
        }
        let to = command.to.map_or_else(
            || "the release before".to_owned(),
            |to| format!("release {to}"),
        );
        context
            .output
            .line(format!("Plan for {name}: back to {to}"));
        for line in deploy::plan_lines(&plan) {
            context.output.line(line);
        }
        return Ok(());
    }
    let operation: Operation = client.post(&path, &body)?;
    watch::finish(context, operation, command.detach)
}
