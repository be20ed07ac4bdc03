//! Heads of requests that are late, too large, ambiguous or misleading, and connections without any.

use crate::support::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for any bound in these tests, and far below those that they must not wait for.
const SOON: Duration = Duration::from_secs(3);

async fn serving_proxy() -> (Backend, Proxy) {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    (backend, proxy)
}

async fn hurried_proxy() -> Proxy {
    let directory = tempfile::tempdir().expect("temporary directory");
    Proxy::start_in(Arc::new(directory), |config| {
        config.header_timeout = Duration::from_millis(200);
    })
    .await
}

/// What comes until the other side closes.
async fn rest_of(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, socket.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends `head` and reads to the end; the status and the whole answer.
async fn refused(proxy: &Proxy, head: &str) -> (u16, String) {
    let answer = raw(proxy.http, head.as_bytes()).await;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or(0), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_delay_a_stop() {
    let (_backend, proxy) = serving_proxy().await;
    let mut silent = TcpStream::connect(proxy.http).await.expect("connect");
    let mut greeting = TcpStream::connect(proxy.https).await.expect("connect");
    let mut kept = Client::connect(proxy.http).await;
    assert_eq!(kept.get(HOST, "/").await.expect("an answer").status, 200);

    let begun = Instant::now();
    proxy.stopped().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(rest_of(&mut silent).await, "");
    assert_eq!(rest_of(&mut greeting).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_flight_is_finished_at_a_stop() {
    let (backend, proxy) = serving_proxy().await;
    let address = proxy.http;
    let held = tokio::spawn(async move { get(address, HOST, "/hold").await });
    proxy
        .until_target("the request is there", 1, |target| target.in_flight == 1)
        .await;
    proxy.stop();
    until("no new connections", || async {
        TcpStream::connect(address).await.err()
    })
    .await;
    backend.release.notify_one();
    assert_eq!(held.await.expect("no panic").text(), "held");
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_is_left() {
    let proxy = hurried_proxy().await;
    let mut socket = TcpStream::connect(proxy.http).await.expect("connect");
    assert_eq!(rest_of(&mut socket).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trickles_its_head_is_told_408() {
    let proxy = hurried_proxy().await;
    let mut socket = TcpStream::connect(proxy.http).await.expect("connect");
    let begun = Instant::now();
    socket
        .write_all(b"GET / HTTP/1.1\r\n")
        .await
        .expect("write");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // Each byte alone comes in time.
    while answer.is_empty() {
        assert!(begun.elapsed() < SOON, "no answer");
        let pause = Duration::from_millis(20);
        if let Ok(read) = tokio::time::timeout(pause, socket.read(&mut buffer)).await {
            answer.extend_from_slice(&buffer[..read.expect("read")]);
        } else {
            let _ = socket.write_all(b"a").await;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("did not come in time"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_may_be_idle_for_longer_than_a_head_may_take() {
    let backend = Backend::start().await;
    let proxy = hurried_proxy().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..2 {
        assert_eq!(client.get(HOST, "/").await.expect("an answer").status, 200);
        // Not to wait for something, but for nothing to happen.
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told_so() {
    let (backend, proxy) = serving_proxy().await;
    let long = "x".repeat(80 * 1024);
    let many = "x-a: 1\r\n".repeat(300);
    for (status, head) in [
        (
            431,
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {long}\r\n\r\n"),
        ),
        (431, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{many}\r\n")),
        (414, format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
    ] {
        let (got, answer) = refused(&proxy, &head).await;
        assert_eq!(got, status, "{answer}");
        assert!(answer.contains("64 KiB"), "{answer}");
    }
    assert_eq!(backend.hits(), 0);
    // Just below the limit it goes through.
    let large = "x".repeat(60 * 1024);
    let head =
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {large}\r\nConnection: close\r\n\r\n");
    assert_eq!(refused(&proxy, &head).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_can_be_read_in_two_ways_go_nowhere() {
    let (backend, proxy) = serving_proxy().await;
    for lengths in [
        "Content-Length: 3, 3",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: +3",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\ncontent-length: 3",
        "Transfer-Encoding: gzip",
        "Content-Length: 3\r\n Transfer-Encoding: chunked",
    ] {
        let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\n{lengths}\r\n\r\nabc");
        let (status, answer) = refused(&proxy, &head).await;
        assert_eq!(status, 400, "{lengths}: {answer}");
        assert!(answer.contains("not valid HTTP"), "{lengths}: {answer}");
    }
    assert_eq!(backend.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_proper_host_is_a_bad_one() {
    let (backend, proxy) = serving_proxy().await;
    for host in [
        "",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: app.localhost:x\r\n",
        "Host: app.localhost\r\nHost: other.localhost\r\n",
    ] {
        let (status, answer) = refused(&proxy, &format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!(status, 400, "{host}: {answer}");
        assert!(answer.contains("not valid HTTP"), "{host}: {answer}");
    }
    let old = refused(&proxy, "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.0, 404, "HTTP/1.0 knows no Host: {}", old.1);
    assert_eq!(backend.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_together_are_all_answered() {
    let (backend, proxy) = serving_proxy().await;
    let two = format!(
        "GET /one HTTP/1.1\r\nHost: {HOST}\r\n\r\nPOST /echo HTTP/1.1\r\nHost: {HOST}\r\n\
         Content-Length: 3\r\n\r\nabcGET /three HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    );
    let answers = raw(proxy.http, two.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    assert!(answers.find("/one") < answers.find("/three"), "{answers}");
    assert_eq!(backend.hits(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_mislead_or_claim_do_not_reach_the_app() {
    let (_backend, proxy) = serving_proxy().await;
    let hidden = [
        ("x_forwarded_for", "1.1.1.1"),
        ("proxy", "http://1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("true-client-ip", "1.1.1.1"),
        ("x-forwarded-prefix", "/admin"),
        ("x-forwarded-ssl", "on"),
    ];
    let mut headers = hidden.to_vec();
    headers.push(("x-forwarded-for", "1.1.1.1"));
    headers.push(("x-harmless", "yes"));
    let mut client = Client::connect(proxy.http).await;
    let sent = request(http::Method::GET, HOST, "/", &headers);
    let answer = client.send(sent).await.expect("an answer");
    for (name, _) in hidden {
        assert_eq!(answer.told(name), None, "{name}");
    }
    assert_eq!(answer.told("x-harmless").as_deref(), Some("yes"));
    assert_eq!(answer.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_reaches_the_app_as_it_was_sent() {
    let (_backend, proxy) = serving_proxy().await;
    let head =
        format!("GET http://{HOST}/a?b=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let (status, answer) = refused(&proxy, &head).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("/a?b=1"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn protocols_that_an_app_switches_to_unasked_are_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                let _ = socket.read(&mut buffer).await;
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: secret\r\n\r\nhello";
                let _ = socket.write_all(answer).await;
                let _ = socket.read(&mut buffer).await;
            });
        }
    });
    let proxy = Proxy::start().await;
    let wanted = target(1, address, beanpole_protocol::proxy::TargetMode::Serve);
    let mut wanted = table(1, vec![wanted]);
    wanted.pools[0].check.probe = beanpole_protocol::proxy::Probe::Tcp;
    proxy.serve(&wanted).await;
    let (status, answer) = refused(
        &proxy,
        &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert_eq!(status, 502, "{answer}");
    assert!(!answer.contains("hello"), "{answer}");
}
