//! Runs the commands of a build: as the application's user, within limits, with their output bounded.
//!
//! Each command has a guard process ([`crate::shim::build`]) that ends everything that the command
//! started: when it has ended, when the agent gives it up, and when the agent dies. A record on disk
//! tells the next agent of it, which waits for that end before it builds anything.

use super::{FAILURE_LINES, Fault, Workshop, blocking};
use crate::fences::cgroups::Group;
use crate::fences::signal;
use crate::fences::users::User;
use crate::runtime::process::ShimProgram;
use crate::shim::build::{BUILD, BuildEnd, BuildSpec};
use crate::shim::proc;
use crate::shim::wire::Identity;
use beanpole_daemon::files;
use beanpole_protocol::agent::{Limits, Properties, ReleaseOrder, ReleasePhase};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;

/// The most that one build's log holds, in bytes: a build that loops must not fill the disk.
const LONGEST_LOG: u64 = 8 << 20;
/// The most of a line that is kept for a failure, in bytes.
const LONGEST_LINE: usize = 1000;
/// How long output may still come after the command itself has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a guard may take to end a build before it is done without it. It is done at once, but for
/// processes in an uninterruptible wait.
const GUARD_WAIT: Duration = Duration::from_secs(5);
/// How long SIGKILL may take then.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// The home directory of a build, in that of its preparation.
pub(super) const HOME: &str = "home";
/// That of what runs as root.
pub(super) const ROOTS_HOME: &str = "/root";
/// Holds what is mounted as a build's `/tmp`.
pub(super) const PRIVATE: &str = "private";
/// Names the build in the environment of its processes.
pub(super) const MARK: &str = "BEANPOLE_BUILD";
/// Processes and threads of a build where no option says: npm and pip need some dozens, parallel
/// compilers some hundreds.
const PROCESSES: u64 = 1024;
/// The least that a build may use by default, on the smallest hosts: npm needs some 300 MiB.
const LEAST_MEMORY: u64 = 512 << 20;

/// What the agent passes on from its own environment: how to reach the network, and no secrets.
pub(super) const INHERITED: &[&str] = &[
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
    "GOPROXY",
    "GOSUMDB",
    "GONOSUMDB",
    "GOPRIVATE",
    "BUNDLE_MIRROR__ALL",
    "CURL_CA_BUNDLE",
    "COMPOSER_CAFILE",
];

/// Where a build happens.
pub struct Site<'a> {
    /// Everything temporary of this preparation.
    pub work: PathBuf,
    /// The unpacked bundle.
    pub tree: PathBuf,
    /// What the commands write.
    pub log: PathBuf,
    /// Tells of the running command, for an agent that comes after a crash.
    pub pid_file: PathBuf,
    /// The release.
    pub order: &'a ReleaseOrder,
    /// For whom.
    pub user: Option<User>,
    /// Whether commands run as root all the same, with all that root may do.
    pub root: bool,
    /// Told each command.
    pub progress: &'a (dyn Fn(ReleasePhase) + Send + Sync),
}

impl Site<'_> {
    /// The same for hooks and container commands of the bundle, which run as root where the application may do that.
    pub(super) fn of_hooks(&self) -> Site<'_> {
        Site {
            work: self.work.clone(),
            tree: self.tree.clone(),
            log: self.log.clone(),
            pid_file: self.pid_file.clone(),
            order: self.order,
            user: self.user.clone(),
            root: acts_as_root(self.order),
            progress: self.progress,
        }
    }

    /// A directory beside the tree for what the platform is configured by; it stays with the release.
    pub fn platform_directory(&self) -> Result<PathBuf, Fault> {
        let directory = self.work.join(super::PLATFORM);
        fs::create_dir_all(&directory)
            .and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))
            .map_err(|error| Fault::io("make", &directory, &error))?;
        Ok(directory)
    }

    /// Makes a file readable for the application and root alone.
    pub fn keep_private(&self, file: &Path) -> Result<(), Fault> {
        let mode = if self.user.is_some() { 0o640 } else { 0o600 };
        let group = self.user.as_ref().map(|user| user.gid);
        fs::set_permissions(file, fs::Permissions::from_mode(mode))
            .and_then(|()| std::os::unix::fs::chown(file, None, group))
            .map_err(|error| Fault::io("protect", file, &error))
    }
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
    /// What only what builds it gets in its environment.
    pub build_environment: BTreeMap<String, String>,
    /// Caches that the tree refers to.
    pub caches: Vec<String>,
    /// Caches that a later release may want, though this one does without.
    pub keeps: Vec<String>,
    /// What the processes run, where they are containers.
    pub containers: Option<crate::containers::Ready>,
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

