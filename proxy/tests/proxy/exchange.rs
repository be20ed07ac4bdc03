//! Apps that are odd, and what their clients get of it: over kept connections, in either direction.

use crate::support::*;
use beanpole_protocol::proxy::{Probe, Rate, TargetMode, TargetReport};
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What an app does with a request.
pub enum Does {
    /// Says this, and takes the next one.
    Says(&'static str),
    /// Says this, and closes.
    SaysAndCloses(&'static str),
    /// Says this, and that a moment later.
    SaysLate(&'static str, &'static str),
}

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

/// An app whose answer depends on the number of the request at it, over all its connections, counted from 1.
pub struct App {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    /// How many of its connections have ended.
    ended: Arc<AtomicUsize>,
}

impl App {
    pub async fn start(does: impl Fn(usize) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let app = Self {
            address: listener.local_addr().expect("address"),
            connections: Arc::default(),
            requests: Arc::default(),
            ended: Arc::default(),
        };
        let (connections, ended) = (app.connections.clone(), app.ended.clone());
        let requests = app.requests.clone();
        let does = Arc::new(does);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (connections, ended) = (connections.clone(), ended.clone());
                let (requests, does) = (requests.clone(), does.clone());
                tokio::spawn(async move {
                    converse(socket, &connections, &requests, &*does).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        app
    }

    /// A proxy in front of it, which checks only that it can be connected to.
    pub async fn behind_a_proxy(&self) -> Proxy {
        let proxy = Proxy::start().await;
        let mut wanted = table(1, vec![target(1, self.address, TargetMode::Serve)]);
        check_all(&mut wanted, |check| check.probe = Probe::Tcp);
        proxy.serve(&wanted).await;
        proxy
    }
}

async fn converse(
    mut socket: TcpStream,
    connections: &AtomicUsize,
    requests: &AtomicUsize,
    does: &(impl Fn(usize) -> Does + Sync),
) {
    let mut is_first = true;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        // A check only connects.
        if std::mem::take(&mut is_first) {
            connections.fetch_add(1, Ordering::SeqCst);
        }
        let (says, closes) = match does(requests.fetch_add(1, Ordering::SeqCst) + 1) {
            Does::Says(says) => (says, false),
            Does::SaysAndCloses(says) => (says, true),
            Does::SaysLate(says, late) => {
                if socket.write_all(says.as_bytes()).await.is_err() {
                    return;
                }
                // The point is that it comes after the answer was read.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                (late, false)
            }
        };
        if socket.write_all(says.as_bytes()).await.is_err() || closes {
            return;
        }
    }
}

/// What a client that sends `head` gets until the other side closes.
async fn asked(proxy: &Proxy, head: &str) -> String {
    let head = format!("{head} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    raw(proxy.http, head.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_whose_kept_connection_the_app_closes_is_asked_again_and_a_post_is_not() {
    let app = App::start(|request| match request {
        2 | 4 => Does::SaysAndCloses(""),
        _ => Does::Says(FINE),
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..2 {
        assert_eq!(
            client.get(HOST, "/").await.expect("an answer").text(),
            "fine"
        );
    }
    let post = request(Method::POST, HOST, "/", &[]);
    let answer = client.send(post).await.expect("an answer");
    assert_eq!(answer.status, 502);
    assert_eq!(proxy.get("/").await.text(), "fine");
    // A request counts once its answer is out.
    let counted = |target: &TargetReport| target.traffic.requests == 4;
    let target = proxy.until_target("all are counted", 1, counted).await;
    assert_eq!(target.traffic.failed, 1, "{:?}", target.traffic);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_says_beyond_its_answer_is_nobodys_answer() {
    let app = App::start(|request| match request {
        1 => Does::Says(
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfineHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
        ),
        2 => Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine poison"),
        _ => Does::Says(FINE),
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let mut client = Client::connect(proxy.http).await;
    for asked in 1..=3 {
        let answer = client.get(HOST, "/").await.expect("an answer");
        assert_eq!(answer.text(), "fine", "{asked}");
        assert_eq!(app.connections.load(Ordering::SeqCst), asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_can_be_read_in_two_ways_or_in_none_is_a_502() {
    for says in [
        "no HTTP at all\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfine!",
        "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nfine",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Not-Over: ",
        "",
    ] {
        let app = App::start(move |_| Does::SaysAndCloses(says)).await;
        let proxy = app.behind_a_proxy().await;
        let answer = asked(&proxy, "GET /").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{says}: {answer}");
        assert!(!answer.contains("127.0.0.1"), "{answer}");
        proxy
            .until_target("nothing is under way", 1, |target| target.in_flight == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_break_off_or_are_none_do_not_end_as_if_all_had_come() {
    for body in ["5\r\nhel", "5\r\nhello", "5\r\nhello\r\nnone\r\n", "x\r\n"] {
        let says: &'static str =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}").leak();
        let app = App::start(move |_| Does::SaysAndCloses(says)).await;
        let proxy = app.behind_a_proxy().await;
        let answer = asked(&proxy, "GET /").await;
        assert!(!answer.contains("\r\n0\r\n"), "{body}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_answers_trailers_and_extensions_reach_the_client() {
    let app = App::start(|_| {
        Does::Says(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
             Trailer: X-Sum\r\n\r\n4;a=b\r\nfine\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let answer = asked(&proxy, "GET /").await;
    assert!(
        answer.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("0\r\nX-Sum: 7\r\n\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_leave_the_connection_to_the_next_request() {
    let app = App::start(|request| match request {
        1 => Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
        2 => Does::Says("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"),
        3 => Does::Says("HTTP/1.1 204 No Content\r\n\r\n"),
        _ => Does::Says(FINE),
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let mut client = Client::connect(proxy.http).await;
    let head = request(Method::HEAD, HOST, "/", &[]);
    let answer = client.send(head).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.headers["content-length"]),
        (200, &"4".parse().expect("text"))
    );
    for status in [304, 204, 200] {
        assert_eq!(
            client.get(HOST, "/").await.expect("an answer").status,
            status
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_answers_before_it_has_read_the_body_is_heard() {
    let app = App::start(|_| {
        Does::SaysAndCloses("HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nmuch")
    })
    .await;
    let proxy = app.behind_a_proxy().await;
    let body = "x".repeat(30_000);
    let whole = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: 30000\r\n\r\n{body}"
    );
    let answer = raw(proxy.http, whole.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_came_together_are_answered_in_their_order_whatever_way_each_takes() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let plain = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let odd = format!("GET /2 HTTP/1.1\r\nHost: {HOST}\r\nX_Odd: 1\r\n\r\n");
    let body = format!("POST /3 HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nab");
    let chunked = format!(
        "POST /4 HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    );
    let last = format!("GET /6 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let all = [plain("/1"), odd, body, chunked, plain("/5"), last].concat();
    let answer = raw(proxy.http, all.as_bytes()).await;
    let paths: Vec<&str> = answer
        .match_indices(r#""path":"/"#)
        .map(|(at, found)| &answer[at + found.len()..=at + found.len()])
        .collect();
    assert_eq!(paths, ["1", "2", "3", "4", "5", "6"], "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_takes_the_apps_connection_with_it() {
    let app =
        App::start(|_| Does::Says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")).await;
    let proxy = app.behind_a_proxy().await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    while !answer.ends_with(b"begun") {
        answer.push(client.read_u8().await.expect("more"));
    }
    let before = app.ended.load(Ordering::SeqCst);
    drop(client);
    until("the app's connection ends", || async {
        (app.ended.load(Ordering::SeqCst) > before).then_some(())
    })
    .await;
    proxy
        .until_target("nothing is under way", 1, |target| target.in_flight == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_answers_without_end_do_not_grow_the_proxy() {
    let hints: &'static str = format!(
        "HTTP/1.1 103 Early Hints\r\nX: {}\r\n\r\n",
        "a".repeat(8_000)
    )
    .leak();
    let many: &'static str = hints.repeat(32_000).leak();
    let app = App::start(move |_| Does::SaysAndCloses(many)).await;
    let proxy = app.behind_a_proxy().await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("write");
    let before = resident_mib();
    let mut read = 0;
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = client.read(&mut buffer).await {
        read += count;
    }
    assert!(read > many.len(), "{read}");
    let grown = resident_mib().saturating_sub(before);
    assert!(
        grown < 100,
        "{grown} MiB for {} MiB of answers",
        many.len() >> 20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_late_where_none_belongs_does_not_reach_the_next_client() {
    let odd = [("x_odd", "1")];
    for (status, method) in [
        ("200 OK\r\nContent-Length: 44", Method::HEAD),
        ("200 OK\r\nTransfer-Encoding: chunked", Method::HEAD),
        ("304 Not Modified\r\nContent-Length: 44", Method::GET),
        ("204 No Content\r\nContent-Length: 44", Method::GET),
        ("204 No Content\r\nTransfer-Encoding: chunked", Method::GET),
    ] {
        // Each on the short way, and on the long one.
        for extra in [&[][..], &odd] {
            let says: &'static str = format!("HTTP/1.1 {status}\r\n\r\n").leak();
            let app = App::start(move |request| match request {
                1 => Does::SaysLate(says, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"),
                _ => Does::Says(FINE),
            })
            .await;
            let proxy = app.behind_a_proxy().await;
            let mut client = Client::connect(proxy.http).await;
            let first = request(method.clone(), HOST, "/", extra);
            client.send(first).await.expect("an answer");
            let next = request(Method::GET, HOST, "/", extra);
            let next = client.send(next).await.expect("an answer");
            assert_eq!(next.text(), "fine", "{status} {extra:?}");
            let connections = app.connections.load(Ordering::SeqCst);
            assert_eq!(connections, 2, "{status} {extra:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_requests_come_together_all_are_answered() {
    let app = App::start(|_| Does::Says(FINE)).await;
    let proxy = app.behind_a_proxy().await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let padding = "x".repeat(200);
    let one = format!("GET /{padding} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let last = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let all = one.repeat(600) + &last;
    let (mut reads, mut writes) = client.split();
    let mut answers = Vec::new();
    let (written, read) = tokio::join!(
        writes.write_all(all.as_bytes()),
        reads.read_to_end(&mut answers)
    );
    written.expect("all is taken");
    read.expect("all is answered");
    let answers = String::from_utf8_lossy(&answers).into_owned();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 601);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_an_app_that_breaks_off_twice_at_most_and_once_if_it_had_begun() {
    for (says, asked, page) in [
        ("", 2, true),
        ("HTTP/1.1 200 O", 1, true),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", 1, true),
    ] {
        for odd in ["", "X_Odd: 1\r\n"] {
            let app = App::start(move |request| match request {
                1 | 2 => Does::Says(FINE),
                _ => Does::SaysAndCloses(says),
            })
            .await;
            let proxy = app.behind_a_proxy().await;
            // One kept connection on each way.
            for extra in [[].as_slice(), &[("x_odd", "1")]] {
                let warm = request(Method::GET, HOST, "/", extra);
                let mut client = Client::connect(proxy.http).await;
                assert_eq!(client.send(warm).await.expect("an answer").status, 200);
            }
            let before = app.requests.load(Ordering::SeqCst);
            let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\n\r\n");
            let answer = raw(proxy.http, head.as_bytes()).await;
            let came = app.requests.load(Ordering::SeqCst) - before;
            assert!(came <= asked, "{says:?} {odd:?}: {came}");
            assert_eq!(
                answer.contains("HTTP/1.1 502 "),
                page,
                "{says:?} {odd:?}: {answer}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_needs_another_attempt_counts_once_for_its_clients_rate() {
    let app = App::start(|request| match request {
        2 => Does::SaysAndCloses(""),
        _ => Does::Says(FINE),
    })
    .await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, app.address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits.rates.by_client = Rate {
        per_second: 1,
        burst: 2,
    };
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..2 {
        let answer = client.get(HOST, "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    assert_eq!(client.get(HOST, "/").await.expect("an answer").status, 429);
}
