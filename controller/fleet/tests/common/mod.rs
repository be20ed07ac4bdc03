//! A real sshd on loopback and a stand-in for the agent, for the tests of this crate.
#![allow(dead_code, missing_docs, reason = "each test file uses a part of it")]

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use beanpole_daemon::{clock, files, http::problem_response, socket};
use beanpole_fleet::BundleSource;
use beanpole_fleet::ssh::{ControllerKey, Credential, HostKey, Target};
use beanpole_protocol::agent::{
    BlobStatus, Claim, FOREIGN_CONTROLLER, HostFacts, HostOrders, HostReport, Owner, ReleaseKey,
    ReleasePhase, ReleaseReport, Uninstalled, UpgradeOrder,
};
use beanpole_protocol::api::SshAddress;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{Digest, EnvironmentId, Generation, ReleaseNumber, Timestamp};
use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a real sshd can be run here; says so loudly if not.
pub fn sshd_available() -> bool {
    let root = rustix::process::geteuid().is_root();
    let there = Path::new("/usr/sbin/sshd").exists();
    if !root || !there {
        #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
        {
            eprintln!(
                "SKIPPED: this test needs root and /usr/sbin/sshd (root: {root}, sshd: {there})"
            );
        }
    }
    root && there
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn keygen(path: &Path, kind: &str, passphrase: &str) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "test", "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen runs");
    assert!(status.success());
}

