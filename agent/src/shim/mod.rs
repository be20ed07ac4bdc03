//! `beanpole shim SPEC_FILE`: runs the processes of one instance and outlives the agent.
//!
//! The shim detaches from whoever started it, keeps the processes of its instance running, keeps
//! their logs, reaps everything below it, and ends them together when told to. It has one thread
//! and no runtime, and sleeps in `poll` while nothing happens.
//!
//! When the shim itself is killed, its processes are *not* taken down by the kernel, so that the
//! app goes on serving while nobody is in charge. They cannot be adopted, though: their output has
//! nobody to read it and their exit codes are lost. So the agent, who notices at once, ends what
//! is left and starts the instance anew ([`crate::runtime`]).

pub mod build;
mod child;
mod control;
mod gate;
mod kernel;
mod log;
mod output;
pub(crate) mod proc;
pub mod spec;
mod supervise;
pub mod wire;

pub(crate) use log::is_beginning;

use crate::sys;
use spec::{ShimSpec, VERSION, files};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use supervise::Supervisor;

/// Starts the shim for the spec in `spec_file` and returns once its processes are started; the
/// shim itself goes on in the background. The exit code is 0 when it runs; else the reason is on
/// standard error. Call it first thing in `main`.
///
/// With [`build::BUILD`] in the place of the file it is the guard of one command of a build instead.
pub fn run(spec_file: &Path) -> ExitCode {
    sys::close_inherited();
    if spec_file.as_os_str() == build::BUILD {
        return build::run();
    }
    match detach(spec_file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "beanpole shim: {why}");
            ExitCode::FAILURE
        }
    }
}

/// In the parent: waits until the child supervises, or says why not. In the child: never returns
/// before everything has ended.
fn detach(spec_file: &Path) -> Result<(), String> {
    let spec = read_spec(spec_file)?;
    let directory = spec_file.parent().unwrap_or(Path::new("/"));
    std::env::set_current_dir(directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (ready, report) = pipe.map_err(|error| format!("pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("fork: {error}"))? {
        sys::Side::Parent => {
            drop(report);
            let mut said = String::new();
            let _ = File::from(ready).read_to_string(&mut said);
            match said.as_str() {
                "ready" => Ok(()),
                "" => Err("the shim ended before it was ready".to_owned()),
                why => Err(why.to_owned()),
            }
        }
        sys::Side::Child => {
            drop(ready);
            let mut report = File::from(report);
            match set_up(spec) {
                Ok((supervisor, lock)) => {
                    let _ = report.write_all(b"ready");
                    drop(report);
                    supervisor.run();
                    drop(lock);
                }
                Err(why) => {
                    let _ = report.write_all(why.as_bytes());
                }
            }
            Ok(())
        }
    }
}

fn read_spec(path: &Path) -> Result<ShimSpec, String> {
    let text =
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    // The error must not quote the file: it holds secrets. serde_json names types and places only,
    // save for unexpected strings, so only the place is told.
    let spec: ShimSpec = serde_json::from_slice(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{} is damaged at {line}:{column}", path.display())
    })?;
    if spec.v != VERSION {
        return Err(format!("{} has version {}", path.display(), spec.v));
    }
    Ok(spec)
}

fn signal_group(leader: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(leader) {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

fn told(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// How long the shim before may take to go once it has said that everything has ended: on a busy
/// machine it may not get to run between that word and its end.
const PREDECESSOR_GONE: Duration = Duration::from_secs(10);
/// How often its lock is tried meanwhile.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock of an instance's shim, as soon as the one before lets go of it.
fn take_lock(path: &Path, patience: Duration) -> Result<OwnedFd, String> {
    let name = files::LOCK;
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(told(name))?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock.into()),
            Err(TryLockError::Error(error)) => return Err(told(name)(error)),
            Err(TryLockError::WouldBlock) if begun.elapsed() < patience => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                let waited = patience.as_secs();
                return Err(format!(
                    "another supervisor still ran this instance after {waited} s"
                ));
            }
        }
    }
}

/// Everything between the fork and the first process. The current directory is the instance's.
fn set_up(spec: ShimSpec) -> Result<(Supervisor, OwnedFd), String> {
    let lock = take_lock(Path::new(files::LOCK), PREDECESSOR_GONE)?;
    rustix::process::setsid().map_err(|error| format!("setsid: {error}"))?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|error| format!("subreaper: {error}"))?;
    let _ = rustix::thread::set_name(c"beanpole-shim");
    if let Some(group) = &spec.cgroup {
        group.create(&spec.limits)?;
        group.shelter_shim();
    }
    // Without the shim nobody watches; refused without root, which is no matter.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    if spec.private_tmp {
        let directory = std::env::current_dir().map_err(told("private /tmp"))?;
        mount_private_tmp(&directory.join(files::PRIVATE).join("tmp"))
            .map_err(told("private /tmp"))?;
    }
    let signals = sys::signal_fd(&[
        rustix::process::Signal::CHILD.as_raw(),
        rustix::process::Signal::TERM.as_raw(),
        rustix::process::Signal::INT.as_raw(),
        rustix::process::Signal::HUP.as_raw(),
    ])
    .map_err(told("signals"))?;
    let listener = control::listen(files::SOCKET).map_err(told(files::SOCKET))?;
    let mut supervisor = Supervisor::new(spec, signals, listener)?;
    quiet().map_err(told("standard streams"))?;
    supervisor.start_all();
    Ok((supervisor, lock))
}

/// Lets go of the starter's terminal and pipes.
fn quiet() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let trouble = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(files::TROUBLE)
        .unwrap_or(null);
    rustix::stdio::dup2_stderr(&trouble)?;
    Ok(())
}

/// `/tmp` and `/var/tmp` become this directory, for this process and everything below it.
fn mount_private_tmp(directory: &Path) -> io::Result<()> {
    sys::unshare_mounts()?;
    crate::fences::hide_mounts()?;
    for point in ["/tmp", "/var/tmp"] {
        if Path::new(point).is_dir() {
            rustix::mount::mount_bind(directory, point)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_waits_for_the_one_before_to_go_and_no_longer_than_that() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(files::LOCK);
        let first = take_lock(&path, Duration::ZERO).expect("nobody has it");
        let refused = take_lock(&path, Duration::from_millis(20)).expect_err("it is held");
        assert!(refused.contains("another supervisor"), "{refused}");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take_lock(&path, Duration::from_secs(30)));
            drop(first);
            second.join().expect("no panic").expect("it gets it");
        });
    }
}
