//! Containers that a bundle brings along: a `Dockerfile`, `Dockerrun.aws.json` of versions 1, 2 and 3, or a
//! `docker-compose.yml`, all read into one model: the containers of an instance, which live and die together.
//!
//! The formats are those of EB's developer guide ("single-container-docker-configuration",
//! "create_deploy_docker_v2config", "docker-multicontainer-migration") and of Compose's specification. What cannot be had
//! here is named with file and line ([`Containers::passed_over`]); what could break out of a container asks for what only
//! root may do ([`Containers::needs_root`]). Values of variables are in no message.
//!
//! `preconfigured` adds a language's application to an image that has the language; `dockerfile`, `single` (version 1), `task` (version 2) and `compose` read a format each; `variables` fills in what
//! Compose replaces.

mod compose;
mod dockerfile;
mod keys;
mod preconfigured;
mod single;
mod task;
mod variables;

use crate::Refused;
use crate::config::File;
use crate::ebextensions::NeedsRoot;
use crate::platform::{Top, WEB};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub use preconfigured::BASE_IMAGE;
pub(crate) use preconfigured::made;

/// Builds an image.
pub const DOCKERFILE: &str = "Dockerfile";
/// Says how images run, in three versions.
pub const DOCKERRUN: &str = "Dockerrun.aws.json";
/// Several containers: the names that Compose looks for, in its order.
pub const COMPOSE: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
/// Where EB has the application: mounts from there are of the bundle.
const TREES: [&str; 2] = ["/var/app/current", "/var/app/staging"];
/// Longest file in bytes: nobody writes more by hand.
const LONGEST: u64 = 256 * 1024;
/// Most containers of an instance: each is supervised for itself.
const MOST: usize = 20;
/// What a file that cannot be is called.
pub(crate) const INVALID: &str = "containers-invalid";

/// What runs in an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containers {
    /// The containers; the one that takes the requests is called [`WEB`].
    pub containers: Vec<Container>,
    /// What is asked for and not had here, each with its place.
    #[serde(default)]
    pub passed_over: Vec<String>,
    /// The first thing that could break out of a container.
    #[serde(skip)]
    pub needs_root: Option<NeedsRoot>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// What its process and its log are called.
    pub name: String,
    /// Its name in the file, by which others reach it.
    pub host_names: Vec<String>,
    /// Where its image comes from.
    pub image: Image,
    /// In place of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// In place of the image's command.
    pub command: Option<Vec<String>>,
    /// Variables of its own; those of the instance count before them.
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: Option<String>,
    /// As whom inside.
    pub user: Option<String>,
    /// The TCP port on which it takes the requests; none if it takes none.
    pub port: Option<u16>,
    /// What is mounted in it.
    pub mounts: Vec<Mount>,
    /// Directories of its own in memory.
    #[serde(default)]
    pub tmpfs: Vec<String>,
    /// Whether its end is the end of all.
    pub essential: bool,
    /// Containers that start before it, by their process names.
    #[serde(default)]
    pub after: Vec<String>,
    /// The most memory that it may use, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// CPU in thousandths of a core.
    #[serde(default)]
    pub cpu_millis: Option<u64>,
    /// Whether its root file system cannot be written to.
    #[serde(default)]
    pub read_only: bool,
    /// Whether a small init reaps its processes.
    #[serde(default)]
    pub init: bool,
    /// More names with their addresses: `name:address`.
    #[serde(default)]
    pub extra_hosts: Vec<String>,
    /// What stops it, in place of SIGTERM.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Rights beyond a container's, for applications that may act as root.
    #[serde(default)]
    pub rights: Rights,
}

/// What lets a container out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// All of them.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities: `NET_ADMIN`.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// It is built on the host.
    Build {
        /// A directory of the bundle; empty for all of it.
        context: String,
        /// The Dockerfile, below the context.
        file: String,
        /// Its `ARG`s.
        arguments: BTreeMap<String, String>,
        /// The stage that is wanted; none for the last.
        target: Option<String>,
    },
    /// The bundle is added to a base image, and built there.
    Made {
        /// The image to begin with.
        base: String,
        /// What installs and builds it, a line for a shell each.
        steps: Vec<String>,
    },
    /// It is pulled.
    Pull {
        /// `nginx:1.25`, `registry.example.org/shop@sha256:…`.
        name: String,
        /// Whether a registry is asked although the host has one of that name.
        update: bool,
    },
}

impl Image {
    /// As people know it.
    pub fn shown(&self) -> String {
        match self {
            Self::Build { context, file, .. } if context.is_empty() => file.clone(),
            Self::Build { context, file, .. } => format!("{context}/{file}"),
            Self::Made { base, .. } => crate::shown(base),
            Self::Pull { name, .. } => crate::shown(name),
        }
    }
}

