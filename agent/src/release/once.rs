//! What runs once for each deployment of a release, before any instance of it: the container commands
//! for the leader, then the release command. All of them are one run.
//!
//! They run in the prepared tree, as the application's user and within the limits of a build, with what
//! the application finds in its environment but for `PORT` and the id of an instance. Before the first is
//! started a record says on disk that it was: an agent that finds the record of a run which is not
//! its own knows that nobody can say how that one ended, and starts no other.

use super::build::{self, Codes, Ended, Guarded, HOME, MARK};
use super::{FAILURE_LINES, Fault, Prepared, Workshop, blocking, commands};
use crate::fences::users::User;
use crate::remove;
use crate::shim::build::BuildSpec;
use beanpole_bundle::procfile;
use beanpole_daemon::files;
use beanpole_protocol::agent::{OnceReport, Properties, ReleaseOrder};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const RELEASE: Codes = Codes {
    failed: "release-command-failed",
    out_of_memory: "release-command-out-of-memory",
};
const CONTAINER: Codes = Codes {
    failed: "container-command-failed",
    out_of_memory: "release-command-out-of-memory",
};

/// One run of what runs once.
pub struct Once<'a> {
    /// The release.
    pub order: &'a ReleaseOrder,
    /// What was prepared of it.
    pub prepared: &'a Prepared,
    /// For whom, under root.
    pub user: Option<User>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

/// One command of the run.
struct Start<'a> {
    /// For people.
    shown: &'a str,
    /// The shell's.
    arguments: Vec<String>,
    directory: PathBuf,
    /// Wins over the rest of its environment.
    own: &'a BTreeMap<String, String>,
    /// Whether it runs as root.
    root: bool,
}

/// Where a command finds its home and its temporary files.
struct Place {
    home: PathBuf,
    tmp: PathBuf,
    private_tmp: Option<PathBuf>,
}

impl Workshop {
    /// Runs the commands to their end, within the order's time; gives the last lines that they wrote.
    /// `begin` comes last before the first is started, and keeps it from that by failing.
    pub async fn run_once(
        &self,
        once: &Once<'_>,
        begin: impl FnOnce() -> io::Result<()>,
    ) -> Result<Vec<String>, Fault> {
        let key = &once.order.key;
        let limit = Duration::from_millis(once.order.prepare_timeout_ms);
        let work = self.layout.once_work(key);
        let log = self.layout.once_log(key);
        let _ = fs::remove_file(&log);
        let outcome = tokio::select! {
            outcome = self.run_once_in(&work, &log, once, begin) => outcome,
            () = once.cancel.cancelled() => Err(Fault::new(
                "release-command-ended",
                "It was ended, since its deployment is over. What it had done so far stays.",
            ).with_log(build::last_lines(&log))),
            () = tokio::time::sleep(limit) => Err(Fault::new(
                "release-command-timeout",
                format!(
                    "It took longer than {} s and was ended: what it had done so far stays. The option \
                     `Timeout` gives it more time.",
                    limit.as_secs_f64()
                ),
            )
            .with_log(build::last_lines(&log))),
        };
        let record = self.layout.once_pid(key);
        let cleaned = blocking(move || {
            build::end_build(&record);
            remove::tree(&work).map_err(|error| Fault::io("remove", &work, &error))
        });
        if let Err(fault) = cleaned.await {
            tracing::warn!(%fault, "what a release command left stays");
        }
        outcome
    }

