//! One run of a load generator against one load balancer, and what it cost.

use super::knock::Tally;
use super::peers::{Server, host};
use super::rows::{CLIENTS, Generator, H2_CONNECTIONS, Load, Plan};
use super::{LOAD_CORE, Measure, PROXY_CORE, Run};
use crate::Failed;
use crate::process::{self, CoreTime, on_core};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What a load generator says.
pub struct Served {
    requests: f64,
    /// Requests per second.
    pub rate: f64,
    p50_ms: f64,
    /// The 99th percentile of the latency, in milliseconds.
    pub p99_ms: f64,
    resumed: Option<f64>,
}

/// One run.
pub fn run(
    load: &Load,
    server: &Server,
    plan: &Plan,
    seconds: u32,
    dir: &Path,
) -> Result<Run, Failed> {
    let window = Window::open(server.running.0.id());
    let served = serve(load, server, plan, seconds, dir)?;
    Ok(window.close(&served))
}

/// Only the load.
pub fn serve(
    load: &Load,
    server: &Server,
    plan: &Plan,
    seconds: u32,
    dir: &Path,
) -> Result<Served, Failed> {
    let address = if load.tls { server.https } else { server.http };
    match load.generator {
        Generator::Kept => wrk(load, address, seconds, None),
        Generator::Spread => wrk(load, address, seconds, Some((dir, plan.hosts))),
        Generator::Http2 => h2load(load, address, seconds, dir),
        Generator::New { resume } => knock(load, address, seconds, resume),
    }
}

/// What the processes and the cores use from one moment to another.
pub struct Window {
    pid: u32,
    opened: Instant,
    used_us: f64,
    proxy: CoreTime,
    load: CoreTime,
}

impl Window {
    /// Begins, for the load balancer `pid`.
    pub fn open(pid: u32) -> Self {
        Self {
            pid,
            opened: Instant::now(),
            used_us: process::cpu_us(pid),
            proxy: CoreTime::now(PROXY_CORE),
            load: CoreTime::now(LOAD_CORE),
        }
    }

    /// Ends.
    pub fn close(self, served: &Served) -> Run {
        let lasted_us = self.opened.elapsed().as_secs_f64() * 1e6;
        let used_us = process::cpu_us(self.pid) - self.used_us;
        let proxy = CoreTime::now(PROXY_CORE);
        let programs_us = proxy.programs - self.proxy.programs;
        let core_us = proxy.busy - self.proxy.busy;
        let load_us = CoreTime::now(LOAD_CORE).busy - self.load.busy;
        let mut run = Run::from([
            (Measure::RequestsPerSecond, served.rate),
            (Measure::P50Ms, served.p50_ms),
            (Measure::P99Ms, served.p99_ms),
            (Measure::CpuUsPerRequest, used_us / served.requests.max(1.0)),
            (Measure::MemoryMb, process::family_memory_mb(self.pid)),
            (Measure::ProxyBusy, used_us / lasted_us),
            (Measure::CoreBusy, (core_us / lasted_us).min(1.0)),
            (
                Measure::Disturbed,
                ((programs_us - used_us) / lasted_us).max(0.0),
            ),
            (Measure::LoadBusy, (load_us / lasted_us).min(1.0)),
        ]);
        if let Some(resumed) = served.resumed {
            run.insert(Measure::Resumed, resumed);
        }
        run
    }
}

/// What `command` printed, if it went well.
fn output_of(command: &mut Command) -> Result<String, Failed> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last: Vec<_> = errors.lines().rev().take(2).collect();
    Err(format!(
        "{} ended with {}: {}",
        command.get_program().display(),
        output.status,
        last.join(" / ")
    )
    .into())
}

fn scheme(load: &Load) -> &'static str {
    if load.tls { "https" } else { "http" }
}

/// Asks for the hostnames in an order that visits all of them, with neighbours far apart.
const SPREAD: &str = r#"
local requests, count, at = {}, 0, 0
function init(args)
  count = tonumber(args[1])
  for number = 0, count - 1 do
    wrk.headers["Host"] = "h" .. number .. ".localhost"
    requests[number] = wrk.format()
  end
end
function request()
  at = (at + 7919) % count
  return requests[at]
end
"#;

fn wrk(
    load: &Load,
    address: SocketAddr,
    seconds: u32,
    spread: Option<(&Path, usize)>,
) -> Result<Served, Failed> {
    let mut command = on_core(LOAD_CORE, "wrk");
    command
        // A slow answer is a figure, not an error.
        .args(["-t1", "--latency", "--timeout", "30s"])
        .arg(format!("-c{CLIENTS}"))
        .arg(format!("-d{seconds}s"));
    if let Some((dir, _)) = spread {
        let script = dir.join("spread.lua");
        fs::write(&script, SPREAD)?;
        command.arg("-s").arg(script);
    } else {
        command.arg("-H").arg(format!("Host: {}", host(0)));
    }
    command.arg(format!("{}://{address}{}", scheme(load), load.path));
    if let Some((_, hosts)) = spread {
        command.arg("--").arg(hosts.to_string());
    }
    read_wrk(&output_of(&mut command)?)
}

