//! A proxy, backends and clients for the tests.

use beanpole_daemon::http::{CallError, Connection};
use beanpole_protocol::content::PoolContent;
use beanpole_protocol::proxy::{
    Algorithm, HealthCheck, HttpDetails, PoolLimits, PoolRules, Probe, ProxyReport, Route,
    RoutingTable, Target, TargetMode, TargetPool, TargetReport, Upstream, WeightedPool,
};
use beanpole_protocol::tls::{CertificateSet, CertificatesReport};
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber,
};
use beanpole_proxy::ProxyConfig;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const HOST: &str = "app.localhost";
pub const LIMIT: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A proxy in this process.
pub struct Proxy {
    pub directory: Arc<tempfile::TempDir>,
    pub http: SocketAddr,
    pub https: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), String>>,
}

impl Proxy {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        Self::start_in(Arc::new(directory), |_| {}).await
    }

    pub async fn start_in(
        directory: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
        let mut config = ProxyConfig::new(directory.path(), directory.path().join("proxy.sock"));
        config.http = vec![any];
        config.https = vec![any];
        config.threads = 2;
        config.drain = Duration::from_secs(5);
        change(&mut config);
        let stop = CancellationToken::new();
        let running = beanpole_proxy::run(config, stop.clone());
        Self::found(directory, stop, async {
            running.await.map_err(|e| e.to_string())
        })
        .await
    }

    /// One that is run in some way, once it answers.
    pub async fn found(
        directory: Arc<tempfile::TempDir>,
        stop: CancellationToken,
        running: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(running);
        let report = until("the proxy answers", || async {
            assert!(!task.is_finished(), "the proxy ended");
            report(directory.path()).await
        })
        .await;
        let address = |scheme: &str| {
            let listener = report
                .listeners
                .iter()
                .find_map(|listener| listener.strip_prefix(scheme));
            listener.expect("a listener").parse().expect("an address")
        };
        Self {
            http: address("http://"),
            https: address("https://"),
            directory,
            stop,
            task,
        }
    }

    pub async fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.directory.path().join("proxy.sock"))
            .await
            .expect("connect");
        Connection::open(stream).await.expect("handshake")
    }

    pub async fn put(&self, table: &RoutingTable) -> Result<(), CallError> {
        let mut connection = self.connect().await;
        connection
            .call(Method::PUT, "/v1/table", Some(table), LIMIT)
            .await
    }

    pub async fn put_certificates(
        &self,
        set: &CertificateSet,
    ) -> Result<CertificatesReport, CallError> {
        let mut connection = self.connect().await;
        connection
            .call(Method::PUT, "/v1/certificates", Some(set), LIMIT)
            .await
    }

    /// The same where it may not be heard.
    pub async fn try_put(&self, table: &RoutingTable) -> Option<()> {
        let path = self.directory.path().join("proxy.sock");
        let stream = UnixStream::connect(path).await.ok()?;
        let mut connection = Connection::open(stream).await.ok()?;
        let put = connection.call(Method::PUT, "/v1/table", Some(table), LIMIT);
        put.await.ok()
    }

    /// Its addresses, for clients that outlive a borrow.
    pub fn seen(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            http: self.http,
            https: self.https,
            stop: CancellationToken::new(),
            task: tokio::spawn(std::future::pending()),
        }
    }

    pub async fn try_report(&self) -> Option<ProxyReport> {
        report(self.directory.path()).await
    }

    pub async fn report(&self) -> ProxyReport {
        report(self.directory.path()).await.expect("a report")
    }

    pub async fn target(&self, number: u8) -> TargetReport {
        let report = self.report().await;
        let mut targets = report.targets.into_iter();
        targets
            .find(|target| target.instance == instance(number))
            .expect("the target")
    }

    pub async fn until_target(
        &self,
        what: &str,
        number: u8,
        condition: impl Fn(&TargetReport) -> bool,
    ) -> TargetReport {
        until(what, || async {
            Some(self.target(number).await).filter(&condition)
        })
        .await
    }

    /// Puts a table in force and waits until all its serving targets are healthy.
    pub async fn serve(&self, table: &RoutingTable) {
        self.put(table).await.expect("put");
        until("all targets are healthy", || async {
            let report = self.report().await;
            let well = |target: &TargetReport| target.healthy || target.mode != TargetMode::Serve;
            report.targets.iter().all(well).then_some(())
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Answer {
        get(self.http, HOST, path).await
    }

    /// Begins to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub async fn stopped(self) -> Arc<tempfile::TempDir> {
        self.stop.cancel();
        let ended = tokio::time::timeout(LIMIT, self.task).await;
        ended
            .expect("in time")
            .expect("no panic")
            .expect("no error");
        self.directory
    }
}

async fn report(directory: &Path) -> Option<ProxyReport> {
    let stream = UnixStream::connect(directory.join("proxy.sock"))
        .await
        .ok()?;
    let mut connection = Connection::open(stream).await.ok()?;
    connection.get("/v1/report", LIMIT).await.ok()
}

pub fn instance(number: u8) -> InstanceId {
    InstanceId::from_bits(u128::from(number))
}

pub fn target(number: u8, address: SocketAddr, mode: TargetMode) -> Target {
    Target {
        process: String::new(),
        instance: instance(number),
        incarnation: Incarnation(1),
        release: ReleaseNumber(1),
        address,
        mode,
        tried: None,
        upstream: Upstream::default(),
        check: HealthCheck {
            probe: Probe::Http {
                path: "/health".to_owned(),
                statuses: vec![(200, 399)],
                details: HttpDetails::default(),
            },
            interval_ms: 100,
            timeout_ms: 2_000,
            healthy_threshold: 1,
            unhealthy_threshold: 2,
        },
    }
}

pub fn serving(number: u8, backend: &Backend) -> Target {
    target(number, backend.address, TargetMode::Serve)
}

pub fn pool(name: &str, targets: Vec<Target>) -> TargetPool {
    TargetPool {
        name: name.to_owned(),
        environment: EnvironmentId::from_bits(1),
        environment_name: EnvironmentName::new("prod").expect("name"),
        application: ApplicationName::new("shop").expect("name"),
        algorithm: Algorithm::RoundRobin,
        hold: None,
        limits: PoolLimits::default(),
        content: PoolContent::default(),
        rules: PoolRules::default(),
        targets,
    }
}

/// A table with one host and one pool.
pub fn table(generation: u64, targets: Vec<Target>) -> RoutingTable {
    RoutingTable {
        generation: Generation(generation),
        routes: vec![route(HOST, &[("main", 1)])],
        pools: vec![pool("main", targets)],
        streams: Vec::new(),
    }
}

/// Changes how every target is checked.
pub fn check_all(table: &mut RoutingTable, change: impl Fn(&mut HealthCheck)) {
    for target in table.pools.iter_mut().flat_map(|pool| &mut pool.targets) {
        change(&mut target.check);
    }
}

pub fn route(host: &str, pools: &[(&str, u32)]) -> Route {
    Route {
        host: host.to_owned(),
        pools: pools
            .iter()
            .map(|(pool, weight)| WeightedPool {
                pool: (*pool).to_owned(),
                weight: *weight,
            })
            .collect(),
        ..Route::default()
    }
}

/// An app: `/health` answers `health`; `/hold` waits for `release`; `/echo` sends the body back;
/// `/ws` echoes after an upgrade; `/drop` breaks the connection; anything else tells what came.
pub struct Backend {
    pub address: SocketAddr,
    pub hits: Arc<AtomicUsize>,
    pub health: Arc<AtomicU16>,
    pub release: Arc<Notify>,
    /// Accepts connections and answers nothing any more, as a process does after SIGSTOP.
    pub frozen: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Backend {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("address")).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let listener = until("the backend's port is free", || async {
            TcpListener::bind(address).await.ok()
        })
        .await;
        let backend = Self {
            address: listener.local_addr().expect("address"),
            hits: Arc::default(),
            health: Arc::new(AtomicU16::new(200)),
            release: Arc::default(),
            frozen: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (hits, health) = (backend.hits.clone(), backend.health.clone());
        let (release, stop) = (backend.release.clone(), backend.stop.clone());
        let frozen = backend.frozen.clone();
        tokio::spawn(async move {
            while let Some(Ok((socket, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (hits, health, release) = (hits.clone(), health.clone(), release.clone());
                let (stop, frozen) = (stop.clone(), frozen.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = app(request, hits.clone(), health.clone(), release.clone());
                        let frozen = frozen.load(Ordering::SeqCst);
                        async move {
                            if frozen {
                                std::future::pending::<()>().await;
                            }
                            answer.await
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .with_upgrades();
                    let _ = stop.run_until_cancelled(connection).await;
                });
            }
        });
        backend
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// Dies: the port refuses, open connections break.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

async fn app(
    mut request: Request<Incoming>,
    hits: Arc<AtomicUsize>,
    health: Arc<AtomicU16>,
    release: Arc<Notify>,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    if path == "/health" {
        let mut answer = Response::new(whole("well"));
        *answer.status_mut() =
            StatusCode::from_u16(health.load(Ordering::SeqCst)).expect("a status");
        return Ok(answer);
    }
    hits.fetch_add(1, Ordering::SeqCst);
    match path.as_str() {
        "/hold" => {
            release.notified().await;
            Ok(Response::new(whole("held")))
        }
        "/drop" => Err(std::io::Error::other("as asked")),
        // Reads it all, then answers. Answering while still reading large bodies can stall in
        // pingora, which reads from an upstream or writes to it, never both; see the README.
        "/echo" => {
            let body = request.into_body().collect().await;
            let body = body.map_err(std::io::Error::other)?.to_bytes();
            Ok(Response::new(whole(body)))
        }
        "/ws" => {
            tokio::spawn(async move {
                let Ok(upgraded) = hyper::upgrade::on(&mut request).await else {
                    return;
                };
                let mut io = TokioIo::new(upgraded);
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = io.read(&mut buffer).await {
                    if io.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
            });
            let answer = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .body(whole(""));
            Ok(answer.expect("a response"))
        }
        _ => {
            let headers: Vec<(String, String)> = request
                .headers()
                .iter()
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    (name.to_string(), value)
                })
                .collect();
            let told = serde_json::json!({
                "method": request.method().as_str(),
                "path": request.uri().to_string(),
                "headers": headers,
            });
            let answer = Response::builder()
                .header("keep-alive", "timeout=65")
                .body(whole(told.to_string()));
            Ok(answer.expect("a response"))
        }
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header that the backend was given.
    pub fn told(&self, name: &str) -> Option<String> {
        let told: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        let headers = told["headers"].as_array().expect("headers");
        let found = headers.iter().find(|header| header[0] == name)?;
        Some(found[1].as_str().expect("text").to_owned())
    }
}

/// A client's connection that is kept.
pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("connect");
        Self::over(socket).await
    }

    pub async fn over(socket: TcpStream) -> Self {
        socket.set_nodelay(true).expect("nodelay");
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
            .await
            .expect("handshake");
        tokio::spawn(driver);
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        let (head, body) = answer.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, hyper::Error> {
        self.send(request(Method::GET, host, path, &[])).await
    }
}

pub fn request(
    method: Method,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Request<Full<Bytes>> {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::default()).expect("a request")
}

pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.get(host, path).await.expect("an answer")
}

/// Sends raw bytes and reads until the other side closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.expect("connect");
    socket.write_all(bytes).await.expect("write");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, socket.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// What this process, with the proxy in it, has in memory.
pub fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.expect("a size").parse::<usize>().expect("a number") / 1024
}

/// Sends requests over `clients` kept connections until it is stopped; counts good and bad.
pub struct Load {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<(usize, Vec<String>)>>,
    pub sent: Arc<AtomicUsize>,
}

impl Load {
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        let stop = CancellationToken::new();
        let sent = Arc::new(AtomicUsize::new(0));
        let tasks = (0..clients)
            .map(|_| {
                let (stop, sent) = (stop.clone(), sent.clone());
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    let (mut good, mut bad) = (0, Vec::new());
                    while !stop.is_cancelled() {
                        match client.get(HOST, "/load").await {
                            Ok(answer) if answer.status == 200 => good += 1,
                            Ok(answer) => bad.push(format!("{} {}", answer.status, answer.text())),
                            Err(error) => {
                                bad.push(error.to_string());
                                client = Client::connect(address).await;
                            }
                        }
                        sent.fetch_add(1, Ordering::SeqCst);
                    }
                    (good, bad)
                })
            })
            .collect();
        Self { stop, tasks, sent }
    }

    pub async fn reached(&self, count: usize) {
        until("enough requests", || async {
            (self.sent.load(Ordering::SeqCst) >= count).then_some(())
        })
        .await;
    }

    /// How many were good, and what was bad.
    pub async fn end(self) -> (usize, Vec<String>) {
        self.stop.cancel();
        let (mut good, mut bad) = (0, Vec::new());
        for task in self.tasks {
            let (some, others) = task.await.expect("no panic");
            good += some;
            bad.extend(others);
        }
        (good, bad)
    }
}
