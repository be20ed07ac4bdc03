//! `beanpole create`: a new environment.

use super::{apps, config, source};
use crate::context::Context;
use crate::interrupt;
use crate::output::errors::Failure;
use crate::project::pack;
use crate::watch;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::{CreateEnvironment, Operation, PlanView, Tier};
use beanpole_protocol::options::{ASG, ENVIRONMENT, OptionSettings, PROPERTIES};
use beanpole_protocol::{ApplicationName, Cname, EnvironmentName, VersionLabel};
use clap::Args;
use std::path::PathBuf;

/// Create an environment: a named place where a version of an application runs
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole create shop-prod --instances 3\n  beanpole create shop-dev --single --env DEBUG=1\n  beanpole create shop-jobs --tier worker --application shop\n  beanpole create shop-prod --from .          with a first version in it\n  beanpole create shop-db --load-balancer network --listen 5432\n\nThe application is created where it does not exist."
)]
pub struct Create {
    /// Its name: 4 to 40 letters, digits or hyphens [default: `environment` of deploy.toml]
    environment: Option<EnvironmentName>,
    /// The application [default: that of deploy.toml, else the directory's name]
    #[arg(long, short)]
    application: Option<ApplicationName>,
    /// One instance, without its siblings
    #[arg(long, conflicts_with = "instances")]
    single: bool,
    /// How many instances
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    instances: Option<u32>,
    /// `web` gets requests, `worker` does not
    #[arg(long, value_parser = source::tier)]
    tier: Option<Tier>,
    /// `application` takes requests, `network` connections to TCP ports; fixed from then on
    #[arg(long, value_name = "TYPE", value_parser = ["application", "classic", "network"], hide_possible_values = true)]
    load_balancer: Option<String>,
    /// A port of a network environment; `/tls` behind it has TLS end at the load balancer
    #[arg(long, value_name = "PORT[/tls]")]
    listen: Vec<String>,
    /// The first label of its hostname [default: its name]
    #[arg(long)]
    cname: Option<Cname>,
    /// auto, or one of `beanpole platform list`
    #[arg(long, value_parser = source::platform)]
    platform: Option<Platform>,
    /// What it is, for people
    #[arg(long, default_value = "")]
    description: String,
    /// The version to start with
    #[arg(long, conflicts_with = "from")]
    version: Option<VersionLabel>,
    /// A directory or ZIP to make its first version of
    #[arg(long, value_name = "DIR|ZIP")]
    from: Option<PathBuf>,
    /// An environment property
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE")]
    properties: Vec<String>,
    /// Any option
    #[arg(long = "option", short = 'o', value_name = "[NAMESPACE:]NAME=VALUE")]
    options: Vec<String>,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

/// Sets what `--load-balancer` and `--listen` say.
fn balance(command: &Create, given: &mut OptionSettings) -> Result<(), Failure> {
    if let Some(kind) = &command.load_balancer {
        config::set_once(given, ENVIRONMENT, "LoadBalancerType", kind.clone())?;
    }
    for listener in &command.listen {
        let listener = listener.to_ascii_lowercase();
        let (port, protocol) = match listener.split_once('/') {
            None | Some((_, "tcp")) => (listener.trim_end_matches("/tcp"), "TCP"),
            Some((port, "tls")) => (port, "TLS"),
            Some((_, other)) => {
                return Err(Failure::misuse(format!(
                    "`{other}` is nothing that a port can be listened on for: it is `tcp` or `tls`."
                )));
            }
        };
        let namespace = format!("aws:elbv2:listener:{port}");
        config::set_once(given, &namespace, "Protocol", protocol.to_owned())?;
    }
    Ok(())
}

/// Creates the environment and, where it is new, its application.
pub fn run(context: &Context, command: &Create) -> Result<(), Failure> {
    let name = context.environment(command.environment.as_ref())?;
    name.check_new()
        .map_err(|error| Failure::misuse(format!("{error}.")).hint("Choose another name"))?;
    let application = source::application(context, command.application.as_ref())?;
    let project = context.project()?;
    let place = project.settings.of(&name);
    let tier = command.tier.or(place.tier).unwrap_or_default();
    let platform = command.platform.or(place.platform).unwrap_or_default();
    let mut settings = place.creation;
    if let Some(instances) = command.instances {
        settings.set(ASG, "MinSize", instances.to_string());
        settings.remove(ENVIRONMENT, "EnvironmentType");
    }
    if command.single {
        settings.set(ENVIRONMENT, "EnvironmentType", "SingleInstance");
        settings.remove(ASG, "MinSize");
    }
    let mut given = OptionSettings::default();
    for text in &command.properties {
        let (property, value) = source::property(text)?;
        config::set_once(&mut given, PROPERTIES, property, value.to_owned())?;
    }
    for text in &command.options {
        let (namespace, option, value) = config::parse_option(text)?;
        config::set_once(&mut given, &namespace, &option, value)?;
    }
    balance(command, &mut given)?;
    let settings = settings.overlaid(&given);
    settings
        .validate()
        .map_err(|error| Failure::misuse(error.to_string()))?;
    if let Some(from) = &command.from {
        pack::resolve(from)?;
    }
    let client = context.client()?;
    // The application comes with the environment where it is new, or not at all.
    let is_new = !apps::exists(client, &application)?;
    let described = project.settings.description.as_deref().unwrap_or_default();
    let mut body = CreateEnvironment {
        new_application: is_new.then(|| described.to_owned()),
        application,
        name,
        cname: command.cname.clone().or(place.cname),
        description: command.description.clone(),
        tier,
        platform,
        settings,
        version: command.version.clone(),
    };
    let (name, application) = (body.name.clone(), body.application.clone());
    if let Some(from) = &command.from {
        // What is refused is refused before there is a version, which needs its application.
        let _: PlanView = client.post("/v1/environments?plan=true", &body)?;
        let is_new = body.new_application.take().is_some();
        if is_new {
            apps::create(context, &application, described)?;
        }
        let stopped = interrupt::failure(format!("Stopped before {name} was created."));
        interrupt::ends(context.output, || stopped);
        let wanted = source::Wanted {
            from: Some(from.clone()),
            runs_as: Some(source::RunsAs {
                platform,
                options: body.settings.platform_options(),
                tier,
            }),
            ..source::Wanted::default()
        };
        let (version, _) =
            source::make_version(context, &application, &wanted).inspect_err(|_| {
                if is_new {
                    // It came for a version that it does not have. What cannot be taken back is no second failure.
                    let _ = apps::take_back(context, &application);
                }
            })?;
        body.version = Some(version.label);
    }
    let stopped = interrupt::failure(format!(
        "Stopped before the controller answered; {name} may be there."
    ))
    .hint(format!("See whether it is: beanpole status {name}"));
    interrupt::ends(context.output, || stopped);
    let operation: Operation = client.post("/v1/environments", &body)?;
    if body.new_application.is_some() {
        let text = format!("Application {application} is created.");
        context.output.say(text);
    }
    watch::finish(context, operation, command.detach)
}
