//! `beanpole restart`: the same release, started afresh.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::Operation;
use clap::Args;

/// Restart an environment's processes, by its deployment policy
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole restart shop-prod\n  beanpole restart shop-prod --detach"
)]
pub struct Restart {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Restarts and waits.
pub fn run(context: &Context, command: &Restart) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let operation: Operation = context.client()?.post(
        &format!("{}/restart", environment_path(&name)),
        &serde_json::json!({}),
    )?;
    watch::finish(context, operation, command.detach)
}