/// A command under way, as the next agent finds it on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Running {
    guard: Identity,
    cgroup: Option<Group>,
    /// [`MARK`] with its value.
    mark: String,
}

/// A command to be run under a guard.
pub(super) struct Guarded<'a> {
    /// For people.
    pub(super) shown: &'a str,
    /// What the guard is told.
    pub(super) spec: BuildSpec,
    /// What the command writes.
    pub(super) log: &'a Path,
    /// Tells of it while it runs.
    pub(super) record: &'a Path,
}

/// How a command under a guard ended.
pub(super) struct Ended {
    end: Option<BuildEnd>,
    /// The last lines that it wrote.
    pub(super) lines: Vec<String>,
}

/// What a command that failed is called.
pub(super) struct Codes {
    pub(super) failed: &'static str,
    pub(super) out_of_memory: &'static str,
}

pub(super) const CODES: Codes = Codes {
    failed: "build-failed",
    out_of_memory: "build-out-of-memory",
};

/// A guard process and the way to talk to it. Its end is the end of the build: dropping it is enough.
struct Guard {
    process: Child,
    socket: UnixStream,
    cgroup: Option<Group>,
}

impl Guard {
    fn start(program: &ShimProgram, cgroup: Option<Group>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let process = program
            .command(BUILD)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            process,
            socket: UnixStream::from_std(ours)?,
            cgroup,
        })
    }

    /// On disk first: what is not recorded must not run.
    async fn begin(&mut self, record: &Path, spec: &BuildSpec) -> io::Result<()> {
        let pid = self.process.id().unwrap_or_default().cast_signed();
        let guard = Identity::of(pid).ok_or_else(|| io::Error::other("the guard ended"))?;
        let running = Running {
            guard,
            cgroup: self.cgroup.clone(),
            mark: mark(record),
        };
        files::write_json(record, &running, 0o600)?;
        let mut line = serde_json::to_vec(spec)?;
        line.push(b'\n');
        self.socket.write_all(&line).await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The guard does it again, and until nothing is left, when its socket closes.
        if let Some(group) = &self.cgroup {
            group.kill();
        }
    }
}

/// Whether hooks and commands of a release's bundle run as root here.
pub(crate) fn acts_as_root(order: &ReleaseOrder) -> bool {
    order.root && rustix::process::geteuid().is_root()
}

fn mark(record: &Path) -> String {
    format!("{MARK}={}", record.display())
}

impl Workshop {
    /// Runs one command of a build to its end. Dropping the future has it killed; [`end_build`] waits
    /// for that.
    pub async fn run(&self, site: &Site<'_>, step: &Step<'_>) -> Result<(), Fault> {
        self.run_as(site, step, &step.shown(), &CODES, &BTreeMap::new())
            .await
    }

    /// [`Workshop::run`] of what is called `shown`, with `extra` in its environment.
    pub(super) async fn run_as(
        &self,
        site: &Site<'_>,
        step: &Step<'_>,
        shown: &str,
        codes: &Codes,
        extra: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let nothing = BTreeMap::new();
        let ended = self
            .run_to_its_end(site, step, shown, codes, extra, &nothing)
            .await?;
        match ended.judge(codes, shown, &limits(&site.order.options)) {
            None => Ok(()),
            Some(fault) => Err(fault.with_log(ended.lines)),
        }
    }

