//! `beanpole promote`: all requests to the new release of a split.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::Operation;
use clap::Args;

/// Give all requests to the new release of a running split, without waiting any longer
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole promote shop-prod\n  beanpole promote shop-prod --detach\n\nTo take the new release away instead: beanpole abort shop-prod"
)]
pub struct Promote {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Promotes, and waits for the end of the deployment.
pub fn run(context: &Context, command: &Promote) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let operation: Operation = context.client()?.post(
        &format!("{}/promote", environment_path(&name)),
        &serde_json::json!({}),
    )?;
    if command.detach {
        let text = format!(
            "The new release of {name} is promoted.\nFollow it: beanpole attach {}",
            operation.id
        );
        return context.output.result(&operation, text);
    }
    watch::finish(context, operation, false)
}