/// What `ssh-keygen -l` prints as the fingerprint.
pub fn fingerprint(path: &Path) -> String {
    let output = Command::new("ssh-keygen")
        .args(["-l", "-f"])
        .arg(path)
        .output()
        .expect("ssh-keygen runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace()
        .nth(1)
        .expect("fingerprint")
        .to_owned()
}

/// An sshd that lets `authorized` in as root.
pub struct Sshd {
    pub directory: tempfile::TempDir,
    pub port: u16,
    pub client: ControllerKey,
    child: Child,
    authorized_keys: String,
    more_host_keys: Vec<String>,
}

impl Sshd {
    pub fn start(host_key_kind: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let client = ControllerKey::load_or_create(&directory.path().join("client")).expect("key");
        let authorized = directory.path().join("authorized_keys");
        std::fs::write(&authorized, format!("{}\n", client.public_line())).expect("write");
        let authorized = authorized.display().to_string();
        keygen(&directory.path().join("host_key"), host_key_kind, "");
        Self::run(directory, client, authorized)
    }

    /// Lets root and the user `beanpole` in by their own files.
    pub fn start_for_users() -> Self {
        let mut sshd = Self::start("ed25519");
        sshd.authorized_keys = format!(
            "{} .ssh/authorized_keys",
            sshd.directory.path().join("authorized_keys").display()
        );
        sshd.restart();
        sshd
    }

    fn run(directory: tempfile::TempDir, client: ControllerKey, authorized_keys: String) -> Self {
        std::fs::create_dir_all("/run/sshd").expect("privilege separation directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .expect("bind")
            .local_addr()
            .expect("address")
            .port();
        let child = Self::spawn(&directory, port, &authorized_keys, &[]);
        Self {
            directory,
            port,
            client,
            child,
            authorized_keys,
            more_host_keys: Vec::new(),
        }
    }

    fn spawn(
        directory: &tempfile::TempDir,
        port: u16,
        authorized_keys: &str,
        more_host_keys: &[String],
    ) -> Child {
        let root = directory.path();
        let more: String = more_host_keys.iter().fold(String::new(), |all, name| {
            all + &format!("HostKey {}/{name}\n", root.display())
        });
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {root}/host_key\nPidFile none\n\
             AuthorizedKeysFile {authorized_keys}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             MaxStartups 200\nMaxSessions 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\n{more}",
            root = root.display()
        );
        std::fs::write(root.join("sshd_config"), config).expect("write");
        let log = File::create(root.join("sshd.log")).expect("log");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(root.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd runs");
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    pub fn host_key_fingerprint(&self) -> String {
        fingerprint(&self.directory.path().join("host_key.pub"))
    }

    pub fn address(&self) -> SshAddress {
        SshAddress {
            user: "root".to_owned(),
            address: "127.0.0.1".to_owned(),
            port: self.port,
        }
    }

    pub fn target(&self) -> Target {
        self.target_with(self.client.credential())
    }

    pub fn target_with(&self, credential: Credential) -> Target {
        Target {
            ssh: self.address(),
            host_key: HostKey::pinned(self.host_key_fingerprint()),
            credential,
            jump: None,
        }
    }

    pub fn authorize(&self, line: &str) {
        let path = self.directory.path().join("authorized_keys");
        let mut text = std::fs::read_to_string(&path).expect("read");
        text.push_str(line.trim());
        text.push('\n');
        std::fs::write(path, text).expect("write");
    }

    /// Ends every connection at once, without goodbye; the daemon goes on.
    pub fn kill_sessions(&self) {
        for pid in descendants(self.child.id()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).expect("pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Stops every connection's process without ending it.
    pub fn freeze_sessions(&self) {
        for pid in descendants(self.child.id()) {
            let pid = rustix::process::Pid::from_raw(pid as i32).expect("pid");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::STOP);
        }
    }

    /// Gives the server one more host key, a file in its directory.
    pub fn add_host_key(&mut self, name: &str) {
        self.more_host_keys.push(name.to_owned());
        self.restart();
    }

    pub fn stop(&mut self) {
        self.kill_sessions();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(
            &self.directory,
            self.port,
            &self.authorized_keys,
            &self.more_host_keys,
        );
    }

    /// Another host key, as after a new installation.
    pub fn change_host_key(&mut self) {
        for name in ["host_key", "host_key.pub"] {
            std::fs::remove_file(self.directory.path().join(name)).expect("remove");
        }
        keygen(&self.directory.path().join("host_key"), "ed25519", "");
        self.restart();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// All processes below `parent`, by /proc.
pub fn descendants(parent: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        if let Some(ppid) = after.split_whitespace().nth(1).and_then(|p| p.parse().ok()) {
            parents.insert(pid, ppid);
        }
    }
    let mut found: Vec<u32> = Vec::new();
    loop {
        let before = found.len();
        for (pid, ppid) in &parents {
            if (*ppid == parent || found.contains(ppid)) && !found.contains(pid) {
                found.push(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Blobs in memory, as files.
pub struct Blobs {
    directory: tempfile::TempDir,
}

impl Blobs {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("temporary directory"),
        }
    }

    pub fn add(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::new(hex::encode(Sha256::digest(bytes))).expect("digest");
        std::fs::write(self.directory.path().join(digest.as_str()), bytes).expect("write");
        digest
    }
}

impl BundleSource for Blobs {
    fn open(&self, digest: &Digest) -> io::Result<(File, u64)> {
        let file = File::open(self.directory.path().join(digest.as_str()))?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

/// `length` bytes that no compression shortens, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(length)
        .collect()
}

/// A stand-in for the agent: keeps orders and blobs, does nothing else.
#[derive(Clone)]
pub struct FakeAgent {
    pub state: Arc<Mutex<FakeState>>,
    changed: watch::Sender<u64>,
    stop: CancellationToken,
    keep: PathBuf,
    pub socket: PathBuf,
    directory: Option<Arc<tempfile::TempDir>>,
}

#[derive(Default)]
pub struct FakeState {
    pub orders: HostOrders,
    pub owner: Option<Owner>,
    /// Every generation that was put, in order.
    pub puts: Vec<Generation>,
    /// `(offset, bytes received)` of every PATCH.
    pub patches: Vec<(u64, u64)>,
    pub blobs: BTreeMap<Digest, u64>,
    pub complete: Vec<Digest>,
    pub needs: Vec<Digest>,
    pub digest: Option<Digest>,
    pub upgrades: Vec<UpgradeOrder>,
    /// What every order is answered with.
    pub cannot: Option<Problem>,
    pub sequence: u64,
    pub largest_chunk: usize,
    pub uninstalled: bool,
}

impl FakeAgent {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("agent.sock");
        let keep = directory.path().to_owned();
        let mut agent = Self::start_at(&socket, &keep, 0o600).await;
        agent.directory = Some(Arc::new(directory));
        agent
    }

    pub async fn start_at(path: &Path, keep: &Path, mode: u32) -> Self {
        let agent = Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
            stop: CancellationToken::new(),
            keep: keep.to_owned(),
            socket: path.to_owned(),
            directory: None,
        };
        agent.state.lock().expect("lock").owner =
            files::read_json(&agent.owner_file()).expect("owner");
        let listener = socket::bind(path, mode, None).await.expect("bind");
        let router = Router::new()
            .route("/v1/report", get(report))
            .route("/v1/watch", get(watch_reports))
            .route("/v1/orders", put(orders))
            .route("/v1/owner", put(claim))
            .route("/v1/blobs/{digest}", get(blob).patch(append))
            .route("/v1/instances/{id}/logs", get(logs))
            .route("/v1/upgrade", post(upgrade))
            .route("/v1/uninstall", post(uninstall))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(agent.clone());
        tokio::spawn(socket::serve(listener, router, agent.stop.clone()));
        agent
    }

    pub fn need(&self, digest: &Digest) {
        self.state.lock().expect("lock").needs.push(digest.clone());
        self.tell();
    }

    pub fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Where a real agent keeps it.
    fn owner_file(&self) -> PathBuf {
        self.keep.join("agent/owner.json")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.keep.join(format!("blob-{digest}"))
    }

    pub fn have(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.blob_path(digest)).map_or(0, |m| m.len())
    }

    pub fn is_complete(&self, digest: &Digest) -> bool {
        self.state.lock().expect("lock").complete.contains(digest)
    }

    pub fn report(&self) -> HostReport {
        let mut state = self.state.lock().expect("lock");
        state.sequence += 1;
        let releases = state
            .needs
            .iter()
            .enumerate()
            .map(|(number, digest)| ReleaseReport {
                key: ReleaseKey {
                    environment: EnvironmentId::from_bits(7),
                    number: ReleaseNumber(number as u64 + 1),
                },
                phase: if state.complete.contains(digest) {
                    ReleasePhase::Ready
                } else {
                    ReleasePhase::NeedsBundle
                },
                bundle: digest.clone(),
                bundle_have: 0,
                since: Timestamp::EPOCH,
                asked_by: None,
                again_at: None,
                has_release_command: false,
                ran_container_commands: true,
                set_up: true,
                once: None,
            })
            .collect();
        HostReport {
            sequence: state.sequence,
            agent_version: "0.1.0".to_owned(),
            agent_digest: state.digest.clone(),
            agent: None,
            owner: state.owner.clone(),
            now: clock::now(),
            generation: state.orders.generation,
            facts: HostFacts::default(),
            releases,
            edge: None,
            instances: Vec::new(),
        }
    }
}

async fn report(State(agent): State<FakeAgent>) -> axum::Json<HostReport> {
    axum::Json(agent.report())
}

async fn watch_reports(State(agent): State<FakeAgent>) -> Response {
    let changed = agent.changed.subscribe();
    let stop = agent.stop.clone();
    let lines = futures::stream::unfold(
        (agent, changed, true),
        |(agent, mut changed, first)| async move {
            if !first {
                let _ = tokio::time::timeout(Duration::from_secs(5), changed.changed()).await;
            }
            let mut line = serde_json::to_vec(&agent.report()).expect("report");
            line.push(b'\n');
            Some((
                Ok::<_, io::Error>(Bytes::from(line)),
                (agent, changed, false),
            ))
        },
    );
    Body::from_stream(lines.take_until(stop.cancelled_owned())).into_response()
}

async fn orders(
    State(agent): State<FakeAgent>,
    axum::Json(orders): axum::Json<HostOrders>,
) -> Response {
    let problem = {
        let mut state = agent.state.lock().expect("lock");
        state.puts.push(orders.generation);
        if let Some(problem) = &state.cannot {
            return problem_response(problem);
        }
        let held = &state.orders;
        let theirs = orders.controller.as_ref().map(|theirs| &theirs.id);
        let owner = state.owner.as_ref().map(|owner| &owner.controller.id);
        if owner.is_some() && owner != theirs {
            Some(Problem::conflict(FOREIGN_CONTROLLER, "another's"))
        } else if orders.generation < held.generation {
            Some(Problem::conflict("stale-generation", "older"))
        } else if orders.generation == held.generation && orders != *held {
            Some(Problem::conflict("generation-reused", "other content"))
        } else {
            state.orders = orders;
            None
        }
    };
    agent.tell();
    match problem {
        Some(problem) => problem_response(&problem),
        None => axum::Json(()).into_response(),
    }
}

async fn claim(State(agent): State<FakeAgent>, axum::Json(claim): axum::Json<Claim>) -> Response {
    let owner = Owner {
        controller: claim.controller,
        since: clock::now(),
    };
    {
        let mut state = agent.state.lock().expect("lock");
        let other = state
            .owner
            .as_ref()
            .is_some_and(|held| held.controller.id != owner.controller.id);
        if other && !claim.take_over {
            return problem_response(&Problem::conflict(FOREIGN_CONTROLLER, "another's"));
        }
        let file = agent.owner_file();
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("make");
        files::write_json(&file, &owner, 0o600).expect("write");
        state.owner = Some(owner);
    }
    agent.tell();
    axum::Json(()).into_response()
}

async fn blob(
    State(agent): State<FakeAgent>,
    UrlPath(digest): UrlPath<Digest>,
) -> axum::Json<BlobStatus> {
    axum::Json(BlobStatus {
        have: agent.have(&digest),
        complete: agent.is_complete(&digest),
    })
}

#[derive(serde::Deserialize)]
struct Append {
    offset: u64,
    size: u64,
}

async fn append(
    State(agent): State<FakeAgent>,
    UrlPath(digest): UrlPath<Digest>,
    Query(append): Query<Append>,
    body: Body,
) -> Response {
    use std::io::Write;
    let path = agent.blob_path(&digest);
    let have = agent.have(&digest);
    if have != append.offset {
        return problem_response(&Problem::conflict("wrong-offset", format!("{have} held")));
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .expect("open");
    let index = {
        let mut state = agent.state.lock().expect("lock");
        state.patches.push((append.offset, 0));
        state.patches.len() - 1
    };
    let mut body = body.into_data_stream();
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else { break };
        file.write_all(&chunk).expect("write");
        let mut state = agent.state.lock().expect("lock");
        state.patches[index].1 += chunk.len() as u64;
        state.largest_chunk = state.largest_chunk.max(chunk.len());
    }
    drop(file);
    if agent.have(&digest) == append.size {
        let bytes = std::fs::read(&path).expect("read");
        if hex::encode(Sha256::digest(&bytes)) != digest.as_str() {
            std::fs::remove_file(&path).expect("remove");
            return problem_response(&Problem::new(422, "digest-mismatch", "No", "no"));
        }
        agent
            .state
            .lock()
            .expect("lock")
            .complete
            .push(digest.clone());
        agent.tell();
    }
    axum::Json(BlobStatus {
        have: agent.have(&digest),
        complete: agent.is_complete(&digest),
    })
    .into_response()
}

async fn logs(Query(query): Query<BTreeMap<String, String>>) -> String {
    format!("{query:?}\n")
}

async fn upgrade(
    State(agent): State<FakeAgent>,
    axum::Json(order): axum::Json<UpgradeOrder>,
) -> axum::Json<()> {
    {
        let mut state = agent.state.lock().expect("lock");
        state.digest = Some(order.digest.clone());
        state.upgrades.push(order);
    }
    agent.tell();
    axum::Json(())
}

async fn uninstall(State(agent): State<FakeAgent>) -> axum::Json<Uninstalled> {
    agent.state.lock().expect("lock").uninstalled = true;
    axum::Json(Uninstalled {
        removed: vec!["directory /var/lib/beanpole".to_owned()],
        left: Vec::new(),
    })
}
