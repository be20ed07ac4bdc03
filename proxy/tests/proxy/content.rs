//! What the proxy does to answers.

use crate::support::*;
use beanpole_protocol::content::{
    Compression, Encoding, Maintenance, PageFor, PageText, PoolContent,
};
use beanpole_protocol::proxy::{Probe, TargetMode};
use beanpole_protocol::{Digest, Generation};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::{Digest as _, Sha256};
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// An app that gives each request the answer of its path, and closes. After that of `/stream`, it writes what it is
/// told to.
struct App {
    address: SocketAddr,
    pieces: mpsc::Sender<&'static str>,
}

fn text() -> String {
    "All work and no play. ".repeat(200)
}

fn answer_to(path: &str) -> String {
    let body = text();
    let head = |more: &str| {
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n\r\n"
        )
    };
    match path {
        "/stream" => "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n".to_owned(),
        "/image" => head("Content-Type: image/png") + &body,
        "/part" => head("Content-Type: text/plain\r\nContent-Range: bytes 0-1/2") + &body,
        "/broken" => head("Content-Type: text/plain").replace("200 OK", "500 Oh") + &body,
        _ => {
            head("Content-Type: text/html\r\nETag: \"one\"\r\nAccept-Ranges: bytes\r\nVary: Cookie")
                + &body
        }
    }
}

impl App {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (pieces, mut told) = mpsc::channel::<&'static str>(8);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 4096];
                // A check only connects.
                let Ok(count @ 1..) = socket.read(&mut head).await else {
                    continue;
                };
                let head = String::from_utf8_lossy(&head[..count]).into_owned();
                let mut words = head.split(' ');
                let only_head = words.next() == Some("HEAD");
                let path = words.next().unwrap_or_default();
                let mut answer = answer_to(path);
                if only_head {
                    answer.truncate(answer.find("\r\n\r\n").expect("a head") + 4);
                }
                socket.write_all(answer.as_bytes()).await.expect("write");
                if path == "/stream" {
                    while let Some(piece) = told.recv().await.filter(|piece| !piece.is_empty()) {
                        socket.write_all(piece.as_bytes()).await.expect("write");
                    }
                }
            }
        });
        Self { address, pieces }
    }

    /// A proxy in front of it that does this to its answers.
    async fn behind(&self, content: PoolContent) -> Proxy {
        let proxy = Proxy::start().await;
        let mut wanted = table(1, vec![target(1, self.address, TargetMode::Serve)]);
        check_all(&mut wanted, |check| check.probe = Probe::Tcp);
        wanted.pools[0].content = content;
        proxy.serve(&wanted).await;
        proxy
    }
}

