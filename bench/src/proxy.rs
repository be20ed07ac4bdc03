//! Requests per second, latency and CPU per request: Beanpole's proxy beside nginx, HAProxy and a
//! bare pingora, one worker each, on one core, 1 KB answers, 64 kept-alive connections.

use crate::peers::{self, Server};
use crate::process::{self, free_port, listening, pinned};
use crate::{Failed, Figure, Setup, stats};
use beanpole_protocol::proxy::{
    Algorithm, HealthCheck, Route, RoutingTable, Target, TargetMode, TargetPool, WeightedPool,
};
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The core of the load balancers; the load generator and the upstream share the other.
const PROXY_CORE: u32 = 0;
const LOAD_CORE: u32 = 1;

struct Run {
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
}

/// Measures.
pub fn measure(setup: &Setup) -> Result<Vec<Figure>, Failed> {
    let dir = tempfile::tempdir()?;
    let upstream = peers::upstream(dir.path(), LOAD_CORE)?;
    let mut servers: Vec<(&str, Server)> = vec![
        ("beanpole", beanpole(setup, dir.path(), upstream.address)?),
        (
            "nginx",
            peers::nginx_proxy(dir.path(), PROXY_CORE, upstream.address)?,
        ),
        (
            "haproxy",
            peers::haproxy(dir.path(), PROXY_CORE, upstream.address)?,
        ),
    ];
    if let Some(bare) = &setup.bare {
        servers.push((
            "bare pingora",
            bare_pingora(bare, dir.path(), upstream.address)?,
        ));
    }
    let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    for round in 0..=setup.rounds {
        for (name, server) in &servers {
            let run = load(server, setup.seconds).map_err(|error| format!("{name}: {error}"))?;
            // The first round warms up.
            if round > 0 {
                runs.entry(name).or_default().push(run);
            }
        }
    }
    let column = |name: &str, of: fn(&Run) -> f64| -> Vec<f64> {
        runs.get(name)
            .map(|runs| runs.iter().map(of).collect())
            .unwrap_or_default()
    };
    let mut figures = Vec::new();
    for (name, server) in &servers {
        let cpu = column(name, |run| run.cpu_us);
        figures.push(Figure::new(
            "proxy",
            format!("{name}: requests"),
            "/s",
            &column(name, |r| r.requests_per_second),
        ));
        figures.push(Figure::new(
            "proxy",
            format!("{name}: p50"),
            "ms",
            &column(name, |r| r.p50_ms),
        ));
        figures.push(Figure::new(
            "proxy",
            format!("{name}: p99"),
            "ms",
            &column(name, |r| r.p99_ms),
        ));
        figures.push(Figure::new(
            "proxy",
            format!("{name}: CPU per request"),
            "us",
            &cpu,
        ));
        let memory = process::family(server.running.0.id());
        let memory: f64 = memory
            .into_iter()
            .map(|pid| process::memory_mb(pid, "Pss"))
            .sum();
        figures.push(Figure::new(
            "proxy",
            format!("{name}: memory (PSS) after the load"),
            "MB",
            &[memory],
        ));
    }
    // Ratios are taken round by round: both sides of one met the same noise.
    for (peer, bound) in [
        ("bare pingora", Some(0.95)),
        ("nginx", None),
        ("haproxy", None),
    ] {
        let ours = column("beanpole", |run| run.requests_per_second);
        let theirs = column(peer, |run| run.requests_per_second);
        if theirs.is_empty() {
            continue;
        }
        let ratios: Vec<f64> = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        let mut figure = Figure::new(
            "proxy",
            format!("beanpole / {peer}: requests"),
            "x",
            &ratios,
        );
        if let Some(bound) = bound {
            figure.target = Some(format!("at least {bound} x"));
            figure.reached = Some(stats::median(&ratios) >= bound);
        }
        figures.push(figure);
        // Less noisy: it does not ask how much the load generator could do.
        let ours = column("beanpole", |run| run.cpu_us);
        let theirs = column(peer, |run| run.cpu_us);
        let ratios: Vec<f64> = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| theirs / ours)
            .collect();
        figures.push(Figure::new(
            "proxy",
            format!("{peer} / beanpole: CPU per request"),
            "x",
            &ratios,
        ));
    }
    Ok(figures)
}