fn read_wrk(text: &str) -> Result<Served, Failed> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        let line = text
            .lines()
            .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        return Err(format!("requests failed: {}", line.unwrap_or_default().trim()).into());
    }
    let field = |name: &str| {
        let mut lines = text.lines().map(str::trim_start);
        let line = lines.find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)
    };
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let read = || {
        Some(Served {
            requests: requests?.split_whitespace().next()?.parse().ok()?,
            rate: field("Requests/sec:")?.parse().ok()?,
            p50_ms: millis(field("50%")?)?,
            p99_ms: millis(field("99%")?)?,
            resumed: None,
        })
    };
    read().ok_or_else(|| format!("wrk printed no figures: {text}").into())
}

/// wrk's `1.23ms`, `456.00us`, `1.20s`.
fn millis(text: &str) -> Option<f64> {
    let (number, scale) = if let Some(number) = text.strip_suffix("us") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1_000.0)
    };
    number.parse::<f64>().ok().map(|number| number * scale)
}

fn h2load(load: &Load, address: SocketAddr, seconds: u32, dir: &Path) -> Result<Served, Failed> {
    let log = dir.join("h2load.log");
    let _ = fs::remove_file(&log);
    let mut command = on_core(LOAD_CORE, "h2load");
    command
        .args(["-t1", "--npn-list=h2"])
        .arg(format!("-c{H2_CONNECTIONS}"))
        .arg(format!("-m{}", CLIENTS / H2_CONNECTIONS))
        .arg(format!("-D{seconds}"))
        .arg(format!("--connect-to={address}"))
        .arg("--log-file")
        .arg(&log)
        .arg(format!(
            "{}://{}:{}{}",
            scheme(load),
            host(0),
            address.port(),
            load.path
        ));
    let text = output_of(&mut command)?;
    if !text.contains("Application protocol: h2") {
        return Err("the server does not speak HTTP/2".into());
    }
    read_h2load(&fs::read_to_string(&log)?, seconds)
}

/// h2load's log: when a request began (µs since 1970), its status (-1: none), how long it took (µs).
fn read_h2load(log: &str, seconds: u32) -> Result<Served, Failed> {
    let mut latencies = Vec::new();
    let mut failed = 0;
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        match (fields.next(), fields.next().map(str::parse::<u64>)) {
            (Some("200"), Some(Ok(took))) => latencies.push(took),
            _ => failed += 1,
        }
    }
    // Those under way at the end are cut off.
    if failed > CLIENTS || latencies.is_empty() {
        return Err(format!("{failed} requests failed, {} did not", latencies.len()).into());
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize] as f64 / 1_000.0;
    Ok(Served {
        requests: latencies.len() as f64,
        rate: latencies.len() as f64 / f64::from(seconds),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        resumed: None,
    })
}

fn knock(load: &Load, address: SocketAddr, seconds: u32, resume: bool) -> Result<Served, Failed> {
    let mut command = knocker(address, load.tls, load.path)?;
    command.arg("--seconds").arg(seconds.to_string());
    if resume {
        command.arg("--resume");
    }
    let tally: Tally = serde_json::from_str(&output_of(&mut command)?)?;
    Ok(Served {
        requests: tally.requests as f64,
        rate: tally.requests as f64 / tally.seconds,
        p50_ms: tally.p50_ms,
        p99_ms: tally.p99_ms,
        resumed: load.tls.then_some(tally.resumed),
    })
}

/// This program as a client (see `knock`), without its task.
pub fn knocker(address: SocketAddr, tls: bool, path: &str) -> Result<Command, Failed> {
    let mut command = on_core(LOAD_CORE, std::env::current_exe()?);
    command
        .args(["knock", &address.to_string()])
        .args(["--host", &host(0), "--path", path]);
    if tls {
        command.arg("--tls");
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_read_in_all_units_of_wrk() {
        assert_eq!(millis("1.50ms"), Some(1.5));
        assert_eq!(millis("2.00s"), Some(2_000.0));
        assert_eq!(millis("x"), None);
    }

    #[test]
    fn the_figures_of_wrk_are_found() {
        let text = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n  \
            Latency Distribution\n     50%    1.20ms\n     75%    2.00ms\n     99%  900.00us\n  \
            9035 requests in 1.01s, 10.00MB read\nRequests/sec:   8945.10\nTransfer/sec:     9.90MB\n";
        let served = read_wrk(text).expect("all are there");
        assert!((served.requests - 9_035.0).abs() < 0.5);
        assert!((served.rate - 8_945.1).abs() < 0.01);
        assert!((served.p50_ms - 1.2).abs() < 1e-9);
        assert!((served.p99_ms - 0.9).abs() < 1e-9);
        let failed = format!("{text}  Non-2xx or 3xx responses: 7\n");
        assert!(read_wrk(&failed).is_err());
    }

    #[test]
    fn a_log_of_h2load_gives_rate_and_quantiles() {
        let mut log: Vec<String> = (1..=100).map(|ms| format!("1\t200\t{ms}000")).collect();
        log.push("1\t-1\t5".to_owned());
        let served = read_h2load(&log.join("\n"), 2).expect("one cut off is none failed");
        assert!((served.rate - 50.0).abs() < 1e-9);
        assert!((served.p50_ms - 51.0).abs() < 1e-9);
        assert!(read_h2load(&"1\t503\t5\n".repeat(65), 1).is_err());
    }
}