fn compressing() -> PoolContent {
    PoolContent {
        compression: Some(Compression {
            encodings: Encoding::ALL.to_vec(),
            min_bytes: 1024,
        }),
        ..PoolContent::default()
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let value = answer.headers.get(name)?;
    Some(value.to_str().expect("text"))
}

async fn asked(proxy: &Proxy, method: Method, path: &str, accepts: &str) -> Answer {
    let mut client = Client::connect(proxy.http).await;
    let accepted = [("accept-encoding", accepts)];
    let headers = if accepts.is_empty() {
        &[][..]
    } else {
        &accepted
    };
    let asked = client.send(request(method, HOST, path, headers)).await;
    asked.expect("an answer")
}

fn decoded(encoding: &str, bytes: &[u8]) -> String {
    let mut out = Vec::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        _ => zstd::stream::read::Decoder::new(bytes).and_then(|mut one| one.read_to_end(&mut out)),
    }
    .expect("it is whole");
    String::from_utf8(out).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_compressed_as_its_client_likes_it_best() {
    let app = App::start().await;
    let proxy = app.behind(compressing()).await;
    for (accepts, wanted) in [
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, br", "br"),
        ("gzip, br, zstd", "zstd"),
    ] {
        let answer = asked(&proxy, Method::GET, "/", accepts).await;
        assert_eq!(header(&answer, "content-encoding"), Some(wanted));
        assert_eq!(header(&answer, "content-length"), None);
        assert_eq!(header(&answer, "accept-ranges"), None);
        assert_eq!(header(&answer, "etag"), Some("W/\"one\""));
        let varies = answer.headers.get_all("vary").iter();
        let varies: Vec<_> = varies.map(|value| value.to_str().expect("text")).collect();
        assert_eq!(varies, ["Cookie", "Accept-Encoding"]);
        assert!(answer.body.len() < text().len() / 5);
        assert_eq!(decoded(wanted, &answer.body), text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_compressed_over_http2_too() {
    let app = App::start().await;
    let proxy = app.behind(compressing()).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("handshake");
    tokio::spawn(driver);
    let wanted = Request::get(format!("http://{HOST}/"))
        .header("accept-encoding", "br")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let answer = sender.send_request(wanted).await.expect("an answer");
    assert_eq!(answer.headers()["content-encoding"], "br");
    let body = answer.into_body().collect().await.expect("a body");
    assert_eq!(decoded("br", &body.to_bytes()), text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_text_or_nobody_wants_compressed_goes_as_it_is() {
    let app = App::start().await;
    let proxy = app.behind(compressing()).await;
    for (method, path, accepts, varies) in [
        (Method::GET, "/", "", true),
        (Method::GET, "/", "gzip;q=0", true),
        (Method::HEAD, "/", "gzip", true),
        (Method::GET, "/image", "gzip", false),
        (Method::GET, "/part", "gzip", false),
    ] {
        let answer = asked(&proxy, method.clone(), path, accepts).await;
        assert_eq!(header(&answer, "content-encoding"), None, "{path}");
        let length = text().len().to_string();
        assert_eq!(header(&answer, "content-length"), Some(&*length));
        let told = answer.headers.get_all("vary").iter();
        let told = told.filter(|value| *value == "Accept-Encoding").count();
        assert_eq!(told, usize::from(varies), "{path} {accepts}");
        if method == Method::GET {
            assert_eq!(answer.text(), text());
        }
    }
    let old = format!("GET / HTTP/1.0\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n");
    let answer = raw(proxy.http, old.as_bytes()).await;
    assert!(answer.ends_with(&text()), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_compressed_without_holding_anything_up() {
    let app = App::start().await;
    let proxy = app.behind(compressing()).await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!("GET /stream HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("write");
    let mut body = Vec::new();
    let mut told = Vec::new();
    let mut whole = String::new();
    for piece in ["first ", "second ", "third "] {
        app.pieces.send(piece).await.expect("sent");
        whole += piece;
        let read = async {
            loop {
                told.push(client.read_u8().await.expect("more"));
                body.clear();
                body.extend_from_slice(&without_chunks(&told));
                let mut out = Vec::new();
                // It is not over yet.
                let _ = flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut out);
                if out == whole.as_bytes() {
                    break;
                }
            }
        };
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        read.expect("it comes before the next piece");
    }
    app.pieces.send("").await.expect("sent");
    let mut rest = [0; 4096];
    while !told.ends_with(b"\r\n0\r\n\r\n") {
        let count = client.read(&mut rest).await.expect("more");
        assert!(count > 0, "it ends");
        told.extend_from_slice(&rest[..count]);
    }
    assert_eq!(decoded("gzip", &without_chunks(&told)), whole);
}

/// The content of the chunks that have come behind a head.
fn without_chunks(answer: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let mut rest = head.map_or(&b""[..], |at| &answer[at + 4..]);
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        let content = &rest[end + 2..];
        out.extend_from_slice(&content[..size.min(content.len())]);
        rest = content.get(size + 2..).unwrap_or_default();
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_have_their_turns_also_with_requests_that_change_their_way() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &one), serving(2, &other)]);
    wanted.pools[0].content = compressing();
    proxy.serve(&wanted).await;
    for _ in 0..10 {
        assert_eq!(asked(&proxy, Method::GET, "/", "gzip").await.status, 200);
    }
    assert_eq!((one.hits(), other.hits()), (5, 5));
}

/// Takes a page to the proxy; what it is called there.
async fn put_page(proxy: &Proxy, html: &str) -> Digest {
    let hash = Sha256::digest(html.as_bytes());
    let hash = hash
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let digest = Digest::new(hash).expect("a digest");
    let page = PageText {
        html: html.to_owned(),
    };
    let path = format!("/v1/pages/{digest}");
    let mut connection = proxy.connect().await;
    let put = connection
        .call::<serde_json::Value>(Method::PUT, &path, Some(&page), Duration::from_secs(5))
        .await;
    put.expect("it is taken");
    digest
}

async fn pages_of(proxy: &Proxy) -> Vec<Digest> {
    let mut connection = proxy.connect().await;
    let held = connection.get("/v1/pages", Duration::from_secs(5)).await;
    held.expect("a list")
}

async fn accepting(proxy: &Proxy, path: &str, accept: &str, odd: bool) -> Answer {
    let mut client = Client::connect(proxy.http).await;
    let mut headers = vec![("accept", accept)];
    if odd {
        // Has it take the long way.
        headers.push(("x_odd", "1"));
    }
    let asked = client
        .send(request(Method::GET, HOST, path, &headers))
        .await;
    asked.expect("an answer")
}

fn page(name: &str) -> PageFor {
    PageFor::new(name).expect("a page")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_environment_answers_by_its_page_and_lets_some_in() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let digest = put_page(&proxy, "<h1>Soon back</h1>{{request_id}}").await;
    let closed = |allow: &[&str], page: Option<Digest>| PoolContent {
        maintenance: Some(Maintenance {
            page,
            allow: allow
                .iter()
                .map(|one| one.parse().expect("a network"))
                .collect(),
            retry_after_s: 77,
        }),
        ..PoolContent::default()
    };
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.pools[0].content = closed(&["10.0.0.0/8"], Some(digest));
    proxy.serve(&wanted).await;
    for odd in [false, true] {
        let answer = accepting(&proxy, "/", "text/html", odd).await;
        assert_eq!(answer.status, 503);
        assert_eq!(header(&answer, "retry-after"), Some("77"));
        let id = header(&answer, "x-request-id").expect("an id");
        assert_eq!(answer.text(), format!("<h1>Soon back</h1>{id}"));
        let answer = accepting(&proxy, "/", "application/json", odd).await;
        let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(told["code"], "maintenance");
    }
    assert_eq!(backend.hits(), 0);
    assert_eq!(proxy.report().await.environments[0].traffic.failed, 0);

    wanted.generation = Generation(2);
    wanted.pools[0].content = closed(&["10.0.0.0/8", "127.0.0.0/8"], None);
    proxy.serve(&wanted).await;
    assert!(
        pages_of(&proxy).await.is_empty(),
        "nobody names it any more"
    );
    for odd in [false, true] {
        assert_eq!(accepting(&proxy, "/", "text/html", odd).await.status, 200);
    }
    wanted.generation = Generation(3);
    wanted.pools[0].content = closed(&[], None);
    proxy.serve(&wanted).await;
    let answer = accepting(&proxy, "/", "text/html", false).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("Closed for maintenance"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environments_own_page_takes_the_place_of_the_usual_one() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let late = "b".repeat(64);
    let content = PoolContent {
        pages: [
            (page("502"), put_page(&proxy, "<p>{{status}} own").await),
            (page("5xx"), put_page(&proxy, "<p>{{status}} any").await),
            (page("413"), Digest::new(late).expect("a digest")),
        ]
        .into(),
        ..PoolContent::default()
    };
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.pools[0].content = content;
    wanted.pools[0].limits.body_bytes = 1;
    proxy.serve(&wanted).await;
    for odd in [false, true] {
        let answer = accepting(&proxy, "/drop", "text/html", odd).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.text(), "<p>502 own");
        let answer = accepting(&proxy, "/drop", "application/json", odd).await;
        assert!(answer.text().contains("no-answer"), "{}", answer.text());
    }
    let post = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/html\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
    );
    let answer = raw(proxy.http, post.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("The request is too large"),
        "a page that is not here yet: {answer}"
    );
    let directory = proxy.stopped().await;
    backend.kill();
    let proxy = Proxy::start_in(directory, |_| {}).await;
    proxy
        .until_target("it is found dead", 1, |target| !target.healthy)
        .await;
    let answer = accepting(&proxy, "/", "text/html", false).await;
    assert_eq!(answer.text(), "<p>503 any", "pages outlive the proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apps_own_errors_are_replaced_where_that_is_asked_for() {
    let app = App::start().await;
    let proxy = app.behind(PoolContent::default()).await;
    let mut content = PoolContent {
        pages: [(page("5xx"), put_page(&proxy, "<p>{{status}} own").await)].into(),
        ..PoolContent::default()
    };
    let mut wanted = table(2, vec![target(1, app.address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].content = content.clone();
    proxy.serve(&wanted).await;
    let answer = accepting(&proxy, "/broken", "text/html", false).await;
    assert_eq!((answer.status, answer.text()), (500, text()));

    content.replaces_errors = true;
    wanted.generation = Generation(3);
    wanted.pools[0].content = content;
    proxy.serve(&wanted).await;
    for odd in [false, true] {
        let answer = accepting(&proxy, "/broken", "text/html,*/*", odd).await;
        assert_eq!((answer.status, &*answer.text()), (500, "<p>500 own"));
        let answer = accepting(&proxy, "/broken", "application/json", odd).await;
        assert_eq!((answer.status, answer.text()), (500, text()));
        let answer = accepting(&proxy, "/", "text/html", odd).await;
        assert_eq!((answer.status, answer.text()), (200, text()));
    }
    let traffic = proxy.target(1).await.traffic;
    assert_eq!(traffic.failed, 0, "the app did answer: {traffic:?}");
}
