//! `beanpole version`: this executable's version and the controller's.

use crate::client::Client;
use crate::context::Context;
use crate::output;
use crate::output::errors::Failure;
use beanpole_protocol::api::Healthz;
use clap::Args;
use serde_json::json;

/// Show the version of this executable and of the controller
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  beanpole version\n  beanpole version --json")]
pub struct Version {}

/// Shows both. Its own is shown whatever becomes of the controller's, which is a failure where it cannot be had.
pub fn run(context: &Context, _command: &Version) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let output = context.output;
    if !output.json {
        output.line(format!("beanpole {own}"));
    }
    let asked = context.client().and_then(|client| {
        let healthz: Healthz = client.get("/healthz")?;
        Ok((client.base(), healthz.version))
    });
    match asked {
        Ok((url, theirs)) if output.json => {
            output.json(&json!({ "version": own, "controller": theirs, "url": url }))
        }
        Ok((url, theirs)) => {
            output.line(format!("controller {theirs} at {url}"));
            Ok(())
        }
        Err(failure) if output.json => {
            // One document, with the error in it; people read the other on standard error.
            let url = context.client().map(Client::base).ok();
            let mut shown = json!({ "version": own, "controller": null, "url": url });
            shown["error"] = failure.to_json()["error"].take();
            output.json(&shown)?;
            output::report(&failure, false);
            Err(Failure::told(failure.exit_code()))
        }
        Err(failure) => Err(failure),
    }
}
