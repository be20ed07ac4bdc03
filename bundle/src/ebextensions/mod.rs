//! Elastic Beanstalk's configuration files, `.ebextensions/*.config`: everything that may stand in them, as
//! values that a host can carry out and a controller can judge.
//!
//! The rules are those of EB's developer guide ("Customizing software on Linux servers"), with what is
//! safe here and clear. A file is YAML or JSON; files lie in `.ebextensions` itself and count in the
//! order of their names. Their keys are put together: packages are joined, of a path, a group or a user the
//! later file's counts, and commands run in the order of *their* names over all files, so that a name may be
//! there once. Keys that nobody knows are passed over and can be told. What is wrong is refused with its file and
//! line; values of `env`, of options and of files, and URLs, are in no message.
//!
//! A file for each idea: `commands`, `packages`, `accounts` (groups and users), `files`, `sources`,
//! `services`, `settings` (`option_settings`) and `resources`.

mod accounts;
mod commands;
mod files;
mod packages;
mod resources;
mod services;
mod settings;
mod sources;

pub use accounts::{Group, User};
pub use commands::{Command, CommandLine, ContainerCommand, MOST_COMMANDS};
pub use files::{Content, HostFile};
pub use packages::{Package, PackageManager};
pub use resources::Resource;
pub use services::Service;
pub use settings::Setting;
pub(crate) use settings::by_namespace as settings_by_namespace;
pub use sources::Source;

use crate::Refused;
use crate::config::File;
use crate::platform::Top;
use crate::yaml::Node;
use beanpole_protocol::ApplicationName;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};

/// Where the files lie.
pub const DIRECTORY: &str = ".ebextensions";
/// How their names end.
const ENDING: &str = ".config";
/// Most files: nobody writes more by hand.
const MOST_FILES: usize = 64;
/// Longest file in bytes: with `files` in it, one may hold whole scripts.
const LONGEST: u64 = 256 * 1024;
/// As many keys of a file that are passed over are told.
const TOLD: usize = 10;
/// Where EB has the application while it deploys and afterwards. What a configuration file puts there goes into the
/// release's own tree.
const TREES: [&str; 3] = ["/var/app/staging", "/var/app/current", "/var/app/ondeck"];

/// What a bundle's configuration files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// `packages`, by manager and name, in the order in which managers have their turn.
    pub packages: Vec<Package>,
    /// `groups`, by name.
    pub groups: Vec<Group>,
    /// `users`, by name.
    pub users: Vec<User>,
    /// `sources`, by directory.
    pub sources: Vec<Source>,
    /// `files`, by path.
    pub files: Vec<HostFile>,
    /// `commands`, in the order in which they run.
    pub commands: Vec<Command>,
    /// `services`, by name.
    pub services: Vec<Service>,
    /// `container_commands`, in the order in which they run.
    pub container_commands: Vec<ContainerCommand>,
    /// `option_settings`, in the order of the files: of an option, the last one counts.
    pub settings: Vec<Setting>,
    /// `Resources`, in the order of the files.
    pub resources: Vec<Resource>,
    /// What of the files does nothing here.
    pub passed_over: Vec<PassedOver>,
    /// The first thing that only root can do on a host; none where all of it is the application's own affair.
    pub needs_root: Option<NeedsRoot>,
}

impl Extensions {
    /// Whether something is to be done on a host before anything of the bundle runs.
    pub fn sets_up(&self) -> bool {
        self.needs_root.is_some() || !self.sources.is_empty() || !self.files.is_empty()
    }
}

/// Keys of a file that do nothing here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// For example `.ebextensions/01.config`.
    pub file: String,
    /// For example `Outputs` or `packages.msi`; ten at most.
    pub keys: Vec<String>,
}

/// Something that only root can do on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsRoot {
    /// For example `.ebextensions/01.config`.
    pub file: String,
    /// Its line, counted from 1.
    pub line: usize,
    /// For people: `` `packages` ``, ``the file `/etc/motd` ``.
    pub what: String,
}

