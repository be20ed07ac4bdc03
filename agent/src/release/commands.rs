//! Container commands of a bundle (`.ebextensions/*.config`, [`beanpole_bundle::ebextensions`]): those
//! that run on every host are part of preparing a release there, after the build and before the hooks
//! in `predeploy`, and are bound by what binds hooks. Those for the leader run with the release command
//! ([`super::once`]).

use super::build::{Codes, Ended, Site, Step};
use super::node::{hand_over, take_back};
use super::{Fault, Workshop, blocking, build};
use beanpole_bundle::ebextensions::{CommandLine, ContainerCommand};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What runs lines for a shell, and finds a program by its name in `PATH`.
pub(super) const SHELL: &str = "/bin/sh";

const CODES: Codes = Codes {
    failed: "container-command-failed",
    out_of_memory: "build-out-of-memory",
};

/// A shell's arguments that start `line`.
pub(super) fn arguments(line: &CommandLine) -> Vec<String> {
    match line {
        CommandLine::Shell(text) => vec!["-c".to_owned(), text.clone()],
        CommandLine::Program(words) => ["-c", r#"exec "$0" "$@""#]
            .into_iter()
            .map(str::to_owned)
            .chain(words.iter().cloned())
            .collect(),
    }
}

/// Where a command starts: in `tree`, also where a link is on the way.
pub(super) async fn directory(tree: &Path, command: &ContainerCommand) -> io::Result<PathBuf> {
    let (tree, cwd) = (tree.to_owned(), command.cwd.clone());
    let found = tokio::task::spawn_blocking(move || {
        let tree = tree.canonicalize()?;
        let found = tree.join(&cwd).canonicalize();
        Ok::<_, io::Error>(found.ok().filter(|at| at.starts_with(&tree) && at.is_dir()))
    });
    found.await.map_err(io::Error::other)??.ok_or_else(|| {
        io::Error::other(format!(
            "the release has no directory `{}`",
            command.cwd.display()
        ))
    })
}

/// What commands of a preparation have around them.
pub(super) struct Around<'a> {
    pub(super) site: &'a Site<'a>,
    /// `PATH`.
    pub(super) path: &'a str,
    /// What they find in their environment besides what a build does.
    pub(super) extra: &'a BTreeMap<String, String>,
}

impl Workshop {
    /// Runs those of `commands` that are not the leader's, in their order.
    pub(super) async fn run_container_commands(
        &self,
        around: &Around<'_>,
        commands: &[ContainerCommand],
    ) -> Result<(), Fault> {
        let everywhere = || commands.iter().filter(|command| !command.leader_only);
        if everywhere().next().is_none() {
            return Ok(());
        }
        hand_over(around.site).await?;
        let own = Around {
            site: &around.site.of_hooks(),
            ..*around
        };
        for command in everywhere() {
            self.run_container_command(&own, command).await?;
        }
        take_back(around.site).await
    }

    async fn run_container_command(
        &self,
        around: &Around<'_>,
        command: &ContainerCommand,
    ) -> Result<(), Fault> {
        let (site, name) = (around.site, &command.name);
        let limits = build::limits(&site.order.options);
        let ended = match directory(&site.tree, command).await {
            Err(error) => Ended::not_started(&error),
            Ok(at) => {
                if let Some(test) = &command.test {
                    let shown = format!("test of {name}");
                    let tested = self.start(around, command, test, &shown, &at).await?;
                    match tested.judge(&CODES, &shown, &limits) {
                        None => {}
                        Some(_) if tested.is_the_commands() => {
                            note(site, format!("{name} is left out: its test failed")).await;
                            return Ok(());
                        }
                        Some(fault) => return Err(fault.with_log(tested.lines)),
                    }
                }
                self.start(around, command, &command.command, name, &at)
                    .await?
            }
        };
        match ended.judge(&CODES, name, &limits) {
            None => Ok(()),
            Some(_) if command.ignore_errors && ended.is_the_commands() => {
                note(site, format!("{name} failed, which ignoreErrors allows")).await;
                Ok(())
            }
            Some(fault) => Err(fault.with_log(ended.lines)),
        }
    }

    /// Runs `line`, which is of `command` and called `shown`, in the directory `at`.
    async fn start(
        &self,
        around: &Around<'_>,
        command: &ContainerCommand,
        line: &CommandLine,
        shown: &str,
        at: &Path,
    ) -> Result<Ended, Fault> {
        let step = Step {
            program: Path::new(SHELL),
            arguments: &arguments(line),
            directory: at,
            path: around.path,
        };
        let (extra, own) = (around.extra, &command.env.0);
        self.run_to_its_end(around.site, &step, shown, &CODES, extra, own)
            .await
    }
}

/// Tells in the log of a preparation what became of a command.
async fn note(site: &Site<'_>, text: String) {
    let log = site.log.clone();
    let _ = blocking(move || {
        build::note(&log, &text).map_err(|error| Fault::io("write", &log, &error))
    })
    .await;
}
