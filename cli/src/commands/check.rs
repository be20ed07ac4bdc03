//! `beanpole check`: what would become of a directory or ZIP on a host, told without one.

use crate::context::Context;
use crate::output::errors::Failure;
use crate::project::{ignored, pack};
use beanpole_bundle::platform::Top;
use beanpole_bundle::{Brought, Look, Refused, UnpackLimits};
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use beanpole_protocol::options::OptionSettings;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Say how this directory or a ZIP would run, and what of it would not
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  beanpole check\n  beanpole check build/shop.zip --platform tomcat\n  beanpole check --json\n\nIt asks no controller and no host. Exit code 1: no host could run it."
)]
pub struct Check {
    /// What would be deployed [default: what `beanpole deploy` would take]
    #[arg(value_name = "DIR|ZIP")]
    from: Option<PathBuf>,
    /// The platform of its environment [default: that of deploy.toml, else found from the files]
    #[arg(long, value_parser = super::source::platform)]
    platform: Option<Platform>,
    /// `web` gets requests, `worker` does not [default: that of deploy.toml, else web]
    #[arg(long, value_parser = super::source::tier)]
    tier: Option<Tier>,
}

/// What is said.
#[derive(Serialize)]
struct Report {
    from: PathBuf,
    platform: &'static str,
    found_by: Option<String>,
    build: Vec<Line>,
    processes: Vec<Line>,
    release_command: Option<String>,
    hooks: Vec<String>,
    container_commands: Vec<String>,
    needs_root: Option<String>,
    settings: Vec<Setting>,
    not_supported: Vec<String>,
}

/// A command by its name.
#[derive(Serialize)]
struct Line {
    name: String,
    command: String,
}

/// An option and where it comes from.
#[derive(Serialize)]
struct Setting {
    namespace: String,
    name: String,
    value: String,
    from: String,
}

/// Looks and tells.
pub fn run(context: &Context, command: &Check) -> Result<(), Failure> {
    let project = context.project()?;
    let place = match &project.settings.environment {
        Some(name) => project.settings.of(name),
        // Every environment has what is said for all.
        None => EnvironmentName::new("none")
            .map(|name| project.settings.of(&name))
            .unwrap_or_default(),
    };
    let here = std::env::current_dir()
        .map_err(|error| Failure::caused("The current directory cannot be read.", &error))?;
    let root = project.root.clone().unwrap_or(here);
    let from = match (&command.from, &project.settings.source.from) {
        (Some(from), _) => from.clone(),
        (None, Some(from)) => root.join(from),
        (None, None) => root,
    };
    let from = pack::resolve(&from)?;
    let platform = command.platform.or(place.platform).unwrap_or_default();
    let tier = command.tier.or(place.tier).unwrap_or(Tier::Web);
    let settings = place.creation.overlaid(&place.deployment);
    let refused = |refused: Refused| Failure {
        code: Some(refused.code.to_owned()),
        ..Failure::new(format!("{}: {}", from.display(), refused.message)).hint(refused.hint())
    };
    let found = if from.is_dir() {
        let mut files = Files::of(&from, &project.settings.source.ignore)?;
        let options = |brought: Brought| brought.options().overlaid(&settings).platform_options();
        Brought::read(&mut files)
            .map(options)
            .and_then(|options| beanpole_bundle::look(&mut files, platform, &options, tier))
    } else {
        zip(&from, platform, &settings, tier)?
    };
    let report = report(from.clone(), found.map_err(refused)?, &settings);
    if context.output.json {
        return context.output.json(&report);
    }
    for line in lines(&report) {
        context.output.line(line);
    }
    Ok(())
}

fn zip(
    path: &Path,
    platform: Platform,
    settings: &OptionSettings,
    tier: Tier,
) -> Result<Result<Look, Refused>, Failure> {
    let open = || {
        File::open(path)
            .map_err(|error| Failure::caused(format!("Cannot read {}.", path.display()), &error))
    };
    if let Err(refused) = beanpole_bundle::check(open()?, &UnpackLimits::default()) {
        return Ok(Err(refused));
    }
    let options = match beanpole_bundle::brought(open()?) {
        Ok(brought) => brought.options().overlaid(settings).platform_options(),
        Err(refused) => return Ok(Err(refused)),
    };
    Ok(beanpole_bundle::look_into_zip(
        open()?,
        platform,
        &options,
        tier,
    ))
}

