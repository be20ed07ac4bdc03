//! The shim's loop: waits for signals, output, clients and the time, and keeps the processes as
//! they shall be.

use super::child::{self, Run};
use super::control::{self, Client};
use super::gate::Gate;
use super::kernel;
use super::log::BEGINS;
use super::output::{CHUNK, CHUNKS_A_TURN, Output};
use super::proc;
use super::signal_group;
use super::spec::{Program, ShimSpec, VERSION, files};
use super::wire::{Identity, Op, ProcessStatus, Stage, Status};
use crate::fences::cgroups::Group;
use crate::sys::{self, Children, Ended};
use beanpole_daemon::clock::now;
use beanpole_protocol::Timestamp;
use beanpole_protocol::agent::{ENDS_REMEMBERED, ExitReport, MemoryKills};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often to look for processes that the kernel killed for memory. That of a process which is not
/// our child is told to nobody.
const OOM_LOOK: Duration = Duration::from_secs(5);
/// While something is left to kill, look again after this time.
const KILL_AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Supervisor {
    spec: ShimSpec,
    me: Identity,
    boot_id: String,
    signals: OwnedFd,
    listener: UnixListener,
    clients: Vec<Client>,
    doors: Vec<Arc<OwnedFd>>,
    processes: Vec<Process>,
    gate: Gate,
    stop: Option<Stop>,
    since: Timestamp,
    oom_kills: u64,
    /// Those of them that were not the main process of anything.
    memory_kills: MemoryKills,
    /// When to look for more; never without a limit.
    oom_look: Option<Instant>,
    changed: bool,
    /// What was told last is in the state file.
    recorded: bool,
}

struct Process {
    program: Program,
    running: Option<Running>,
    starts: Option<(Instant, Timestamp)>,
    started_at: Option<Timestamp>,
    restarts: u32,
    /// Ends in a row, for the pause.
    row: u32,
    last_exit: Option<ExitReport>,
    ended_at: Vec<Timestamp>,
    output: Output,
}

struct Running {
    identity: Identity,
    since: Instant,
}

struct Stop {
    kill_at: Instant,
    /// The stragglers that lead no group of ours have had their SIGTERM.
    told_all: bool,
}

