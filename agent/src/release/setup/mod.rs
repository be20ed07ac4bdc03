//! Sets a host up as the configuration files of a bundle tell ([`beanpole_bundle::ebextensions`]): packages, groups,
//! users, sources, files, commands, services, in this order, as Elastic Beanstalk does. It comes after the bundle is
//! unpacked and before anything of it runs, and is part of the preparation: within its time, with its output in its log.
//!
//! Almost all of it is root's, so that the order has to allow it. What lies in the release's own tree is not.
//!
//! A host is shared by environments, and its package managers, accounts and services are there once: one preparation
//! at a time sets it up. Each step looks first whether there is anything to do, so that another release, and
//! another attempt after a crash, does nothing twice; what changed is written down before it is changed, since
//! services are restarted for it in the end.

mod accounts;
mod changed;
mod commands;
mod fetch;
mod files;
mod packages;
mod services;
mod sources;

use super::build::{self, Codes, Ended, Site};
use super::root::Run;
use super::{Fault, Workshop};
use beanpole_bundle::ebextensions::{Extensions, NeedsRoot};
use changed::Changed;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What failures of it are called.
const CODES: Codes = Codes {
    failed: "setup-failed",
    out_of_memory: "build-out-of-memory",
};
/// Holds what is fetched, in the directory of a preparation.
pub(super) const FETCHED: &str = "fetched";

/// One host being set up.
struct Host<'a> {
    workshop: &'a Workshop,
    site: &'a Site<'a>,
    /// Ends what a thread does for it.
    cancelled: &'a Arc<AtomicBool>,
}

impl Workshop {
    /// Does what `extensions` tell this host.
    pub(super) async fn set_up(
        &self,
        site: &Site<'_>,
        extensions: &Extensions,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(), Fault> {
        if !extensions.sets_up() {
            return Ok(());
        }
        if let Some(needs) = &extensions.needs_root {
            may(site, needs)?;
        }
        let _turn = self.installing.lock().await;
        let host = Host {
            workshop: self,
            site,
            cancelled,
        };
        let mut changed = Changed::load(self.layout.setup(&site.order.key.environment))?;
        host.packages(&extensions.packages, &mut changed).await?;
        host.groups(&extensions.groups).await?;
        host.users(&extensions.users).await?;
        host.sources(&extensions.sources, &mut changed).await?;
        host.files(&extensions.files, &mut changed).await?;
        host.commands(&extensions.commands, &mut changed).await?;
        host.services(&extensions.services, &changed).await?;
        changed.forget()
    }
}

/// Whether what only root can do may be done.
fn may(site: &Site<'_>, needs: &NeedsRoot) -> Result<(), Fault> {
    let application = &site.order.application;
    if !site.order.root {
        return Err(Fault::new(
            NeedsRoot::NOT_ALLOWED,
            format!(
                "{} {}",
                needs.refusal(application),
                NeedsRoot::hint(application)
            ),
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Fault::new(
            "agent-not-root",
            format!(
                "The bundle asks for what only root may do on a host: {needs}. The agent on this host does not run \
                 as root; add the host with a user who may use sudo."
            ),
        ));
    }
    Ok(())
}

impl Host<'_> {
    /// Runs lines for a shell as root; a failure is the host's.
    async fn script(&self, shown: &str, script: String) -> Result<(), Fault> {
        let limits = build::limits(&self.site.order.options);
        let run = Run {
            shown,
            arguments: vec!["-c".to_owned(), script],
            directory: Path::new("/"),
            environment: &BTreeMap::new(),
            limits,
        };
        let ended = self.run(run).await?;
        match ended.judge(&CODES, shown, &limits) {
            None => Ok(()),
            Some(fault) => Err(fault.with_log(ended.lines)),
        }
    }

    /// Runs a command as root.
    async fn run(&self, run: Run<'_>) -> Result<Ended, Fault> {
        self.workshop.run_as_root(self.site, run).await
    }

    /// Tells in the preparation's log what is done.
    async fn note(&self, text: String) {
        let log = self.site.log.clone();
        let _ = super::blocking(move || {
            super::build::note(&log, &text).map_err(|error| Fault::io("write", &log, &error))
        })
        .await;
    }

    /// A directory for what is fetched, gone with the preparation.
    async fn fetched(&self) -> Result<PathBuf, Fault> {
        let directory = self.site.work.join(FETCHED);
        super::blocking(move || {
            std::fs::create_dir_all(&directory)
                .map_err(|error| Fault::io("make", &directory, &error))?;
            Ok(directory)
        })
        .await
    }
}
