//! Keeping a daemon running where no init system does: a parent that starts it again whenever it
//! ends. `beanpole agent --supervise …` is this.
//!
//! The child is started by its path, so that a link that points to another executable by then takes
//! effect. SIGHUP ends the child, to be started afresh; SIGTERM and SIGINT end both. When the
//! executable is gone (an uninstall removed it), the parent ends too.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// The pause before a child that ended is started again. systemd units of ours wait as long.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);

/// What to keep running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supervised {
    /// The executable, best by a path that stays the same over upgrades.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where this process writes its own id.
    pub pid_file: PathBuf,
}

impl Supervised {
    /// This process's own command line without `--supervise`: what `main` calls when it is given
    /// that flag. The executable goes by the name that this process was started by, so that a link
    /// in it is followed anew at each start.
    pub fn from_own_arguments(pid_file: PathBuf) -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let program = match arguments.next().map(PathBuf::from) {
            Some(program) if program.is_absolute() => program,
            _ => std::env::current_exe()?,
        };
        Ok(Self {
            program,
            arguments: arguments.filter(|word| word != "--supervise").collect(),
            pid_file,
        })
    }
}

/// Runs the child again and again until told to stop. Call it inside a runtime; the caller is in a
/// session of its own already (`setsid`).
pub async fn run(what: &Supervised) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    if let Some(directory) = what.pid_file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let own = format!("{}\n", std::process::id());
    crate::files::write_atomically(&what.pid_file, own.as_bytes(), 0o644)?;
    let ended = loop {
        // Without its executable there is nothing left to keep running.
        if !what.program.exists() {
            break Ok(());
        }
        let mut child = match start(what) {
            Ok(child) => child,
            Err(error) => break Err(error),
        };
        tokio::select! {
            status = child.wait() => {
                tracing::warn!(program = %what.program.display(), ?status, "ended; starting it again");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    _ = terminate.recv() => break Ok(()),
                    _ = interrupt.recv() => break Ok(()),
                }
            }
            _ = hang_up.recv() => end(&mut child).await,
            _ = terminate.recv() => { end(&mut child).await; break Ok(()) }
            _ = interrupt.recv() => { end(&mut child).await; break Ok(()) }
        }
    };
    forget(&what.pid_file, &own);
    ended
}

fn start(what: &Supervised) -> io::Result<Child> {
    Command::new(&what.program)
        .args(&what.arguments)
        .stdin(Stdio::null())
        .spawn()
}

/// SIGTERM, then SIGKILL after the grace.
async fn end(child: &mut Child) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn forget(pid_file: &Path, own: &str) {
    if std::fs::read_to_string(pid_file).is_ok_and(|text| text == own) {
        let _ = std::fs::remove_file(pid_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_is_started_again_until_its_executable_is_gone() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let program = directory.path().join("program");
        let count = directory.path().join("count");
        // The second run removes the program.
        let script = format!(
            "#!/bin/sh\necho run >>{count}\n[ $(wc -l <{count}) -lt 2 ] || rm {program}\n",
            count = count.display(),
            program = program.display()
        );
        crate::files::write_atomically(&program, script.as_bytes(), 0o755).expect("write");
        let what = Supervised {
            program,
            arguments: Vec::new(),
            pid_file: directory.path().join("run/supervisor.pid"),
        };
        tokio::time::timeout(Duration::from_secs(20), run(&what))
            .await
            .expect("it ends")
            .expect("it runs");
        let runs = std::fs::read_to_string(&count).expect("count");
        assert_eq!(runs.lines().count(), 2);
        assert!(!what.pid_file.exists());
    }
}
