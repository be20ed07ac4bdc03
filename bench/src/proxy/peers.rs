//! The load balancers, as data: each with one worker on one core, in front of the same upstream, with
//! the same certificate, without an access log, and with the forwarding headers that Beanpole adds.

use super::beanpole;
use super::rows::{Generator, Kind, LARGE, Row, SMALL};
use super::{LOAD_CORE, PROXY_CORE, Stage};
use crate::process::{Running, listening, pinned};
use crate::{Failed, Setup};
use beanpole_tests::ports::{Reserved, reserve};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Something that takes requests.
pub struct Server {
    /// Where, by HTTP.
    pub http: SocketAddr,
    /// Where, by HTTPS.
    pub https: SocketAddr,
    /// Its process.
    pub running: Running,
    /// Where Beanpole takes its tables.
    pub control: Option<PathBuf>,
    /// Kept for it as long as it runs.
    _ports: [Reserved; 2],
}

/// A load balancer to measure.
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// Its executable.
    pub program: fn(&Setup) -> Result<PathBuf, String>,
    /// What makes it tell its version; nothing where it has none.
    pub version: &'static [&'static str],
    /// Why it has no part in a row.
    pub cannot: fn(&Row) -> Option<&'static str>,
    /// Starts it.
    pub start: fn(&Path, &Stage<'_>) -> Result<Server, Failed>,
}

/// The one that all others are held against.
pub const BEANPOLE: &str = "Beanpole";
/// The floor: what its framework costs alone.
pub const BARE: &str = "bare pingora";
/// Those that it is to be no worse than.
pub const RIVALS: [&str; 2] = ["nginx", "HAProxy"];

/// All of them, Beanpole first.
pub const PEERS: [Peer; 5] = [
    Peer {
        name: BEANPOLE,
        program: |setup| Ok(setup.beanpole.clone()),
        version: &["--version"],
        cannot: |_| None,
        start: beanpole::start,
    },
    Peer {
        name: RIVALS[0],
        program: |_| which("nginx"),
        version: &["-v"],
        cannot: takes_no_tables,
        start: nginx_proxy,
    },
    Peer {
        name: RIVALS[1],
        program: |_| which("haproxy"),
        version: &["-v"],
        cannot: takes_no_tables,
        start: haproxy,
    },
    Peer {
        name: "Caddy",
        program: |_| which("caddy"),
        version: &["version"],
        cannot: takes_no_tables,
        start: caddy,
    },
    Peer {
        name: BARE,
        program: |setup| {
            let built = setup.bare.clone();
            built.ok_or_else(|| "the example `bare` is not built: `./dev bench` does it".to_owned())
        },
        version: &[],
        cannot: |row| {
            let spread =
                matches!(row.kind, Kind::Load(load) if load.generator == Generator::Spread);
            (spread || row.plan.targets > 1).then_some("it has one fixed target and no table")
        },
        start: bare_pingora,
    },
];

fn takes_no_tables(row: &Row) -> Option<&'static str> {
    matches!(row.kind, Kind::Change)
        .then_some("it takes no tables: new routes are another process or a reload")
}

fn which(program: &str) -> Result<PathBuf, String> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{program} is not installed: `./dev bench` installs it"))
}

/// The hostname with that number.
pub fn host(number: usize) -> String {
    format!("h{number}.localhost")
}

fn hosts(stage: &Stage<'_>) -> impl Iterator<Item = String> {
    (0..stage.site.plan.hosts).map(host)
}

/// Starts a load balancer and waits until it listens on both ports; `arguments` are made for them.
pub fn launch(
    program: &Path,
    stage: &Stage<'_>,
    name: &str,
    arguments: impl FnOnce(SocketAddr, SocketAddr) -> Result<Vec<String>, Failed>,
) -> Result<Server, Failed> {
    let ports = [reserve(), reserve()];
    let [http, https] = [ports[0].address, ports[1].address];
    let arguments = arguments(http, https)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = stage.dir.join(format!("{name}.log"));
    let mut running = pinned(PROXY_CORE, program, &arguments, &log)?;
    for address in [http, https] {
        listening(&mut running, address).map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(2)..];
            format!("{error}; it said: {}", last.join(" / "))
        })?;
    }
    Ok(Server {
        http,
        https,
        running,
        control: None,
        _ports: ports,
    })
}

