//! `beanpole printenv`: an environment's properties.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::project::envfile::quoted;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::options::{OptionSettings, PROPERTIES};
use clap::Args;

/// Print an environment's properties, NAME=VALUE
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole printenv shop-prod\n  beanpole printenv shop-prod --name DATABASE_URL\n  beanpole printenv shop-prod | beanpole setenv shop-dev --file -\n\nA value of several lines stands in double quotes with the escapes of JSON, as `setenv --file`\nreads it; --name writes the value as it is."
)]
pub struct Printenv {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Print the value of this one only
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Prints them.
pub fn run(context: &Context, command: &Printenv) -> Result<(), Failure> {
    let environment = context.environment(command.environment.as_ref())?;
    let settings: OptionSettings = context
        .client()?
        .get(&format!("{}/settings", environment_path(&environment)))?;
    if let Some(name) = &command.name {
        let value = settings.get(PROPERTIES, name).ok_or_else(|| {
            Failure::new(format!("{environment} has no property `{name}`."))
                .hint(format!("List them: beanpole printenv {environment}"))
        })?;
        if context.output.json {
            return context.output.json(&value);
        }
        context.output.value(value);
        return Ok(());
    }
    let properties = settings.0.get(PROPERTIES).cloned().unwrap_or_default();
    if context.output.json {
        return context.output.json(&properties);
    }
    for (name, value) in &properties {
        context.output.line(format!("{name}={}", quoted(value)));
    }
    Ok(())
}
