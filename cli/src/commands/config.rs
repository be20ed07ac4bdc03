//! `beanpole config`: an environment's options.

use super::{deploy, environment_path};
use crate::context::Context;
use crate::output::errors::Failure;
use crate::output::table;
use crate::watch;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{Environment, Operation, PlanView, UpdateSettings};
use beanpole_protocol::options::{
    COMMAND, INSTANCE, KNOWN, LOADBALANCER, OLDER_STATIC_FILES, OptionSettings, OptionSpec,
    PROPERTIES, STATIC_FILES, is_of_static_files, named, nearest,
};
use clap::Args;

/// Show or change an environment's options
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole config shop-prod\n  beanpole config shop-prod --set HealthCheckPath=/up --set BatchSize=50\n  beanpole config shop-prod --set aws:elasticbeanstalk:command:Timeout=900\n  beanpole config shop-prod --remove HealthCheckPath\n  beanpole config shop-prod --set MemoryMax=512 --plan    show what would happen\n\nA name without its namespace will do where only one option has it."
)]
pub struct Config {
    /// The environment [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// Set an option
    #[arg(long, value_name = "[NAMESPACE:]NAME=VALUE")]
    set: Vec<String>,
    /// Go back to an option's default
    #[arg(long, value_name = "[NAMESPACE:]NAME")]
    remove: Vec<String>,
    /// Show what would happen, and stop
    #[arg(long, conflicts_with_all = ["detach", "queue"])]
    plan: bool,
    /// While another operation is under way, make the change when that has ended instead of being refused
    #[arg(long)]
    queue: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Shows every option, or changes some.
pub fn run(context: &Context, command: &Config) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    if command.plan && command.set.is_empty() && command.remove.is_empty() {
        return Err(Failure::misuse("There is no change to plan.")
            .hint("Add one: beanpole config ENV --plan --set NAME=VALUE"));
    }
    let path = format!("{}/settings", environment_path(&name));
    if command.set.is_empty() && command.remove.is_empty() {
        let settings: OptionSettings = context.client()?.get(&path)?;
        let environment: Environment = context.client()?.get(&environment_path(&name))?;
        return show(context, &settings, &environment);
    }
    let mut change = UpdateSettings {
        queue: command.queue,
        ..UpdateSettings::default()
    };
    for text in &command.set {
        let (namespace, option, value) = parse_option(text)?;
        set_once(&mut change.set, &namespace, &option, value)?;
    }
    change
        .set
        .validate()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    for text in &command.remove {
        let (namespace, option) = locate(text)?;
        change.remove.entry(namespace).or_default().push(option);
    }
    send(context, &name, &change, command.plan, command.detach)
}

/// Changes settings and waits, or shows what that would do.
pub fn send(
    context: &Context,
    name: &EnvironmentName,
    change: &UpdateSettings,
    plan: bool,
    detach: bool,
) -> Result<(), Failure> {
    let client = context.client()?;
    let path = format!("{}/settings", environment_path(name));
    if plan {
        let plan: PlanView = client.patch(&format!("{path}?plan=true"), change)?;
        return deploy::print_plan(context.output, name, "other settings", &plan);
    }
    let operation: Operation = client.patch(&path, change)?;
    watch::finish(context, operation, detach)
}

fn show(
    context: &Context,
    settings: &OptionSettings,
    environment: &Environment,
) -> Result<(), Failure> {
    if context.output.json {
        let mut shown = settings.clone();
        shown.0.remove(PROPERTIES);
        return context.output.json(&shown);
    }
    let from = |namespace: &str, name: &str| {
        let of_version = environment.options_of_version.get(namespace);
        if of_version.is_some_and(|names| names.iter().any(|one| one == name)) {
            "version"
        } else if settings.get(namespace, name).is_some() {
            "set"
        } else {
            "default"
        }
    };
    let named = settings.0.iter().flat_map(|(namespace, options)| {
        let known = named(namespace).filter(|spec| options.contains_key(spec.name));
        known.map(move |spec| {
            let value = settings.effective(namespace, spec.name);
            vec![
                format!("{namespace}:{}", spec.name),
                value.to_owned(),
                from(namespace, spec.name).to_owned(),
            ]
        })
    });
    let served = settings
        .0
        .iter()
        .filter(|(name, _)| is_of_static_files(name));
    let served = served.flat_map(|(namespace, paths)| {
        paths.iter().map(move |(path, directory)| {
            vec![
                format!("{namespace}:{path}"),
                directory.clone(),
                from(namespace, path).to_owned(),
            ]
        })
    });
    let rows = KNOWN
        .iter()
        .map(|spec| {
            vec![
                format!("{}:{}", spec.namespace, spec.name),
                in_force(settings, spec),
                from(spec.namespace, spec.name).to_owned(),
            ]
        })
        .chain(named)
        .chain(served)
        .collect();
    context
        .output
        .line(table::render(&["OPTION", "VALUE", "FROM"], rows));
    Ok(())
}

