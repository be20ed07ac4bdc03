//! `beanpole health`: how an environment and its instances are.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{Output, count, plural, table};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{EnvironmentHealth, Instance, ProcessTarget};
use beanpole_protocol::proxy::Traffic;
use clap::Args;
use std::time::Duration;

/// Show an environment's health: instances, checks, requests, latency
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole health shop-prod\n  beanpole health shop-prod --watch\n  beanpole health shop-prod --json | jq .health"
)]
pub struct Health {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Show it again every 2 seconds
    #[arg(long, short)]
    watch: bool,
}

/// From one look to the next under `--watch`.
const LOOK: Duration = Duration::from_secs(2);

/// Shows it once, or again and again.
pub fn run(context: &Context, command: &Health) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let path = format!("{}/health", environment_path(&name));
    loop {
        let health: EnvironmentHealth = context.client()?.get(&path)?;
        if context.output.json {
            if command.watch {
                context.output.json_line(&health)?;
            } else {
                return context.output.json(&health);
            }
        } else {
            if command.watch && context.output.colour {
                context.output.line("\u{1b}[2J\u{1b}[H");
            }
            context.output.line(render(context.output, &health));
        }
        if !command.watch {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn render(output: Output, health: &EnvironmentHealth) -> String {
    let mut text = table::fields(&[
        ("environment", health.environment.to_string()),
        ("status", output.status(health.status)),
        ("health", output.status(health.health)),
        ("traffic", traffic(&health.traffic)),
    ]);
    for cause in &health.causes {
        text.push_str(&format!("\n  {cause}"));
    }
    if !health.instances.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table::render(
            &[
                "INSTANCE", "HOST", "VERSION", "HEALTH", "CHECK", "REQUESTS", "5XX", "P50", "P99",
                "DETAIL",
            ],
            (health.instances.iter())
                .flat_map(|i| std::iter::once(row(output, i)).chain(i.targets.iter().map(process)))
                .collect(),
        ));
        text.push_str(
            "\n\nREQUESTS and 5XX: since the instance or the load balancer started. P50 and P99: in the last minute.",
        );
    }
    text
}

fn row(output: Output, instance: &Instance) -> Vec<String> {
    let traffic = &instance.traffic;
    vec![
        instance.id.to_string(),
        instance.host.to_string(),
        instance
            .version
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        output.status(instance.health),
        instance
            .last_check
            .as_ref()
            .map(|check| check.answer.clone())
            .unwrap_or_default(),
        count(traffic.requests),
        count(traffic.by_class[4]),
        latency(traffic.p50_us),
        latency(traffic.p99_us),
        instance.reason.clone().unwrap_or_default(),
    ]
}

/// A process of the instance above it.
fn process(target: &ProcessTarget) -> Vec<String> {
    let traffic = &target.traffic;
    let check = target.last_check.as_ref();
    let health = match target.healthy {
        Some(true) => "Healthy",
        Some(false) => "Unhealthy",
        None => "Unknown",
    };
    vec![
        format!("  {}", target.process),
        String::new(),
        String::new(),
        health.to_owned(),
        check.map(|check| check.answer.clone()).unwrap_or_default(),
        count(traffic.requests),
        count(traffic.by_class[4]),
        latency(traffic.p50_us),
        latency(traffic.p99_us),
        format!("at {}", target.address),
    ]
}

/// What the environment was asked since the load balancer started, and how long answers took lately.
fn traffic(traffic: &Traffic) -> String {
    format!(
        "{}, {} failed since the load balancer started; p50 {}, p99 {} in the last minute",
        plural(traffic.requests, "request"),
        count(traffic.failed),
        latency(traffic.p50_us),
        latency(traffic.p99_us)
    )
}

/// Zero says that nothing was measured.
fn latency(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        _ => format!("{:.1} ms", micros as f64 / 1000.0),
    }
}
