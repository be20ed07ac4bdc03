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
async fn a_client_that_does_not_go_on_with_its_greeting_is_left() {
    let proxy = hurried_proxy().await;
    // Before it, and within a record of TLS.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut crowd = Vec::new();
        for _ in 0..50 {
            let mut socket = TcpStream::connect(proxy.https).await.expect("connect");
            socket.write_all(begun).await.expect("write");
            crowd.push(socket);
        }
        for mut socket in crowd {
            assert_eq!(rest_of(&mut socket).await, "");
        }
    }
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
async fn a_first_line_that_is_no_request_line_goes_nowhere() {
    let (backend, proxy) = serving_proxy().await;
    for line in [
        "GET /\0 HTTP/1.1",
        "GET /a\x01b HTTP/1.1",
        "GET /a\x7fb HTTP/1.1",
        "GET /a\tb HTTP/1.1",
        "GET /a b c HTTP/1.1",
        "GET /?a b HTTP/1.1",
        "GET / / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET HTTP/1.1",
        "GET",
        "G\x01T / HTTP/1.1",
        "G:T / HTTP/1.1",
    ] {
        let head = format!("{line}\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let (status, answer) = refused(&proxy, &head).await;
        assert_eq!(status, 400, "{line:?}: {answer}");
        assert!(answer.contains("not valid HTTP"), "{line:?}: {answer}");
    }
    assert_eq!(backend.hits(), 0);
    // What browsers and programs send unescaped all the same is passed on.
    let head =
        format!("GET /\u{e9}?q=[{{|}}] HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    assert_eq!(refused(&proxy, &head).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_in_a_chunked_body_are_told_by_a_page() {
    let (_backend, proxy) = serving_proxy().await;
    let extension = "x".repeat(70_000);
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n".to_owned(),
        "-1\r\nabc\r\n0\r\n\r\n".to_owned(),
        "0x3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "3\nabc\n0\n\n".to_owned(),
        "3\r\nabcd\r\n0\r\n\r\n".to_owned(),
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n".to_owned(),
        format!("3;{extension}\r\nabc\r\n0\r\n\r\n"),
    ] {
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        );
        let (status, answer) = refused(&proxy, &head).await;
        assert_eq!(status, 400, "{body:.20}: {answer}");
        assert!(answer.contains("not valid HTTP"), "{body:.20}: {answer}");
        assert!(!answer.contains("Pingora"), "{body:.20}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_name_no_environment_to_those_whom_a_proxy_brings() {
    let backend = Backend::start().await;
    backend
        .health
        .store(500, std::sync::atomic::Ordering::SeqCst);
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(directory, |config| config.access_log = Some(log.clone())).await;
    let wanted = table(1, vec![serving(1, &backend)]);
    proxy.put(&wanted).await.expect("put");
    let mut client = Client::connect(proxy.http).await;
    for header in ["forwarded", "via", "x-forwarded-for", "x-real-ip"] {
        let sent = request(http::Method::GET, HOST, "/", &[(header, "192.0.2.1")]);
        let answer = client.send(sent).await.expect("an answer");
        assert_eq!(answer.status, 503);
        let text = answer.text();
        assert!(
            !text.contains("prod") && !text.contains("beanpole "),
            "{text}"
        );
    }
    let here = client.get(HOST, "/").await.expect("an answer").text();
    assert!(here.contains("beanpole health prod"), "{here}");
    drop(client);
    let _directory = proxy.stopped().await;
    let text = std::fs::read_to_string(&log).expect("the log");
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["why"], "no-healthy-instance", "{line}");
        assert_eq!(line["environment"], "prod", "{line}");
    }
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
async fn a_connection_header_may_name_what_the_proxy_sets_and_needs() {
    let (_backend, proxy) = serving_proxy().await;
    let head = format!(
        "POST /told HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 9.9.9.9\r\nX-Hop: 1\r\n\
         X-Request-Id: theirs\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\
         Content-Length: 2\r\nConnection: close, X-Forwarded-For, Host\r\n\
         Connection: x-hop, \"quoted\", Content-Length, X-Request-Id, Forwarded\r\n\r\nab"
    );
    let (status, answer) = refused(&proxy, &head).await;
    assert_eq!(status, 200, "{answer}");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let told: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let values = |name: &str| -> Vec<&str> {
        let headers = told["headers"].as_array().expect("headers").iter();
        let found = headers.filter(|header| header[0] == name);
        found.filter_map(|header| header[1].as_str()).collect()
    };
    assert_eq!(values("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values("host"), [HOST]);
    assert_eq!(values("content-length"), ["2"]);
    assert_eq!(values("forwarded").len(), 1);
    assert_eq!(values("x-request-id").len(), 1);
    for gone in [
        "x-hop",
        "connection",
        "keep-alive",
        "upgrade",
        "http2-settings",
    ] {
        assert!(values(gone).is_empty(), "{gone}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_reach_the_app_in_one_coding() {
    let (_backend, proxy) = serving_proxy().await;
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close, transfer-encoding\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    let (status, answer) = refused(&proxy, &head).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.ends_with("abc"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_page_with_an_id_and_none_is_pingoras() {
    let (_backend, proxy) = serving_proxy().await;
    let names = "a, ".repeat(11);
    let host = format!("Host: {HOST}");
    for (status, head) in [
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}\r\nConnection: {names}\r\n\r\n"),
        ),
        (400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}\r\nno header\r\n\r\n"),
        ),
        (
            400,
            format!("GET / HTTP/1.1\r\n{host}\r\nContent-Length: x\r\n\r\n"),
        ),
        (400, format!("GET / HTTP/9.1\r\n{host}\r\n\r\n")),
        (
            400,
            format!("GET / HTTP/1.0\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ),
        (
            400,
            format!("GET http://u@{HOST}/ HTTP/1.1\r\n{host}\r\n\r\n"),
        ),
        (400, format!("GET http://other/ HTTP/1.1\r\n{host}\r\n\r\n")),
        (
            400,
            format!("POST /echo HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ),
        (
            404,
            "PURGE / HTTP/1.1\r\nHost: unknown\r\nConnection: close\r\n\r\n".to_owned(),
        ),
        (
            405,
            format!("CONNECT {HOST}:443 HTTP/1.1\r\n{host}:443\r\n\r\n"),
        ),
        (405, format!("CONNECT / HTTP/1.1\r\n{host}\r\n\r\n")),
        (414, format!("GET /{} HTTP/1.1\r\n", "x".repeat(70_000))),
    ] {
        let (got, answer) = refused(&proxy, &head).await;
        assert_eq!(got, status, "{head:.80}: {answer}");
        assert!(!answer.contains("Pingora"), "{head:.80}: {answer}");
        let (fields, page) = answer.split_once("\r\n\r\n").expect("a head");
        let id = fields.lines().find_map(|line| {
            let (name, id) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("x-request-id").then_some(id)
        });
        let id = id.unwrap_or_else(|| panic!("no id: {answer}"));
        assert!(page.contains(&format!("Request {id}")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_no_app_sees_are_in_the_access_log() {
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(directory, |config| {
        config.access_log = Some(log.clone());
        config.header_timeout = Duration::from_millis(200);
    })
    .await;
    let mut ids = Vec::new();
    for (status, head) in [
        (408, "GET / HTTP/1.1\r\n".to_owned()),
        (414, format!("GET /{} HTTP/1.1\r\n", "x".repeat(70_000))),
        (
            431,
            format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(70_000)),
        ),
        (400, "GET / HTTP/1.1\r\nno header\r\n\r\n".to_owned()),
    ] {
        let (got, answer) = refused(&proxy, &head).await;
        assert_eq!(got, status, "{answer}");
        let (_, page) = answer.split_once("\r\n\r\n").expect("a head");
        let (_, id) = page.trim_end().rsplit_once(' ').expect("an id");
        ids.push((status, page.len(), id.to_owned()));
    }
    let _directory = proxy.stopped().await;
    let text = std::fs::read_to_string(&log).expect("the log");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), ids.len(), "{text}");
    for (status, bytes, id) in ids {
        let line = lines.iter().find(|line| line["request"] == *id);
        let line = line.unwrap_or_else(|| panic!("{id} is not in {text}"));
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["bytes"], bytes, "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        let late = status == 408;
        assert_eq!(line["us"].as_u64() > Some(100_000), late, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_target_reaches_the_app_as_its_path() {
    let (_backend, proxy) = serving_proxy().await;
    let head =
        format!("GET http://{HOST}/a?b=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let (status, answer) = refused(&proxy, &head).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains(r#""path":"/a?b=1""#), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_no_path_and_no_http_address_goes_nowhere() {
    let (backend, proxy) = serving_proxy().await;
    for target in [
        "headers",
        "?x",
        "*",
        "ftp://app.localhost/",
        "app.localhost:80",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let (status, answer) = refused(&proxy, &head).await;
        assert_eq!(status, 400, "{target}: {answer}");
    }
    assert_eq!(backend.hits(), 0);
    let head = format!("OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    assert_eq!(refused(&proxy, &head).await.0, 200);
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
    check_all(&mut wanted, |check| {
        check.probe = beanpole_protocol::proxy::Probe::Tcp;
    });
    proxy.serve(&wanted).await;
    let (status, answer) = refused(
        &proxy,
        &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert_eq!(status, 502, "{answer}");
    assert!(!answer.contains("hello"), "{answer}");
}
