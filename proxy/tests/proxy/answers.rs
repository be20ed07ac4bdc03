//! Answers as the app gives them, piece by piece.

use crate::support::*;
use beanpole_protocol::proxy::{Probe, TargetMode};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// An app that writes what it is told to, as soon as it has a request, and then closes; and a proxy in
/// front of it.
async fn app_that_writes() -> (Proxy, mpsc::Sender<&'static str>) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (pieces, mut told) = mpsc::channel::<&'static str>(8);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 4096];
            // A check only connects.
            if !matches!(socket.read(&mut head).await, Ok(1..)) {
                continue;
            }
            while let Some(piece) = told.recv().await {
                socket.write_all(piece.as_bytes()).await.expect("write");
            }
        }
    });
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(Arc::new(directory), |config| config.access_log = Some(log)).await;
    let mut wanted = table(1, vec![target(1, address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    proxy.serve(&wanted).await;
    (proxy, pieces)
}

async fn ask(proxy: &Proxy, version: &str) -> TcpStream {
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!("GET / HTTP/{version}\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("write");
    client
}

/// Reads until `text` has come, which it has to without the app's writing on.
async fn until_it_ends_in(client: &mut TcpStream, text: &str) -> String {
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(text.as_bytes()) {
            answer.push(client.read_u8().await.expect("more"));
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert!(read.is_ok(), "{}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn rest(mut client: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_known_length_reaches_its_client_as_it_comes() {
    let (proxy, app) = app_that_writes().await;
    let mut client = ask(&proxy, "1.1").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        .await
        .expect("sent");
    until_it_ends_in(&mut client, "\r\n\r\n").await;
    app.send("ab").await.expect("sent");
    until_it_ends_in(&mut client, "ab").await;
    app.send("cdef").await.expect("sent");
    until_it_ends_in(&mut client, "cdef").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_sent_before_it_broke_off_reaches_the_client_and_the_log_says_why() {
    let (proxy, app) = app_that_writes().await;
    let mut client = ask(&proxy, "1.1").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        .await
        .expect("sent");
    let answer = until_it_ends_in(&mut client, "abc").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(app);
    assert_eq!(rest(client).await, "");
    let directory = proxy.stopped().await;
    let log = std::fs::read_to_string(directory.path().join("access.log")).expect("the log");
    assert!(log.contains(r#""why":"broken-off""#), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (proxy, app) = app_that_writes().await;
    let client = ask(&proxy, "1.0").await;
    app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
        .await
        .expect("sent");
    let answer = rest(client).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let head = head.to_lowercase();
    assert!(!head.contains("transfer-encoding"), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(body, "ab");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_http_1_0_is_served_in_http_1_1() {
    let (proxy, app) = app_that_writes().await;
    let client = ask(&proxy, "1.1").await;
    app.send("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab")
        .await
        .expect("sent");
    let answer = rest(client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nab"), "{answer}");
}

/// What a client of HTTP/1.1 gets for an answer of the app.
async fn passed_on(answer: &'static str) -> String {
    let (proxy, app) = app_that_writes().await;
    let client = ask(&proxy, "1.1").await;
    app.send(answer).await.expect("sent");
    rest(client).await.to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answers_length_is_said_once_or_it_is_none() {
    for twice in [
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2, 2",
    ] {
        let answer: &'static str = format!("HTTP/1.1 200 OK\r\n{twice}\r\n\r\nab").leak();
        let answer = passed_on(answer).await;
        assert!(answer.starts_with("http/1.1 200 "), "{twice}: {answer}");
        assert_eq!(
            answer.matches("content-length: 2\r\n").count(),
            1,
            "{answer}"
        );
        assert_eq!(answer.matches("content-length").count(), 1, "{answer}");
    }
    let empty = passed_on("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n").await;
    assert!(!empty.contains("content-length"), "{empty}");
    let endless = passed_on(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    )
    .await;
    assert!(endless.starts_with("http/1.1 502 "), "{endless}");
}
