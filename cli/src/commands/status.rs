//! `beanpole status`: an environment at a glance.

use super::maintenance::allowed;
use super::{domain, source};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{Output, table};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Environment, Instance, LingeringInstance, MaintenanceView};
use beanpole_protocol::proxy::StreamMode;
use clap::Args;

/// Show an environment: status, health, version, URL, instances
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole status shop-prod\n  beanpole status shop-prod --json | jq -r .url"
)]
pub struct Status {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
}

/// Shows it.
pub fn run(context: &Context, command: &Status) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let environment = source::environment(context, &name)?;
    if context.output.json {
        return context.output.json(&environment);
    }
    context.output.line(render(context.output, &environment));
    Ok(())
}

fn render(output: Output, environment: &Environment) -> String {
    let version = match (&environment.version, environment.release) {
        (Some(version), Some(release)) => format!("{version} (release {release})"),
        _ => match &environment.failed {
            Some(failed) => format!("none: release {} {}", failed.release, failed.status),
            None => "none yet".to_owned(),
        },
    };
    let operation = environment
        .operation
        .as_ref()
        .map_or_else(String::new, |operation| {
            format!("{} {}, {}", operation.kind, operation.status, operation.id)
        });
    let queued = environment
        .queued
        .as_ref()
        .map_or_else(String::new, |queued| {
            let version = queued.version.as_ref();
            let version = version.map_or_else(String::new, |version| format!(" of {version}"));
            format!("{}{version}, {}", queued.kind, queued.id)
        });
    let domains = environment.domains.iter();
    let domains: Vec<String> = domains
        .map(|one| match one.redirect_to {
            None if !one.only_https => one.name.to_string(),
            _ => format!("{} ({})", one.name, domain::does(one)),
        })
        .collect();
    let mut text = table::fields(&[
        (
            "environment",
            format!("{} ({})", environment.name, environment.id),
        ),
        ("application", environment.application.to_string()),
        ("description", environment.description.clone()),
        ("status", output.status(environment.status)),
        ("health", output.status(environment.health)),
        ("version", version),
        ("operation", operation),
        ("queued", queued),
        ("platform", environment.platform.to_string()),
        ("url", environment.url.clone().unwrap_or_default()),
        ("listens", listens(environment)),
        ("domains", domains.join("; ")),
        (
            "maintenance",
            environment
                .maintenance
                .as_ref()
                .map_or_else(String::new, closed),
        ),
    ]);
    for waiting in environment.operation.iter().flat_map(|one| &one.waiting) {
        text.push_str(&format!("\n  {waiting}"));
    }
    for cause in &environment.causes {
        text.push_str(&format!("\n  {cause}"));
    }
    if !environment.instances.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table::render(
            &["INSTANCE", "HOST", "ADDRESS", "VERSION", "HEALTH", "DETAIL"],
            environment
                .instances
                .iter()
                .map(|i| row(output, i))
                .collect(),
        ));
    }
    if !environment.lingering.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table::render(
            &["LINGERS", "HOST", "VERSION", "OPEN", "SINCE", "UNTIL"],
            environment.lingering.iter().map(lingering).collect(),
        ));
        text.push_str(&format!(
            "\n  Left, and finishing what is open there. To cut that now: beanpole cut {}",
            environment.name
        ));
    }
    text
}

/// Where a network environment is met.
fn listens(environment: &Environment) -> String {
    let listeners = environment.listeners.iter();
    let told: Vec<String> = listeners
        .map(|one| match (one.protocol, one.by_name) {
            (StreamMode::Pass, false) => one.address.clone(),
            (StreamMode::Pass, true) => format!("{} (by name)", one.address),
            (StreamMode::Terminate, false) => format!("{} (TLS ends there)", one.address),
            (StreamMode::Terminate, true) => format!("{} (by name, TLS ends there)", one.address),
        })
        .collect();
    told.join("; ")
}

fn closed(maintenance: &MaintenanceView) -> String {
    let mut text = format!("since {}", maintenance.since);
    if !maintenance.allow.is_empty() {
        text.push_str(&format!(", not for {}", allowed(maintenance)));
    }
    if !maintenance.in_force {
        text.push_str(", not everywhere yet");
    }
    text
}

fn lingering(one: &LingeringInstance) -> Vec<String> {
    let version = one.version.as_ref().map(ToString::to_string);
    vec![
        one.id.to_string(),
        one.host.to_string(),
        version.unwrap_or_else(|| format!("release {}", one.release)),
        one.open.to_string(),
        one.since.to_string(),
        if one.ending {
            "being stopped".to_owned()
        } else {
            one.until.to_string()
        },
    ]
}

fn row(output: Output, instance: &Instance) -> Vec<String> {
    vec![
        instance.id.to_string(),
        instance.host.to_string(),
        instance.address.clone(),
        instance
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        output.status(instance.health),
        instance.reason.clone().unwrap_or_default(),
    ]
}
