//! The load balancers to compare with, each with one worker on one core, in front of the same
//! upstream.

use crate::process::{Running, free_port, listening, pinned};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Something that takes requests.
pub struct Server {
    /// Where.
    pub address: SocketAddr,
    /// Its process.
    pub running: Running,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn which(program: &str) -> Result<PathBuf, String> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{program} is not installed: `./dev bench` installs it"))
}

fn nginx(
    dir: &Path,
    name: &str,
    core: u32,
    http: &str,
    port: u16,
) -> Result<Server, crate::Failed> {
    let config = dir.join(format!("{name}.conf"));
    let home = dir.display();
    fs::write(
        &config,
        format!(
            "daemon off; worker_processes 1; pid {home}/{name}.pid; error_log {home}/{name}.err;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {home}/{name}-body; proxy_temp_path {home}/{name}-proxy;\n\
             fastcgi_temp_path {home}/{name}-f; uwsgi_temp_path {home}/{name}-u; scgi_temp_path {home}/{name}-s;\n\
             keepalive_requests 100000000; {http} }}\n"
        ),
    )?;
    let path = config.to_string_lossy().into_owned();
    let log = dir.join(format!("{name}.log"));
    let running = pinned(core, &which("nginx")?, &["-c", &path], &log)?;
    listening(loopback(port))?;
    Ok(Server {
        address: loopback(port),
        running,
    })
}

/// An upstream that answers 1,024 bytes from memory.
pub fn upstream(dir: &Path, core: u32) -> Result<Server, crate::Failed> {
    let port = free_port()?;
    let body = "x".repeat(1_024);
    let http = format!(
        "server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 \"{body}\"; }} }}"
    );
    nginx(dir, "upstream", core, &http, port)
}

/// nginx as the load balancer.
pub fn nginx_proxy(dir: &Path, core: u32, to: SocketAddr) -> Result<Server, crate::Failed> {
    let port = free_port()?;
    let http = format!(
        "upstream app {{ server {to}; keepalive 256; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id; }} }}"
    );
    nginx(dir, "nginx", core, &http, port)
}

/// HAProxy as the load balancer.
pub fn haproxy(dir: &Path, core: u32, to: SocketAddr) -> Result<Server, crate::Failed> {
    let port = free_port()?;
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n  nbthread 1\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  option forwardfor\n  http-reuse always\n\
             frontend in\n  bind 127.0.0.1:{port} backlog 4096\n  unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid\n  unique-id-header X-Request-Id\n  http-request set-header X-Forwarded-Proto http\n  default_backend app\n\
             backend app\n  server a {to} pool-max-conn 256\n"
        ),
    )?;
    let path = config.to_string_lossy().into_owned();
    let running = pinned(
        core,
        &which("haproxy")?,
        &["-db", "-f", &path],
        &dir.join("haproxy.log"),
    )?;
    listening(loopback(port))?;
    Ok(Server {
        address: loopback(port),
        running,
    })
}
