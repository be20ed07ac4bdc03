//! `beanpole abort`: give the running operation up.

use super::{environment_path, source};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Operation, OperationStatus};
use clap::Args;

/// Give up the operation that runs, or is queued, on an environment
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole abort shop-prod\n  beanpole abort shop-prod --queued    what waits, not what runs\n  beanpole abort shop-prod --detach"
)]
pub struct Abort {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Take out what is queued, and leave alone what runs
    #[arg(long)]
    queued: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Aborts, and waits until the environment is back.
pub fn run(context: &Context, command: &Abort) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let path = format!("{}/abort", environment_path(&name));
    let none = serde_json::json!({});
    if command.queued {
        let path = format!("{path}?queued=true");
        let taken_out: Operation = context.client()?.post(&path, &none)?;
        let text = format!(
            "The {} of {name} is taken out of the queue.",
            taken_out.kind
        );
        return context.output.result(&taken_out, text);
    }
    let operation: Operation = context.client()?.post(&path, &none)?;
    // It is being given up, whether that can be told or not.
    let environment = source::environment(context, &name).ok();
    if let Some(queued) = environment.and_then(|environment| environment.queued) {
        context.output.say(format!(
            "Then the {} that is queued ({}) begins; take it out: beanpole abort {name} --queued",
            queued.kind, queued.id
        ));
    }
    if command.detach {
        let text = format!(
            "The {} of {name} is being given up.\nFollow it: beanpole attach {}",
            operation.kind, operation.id
        );
        return context.output.result(&operation, text);
    }
    let ended = watch::wait(context, operation)?;
    match ended.status {
        OperationStatus::Aborted | OperationStatus::RolledBack => context.output.result(
            &ended,
            format!(
                "The {} of {name} is given up. {}",
                ended.kind,
                ended.message.as_deref().unwrap_or_default()
            )
            .trim_end(),
        ),
        OperationStatus::Succeeded => context.output.result(
            &ended,
            format!(
                "The {} of {name} had succeeded before it could be given up.",
                ended.kind
            ),
        ),
        _ => Err(watch::explain(context, &ended)),
    }
}
