//! Everything that can be told of a bundle without a host: how it runs, what runs on the way, and what is passed over.

use crate::ebextensions::{self, ContainerCommand, NeedsRoot, PassedOver, Resource};
use crate::hooks::{self, Kind, When};
use crate::platform::{self, Options, Plan, Top};
use crate::{Brought, Refused, cron, env_yaml, packed};
use beanpole_protocol::agent::Platform;
use beanpole_protocol::api::Tier;
use std::fs::File;

/// What was found in a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// How it runs.
    pub plan: Plan,
    /// The file by which its platform was found; none where it was chosen.
    pub sign: Option<String>,
    /// Hooks, in their order.
    pub hooks: Vec<String>,
    /// Container commands, in their order.
    pub commands: Vec<ContainerCommand>,
    /// The first thing that only root may do on a host.
    pub needs_root: Option<NeedsRoot>,
    /// Keys of configuration files that do nothing.
    pub passed_over: Vec<PassedOver>,
    /// What its configuration files want beside the environment.
    pub resources: Vec<Resource>,
    /// The options that it brings along.
    pub brought: Brought,
}

/// Looks into a bundle that is to run on `platform`.
pub fn look<T: Top>(
    top: &mut T,
    platform: Platform,
    options: &Options,
    tier: Tier,
) -> Result<Look, T::Error> {
    let plan = platform::find(top, platform, options)?;
    plan.suits(tier)?;
    cron::read(top)?;
    let manifest = env_yaml::read(top)?;
    let extensions = ebextensions::read(top)?;
    let brought = Brought::beside(top, &extensions, manifest.as_ref())?;
    let mut found = Vec::new();
    let directories = Kind::ALL
        .into_iter()
        .flat_map(|kind| When::ALL.map(|when| when.directory(kind)));
    for directory in directories {
        let Some(directory) = directory.to_str() else {
            continue;
        };
        let mut names = top.files_in(directory);
        names.retain(|name| hooks::counts(name));
        names.sort();
        for name in names {
            let path = format!("{directory}/{name}");
            let head = top.head(&path, hooks::HEAD)?.unwrap_or_default();
            hooks::check(path.as_ref(), &head)?;
            found.push(path);
        }
    }
    Ok(Look {
        sign: platform::sign(top, plan.platform),
        hooks: found,
        commands: extensions.container_commands,
        needs_root: extensions
            .needs_root
            .or_else(|| plan.containers.as_ref()?.needs_root.clone()),
        resources: extensions.resources,
        passed_over: extensions.passed_over,
        brought,
        plan,
    })
}

/// [`look`] into a ZIP.
pub fn look_into_zip(
    file: File,
    platform: Platform,
    options: &Options,
    tier: Tier,
) -> Result<Look, Refused> {
    packed::look_into(file, |packed| look(packed, platform, options, tier))
}
