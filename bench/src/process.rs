//! Child processes that end with the benchmark, and what they use.

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process of a benchmark, killed with its descendants when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's worker outlives a master that is killed. One that has ended has no family to look for:
        // its number may be another's by now.
        if matches!(self.0.try_wait(), Ok(None)) {
            for member in family(self.0.id()) {
                if let Some(pid) = Pid::from_raw(member as i32) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        let _ = self.0.wait();
    }
}

/// `program`, to run on core `core`.
pub fn on_core(core: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Starts `program` with `arguments` on core `core`; its output goes to `log`.
pub fn pinned(
    core: u32,
    program: &Path,
    arguments: &[&str],
    log: &Path,
) -> std::io::Result<Running> {
    let log = fs::File::create(log)?;
    let child = on_core(core, program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Running(child))
}

/// Waits until somebody listens on `address`, which `running` is to do.
pub fn listening(running: &mut Running, address: SocketAddr) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        if let Ok(Some(status)) = running.0.try_wait() {
            return Err(format!("it ended with {status}"));
        }
        if Instant::now() > end {
            return Err(format!("nobody listens on {address} after 20 s"));
        }
        beanpole_tests::wait::pause(Duration::from_millis(20));
    }
    Ok(())
}

/// `pid` and all its descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    family
}

/// CPU time used so far by `pid` and its descendants, in microseconds (`/proc/PID/stat`, fields 14
/// and 15, in ticks of 10 ms).
pub fn cpu_us(pid: u32) -> f64 {
    family(pid).into_iter().map(own_cpu_us).sum()
}

/// The same for one process alone.
pub fn own_cpu_us(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) * 10_000.0
}

/// What a core has done since the system started, in microseconds.
#[derive(Clone, Copy, Default)]
pub struct CoreTime {
    /// Work of programs.
    pub programs: f64,
    /// All but waiting for something to do; on a virtual machine also what its host took.
    pub busy: f64,
}

impl CoreTime {
    /// By now, of core `core` (`/proc/stat`, in ticks of 10 ms; see proc(5)).
    pub fn now(core: u32) -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default(), core)
    }

    fn read(stat: &str, core: u32) -> Self {
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name));
        let ticks: Vec<f64> = line
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|tick| tick.parse().ok())
            .collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
            return Self::default();
        };
        let programs = user + nice + system;
        Self {
            programs: programs * 10_000.0,
            busy: (programs + irq + softirq + steal) * 10_000.0,
        }
    }
}

/// Memory of `pid` and its descendants, in MB; what they share is counted once.
pub fn family_memory_mb(pid: u32) -> f64 {
    let family = family(pid).into_iter();
    family.map(|pid| memory_mb(pid, "Pss")).sum()
}

/// Memory of one process, in MB: what a field of `/proc/PID/smaps_rollup` says (`Rss`, `Pss`).
pub fn memory_mb(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{field}:")));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1_024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::CoreTime;

    #[test]
    fn a_cores_time_is_told_from_the_others() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 50 4 5 6 0 0\ncpu1 10 0 0 1 1 0 0 0 0 0\n";
        let core = CoreTime::read(stat, 0);
        assert!((core.programs - 60_000.0).abs() < 1.0);
        assert!((core.busy - 210_000.0).abs() < 1.0);
    }
}
