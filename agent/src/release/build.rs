//! Runs the commands of a build: as the application's user, in a process group of their own that
//! is killed as a whole, with their output bounded.

use super::{FAILURE_LINES, Fault, Workshop};
use crate::fences::users::User;
use beanpole_protocol::agent::{ReleaseOrder, ReleasePhase};
use rustix::process::{Pid, Signal};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The most that one build's log holds, in bytes: a build that loops must not fill the disk.
const LONGEST_LOG: u64 = 8 << 20;
/// The most of a line that is kept for a failure, in bytes.
const LONGEST_LINE: usize = 1000;
/// How long output may still come after the command itself has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the agent passes on from its own environment: how to reach the network, and no secrets.
const INHERITED: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "REQUESTS_CA_BUNDLE",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
    "npm_config_cafile",
];

/// Where a build happens.
pub struct Site<'a> {
    /// Everything temporary of this preparation.
    pub work: PathBuf,
    /// The unpacked bundle.
    pub tree: PathBuf,
    /// What the commands write.
    pub log: PathBuf,
    /// The running command's process group, for an agent that comes after a crash.
    pub pid_file: PathBuf,
    /// The release.
    pub order: &'a ReleaseOrder,
    /// For whom.
    pub user: Option<User>,
    /// Told each command.
    pub progress: &'a (dyn Fn(ReleasePhase) + Send + Sync),
}

/// What a build adds to a plan.
#[derive(Default)]
pub struct Made {
    /// The processes, where the platform and not a `Procfile` decides them.
    pub processes: Option<Vec<(String, String)>>,
    /// Directories that come first in `PATH`.
    pub path: Vec<PathBuf>,
    /// What processes get in their environment.
    pub environment: BTreeMap<String, String>,
    /// Caches that the tree refers to.
    pub caches: Vec<String>,
    /// Caches that a later release may want, though this one does without.
    pub keeps: Vec<String>,
}

/// One command of a build.
pub struct Step<'a> {
    /// The program, as an absolute path.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// Where it runs.
    pub directory: &'a Path,
    /// `PATH`.
    pub path: &'a str,
}

impl Step<'_> {
    /// For people: `npm ci --omit=dev`.
    pub fn shown(&self) -> String {
        let name = self.program.file_name().unwrap_or_default();
        let mut text = name.to_string_lossy().into_owned();
        for argument in self.arguments {
            text.push(' ');
            text.push_str(argument);
        }
        text
    }
}

/// Kills a process group unless told that it is gone.
struct Group {
    leader: Option<Pid>,
    pid_file: PathBuf,
}

