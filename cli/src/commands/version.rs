//! `beanpole version`: this executable's version and the controller's.

use crate::context::Context;
use crate::output::errors::Failure;
use beanpole_protocol::api::Healthz;
use clap::Args;

/// Show the version of this executable and of the controller
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  beanpole version\n  beanpole version --json")]
pub struct Version {}

/// Shows both; a controller that does not answer is no failure.
pub fn run(context: &Context, _command: &Version) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let client = context.client()?;
    let controller = client.get::<Healthz>("/healthz").ok();
    let theirs = controller.map(|healthz| healthz.version);
    let text = match &theirs {
        Some(theirs) => format!("beanpole {own}\ncontroller {theirs} at {}", client.base()),
        None => format!("beanpole {own}\nno controller answers at {}", client.base()),
    };
    context.output.result(
        &serde_json::json!({ "version": own, "controller": theirs, "url": client.base() }),
        text,
    )
}