    /// [`Workshop::run_as`] without a judgement, and with `own` in its environment, which wins over the
    /// properties.
    pub(super) async fn run_to_its_end(
        &self,
        site: &Site<'_>,
        step: &Step<'_>,
        shown: &str,
        codes: &Codes,
        extra: &BTreeMap<String, String>,
        own: &BTreeMap<String, String>,
    ) -> Result<Ended, Fault> {
        (site.progress)(ReleasePhase::Building {
            command: shown.to_owned(),
        });
        let home = if site.root {
            PathBuf::from(ROOTS_HOME)
        } else {
            let home = site.work.join(HOME);
            make_home(&home, site.user.as_ref())?;
            home
        };
        let not_started = |why: &dyn std::fmt::Display| {
            Fault::new(
                codes.failed,
                format!("The command `{shown}` could not be started: {why}."),
            )
        };
        let private_tmp = self
            .fences
            .private_tmp()
            .then_some(())
            .filter(|()| !site.root)
            .map(|()| make_tmp(&site.work))
            .transpose()
            .map_err(|error| not_started(&error))?;
        let cgroup = self.fences.cgroups();
        let spec = BuildSpec {
            program: step.program.to_owned(),
            arguments: step.arguments.to_vec(),
            directory: step.directory.to_owned(),
            environment: environment(site, step, &home, extra, own),
            user: site.user.clone().filter(|_| !site.root),
            cgroup: cgroup.map(|trees| trees.build(&site.order.key)),
            limits: limits(&site.order.options),
            private_tmp,
            whole_root: site.root,
        };
        let command = Guarded {
            shown,
            spec,
            log: &site.log,
            record: &site.pid_file,
        };
        self.follow(command).await
    }

    /// Runs a command under a guard to its end. Dropping the future has it killed; [`end_build`] waits
    /// for that.
    pub(super) async fn follow(&self, command: Guarded<'_>) -> Result<Ended, Fault> {
        let mut log = Log::open(command.log, command.shown)
            .map_err(|error| Fault::io("write", command.log, &error))?;
        let started = async {
            let mut guard = Guard::start(&self.guard, command.spec.cgroup.clone())?;
            guard.begin(command.record, &command.spec).await?;
            Ok::<_, io::Error>(guard)
        };
        let mut guard = match started.await {
            Ok(guard) => guard,
            Err(error) => return Ok(Ended::not_started(&error)),
        };
        let (mut out, mut err) = (guard.process.stdout.take(), guard.process.stderr.take());
        let (mut from_out, mut from_err) = (vec![0; 8192], vec![0; 8192]);
        let mut said = Vec::new();
        loop {
            tokio::select! {
                read = next(&mut out, &mut from_out), if out.is_some() => match read {
                    0 => out = None,
                    size => log.add(&from_out[..size]),
                },
                read = next(&mut err, &mut from_err), if err.is_some() => match read {
                    0 => err = None,
                    size => log.add(&from_err[..size]),
                },
                read = guard.socket.read_buf(&mut said) => if !matches!(read, Ok(1..)) {
                    break;
                },
            }
        }
        // Everything that held the pipes has ended.
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
        let _ = tokio::time::timeout(LAST_WORDS, guard.process.wait()).await;
        drop(guard);
        let record = command.record.to_owned();
        let left = blocking(move || Ok(end_build(&record))).await?;
        let mut end: Option<BuildEnd> = serde_json::from_slice(&said).ok();
        if let Some(end) = &mut end {
            end.left.extend(left);
        }
        Ok(Ended {
            end,
            lines: log.finish(),
        })
    }
}

/// A directory that anybody may write to, in one that nobody else may enter. It goes with the rest of
/// the preparation.
pub(super) fn make_tmp(work: &Path) -> io::Result<PathBuf> {
    let private = work.join(PRIVATE);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&private)?;
    let tmp = private.join("tmp");
    fs::DirBuilder::new().recursive(true).create(&tmp)?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
    Ok(tmp)
}

