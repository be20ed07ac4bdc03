//! How a bundle runs, told from its files.
//!
//! The same rules look into a ZIP, before a deployment is accepted, and into the unpacked tree on a
//! host: [`Top`] is what both can be asked. A file for each platform says by what it is known and what it
//! starts where no `Procfile` does; [`find`] asks them in the order of [`FOUND`].

mod about;
mod directory;
mod docker;
mod dotnet;
mod go;
mod java;
mod node;
mod php;
mod python;
mod ruby;
mod site;
mod tomcat;

use crate::containers::{self, Containers};
use crate::{Refused, procfile};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use serde_json::Value;
use std::collections::BTreeMap;

pub use about::{ABOUT, About, sign};
pub use directory::Directory;
pub use java::{JAR_OF_THE_BUNDLE, jvm_words};
pub use node::{PackageManager, package, package_manager};
pub use python::{Requirements, requirements};
pub use ruby::{gem_is_locked, has_gemfile};
pub use site::root as site_root;
pub use tomcat::{WarFile, is_exploded as is_exploded_war, wars};

/// Options of platforms by their names, as an order carries them.
pub type Options = BTreeMap<String, String>;

/// The process that gets the requests of a web environment, as in EB.
pub const WEB: &str = "web";
/// What builds a bundle, before anything of it runs (EB guide, "java-se-buildfile").
const BUILDFILE: &str = "Buildfile";
/// Longest JSON file in bytes that is read to find out how a bundle runs.
const LONGEST_JSON: u64 = 4 << 20;

/// How a bundle runs, before anything is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Never `auto`.
    pub platform: Platform,
    /// Name and command of what builds it, when its dependencies are installed: the `Buildfile`, else what the platform
    /// does.
    pub build: Vec<(String, String)>,
    /// What to start: from the `Procfile`, else as the platform does it. Empty where that shows only when it is built.
    pub processes: Vec<(String, String)>,
    /// Whether the `Procfile` names the processes.
    pub from_procfile: bool,
    /// What runs once for each deployment of it, before any of its processes.
    pub release_command: Option<String>,
    /// What its processes run, where they are containers.
    pub containers: Option<Containers>,
}

impl Plan {
    /// Whether something in it takes the requests of an environment of that tier.
    pub fn suits(&self, tier: Tier) -> Result<(), Refused> {
        let names: Vec<String> = self
            .processes
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        if tier == Tier::Worker || names.is_empty() || names.contains(&format!("`{WEB}`")) {
            return Ok(());
        }
        if self.containers.is_some() {
            return Err(Refused::new(
                containers::INVALID,
                format!(
                    "No container is to be reached from outside, and one has to take the requests of a web environment: \
                     publish a port of one of {}.",
                    names.join(", ")
                ),
            ));
        }
        Err(Refused::new(
            "procfile-without-web",
            format!(
                "The Procfile has no process `{WEB}`, and only that one gets the requests of a web \
                 environment. It has {}.",
                names.join(", ")
            ),
        ))
    }
}

/// What the top of a bundle holds, packed or unpacked.
pub trait Top {
    /// Why it cannot be read.
    type Error: From<Refused>;

    /// Whether `name` is a file, or a link to one.
    fn has_file(&self, name: &str) -> bool;

    /// The first `longest` bytes of the file `name`; none if there is none.
    fn head(&mut self, name: &str, longest: u64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// All names at the top, and whether each is a directory.
    fn names(&self) -> Vec<(String, bool)>;

    /// The names of the files, and of links to files, in the directory `name` itself.
    fn files_in(&self, name: &str) -> Vec<String>;
}

/// Reads a small text file of the bundle; none if there is none.
pub fn text<T: Top>(top: &mut T, name: &str, longest: u64) -> Result<Option<String>, T::Error> {
    let Some(bytes) = top.head(name, longest.saturating_add(1))? else {
        return Ok(None);
    };
    if bytes.len() as u64 > longest {
        return Err(Refused::new(
            "bundle-unsafe",
            format!("The bundle's {name} is longer than {longest} bytes."),
        )
        .into());
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Refused::new(
            "bundle-damaged",
            format!("The bundle's {name} is not UTF-8 text."),
        )
        .into()
    })
}

