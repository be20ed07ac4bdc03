//! `beanpole releases`: what ran, and what can be returned to.

use super::{all, environment_path, source};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{count, receipt, table};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::Release;
use clap::Args;

/// List an environment's releases: version and configuration, frozen and numbered
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole releases shop-prod\n  beanpole show shop-prod 3                one of them, with its receipt\n  beanpole rollback shop-prod --to 3"
)]
pub struct Releases {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
}

/// Lists them.
pub fn run(context: &Context, command: &Releases) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let releases: Vec<Release> = all(
        context.client()?,
        &format!("{}/releases", environment_path(&name)),
    )?;
    if context.output.json {
        return context.output.json(&releases);
    }
    let rows = releases
        .iter()
        .map(|release| {
            let receipt = release.receipt.as_ref();
            vec![
                release.number.to_string(),
                release.version.to_string(),
                if release.live { "live" } else { "" }.to_owned(),
                release
                    .outcome
                    .map(|outcome| context.output.status(outcome))
                    .unwrap_or_default(),
                release.reason.clone(),
                receipt
                    .map(|of| receipt::ms(of.took_ms))
                    .unwrap_or_default(),
                receipt
                    .map(|of| format!("{} of {}", count(of.failed), count(of.requests)))
                    .unwrap_or_default(),
                release.created_at.to_string(),
            ]
        })
        .collect();
    context.output.line(table::render(
        &[
            "RELEASE", "VERSION", "LIVE", "OUTCOME", "REASON", "TOOK", "FAILED", "CREATED",
        ],
        rows,
    ));
    // What is queued has no release before it begins.
    let environment = source::environment(context, &name).ok();
    if let Some(queued) = environment.and_then(|environment| environment.queued) {
        let version = queued.version.as_ref();
        let version = version.map_or_else(String::new, |version| format!(" of {version}"));
        context
            .output
            .say(format!("Queued: {}{version} ({}).", queued.kind, queued.id));
    }
    Ok(())
}