/// Something that is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What it is.
    pub from: From,
    /// Where, an absolute path.
    pub to: String,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// A named volume of the environment on its host, which outlives releases.
    Volume(String),
    /// A path of the bundle, without `..`; it cannot be written to.
    Bundle(String),
    /// A path of the host, for applications that may act as root.
    Host(String),
    /// A volume of this container alone, which goes with it.
    Own,
}

impl Containers {
    /// What each process starts, for people.
    pub fn shown(&self) -> Vec<(String, String)> {
        let line = |one: &Container| match &one.image {
            Image::Build { .. } => format!("docker run, built by {}", one.image.shown()),
            Image::Made { .. } => format!("docker run, made of {}", one.image.shown()),
            Image::Pull { .. } => format!("docker run {}", one.image.shown()),
        };
        self.containers
            .iter()
            .map(|one| (one.name.clone(), line(one)))
            .collect()
    }

    /// The names of the volumes that outlive releases.
    pub fn volumes(&self) -> BTreeSet<&str> {
        let mounts = self.containers.iter().flat_map(|one| &one.mounts);
        mounts
            .filter_map(|mount| match &mount.from {
                From::Volume(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// Whether a bundle's files speak of containers beyond doubt. A Dockerfile beside a Procfile is for somewhere else.
pub fn is_sure<T: Top>(top: &T) -> bool {
    top.has_file(DOCKERRUN) || top.has_file(DOCKERFILE) && !top.has_file("Procfile")
}

/// Whether a bundle has a file of Compose: many have one for a developer's databases alone.
pub fn is_compose<T: Top>(top: &T) -> bool {
    COMPOSE.iter().any(|name| top.has_file(name))
}

/// Reads what a bundle runs in containers; `variables` are the environment's properties, with which Compose fills in, none
/// where nobody knows them yet.
///
/// # Errors
/// A file cannot be read as what it is, or nothing in the bundle says what to run.
pub fn read<T: Top>(
    top: &mut T,
    variables: Option<&BTreeMap<String, String>>,
) -> Result<Containers, T::Error> {
    let compose = COMPOSE.into_iter().find(|name| top.has_file(name));
    let dockerrun = match top.head(DOCKERRUN, LONGEST + 1)? {
        Some(bytes) => Some(Dockerrun::parse(&bytes)?),
        None => None,
    };
    let has_dockerfile = top.has_file(DOCKERFILE);
    let mut found = match (compose, &dockerrun) {
        // The guide has Compose's file win, and version 3 only stands beside it.
        (Some(name), None | Some(Dockerrun { version: 1 | 3, .. })) => {
            compose::read(top, name, variables)?
        }
        (_, Some(run)) if run.version == 2 => task::read(run)?,
        (_, Some(run)) if run.version == 1 => {
            let exposed = if has_dockerfile {
                Some(dockerfile::read(top, DOCKERFILE)?)
            } else {
                None
            };
            single::read(run, exposed)?
        }
        (None, Some(run)) => {
            return Err(run
                .file
                .line(run.line)
                .refuse("version 3 stands beside a docker-compose.yml, and the bundle has none")
                .into());
        }
        (None, None) if has_dockerfile => {
            single::of_dockerfile(dockerfile::read(top, DOCKERFILE)?)?
        }
        _ => {
            return Err(Refused::new(
                "no-platform",
                format!(
                    "The bundle has no {DOCKERFILE}, no {DOCKERRUN} and no docker-compose.yml at its top, so nothing \
                     says which containers to run."
                ),
            )
            .into());
        }
    };
    if let Some(Dockerrun {
        version: 3,
        authentication: true,
        file,
        line,
        ..
    }) = &dockerrun
    {
        found.passed_over.push(no_login(&file.name, *line));
    }
    for container in &found.containers {
        if let Image::Build { context, file, .. } = &container.image {
            let path = match context.as_str() {
                "" => file.clone(),
                context => format!("{context}/{file}"),
            };
            if !top.has_file(&path) {
                return Err(Refused::new(
                    INVALID,
                    format!(
                        "`{}` is to be built by {path}, which the bundle does not have.",
                        container.name
                    ),
                )
                .into());
            }
        }
    }
    Ok(found)
}

/// A Dockerrun.aws.json.
struct Dockerrun {
    file: File,
    node: crate::yaml::Node,
    version: u32,
    line: usize,
    authentication: bool,
}

impl Dockerrun {
    fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        let file = File {
            name: DOCKERRUN.to_owned(),
            code: INVALID,
            longest: LONGEST,
        };
        // EB's own words, which clients look for.
        let missing = "AWSEBDockerrunVersion is missing";
        let Some(node) = file.parse(bytes)? else {
            return Err(file.line(1).refuse(missing));
        };
        let mut version = None;
        let mut authentication = false;
        for (line, key, value) in file.pairs(&node, "Dockerrun.aws.json")? {
            match key {
                "AWSEBDockerrunVersion" => {
                    let number = match value.text() {
                        Some("1") => 1,
                        Some("2") => 2,
                        Some("3") => 3,
                        _ => {
                            return Err(file.wrong(value, "`AWSEBDockerrunVersion`", "1, 2 or 3"));
                        }
                    };
                    version = Some((number, line));
                }
                "Authentication" | "authentication" => authentication = !value.is_null(),
                _ => {}
            }
        }
        let Some((version, line)) = version else {
            return Err(file.line(node.line).refuse(missing));
        };
        Ok(Self {
            file,
            node,
            version,
            line,
            authentication,
        })
    }
}

/// That a login in a bucket is not had.
fn no_login(file: &str, line: usize) -> String {
    format!(
        "the login to a registry in {file}, line {line}: there is no bucket. Set the property DOCKER_AUTH_CONFIG to what \
         ~/.docker/config.json holds"
    )
}

/// A TCP port that is to be reached from outside.
struct Published {
    /// Whose.
    index: usize,
    container: u16,
    /// The host's; none where any will do.
    host: Option<u16>,
    line: usize,
}

/// Has one container take the requests: the one behind the host's port 80, else the first that is to be reached (EB guide:
/// "one of the containers has to be bound to port 80"). Other ports are told: two instances on a host cannot both have them.
fn take_requests(found: &mut Containers, file: &File, ports: &[Published]) {
    let published = || ports.iter().filter(|port| port.host.is_some());
    let web = published()
        .find(|port| port.host == Some(80))
        .or_else(|| published().next())
        .or_else(|| ports.first());
    for other in ports {
        let is_web =
            web.is_some_and(|web| (web.index, web.container) == (other.index, other.container));
        if !is_web && other.host.is_some() {
            found.passed_over.push(format!(
                "port {} in {}, line {}: one alone takes requests, the host's 80 or the first",
                other.container, file.name, other.line
            ));
        }
    }
    if let Some(web) = web {
        found.containers[web.index].port = Some(web.container);
    }
    name_web(&mut found.containers);
}

/// Gives the container that takes the requests the name by which it gets them.
fn name_web(containers: &mut [Container]) {
    if !containers.iter().any(|one| one.port.is_some()) {
        // Nobody takes them.
        for one in containers.iter_mut().filter(|one| one.name == WEB) {
            one.name = format!("{WEB}-container");
        }
        return;
    }
    let mut renamed = Vec::new();
    for one in containers.iter_mut() {
        let name = match (one.port, one.name.as_str()) {
            (Some(_), _) => WEB.to_owned(),
            (None, WEB) => format!("{WEB}-container"),
            _ => continue,
        };
        renamed.push((std::mem::replace(&mut one.name, name.clone()), name));
    }
    for one in containers.iter_mut() {
        for after in &mut one.after {
            if let Some((_, name)) = renamed.iter().find(|(old, _)| old == after) {
                after.clone_from(name);
            }
        }
    }
}

/// Whether `name` can be that of a container, and with it of a process and a host.
fn is_name(name: &str) -> bool {
    (1..=48).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Whether `name` can be that of an image: no more than keeps a request to the Engine what it is.
fn is_image(name: &str) -> bool {
    (1..=512).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte))
}

/// The path in the bundle that `text` means, which is relative or below EB's directory of the application; none if it leads
/// elsewhere.
fn in_bundle(text: &str) -> Option<String> {
    let below = TREES
        .iter()
        .find_map(|tree| text.strip_prefix(tree))
        .map(|rest| rest.trim_start_matches('/'));
    let path = match below {
        Some(below) => below,
        None if text.starts_with('/') || text.starts_with('~') => return None,
        None => text,
    };
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part if part.chars().any(char::is_control) => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// A container as the formats begin one.
fn container(name: &str, image: Image) -> Container {
    Container {
        name: name.to_owned(),
        host_names: vec![name.to_owned()],
        image,
        entrypoint: None,
        command: None,
        environment: BTreeMap::new(),
        directory: None,
        user: None,
        port: None,
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        essential: true,
        after: Vec::new(),
        memory_bytes: None,
        cpu_millis: None,
        read_only: false,
        init: false,
        extra_hosts: Vec::new(),
        stop_signal: None,
        rights: Rights::default(),
    }
}

#[cfg(test)]
mod tests;
