//! What has to succeed in an instance before it counts as started: its readiness command, which is run
//! again and again until it exits with 0, then its `postdeploy` hooks, each once.
//!
//! The shim runs them, because they are to find what the application finds, to be within the instance's
//! limits, to end with it, and to go on without the agent. When a process of the instance was started
//! again, the readiness command has to succeed again. Hooks are not run a second time: that they began is
//! in the state file before the first of them is started.

use super::child::{self, Run};
use super::output::{CHUNK, CHUNKS_A_TURN, Output};
use super::signal_group;
use super::spec::{GateSpec, ShimSpec, WEB, files};
use super::wire::{GateStatus, HooksStatus, ReadyStatus};
use crate::runtime::port;
use beanpole_bundle::procfile;
use beanpole_daemon::clock::now;
use beanpole_protocol::agent::{Failure, PortUse};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two runs of a readiness command, as long as it has not ended often.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause from then on.
const LATER_PAUSE: Duration = Duration::from_secs(5);
/// How often is often.
const OFTEN: u32 = 60;
/// Characters of the last line of output that are told.
const LONGEST_SAID: usize = 200;
/// How often to look whether the application listens, while hooks wait for that.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// The same, when it has not for a while.
const LATER_LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long a while is.
const WHILE: Duration = Duration::from_secs(15);

/// What is under way in an instance beside its processes.
pub(super) struct Gate {
    spec: GateSpec,
    ready: Option<ReadyStatus>,
    ready_output: Output,
    hooks: Option<HooksStatus>,
    /// The hook that is under way or comes next, counted from 0.
    hook: usize,
    hooks_output: Output,
    /// The port that has to be listened on before hooks run.
    port: Option<u16>,
    since: Instant,
    child: Option<Child>,
    /// When to take the next step.
    due: Instant,
}

struct Child {
    pid: i32,
    what: What,
    until: Instant,
    /// It took too long.
    late: bool,
    /// It is to end, whatever it was about: how it ends says nothing.
    stale: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Ready,
    Hook,
}

impl Gate {
    /// `earlier` is what a shim before this one left of the same incarnation.
    pub fn new(spec: &ShimSpec, earlier: Option<&GateStatus>) -> Self {
        let ready = spec.gate.ready.as_ref().map(|order| ReadyStatus {
            command: procfile::shown(&order.command),
            passed: false,
            tries: 0,
            last: None,
        });
        let hooks = (!spec.gate.hooks.is_empty()).then(|| {
            let earlier = earlier.and_then(|earlier| earlier.hooks.clone());
            match earlier.unwrap_or(HooksStatus::Waiting) {
                HooksStatus::Running { hook } => HooksStatus::Failed(interrupted(&hook)),
                other => other,
            }
        });
        let log = |name: &str| {
            let path = Path::new(files::LOGS).join(format!("{name}.log"));
            Output::keeping(path, spec.logs)
        };
        let web = spec.processes.iter().any(|process| process.name == WEB);
        let port = spec.environment.0.get("PORT").filter(|_| web);
        Self {
            ready,
            ready_output: log(files::READY_LOG),
            hooks,
            hook: 0,
            hooks_output: log(files::HOOKS_LOG),
            port: port.and_then(|port| port.parse().ok()),
            since: Instant::now(),
            spec: spec.gate.clone(),
            child: None,
            due: Instant::now(),
        }
    }

    pub fn status(&self) -> GateStatus {
        GateStatus {
            ready: self.ready.clone(),
            hooks: self.hooks.clone(),
        }
    }

    /// Lines of its logs that were lost.
    pub fn lines_lost(&self) -> u64 {
        self.ready_output.log.lost_total + self.hooks_output.log.lost_total
    }

