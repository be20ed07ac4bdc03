//! What has to succeed in an instance before it counts as started: its readiness command, which is run
//! again and again until it exits with 0.
//!
//! The shim runs it, because it is to find what the application finds, to be within the instance's
//! limits, to end with it, and to go on without the agent. When a process of the instance was started
//! again, it has to succeed again.

use super::child::{self, Run};
use super::output::{CHUNK, CHUNKS_A_TURN, Output};
use super::signal_group;
use super::spec::{GateSpec, ShimSpec, files};
use super::wire::{GateStatus, ReadyStatus};
use beanpole_bundle::procfile;
use beanpole_daemon::clock::now;
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

/// What is under way in an instance beside its processes.
pub(super) struct Gate {
    spec: GateSpec,
    ready: Option<ReadyStatus>,
    output: Output,
    child: Option<Child>,
    /// When the next one starts.
    due: Instant,
}

struct Child {
    pid: i32,
    until: Instant,
    /// It took too long.
    late: bool,
    /// It began before a process was started again: how it ends says nothing.
    stale: bool,
}

impl Gate {
    pub fn new(spec: &ShimSpec) -> Self {
        let gate = spec.gate.clone();
        let ready = gate.ready.as_ref().map(|order| ReadyStatus {
            command: procfile::shown(&order.command),
            passed: false,
            tries: 0,
            last: None,
        });
        let path = Path::new(files::LOGS).join(format!("{}.log", files::READY_LOG));
        Self {
            spec: gate,
            ready,
            output: Output::keeping(path, spec.logs),
            child: None,
            due: Instant::now(),
        }
    }

    pub fn status(&self) -> GateStatus {
        GateStatus {
            ready: self.ready.clone(),
        }
    }

    /// Lines of its log that were lost.
    pub fn lines_lost(&self) -> u64 {
        self.output.log.lost_total
    }

    pub fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.output.fds()
    }

    pub fn read(&mut self, chunk: &mut [u8]) {
        self.output.read(chunk, CHUNKS_A_TURN);
    }

    pub fn finish(&mut self) {
        self.output.read(&mut [0_u8; CHUNK], usize::MAX);
        self.output.finish();
    }

    /// A process was started: what succeeded before says nothing of this one.
    pub fn reset(&mut self) {
        if let Some(ready) = &mut self.ready {
            ready.passed = false;
            ready.tries = 0;
            ready.last = None;
            self.due = Instant::now();
            if let Some(child) = &mut self.child {
                child.stale = true;
                signal_group(child.pid, Signal::KILL);
            }
        }
    }

    /// When to take the next step at the latest; none while there is nothing to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.child {
            Some(child) => (!child.late).then_some(child.until),
            None => self.waiting().then_some(self.due),
        }
    }

    fn waiting(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| !ready.passed)
    }

    /// Starts what is due and ends what takes too long; whether anything is to be told.
    pub fn step(&mut self, spec: &ShimSpec, doors: &[Arc<OwnedFd>]) -> bool {
        let at = Instant::now();
        if let Some(child) = &mut self.child {
            if at >= child.until && !child.late {
                child.late = true;
                signal_group(child.pid, Signal::KILL);
            }
            return false;
        }
        if !self.waiting() || at < self.due {
            return false;
        }
        let Some(order) = &self.spec.ready else {
            return false;
        };
        match child::start(spec, Run::Line(&order.command), doors) {
            Ok(started) => {
                self.output.take(started.out, started.err);
                self.child = Some(Child {
                    pid: started.pid,
                    until: at + Duration::from_millis(order.timeout_ms),
                    late: false,
                    stale: false,
                });
                false
            }
            Err(error) => {
                self.tried(Some(format!("cannot be started: {error}")));
                true
            }
        }
    }

    /// Tells everything under way to end.
    pub fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            child.stale = true;
            signal_group(child.pid, Signal::TERM);
        }
    }

    /// Whether that process is one of these.
    pub fn runs(&self, pid: i32) -> bool {
        self.child.as_ref().is_some_and(|child| child.pid == pid)
    }

    /// The command has ended, and was reaped.
    pub fn ended(&mut self, code: Option<i32>, signal: Option<i32>) {
        self.output.read(&mut [0_u8; CHUNK], CHUNKS_A_TURN);
        let lines = self.output.last_lines();
        let Some(child) = self.child.take() else {
            return;
        };
        if child.stale {
            self.due = Instant::now();
            return;
        }
        let limit = self.spec.ready.as_ref().map_or(0, |order| order.timeout_ms);
        let how = match (child.late, code, signal) {
            (true, ..) => {
                let limit = Duration::from_millis(limit).as_secs_f64();
                format!("took longer than {limit} s and was ended")
            }
            (_, Some(0), _) => return self.tried(None),
            (_, Some(code), _) => format!("exited with {code}"),
            (_, _, Some(signal)) => format!("was ended by signal {signal}"),
            _ => "ended".to_owned(),
        };
        let said = lines.last().map_or_else(String::new, |line| {
            let line: String = line.chars().take(LONGEST_SAID).collect();
            format!(" ({line})")
        });
        self.tried(Some(format!("{how}{said}")));
    }

    fn tried(&mut self, failed: Option<String>) {
        let Some(ready) = &mut self.ready else {
            return;
        };
        ready.tries = ready.tries.saturating_add(1);
        ready.passed = failed.is_none();
        let how = failed.as_deref().unwrap_or("exited with 0");
        self.output
            .log
            .remark(now(), &format!("the readiness command {how}"));
        ready.last = failed;
        let pause = if ready.tries < OFTEN {
            PAUSE
        } else {
            LATER_PAUSE
        };
        self.due = Instant::now() + pause;
    }
}
