//! An agent as a process of its own, and what it is told.

use beanpole_agent::blobs::digest_of_bytes;
use beanpole_agent::fences::Fences;
use beanpole_daemon::http::{CallError, Connection, request, whole};
use beanpole_protocol::agent::{
    BlobStatus, HostOrders, HostReport, InstanceOrder, InstancePhase, Limits, Platform, Properties,
    ReleaseKey, ReleaseOrder, ReleasePhase,
};
use beanpole_protocol::edge::EdgeOrders;
use beanpole_protocol::{
    ApplicationName, Digest, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber, VersionLabel,
};
use http::Method;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use zip::write::{SimpleFileOptions, ZipWriter};

pub const LIMIT: Duration = Duration::from_mins(1);
/// How long what was killed may take to be gone.
const ENDING: Duration = Duration::from_secs(15);

/// The agent's executable, built beside this test.
pub fn program() -> PathBuf {
    let me = std::env::current_exe().expect("path of this test");
    let path = me
        .ancestors()
        .nth(2)
        .expect("target directory")
        .join("examples/agent");
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build -p beanpole-agent --example agent`",
        path.display()
    );
    path
}

/// A directory with an agent in it.
pub struct World {
    pub directory: tempfile::TempDir,
    pub agent: Option<Child>,
    generation: u64,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            directory: tempfile::tempdir().expect("directory"),
            agent: None,
            generation: 0,
        };
        // Users of their own must get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.directory.path(), open).expect("mode");
        world.start(world.data());
        world
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn command(&self, data: &Path) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program());
        command
            .arg("--data")
            .arg(data)
            .arg("--socket")
            .arg(self.socket())
            .args(["--reserve", "1048576"])
            .arg("--edge")
            .arg(self.tools().join("edge"))
            .env("PATH", format!("{}:{}", self.tools().display(), path))
            .stdin(Stdio::null());
        command
    }

    /// What the agent itself works with.
    pub fn fences(&self) -> Fences {
        Fences::detect(&self.data().join("agent"))
    }

    fn tools(&self) -> PathBuf {
        self.directory.path().join("tools")
    }

    /// Puts a script of this name where the agent looks for programs first.
    pub fn tool(&self, name: &str, lines: &str) {
        let path = self.tools().join(name);
        std::fs::create_dir_all(self.tools()).expect("make");
        std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("write");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, all).expect("mode");
    }

    pub fn start(&mut self, data: PathBuf) {
        self.agent = Some(self.command(&data).spawn().expect("agent"));
    }

    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("kill");
            agent.wait().expect("wait");
        }
    }

    pub async fn connect(&self) -> Connection {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(stream) = UnixStream::connect(self.socket()).await {
                return Connection::open(stream).await.expect("handshake");
            }
            assert!(Instant::now() < deadline, "the agent does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn report(&self) -> HostReport {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut connection = self.connect().await;
            match connection.get("/v1/report", LIMIT).await {
                Ok(report) => return report,
                // A shim on its way to being executed may still hold a killed agent's socket.
                Err(error) => assert!(
                    error.is_transient() && Instant::now() < deadline,
                    "no report: {error}"
                ),
            }
        }
    }

    pub async fn order(&mut self, releases: &[ReleaseOrder], instances: &[InstanceOrder]) {
        self.generation += 1;
        let orders = HostOrders {
            generation: Generation(self.generation),
            controller: None,
            releases: releases.to_vec(),
            instances: instances.to_vec(),
            edge: None,
        };
        self.put(&orders).await.expect("orders");
    }

    pub async fn order_edge(&mut self, edge: Option<EdgeOrders>) {
        self.generation += 1;
        let orders = HostOrders {
            generation: Generation(self.generation),
            edge,
            ..HostOrders::default()
        };
        self.put(&orders).await.expect("orders");
    }

    pub async fn put(&self, orders: &HostOrders) -> Result<(), CallError> {
        self.call(Method::PUT, "/v1/orders", orders).await
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: &(impl serde::Serialize + Sync),
    ) -> Result<(), CallError> {
        let mut connection = self.connect().await;
        connection.call(method, path, Some(body), LIMIT).await
    }

    pub async fn send(&self, bundle: &[u8]) -> Result<BlobStatus, CallError> {
        let digest = digest_of_bytes(bundle);
        let path = format!("/v1/blobs/{digest}?offset=0&size={}", bundle.len());
        let mut call = request(Method::PATCH, &path, None::<&()>)?;
        *call.body_mut() = whole(bundle.to_vec());
        let _answer = self.connect().await.send(call).await?;
        let mut connection = self.connect().await;
        connection.get(&format!("/v1/blobs/{digest}"), LIMIT).await
    }

    /// Waits for a report that satisfies `wanted`.
    pub async fn until(&self, what: &str, wanted: impl Fn(&HostReport) -> bool) -> HostReport {
        let deadline = Instant::now() + LIMIT;
        loop {
            let report = self.report().await;
            if wanted(&report) {
                return report;
            }
            assert!(
                Instant::now() < deadline,
                "no report with {what}: {report:#?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn failure(&self) -> beanpole_protocol::agent::Failure {
        let report = self
            .until("a failed release", |report| {
                report
                    .releases
                    .iter()
                    .any(|r| matches!(r.phase, ReleasePhase::Failed(_)))
            })
            .await;
        match &report.releases[0].phase {
            ReleasePhase::Failed(failure) => failure.clone(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whatever runs must not outlive its test.
        if self.agent.is_none() {
            self.start(self.data());
        }
        let generation = self.generation + 1000;
        let orders = HostOrders {
            generation: Generation(generation),
            ..HostOrders::default()
        };
        let runtime = std::thread::spawn({
            let socket = self.socket();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                runtime.block_on(async {
                    let deadline = Instant::now() + LIMIT;
                    while Instant::now() < deadline {
                        if let Ok(stream) = UnixStream::connect(&socket).await
                            && let Ok(mut connection) = Connection::open(stream).await
                        {
                            let _: Result<(), _> = connection
                                .call(Method::PUT, "/v1/orders", Some(&orders), LIMIT)
                                .await;
                            if let Ok(report) =
                                connection.get::<HostReport>("/v1/report", LIMIT).await
                                && report.instances.is_empty()
                                && report.edge.is_none()
                            {
                                return;
                            }
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
            }
        });
        let _ = runtime.join();
        self.kill();
        let fences = self.fences();
        if let Some(trees) = fences.cgroups() {
            trees.end_ownerless(|_| false);
        }
        // A user stays while a process of its own is ending: a build's, killed with the agent.
        let deadline = Instant::now() + ENDING;
        while !fences.keep_users(&Default::default(), false) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            if let Some(trees) = fences.cgroups() {
                trees.end_ownerless(|_| false);
            }
        }
    }
}

pub fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let options = SimpleFileOptions::default().unix_permissions(0o755);
        writer.start_file(*name, options).expect("start");
        writer.write_all(content.as_bytes()).expect("write");
    }
    writer.finish().expect("finish").into_inner()
}

pub fn release(number: u64, bundle: &[u8]) -> ReleaseOrder {
    ReleaseOrder {
        key: ReleaseKey {
            environment: EnvironmentId::from_bits(7),
            number: ReleaseNumber(number),
        },
        application: ApplicationName::new("shop").expect("name"),
        environment_name: EnvironmentName::new("prod").expect("name"),
        version: VersionLabel::new(format!("v{number}")).expect("label"),
        bundle: Digest::new(digest_of_bytes(bundle)).expect("digest"),
        bundle_size: bundle.len() as u64,
        platform: Platform::Auto,
        properties: Properties([("GREETING".to_owned(), "hello".to_owned())].into()),
        options: Default::default(),
        install: false,
        configures: false,
        prepare_timeout_ms: 120_000,
        root: false,
        asked_by: None,
        run_once: None,
    }
}

pub fn instance(number: u64, incarnation: u64) -> InstanceOrder {
    InstanceOrder {
        id: instance_id(),
        environment: EnvironmentId::from_bits(7),
        release: ReleaseNumber(number),
        incarnation: Incarnation(incarnation),
        run: true,
        port: 23_456,
        ports: Default::default(),
        stop_grace_ms: 2000,
        limits: Limits::default(),
        ready: None,
    }
}

pub fn runs(report: &HostReport, number: u64, incarnation: u64) -> bool {
    report.instances.iter().any(|instance| {
        instance.phase == InstancePhase::Running
            && instance.release == Some(ReleaseNumber(number))
            && instance.incarnation == Incarnation(incarnation)
    })
}

pub fn pid(report: &HostReport) -> u32 {
    report.instances[0].processes[0].pid.expect("a process")
}

/// The instance of this test: cgroups go by the id, and tests run side by side in threads.
pub fn instance_id() -> InstanceId {
    thread_local!(static BITS: u128 = beanpole_daemon::clock::random_bits());
    BITS.with(|bits| InstanceId::from_bits(*bits))
}

pub const SLEEPER: &[(&str, &str)] = &[(
    "Procfile",
    "web: echo \"$GREETING on $PORT as $BEANPOLE_VERSION in $BEANPOLE_ENVIRONMENT\"; exec sleep 1000\n",
)];