impl Supervisor {
    pub fn new(spec: ShimSpec, signals: OwnedFd, listener: UnixListener) -> Result<Self, String> {
        let me = Identity::of(std::process::id() as i32).ok_or("/proc is not mounted")?;
        let doors = match &spec.cgroup {
            Some(group) => group.doors()?,
            None => Vec::new(),
        };
        let oom_kills = spec.cgroup.as_ref().map_or(0, |group| group.oom_kills());
        let limited = spec.cgroup.is_some() && spec.limits.memory_bytes.is_some();
        let oom_look = limited.then(|| Instant::now() + OOM_LOOK);
        // A shim that takes the place of a dead one goes on counting.
        let earlier: Option<Status> = fs::read(files::STATE)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|status: &Status| status.incarnation == spec.incarnation);
        let processes = spec
            .processes
            .iter()
            .map(|program| {
                let earlier = earlier
                    .as_ref()
                    .and_then(|status| status.processes.iter().find(|p| p.name == program.name));
                let path = Path::new(files::LOGS).join(format!("{}.log", program.name));
                Process {
                    program: program.clone(),
                    running: None,
                    starts: None,
                    started_at: None,
                    restarts: earlier.map_or(0, |p| p.restarts + u32::from(p.started_at.is_some())),
                    row: 0,
                    last_exit: earlier.and_then(|p| p.last_exit.clone()),
                    ended_at: earlier.map_or_else(Vec::new, |p| p.ended_at.clone()),
                    output: Output::new(path, spec.logs),
                }
            })
            .collect();
        let gate = Gate::new(&spec, earlier.as_ref().map(|status| &status.gate));
        let memory_kills = MemoryKills {
            limit_bytes: spec.limits.memory_bytes,
            ..earlier
                .map(|status| status.memory_kills)
                .unwrap_or_default()
        };
        Ok(Self {
            gate,
            spec,
            me,
            boot_id: proc::boot_id(),
            signals,
            listener,
            clients: Vec::new(),
            doors,
            processes,
            stop: None,
            since: now(),
            oom_kills,
            memory_kills,
            oom_look,
            changed: false,
            recorded: false,
        })
    }

    pub fn start_all(&mut self) {
        // Before any process can say something: what stands above is another start's.
        let at = now();
        for process in &mut self.processes {
            process.output.log.remark(at, BEGINS);
        }
        for index in 0..self.processes.len() {
            self.start(index);
        }
        self.publish();
    }

    /// Until everything has ended.
    pub fn run(mut self) {
        loop {
            self.wait();
            while let Some(signal) = sys::next_signal(&self.signals) {
                if signal == Signal::TERM.as_raw() || signal == Signal::INT.as_raw() {
                    self.begin_stop(self.spec.grace_ms);
                }
            }
            control::accept(&self.listener, &mut self.clients);
            self.read_output();
            let all_gone = self.reap();
            self.look_for_kills();
            self.answer();
            if self.stop.is_some() {
                if all_gone {
                    break;
                }
                self.press_on();
            } else {
                self.start_due();
                // Step by step, each told before the next.
                if self.all_run() && !self.changed {
                    self.changed = self.gate.step(&self.spec, &self.doors, self.recorded);
                }
            }
            self.publish();
        }
        self.end();
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) {
        let until = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: poll must not wake before the deadline and spin.
            let left = left + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for client in &self.clients {
            fds.push(PollFd::new(&client.stream, PollFlags::IN));
        }
        let outputs = self.processes.iter().map(|process| &process.output);
        for fd in outputs.flat_map(Output::fds).chain(self.gate.fds()) {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        let _ = poll(&mut fds, until.as_ref());
    }

    fn next_deadline(&self) -> Option<Instant> {
        match &self.stop {
            Some(stop) => {
                let now = Instant::now();
                Some(if stop.kill_at > now && stop.told_all {
                    stop.kill_at
                } else {
                    now + KILL_AGAIN
                })
            }
            None => self
                .processes
                .iter()
                .filter_map(|process| process.starts.map(|(at, _)| at))
                .chain(self.oom_look)
                .chain(self.gate.deadline().filter(|_| self.all_run()))
                .min(),
        }
    }

    fn all_run(&self) -> bool {
        self.processes.iter().all(|one| one.running.is_some())
    }

    fn start(&mut self, index: usize) {
        self.gate.reset();
        let process = &mut self.processes[index];
        let at = now();
        self.changed = true;
        self.since = at;
        if process.started_at.is_some() {
            process.restarts += 1;
        }
        process.started_at = Some(at);
        process.starts = None;
        match child::start(&self.spec, Run::Process(&process.program), &self.doors) {
            Ok(started) => {
                // It is our child and not reaped, so its entry in /proc is there.
                let identity = Identity::of(started.pid).unwrap_or(Identity {
                    pid: started.pid,
                    start: 0,
                });
                process.running = Some(Running {
                    identity,
                    since: Instant::now(),
                });
                process.output.take(started.out, started.err);
            }
            Err(error) => {
                process.end_by_itself(ExitReport {
                    code: Some(126),
                    signal: None,
                    oom: false,
                    at,
                });
                process.pause(&self.spec, &format!("cannot be started: {error}"));
            }
        }
    }

    fn start_due(&mut self) {
        for index in 0..self.processes.len() {
            let due = self.processes[index].starts;
            if due.is_some_and(|(at, _)| at <= Instant::now()) {
                self.start(index);
            }
        }
    }

    fn read_output(&mut self) {
        let mut chunk = [0_u8; CHUNK];
        for process in &mut self.processes {
            process.output.read(&mut chunk, CHUNKS_A_TURN);
        }
        self.gate.read(&mut chunk);
    }

    /// Reaps whatever has ended. True when nothing is left below this process.
    fn reap(&mut self) -> bool {
        loop {
            match sys::children() {
                Children::None => return true,
                Children::Running => return false,
                Children::Ended(ended) => self.ended(ended),
            }
        }
    }

    fn ended(&mut self, ended: Ended) {
        if self.gate.runs(ended.pid) {
            // What it leaves behind is of no use any more. Before it is reaped, see below.
            signal_group(ended.pid, Signal::KILL);
            sys::reap(ended.pid);
            self.gate.ended(ended.code, ended.signal);
            self.changed = true;
            return;
        }
        let index = self.processes.iter().position(|process| {
            let running = process.running.as_ref();
            running.is_some_and(|running| running.identity.pid == ended.pid)
        });
        let Some(index) = index else {
            sys::reap(ended.pid);
            return;
        };
        let stopping = self.stop.is_some();
        if !stopping {
            // What it leaves behind may hold its port. Safe only before it is reaped: until then
            // the group's number cannot belong to anybody else.
            signal_group(ended.pid, Signal::KILL);
        }
        sys::reap(ended.pid);
        let killed = ended.signal == Some(Signal::KILL.as_raw()) || ended.code == Some(137);
        let fresh = self.fresh_kills();
        let oom = killed && fresh > 0;
        self.others_were_killed(fresh - u64::from(oom), Some(ended.pid));
        self.changed = true;
        let process = &mut self.processes[index];
        // Its last words come before what is said about its end.
        process.output.read(&mut [0_u8; CHUNK], CHUNKS_A_TURN);
        let ran = process
            .running
            .take()
            .map(|running| running.since.elapsed());
        let exit = ExitReport {
            code: ended.code,
            signal: ended.signal,
            oom,
            at: now(),
        };
        let how = match (ended.code, ended.signal) {
            _ if oom => "was killed by the kernel: it used more memory than it may".to_owned(),
            (Some(code), _) => format!("exited with code {code}"),
            (_, Some(signal)) => format!("was ended by signal {signal}"),
            _ => "ended".to_owned(),
        };
        if stopping {
            process.last_exit = Some(exit);
            process.output.log.remark(now(), &how);
            return;
        }
        self.since = exit.at;
        process.end_by_itself(exit);
        if ran.is_some_and(|ran| ran.as_millis() >= u128::from(self.spec.backoff.reset_ms)) {
            process.row = 0;
        }
        process.pause(&self.spec, &how);
    }

    /// How many processes the kernel has killed for memory since this was last asked.
    fn fresh_kills(&mut self) -> u64 {
        let kills = self.spec.cgroup.as_ref().map_or(0, |g| g.oom_kills());
        kills.saturating_sub(std::mem::replace(&mut self.oom_kills, kills))
    }

    fn look_for_kills(&mut self) {
        if self.oom_look.is_some_and(|at| at <= Instant::now()) {
            self.oom_look = Some(Instant::now() + OOM_LOOK);
            let fresh = self.fresh_kills();
            self.others_were_killed(fresh, None);
        }
    }

    /// A worker of an app may die of memory again and again while its main process goes on.
    fn others_were_killed(&mut self, count: u64, besides: Option<i32>) {
        if count == 0 {
            return;
        }
        let group = self.spec.cgroup.as_ref().and_then(Group::name);
        let name = group.and_then(|group| kernel::last_killed(&group, besides));
        let named = name
            .as_ref()
            .map_or_else(String::new, |name| format!(" (the last one was `{name}`)"));
        self.memory_kills.count += count;
        self.memory_kills.last_at = Some(now());
        self.memory_kills.last_name = name;
        self.changed = true;
        let most = self.spec.limits.memory_bytes.unwrap_or_default() >> 20;
        let text = format!(
            "the kernel killed {count} of this instance's processes{named}: together they used more \
             than the {most} MiB of memory that it may"
        );
        for process in &mut self.processes {
            process.output.log.remark(now(), &text);
        }
    }

    fn answer(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            for request in client.requests() {
                match request {
                    Ok(request) => {
                        match request.op {
                            Op::Status => {}
                            Op::Watch => client.watches = true,
                            Op::Stop { grace_ms } => {
                                self.begin_stop(grace_ms.unwrap_or(self.spec.grace_ms));
                            }
                        }
                        client.send(&line(&self.status()));
                    }
                    Err(why) => {
                        let error = serde_json::json!({"v": VERSION, "error": why});
                        client.send(&format!("{error}\n"));
                    }
                }
            }
        }
        clients.retain(|client| !client.gone);
        clients.append(&mut self.clients);
        self.clients = clients;
    }

    fn begin_stop(&mut self, grace_ms: u64) {
        let kill_at = Instant::now() + Duration::from_millis(grace_ms);
        match &mut self.stop {
            // Asked again: it can only become sooner.
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => {
                self.stop = Some(Stop {
                    kill_at,
                    told_all: false,
                });
                self.since = now();
                self.changed = true;
                for process in &mut self.processes {
                    process.starts = None;
                    if let Some(running) = &process.running {
                        signal_group(running.identity.pid, Signal::TERM);
                    }
                }
                self.gate.stop();
            }
        }
    }

    /// While stopping: SIGTERM to those that the groups did not reach, SIGKILL when time is up.
    fn press_on(&mut self) {
        let leaders_gone = self.processes.iter().all(|p| p.running.is_none());
        let Some(stop) = &mut self.stop else { return };
        if Instant::now() >= stop.kill_at {
            if let Some(group) = &self.spec.cgroup {
                group.kill();
            }
            for pid in proc::descendants(self.me.pid) {
                crate::fences::signal(pid, Signal::KILL);
            }
        } else if leaders_gone && !stop.told_all {
            // Once: a second SIGTERM makes some servers give up on their clients.
            stop.told_all = true;
            for pid in proc::descendants(self.me.pid) {
                crate::fences::signal(pid, Signal::TERM);
            }
        }
    }

    fn status(&self) -> Status {
        let lost = |process: &Process| process.output.log.lost_total;
        Status {
            v: VERSION,
            instance: self.spec.instance.clone(),
            release: self.spec.release,
            incarnation: self.spec.incarnation,
            shim: self.me,
            boot_id: self.boot_id.clone(),
            stage: if self.stop.is_some() {
                Stage::Stopping
            } else {
                Stage::Supervising
            },
            since: self.since,
            processes: self.processes.iter().map(Process::status).collect(),
            lines_lost: self.processes.iter().map(lost).sum::<u64>() + self.gate.lines_lost(),
            memory_kills: self.memory_kills.clone(),
            gate: self.gate.status(),
        }
    }

    /// Tells everybody who wants to know, and the state file, if anything changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let status = self.status();
        self.recorded = save(&status);
        let line = line(&status);
        for client in self.clients.iter_mut().filter(|client| client.watches) {
            client.send(&line);
        }
    }

    fn end(mut self) {
        for process in &mut self.processes {
            process.output.read(&mut [0_u8; CHUNK], usize::MAX);
            process.output.finish();
        }
        self.gate.finish();
        if let Some(group) = &self.spec.cgroup {
            let _ = group.remove(Duration::from_secs(1));
        }
        let status = Status {
            stage: Stage::Stopped,
            since: now(),
            ..self.status()
        };
        save(&status);
        let line = line(&status);
        for client in self.clients.iter_mut().filter(|client| client.watches) {
            client.send(&line);
        }
        let _ = fs::remove_file(files::SOCKET);
    }
}

