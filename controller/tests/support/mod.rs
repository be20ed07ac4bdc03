//! A controller to call, and a small HTTP client that hides nothing.

use beanpole_controller::{ControllerConfig, run};
use beanpole_store::Store;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Bundles in these tests may have so many bytes.
const LIMIT: u64 = 2 * 1024 * 1024;

pub struct Controller {
    runtime: Runtime,
    task: Option<JoinHandle<Result<(), String>>>,
    stop: CancellationToken,
    address: SocketAddr,
    pub token: String,
    dir: Option<tempfile::TempDir>,
}

fn config(data: &Path) -> ControllerConfig {
    let mut config = ControllerConfig::new(data, ([127, 0, 0, 1], 0).into());
    config.bundle_limit_bytes = LIMIT;
    config
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

impl Controller {
    pub fn start() -> Self {
        Self::on(tempfile::tempdir().expect("temporary directory"))
    }

    pub fn restored(backup: &[u8]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = dir.path().join("controller");
        beanpole_store::backup::restore(backup, &own.join("store"), &own.join("blobs"))
            .expect("restore");
        Self::on(dir)
    }

    /// One that frees unneeded bundles after a second, with what `fill` puts into its store.
    pub fn freeing(fill: impl FnOnce(&Store)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("controller/store")).expect("store");
        fill(&store);
        drop(store);
        Self::with(dir, |config| config.bundle_grace = Duration::from_secs(1))
    }

    fn on(dir: tempfile::TempDir) -> Self {
        Self::with(dir, |_| {})
    }

    fn with(dir: tempfile::TempDir, change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let stop = CancellationToken::new();
        let (listening, address) = oneshot::channel();
        let mut config = config(dir.path());
        config.listening = Some(listening);
        change(&mut config);
        let stopped = stop.clone();
        let task =
            runtime.spawn(async move { run(config, stopped).await.map_err(|error| chain(&error)) });
        let address = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), address)
                .await
                .expect("it listens in time")
                .expect("it listens")
        });
        let token = std::fs::read_to_string(dir.path().join("token")).expect("token");
        Self {
            runtime,
            task: Some(task),
            stop,
            address,
            token: token.trim().to_owned(),
            dir: Some(dir),
        }
    }

    /// Stops it and waits for it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let limit = Duration::from_secs(20);
            let ended = self
                .runtime
                .block_on(async { tokio::time::timeout(limit, task).await });
            ended
                .expect("it stops in time")
                .expect("no panic")
                .expect("it stops well");
        }
    }

    pub fn restart(mut self) -> Self {
        self.end();
        Self::on(self.dir.take().expect("the directory"))
    }

    /// Starts again once its data was changed meanwhile.
    pub fn restart_after(mut self, change: impl FnOnce(&Path)) -> Self {
        self.end();
        let dir = self.dir.take().expect("the directory");
        change(dir.path());
        Self::on(dir)
    }

    /// Tries to start another one on the same data.
    pub fn second(&self) -> Result<(), String> {
        let config = config(self.dir.as_ref().expect("the directory").path());
        self.runtime
            .block_on(run(config, self.stop.child_token()))
            .map_err(|error| chain(&error))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, &[], body.to_string().as_bytes())
    }

    pub fn application(&self, name: &str) {
        let reply = self.post("/v1/applications", &json!({"name": name}));
        assert_eq!(reply.status, 201, "{reply:?}");
    }

    /// Uploads a bundle with `content` in it.
    pub fn upload(&self, content: &[u8]) -> String {
        self.upload_bundle(&bundle(content))
    }

    /// Uploads a bundle as it is.
    pub fn upload_bundle(&self, bundle: &[u8]) -> String {
        let digest = sha256(bundle);
        let reply = self.call("PUT", &format!("/v1/bundles/{digest}"), &[], bundle);
        assert_eq!(reply.status, 201, "{reply:?}");
        digest
    }

    /// Waits until no operation runs on an environment.
    pub fn until_ready(&self, environment: &str) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        let path = format!("/v1/environments/{environment}");
        while self.get(&path).json()["status"] != "Ready" {
            assert!(std::time::Instant::now() < end, "{environment} gets ready");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a bundle is not here any more.
    pub fn until_freed(&self, digest: &str) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        // Reading it, unlike asking whether it is here, does not keep it.
        while self.get(&format!("/v1/bundles/{digest}")).status == 200 {
            assert!(std::time::Instant::now() < end, "{digest} stays");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            head.push_str(&format!("authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a bound for reading");
        stream
    }

    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let mut head = self.head(method, path, headers);
        head.push_str(&format!(
            "connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ));
        stream.write_all(head.as_bytes()).expect("send");
        // A refusal may come before all of the body is read.
        let _ = stream.write_all(body);
        Reply::read(&mut BufReader::new(stream), method == "HEAD")
    }

    /// Sends the head of a call that announces `size` bytes, and none of them.
    pub fn announce(&self, method: &str, path: &str, size: u64) -> Reply {
        let mut stream = self.connect();
        let head = self.head(method, path, &[]);
        stream
            .write_all(format!("{head}content-length: {size}\r\n\r\n").as_bytes())
            .expect("send");
        Reply::read(&mut BufReader::new(stream), false)
    }

    pub fn call_chunked(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let mut head = self.head(method, path, &[]);
        head.push_str("connection: close\r\ntransfer-encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("send");
        for chunk in body.chunks(100_000) {
            let _ = stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes());
            let _ = stream.write_all(chunk);
            let _ = stream.write_all(b"\r\n");
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        Reply::read(&mut BufReader::new(stream), false)
    }

    /// Sends the head of a call whose body comes in chunks.
    pub fn begin(&self, method: &str, path: &str) -> Begun {
        let stream = self.connect();
        let mut begun = Begun {
            reader: BufReader::new(stream),
        };
        let head = self.head(method, path, &[("transfer-encoding", "chunked")]);
        begun.send(format!("{head}\r\n").as_bytes());
        begun
    }

    pub fn follow(&self, path: &str, last: Option<&str>) -> Stream {
        let mut stream = self.connect();
        let headers: Vec<(&str, &str)> = last.map(|id| ("last-event-id", id)).into_iter().collect();
        let head = self.head("GET", path, &headers);
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .expect("send");
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status).expect("a status line");
        assert!(status.contains(" 200 "), "{status}");
        // The head has arrived: what happens from here on is streamed.
        let mut line = String::new();
        while reader.read_line(&mut line).expect("a header") > 2 {
            line.clear();
        }
        Stream { reader }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A connection in the middle of a call.
pub struct Begun {
    reader: BufReader<TcpStream>,
}

impl Begun {
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("send");
    }

    /// Whether no answer comes for a while.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        let stream = self.reader.get_mut();
        let before = stream.read_timeout().expect("the bound");
        stream.set_read_timeout(Some(time)).expect("a bound");
        let peeked = stream.peek(&mut [0]);
        stream.set_read_timeout(before).expect("the bound");
        peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    pub fn reply(&mut self) -> Reply {
        Reply::read(&mut self.reader, false)
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    fn read(reader: &mut BufReader<TcpStream>, head_only: bool) -> Self {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a status line");
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {line:?}"));
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Self {
            status,
            headers,
            body: Vec::new(),
        };
        if head_only {
            return reply;
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                line.clear();
                reader.read_line(&mut line).expect("the size of a chunk");
                let size = usize::from_str_radix(line.trim(), 16).expect("a size");
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).expect("a chunk");
                if size == 0 {
                    break;
                }
                reply.body.extend_from_slice(&chunk[..size]);
            }
        } else if let Some(size) = reply.header("content-length") {
            reply.body = vec![0; size.parse().expect("a size")];
            reader.read_exact(&mut reply.body).expect("the body");
        } else {
            reader.read_to_end(&mut reply.body).expect("the body");
        }
        reply
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of a problem document.
    pub fn code(&self) -> Option<String> {
        let value: Value = serde_json::from_slice(&self.body).ok()?;
        Some(value.get("code")?.as_str()?.to_owned())
    }

    pub fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:beanpole:problem:{code}"));
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"));
    }
}

pub struct Stream {
    reader: BufReader<TcpStream>,
}

#[derive(Debug, Default)]
pub struct Sent {
    pub id: String,
    pub event: String,
    pub data: Value,
}

impl Stream {
    pub fn next_event(&mut self) -> Sent {
        let mut sent = Sent::default();
        loop {
            let mut line = String::new();
            let count = self.reader.read_line(&mut line).expect("a line");
            assert_ne!(count, 0, "the stream ended");
            let line = line.trim_end();
            if let Some(id) = line.strip_prefix("id: ") {
                id.clone_into(&mut sent.id);
            } else if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut sent.event);
            } else if let Some(data) = line.strip_prefix("data: ") {
                sent.data = serde_json::from_str(data).expect("JSON");
            } else if line.is_empty() && !sent.id.is_empty() {
                return sent;
            }
        }
    }

    /// Whether nothing more comes.
    pub fn ends(mut self) -> bool {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).is_ok()
    }
}

