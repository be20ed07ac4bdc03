//! Beanpole's proxy, as its controller would run it: the executable, its tables over the private socket.

use super::peers::{Server, host, launch};
use super::rows::{Plan, SMALL};
use super::{Identity, PROXY_CORE, Stage};
use crate::process::pinned;
use crate::{Failed, Setup};
use beanpole_protocol::content::PoolContent;
use beanpole_protocol::proxy::{
    Algorithm, HealthCheck, HttpDetails, PoolLimits, PoolRules, Probe, ProxyReport, Route,
    RoutingTable, Target, TargetMode, TargetPool, Upstream, WeightedPool,
};
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber,
};
use beanpole_tests::wait::pause;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long it may take until it is ready.
const READY: Duration = Duration::from_secs(20);

/// Starts it and gives it the stage's table; returns when it finds all targets well.
pub fn start(program: &Path, stage: &Stage<'_>) -> Result<Server, Failed> {
    let data = stage.dir.join("beanpole");
    copy(&stage.site.identity.home, &data)?;
    let socket = stage.dir.join("beanpole.sock");
    let mut server = launch(program, stage, "beanpole", |http, https| {
        Ok(arguments(&data, &socket, http, https))
    })?;
    let end = Instant::now() + READY;
    // Its ports are open before the process that serves is there.
    while !socket.exists() {
        if Instant::now() > end {
            return Err("it opens no control socket within 20 s".into());
        }
        pause(Duration::from_millis(10));
    }
    let table = table(&stage.site.plan, &stage.site.targets, 1, 0)?;
    put_table(&socket, &serde_json::to_vec(&table)?)?;
    while !report(&socket)?.targets.iter().all(|target| target.healthy) {
        if Instant::now() > end {
            return Err("its targets are not all healthy within 20 s".into());
        }
        pause(Duration::from_millis(50));
    }
    server.control = Some(socket);
    Ok(server)
}

fn arguments(data: &Path, socket: &Path, http: SocketAddr, https: SocketAddr) -> Vec<String> {
    let words: [&str; 11] = [
        "proxy",
        "--threads",
        "1",
        "--data",
        &data.to_string_lossy(),
        "--socket",
        &socket.to_string_lossy(),
        "--http",
        &http.to_string(),
        "--https",
        &https.to_string(),
    ];
    words.map(str::to_owned).to_vec()
}

/// The certificate that it makes for itself at its first start, for all to show.
pub fn identity(setup: &Setup, dir: &Path) -> Result<Identity, Failed> {
    let home = dir.join("identity");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let arguments = arguments(&home, &dir.join("identity.sock"), any, any);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = dir.join("identity.log");
    let _running = pinned(PROXY_CORE, &setup.beanpole, &arguments, &log)?;
    let end = Instant::now() + READY;
    loop {
        if let Some((certificate, key)) = find_pair(&home) {
            let both = dir.join("both.pem");
            let pems = [fs::read(&certificate)?, fs::read(&key)?].concat();
            fs::write(&both, pems)?;
            return Ok(Identity {
                home,
                certificate,
                key,
                both,
            });
        }
        if Instant::now() > end {
            let log = log.display();
            return Err(format!("Beanpole's proxy makes no certificate: see {log}").into());
        }
        pause(Duration::from_millis(50));
    }
}

/// A certificate with its key beside it, below `dir`.
fn find_pair(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_pair(&path) {
                return Some(found);
            }
        } else if path.extension().is_some_and(|end| end == "crt") {
            let key = path.with_extension("key");
            if key.is_file() {
                return Some((path, key));
            }
        }
    }
    None
}

/// All plain files of `from`, so that it shows the same certificate.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The table of `plan`. Hostnames lead to pools in turn; `shift` moves them all that many pools on.
pub fn table(
    plan: &Plan,
    targets: &[SocketAddr],
    generation: u64,
    shift: usize,
) -> Result<RoutingTable, Failed> {
    let name = |pool: usize| format!("bench-{pool}");
    let check = HealthCheck {
        probe: Probe::Http {
            path: SMALL.to_owned(),
            statuses: vec![(200, 399)],
            details: HttpDetails::default(),
        },
        ..HealthCheck::default()
    };
    let mut pools = Vec::new();
    for (number, targets) in targets.chunks(targets.len() / plan.pools).enumerate() {
        let instances = targets.iter().zip(number * targets.len() + 1..);
        pools.push(TargetPool {
            name: name(number),
            environment: EnvironmentId::from_bits(number as u128 + 1),
            environment_name: EnvironmentName::new(name(number))?,
            application: ApplicationName::new("bench")?,
            algorithm: Algorithm::RoundRobin,
            hold: None,
            limits: PoolLimits::default(),
            content: PoolContent::default(),
            rules: PoolRules::default(),
            targets: instances
                .map(|(address, instance)| Target {
                    process: String::new(),
                    instance: InstanceId::from_bits(instance as u128),
                    incarnation: Incarnation(1),
                    release: ReleaseNumber(1),
                    address: *address,
                    mode: TargetMode::Serve,
                    tried: None,
                    upstream: Upstream::default(),
                    check: check.clone(),
                })
                .collect(),
        });
    }
    let route = |number: usize| Route {
        host: host(number),
        pools: vec![WeightedPool {
            pool: name((number + shift) % plan.pools),
            weight: 1,
        }],
        ..Route::default()
    };
    Ok(RoutingTable {
        generation: Generation(generation),
        routes: (0..plan.hosts).map(route).collect(),
        pools,
        ..RoutingTable::default()
    })
}

/// Has it take a table, as JSON; returns when that is in force and on disk.
pub fn put_table(socket: &Path, table: &[u8]) -> Result<(), Failed> {
    call(socket, "PUT", "/v1/table", table).map(drop)
}

/// What it sees.
pub fn report(socket: &Path) -> Result<ProxyReport, Failed> {
    Ok(serde_json::from_slice(&call(
        socket,
        "GET",
        "/v1/report",
        b"",
    )?)?)
}

/// One request over a connection of its own; the answer's body.
fn call(socket: &Path, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, Failed> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(READY))?;
    stream.set_write_timeout(Some(READY))?;
    let length = body.len();
    // HTTP/1.0: an answer without chunks, that ends with its connection.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: beanpole\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .ok_or("the proxy's control socket answers no HTTP")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    if head.lines().next().unwrap_or_default().contains(" 2") {
        Ok(body)
    } else {
        let body = String::from_utf8_lossy(&body);
        Err(format!("{method} {path}: {head}{body}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::proxy::rows::Plan;
    use std::collections::BTreeSet;

    #[test]
    fn a_shifted_table_moves_every_route_and_no_target() {
        let plan = Plan {
            hosts: 10,
            pools: 2,
            targets: 4,
        };
        let targets = [1, 2, 3, 4].map(|port| ([127, 0, 0, 1], port).into());
        let before = table(&plan, &targets, 1, 0).expect("a table");
        let after = table(&plan, &targets, 2, 1).expect("a table");
        assert_eq!(before.pools, after.pools);
        let instances: BTreeSet<_> = before
            .pools
            .iter()
            .flat_map(|pool| &pool.targets)
            .map(|target| target.instance.clone())
            .collect();
        assert_eq!(instances.len(), 4);
        assert!(
            before
                .routes
                .iter()
                .zip(&after.routes)
                .all(|(before, after)| before.host == after.host && before.pools != after.pools)
        );
    }
}