/// A small JSON file of the bundle; none if there is none.
fn json<T: Top>(top: &mut T, name: &str, code: &'static str) -> Result<Option<Value>, T::Error> {
    let Some(text) = text(top, name, LONGEST_JSON)? else {
        return Ok(None);
    };
    serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map(Some)
        .map_err(|error| {
            Refused::new(
                code,
                format!("The bundle's {name} is not valid JSON: {error}."),
            )
            .into()
        })
}

/// The names of files at the top that end in `ending`, in their order.
fn ending_in<T: Top>(top: &T, ending: &str) -> Vec<String> {
    let mut names: Vec<String> = top.files_in("");
    names.retain(|name| name.ends_with(ending) && name.len() > ending.len());
    names.sort();
    names
}

/// `text` as one word for a shell.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a platform finds in a bundle.
#[derive(Debug, Default)]
struct Found {
    /// Its own way to build it.
    build: Vec<(String, String)>,
    /// What it starts. Empty where that shows only when it is built.
    processes: Vec<(String, String)>,
    /// What it runs once for each deployment.
    release_command: Option<String>,
    /// What its processes run, where they are containers.
    containers: Option<Containers>,
}

impl Found {
    fn web(command: impl Into<String>) -> Self {
        Self {
            processes: vec![(WEB.to_owned(), command.into())],
            ..Self::default()
        }
    }

    fn built_by(mut self, command: impl Into<String>) -> Self {
        self.build.push(("build".to_owned(), command.into()));
        self
    }
}

/// Files that together are a sure sign of a platform. Applications of its frameworks often have a `package.json`, too,
/// for what runs in browsers.
const SURE: [(Platform, [&str; 2]); 4] = [
    (Platform::Ruby, ["Gemfile", "config.ru"]),
    (Platform::Python, ["manage.py", "requirements.txt"]),
    (Platform::Php, ["composer.json", "index.php"]),
    (Platform::Php, ["composer.json", "public/index.php"]),
];

/// In which order platforms are looked for where no files are a sure sign. A `Procfile` alone is one only where nothing
/// else is.
pub const FOUND: [Platform; 11] = [
    Platform::Node,
    Platform::Python,
    Platform::Ruby,
    Platform::Php,
    Platform::Go,
    Platform::Tomcat,
    Platform::Java,
    Platform::Dotnet,
    Platform::Docker,
    Platform::Procfile,
    Platform::Static,
];

/// The platform that the files of a bundle speak of; none where they speak of none.
pub fn detect<T: Top>(top: &T) -> Option<Platform> {
    if containers::is_sure(top) {
        return Some(Platform::Docker);
    }
    let sure = SURE
        .iter()
        .find(|(_, files)| files.iter().all(|name| top.has_file(name)));
    sure.map(|(platform, _)| *platform)
        .or_else(|| FOUND.into_iter().find(|one| speaks_of(top, *one)))
}

/// Whether the files of a bundle speak of `platform`.
fn speaks_of<T: Top>(top: &T, platform: Platform) -> bool {
    match platform {
        Platform::Auto => false,
        Platform::Node => top.has_file("package.json"),
        Platform::Python => python::is(top),
        Platform::Ruby => ruby::is(top),
        Platform::Php => php::is(top),
        Platform::Go => go::is(top),
        Platform::Tomcat => tomcat::is(top),
        Platform::Java => java::is(top),
        Platform::Dotnet => dotnet::is(top),
        Platform::Docker => docker::is(top),
        Platform::Procfile => top.has_file("Procfile"),
        Platform::Static => site::root(top, &Options::new()).is_some(),
    }
}

/// What `platform` finds in a bundle, which has a Procfile with processes or not.
fn look<T: Top>(
    top: &mut T,
    platform: Platform,
    options: &Options,
    procfile: bool,
) -> Result<Found, T::Error> {
    match platform {
        Platform::Auto | Platform::Procfile => Ok(Found::default()),
        Platform::Node => node::look(top, procfile),
        Platform::Python => python::look(top, options, procfile),
        Platform::Ruby => ruby::look(top, procfile),
        Platform::Php => Ok(php::look()),
        Platform::Go => go::look(top, procfile),
        Platform::Java => java::look(top, options, procfile),
        Platform::Tomcat => Ok(tomcat::look(top, procfile)?),
        Platform::Dotnet => dotnet::look(top, procfile),
        Platform::Static => Ok(site::look(top, options, procfile)?),
        Platform::Docker => docker::look(top),
    }
}