    async fn run_once_in(
        &self,
        work: &Path,
        log: &Path,
        once: &Once<'_>,
        begin: impl FnOnce() -> io::Result<()>,
    ) -> Result<Vec<String>, Fault> {
        let prepared = once.prepared;
        if !prepared.runs_once() {
            return Err(Fault::new(
                RELEASE.failed,
                "The release has no command that runs once any more.",
            ));
        }
        let private = self.fences.private_tmp();
        let place = {
            let (work, user) = (work.to_owned(), once.user.clone());
            blocking(move || make_place(&work, user.as_ref(), private)).await?
        };
        let mut lines: VecDeque<String> = VecDeque::new();
        let limits = build::limits(&once.order.options);
        let key = &once.order.key;
        let tree = self.layout.release(key).join("app");
        begin().map_err(|error| Fault::io("write", &self.layout.once(key), &error))?;
        for command in &prepared.leader_commands {
            let name = &command.name;
            let ended = match commands::directory(&tree, command).await {
                Ok(directory) => {
                    let start = Start {
                        shown: name,
                        arguments: commands::arguments(&command.command),
                        directory,
                        own: &command.env.0,
                        root: build::acts_as_root(once.order),
                    };
                    self.start_once(once, start, &place, log).await?
                }
                Err(error) => Ended::not_started(&error),
            };
            let fault = ended.judge(&CONTAINER, name, &limits);
            let allowed = command.ignore_errors && ended.is_the_commands();
            keep_last(&mut lines, ended.lines);
            if let Some(fault) = fault.filter(|_| !allowed) {
                return Err(fault.with_log(lines.into()));
            }
        }
        if let Some(command) = &prepared.release_command {
            let shown = procfile::shown(command);
            let start = Start {
                shown: &shown,
                arguments: vec!["-c".to_owned(), command.clone()],
                directory: tree,
                own: &BTreeMap::new(),
                root: false,
            };
            let ended = self.start_once(once, start, &place, log).await?;
            let fault = ended.judge(&RELEASE, &shown, &limits);
            keep_last(&mut lines, ended.lines);
            if let Some(fault) = fault {
                return Err(fault.with_log(lines.into()));
            }
        }
        Ok(lines.into())
    }

    async fn start_once(
        &self,
        once: &Once<'_>,
        start: Start<'_>,
        place: &Place,
        log: &Path,
    ) -> Result<Ended, Fault> {
        let key = &once.order.key;
        let record = self.layout.once_pid(key);
        let environment = environment(once, place, &start, &record);
        let spec = BuildSpec {
            program: PathBuf::from(commands::SHELL),
            arguments: start.arguments,
            directory: start.directory,
            environment,
            user: once.user.clone().filter(|_| !start.root),
            cgroup: self.fences.cgroups().map(|trees| trees.once(key)),
            limits: build::limits(&once.order.options),
            private_tmp: place.private_tmp.clone().filter(|_| !start.root),
            whole_root: start.root,
        };
        let guarded = Guarded {
            shown: start.shown,
            spec,
            log,
            record: &record,
        };
        self.follow(guarded).await
    }

    /// Writes down how far the release command of `order` is.
    pub fn remember_once(&self, order: &ReleaseOrder, report: &OnceReport) -> io::Result<()> {
        files::write_json(&self.layout.once(&order.key), report, 0o600)
    }

    /// What was written down of the release command of `order`; none if nothing was.
    pub fn recall_once(
        &self,
        order: &ReleaseOrder,
    ) -> Result<Option<OnceReport>, files::ReadError> {
        files::read_json(&self.layout.once(&order.key))
    }
}

/// Adds to the last lines of a run.
fn keep_last(all: &mut VecDeque<String>, lines: Vec<String>) {
    all.extend(lines);
    all.drain(..all.len().saturating_sub(FAILURE_LINES));
}

fn make_place(work: &Path, user: Option<&User>, private: bool) -> Result<Place, Fault> {
    let failed = |error: io::Error| Fault::io("make", work, &error);
    remove::tree(work).map_err(|error| Fault::io("remove", work, &error))?;
    fs::DirBuilder::new()
        .mode(0o711)
        .create(work)
        .map_err(failed)?;
    let home = work.join(HOME);
    build::make_home(&home, user)?;
    let (tmp, private_tmp) = if private {
        (
            PathBuf::from("/tmp"),
            Some(build::make_tmp(work).map_err(failed)?),
        )
    } else {
        let tmp = work.join("tmp");
        build::make_home(&tmp, user)?;
        (tmp, None)
    };
    Ok(Place {
        home,
        tmp,
        private_tmp,
    })
}

/// As an instance has it: nothing comes from the agent's own.
fn environment(once: &Once<'_>, place: &Place, start: &Start<'_>, record: &Path) -> Properties {
    let mut all: BTreeMap<String, String> = once.prepared.app_environment(once.order);
    all.extend(start.own.clone());
    let mut default = |name: &str, value: String| {
        all.entry(name.to_owned()).or_insert(value);
    };
    default("LANG", "C.UTF-8".to_owned());
    default("SHELL", "/bin/sh".to_owned());
    if start.root {
        default("HOME", build::ROOTS_HOME.to_owned());
    } else {
        default("HOME", place.home.to_string_lossy().into_owned());
        default("TMPDIR", place.tmp.to_string_lossy().into_owned());
    }
    if let Some(user) = once.user.as_ref().filter(|_| !start.root) {
        default("USER", user.name.clone());
        default("LOGNAME", user.name.clone());
    }
    all.insert(MARK.to_owned(), record.display().to_string());
    Properties(all)
}