/// A complete configuration of nginx.
fn nginx_config(dir: &Path, name: &str, connections: u64, http: &str) -> String {
    let home = dir.display();
    format!(
        "daemon off; worker_processes 1; pid {home}/{name}.pid; error_log {home}/{name}.err;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{ access_log off; client_body_temp_path {home}/{name}-body; proxy_temp_path {home}/{name}-proxy;\n\
         fastcgi_temp_path {home}/{name}-f; uwsgi_temp_path {home}/{name}-u; scgi_temp_path {home}/{name}-s;\n\
         sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 600s; {http} }}\n"
    )
}

/// The upstream: nginx, that answers both bodies from memory on all addresses of `targets`.
pub fn upstream(dir: &Path, connections: u64, targets: &[SocketAddr]) -> Result<Running, Failed> {
    let files = dir.join("www");
    fs::create_dir_all(&files)?;
    // Anything that nginx drops its rights to has to read them.
    for path in [dir, &files] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    fs::write(
        files.join(LARGE.trim_start_matches('/')),
        "x".repeat(102_400),
    )?;
    let mut listens = String::new();
    for target in targets {
        let _ = write!(listens, "listen {target} backlog=4096; ");
    }
    let body = "x".repeat(1_024);
    let http = format!(
        "open_file_cache max=16 inactive=600s; open_file_cache_valid 600s;\n\
         server {{ {listens} root {files};\n\
         location = {SMALL} {{ return 200 \"{body}\"; }} location = {LARGE} {{ }} }}",
        files = files.display()
    );
    let config = dir.join("upstream.conf");
    fs::write(&config, nginx_config(dir, "upstream", connections, &http))?;
    let arguments = ["-c", &config.to_string_lossy()];
    let log = dir.join("upstream.log");
    let mut running = pinned(LOAD_CORE, &which("nginx")?, &arguments, &log)?;
    for target in [targets.first(), targets.last()].into_iter().flatten() {
        listening(&mut running, *target)?;
    }
    Ok(running)
}

/// A server of its own for each hostname. Buffers hold the large body: it would go through a file.
fn nginx_proxy(program: &Path, stage: &Stage<'_>) -> Result<Server, Failed> {
    let site = stage.site;
    launch(program, stage, "nginx", |http, https| {
        let mut text = String::from("upstream app { ");
        for target in &site.targets {
            let _ = write!(text, "server {target}; ");
        }
        let _ = write!(
            text,
            "keepalive 1024; keepalive_requests 100000000; }}\n\
             server_names_hash_max_size 65536; server_names_hash_bucket_size 128;\n\
             proxy_buffer_size 16k; proxy_buffers 16 16k;\n\
             ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
             proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;\n\
             proxy_set_header X-Request-Id $request_id;\n",
            certificate = site.identity.certificate.display(),
            key = site.identity.key.display(),
        );
        for (number, host) in hosts(stage).enumerate() {
            // Socket options belong to a port, and TLS for one hostname is all that is measured.
            let listen = if number == 0 {
                format!("listen {http} backlog=4096; listen {https} ssl http2 backlog=4096;")
            } else {
                format!("listen {http};")
            };
            let _ = writeln!(
                text,
                "server {{ {listen} server_name {host}; location / {{ proxy_pass http://app; }} }}"
            );
        }
        let config = stage.dir.join("nginx.conf");
        let all = nginx_config(stage.dir, "nginx", 2 * site.connections, &text);
        fs::write(&config, all)?;
        Ok(vec!["-c".to_owned(), config.to_string_lossy().into_owned()])
    })
}

