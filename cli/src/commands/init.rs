//! `beanpole init`: a `deploy.toml` for this directory.

use super::source;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::project::FILE;
use beanpole_bundle::platform::{self, Directory};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::{ApplicationName, EnvironmentName};
use clap::Args;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Every setting, explained.
pub const EXAMPLE: &str = include_str!("../../../deploy.toml.example");

/// Write a deploy.toml for this directory, so that no command needs arguments
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole init\n  beanpole init --application shop --environment shop-prod\n  beanpole init --explain > deploy.toml    every setting, explained"
)]
pub struct Init {
    /// The application [default: the directory's name]
    #[arg(long, short)]
    application: Option<ApplicationName>,
    /// The environment that commands mean when none is named [default: APPLICATION-prod]
    #[arg(long, short)]
    environment: Option<EnvironmentName>,
    /// Print every setting with its explanation, and write nothing
    #[arg(long)]
    explain: bool,
}

/// Writes the file; never over one that is there.
pub fn run(context: &Context, command: &Init) -> Result<(), Failure> {
    if command.explain && context.output.json {
        return context
            .output
            .json(&serde_json::json!({ "explained": EXAMPLE }));
    }
    if command.explain {
        context.output.line(EXAMPLE.trim_end());
        return Ok(());
    }
    let here = std::env::current_dir()
        .map_err(|error| Failure::caused("The current directory cannot be read.", &error))?;
    let application = command
        .application
        .clone()
        .or_else(|| source::directory_name(&here))
        .ok_or_else(|| {
            Failure::misuse("Which application?").hint("Name it: beanpole init --application NAME")
        })?;
    let environment = match &command.environment {
        Some(environment) => {
            environment.check_new().map_err(|error| {
                Failure::misuse(format!("{error}.")).hint("Choose another name")
            })?;
            environment.clone()
        }
        None => default_environment(&application)?,
    };
    let platform = detect(&here);
    let text = render(&application, &environment, platform);
    let path = here.join(FILE);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(error) = written {
        return Err(if error.kind() == std::io::ErrorKind::AlreadyExists {
            Failure::new(format!(
                "{} is there already; it is left as it is.",
                path.display()
            ))
            .hint("See what else could stand in it: beanpole init --explain")
        } else {
            Failure::caused(format!("Cannot write {}.", path.display()), &error)
        });
    }
    context.output.result(
        &serde_json::json!({ "file": path, "application": application, "environment": environment }),
        format!("Wrote {FILE}.\nNext: beanpole create, then beanpole deploy"),
    )
}

fn default_environment(application: &ApplicationName) -> Result<EnvironmentName, Failure> {
    let plain: String = application
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(35)
        .collect();
    // No environment is called `x-…`.
    let plain = plain.trim_matches('-').trim_start_matches("x-");
    EnvironmentName::new(format!("{plain}-prod")).map_err(|error| {
        Failure::misuse(error.to_string()).hint("Name it: beanpole init --environment NAME")
    })
}

/// The platform that the files here speak of.
fn detect(here: &Path) -> Platform {
    if here.join("Procfile").is_file() {
        return Platform::Auto;
    }
    platform::detect(&Directory(here)).unwrap_or(Platform::Auto)
}

fn render(
    application: &ApplicationName,
    environment: &EnvironmentName,
    platform: Platform,
) -> String {
    format!(
        "# What `beanpole` does in this directory. Every setting is explained by `beanpole init --explain`.\n\
         application = {}\n\
         environment = {}\n\
         platform = \"{platform}\"\n\
         instances = 2\n\
         \n\
         [health]\n\
         path = \"/\"\n\
         \n\
         # Environment properties: your app finds them in its environment. Keep secrets out of this\n\
         # file: beanpole setenv NAME=VALUE\n\
         [env]\n",
        toml::Value::String(application.to_string()),
        toml::Value::String(environment.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_can_be_read() {
        let application = ApplicationName::new("My \"shop\"").expect("name");
        let environment = default_environment(&application).expect("environment");
        assert_eq!(environment.as_str(), "My--shop-prod");
        let own = ApplicationName::new("x-shop").expect("name");
        assert_eq!(
            default_environment(&own).expect("environment").as_str(),
            "shop-prod"
        );
        let text = render(&application, &environment, Platform::Node);
        let settings = crate::project::settings::parse(&text).expect("settings");
        assert_eq!(settings.application, Some(application));
        assert_eq!(settings.common.instances, Some(2));
    }
}
