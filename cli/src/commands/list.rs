//! `beanpole list`: the environments.

use super::all;
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_protocol::ApplicationName;
use beanpole_protocol::api::Environment;
use clap::Args;

/// List environments
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "Examples:\n  beanpole list\n  beanpole list --application shop --json"
)]
pub struct List {
    /// Of this application only
    #[arg(long, short)]
    application: Option<ApplicationName>,
}

/// Lists them.
pub fn run(context: &Context, command: &List) -> Result<(), Failure> {
    let path = match &command.application {
        Some(name) => format!("/v1/environments?application={}", escape(name.as_str())),
        None => "/v1/environments".to_owned(),
    };
    let environments: Vec<Environment> = all(context.client()?, &path)?;
    if context.output.json {
        return context.output.json(&environments);
    }
    if environments.is_empty() {
        let of = command
            .application
            .as_ref()
            .map(|name| format!(" of an application `{name}`"))
            .unwrap_or_default();
        context.output.say(format!(
            "There is no environment{of} yet. Make one: beanpole create NAME"
        ));
        return Ok(());
    }
    let rows = environments
        .iter()
        .map(|environment| {
            let serving = environment
                .instances
                .iter()
                .filter(|instance| instance.health.serves())
                .count();
            vec![
                environment.name.to_string(),
                environment.application.to_string(),
                context.output.status(environment.status),
                context.output.status(environment.health),
                environment
                    .version
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                format!("{serving}/{}", environment.size),
                environment.met_at(),
            ]
        })
        .collect();
    context.output.line(table::render(
        &[
            "NAME",
            "APPLICATION",
            "STATUS",
            "HEALTH",
            "VERSION",
            "HEALTHY",
            "URL",
        ],
        rows,
    ));
    Ok(())
}