/// The whole environment of a build's command.
fn environment(
    site: &Site<'_>,
    step: &Step<'_>,
    home: &Path,
    extra: &BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> Properties {
    let inherited = INHERITED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    let mut all: BTreeMap<String, String> = inherited.collect();
    all.insert("LANG".to_owned(), "C.UTF-8".to_owned());
    all.insert("PATH".to_owned(), step.path.to_owned());
    all.extend(extra.clone());
    all.extend(site.order.properties.0.clone());
    all.insert("HOME".to_owned(), home.to_string_lossy().into_owned());
    all.insert("CI".to_owned(), "true".to_owned());
    all.extend(own.clone());
    all.insert(MARK.to_owned(), site.pid_file.display().to_string());
    Properties(all)
}

/// What a build may use: as the environment's options say, else what leaves room for applications.
pub(super) fn limits(options: &BTreeMap<String, String>) -> Limits {
    let number = |name: &str| {
        options
            .get(name)
            .and_then(|value| value.parse::<u64>().ok())
    };
    let half_of_memory = || {
        let memory = <procfs::Meminfo as procfs::Current>::current().ok()?;
        Some((memory.mem_total / 2).max(LEAST_MEMORY))
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    Limits {
        memory_bytes: number("BuildMemoryMax")
            .map(|mib| mib << 20)
            .or_else(half_of_memory),
        cpu_millis: number("BuildCpuMax").or(Some((cores - 1).max(1) * 1000)),
        pids: number("BuildProcessesMax").or(Some(PROCESSES)),
        open_files: None,
    }
}

impl Ended {
    pub(super) fn not_started(why: &io::Error) -> Self {
        Self {
            end: Some(BuildEnd {
                error: Some(why.to_string()),
                ..BuildEnd::default()
            }),
            lines: Vec::new(),
        }
    }

    /// Whether a failure is that of the command itself: nothing of it is left, and it is not the
    /// host that failed.
    pub(super) fn is_the_commands(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.left.is_empty()) && !ran_out_of_disk(&self.lines)
    }

    /// Why the command failed; none when it did not.
    pub(super) fn judge(&self, codes: &Codes, shown: &str, limits: &Limits) -> Option<Fault> {
        let failed = |message: String| Some(Fault::new(codes.failed, message));
        let Some(end) = &self.end else {
            return failed(format!(
                "The command `{shown}` was ended, since the process that guards it was killed."
            ));
        };
        if let Some(why) = &end.error {
            return failed(format!(
                "The command `{shown}` could not be started: {why}."
            ));
        }
        if !end.left.is_empty() {
            return failed(format!(
                "The command `{shown}` left processes that cannot be killed: {:?}. They wait for a \
                 disk or a network file system of this host.",
                end.left
            ));
        }
        if end.code == Some(0) {
            return None;
        }
        if end.oom_kills > 0 {
            let most = limits.memory_bytes.unwrap_or_default() >> 20;
            return Some(Fault::new(
                codes.out_of_memory,
                format!(
                    "The command `{shown}` was killed by the kernel for memory: it may use {most} MiB \
                     here. The option `beanpole:release` `BuildMemoryMax` sets another limit."
                ),
            ));
        }
        if ran_out_of_disk(&self.lines) {
            return Some(Fault::new(
                "disk-full",
                format!("The disk filled up while `{shown}` ran."),
            ));
        }
        let how = match (end.code, end.signal) {
            (Some(code), _) => ExitStatus::from_raw(code << 8).to_string(),
            (None, Some(signal)) => ExitStatus::from_raw(signal).to_string(),
            (None, None) => "it was told to end".to_owned(),
        };
        failed(format!("The command `{shown}` failed: {how}."))
    }
}

pub(super) fn make_home(home: &Path, user: Option<&User>) -> Result<(), Fault> {
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

/// Adds a line of the agent's own to a build's log.
pub(super) fn note(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    writeln!(file, "# {text}")
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

impl Running {
    fn left(&self) -> Vec<i32> {
        let mut left = Vec::new();
        if self.guard.lives() {
            left.extend(proc::descendants(self.guard.pid));
            left.push(self.guard.pid);
        }
        match &self.cgroup {
            Some(group) => left.extend(group.processes()),
            // What has another parent by now, as its guard was killed.
            None => left.extend(
                proc::all()
                    .into_iter()
                    .filter(|pid| proc::carries(*pid, &self.mark)),
            ),
        }
        left
    }
}

/// Waits until nothing is left of the build that `record` tells of, if there is one; does without its
/// guard where that is slow or dead. Blocks. Returns what cannot be killed.
pub fn end_build(record: &Path) -> Vec<i32> {
    let running: Running = match files::read_json(record) {
        Ok(None) => return Vec::new(),
        Ok(Some(running)) => running,
        Err(error) => {
            tracing::warn!(%error, "the record of a build is of no use");
            let _ = fs::remove_file(record);
            return Vec::new();
        }
    };
    let start = Instant::now();
    // Its guard knows that the agent is gone, or has given it up.
    while running.guard.lives() && start.elapsed() < GUARD_WAIT {
        std::thread::sleep(Duration::from_millis(2));
    }
    let end = Instant::now() + KILL_WAIT;
    loop {
        let left = running.left();
        if left.is_empty() {
            break;
        }
        if Instant::now() > end {
            return left;
        }
        if let Some(group) = &running.cgroup {
            group.kill();
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if let Some(group) = &running.cgroup {
        let _ = group.remove(Duration::from_millis(200));
    }
    let _ = fs::remove_file(record);
    Vec::new()
}

/// Ends builds that an agent left behind when it was killed itself.
pub fn end_leftovers(builds: &Path) -> io::Result<()> {
    for entry in fs::read_dir(builds)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        tracing::info!(build = %path.display(), "ending a build that an earlier agent left");
        let guard: Option<Running> = files::read_json(&path).ok().flatten();
        let left = end_build(&path);
        if !left.is_empty() {
            tracing::warn!(
                ?left,
                "processes of an earlier agent's build cannot be killed"
            );
        }
        // After an upgrade the guard is a child of this process that nobody knows.
        if let Some(pid) = guard.and_then(|one| rustix::process::Pid::from_raw(one.guard.pid)) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_set_the_limits_of_builds_and_there_are_some_without() {
        let limits_of = |name: &str, value: &str| {
            limits(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        let set = limits_of("BuildMemoryMax", "300");
        assert_eq!(set.memory_bytes, Some(300 << 20));
        assert_eq!(limits_of("BuildCpuMax", "1500").cpu_millis, Some(1500));
        assert_eq!(limits_of("BuildProcessesMax", "9").pids, Some(9));
        assert!(set.cpu_millis >= Some(1000) && set.pids == Some(PROCESSES));
        assert!(limits(&BTreeMap::new()).memory_bytes >= Some(LEAST_MEMORY));
    }

    #[test]
    fn a_kill_for_memory_is_told_apart_unless_the_command_got_over_it() {
        let end = |code, oom_kills| BuildEnd {
            code: Some(code),
            oom_kills,
            ..BuildEnd::default()
        };
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            ..Limits::default()
        };
        let judged = |end| {
            let ended = Ended {
                end: Some(end),
                lines: Vec::new(),
            };
            ended.judge(&CODES, "npm ci", &limits)
        };
        assert_eq!(judged(end(0, 1)), None);
        let fault = judged(end(137, 1)).expect("failed").0;
        assert_eq!(fault.code, "build-out-of-memory");
        assert!(fault.message.contains("64 MiB"), "{}", fault.message);
        let fault = judged(end(3, 0)).expect("failed").0;
        assert!(
            fault.message.contains("exit status: 3"),
            "{}",
            fault.message
        );
    }
}
