//! The three daemons as child processes: started, kept running, stopped in order.
//!
//! Each is in a process group of its own, so that Ctrl-C reaches `up` alone, which then stops them
//! one after the other. Each asks the kernel to be told when `up` is gone (`--die-with`), so that
//! none outlives it. Applications are not children of these: their shims stay.

use super::logfile::LogFile;
use crate::output::errors::Failure;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// First pause before a daemon that ended is started again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before a daemon that ended is started again: requests wait for the load balancer, and one
/// start a second costs little, even for one that will never come up.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A daemon that ran this long was well: its next pause is the first one again.
const WELL: Duration = Duration::from_secs(10);
/// A daemon that gives up by itself so often within [`WELL`] of its start, having never been well,
/// cannot run here at all: a port is taken, a directory is not writable. One that was killed can.
const MOST_FAILED_STARTS: u32 = 3;
/// How long a daemon may take to end after SIGTERM. The proxy lets requests finish meanwhile.
const GRACE: Duration = Duration::from_secs(35);

/// One of the daemons.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// `agent`, `proxy` or `controller`: the command of the same executable.
    pub name: &'static str,
    /// What follows the command.
    pub arguments: Vec<OsString>,
    /// Where its log goes.
    pub log: PathBuf,
    /// Show its log lines here too.
    pub show: bool,
}

/// Why a daemon is not kept running any longer.
#[derive(Debug)]
pub struct GaveUp {
    /// What to tell the user.
    pub failure: Failure,
}

/// Keeps `daemon` running until `stop`, then ends it and returns.
pub async fn keep(
    daemon: Daemon,
    executable: PathBuf,
    stop: CancellationToken,
) -> Result<(), GaveUp> {
    let mut pause = FIRST_PAUSE;
    let mut failed_starts = 0;
    let mut ever_well = false;
    let log = Arc::new(Mutex::new(open_log(&daemon)?));
    loop {
        let started = Instant::now();
        let mut child = start(&daemon, &executable).map_err(|error| GaveUp {
            failure: Failure::caused(
                format!(
                    "The {} cannot be started from {}.",
                    daemon.name,
                    executable.display()
                ),
                &error,
            ),
        })?;
        let reader = child.stderr.take().map(|stderr| {
            let (log, daemon) = (Arc::clone(&log), daemon.clone());
            tokio::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if daemon.show {
                        crate::output::warn(&format!("{:<10} {line}", daemon.name));
                    }
                    log.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .line(&line);
                }
            })
        });
        let status = tokio::select! {
            status = child.wait() => status,
            () = stop.cancelled() => {
                end(&mut child).await;
                return Ok(());
            }
        };
        if let Some(reader) = reader {
            let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
        }
        let gave_up = status.as_ref().is_ok_and(|status| status.code().is_some());
        let how = status.map_or_else(|error| error.to_string(), how);
        if started.elapsed() > WELL {
            ever_well = true;
            pause = FIRST_PAUSE;
        } else if gave_up {
            failed_starts += 1;
        }
        if !ever_well && failed_starts >= MOST_FAILED_STARTS {
            let last = log.lock().unwrap_or_else(PoisonError::into_inner).last();
            return Err(GaveUp {
                failure: cannot_run(&daemon, &how, last),
            });
        }
        let last = log.lock().unwrap_or_else(PoisonError::into_inner).last();
        crate::output::warn(&format!(
            "The {} ended ({how}); starting it again in {} ms.{} Its log: {}",
            daemon.name,
            pause.as_millis(),
            said(&last),
            daemon.log.display()
        ));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn open_log(daemon: &Daemon) -> Result<LogFile, GaveUp> {
    LogFile::open(&daemon.log).map_err(|error| GaveUp {
        failure: Failure::caused(format!("Cannot write {}.", daemon.log.display()), &error),
    })
}

fn cannot_run(daemon: &Daemon, how: &str, last: Vec<String>) -> Failure {
    let mut failure = Failure::new(format!(
        "The {} cannot run here: it ended with {how}.",
        daemon.name
    ));
    // Its own is better than ours.
    let hint = last
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("hint: "));
    let hint = hint.map_or_else(
        || {
            "Its log says why. A taken port: choose others with --api, --http and --https"
                .to_owned()
        },
        str::to_owned,
    );
    if !last.is_empty() {
        failure
            .details
            .push(format!("Last lines of {}:", daemon.log.display()));
        failure
            .details
            .extend(last.into_iter().map(|line| format!("  | {line}")));
    }
    failure.hint(hint)
}

/// Why a daemon ended, where its last lines say so.
fn said(last: &[String]) -> String {
    let why = ["caused by: ", "error: "].iter().find_map(|word| {
        let mut lines = last.iter().rev();
        lines.find_map(|line| line.strip_prefix(word))
    });
    why.map_or_else(String::new, |why| format!(" It said: {why}"))
}

fn start(daemon: &Daemon, executable: &Path) -> std::io::Result<Child> {
    Command::new(executable)
        .arg(daemon.name)
        .args(&daemon.arguments)
        .arg("--die-with")
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

async fn end(child: &mut Child) {
    if let Some(pid) = child
        .id()
        .and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Called by a daemon at its start: have the kernel send SIGTERM when the process `parent` ends.
/// Says whether it still lives.
pub fn die_with(parent: u32) -> bool {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    rustix::process::getppid()
        .is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent)
}
