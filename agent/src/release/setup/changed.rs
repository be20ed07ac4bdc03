//! What the setting up of a host has changed and no service has been restarted for.

use super::Fault;
use beanpole_bundle::ebextensions::{PackageManager, Target};
use beanpole_daemon::files;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

/// It is on disk before the change is made: a service is rather restarted once too often than not at all.
pub(super) struct Changed {
    path: PathBuf,
    what: BTreeSet<String>,
}

impl Changed {
    /// What an attempt that came to no end had changed.
    pub(super) fn load(path: PathBuf) -> Result<Self, Fault> {
        let what = match files::read_json(&path) {
            Ok(what) => what.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "what was changed on this host cannot be read");
                BTreeSet::new()
            }
        };
        Ok(Self { path, what })
    }

    pub(super) fn file(target: &Target) -> String {
        format!("file {}", target.shown())
    }

    pub(super) fn source(target: &Target) -> String {
        format!("source {}", target.shown())
    }

    pub(super) fn package(manager: PackageManager, name: &str) -> String {
        // One package, whichever of the two names its manager has.
        let manager = match manager {
            PackageManager::Apt | PackageManager::Yum => "host",
            other => other.as_str(),
        };
        format!("package {manager} {name}")
    }

    pub(super) fn command(name: &str) -> String {
        format!("command {name}")
    }

    /// Something is about to be changed.
    pub(super) fn add(&mut self, what: String) -> Result<(), Fault> {
        if !self.what.insert(what) {
            return Ok(());
        }
        let failed = |error: io::Error| Fault::io("write", &self.path, &error);
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        files::write_json(&self.path, &self.what, 0o600).map_err(failed)
    }

    pub(super) fn has(&self, what: &str) -> bool {
        self.what.contains(what)
    }

    /// Whether anything was.
    pub(super) fn any(&self) -> bool {
        !self.what.is_empty()
    }

    /// Every service that has to know does.
    pub(super) fn forget(self) -> Result<(), Fault> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Fault::io("remove", &self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_outlives_an_agent_until_services_know() {
        let top = tempfile::tempdir().expect("temporary directory");
        let path = top.path().join("setup/e-1.json");
        let mut changed = Changed::load(path.clone()).expect("nothing yet");
        assert!(!changed.any());
        let git = Changed::package(PackageManager::Yum, "git");
        changed.add(git.clone()).expect("written");
        drop(changed);
        let again = Changed::load(path.clone()).expect("readable");
        assert!(again.any() && again.has(&git));
        assert_eq!(git, Changed::package(PackageManager::Apt, "git"));
        again.forget().expect("removed");
        assert!(!Changed::load(path).expect("gone").any());
    }
}
