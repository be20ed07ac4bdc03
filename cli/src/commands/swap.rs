//! `beanpole swap`: two environments exchange their hostnames.

use super::environment_path;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::warn;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Environment, Operation, OperationStatus, Swap as Asked, Swapped};
use clap::Args;

/// How many domains of each environment are named.
const NAMED: usize = 3;

/// Exchange the hostnames of two environments: what runs behind one goes live behind the other
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole swap shop-blue shop-green\n  beanpole swap shop-green            with the environment of deploy.toml\n  beanpole swap shop-blue shop-green --detach\n\nThe CNAMEs change places, and with each the domains of its environment. Every load balancer changes over\nin one step; no request is lost. The same command undoes it."
)]
pub struct Swap {
    /// An environment, or the other one where only one is given
    #[arg(value_name = "ENVIRONMENT")]
    first: EnvironmentName,
    /// The other one [default: `environment` of deploy.toml, for the first]
    #[arg(value_name = "WITH")]
    second: Option<EnvironmentName>,
    /// Also where one of them has no version yet, so that the hostnames of the other are answered with 503
    #[arg(long)]
    allow_empty: bool,
    /// Do not wait for the load balancers
    #[arg(long)]
    detach: bool,
}

/// Exchanges, and waits for the load balancers.
pub fn run(context: &Context, command: &Swap) -> Result<(), Failure> {
    let (one, other) = match &command.second {
        Some(second) => (command.first.clone(), second),
        None => (context.environment(None)?, &command.first),
    };
    let client = context.client()?;
    let body = Asked {
        with: other.clone(),
        allow_empty: command.allow_empty,
    };
    let swapped: Swapped = client.post(&format!("{}/swap", environment_path(&one)), &body)?;
    if command.detach {
        let text = format!(
            "{one} and {other} exchange their hostnames.\nFollow it: beanpole attach {}",
            swapped.operation.id
        );
        return context.output.result(&swapped, text);
    }
    let operation = ended(watch::wait(context, swapped.operation)?)?;
    let others = ended(watch::wait(context, swapped.other)?)?;
    let places: Vec<String> = [&one, other]
        .into_iter()
        .map(|name| {
            let environment: Environment = client.get(&environment_path(name))?;
            if environment.version.is_none() {
                warn(&format!(
                    "{name} has no version yet: its hostnames are answered with 503 until one is deployed. Undo it: beanpole swap {one} {other} --allow-empty"
                ));
            }
            let version = environment.version.as_ref();
            let version = version.map_or_else(String::new, |version| format!(", {version}"));
            let domains = environment.domains.iter().map(|domain| &domain.name);
            let mut named: Vec<String> = domains
                .take(NAMED)
                .map(|name| format!(", {name}"))
                .collect();
            match environment.domains.len().saturating_sub(NAMED) {
                0 => {}
                1 => named.push(" and another one".to_owned()),
                more => named.push(format!(" and {more} more")),
            }
            let url = environment.met_at();
            Ok(format!("{url}{} → {name}{version}", named.concat()))
        })
        .collect::<Result<_, Failure>>()?;
    let text = format!(
        "{one} and {other} have exchanged their hostnames.\n{}",
        places.join("\n")
    );
    let swapped = Swapped {
        operation,
        other: others,
    };
    context.output.result(&swapped, text)
}

fn ended(operation: Operation) -> Result<Operation, Failure> {
    if operation.status == OperationStatus::Succeeded {
        return Ok(operation);
    }
    let name = &operation.environment_name;
    let why = operation.message.clone().unwrap_or_default();
    Err(
        Failure::new(format!("The swap of {name} {}. {why}", operation.status))
            .hint(format!("See more: beanpole events {name}")),
    )
}
