//! Attacks on how HTTP is read, and a witness behind the proxy that records what an app gets of each, byte by byte.
//!
//! The rule that all of them test: an app never gets more requests than the proxy was given, none that can be read
//! in two ways, and a client never gets an answer to what another one asked.

mod answers;
mod http2;
mod public;
mod requests;

use crate::protocols::tls;
use crate::support::*;
use beanpole_protocol::proxy::{Probe, TargetMode};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long the proxy waits for what does not come, and how long it is waited here for what it may still say.
const IDLE_MS: u64 = 150;
const SILENCE: Duration = Duration::from_millis(500);

/// What a request is followed by on its connection: whatever is left over of an attack spoils it.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n";

/// Bytes of text whose characters are below U+0100: each stands for one.
fn latin(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).expect("latin"))
        .collect()
}

/// A request as the app got it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Came {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Came {
    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|header| header.0 == name)
    }
}

/// An app that reads nothing but what everybody reads in the same way, and tells in its answers what it was asked.
struct Witness {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Result<Came, String>>>>,
}

impl Witness {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let witness = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
        };
        let seen = witness.seen.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(testify(socket, seen.clone()));
            }
        });
        witness
    }

    /// A proxy in front of it, for these hosts.
    async fn behind_a_proxy(&self, hosts: &[&str]) -> Proxy {
        let directory = tempfile::tempdir().expect("temporary directory");
        let proxy = Proxy::start_in(Arc::new(directory), |config| {
            config.header_timeout = Duration::from_millis(2 * IDLE_MS);
        })
        .await;
        let mut wanted = table(1, vec![target(1, self.address, TargetMode::Serve)]);
        check_all(&mut wanted, |check| check.probe = Probe::Tcp);
        wanted.pools[0].limits.idle_ms = IDLE_MS;
        wanted.routes = hosts
            .iter()
            .map(|host| route(host, &[("main", 1)]))
            .collect();
        proxy.serve(&wanted).await;
        proxy
    }

    /// What has come since the last call. Requests that never became whole are none.
    fn take(&self) -> Vec<Result<Came, String>> {
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}

async fn testify(mut socket: TcpStream, seen: Arc<Mutex<Vec<Result<Came, String>>>>) {
    let mut bytes = Vec::new();
    loop {
        match split(&bytes) {
            Ok(None) => {}
            Ok(Some((came, length))) => {
                bytes.drain(..length);
                let told = if came.method == "HEAD" {
                    String::new()
                } else {
                    came.target.clone()
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}",
                    came.target.len()
                );
                seen.lock().expect("no panic").push(Ok(came));
                if socket.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Err(why) => {
                let odd = format!("{why}: {}", bytes.escape_ascii());
                seen.lock().expect("no panic").push(Err(odd));
                return;
            }
        }
        if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
}

/// The first request of `bytes` and its length, where all of it is there; else what is odd about it.
fn split(bytes: &[u8]) -> Result<Option<(Came, usize)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = &bytes[..end];
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    let control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if lines.iter().any(|line| line.iter().any(control)) {
        return Err("a control character in the head");
    }
    let text: Vec<String> = lines
        .iter()
        .map(|line| line.iter().map(|byte| char::from(*byte)).collect())
        .collect();
    let words: Vec<&str> = text[0].split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err("no request line");
    };
    let mut came = Came {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    for line in &text[1..] {
        let (name, value) = line.split_once(':').ok_or("no header")?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("an odd name");
        }
        let header = (name.to_ascii_lowercase(), value.trim().to_owned());
        came.headers.push(header);
    }
    let all = |name: &str| -> Vec<&str> {
        let headers = came.headers.iter();
        let found = headers.filter(|header| header.0 == name);
        found.map(|header| header.1.as_str()).collect()
    };
    if all("host").len() != 1 {
        return Err("not one host");
    }
    let body = &bytes[end + 4..];
    let (content, length) = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => (Vec::new(), 0),
        ([length], []) => {
            if !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err("an odd length");
            }
            let length: usize = length.parse().map_err(|_| "an odd length")?;
            if body.len() < length {
                return Ok(None);
            }
            (body[..length].to_vec(), length)
        }
        ([], ["chunked"]) => match whole_chunks(body)? {
            Some(whole) => whole,
            None => return Ok(None),
        },
        _ => return Err("two lengths"),
    };
    came.body = content;
    Ok(Some((came, end + 4 + length)))
}

