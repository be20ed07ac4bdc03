//! `beanpole cut`: an end to instances that linger.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use beanpole_protocol::api::{EndLingering, LingeringEnded};
use beanpole_protocol::{EnvironmentName, InstanceId};
use clap::Args;

/// End instances that linger, and cut the connections that are still open there
#[derive(Debug, Args)]
#[command(
    after_help = "Instances linger under the setting beanpole:connections LingerLimit: they have left their\nenvironment, and their open connections keep them. `beanpole status` lists them.\n\nExamples:\n  beanpole cut shop-prod\n  beanpole cut shop-prod --instance i-0a1b2c3d4e5f60718"
)]
pub struct Cut {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Only this instance
    #[arg(long, value_name = "INSTANCE")]
    instance: Option<InstanceId>,
}

/// Ends them. Nobody waits until they are gone.
pub fn run(context: &Context, command: &Cut) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let ended: LingeringEnded = context.client()?.post(
        &format!("{}/lingering/end", environment_path(&name)),
        &EndLingering {
            instance: command.instance.clone(),
        },
    )?;
    let ids: Vec<&str> = ended.instances.iter().map(|id| id.as_str()).collect();
    let requests = match ended.open {
        0 => "no request was open".to_owned(),
        1 => "1 open request is cut".to_owned(),
        n => format!("{n} open requests are cut"),
    };
    let text = format!("{} being stopped; {requests}.", are(&ids));
    context.output.result(&ended, text)
}

fn are(ids: &[&str]) -> String {
    let verb = if ids.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", ids.join(", "))
}
