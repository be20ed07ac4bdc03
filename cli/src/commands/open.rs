//! `beanpole open`: an environment in the browser.

use super::source;
use crate::context::Context;
use crate::output::errors::Failure;
use beanpole_protocol::EnvironmentName;
use clap::Args;
use std::process::{Command, Stdio};

/// Open an environment in the browser, and print its URL
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole open shop-prod\n  curl $(beanpole open shop-prod --print)"
)]
pub struct Open {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Print the URL only
    #[arg(long)]
    print: bool,
}

/// Prints the URL and hands it to the desktop, where there is one.
pub fn run(context: &Context, command: &Open) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let environment = source::environment(context, &name)?;
    let url = environment.url.ok_or_else(|| {
        Failure::new(format!("{name} has no URL."))
            .hint("Worker and network environments get no requests; see beanpole status")
    })?;
    context
        .output
        .result(&serde_json::json!({ "url": url }), &url)?;
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if desktop && !command.print && !context.output.json {
        let opened = Command::new("xdg-open")
            .arg(&url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if opened.is_err() {
            context
                .output
                .say("No browser could be opened here: xdg-open is missing.");
        }
    }
    Ok(())
}