    pub fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.ready_output.fds().chain(self.hooks_output.fds())
    }

    pub fn read(&mut self, chunk: &mut [u8]) {
        self.ready_output.read(chunk, CHUNKS_A_TURN);
        self.hooks_output.read(chunk, CHUNKS_A_TURN);
    }

    pub fn finish(&mut self) {
        for output in [&mut self.ready_output, &mut self.hooks_output] {
            output.read(&mut [0_u8; CHUNK], usize::MAX);
            output.finish();
        }
    }

    /// A process was started: what the readiness command found before says nothing of this one.
    pub fn reset(&mut self) {
        self.since = Instant::now();
        self.due = Instant::now();
        if let Some(ready) = &mut self.ready {
            ready.passed = false;
            ready.tries = 0;
            ready.last = None;
        }
        if let Some(child) = &mut self.child
            && child.what == What::Ready
        {
            child.stale = true;
            signal_group(child.pid, Signal::KILL);
        }
    }

    /// When to take the next step at the latest; none while there is nothing to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.child {
            Some(child) => (!child.late).then_some(child.until),
            None => self.next().map(|_| self.due),
        }
    }

    /// What is to be run next, if there is anything left.
    fn next(&self) -> Option<What> {
        if self.ready.as_ref().is_some_and(|ready| !ready.passed) {
            return Some(What::Ready);
        }
        let left = matches!(
            self.hooks,
            Some(HooksStatus::Waiting | HooksStatus::Running { .. })
        );
        left.then_some(What::Hook)
    }

    /// Starts what is due and ends what takes too long; whether anything is to be told. `recorded` says
    /// whether what was told last is in the state file.
    pub fn step(&mut self, spec: &ShimSpec, doors: &[Arc<OwnedFd>], recorded: bool) -> bool {
        let at = Instant::now();
        if let Some(child) = &mut self.child {
            if at >= child.until && !child.late {
                child.late = true;
                signal_group(child.pid, Signal::KILL);
            }
            return false;
        }
        if at < self.due {
            return false;
        }
        match self.next() {
            None => false,
            Some(What::Ready) => self.try_ready(spec, doors),
            Some(What::Hook) if matches!(self.hooks, Some(HooksStatus::Running { .. })) => {
                // What is not recorded must not run.
                if !recorded {
                    self.due = at + LATER_LOOK_PAUSE;
                    return true;
                }
                self.start_hook(spec, doors)
            }
            Some(What::Hook) => self.begin_hooks(spec),
        }
    }

    fn try_ready(&mut self, spec: &ShimSpec, doors: &[Arc<OwnedFd>]) -> bool {
        let Some(order) = self.spec.ready.clone() else {
            return false;
        };
        match child::start(spec, Run::Line(&order.command), doors) {
            Ok(started) => {
                self.ready_output.take(started.out, started.err);
                self.child = Some(Child::new(started.pid, What::Ready, order.timeout_ms));
                false
            }
            Err(error) => {
                self.tried(Some(format!("cannot be started: {error}")));
                true
            }
        }
    }

    /// Has the hooks begin, once the application listens; whether they do.
    fn begin_hooks(&mut self, spec: &ShimSpec) -> bool {
        let listens = self.port.is_none_or(|number| {
            let me = std::process::id().cast_signed();
            let look = port::look(number, me, spec.cgroup.as_ref());
            // What forwards to it may be another program's.
            matches!(look.port, PortUse::Own | PortUse::Unknown)
        });
        if !listens {
            let pause = if self.since.elapsed() < WHILE {
                LOOK_PAUSE
            } else {
                LATER_LOOK_PAUSE
            };
            self.due = Instant::now() + pause;
            return false;
        }
        self.go_on_to(0)
    }

    /// Goes on to a hook, or to the end of them.
    fn go_on_to(&mut self, index: usize) -> bool {
        self.hook = index;
        self.due = Instant::now();
        self.hooks = Some(match self.spec.hooks.get(index) {
            Some(hook) => HooksStatus::Running {
                hook: hook.display().to_string(),
            },
            None => HooksStatus::Passed,
        });
        true
    }

    fn start_hook(&mut self, spec: &ShimSpec, doors: &[Arc<OwnedFd>]) -> bool {
        let Some(hook) = self.spec.hooks.get(self.hook) else {
            return self.go_on_to(self.hook);
        };
        let shown = hook.display().to_string();
        self.hooks_output
            .log
            .remark(now(), &format!("runs {shown}"));
        match child::start(spec, Run::File(&spec.directory.join(hook)), doors) {
            Ok(started) => {
                self.hooks_output.take(started.out, started.err);
                let limit = self.spec.hook_timeout_ms;
                self.child = Some(Child::new(started.pid, What::Hook, limit));
                false
            }
            Err(error) => {
                self.hook_failed(&format!("cannot be started: {error}"), Vec::new());
                true
            }
        }
    }

    /// Tells everything under way to end.
    pub fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            // A hook that is ended so stays recorded as one that had begun.
            child.stale = true;
            signal_group(child.pid, Signal::TERM);
        }
    }

    /// Whether that process is one of these.
    pub fn runs(&self, pid: i32) -> bool {
        self.child.as_ref().is_some_and(|child| child.pid == pid)
    }

    /// One of these has ended, and was reaped.
    pub fn ended(&mut self, code: Option<i32>, signal: Option<i32>) {
        let Some(child) = self.child.take() else {
            return;
        };
        let (output, limit) = match child.what {
            What::Ready => {
                let order = self.spec.ready.as_ref();
                (
                    &mut self.ready_output,
                    order.map_or(0, |order| order.timeout_ms),
                )
            }
            What::Hook => (&mut self.hooks_output, self.spec.hook_timeout_ms),
        };
        output.read(&mut [0_u8; CHUNK], CHUNKS_A_TURN);
        let lines = output.last_lines();
        if child.stale {
            self.due = Instant::now();
            return;
        }
        let failed = match (child.late, code, signal) {
            (true, ..) => {
                let limit = Duration::from_millis(limit).as_secs_f64();
                Some(format!("took longer than {limit} s and was ended"))
            }
            (_, Some(0), _) => None,
            (_, Some(code), _) => Some(format!("exited with {code}")),
            (_, _, Some(signal)) => Some(format!("was ended by signal {signal}")),
            _ => Some("ended".to_owned()),
        };
        match (child.what, failed) {
            (What::Ready, failed) => self.tried(failed.map(|how| match lines.last() {
                Some(line) => {
                    let line: String = line.chars().take(LONGEST_SAID).collect();
                    format!("{how} ({line})")
                }
                None => how,
            })),
            (What::Hook, None) => {
                self.go_on_to(self.hook + 1);
            }
            (What::Hook, Some(how)) => self.hook_failed(&how, lines),
        }
    }

    fn tried(&mut self, failed: Option<String>) {
        let Some(ready) = &mut self.ready else {
            return;
        };
        ready.tries = ready.tries.saturating_add(1);
        ready.passed = failed.is_none();
        let how = failed.as_deref().unwrap_or("exited with 0");
        self.ready_output
            .log
            .remark(now(), &format!("the readiness command {how}"));
        let pause = if ready.passed {
            Duration::ZERO
        } else if ready.tries < OFTEN {
            PAUSE
        } else {
            LATER_PAUSE
        };
        ready.last = failed;
        self.due = Instant::now() + pause;
    }

    fn hook_failed(&mut self, how: &str, log: Vec<String>) {
        let hook = self.spec.hooks.get(self.hook);
        let hook = hook.map_or_else(String::new, |hook| hook.display().to_string());
        self.hooks_output
            .log
            .remark(now(), &format!("{hook} {how}"));
        self.hooks = Some(HooksStatus::Failed(Failure {
            code: "hook-failed".to_owned(),
            message: format!("The hook `{hook}` {how}."),
            log,
        }));
    }
}

impl Child {
    fn new(pid: i32, what: What, limit_ms: u64) -> Self {
        Self {
            pid,
            what,
            until: Instant::now() + Duration::from_millis(limit_ms),
            late: false,
            stale: false,
        }
    }
}

/// What is said of a hook that was under way when the shim before was killed, and everything with it.
fn interrupted(hook: &str) -> Failure {
    Failure {
        code: "hook-interrupted".to_owned(),
        message: format!(
            "The hook `{hook}` was under way when the instance's supervisor was killed. It is not known \
             whether it ran to its end, and it is not run again by itself."
        ),
        log: Vec::new(),
    }
}