pub fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// A ZIP with one file of that content, stored as it is. Nobody here looks at its checksum.
pub fn bundle(content: &[u8]) -> Vec<u8> {
    bundle_with("content", content)
}

/// The checksum of ZIP.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

/// A ZIP with one file of that name and content.
pub fn bundle_with(name: &str, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("small").to_le_bytes();
    let name_length = u16::try_from(name.len()).expect("short").to_le_bytes();
    // Version, flags, method, time, date, checksum, both sizes, lengths of the name and of no more.
    let mut about = vec![20, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
    about.extend(crc32(content).to_le_bytes());
    about.extend(length.iter().chain(&length).chain(&name_length));
    about.extend([0, 0]);
    let mut zip = b"PK\x03\x04".to_vec();
    zip.extend_from_slice(&about);
    zip.extend_from_slice(name.as_bytes());
    zip.extend_from_slice(content);
    let directory = zip.len();
    zip.extend_from_slice(b"PK\x01\x02\x14\x00");
    zip.extend_from_slice(&about);
    // Comment, disk, attributes within and outside, place.
    zip.extend_from_slice(&[0; 14]);
    zip.extend_from_slice(name.as_bytes());
    let size = zip.len() - directory;
    zip.extend_from_slice(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    for number in [size, directory] {
        zip.extend_from_slice(&u32::try_from(number).expect("small").to_le_bytes());
    }
    zip.extend_from_slice(&[0, 0]);
    zip
}