impl NeedsRoot {
    /// The code of a bundle that is refused for it.
    pub const NOT_ALLOWED: &str = "root-not-allowed";

    /// Why a bundle of `application` is refused, which is not allowed to act as root on its hosts.
    pub fn refusal(&self, application: &ApplicationName) -> String {
        format!(
            "The bundle asks for what only root may do on a host: {self}. The application {application} may not \
             act as root on its hosts."
        )
    }

    /// What to do about it.
    pub fn hint(application: &ApplicationName) -> String {
        format!(
            "Take it out of the bundle. Or, if everybody who may deploy {application} may be root on its hosts: \
             beanpole app root allow {application}"
        )
    }
}

impl Display for NeedsRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}, line {}", self.what, self.file, self.line)
    }
}

/// Where something is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// On the host, an absolute path without `..`.
    Host(PathBuf),
    /// Below the release's tree: written as below `/var/app/staging` or `/var/app/current`.
    Tree(PathBuf),
}

impl Target {
    /// Of an absolute path; none if it is none, or has a way up in it.
    fn of(text: &str) -> Option<Self> {
        let path = Path::new(text);
        let plain = |part: Component<'_>| {
            matches!(
                part,
                Component::RootDir | Component::Normal(_) | Component::CurDir
            )
        };
        if !path.is_absolute() || !path.components().all(plain) || text.len() > LONGEST_PATH {
            return None;
        }
        if text.chars().any(char::is_control) {
            return None;
        }
        // Without `.` and doubled slashes.
        let path: PathBuf = path
            .components()
            .filter(|part| *part != Component::CurDir)
            .collect();
        let below = TREES.iter().find_map(|tree| path.strip_prefix(tree).ok());
        Some(match below {
            Some(below) => Self::Tree(below.to_owned()),
            None => Self::Host(path),
        })
    }

    /// As people know it.
    pub fn shown(&self) -> String {
        match self {
            Self::Host(path) => crate::shown(&path.to_string_lossy()),
            Self::Tree(path) => crate::shown(&format!("/var/app/staging/{}", path.display())),
        }
    }
}

/// Longest path: `PATH_MAX` of Linux less the NUL.
const LONGEST_PATH: usize = 4095;

/// Reads the configuration files of a bundle.
pub fn read<T: Top>(top: &mut T) -> Result<Extensions, T::Error> {
    let mut names: Vec<String> = top.files_in(DIRECTORY);
    names.retain(|name| name.ends_with(ENDING) && !name.starts_with('.'));
    names.sort();
    if names.len() > MOST_FILES {
        return Err(refused(format!(
            "The bundle has {} files {DIRECTORY}/*{ENDING}; {MOST_FILES} are allowed.",
            names.len()
        ))
        .into());
    }
    let mut all = Gathered::default();
    for name in names {
        let path = format!("{DIRECTORY}/{name}");
        if let Some(bytes) = top.head(&path, LONGEST + 1)? {
            let file = File {
                name: shown(&path),
                code: INVALID,
                longest: LONGEST,
            };
            all.add(&file, &bytes)?;
        }
    }
    Ok(all.finish())
}

/// What was read so far, by what it is told apart by.
#[derive(Default)]
struct Gathered {
    packages: packages::Packages,
    groups: BTreeMap<String, Group>,
    users: BTreeMap<String, User>,
    sources: BTreeMap<Target, Source>,
    files: BTreeMap<Target, HostFile>,
    commands: commands::Named<Command>,
    services: BTreeMap<String, Service>,
    container_commands: commands::Named<ContainerCommand>,
    settings: Vec<Setting>,
    resources: Vec<Resource>,
    passed_over: Vec<PassedOver>,
    needs_root: Option<NeedsRoot>,
}

