//! `beanpole scale`: more or fewer instances.

use super::{deploy, environment_path};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::plural;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Operation, OperationKind, OperationStatus, PlanView, Scale as Body};
use clap::Args;

/// Change the number of an environment's instances
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole scale shop-prod 5\n  beanpole scale 5                 the environment of deploy.toml\n  beanpole scale shop-prod 5 --plan    show what would happen\n  beanpole scale shop-demo 0       none while nobody asks: the first request after IdleTime wakes it"
)]
pub struct Scale {
    /// The environment [default: `environment` of deploy.toml], then how many instances
    #[arg(value_name = "[ENVIRONMENT] INSTANCES", num_args = 1..=2, required = true, allow_negative_numbers = true)]
    what: Vec<String>,
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

/// Scales and waits.
pub fn run(context: &Context, command: &Scale) -> Result<(), Failure> {
    let (named, number) = match command.what.as_slice() {
        [name] if EnvironmentName::new(name).is_ok() && name.parse::<u32>().is_err() => {
            return Err(
                Failure::misuse(format!("How many instances shall {name} have?"))
                    .hint(format!("Write beanpole scale {name} 3")),
            );
        }
        [number] => (None, number),
        [name, number] => (Some(name), number),
        _ => return Err(Failure::misuse("How many instances?")),
    };
    let instances: u32 = number
        .parse()
        .ok()
        .filter(|number| (0..=10_000).contains(number))
        .ok_or_else(|| {
            Failure::misuse(format!("`{number}` is not a number of instances."))
                .hint("Give 0 to 10000: beanpole scale ENVIRONMENT 3")
        })?;
    let named = named
        .map(EnvironmentName::new)
        .transpose()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    let name = context.environment(named.as_ref())?;
    let client = context.client()?;
    let body = Body {
        instances,
        queue: command.queue,
    };
    let path = format!("{}/scale", environment_path(&name));
    if command.plan {
        let plan: PlanView = client.post(&format!("{path}?plan=true"), &body)?;
        let count = plural(u64::from(instances), "instance");
        return deploy::print_plan(context.output, &name, &count, &plan);
    }
    let operation: Operation = client.post(&path, &body)?;
    if operation.kind != OperationKind::Scale && operation.status != OperationStatus::Queued {
        let text = format!(
            "{name} grows to {} on each side of its split.\nFollow the {}: beanpole attach {}",
            plural(u64::from(instances), "instance"),
            operation.kind,
            operation.id
        );
        return context.output.result(&operation, text);
    }
    // Who waits is told how long it is, at the end.
    if instances == 0 && command.detach {
        context.output.say(format!(
            "{name} has an instance while somebody asks for it, and sleeps after IdleTime seconds without a request (900 unless set: beanpole config {name} --set IdleTime=300)."
        ));
    }
    watch::finish(context, operation, command.detach)
}
