//! `beanpole show`: a release and its deployment, or any operation, in full.

use super::environment_path;
use crate::client::escape;
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::{receipt, table};
use beanpole_protocol::api::{Operation, Page, Receipt, Release, ReleaseDetail};
use beanpole_protocol::ids::shown;
use beanpole_protocol::{EnvironmentName, OperationId, ReleaseNumber};
use clap::Args;

/// Show a release and its deployment in full: requests, latency, time, every instance
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole show shop-prod                the last release\n  beanpole show shop-prod 3              release 3; list them with `beanpole releases`\n  beanpole show op-4k2m9x1c7p3q          an operation of any kind\n  beanpole show 3                        release 3 of the environment of deploy.toml\n  beanpole show shop-prod 3 --json | jq .deployment.receipt.during"
)]
pub struct Show {
    /// The environment [default: `environment` of deploy.toml], then a release's number or an operation
    /// [default: the last release]
    #[arg(value_name = "[ENVIRONMENT] [RELEASE|OPERATION]", num_args = 0..=2)]
    what: Vec<String>,
}

/// What is shown.
enum Which {
    Last,
    Release(ReleaseNumber),
    Operation(OperationId),
}

impl Which {
    fn read(text: &str) -> Option<Self> {
        let number = text
            .parse()
            .ok()
            .map(|number| Self::Release(ReleaseNumber(number)));
        number.or_else(|| OperationId::new(text).ok().map(Self::Operation))
    }
}

/// Shows it.
pub fn run(context: &Context, command: &Show) -> Result<(), Failure> {
    let (named, which) = match command.what.as_slice() {
        [] => (None, Which::Last),
        [one] => match Which::read(one) {
            Some(which) => (None, which),
            None => (Some(one), Which::Last),
        },
        [name, which, ..] => {
            let read = Which::read(which).ok_or_else(|| {
                Failure::misuse(format!(
                    "`{}` is neither a release nor an operation.",
                    shown(which)
                ))
                .hint(
                    "Give a release's number (beanpole releases ENV), or an operation as `op-4k2m9x1c7p3q`",
                )
            })?;
            (Some(name), read)
        }
    };
    let named = named
        .map(EnvironmentName::new)
        .transpose()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    let client = context.client()?;
    if let Which::Operation(id) = which {
        let operation: Operation = client
            .get(&format!("/v1/operations/{id}"))
            .map_err(|failure: Failure| failure.or_hint("See what ran: beanpole events --all"))?;
        if let Some(name) = named.filter(|name| *name != operation.environment_name) {
            return Err(Failure::misuse(format!(
                "{id} is an operation of {}, not of {name}.",
                operation.environment_name
            ))
            .hint(format!("Write beanpole show {id}")));
        }
        return show_operation(context, &operation);
    }
    let name = context.environment(named.as_ref())?;
    let releases = format!("{}/releases", environment_path(&name));
    let number = match which {
        Which::Release(number) => number,
        _ => {
            let newest: Page<Release> = client.get(&format!("{releases}?limit=1"))?;
            let newest = newest.items.first().ok_or_else(|| {
                Failure::new(format!("{name} has no release yet."))
                    .hint(format!("Make one: beanpole deploy {name}"))
            })?;
            newest.number
        }
    };
    let release: ReleaseDetail =
        client.get(&format!("{releases}/{}", escape(&number.to_string())))?;
    if context.output.json {
        return context.output.json(&release);
    }
    show_release(context, &name, &release);
    Ok(())
}

fn show_release(context: &Context, name: &EnvironmentName, detail: &ReleaseDetail) {
    let release = &detail.release;
    let live = if release.live { ", live" } else { "" };
    let mut fields = vec![
        ("release", format!("{} of {name}{live}", release.number)),
        ("version", release.version.to_string()),
        ("made by", release.reason.clone()),
        (
            "outcome",
            release
                .outcome
                .map(|outcome| context.output.status(outcome))
                .unwrap_or_default(),
        ),
    ];
    let Some(deployment) = &detail.deployment else {
        fields.push(("made at", release.created_at.to_string()));
        context.output.line(table::fields(&fields));
        context.output.say(if release.outcome.is_none() {
            format!("Its deployment is not over yet. Follow it: beanpole attach {name}")
        } else {
            "It was deployed before deployments left receipts.".to_owned()
        });
        return;
    };
    let from = deployment
        .from
        .map_or_else(String::new, |from| format!(", from release {from}"));
    let id = &deployment.operation;
    fields.push(("operation", format!("{id} ({}{from})", deployment.kind)));
    fields.push(("began at", deployment.started_at.to_string()));
    fields.push(("result", deployment.message.clone().unwrap_or_default()));
    print(context, fields, &deployment.receipt);
}

fn show_operation(context: &Context, operation: &Operation) -> Result<(), Failure> {
    if context.output.json {
        return context.output.json(operation);
    }
    let release = match (&operation.version, operation.to) {
        (Some(version), Some(to)) => format!("{to} ({version})"),
        _ => String::new(),
    };
    let fields = vec![
        (
            "operation",
            format!(
                "{} ({} of {})",
                operation.id, operation.kind, operation.environment_name
            ),
        ),
        ("release", release),
        ("outcome", context.output.status(operation.status)),
        ("began at", operation.started_at.to_string()),
        ("result", operation.message.clone().unwrap_or_default()),
    ];
    let Some(receipt) = &operation.receipt else {
        context.output.line(table::fields(&fields));
        context.output.say(if operation.status.is_over() {
            "It changed nothing that runs, so there is no receipt.".to_owned()
        } else {
            format!(
                "It is not over yet. Follow it: beanpole attach {}",
                operation.id
            )
        });
        return Ok(());
    };
    print(context, fields, receipt);
    Ok(())
}

fn print(context: &Context, mut fields: Vec<(&'static str, String)>, receipt: &Receipt) {
    fields.extend(receipt::figures(receipt));
    context.output.line(table::fields(&fields));
    context.output.line("");
    context.output.line(receipt::full(context.output, receipt));
}