impl Gathered {
    fn add(&mut self, file: &File, bytes: &[u8]) -> Result<(), Refused> {
        let Some(tree) = file.parse(bytes)? else {
            return Ok(());
        };
        let mut over = Over::default();
        let mut seen: Vec<&str> = Vec::new();
        for (line, key, value) in file.pairs(&tree, "a configuration file")? {
            if !KEYS.contains(&key) {
                over.add(key);
                continue;
            }
            if seen.contains(&key) {
                return Err(file.line(line).refuse(format!("`{key}` is there twice")));
            }
            seen.push(key);
            if !value.is_null() {
                self.key(file, (line, key, value), &mut over)?;
            }
        }
        if !over.0.is_empty() {
            self.passed_over.push(PassedOver {
                file: file.name.clone(),
                keys: over.0,
            });
        }
        Ok(())
    }

    fn key(
        &mut self,
        file: &File,
        (line, key, value): (usize, &str, &Node),
        over: &mut Over,
    ) -> Result<(), Refused> {
        match key {
            "packages" => {
                if packages::read(file, value, &mut self.packages, over)? {
                    self.root(file, line, "`packages`".to_owned());
                }
            }
            "groups" => {
                for group in accounts::groups(file, value)? {
                    self.root(file, line, "`groups`".to_owned());
                    self.groups.insert(group.name.clone(), group);
                }
            }
            "users" => {
                for user in accounts::users(file, value)? {
                    self.root(file, line, "`users`".to_owned());
                    self.users.insert(user.name.clone(), user);
                }
            }
            "sources" => {
                for (line, source) in sources::read(file, value)? {
                    if let Target::Host(_) = source.target {
                        let what =
                            format!("the directory `{}` of `sources`", source.target.shown());
                        self.root(file, line, what);
                    }
                    self.sources.insert(source.target.clone(), source);
                }
            }
            "files" => {
                for (line, one) in files::read(file, value, over)? {
                    if let Target::Host(_) = one.target {
                        let what = format!("the file `{}`", one.target.shown());
                        self.root(file, line, what);
                    }
                    self.files.insert(one.target.clone(), one);
                }
            }
            "commands" => {
                for (place, command) in commands::host_commands(file, value, over)? {
                    self.root(file, line, "`commands`".to_owned());
                    self.commands.insert(place, command)?;
                }
            }
            "services" => {
                for service in services::read(file, value, over)? {
                    self.root(file, line, "`services`".to_owned());
                    self.services.insert(service.name.clone(), service);
                }
            }
            "container_commands" => {
                for (place, command) in commands::container_commands(file, value)? {
                    self.container_commands.insert(place, command)?;
                }
            }
            "option_settings" => self.settings.extend(settings::read(file, value)?),
            _ => self.resources.extend(resources::read(file, value)?),
        }
        Ok(())
    }

    fn root(&mut self, file: &File, line: usize, what: String) {
        self.needs_root.get_or_insert_with(|| NeedsRoot {
            file: file.name.clone(),
            line,
            what,
        });
    }

    fn finish(self) -> Extensions {
        Extensions {
            packages: self.packages.into_values().collect(),
            groups: self.groups.into_values().collect(),
            users: self.users.into_values().collect(),
            sources: self.sources.into_values().collect(),
            files: self.files.into_values().collect(),
            commands: self.commands.finish(),
            services: self.services.into_values().collect(),
            container_commands: self.container_commands.finish(),
            settings: self.settings,
            resources: self.resources,
            passed_over: self.passed_over,
            needs_root: self.needs_root,
        }
    }
}

/// The keys that are read.
const KEYS: [&str; 10] = [
    "packages",
    "groups",
    "users",
    "sources",
    "files",
    "commands",
    "services",
    "container_commands",
    "option_settings",
    "Resources",
];

/// Keys of one file that do nothing here, each once.
#[derive(Default)]
struct Over(Vec<String>);

impl Over {
    fn add(&mut self, key: &str) {
        let key = shown(key);
        if self.0.len() < TOLD && !self.0.contains(&key) {
            self.0.push(key);
        }
    }
}

/// The code of a file that is refused.
const INVALID: &str = "ebextensions-invalid";

fn refused(message: impl Into<String>) -> Refused {
    Refused::new(INVALID, message)
}

/// A name as a message can show it.
fn shown(name: &str) -> String {
    crate::shown(name)
}

#[cfg(test)]
mod tests;
