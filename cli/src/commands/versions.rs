//! `beanpole versions`: an application's versions.

use super::{all, source};
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{bytes, table};
use beanpole_protocol::api::Version;
use beanpole_protocol::{ApplicationName, VersionLabel};
use clap::{Args, Subcommand};

/// List or delete an application's versions
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole versions\n  beanpole versions --application shop\n  beanpole versions delete v1 --application shop"
)]
pub struct Versions {
    /// The application [default: that of deploy.toml, else the directory's name]
    #[arg(long, short, global = true)]
    application: Option<ApplicationName>,
    #[command(subcommand)]
    command: Option<VersionsCommand>,
}

#[derive(Debug, Subcommand)]
enum VersionsCommand {
    /// List versions
    #[command(alias = "ls")]
    List,
    /// Delete a version that no environment needs
    Delete {
        /// Its label
        label: VersionLabel,
    },
}

/// Lists or deletes.
pub fn run(context: &Context, command: Versions) -> Result<(), Failure> {
    let application = source::application(context, command.application.as_ref())?;
    let guessed = command.application.is_none();
    of(context, command.command, &application).map_err(|failure| {
        if guessed && failure.has_code("application-not-found") {
            failure.hint("Name another with --application. List them: beanpole app list")
        } else {
            failure
        }
    })
}

fn of(
    context: &Context,
    command: Option<VersionsCommand>,
    application: &ApplicationName,
) -> Result<(), Failure> {
    let path = format!("/v1/applications/{}/versions", escape(application.as_str()));
    let client = context.client()?;
    if let Some(VersionsCommand::Delete { label }) = command {
        client.remove(&format!("{path}/{}", escape(label.as_str())))?;
        return context.output.result(
            &serde_json::json!({ "deleted": label }),
            format!("Version {label} of {application} is deleted."),
        );
    }
    let versions: Vec<Version> = all(client, &path)?;
    if context.output.json {
        return context.output.json(&versions);
    }
    let rows = versions
        .into_iter()
        .map(|version| {
            vec![
                version.label.to_string(),
                bytes(version.bundle_size),
                version.bundle.short().to_owned(),
                version.created_at.to_string(),
                version.description,
            ]
        })
        .collect();
    context.output.line(table::render(
        &["VERSION", "SIZE", "SHA256", "CREATED", "DESCRIPTION"],
        rows,
    ));
    Ok(())
}
