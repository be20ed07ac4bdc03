//! Services of a host, as systemd has them.

use super::super::programs::quoted;
use super::changed::Changed;
use super::{Fault, Host};
use beanpole_bundle::ebextensions::Service;
use std::path::Path;

/// There where systemd runs the machine (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

impl Host<'_> {
    /// Brings services into the states that are wanted, and restarts those that a change is of.
    pub(super) async fn services(
        &self,
        services: &[Service],
        changed: &Changed,
    ) -> Result<(), Fault> {
        if services.is_empty() {
            return Ok(());
        }
        if !Path::new(BOOTED).is_dir() {
            return Err(Fault::new(
                "setup-failed",
                "The bundle has `services`, and this host is not run by systemd: take them out of \
                 .ebextensions, or deploy to hosts that are.",
            ));
        }
        if changed.any() {
            // Units may have come with what was changed.
            self.script(
                "systemctl daemon-reload",
                "systemctl daemon-reload".to_owned(),
            )
            .await?;
        }
        for service in services {
            for verb in verbs(service, affected(service, changed)) {
                let shown = format!("systemctl {verb} {}", service.name);
                let script = format!("systemctl {verb} {}", quoted(&service.name));
                self.script(&shown, script).await?;
            }
        }
        Ok(())
    }
}

/// Whether something was changed that the service is to be restarted for.
fn affected(service: &Service, changed: &Changed) -> bool {
    let files = service.files.iter().map(Changed::file);
    let sources = service.sources.iter().map(Changed::source);
    let packages = service
        .packages
        .iter()
        .map(|(manager, name)| Changed::package(*manager, name));
    let commands = service.commands.iter().map(|name| Changed::command(name));
    files
        .chain(sources)
        .chain(packages)
        .chain(commands)
        .any(|what| changed.has(&what))
}

/// What systemctl is told of a service.
fn verbs(service: &Service, affected: bool) -> Vec<&'static str> {
    let enabled = service
        .enabled
        .map(|enabled| if enabled { "enable" } else { "disable" });
    let running = match (service.ensure_running, affected) {
        (Some(true), true) => Some("restart"),
        (Some(true), false) => Some("start"),
        (Some(false), _) => Some("stop"),
        (None, true) => Some("try-restart"),
        (None, false) => None,
    };
    enabled.into_iter().chain(running).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_bundle::ebextensions::{PackageManager, Target};

    #[test]
    fn what_is_not_said_is_left_alone_and_changes_restart() {
        let top = tempfile::tempdir().expect("temporary directory");
        let mut changed = Changed::load(top.path().join("e.json")).expect("nothing yet");
        let motd = Target::Host("/etc/motd".into());
        let service = Service {
            name: "x".to_owned(),
            files: vec![motd.clone()],
            packages: vec![(PackageManager::Yum, "git".to_owned())],
            ..Service::default()
        };
        assert!(!affected(&service, &changed));
        assert!(verbs(&service, false).is_empty());
        changed
            .add(Changed::package(PackageManager::Apt, "jq"))
            .expect("written");
        assert!(!affected(&service, &changed));
        changed.add(Changed::file(&motd)).expect("written");
        assert!(affected(&service, &changed));
        assert_eq!(verbs(&service, true), ["try-restart"]);
        let runs = Service {
            enabled: Some(true),
            ensure_running: Some(true),
            ..service
        };
        assert_eq!(verbs(&runs, true), ["enable", "restart"]);
        assert_eq!(verbs(&runs, false), ["enable", "start"]);
        let stays_off = Service {
            enabled: Some(false),
            ensure_running: Some(false),
            ..runs
        };
        assert_eq!(verbs(&stays_off, true), ["disable", "stop"]);
    }
}
