//! A scripted controller: answers each request as a function says, and remembers it.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// The Authorization header.
    pub token: String,
    /// The body.
    pub body: Vec<u8>,
}

/// The controller. Its threads end with the test's process.
pub struct Script {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Script {
    /// Answers with what `answer` gives: a status and a JSON body. It is told what came before.
    pub fn start(answer: impl Fn(&Seen, &[Seen]) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let shared = Arc::clone(&seen);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&shared));
                std::thread::spawn(move || serve(&stream, &*answer, &seen));
            }
        });
        Self { port, seen }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What came so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

fn serve(
    stream: &TcpStream,
    answer: &(impl Fn(&Seen, &[Seen]) -> (u16, Value) + ?Sized),
    seen: &Mutex<Vec<Seen>>,
) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let (status, body) = {
            let mut seen = seen.lock().expect("no panic");
            seen.push(request.clone());
            answer(&request, &seen)
        };
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let kind = if status >= 400 {
            "application/problem+json"
        } else {
            "application/json"
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        let mut out = stream;
        if out.write_all(head.as_bytes()).is_err() || out.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|count| *count > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut token) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => value.trim().clone_into(&mut token),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen {
        method,
        path,
        token,
        body,
    })
}

/// A problem document.
pub fn problem(status: u16, code: &str, detail: &str) -> (u16, Value) {
    (
        status,
        json!({"type": format!("urn:beanpole:problem:{code}"), "status": status, "code": code,
            "title": "A problem", "detail": detail}),
    )
}

/// An environment of two instances that runs `version`.
pub fn environment(version: &str, release: u64) -> Value {
    let instance = |number: u32, health: &str, reason: Value| {
        json!({"id": format!("i-{number:017}"), "host": format!("web-{number}"),
            "host_id": "h-0000000000", "address": format!("192.0.2.{number}:20001"),
            "release": release, "version": version, "health": health, "reason": reason,
            "processes": [], "last_check": null, "in_flight": 0, "traffic": traffic()})
    };
    json!({"id": "e-0000000001", "name": "shop-prod", "application": "shop", "description": "",
        "tier": "web", "platform": "node", "cname": "shop-prod",
        "url": "http://shop-prod.localhost:8080/", "status": "Ready", "health": "Yellow",
        "causes": ["1 of 2 instances is not healthy."], "release": release, "version": version,
        "operation": null, "size": 2,
        "instances": [instance(1, "Healthy", json!(null)),
            instance(2, "Unhealthy", json!("GET / answered 500 in 3 ms"))],
        "created_at": "2026-01-02T03:04:05.678Z", "updated_at": "2026-01-02T03:04:05.678Z"})
}

fn traffic() -> Value {
    json!({"requests": 12, "by_class": [0, 12, 0, 0, 0], "failed": 0, "p50_us": 900, "p99_us": 4000})
}

/// A deployment of v2 on two instances.
pub fn operation(status: &str, state: &str) -> Value {
    let over = !matches!(status, "running" | "rolling-back");
    let progress = |number: u32| {
        json!({"instance": format!("i-{number:017}"), "host": format!("web-{number}"),
            "batch": number, "state": state, "detail": null})
    };
    json!({"id": "op-000000000001", "environment": "e-0000000001",
        "environment_name": "shop-prod", "kind": "deploy", "status": status,
        "request_id": "r-1", "from": 1, "to": 2, "version": "v2",
        "plan": {"policy": "Rolling", "floor": 1, "lines": ["Prepare v2 on 2 hosts."],
            "batches": [
                {"number": 1, "change": "replace", "instances": ["i-00000000000000001"]},
                {"number": 2, "change": "replace", "instances": ["i-00000000000000002"]}]},
        "instances": [progress(1), progress(2)], "waiting": [], "message": null, "failure": null,
        "started_at": "2026-01-02T03:04:05.000Z",
        "finished_at": if over { json!("2026-01-02T03:04:11.200Z") } else { json!(null) },
        "deadline": "2026-01-02T04:04:05.000Z", "requests_served": 1234, "requests_failed": 0})
}

/// The receipt of that deployment, without the minute after it where it is not `complete`.
pub fn receipt(complete: bool) -> Value {
    let after = json!({"for_ms": 60_000, "requests": 12_000, "failed": 0, "restarts": 0, "p50_us": 1_250, "p99_us": 9_800});
    let instance = |number: u32, requests: u64| {
        json!({"instance": format!("i-{number:017}"), "host": format!("web-{number}"), "batch": number,
            "change": "replace", "result": "replaced", "release": 2, "out_of_service_ms": 2_400,
            "drained_ms": 310, "started_ms": 690, "checked_ms": 1_320, "stopped_ms": null, "cut": 0,
            "restarts": 0, "requests": requests, "message": null})
    };
    let phase = |phase: &str, ms: u64| json!({"phase": phase, "ms": ms});
    let batch = |number: u32| {
        json!({"number": number, "back": false, "instances": 1, "took_ms": 2_400,
            "phases": [phase("draining", 310), phase("starting", 690), phase("checking", 1_320),
                phase("switching", 80)]})
    };
    json!({"complete": complete, "took_ms": 6_200, "away_ms": 0,
        "before": {"for_ms": 60_000, "requests": null, "failed": null, "restarts": 0, "p50_us": 1_200, "p99_us": 9_700},
        "during": {"for_ms": 6_200, "requests": 1_234, "failed": 0, "restarts": 0, "p50_us": 1_300, "p99_us": 20_400},
        "after": if complete { after } else { json!(null) },
        "releases": [
            {"release": 1, "requests": 620, "errors": 0, "p50_us": 1_200, "p99_us": 9_900},
            {"release": 2, "requests": 614, "errors": 3, "p50_us": 1_400, "p99_us": 31_000}],
        "phases": [phase("bundle", 520), phase("preparing", 880), phase("draining", 620),
            phase("starting", 1_380), phase("checking", 2_640), phase("switching", 160)],
        "batches": [batch(1), batch(2)],
        "sent": [{"host": "web-1", "bytes": 1_200_000}, {"host": "web-2", "bytes": 1_200_000}],
        "instances": [instance(1, 600), instance(2, 634)]})
}
