//! `beanpole deploy`: a version into an environment.

use super::{environment_path, source};
use crate::client::escape;
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use crate::output::{Output, plural, receipt};
use crate::project::pack;
use crate::project::settings::InForce;
use crate::watch;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{Deploy as Body, Environment, Operation, PlanView, Tier};
use beanpole_protocol::options::{
    BatchSize, DeploymentPolicy, ENVIRONMENT, OptionSettings, SplitSteps,
};
use beanpole_protocol::{EnvironmentName, VersionLabel};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Deploy the project, or a version that exists, to an environment
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole deploy                             what deploy.toml says\n  beanpole deploy shop-prod                   this directory, honouring .ebignore or .gitignore\n  beanpole deploy shop-prod --from app.zip --label v2\n  beanpole deploy shop-prod --git main\n  beanpole deploy shop-prod --version v1 --policy AllAtOnce\n  beanpole deploy shop-prod --batch 50%\n  beanpole deploy shop-prod --split 1%:5m,10%:10m,50%   a share of the requests first\n  beanpole deploy shop-prod --plan            show what would happen\n  beanpole deploy shop-prod --queue           after what is under way there\n\nIt waits for the end and fails when the deployment does; Ctrl-C only stops the watching."
)]
pub struct Deploy {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// A directory or ZIP [default: the project's directory]
    #[arg(long, value_name = "DIR|ZIP", conflicts_with_all = ["git", "version"])]
    from: Option<PathBuf>,
    /// A git ref: deploy what is committed there
    #[arg(long, value_name = "REF", conflicts_with = "version")]
    git: Option<String>,
    /// A version that exists
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["label", "description"])]
    version: Option<VersionLabel>,
    /// What to call the new version [default: app-HASH in git, else app-TIME]
    #[arg(long, short)]
    label: Option<VersionLabel>,
    /// What the new version is, for people
    #[arg(long, short, short_alias = 'm')]
    description: Option<String>,
    /// AllAtOnce, Rolling, RollingWithAdditionalBatch, Immutable or TrafficSplitting [default: the
    /// environment's]
    #[arg(long)]
    policy: Option<DeploymentPolicy>,
    /// How many instances at a time, `1` or `30%` [default: the environment's]
    #[arg(long, value_name = "N|P%")]
    batch: Option<BatchSize>,
    /// Rising shares of the requests for the new release, each with its time; then it gets all
    #[arg(long, value_name = "STEPS", conflicts_with = "batch")]
    split: Option<SplitSteps>,
    /// When it fails, leave the environment as it is
    #[arg(long)]
    no_auto_rollback: bool,
    /// Show what would happen, and stop; nothing but the bundle is uploaded for it
    #[arg(long, conflicts_with_all = ["detach", "queue"])]
    plan: bool,
    /// While another operation is under way, begin when that has ended instead of being refused
    #[arg(long)]
    queue: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Makes the version, shows the plan, starts the deployment, waits.
pub fn run(context: &Context, command: &Deploy) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    let other = command
        .policy
        .filter(|policy| *policy != DeploymentPolicy::TrafficSplitting);
    if let (Some(policy), Some(_)) = (other, &command.split) {
        return Err(
            Failure::misuse(format!("The policy {policy} has no steps of a split."))
                .hint("Give --split alone, or another policy and its --batch"),
        );
    }
    let project = context.project()?;
    if let Some(from) = &command.from {
        // What is not there is said before anybody is asked.
        pack::resolve(from)?;
    }
    let environment = source::environment(context, &name)?;
    if let Some(application) = &project.settings.application
        && *application != environment.application
        && command.version.is_none()
        && command.from.is_none()
    {
        return Err(Failure::misuse(format!(
            "{name} belongs to application {}, but deploy.toml is that of {application}.",
            environment.application
        ))
        .hint("Name another environment, or say what to deploy with --from"));
    }
    if !command.queue {
        not_busy(&environment)?;
    }
    let stopped = interrupt::failure(format!(
        "Stopped before the deploy of {name} began; what it runs stays as it is."
    ));
    interrupt::ends(context.output, || stopped);
    let place = project.settings.of(&name);
    for note in only_at_creation(&environment, &place) {
        context.output.say(&note);
    }
    let (version, new) = match &command.version {
        Some(version) => (version.clone(), false),
        None => {
            let wanted = source::Wanted {
                from: command.from.clone(),
                git: command.git.clone(),
                label: command.label.clone(),
                description: command.description.clone(),
                runs_as: Some(source::RunsAs {
                    platform: environment.platform,
                    options: platform_options(context, &environment, &place.deployment)?,
                    tier: environment.tier,
                }),
            };
            let (version, new) = source::make_version(context, &environment.application, &wanted)?;
            (version.label, new)
        }
    };
    let begun = begin(
        context,
        command,
        &environment,
        &version,
        place.auto_rollback,
        &place.deployment,
    );
    if new && !matches!(begun, Ok(Some(_))) {
        // It was made for this deployment only, which is not to be, and would keep its label for itself.
        // The controller keeps it where an environment does run it.
        let path = format!(
            "/v1/applications/{}/versions/{}",
            escape(environment.application.as_str()),
            escape(version.as_str())
        );
        let removed = context.client()?.remove(&path);
        if begun.is_ok() {
            removed?;
        }
    }
    match begun? {
        Some(operation) => watch::finish(context, operation, command.detach),
        None => Ok(()),
    }
}

