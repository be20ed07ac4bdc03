//! Installs what a platform needs on the host, by the package manager that is there, as root and where the host's orders
//! allow it: one at a time, and nothing that is there already.
//!
//! A package manager that was killed in the middle leaves work to the next one; apt is told to finish it first.

use super::build::{Codes, Site, make_home};
use super::root::{Run, has};
use super::{Fault, Workshop};
use beanpole_protocol::agent::Limits;
use std::path::Path;

const CODES: Codes = Codes {
    failed: "install-failed",
    out_of_memory: "install-failed",
};
/// The home directory of what installs, in that of the preparation.
pub(super) const HOME: &str = "home-root";
/// How long apt waits for another apt, in seconds: hosts upgrade themselves at times.
const APT_WAIT: u32 = 300;
/// Lists of packages, without which apt finds none.
const APT_LISTS: &str = "/var/lib/apt/lists";

/// Packages by package manager, each with blanks between; empty where a distribution has none.
pub struct Packages {
    /// For people.
    pub what: &'static str,
    /// Debian, Ubuntu.
    pub apt: &'static str,
    /// Fedora, RHEL, Amazon Linux.
    pub dnf: &'static str,
    /// Alpine.
    pub apk: &'static str,
    /// SUSE.
    pub zypper: &'static str,
    /// Services that distributions start with them, and that nobody asked for.
    pub stop: &'static str,
    /// What else helps, as the end of a sentence.
    pub otherwise: &'static str,
}

/// A package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Apt,
    Dnf,
    Yum,
    Apk,
    Zypper,
}

impl Manager {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Apt, "apt-get"),
        (Self::Dnf, "dnf"),
        (Self::Yum, "yum"),
        (Self::Apk, "apk"),
        (Self::Zypper, "zypper"),
    ];

    /// The one of this host.
    pub(super) fn here() -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, program)| has(program))
            .map(|(manager, _)| manager)
    }

    /// The program.
    pub(super) fn program(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(manager, _)| *manager == self)
            .map_or("", |(_, program)| program)
    }

    /// Whether its packages are files of rpm.
    pub(super) fn is_rpm(self) -> bool {
        matches!(self, Self::Dnf | Self::Yum | Self::Zypper)
    }

    /// A package in a version, as it is asked for.
    pub(super) fn versioned(self, name: &str, version: &str) -> String {
        match self {
            Self::Dnf | Self::Yum => format!("{name}-{version}"),
            _ => format!("{name}={version}"),
        }
    }

    /// Lines for a shell that has apt know what there is.
    pub(super) fn update() -> String {
        format!("apt-get -q -o DPkg::Lock::Timeout={APT_WAIT} update")
    }

    fn packages(self, of: &Packages) -> &'static str {
        match self {
            Self::Apt => of.apt,
            Self::Dnf | Self::Yum => of.dnf,
            Self::Apk => of.apk,
            Self::Zypper => of.zypper,
        }
    }

    /// For people, and to be typed.
    fn shown(self, packages: &str) -> String {
        match self {
            Self::Apt => format!("apt-get install -y {packages}"),
            Self::Dnf => format!("dnf install -y {packages}"),
            Self::Yum => format!("yum install -y {packages}"),
            Self::Apk => format!("apk add {packages}"),
            Self::Zypper => format!("zypper install -y {packages}"),
        }
    }

    /// Lines for a shell that installs packages, which are words of it.
    pub(super) fn script(self, packages: &str) -> String {
        match self {
            Self::Apt => {
                let update = Self::update();
                let install = format!(
                    "apt-get -q -o DPkg::Lock::Timeout={APT_WAIT} install -y --no-install-recommends {packages}"
                );
                // Lists of before may name what is not kept any more.
                format!(
                    "dpkg --configure -a && \
                     {{ ls {APT_LISTS}/*Packages* >/dev/null 2>&1 || {update}; }} && \
                     {{ {install} || {{ {update} && {install}; }}; }}"
                )
            }
            Self::Apk => format!("apk add --no-cache {packages}"),
            Self::Zypper => format!("zypper --non-interactive install {packages}"),
            other => other.shown(packages),
        }
    }

    /// Lines for a shell that installs a package from a file: nobody but who made it vouches for it.
    pub(super) fn script_for_file(self, path: &str) -> String {
        match self {
            Self::Zypper => {
                format!("zypper --non-interactive install --allow-unsigned-rpm {path}")
            }
            other => other.script(path),
        }
    }
}