impl Process {
    /// It ended, and nobody told it to.
    fn end_by_itself(&mut self, exit: ExitReport) {
        let spare = (self.ended_at.len() + 1).saturating_sub(ENDS_REMEMBERED);
        self.ended_at.drain(..spare);
        self.ended_at.push(exit.at);
        self.last_exit = Some(exit);
    }

    /// Plans the next start.
    fn pause(&mut self, spec: &ShimSpec, why: &str) {
        self.row = self.row.saturating_add(1);
        let pause = Duration::from_millis(spec.backoff.pause_ms(self.row));
        let at = now();
        self.starts = Some((Instant::now() + pause, at.after(pause)));
        let next = pause.as_secs_f32();
        self.output.log.remark(
            at,
            &format!("{} {why}; starts again in {next} s", self.program.name),
        );
    }

    fn status(&self) -> ProcessStatus {
        ProcessStatus {
            name: self.program.name.clone(),
            running: self.running.as_ref().map(|running| running.identity),
            started_at: self.started_at,
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            ended_at: self.ended_at.clone(),
            starts_at: self.starts.map(|(_, at)| at),
        }
    }
}

fn line(status: &Status) -> String {
    let mut line = serde_json::to_string(status).unwrap_or_default();
    line.push('\n');
    line
}

/// By rename, so that a reader finds the old or the new. Not synced: after a loss of power the
/// processes are gone as well, and the boot id tells. Whether it was.
fn save(status: &Status) -> bool {
    let temporary = format!("{}.new", files::STATE);
    let saved: io::Result<()> = (|| {
        use std::io::Write;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(line(status).as_bytes())?;
        fs::rename(&temporary, files::STATE)
    })();
    if saved.is_err() {
        // A full disk: the socket still tells the truth, and the agent also finds processes by
        // their cgroup or environment.
        let _ = fs::remove_file(&temporary);
    }
    saved.is_ok()
}