fn beanpole(setup: &Setup, dir: &Path, to: SocketAddr) -> Result<Server, Failed> {
    let port = free_port()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let data = dir.join("beanpole");
    std::fs::create_dir_all(&data)?;
    let socket = data.join("proxy.sock");
    let running = pinned(
        PROXY_CORE,
        &setup.beanpole,
        &[
            "proxy",
            "--data",
            &data.to_string_lossy(),
            "--socket",
            &socket.to_string_lossy(),
            "--http",
            &address.to_string(),
            "--https",
            "127.0.0.1:0",
        ],
        &dir.join("beanpole.log"),
    )?;
    listening(address)?;
    let table = RoutingTable {
        generation: Generation(1),
        routes: vec![Route {
            host: address.ip().to_string(),
            pools: vec![WeightedPool {
                pool: "app".to_owned(),
                weight: 1,
            }],
            ..Route::default()
        }],
        pools: vec![TargetPool {
            name: "app".to_owned(),
            environment: EnvironmentId::from_bits(1),
            environment_name: EnvironmentName::new("bench")?,
            application: ApplicationName::new("bench")?,
            algorithm: Algorithm::RoundRobin,
            hold: None,
            targets: vec![Target {
                instance: InstanceId::from_bits(1),
                incarnation: Incarnation(1),
                release: ReleaseNumber(1),
                address: to,
                mode: TargetMode::Serve,
                tried: None,
                check: HealthCheck::default(),
            }],
        }],
    };
    put(&socket, "/v1/table", &serde_json::to_vec(&table)?)?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = beanpole_tests::http::get(address, &address.ip().to_string(), "/");
        if answer.is_ok_and(|answer| answer.status == 200) {
            return Ok(Server { address, running });
        }
        if Instant::now() > end {
            return Err("Beanpole's proxy does not answer 200 within 10 s".into());
        }
        beanpole_tests::wait::pause(Duration::from_millis(50));
    }
}

fn put(socket: &Path, path: &str, body: &[u8]) -> Result<(), Failed> {
    let mut stream = UnixStream::connect(socket)?;
    let length = body.len();
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nHost: beanpole\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    if status.contains(" 2") {
        Ok(())
    } else {
        Err(format!("{path}: {answer}").into())
    }
}

fn bare_pingora(program: &Path, dir: &Path, to: SocketAddr) -> Result<Server, Failed> {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let (listen, upstream) = (address.to_string(), to.to_string());
    let arguments = ["bare", &listen, &upstream];
    let running = pinned(PROXY_CORE, program, &arguments, &dir.join("bare.log"))?;
    listening(address)?;
    Ok(Server { address, running })
}

fn load(server: &Server, seconds: u32) -> Result<Run, Failed> {
    let pid = server.running.0.id();
    let before = process::cpu_us(pid);
    let output = Command::new("taskset")
        .args([
            "-c",
            &LOAD_CORE.to_string(),
            "wrk",
            "-t1",
            "-c64",
            "--latency",
        ])
        .arg(format!("-d{seconds}s"))
        .arg(format!("http://{}/", server.address))
        .output()?;
    let used = process::cpu_us(pid) - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    let missing = || {
        format!(
            "wrk printed no figures: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    };
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("requests failed: {text}").into());
    }
    let requests = text
        .lines()
        .find(|line| line.contains(" requests in "))
        .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
        .ok_or_else(missing)?;
    Ok(Run {
        requests_per_second: field("Requests/sec:")
            .and_then(|f| f.parse().ok())
            .ok_or_else(missing)?,
        p50_ms: field("50%").and_then(|f| millis(&f)).ok_or_else(missing)?,
        p99_ms: field("99%").and_then(|f| millis(&f)).ok_or_else(missing)?,
        cpu_us: used / requests.max(1.0),
    })
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

#[cfg(test)]
mod tests {
    #[test]
    fn latencies_are_read_in_all_units_of_wrk() {
        assert_eq!(super::millis("1.50ms"), Some(1.5));
        assert_eq!(super::millis("2.00s"), Some(2_000.0));
        assert_eq!(super::millis("x"), None);
    }
}