impl Group {
    fn kill(&self) {
        if let Some(leader) = self.leader {
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(&self.pid_file);
    }
}

impl Workshop {
    /// Runs one command of a build to its end. Dropping the future kills it.
    pub async fn run(&self, site: &Site<'_>, step: &Step<'_>) -> Result<(), Fault> {
        let shown = step.shown();
        (site.progress)(ReleasePhase::Building {
            command: shown.clone(),
        });
        let home = site.work.join("home");
        make_home(&home, site.user.as_ref())?;
        let mut command = Command::new(step.program);
        command
            .args(step.arguments)
            .current_dir(step.directory)
            .env_clear()
            .envs(
                INHERITED
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env("LANG", "C.UTF-8")
            .env("PATH", step.path)
            .envs(&site.order.properties.0)
            .env("HOME", &home)
            .env("CI", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        self.fences
            .confine(command.as_std_mut(), site.user.as_ref());
        let mut child = command.spawn().map_err(|error| {
            Fault::new(
                "build-failed",
                format!("The command `{shown}` could not be started: {error}."),
            )
        })?;
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group = Group {
            leader,
            pid_file: site.pid_file.clone(),
        };
        if let Some(leader) = leader {
            remember(&site.pid_file, leader);
        }
        let mut log =
            Log::open(&site.log, &shown).map_err(|error| Fault::io("write", &site.log, &error))?;
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        let (mut from_out, mut from_err) = (vec![0; 8192], vec![0; 8192]);
        let status = loop {
            tokio::select! {
                read = next(&mut out, &mut from_out), if out.is_some() => match read {
                    0 => out = None,
                    size => log.add(&from_out[..size]),
                },
                read = next(&mut err, &mut from_err), if err.is_some() => match read {
                    0 => err = None,
                    size => log.add(&from_err[..size]),
                },
                status = child.wait() => break status,
            }
        };
        // What it left in the background ends with it, and closes the pipes by that.
        group.kill();
        let _ = tokio::time::timeout(LAST_WORDS, async {
            while out.is_some() || err.is_some() {
                tokio::select! {
                    read = next(&mut out, &mut from_out), if out.is_some() => match read {
                        0 => out = None,
                        size => log.add(&from_out[..size]),
                    },
                    read = next(&mut err, &mut from_err), if err.is_some() => match read {
                        0 => err = None,
                        size => log.add(&from_err[..size]),
                    },
                }
            }
        })
        .await;
        let lines = log.finish();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(_) if ran_out_of_disk(&lines) => Err(Fault::new(
                "disk-full",
                format!("The disk filled up while `{shown}` ran."),
            )
            .with_log(lines)),
            Ok(status) => Err(Fault::new(
                "build-failed",
                format!("The command `{shown}` failed: {status}."),
            )
            .with_log(lines)),
            Err(error) => Err(Fault::new(
                "build-failed",
                format!("The command `{shown}` could not be waited for: {error}."),
            )),
        }
    }
}

fn make_home(home: &Path, user: Option<&User>) -> Result<(), Fault> {
    match fs::DirBuilder::new().mode(0o700).create(home) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Fault::io("make", home, &error));
        }
        _ => {}
    }
    match user {
        Some(user) => std::os::unix::fs::chown(home, Some(user.uid), Some(user.gid))
            .map_err(|error| Fault::io("hand over", home, &error)),
        None => Ok(()),
    }
}

async fn next(pipe: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}

fn ran_out_of_disk(lines: &[String]) -> bool {
    lines
        .iter()
        .any(|line| line.contains("ENOSPC") || line.contains("No space left on device"))
}

/// A build's log: a bounded file, and the last lines in memory.
struct Log {
    file: File,
    room: u64,
    lines: VecDeque<String>,
    line: Vec<u8>,
}

impl Log {
    fn open(path: &Path, command: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        writeln!(file, "$ {command}")?;
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            room: LONGEST_LOG.saturating_sub(size),
            lines: VecDeque::new(),
            line: Vec::new(),
        })
    }

    fn add(&mut self, bytes: &[u8]) {
        let fits = usize::try_from(self.room)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        // A log that cannot be written must not end the build.
        let _ = self.file.write_all(&bytes[..fits]);
        self.room -= fits as u64;
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(*byte);
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if text.is_empty() {
            return;
        }
        if self.lines.len() == FAILURE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(text);
    }

    fn finish(mut self) -> Vec<String> {
        self.end_line();
        self.lines.into()
    }
}

/// The last lines of a build's log, for a failure that interrupts it.
pub fn last_lines(path: &Path) -> Vec<String> {
    const TAIL: u64 = 64 * 1024;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(FAILURE_LINES)..]
        .iter()
        .map(|line| line.chars().take(LONGEST_LINE).collect())
        .collect()
}

/// When a process started, in clock ticks since boot: with its id it names one process for good.
fn started(pid: i32) -> Option<u64> {
    procfs::process::Process::new(pid)
        .and_then(|process| process.stat())
        .map(|stat| stat.starttime)
        .ok()
}

fn remember(pid_file: &Path, leader: Pid) {
    let pid = leader.as_raw_nonzero().get();
    if let Some(start) = started(pid) {
        let _ = fs::write(pid_file, format!("{pid} {start}"));
    }
}

/// Kills builds that an agent left behind when it was killed itself.
pub fn end_leftovers(builds: &Path) -> io::Result<()> {
    for entry in fs::read_dir(builds)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        if let Some((pid, start)) = text.split_once(' ')
            && let (Ok(pid), Ok(start)) = (pid.parse(), start.parse())
            && started(pid) == Some(start)
            && let Some(leader) = Pid::from_raw(pid)
        {
            tracing::info!(pid, "ending a build that an earlier agent left");
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}
