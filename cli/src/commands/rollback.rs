//! `beanpole rollback`: back to an older release.

use super::{all, deploy, environment_path};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::receipt;
use crate::watch;
use beanpole_protocol::api::{Operation, OperationStatus, PlanView, Release, Rollback as Body};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::{EnvironmentName, ReleaseNumber};
use clap::Args;

/// Take an environment back to the release before, or to any older one
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole rollback shop-prod\n  beanpole rollback shop-prod --to 3\n  beanpole rollback shop-prod --policy AllAtOnce\n  beanpole rollback shop-prod --plan            show what would happen"
)]
pub struct Rollback {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// The release to return to; list them with `beanpole releases`
    #[arg(long, value_name = "RELEASE")]
    to: Option<ReleaseNumber>,
    /// AllAtOnce, Rolling, RollingWithAdditionalBatch, Immutable or TrafficSplitting [default: the
    /// environment's; Immutable where that is TrafficSplitting]
    #[arg(long)]
    policy: Option<DeploymentPolicy>,
    /// How many instances at a time, `1` or `30%` [default: the environment's]
    #[arg(long, value_name = "N|P%")]
    batch: Option<BatchSize>,
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

/// Goes back and waits.
pub fn run(context: &Context, command: &Rollback) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let client = context.client()?;
    let path = format!("{}/rollback", environment_path(&name));
    let body = Body {
        to: command.to,
        policy: command.policy,
        batch: command.batch,
        queue: command.queue,
    };
    if command.plan {
        let plan: PlanView = client.post(&format!("{path}?plan=true"), &body)?;
        if context.output.json {
            return context.output.json(&plan);
        }
        let to = match &plan.back_to {
            Some(to) => format!("release {} ({})", to.release, to.version),
            None => "the release before".to_owned(),
        };
        let mut lines = lines(&name, &to, &plan);
        lines.extend(receipt::settings(&plan.settings));
        lines.extend(receipt::plan(name.as_str(), &plan));
        for line in lines {
            context.output.line(line);
        }
        return Ok(());
    }
    let operation: Operation = client.post(&path, &body)?;
    if !command.detach && operation.status != OperationStatus::Queued {
        let to = target(context, &operation);
        deploy::show_plan(context.output, &lines(&name, &to, &operation.plan));
    }
    watch::finish(context, operation, command.detach)
}

fn lines(name: &EnvironmentName, to: &str, plan: &PlanView) -> Vec<String> {
    let mut lines = vec![format!("Plan for {name}: back to {to}")];
    lines.extend(deploy::plan_lines(plan));
    lines
}

/// The release that `operation` leads to, or whose copy, as it is named for people.
fn target(context: &Context, operation: &Operation) -> String {
    let version = operation.version.as_ref().map(ToString::to_string);
    let made = releases(context, &operation.environment_name)
        .into_iter()
        .find(|release| Some(release.number) == operation.to);
    let of = made.and_then(|release| {
        let of = release.reason.strip_prefix("rollback to ");
        let number = of.map_or_else(|| release.number.to_string(), str::to_owned);
        (of.is_some() || operation.from == operation.to).then_some((number, release.version))
    });
    match (of, version) {
        (Some((number, version)), _) => format!("release {number} ({version})"),
        (None, Some(version)) => version,
        (None, None) => "the release before".to_owned(),
    }
}

/// Those that there are; none where they cannot be had, which is no reason not to go on.
fn releases(context: &Context, name: &EnvironmentName) -> Vec<Release> {
    let path = format!("{}/releases", environment_path(name));
    context
        .client()
        .and_then(|client| all(client, &path))
        .unwrap_or_default()
}
