//! What kind of machine this is, read from `/proc` and the kernel: nothing that needs the C
//! library's name service, so that a statically linked agent tells the same.

use crate::fences::Fences;
use crate::uninstall::Installation;
use beanpole_protocol::agent::{HostFacts, INSTANCE_PORTS};
use procfs::Current;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Facts younger than this are told again as they are.
const FRESH: Duration = Duration::from_secs(5);
/// How long Docker's answer holds.
const DOCKER_FRESH: Duration = Duration::from_mins(1);
/// How long Docker may take to answer.
const DOCKER_WAIT: Duration = Duration::from_secs(1);
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// The facts of this machine, cached.
pub struct Facts {
    data: PathBuf,
    fences: Fences,
    installation: Installation,
    cached: Mutex<Option<(Instant, HostFacts)>>,
    docker: tokio::sync::Mutex<Option<(Instant, Option<String>)>>,
}

impl Facts {
    /// Facts about the machine and the disk that holds `data`.
    pub fn new(data: &Path, fences: Fences, installation: Installation) -> Self {
        Self {
            data: data.to_owned(),
            fences,
            installation,
            cached: Mutex::default(),
            docker: tokio::sync::Mutex::default(),
        }
    }

    /// The facts, at most a few seconds old.
    pub async fn get(&self) -> HostFacts {
        let cached = self
            .cached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((at, facts)) = cached
            && at.elapsed() < FRESH
        {
            return facts;
        }
        let docker = self.docker().await;
        let facts = self.read(docker);
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), facts.clone()));
        facts
    }

    async fn docker(&self) -> Option<String> {
        let mut known = self.docker.lock().await;
        if let Some((at, version)) = &*known
            && at.elapsed() < DOCKER_FRESH
        {
            return version.clone();
        }
        let version = tokio::time::timeout(DOCKER_WAIT, ask_docker(Path::new(DOCKER_SOCKET)))
            .await
            .ok()
            .flatten();
        *known = Some((Instant::now(), version.clone()));
        version
    }

    fn read(&self, docker: Option<String>) -> HostFacts {
        let uname = rustix::system::uname();
        let memory = procfs::Meminfo::current().ok();
        let load = procfs::LoadAverage::current().ok();
        let disk = rustix::fs::statvfs(&self.data).ok();
        let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
            disk.as_ref()
                .map_or(0, |d| blocks(d).saturating_mul(d.f_frsize))
        };
        HostFacts {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            os: os_name(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()),
            kernel: uname.release().to_string_lossy().into_owned(),
            arch: uname.machine().to_string_lossy().into_owned(),
            boot_id: boot_id(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_total_bytes: memory.as_ref().map_or(0, |m| m.mem_total),
            memory_available_bytes: memory
                .as_ref()
                .map_or(0, |m| m.mem_available.unwrap_or(m.mem_free)),
            disk_total_bytes: bytes(|d| d.f_blocks),
            disk_available_bytes: bytes(|d| d.f_bavail),
            load_1m_hundredths: load.map_or(0, |l| (l.one * 100.0).round() as u32),
            docker,
            systemd: Path::new("/run/systemd/system").is_dir(),
            started_at_boot_by: self.installation.started_at_boot_by().map(str::to_owned),
            root: rustix::process::geteuid().is_root(),
            fences: self.fences.report(),
            listening: listening(),
            ports_by_process: true,
        }
    }
}

/// Ports for instances that some process listens on, an instance's own ones included.
fn listening() -> Vec<u16> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let mut ports: Vec<u16> = tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == procfs::net::TcpState::Listen)
        .map(|entry| entry.local_address.port())
        .filter(|port| INSTANCE_PORTS.contains(port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The kernel's id of this boot.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// `PRETTY_NAME` of `os-release`, else `NAME`.
fn os_name(text: &str) -> String {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    field("PRETTY_NAME")
        .or_else(|| field("NAME"))
        .unwrap_or_else(|| "Linux".to_owned())
}

#[derive(Deserialize)]
struct DockerVersion {
    #[serde(rename = "Version")]
    version: String,
}

/// One question to Docker's socket. Anything but an answer means that there is no Docker.
async fn ask_docker(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    stream
        .write_all(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
        .await
        .ok()?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).await.ok()?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    if !head.lines().next()?.contains(" 200") {
        return None;
    }
    let object = body.get(body.find('{')?..=body.rfind('}')?)?;
    serde_json::from_str::<DockerVersion>(object)
        .ok()
        .map(|found| found.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_has_facts() {
        let facts = Facts::new(Path::new("/"), Fences::none(), Installation::none())
            .get()
            .await;
        assert!(facts.cpus > 0);
        assert!(facts.memory_total_bytes > facts.memory_available_bytes);
        assert!(facts.disk_total_bytes > 0);
        assert_eq!(facts.boot_id.len(), 36);
        assert_eq!(facts.arch, std::env::consts::ARCH);
    }

    #[test]
    fn the_pretty_name_wins() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_name(text), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(os_name(""), "Linux");
    }

    #[tokio::test]
    async fn docker_is_whoever_answers_on_its_socket() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("docker.sock");
        assert_eq!(ask_docker(&path).await, None);
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await.expect("request");
            stream
                .write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"Version\":\"27.1\"}\n")
                .await
                .expect("answer");
        });
        assert_eq!(ask_docker(&path).await.as_deref(), Some("27.1"));
        server.await.expect("server");
    }
}