/// What `deploy.toml` says, counts at creation only, and is not so: a deployment does not change it.
fn only_at_creation(environment: &Environment, place: &InForce) -> Vec<String> {
    let name = &environment.name;
    let told = |setting: &str, wanted: String, is: String, how: &str| {
        format!(
            "deploy.toml has {setting} = \"{wanted}\", which counts when an environment is created; {name} has \"{is}\". {how}"
        )
    };
    let word = |tier| match tier {
        Tier::Web => "web".to_owned(),
        Tier::Worker => "worker".to_owned(),
    };
    let anew = "Create another environment for that.";
    let mut notes = Vec::new();
    if let Some(tier) = place.tier.filter(|tier| *tier != environment.tier) {
        notes.push(told("tier", word(tier), word(environment.tier), anew));
    }
    if let Some(platform) = place.platform.filter(|one| *one != environment.platform) {
        let is = environment.platform.to_string();
        notes.push(told("platform", platform.to_string(), is, anew));
    }
    if let (Some(cname), Some(is)) = (&place.cname, &environment.cname)
        && cname != is
    {
        notes.push(told("cname", cname.to_string(), is.to_string(), anew));
    }
    let kind = place.creation.get(ENVIRONMENT, "EnvironmentType");
    if kind == Some("SingleInstance") && environment.size > 1 {
        notes.push(format!(
            "deploy.toml asks for a single instance, which counts when an environment is created; {name} has {}. Change it: beanpole config {name} --set EnvironmentType=SingleInstance",
            plural(u64::from(environment.size), "instance")
        ));
    }
    notes
}

/// Refuses what the controller would refuse in the end, before anything is packed or has a name.
fn not_busy(environment: &Environment) -> Result<(), Failure> {
    let Some(operation) = &environment.operation else {
        return Ok(());
    };
    let name = &environment.name;
    let mut failure = Failure::new(format!(
        "Another operation ({}, {}) is under way on `{name}`.",
        operation.kind, operation.id
    ))
    .hint(format!(
        "Wait for it to end, have this begin then with `--queue`, or give the other up: \
         `beanpole abort {name}`."
    ));
    failure.code = Some("operation-in-progress".to_owned());
    Err(failure)
}

/// Shows the plan and starts the deployment; with `--plan` it only shows.
fn begin(
    context: &Context,
    command: &Deploy,
    environment: &Environment,
    version: &VersionLabel,
    auto_rollback: Option<bool>,
    settings: &OptionSettings,
) -> Result<Option<Operation>, Failure> {
    let name = &environment.name;
    let body = Body {
        version: Some(version.clone()),
        policy: command.policy,
        batch: command.batch,
        split: command.split.clone(),
        no_auto_rollback: command.no_auto_rollback || auto_rollback == Some(false),
        settings: changed_settings(context, environment, settings)?,
        queue: command.queue,
    };
    let client = context.client()?;
    let path = format!("{}/deployments", environment_path(name));
    let mut lines = Vec::new();
    let plan = planned(context, &path, &body)?;
    if let Some(plan) = &plan {
        lines = all_lines(environment, version, plan);
    }
    if let Some(plan) = plan.filter(|_| command.plan) {
        if context.output.json {
            context.output.json(&plan)?;
        } else {
            lines.extend(receipt::plan(name.as_str(), &plan));
            for line in lines {
                context.output.line(line);
            }
        }
        return Ok(None);
    }
    show_plan(context.output, &lines);
    let stopped = interrupt::failure(format!(
        "Stopped before the controller answered; the deploy of {name} may have begun."
    ))
    .hint(format!("See whether it has: beanpole status {name}"));
    interrupt::ends(context.output, || stopped);
    client.post(&path, &body).map(Some)
}

