//! Commands that run as root, with all that root may do: for a host and not for the application. They know nothing of
//! its properties, and are ended with the preparation like every other.

use super::build::{Ended, Guarded, INHERITED, MARK, ROOTS_HOME, Site};
use super::{Fault, Workshop, commands};
use crate::shim::build::BuildSpec;
use beanpole_protocol::agent::{Limits, Properties, ReleasePhase};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Where a host's programs are.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a program may take that only tells something.
const ASK: Duration = Duration::from_mins(1);

/// What root is to run.
pub(super) struct Run<'r> {
    /// For people.
    pub(super) shown: &'r str,
    /// The shell's.
    pub(super) arguments: Vec<String>,
    /// Where.
    pub(super) directory: &'r Path,
    /// Its environment, besides what every command needs.
    pub(super) environment: &'r BTreeMap<String, String>,
    /// What it may use.
    pub(super) limits: Limits,
}

impl Workshop {
    /// Runs a command to its end.
    pub(super) async fn run_as_root(&self, site: &Site<'_>, run: Run<'_>) -> Result<Ended, Fault> {
        (site.progress)(ReleasePhase::Building {
            command: run.shown.to_owned(),
        });
        let inherited = INHERITED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let mut environment: BTreeMap<String, String> = inherited.collect();
        for (name, value) in [
            ("PATH", PATH),
            ("LANG", "C.UTF-8"),
            ("HOME", ROOTS_HOME),
            ("USER", "root"),
            ("LOGNAME", "root"),
            // Nobody is there to answer.
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("NEEDRESTART_MODE", "l"),
            // Packages of pip are asked for on the system itself.
            ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
            ("PIP_ROOT_USER_ACTION", "ignore"),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        environment.extend(run.environment.clone());
        environment.insert(MARK.to_owned(), site.pid_file.display().to_string());
        let spec = BuildSpec {
            program: PathBuf::from(commands::SHELL),
            arguments: run.arguments,
            directory: run.directory.to_owned(),
            environment: Properties(environment),
            user: None,
            cgroup: self
                .fences
                .cgroups()
                .map(|trees| trees.build(&site.order.key)),
            limits: run.limits,
            // What it leaves in `/tmp` belongs to the host.
            private_tmp: None,
            whole_root: true,
        };
        let guarded = Guarded {
            shown: run.shown,
            spec,
            log: &site.log,
            record: &site.pid_file,
        };
        self.follow(guarded).await
    }
}

/// What a program of the host's says; none where it fails, or there is none.
pub(super) async fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C")
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(ASK, command.output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}

/// Whether a program is where a host's are.
pub(super) fn has(program: &str) -> bool {
    PATH.split(':')
        .any(|directory| Path::new(directory).join(program).is_file())
}