/// What holds: some defaults follow from other options.
fn in_force(settings: &OptionSettings, spec: &OptionSpec) -> String {
    match (spec.namespace, spec.name) {
        (COMMAND, "DeploymentPolicy") => settings.deployment().policy.to_string(),
        (INSTANCE, "StartTimeout") => (settings.deployment().start_timeout_ms / 1_000).to_string(),
        // A connection may be silent for longer than a request.
        (LOADBALANCER, "IdleTimeout") => (settings.pool_limits().idle_ms / 1_000).to_string(),
        (namespace, name) => settings.effective(namespace, name).to_owned(),
    }
}

/// Reads `[NAMESPACE:]NAME=VALUE`.
pub fn parse_option(text: &str) -> Result<(String, String, String), Failure> {
    let Some((option, value)) = text.split_once('=') else {
        // A name that there is not is told as such.
        let (_, name) = locate(text)?;
        return Err(
            Failure::misuse(format!("The option `{name}` is given without a value."))
                .hint(format!("Write {name}=VALUE; to go back to its default: beanpole config ENV --remove {name}")),
        );
    };
    let (namespace, name) = locate(option)?;
    Ok((namespace, name, value.to_owned()))
}

/// Sets an option, unless it was set before: of two values, one would be lost without a word.
pub fn set_once(
    settings: &mut OptionSettings,
    namespace: &str,
    name: &str,
    value: String,
) -> Result<(), Failure> {
    if settings.get(namespace, name).is_some() {
        return Err(Failure::misuse(format!(
            "`{}` is given twice.",
            beanpole_protocol::ids::shown(name)
        ))
        .hint("Leave one of the two out"));
    }
    settings.set(namespace, name, value);
    Ok(())
}

/// Finds the namespace of an option that is given with or without it.
fn locate(text: &str) -> Result<(String, String), Failure> {
    let known: Vec<String> = KNOWN
        .iter()
        .filter(|spec| spec.name == text || text == format!("{}:{}", spec.namespace, spec.name))
        .map(|spec| spec.namespace.to_owned())
        .collect();
    match &known[..] {
        [] => {}
        [namespace] => {
            let name = text.rsplit(':').next().unwrap_or(text);
            return Ok((namespace.clone(), name.to_owned()));
        }
        several => {
            let full: Vec<String> = several
                .iter()
                .map(|namespace| format!("`{namespace}:{text}`"))
                .collect();
            return Err(
                Failure::misuse(format!("There are several options `{text}`."))
                    .hint(format!("Write which one: {}", full.join(" or "))),
            );
        }
    }
    // Names in these are anybody's own.
    for namespace in [PROPERTIES, STATIC_FILES]
        .into_iter()
        .chain(OLDER_STATIC_FILES)
    {
        let own = text.strip_prefix(namespace);
        if let Some(name) = own.and_then(|rest| rest.strip_prefix(':')) {
            return Ok((namespace.to_owned(), name.to_owned()));
        }
    }
    // Of a process, a listener or a rule by its name; whether it has such an option is told with the value.
    if let Some((namespace, name)) = text.rsplit_once(':')
        && named(namespace).next().is_some()
    {
        return Ok((namespace.to_owned(), name.to_owned()));
    }
    let failure = Failure::misuse(format!(
        "There is no option `{}`.",
        beanpole_protocol::ids::shown(text)
    ));
    let name = text.rsplit(':').next().unwrap_or(text);
    Err(match nearest(name, KNOWN.iter().map(|spec| spec.name)) {
        Some(near) => failure.hint(format!(
            "Did you mean `{near}`? List them: beanpole config ENV"
        )),
        None => failure.hint("List them: beanpole config ENV"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::options::spec;

    #[test]
    fn a_name_that_several_options_have_needs_its_namespace() {
        let located = locate("BatchSize").expect("one has it");
        assert_eq!(located, (COMMAND.to_owned(), "BatchSize".to_owned()));
        let located = locate("aws:elasticbeanstalk:command:Timeout").expect("it is said which");
        assert_eq!(located, (COMMAND.to_owned(), "Timeout".to_owned()));
        let failure = locate("Timeout").expect_err("two have it");
        let hint = failure.hint.unwrap_or_default();
        assert!(
            hint.contains("`aws:elasticbeanstalk:command:Timeout` or `"),
            "{hint}"
        );
    }

    #[test]
    fn paths_of_static_files_are_names_of_options() {
        for namespace in [STATIC_FILES, OLDER_STATIC_FILES[3]] {
            let located = parse_option(&format!("{namespace}:/a/b=static"));
            let (found, path, directory) = located.expect("it is an option");
            assert_eq!(
                (&*found, &*path, &*directory),
                (namespace, "/a/b", "static")
            );
        }
        assert!(locate("/a/b").is_err());
    }

    #[test]
    fn a_default_that_follows_from_other_options_is_shown() {
        let policy = spec(COMMAND, "DeploymentPolicy").expect("known");
        let start = spec(INSTANCE, "StartTimeout").expect("known");
        let mut settings = OptionSettings::default();
        assert_eq!(in_force(&settings, policy), "Rolling");
        assert_eq!(in_force(&settings, start), "120");
        settings.set(COMMAND, "BatchSize", "100");
        settings.set(COMMAND, "Timeout", "900");
        assert_eq!(in_force(&settings, policy), "AllAtOnce");
        assert_eq!(in_force(&settings, start), "900");
    }
}