/// What a deployment would do as things are; none of one that is to wait for another operation: it is
/// planned when it begins.
fn planned(context: &Context, path: &str, body: &Body) -> Result<Option<PlanView>, Failure> {
    match context.client()?.post(&format!("{path}?plan=true"), body) {
        Ok(plan) => Ok(Some(plan)),
        Err(failure) if body.queue && failure.has_code("operation-in-progress") => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Options of the environment's platform. Only those of a static site decide whether a bundle is one.
fn platform_options(
    context: &Context,
    environment: &Environment,
    wanted: &OptionSettings,
) -> Result<BTreeMap<String, String>, Failure> {
    if environment.platform != Platform::Static {
        return Ok(BTreeMap::new());
    }
    let path = format!("{}/settings", environment_path(&environment.name));
    let current: OptionSettings = context.client()?.get(&path)?;
    Ok(current.overlaid(wanted).platform_options())
}

/// What `deploy.toml` says that the environment does not have yet.
fn changed_settings(
    context: &Context,
    environment: &Environment,
    wanted: &OptionSettings,
) -> Result<OptionSettings, Failure> {
    if wanted.0.is_empty() {
        return Ok(OptionSettings::default());
    }
    let current: OptionSettings = context
        .client()?
        .get(&format!("{}/settings", environment_path(&environment.name)))?;
    // What the version of today sets may be gone with it.
    let of_version = |namespace: &str, option: &str| {
        let names = environment.options_of_version.get(namespace);
        names.is_some_and(|names| names.iter().any(|name| name == option))
    };
    let mut changed = OptionSettings::default();
    for (namespace, options) in &wanted.0 {
        for (option, value) in options {
            if current.get(namespace, option) != Some(value) || of_version(namespace, option) {
                changed.set(namespace, option, value.clone());
            }
        }
    }
    Ok(changed)
}

pub(super) fn show_plan(output: Output, lines: &[String]) {
    for line in lines {
        output.say(line);
    }
}

/// Prints what a change other than a deployment would do.
pub(super) fn print_plan(
    output: Output,
    name: &EnvironmentName,
    what: &str,
    plan: &PlanView,
) -> Result<(), Failure> {
    if output.json {
        return output.json(plan);
    }
    output.line(format!("Plan for {name}: {what}"));
    if plan.steps.is_empty() {
        output.line("  Nothing that runs changes.");
    }
    let mut lines = plan_lines(plan);
    lines.extend(receipt::settings(&plan.settings));
    lines.extend(receipt::plan(name.as_str(), plan));
    for line in lines {
        output.line(line);
    }
    Ok(())
}

/// A deployment's plan, with what it sets.
fn all_lines(environment: &Environment, version: &VersionLabel, plan: &PlanView) -> Vec<String> {
    let from = environment
        .version
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), ToString::to_string);
    let mut lines = vec![format!("Plan for {}: {from} → {version}", environment.name)];
    lines.extend(plan_lines(plan));
    lines.extend(receipt::settings(&plan.settings));
    lines
}

/// A plan's steps, for people.
pub(super) fn plan_lines(plan: &PlanView) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(policy) = plan.policy {
        let batches = plural_batches(plan.batches.len());
        lines.push(format!(
            "  {policy}, {batches}, never below {} in service",
            plural(u64::from(plan.floor), "healthy instance")
        ));
    }
    lines.extend(plan.lines.iter().map(|line| format!("  {line}")));
    let warnings = plan.warnings.iter();
    lines.extend(warnings.map(|warning| format!("  warning: {warning}")));
    lines
}

fn plural_batches(count: usize) -> String {
    match count {
        1 => "1 batch".to_owned(),
        _ => format!("{count} batches"),
    }
}