/// Finds how a bundle runs on `platform`, with `options` of it.
pub fn find<T: Top>(top: &mut T, platform: Platform, options: &Options) -> Result<Plan, T::Error> {
    let mut processes = text(top, "Procfile", procfile::LONGEST)?
        .map(|text| procfile::parse(&text))
        .transpose()?;
    let release_command = processes.as_mut().and_then(procfile::take_release);
    let only_release = processes.as_ref().is_some_and(Vec::is_empty);
    let platform = match platform {
        Platform::Auto => match detect(top) {
            Some(found) => found,
            None => {
                return Err(nothing(
                    top,
                    "The bundle has no Procfile at its top, and no package.json, requirements.txt, Gemfile, \
                     composer.json, go.mod, JAR, WAR, Dockerfile or index.html, so nothing says how to run it.",
                )
                .into());
            }
        },
        Platform::Procfile if processes.is_none() => {
            return Err(nothing(top, "The bundle has no Procfile at its top.").into());
        }
        chosen => chosen,
    };
    if platform == Platform::Docker {
        // Neither a Procfile nor a Buildfile says anything of containers.
        let found = look(top, platform, options, false)?;
        return Ok(Plan {
            platform,
            build: Vec::new(),
            processes: found.processes,
            from_procfile: false,
            release_command: None,
            containers: found.containers,
        });
    }
    if only_release && platform == Platform::Procfile {
        return Err(Refused::new(
            "procfile-invalid",
            "The Procfile has a `release` command, which runs once for each deployment, and names no \
             process to be started. Add a line such as `web: ./server`.",
        )
        .into());
    }
    // Beside a release command the platform knows what to start as it does without a Procfile.
    let named = processes.filter(|named| !named.is_empty());
    let found = look(top, platform, options, named.is_some())?;
    let build = match text(top, BUILDFILE, procfile::LONGEST)? {
        Some(text) => procfile::parse_as(&text, BUILDFILE)?,
        None => found.build,
    };
    let plan = Plan {
        platform,
        build,
        from_procfile: named.is_some(),
        processes: named.unwrap_or(found.processes),
        release_command: release_command.or(found.release_command),
        containers: None,
    };
    let base = options
        .get(containers::BASE_IMAGE)
        .filter(|base| !base.is_empty());
    let Some(base) = base else { return Ok(plan) };
    let containers = containers::made(top, &plan, base)?;
    Ok(Plan {
        platform: Platform::Docker,
        build: Vec::new(),
        processes: containers.shown(),
        release_command: None,
        containers: Some(containers),
        ..plan
    })
}

/// What a Procfile names.
#[derive(Default)]
pub struct Named {
    /// Processes and their commands, in its order.
    pub processes: Vec<(String, String)>,
    /// What runs once for each deployment.
    pub release_command: Option<String>,
}

/// What the Procfile of a bundle names, and the release command that `platform` has where it names none.
pub fn named<T: Top>(top: &mut T, platform: Platform) -> Result<Named, T::Error> {
    let mut named = Named::default();
    let platform = match platform {
        Platform::Auto => detect(top),
        chosen => Some(chosen),
    };
    if platform == Some(Platform::Docker) {
        named.processes = containers::read(top, None)?.shown();
        return Ok(named);
    }
    if let Some(text) = text(top, "Procfile", procfile::LONGEST)? {
        named.processes = procfile::parse(&text)?;
        named.release_command = procfile::take_release(&mut named.processes);
    }
    if named.release_command.is_none() && platform == Some(Platform::Ruby) {
        named.release_command = ruby::migration(top)?;
    }
    Ok(named)
}

/// Nothing says how to run it; with the usual mistakes, where one of them was made.
fn nothing<T: Top>(top: &T, what: &str) -> Refused {
    let names = top.names();
    let mut message = what.to_owned();
    let misspelt = names
        .iter()
        .find(|(name, directory)| !directory && name.eq_ignore_ascii_case("procfile"));
    let mut shown = names.iter().filter(|(name, _)| name != "__MACOSX");
    if let Some((name, _)) = misspelt.filter(|(name, _)| name != "Procfile") {
        message.push_str(&format!(
            " It has a file `{name}`: the name is written `Procfile`."
        ));
    } else if let (Some((folder, true)), None) = (shown.next(), shown.next()) {
        message.push_str(&format!(
            " Everything in it lies in the folder `{folder}`: make the ZIP from what is in that \
             folder, not from the folder itself."
        ));
    }
    Refused::new("no-platform", message)
}

#[cfg(test)]
mod tests;
