//! `beanpole attach`: follow an operation again.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::api::{Environment, Operation};
use beanpole_protocol::ids::shown;
use beanpole_protocol::{EnvironmentName, OperationId};
use clap::Args;

/// Follow an operation again, up to its end
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  beanpole attach shop-prod\n  beanpole attach op-4k2m9x1c7p3q")]
pub struct Attach {
    /// The operation, or an environment [default: `environment` of deploy.toml]
    #[arg(value_name = "OPERATION|ENVIRONMENT")]
    what: Option<String>,
}

/// Finds the operation and waits for its end.
pub fn run(context: &Context, command: &Attach) -> Result<(), Failure> {
    let client = context.client()?;
    if let Some(id) = command
        .what
        .as_ref()
        .and_then(|text| OperationId::new(text).ok())
    {
        let operation: Operation = client
            .get(&format!("/v1/operations/{id}"))
            .map_err(|failure: Failure| failure.or_hint("See what ran: beanpole events --all"))?;
        return watch::follow(context, operation);
    }
    let named = command
        .what
        .as_ref()
        .map(EnvironmentName::new)
        .transpose()
        .map_err(|error| {
            Failure::misuse(format!(
                "`{}` is neither an environment nor an operation.",
                shown(&error.text)
            ))
            .hint("Name an environment (beanpole list), or an operation as `op-4k2m9x1c7p3q`")
        })?;
    let name = context.environment(named.as_ref())?;
    let environment: Environment = client.get(&environment_path(&name))?;
    match environment.operation.or(environment.queued) {
        Some(operation) => watch::follow(context, operation),
        None => Err(Failure::new(format!("No operation runs on {name}."))
            .hint(format!("See what ran: beanpole events {name}"))),
    }
}
