//! Containers, by the host's Docker Engine.
//!
//! A container of an instance is run by a process of its shim, `beanpole container run`, which makes it, hands on what it
//! says, ends it at SIGTERM and ends as it does. So logs, restarts, readiness, draining and health are those of processes
//! ([decision 110](../../../docs/decisions/0110-containers-run-under-the-shim.md)). Images are made ready by another,
//! `beanpole container prepare`, under the guard of builds.
//!
//! `engine` speaks to the Engine, `prepare` makes images ready, `run` runs a container, `clean` ends and removes what
//! nobody needs.

pub mod clean;
mod context;
pub mod engine;
mod login;
mod output;
pub mod prepare;
pub mod run;

use beanpole_bundle::containers::Containers;
use beanpole_protocol::InstanceId;
use beanpole_protocol::agent::{Limits, ReleaseKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Says whose a container or network is.
pub const INSTANCE: &str = "beanpole.instance";
/// Says whose a volume is.
pub const ENVIRONMENT: &str = "beanpole.environment";
/// The property with logins to registries: what `~/.docker/config.json` holds. Containers do not get it.
pub const LOGINS: &str = "DOCKER_AUTH_CONFIG";

/// What a release runs in containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The containers.
    pub containers: Containers,
    /// The ids of their images, by the containers' names.
    pub images: BTreeMap<String, String>,
}

/// The name of an instance's container.
pub(crate) fn container_name(instance: &str, name: &str) -> String {
    format!("beanpole-{instance}-{name}")
}

/// The name of an instance's network.
pub(crate) fn network_name(instance: &str) -> String {
    format!("beanpole-{instance}")
}

/// The name of an environment's volume.
pub(crate) fn volume_name(environment: &str, name: &str) -> String {
    format!("beanpole-{environment}-{name}")
}

/// The tag of a release's image. `secret` keeps other applications from building on it.
pub(crate) fn tag(secret: &str, key: &ReleaseKey, name: &str) -> String {
    format!(
        "beanpole-{secret}/{}:{}-{}",
        key.environment.as_str().to_ascii_lowercase(),
        key.number.0,
        name
    )
}

/// The command of the process that runs a container, for `/bin/sh`.
pub fn command(
    program: &Path,
    release: &Path,
    key: &ReleaseKey,
    name: &str,
    limits: &Limits,
) -> String {
    let quoted = |path: &Path| crate::release::programs::quoted(&path.to_string_lossy());
    let mut command = format!(
        "exec {} container run {} {name} --environment {}",
        quoted(program),
        quoted(release),
        key.environment
    );
    for (option, value) in [
        ("memory", limits.memory_bytes),
        ("cpu-millis", limits.cpu_millis),
        ("pids", limits.pids),
        ("open-files", limits.open_files),
    ] {
        if let Some(value) = value {
            command.push_str(&format!(" --{option} {value}"));
        }
    }
    command
}

/// Whether containers of that instance are its own.
pub(crate) fn label_of(instance: &InstanceId) -> String {
    format!("{INSTANCE}={instance}")
}
