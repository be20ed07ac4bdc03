//! Keeping a daemon running where no init system does: a parent that starts it again whenever it
//! ends. `beanpole agent --supervise …` is this.
//!
//! The child is started by its path, so that a link that points to another executable by then takes
//! effect. SIGHUP ends the child, to be started afresh; SIGTERM and SIGINT end both. When the
//! executable is gone (an uninstall removed it), the parent ends too.
//!
//! There is one parent at a time: it holds its file of process ids locked. The log that both write
//! is kept small by the parent, since no journal does it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// The pause before a child that ended is started again. systemd units of ours wait as long.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);
/// How often the log's size is looked at.
const LOG_LOOK: Duration = Duration::from_secs(30);
/// A log that has grown to so many bytes becomes `LOG.1`, in the place of the one before.
const LOG_BYTES: u64 = 8 << 20;

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
    let held = hold(&what.pid_file)?;
    let mut log_look = tokio::time::interval(LOG_LOOK);
    // Without its executable there is nothing left to keep running.
    'children: while what.program.exists() {
        match start(what) {
            // Too many processes, no memory: that passes.
            Err(error) => {
                tracing::warn!(program = %what.program.display(), %error, "cannot be started");
            }
            Ok(mut child) => loop {
                tokio::select! {
                    status = child.wait() => {
                        tracing::warn!(program = %what.program.display(), ?status, "ended; starting it again");
                        break;
                    }
                    _ = log_look.tick() => bound_log(io::stderr().as_fd(), LOG_BYTES),
                    _ = hang_up.recv() => {
                        end(&mut child).await;
                        continue 'children;
                    }
                    _ = terminate.recv() => { end(&mut child).await; break 'children }
                    _ = interrupt.recv() => { end(&mut child).await; break 'children }
                }
            },
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = fs::remove_file(&what.pid_file);
    drop(held);
    Ok(())
}

/// Makes this the one parent: its id is in the file, which stays locked for as long as it lives.
fn hold(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("process {} keeps it running already", holder.trim()),
            ));
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Copies a log that has grown to `most` bytes aside and empties it. Whoever has it open goes on
/// writing: it is open for appending. A log that is no file is somebody else's care.
fn bound_log(log: impl AsFd, most: u64) {
    let bounded = || {
        let status = rustix::fs::fstat(&log)?;
        let is_file = rustix::fs::FileType::from_raw_mode(status.st_mode).is_file();
        if !is_file || u64::try_from(status.st_size).unwrap_or(0) < most {
            return Ok(());
        }
        // By its number, the path is the file's own even where it has been renamed.
        let path = fs::read_link(format!("/proc/self/fd/{}", log.as_fd().as_raw_fd()))?;
        let mut older = path.clone().into_os_string();
        older.push(".1");
        fs::copy(&path, older)?;
        rustix::fs::ftruncate(&log, 0)?;
        Ok::<_, io::Error>(())
    };
    if let Err(error) = bounded() {
        tracing::warn!(%error, "the log cannot be kept small");
    }
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

    #[test]
    fn there_is_one_parent_at_a_time() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("run/supervisor.pid");
        let held = hold(&path).expect("the first");
        let error = hold(&path).expect_err("the second");
        let own = std::process::id().to_string();
        assert!(error.to_string().contains(&own), "{error}");
        drop(held);
        hold(&path).expect("the next");
    }

    #[test]
    fn a_log_that_grows_is_put_aside_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("agent.log");
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .expect("open");
        log.write_all(b"short\n").expect("write");
        bound_log(&log, 100);
        assert_eq!(fs::read(&path).expect("read"), b"short\n");
        log.write_all(&[b'x'; 100]).expect("write");
        bound_log(&log, 100);
        log.write_all(b"next\n").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"next\n");
        let older = fs::read(directory.path().join("agent.log.1")).expect("read");
        assert_eq!(older.len(), 106);
    }
}
