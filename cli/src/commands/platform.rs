//! `beanpole platform`: what runs applications.

use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use beanpole_bundle::platform::{ABOUT, About};
use clap::{Args, Subcommand};
use serde::Serialize;

/// List what runs applications, and how each is found in a bundle
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole platform list\n  beanpole platform list --json\n  beanpole create shop-prod --platform php\n  beanpole check                     which one this directory has"
)]
pub struct Platforms {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List platforms
    #[command(visible_alias = "ls")]
    List,
}

/// A platform, for programs.
#[derive(Serialize)]
struct Shown {
    name: &'static str,
    title: &'static str,
    known_by: &'static [&'static str],
    installs: &'static str,
    starts: &'static str,
    version: &'static str,
}

impl From<&About> for Shown {
    fn from(about: &About) -> Self {
        Self {
            name: about.platform.as_str(),
            title: about.platform.title(),
            known_by: about.known_by,
            installs: about.installs,
            starts: about.starts,
            version: about.version,
        }
    }
}

/// As many files as a line has room for.
fn few(files: &[&str]) -> String {
    let shown = files.get(..3).unwrap_or(files).join(", ");
    if files.len() > 3 {
        format!("{shown}, …")
    } else {
        shown
    }
}

/// Lists them.
pub fn run(context: &Context, command: Platforms) -> Result<(), Failure> {
    let Command::List = command.command;
    let all: Vec<Shown> = ABOUT.iter().map(Shown::from).collect();
    if context.output.json {
        return context.output.json(&all);
    }
    let rows = all
        .iter()
        .map(|one| {
            vec![
                one.name.to_owned(),
                one.title.to_owned(),
                few(one.known_by),
                one.starts.to_owned(),
            ]
        })
        .collect();
    context.output.line(table::render(
        &["NAME", "PLATFORM", "FOUND BY", "STARTS"],
        rows,
    ));
    Ok(())
}