fn report(from: PathBuf, look: Look, settings: &OptionSettings) -> Report {
    let lines = |all: Vec<(String, String)>| {
        all.into_iter()
            .map(|(name, command)| Line { name, command })
            .collect()
    };
    let keys = look
        .passed_over
        .iter()
        .map(|over| format!("{}: {}", over.file, over.keys.join(", ")));
    let resources = look.resources.iter().map(ToString::to_string);
    let options = look.brought.passed_over.iter().cloned();
    let containers = look.plan.containers.iter();
    let containers = containers.flat_map(|all| all.passed_over.iter().cloned());
    let not_supported = keys
        .chain(resources)
        .chain(options)
        .chain(containers)
        .collect();
    let mut set = Vec::new();
    let mut add = |namespace: &str, name: &str, value: &str, from: String| {
        let secret = namespace == beanpole_protocol::options::PROPERTIES;
        set.push(Setting {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            value: if secret { "***" } else { value }.to_owned(),
            from,
        });
    };
    for (namespace, options) in &settings.0 {
        for (name, value) in options {
            add(namespace, name, value, crate::project::FILE.to_owned());
        }
    }
    for one in &look.brought.settings {
        // What deploy.toml says counts before it.
        if settings.get(&one.namespace, &one.name).is_none() {
            let from = format!("{}, line {}", one.file, one.line);
            add(&one.namespace, &one.name, &one.value, from);
        }
    }
    for one in &look.brought.manifest {
        let from = format!("{}, line {}, for a new environment", one.file, one.line);
        add(&one.namespace, &one.name, &one.value, from);
    }
    set.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Report {
        from,
        platform: look.plan.platform.as_str(),
        found_by: look.sign,
        build: lines(look.plan.build),
        processes: lines(look.plan.processes),
        release_command: look.plan.release_command,
        hooks: look.hooks,
        container_commands: look
            .commands
            .into_iter()
            .map(|command| command.name)
            .collect(),
        needs_root: look.needs_root.map(|needs| needs.to_string()),
        settings: set,
        not_supported,
    }
}

/// The report for people: a word, then what it is.
fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |word: &str, text: String| lines.push(format!("{word:<12}{text}"));
    let title = beanpole_bundle::platform::ABOUT
        .iter()
        .find(|about| about.platform.as_str() == report.platform);
    let title = title.map_or(report.platform, |about| about.platform.title());
    let by = match &report.found_by {
        Some(file) => format!(" ({file})"),
        None => String::new(),
    };
    add("Platform", format!("{title}{by}"));
    if let Some(about) = beanpole_bundle::platform::ABOUT
        .iter()
        .find(|about| about.platform.as_str() == report.platform && about.installs != "nothing")
    {
        add("Installs", about.installs.to_owned());
    }
    for line in &report.build {
        add("Build", format!("{}: {}", line.name, line.command));
    }
    for line in &report.processes {
        add("Start", format!("{}: {}", line.name, line.command));
    }
    if report.processes.is_empty() {
        add("Start", "what the build leaves: one JAR".to_owned());
    }
    if let Some(command) = &report.release_command {
        add("Once", format!("release: {command}"));
    }
    for hook in &report.hooks {
        add("Hook", hook.clone());
    }
    for name in &report.container_commands {
        add("Command", format!("container_commands: {name}"));
    }
    if let Some(needs) = &report.needs_root {
        add(
            "Root",
            format!("{needs} is root's: `beanpole app root allow APP` lets an application"),
        );
    }
    for one in &report.settings {
        add(
            "Setting",
            format!(
                "{}:{} = {} ({})",
                one.namespace, one.name, one.value, one.from
            ),
        );
    }
    for text in &report.not_supported {
        add("Not done", text.clone());
    }
    lines
}

/// The files of a directory that a bundle of it would hold.
struct Files<'r> {
    root: &'r Path,
    all: BTreeSet<PathBuf>,
}

impl<'r> Files<'r> {
    fn of(root: &'r Path, ignore: &[String]) -> Result<Self, Failure> {
        let all = ignored::list(root, ignore)?.into_iter().collect();
        Ok(Self { root, all })
    }
}

impl Top for Files<'_> {
    type Error = Refused;

    fn has_file(&self, name: &str) -> bool {
        self.all.contains(Path::new(name)) && self.root.join(name).is_file()
    }

    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Refused> {
        if !self.has_file(name) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let read = fs::File::open(self.root.join(name))
            .and_then(|file| file.take(longest).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(error) => Err(Refused {
                code: "host-io",
                message: format!("{name} cannot be read: {error}."),
            }),
        }
    }

    fn names(&self) -> Vec<(String, bool)> {
        let tops: BTreeSet<(String, bool)> = self
            .all
            .iter()
            .filter_map(|path| {
                let mut parts = path.iter();
                let first = parts.next()?.to_string_lossy().into_owned();
                Some((first, parts.next().is_some()))
            })
            .collect();
        tops.into_iter().collect()
    }

    fn files_in(&self, name: &str) -> Vec<String> {
        let directory = Path::new(name);
        let inside = self
            .all
            .iter()
            .filter(|path| path.parent() == Some(directory));
        inside
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }
}
