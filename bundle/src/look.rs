//! Everything that can be told of a bundle without a host: how it runs, what runs on the way, and what is passed over.

use crate::ebextensions::{self, ContainerCommand, PassedOver};
use crate::hooks::{self, When};
use crate::platform::{self, Options, Plan, Top};
use crate::{Refused, packed};
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
    /// Hooks that are not run.
    pub hooks_not_run: Vec<&'static str>,
    /// Keys of configuration files that do nothing.
    pub passed_over: Vec<PassedOver>,
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
    let extensions = ebextensions::read(top)?;
    let mut found = Vec::new();
    for directory in When::ALL.map(When::directory) {
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
    let not_run = hooks::NOT_RUN.into_iter().filter(|directory| {
        ["prebuild", "predeploy", "postdeploy"]
            .iter()
            .any(|when| !top.files_in(&format!("{directory}/{when}")).is_empty())
    });
    Ok(Look {
        sign: platform::sign(top, plan.platform),
        hooks: found,
        commands: extensions.commands,
        hooks_not_run: not_run.collect(),
        passed_over: extensions.passed_over,
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