/// Hostnames by a map, as its manual recommends for many.
fn haproxy(program: &Path, stage: &Stage<'_>) -> Result<Server, Failed> {
    let site = stage.site;
    launch(program, stage, "haproxy", |http, https| {
        let map = stage.dir.join("hosts.map");
        let lines: Vec<String> = hosts(stage).map(|host| format!("{host} app")).collect();
        fs::write(&map, lines.join("\n") + "\n")?;
        let backend = if site.plan.hosts == 1 {
            "default_backend app".to_owned()
        } else {
            let map = map.display();
            format!("use_backend %[req.hdr(host),field(1,:),lower,map_str({map})]")
        };
        let mut text = format!(
            "global\n  nbthread 1\n  maxconn {connections}\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n\
             \x20 option forwardfor\n  http-reuse always\n\
             frontend in\n  bind {http} backlog 4096\n\
             \x20 bind {https} backlog 4096 ssl crt {both} alpn h2,http/1.1\n\
             \x20 unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid\n  unique-id-header X-Request-Id\n\
             \x20 http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]\n  {backend}\n\
             backend app\n  balance roundrobin\n",
            connections = site.connections,
            both = site.identity.both.display(),
        );
        for (number, target) in site.targets.iter().enumerate() {
            let _ = writeln!(
                text,
                "  server s{number} {target} pool-max-conn 1024 pool-purge-delay 600s"
            );
        }
        let config = stage.dir.join("haproxy.cfg");
        fs::write(&config, text)?;
        let config = config.to_string_lossy().into_owned();
        Ok(vec!["-db".to_owned(), "-f".to_owned(), config])
    })
}

/// One site with all hostnames: it looks through them by halves, through sites one by one.
fn caddy(program: &Path, stage: &Stage<'_>) -> Result<Server, Failed> {
    let site = stage.site;
    launch(Path::new("/usr/bin/env"), stage, "caddy", |http, https| {
        let names: Vec<String> = hosts(stage).collect();
        let targets: Vec<String> = site.targets.iter().map(SocketAddr::to_string).collect();
        let text = format!(
            "{{\n admin off\n auto_https off\n storage file_system {home}/caddy\n\
             \x20servers {{\n  protocols h1 h2\n }}\n}}\n\
             (app) {{\n bind 127.0.0.1\n @app host {names}\n reverse_proxy @app {{\n  to {targets}\n\
             \x20 lb_policy round_robin\n  header_up X-Request-Id {{http.request.uuid}}\n\
             \x20 transport http {{\n   keepalive 10m\n   keepalive_idle_conns_per_host 1024\n   compression off\n  }}\n }}\n}}\n\
             http://:{http} {{\n import app\n}}\n\
             https://:{https} {{\n tls {certificate} {key} {{\n  protocols tls1.3\n }}\n import app\n}}\n",
            home = stage.dir.display(),
            names = names.join(" "),
            targets = targets.join(" "),
            http = http.port(),
            https = https.port(),
            certificate = site.identity.certificate.display(),
            key = site.identity.key.display(),
        );
        let config = stage.dir.join("Caddyfile");
        fs::write(&config, text)?;
        // It keeps a copy of its configuration in the user's directory, unless told of another.
        let home = format!("XDG_CONFIG_HOME={}", stage.dir.display());
        let [program, config] = [program, &config].map(|path| path.to_string_lossy().into_owned());
        let words = [
            &home,
            &program,
            "run",
            "--adapter",
            "caddyfile",
            "--config",
            &config,
        ];
        Ok(words.map(str::to_owned).to_vec())
    })
}

fn bare_pingora(program: &Path, stage: &Stage<'_>) -> Result<Server, Failed> {
    launch(program, stage, "bare", |http, https| {
        let identity = &stage.site.identity;
        Ok(vec![
            "bare".to_owned(),
            http.to_string(),
            stage.site.targets[0].to_string(),
            https.to_string(),
            identity.certificate.to_string_lossy().into_owned(),
            identity.key.to_string_lossy().into_owned(),
        ])
    })
}