impl Packages {
    /// What to do where it is missing: a sentence with the command for this host.
    pub fn advice(&self) -> String {
        let command = Manager::here()
            .map(|manager| (manager, manager.packages(self)))
            .filter(|(_, packages)| !packages.is_empty())
            .map(|(manager, packages)| manager.shown(packages));
        let otherwise = if self.otherwise.is_empty() {
            String::new()
        } else {
            format!(", {}", self.otherwise)
        };
        match command {
            Some(command) => format!("Install {} on it (`{command}`){otherwise}.", self.what),
            None => format!("Install {} on it{otherwise}.", self.what),
        }
    }
}

impl Workshop {
    /// Installs `packages` for the program `name`, where the agent may and can; does nothing where not, and what needs
    /// it tells that it is missing.
    pub(super) async fn install_packages(
        &self,
        site: &Site<'_>,
        name: &str,
        packages: &Packages,
    ) -> Result<(), Fault> {
        if !site.order.install || !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let Some(manager) = Manager::here() else {
            return Ok(());
        };
        let list = manager.packages(packages);
        if list.is_empty() {
            return Ok(());
        }
        let _turn = self.installing.lock().await;
        // Another preparation may have installed it meanwhile.
        if super::programs::find(name, site.user.is_some()).is_some() {
            return Ok(());
        }
        tracing::info!(packages = list, "installing what a platform needs");
        let mut script = manager.script(list);
        if !packages.stop.is_empty() {
            let units = super::programs::quoted(packages.stop);
            script = format!(
                "{{ {script}; }} && {{ [ ! -d /run/systemd/system ] || \
                 for unit in $(systemctl list-unit-files --no-legend {units} | cut -d' ' -f1); do \
                 systemctl disable --now --quiet \"$unit\"; done; }}"
            );
        }
        self.install_by(site, &manager.shown(list), script).await
    }

    /// Runs lines for a shell as root, to their end and without anything of the application's in their environment.
    async fn install_by(&self, site: &Site<'_>, shown: &str, script: String) -> Result<(), Fault> {
        // Its own: an application's user may write into that of its build.
        let (home, limits) = (site.work.join(HOME), Limits::default());
        make_home(&home, None)?;
        let run = Run {
            shown,
            arguments: vec!["-c".to_owned(), script],
            directory: Path::new("/"),
            environment: &[("HOME".to_owned(), home.to_string_lossy().into_owned())].into(),
            limits,
        };
        let ended = self.run_as_root(site, run).await?;
        match ended.judge(&CODES, shown, &limits) {
            None => Ok(()),
            Some(fault) => Err(fault.with_log(ended.lines)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_type() {
        let packages = super::super::runtimes::NODE.packages;
        let advice = packages.advice();
        assert!(
            advice.starts_with("Install Node.js with npm on it"),
            "{advice}"
        );
        assert_eq!(Manager::Apk.shown(packages.apk), "apk add nodejs npm");
        assert_eq!(
            Manager::Apt.shown(packages.apt),
            "apt-get install -y nodejs npm"
        );
        assert!(Manager::Apt.script("x").contains("dpkg --configure -a"));
        assert!(!Manager::Zypper.script("x").contains("unsigned"));
        assert!(Manager::Zypper.script_for_file("x").contains("unsigned"));
        assert_eq!(
            Manager::Apt
                .script("x")
                .matches("--no-install-recommends x")
                .count(),
            2
        );
        assert_eq!(Manager::Apk.script("x"), "apk add --no-cache x");
        assert_eq!(Manager::Apt.versioned("a", "1"), "a=1");
        assert_eq!(Manager::Dnf.versioned("a", "1"), "a-1");
    }
}
