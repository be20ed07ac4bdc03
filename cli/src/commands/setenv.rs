//! `beanpole setenv`: change an environment's properties.

use super::{config, source};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::project::envfile::unquoted;
use beanpole_daemon::files;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::UpdateSettings;
use beanpole_protocol::ids::shown;
use beanpole_protocol::options::PROPERTIES;
use clap::Args;
use std::path::PathBuf;

/// Set or remove an environment's properties; its processes restart with them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole setenv shop-prod LOG=debug COLOUR=blue\n  beanpole setenv shop-prod OLD=                 an empty value removes it\n  beanpole setenv shop-prod --file secrets.env   keeps values out of the process list\n  pass show shop | beanpole setenv shop-prod --file -"
)]
pub struct Setenv {
    /// The environment [default: `environment` of deploy.toml], then NAME=VALUE
    #[arg(
        value_name = "[ENVIRONMENT] NAME=VALUE",
        required_unless_present = "file"
    )]
    what: Vec<String>,
    /// A file of NAME=VALUE lines, or `-` for standard input
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Show what would happen, and stop
    #[arg(long, conflicts_with_all = ["detach", "queue"])]
    plan: bool,
    /// While another operation is under way, begin when that has ended instead of being refused
    #[arg(long)]
    queue: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Sets them all in one operation.
pub fn run(context: &Context, command: &Setenv) -> Result<(), Failure> {
    let (named, pairs) = match command.what.split_first() {
        Some((first, rest)) if !first.contains('=') => (Some(first), rest),
        _ => (None, command.what.as_slice()),
    };
    let named = named
        .map(EnvironmentName::new)
        .transpose()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    let name = context.environment(named.as_ref())?;
    let mut change = UpdateSettings {
        queue: command.queue,
        ..UpdateSettings::default()
    };
    for text in pairs {
        let (property, value) = source::property(text)?;
        put(&mut change, property, value)?;
    }
    if let Some(path) = &command.file {
        for line in read(path)?.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (property, value) = source::property(line)?;
            put(&mut change, property.trim(), &unquoted(value.trim()))?;
        }
    }
    change.remove.retain(|_, names| !names.is_empty());
    if change.set.0.is_empty() && change.remove.is_empty() {
        return Err(Failure::misuse("There is nothing to set.")
            .hint("Write beanpole setenv ENVIRONMENT NAME=VALUE"));
    }
    change
        .set
        .validate()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    config::send(context, &name, &change, command.plan, command.detach)
}

fn put(change: &mut UpdateSettings, name: &str, value: &str) -> Result<(), Failure> {
    let removed = change.remove.entry(PROPERTIES.to_owned()).or_default();
    if removed.iter().any(|removed| removed == name) {
        return Err(
            Failure::misuse(format!("`{}` is given twice.", shown(name)))
                .hint("Leave one of the two out"),
        );
    }
    if value.is_empty() && change.set.get(PROPERTIES, name).is_none() {
        removed.push(name.to_owned());
        return Ok(());
    }
    config::set_once(&mut change.set, PROPERTIES, name, value.to_owned())
}

fn read(path: &std::path::Path) -> Result<String, Failure> {
    let text = if path.as_os_str() == "-" {
        files::read_all_text(std::io::stdin().lock(), files::LARGEST)
    } else {
        files::read_text(path, files::LARGEST)
    };
    text.map_err(|error| {
        Failure::caused(format!("Cannot read {}.", path.display()), &error)
            .hint("Name a file of NAME=VALUE lines, or `-` for standard input")
            .into_misuse()
    })
}
