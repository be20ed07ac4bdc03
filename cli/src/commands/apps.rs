//! `beanpole app`: applications.

use super::all;
use crate::client::{Client, escape};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_protocol::ApplicationName;
use beanpole_protocol::api::{Application, CreateApplication, UpdateApplication};
use clap::{Args, Subcommand, ValueEnum};

/// List, create and delete applications, and say what they may do
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole app list\n  beanpole app create shop --description 'The shop'\n  beanpole app root allow shop\n  beanpole app delete shop"
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
    /// Say whether bundles of an application may act as root on its hosts
    ///
    /// Off by default. With it `packages`, `groups`, `users`, `sources`, `files`, `commands` and `services` of
    /// `.ebextensions` are carried out, and hooks and container commands run as root, as on Elastic Beanstalk: whoever
    /// may deploy the application is root on every host that runs it. Without it hooks and container commands run as
    /// the application's user, and bundles that ask for more are refused.
    Root {
        /// Whether they may
        permission: Permission,
        /// The application
        name: ApplicationName,
    },
    /// Delete an application that has no environments
    Delete {
        /// Its name
        name: ApplicationName,
    },
}

/// Whether something may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Permission {
    /// It may be
    Allow,
    /// It may not
    Deny,
}

/// Lists, creates, changes or deletes.
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
                        if app.root { "allowed" } else { "no" }.to_owned(),
                        app.created_at.to_string(),
                        app.description,
                    ]
                })
                .collect();
            context.output.line(table::render(
                &["NAME", "ROOT", "CREATED", "DESCRIPTION"],
                rows,
            ));
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
        AppCommand::Root { permission, name } => {
            let body = UpdateApplication {
                root: Some(permission == Permission::Allow),
            };
            let application: Application = client.patch(&path_of(&name), &body)?;
            let said = if application.root {
                format!(
                    "Bundles of {name} may act as root on its hosts: whoever may deploy it is root there. \
                     To take that back: beanpole app root deny {name}"
                )
            } else {
                format!(
                    "Bundles of {name} may not act as root on its hosts. What they did there before stays."
                )
            };
            context.output.result(&application, said)
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
    client.exists_by_get(&path_of(name))
}

/// Whether bundles of an application may act as root on hosts. One that is not there may not.
pub fn may_be_root(client: &Client, name: &ApplicationName) -> Result<bool, Failure> {
    if !exists(client, name)? {
        return Ok(false);
    }
    let application: Application = client.get(&path_of(name))?;
    Ok(application.root)
}

fn path_of(name: &ApplicationName) -> String {
    format!("/v1/applications/{}", escape(name.as_str()))
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
    client.remove(&path_of(name))
}
