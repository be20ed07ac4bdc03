//! What the daemons use when nothing happens, and how soon the demo serves.

use crate::process::{self, Running};
use crate::{Failed, Figure, Setup};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemons are watched.
const WATCHED: Duration = Duration::from_secs(20);

/// Measures.
pub fn measure(setup: &Setup) -> Result<Vec<Figure>, Failed> {
    let mut figures = idle(setup)?;
    let mut seconds = Vec::new();
    for _ in 0..3 {
        seconds.push(demo(setup)?);
    }
    figures.push(
        Figure::new("idle", "demo: from start to the first 200", "s", &seconds).at_most(10.0),
    );
    Ok(figures)
}

fn idle(setup: &Setup) -> Result<Vec<Figure>, Failed> {
    let dir = tempfile::tempdir()?;
    let log = fs::File::create(dir.path().join("up.log"))?;
    let data = dir.path().join("data");
    let child = Command::new(&setup.beanpole)
        .args([
            "up",
            "--api",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--https",
            "127.0.0.1:0",
        ])
        .arg("--data")
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let up = Up(Running(child));
    let pid = up.0.0.id();
    let found = || {
        let daemons: Vec<(String, u32)> = process::family(pid)
            .into_iter()
            .filter_map(|pid| Some((role(pid)?, pid)))
            .collect();
        (daemons.len() == 4).then_some(daemons)
    };
    let end = Instant::now() + Duration::from_secs(20);
    let daemons = loop {
        if let Some(daemons) = found() {
            break daemons;
        }
        if Instant::now() > end {
            return Err("controller, agent and proxy are not all there after 20 s".into());
        }
        beanpole_tests::wait::pause(Duration::from_millis(100));
    };
    // Starting up is not idling.
    beanpole_tests::wait::pause(Duration::from_secs(5));
    let before: Vec<f64> = daemons
        .iter()
        .map(|(_, pid)| process::own_cpu_us(*pid))
        .collect();
    beanpole_tests::wait::pause(WATCHED);
    let mut figures = Vec::new();
    for ((role, pid), before) in daemons.iter().zip(before) {
        let used = process::own_cpu_us(*pid) - before;
        let share = used / (WATCHED.as_secs_f64() * 1e6) * 100.0;
        let resident = process::memory_mb(*pid, "Rss");
        let own = process::memory_mb(*pid, "Pss");
        let memory = Figure::new(
            "idle",
            format!("{role}: resident memory"),
            "MB",
            &[resident],
        );
        figures.push(match role.as_str() {
            "controller" => memory.at_most(60.0),
            "agent" => memory.at_most(20.0),
            _ => memory,
        });
        figures.push(Figure::new(
            "idle",
            format!("{role}: proportional memory"),
            "MB",
            &[own],
        ));
        figures.push(Figure::new(
            "idle",
            format!("{role}: CPU of one core"),
            "%",
            &[share],
        ));
    }
    Ok(figures)
}

/// `beanpole up`, told to stop when dropped so that its daemons end with it.
struct Up(Running);

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && matches!(self.0.0.try_wait(), Ok(None)) {
            beanpole_tests::wait::pause(Duration::from_millis(50));
        }
    }
}

/// `controller`, `agent`, `proxy` or what serves for that, by the first argument.
fn role(pid: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let word = line.split(|byte| *byte == 0).nth(1)?;
    let word = String::from_utf8_lossy(word).into_owned();
    ["controller", "agent", "proxy", "proxy-process"]
        .contains(&word.as_str())
        .then_some(word)
}

/// Seconds from starting `beanpole demo` to the line that says it serves.
fn demo(setup: &Setup) -> Result<f64, Failed> {
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    let mut child = Command::new(&setup.beanpole)
        .args(["demo", "--exit"])
        .arg("--data")
        .arg(dir.path().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let mut first = None;
    for line in BufReader::new(output).lines() {
        if line?.contains("First answer") && first.is_none() {
            first = Some(started.elapsed().as_secs_f64());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("beanpole demo ended with {status}").into());
    }
    first.ok_or_else(|| "beanpole demo did not say when it answered first".into())
}
