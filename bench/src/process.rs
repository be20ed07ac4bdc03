//! Child processes that end with the benchmark, and what they use.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process of a benchmark, killed when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `program` with `arguments` on core `core`; its output goes to `log`.
pub fn pinned(
    core: u32,
    program: &Path,
    arguments: &[&str],
    log: &Path,
) -> std::io::Result<Running> {
    let log = fs::File::create(log)?;
    let child = Command::new("taskset")
        .args(["-c", &core.to_string()])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Running(child))
}

/// A port that was free a moment ago.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Waits until somebody listens on `address`.
pub fn listening(address: SocketAddr) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
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

/// Memory of one process, in MB: what a field of `/proc/PID/smaps_rollup` says (`Rss`, `Pss`).
pub fn memory_mb(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{field}:")));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1_024.0 / 1e6
}
