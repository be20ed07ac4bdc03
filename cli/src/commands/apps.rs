//! `beanpole app`: applications.

use super::all;
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_protocol::ApplicationName;
use beanpole_protocol::api::{Application, CreateApplication};
use clap::{Args, Subcommand};

/// List, create and delete applications
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole app list\n  beanpole app create shop --description 'The shop'\n  beanpole app delete shop"
)]
pub struct Apps {
    #[command(subcommand)]
    command: AppCommand,
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// List applications
    #[command(alias = "ls")]
    List,
    /// Create an application
    Create {
        /// Its name
        name: ApplicationName,
        /// What it is, for people
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Delete an application that has no environments
    Delete {
        /// Its name
        name: ApplicationName,
    },
}

/// Lists, creates or deletes.
pub fn run(context: &Context, command: Apps) -> Result<(), Failure> {
    let client = context.client()?;
    match command.command {
        AppCommand::List => {
            let applications: Vec<Application> = all(client, "/v1/applications")?;
            if context.output.json {
                return context.output.json(&applications);
            }
            let rows = applications
                .into_iter()
                .map(|app| {
                    vec![
                        app.name.to_string(),
                        app.created_at.to_string(),
                        app.description,
                    ]
                })
                .collect();
            context
                .output
                .line(table::render(&["NAME", "CREATED", "DESCRIPTION"], rows));
            Ok(())
        }
        AppCommand::Create { name, description } => {
            let application: Application =
                client.post("/v1/applications", &CreateApplication { name, description })?;
            context.output.result(
                &application,
                format!("Application {} is created.", application.name),
            )
        }
        AppCommand::Delete { name } => {
            remove(client, &name)?;
            context.output.result(
                &serde_json::json!({ "deleted": name }),
                format!("Application {name} is deleted."),
            )
        }
    }
}

/// Whether there is an application of that name.
pub fn exists(client: &Client, name: &ApplicationName) -> Result<bool, Failure> {
    client.exists_by_get(&format!("/v1/applications/{}", escape(name.as_str())))
}

/// Creates an application, and says so.
pub fn create(context: &Context, name: &ApplicationName, description: &str) -> Result<(), Failure> {
    let created: Application = context.client()?.post(
        "/v1/applications",
        &CreateApplication {
            name: name.clone(),
            description: description.to_owned(),
        },
    )?;
    context
        .output
        .say(format!("Application {} is created.", created.name));
    Ok(())
}

/// Removes an application that was created for something that came to nothing, and says so.
pub fn take_back(context: &Context, name: &ApplicationName) -> Result<(), Failure> {
    remove(context.client()?, name)?;
    context
        .output
        .say(format!("Application {name} is removed again."));
    Ok(())
}

fn remove(client: &Client, name: &ApplicationName) -> Result<(), Failure> {
    client.remove(&format!("/v1/applications/{}", escape(name.as_str())))
}
