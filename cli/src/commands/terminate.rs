//! `beanpole terminate`: take an environment down.

use super::{ask, can_ask, environment_path};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::Operation;
use clap::Args;

/// Take an environment down: its instances, its hostname, its settings
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole terminate shop-dev\n  beanpole terminate shop-dev --yes       for scripts\n\nThe application and its versions stay."
)]
pub struct Terminate {
    /// The environment; deploy.toml does not stand in for it
    environment: EnvironmentName,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Asks, takes it down and waits.
pub fn run(context: &Context, command: &Terminate) -> Result<(), Failure> {
    let name = &context.environment(Some(&command.environment))?;
    if !command.yes {
        if !can_ask() {
            return Err(Failure::misuse(format!(
                "Nobody can be asked whether to take {name} down."
            ))
            .hint(format!("Say so: beanpole terminate {name} --yes")));
        }
        let answer = ask(&format!("This takes {name} down. Type its name to go on:"))?;
        if answer != name.as_str() {
            return Err(Failure::new(format!("{name} is left as it is.")));
        }
    }
    let operation: Operation = context.client()?.delete(&environment_path(name))?;
    watch::finish(context, operation, command.detach)
}
