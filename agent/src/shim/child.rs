//! Starting a process inside its fences, with its output in pipes.

use super::spec::{Program, ShimSpec};
use crate::sys::{self, ChildFence};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A process that was just started: the leader of a process group of its own.
pub(super) struct Started {
    pub pid: i32,
    pub out: OwnedFd,
    pub err: OwnedFd,
}

/// What to start.
#[derive(Clone, Copy)]
pub(super) enum Run<'r> {
    /// A process of the instance.
    Process(&'r Program),
    /// A line for `/bin/sh`.
    Line(&'r str),
    /// A script or program.
    File(&'r Path),
}

pub(super) fn start(spec: &ShimSpec, run: Run<'_>, doors: &[Arc<OwnedFd>]) -> io::Result<Started> {
    let (out, out_writer) = pipe()?;
    let (err, err_writer) = pipe()?;
    let shell = |line: &str| {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(for_shell(line));
        shell
    };
    let (mut command, port) = match run {
        Run::Process(program) => (shell(&program.command), program.port),
        Run::Line(line) => (shell(line), None),
        Run::File(path) => (Command::new(path), None),
    };
    command
        .current_dir(&spec.directory)
        .env_clear()
        .envs(&spec.environment.0)
        .envs(port.map(|port| ("PORT", port.to_string())))
        .stdin(Stdio::from(File::open("/dev/null")?))
        .stdout(Stdio::from(out_writer))
        .stderr(Stdio::from(err_writer));
    // Only hooks are files.
    let unfenced = spec.gate.hooks_as_root && matches!(run, Run::File(_));
    let runs_container = matches!(run, Run::Process(program) if program.runs_container);
    let user = spec.user.as_ref().filter(|_| !unfenced && !runs_container);
    let fence = ChildFence {
        cgroups: doors.to_vec(),
        user: user.map(|user| (user.uid, user.gid)),
        root: rustix::process::geteuid().is_root(),
        open_files: spec.limits.open_files,
        first_to_go: false,
        low_ports: spec.low_ports,
        whole_root: unfenced,
    };
    sys::fence(&mut command, fence);
    let child = command.spawn()?;
    for fd in [&out, &err] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    Ok(Started {
        pid: child.id() as i32,
        out,
        err,
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Replaces the shell by the program where that is safe, so that the process id is the program's
/// own. With operators, assignments or built-ins the line is left to the shell as it is.
fn for_shell(command: &str) -> String {
    let command = command.trim();
    let first = command.split_whitespace().next().unwrap_or_default();
    let plain_word = first
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte));
    let built_in = matches!(
        first,
        "." | "cd"
            | "case"
            | "eval"
            | "exec"
            | "exit"
            | "export"
            | "for"
            | "if"
            | "set"
            | "source"
            | "trap"
            | "ulimit"
            | "umask"
            | "unset"
            | "until"
            | "wait"
            | "while"
    );
    if plain_word && !first.is_empty() && !built_in && !command.contains([';', '&', '|', '\n']) {
        format!("exec {command}")
    } else {
        command.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::for_shell;

    #[test]
    fn only_simple_commands_replace_the_shell() {
        for simple in ["npm start", "./bin/web -p $PORT", "gunicorn 'a:b'"] {
            assert_eq!(for_shell(simple), format!("exec {simple}"));
        }
        for shell in [
            "cd app && node x",
            "A=1 node x",
            "a; b",
            "if true",
            "exec x",
            "$RUN",
        ] {
            assert_eq!(for_shell(shell), shell);
        }
    }
}