/// The content of chunks without anything optional, and their length.
fn whole_chunks(body: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = body[at..].windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let digits = std::str::from_utf8(&body[at..at + line]).map_err(|_| "an odd size")?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("an odd size");
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "an odd size")?;
        at += line + 2;
        let Some(chunk) = body.get(at..at + size + 2) else {
            return Ok(None);
        };
        if !chunk.ends_with(b"\r\n") {
            return Err("an odd end of a chunk");
        }
        content.extend_from_slice(&chunk[..size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((content, at)));
        }
    }
}

/// How a request reaches the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The short one, where it is plain.
    Plain,
    /// In small pieces.
    Pieces,
    /// With a header that has it take the long one, where the first line ends.
    Long,
    /// Behind a handshake of TLS.
    Tls,
}

const WAYS: [Way; 4] = [Way::Plain, Way::Pieces, Way::Long, Way::Tls];

impl Way {
    async fn send(self, proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => say(connect(proxy).await, &[bytes]).await,
            Self::Pieces => {
                let pieces: Vec<&[u8]> = bytes.chunks(7).collect();
                say(connect(proxy).await, &pieces).await
            }
            Self::Long => {
                let mut long = bytes.to_vec();
                if let Some(end) = first_line_end(bytes) {
                    long.splice(end..end, *b"\r\nX_Odd: 1");
                }
                say(connect(proxy).await, &[&long]).await
            }
            Self::Tls => say(tls(proxy, b"http/1.1").await, &[bytes]).await,
        }
    }
}

/// Where the first line ends that is not empty.
fn first_line_end(bytes: &[u8]) -> Option<usize> {
    let begin = bytes
        .iter()
        .position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let end = bytes[begin..].windows(2).position(|two| two == b"\r\n")?;
    Some(begin + end)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    socket.set_nodelay(true).expect("nodelay");
    socket
}

/// Sends pieces, each by itself, and tells what comes until the other side closes or has no more to say.
async fn say(io: impl AsyncRead + AsyncWrite, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut reads, mut writes) = tokio::io::split(io);
    let mut answer = Vec::new();
    let write = async {
        for piece in pieces {
            // It may be refused before its end.
            if writes.write_all(piece).await.is_err() || writes.flush().await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let read = async {
        while let Ok(Ok(1..)) = tokio::time::timeout(SILENCE, reads.read_buf(&mut answer)).await {}
    };
    tokio::join!(write, read);
    answer
}

/// The final answers among what came, with their bodies, for requests with these methods. One that is not whole has
/// no status.
fn answers(bytes: &[u8], methods: &[&str]) -> Vec<(u16, String)> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(end)) = head.parse(rest) else {
            found.push((0, String::from_utf8_lossy(rest).into_owned()));
            break;
        };
        let status = head.code.expect("a status");
        let value = |name: &str| {
            let mut headers = head.headers.iter();
            let found = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok().map(str::to_owned)
        };
        rest = &rest[end..];
        if status < 200 {
            continue;
        }
        let bodiless = methods.get(found.len()) == Some(&"HEAD") || status == 204 || status == 304;
        let body = if bodiless {
            Vec::new()
        } else if value("transfer-encoding").is_some() {
            let Some((body, length)) = whole_chunks(rest).ok().flatten() else {
                found.push((0, "chunks that are not whole".to_owned()));
                break;
            };
            rest = &rest[length..];
            body
        } else if let Some(length) = value("content-length") {
            let length: usize = length.parse().expect("a length");
            if rest.len() < length {
                found.push((0, "a body that is not whole".to_owned()));
                break;
            }
            let body = &rest[..length];
            rest = &rest[length..];
            body.to_vec()
        } else {
            std::mem::take(&mut rest).to_vec()
        };
        found.push((status, String::from_utf8_lossy(&body).into_owned()));
    }
    found
}
