//! Clients that wait for leave to send a body (RFC 9110, section 10.1.1).

use crate::frames::*;
use crate::support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Of HTTP/1.1: what it is told before it has sent its body, and then.
async fn waits(proxy: &Proxy, more: &str, body: &str) -> (String, String) {
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nConnection: close\r\n{more}\r\n"
    );
    client.write_all(head.as_bytes()).await.expect("write");
    let mut told = Vec::new();
    while !told.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(LIMIT, client.read_u8()).await;
        told.push(byte.expect("in time").expect("more"));
    }
    let mut rest = Vec::new();
    if told.starts_with(b"HTTP/1.1 100 ") {
        client.write_all(body.as_bytes()).await.expect("write");
    }
    let _ = client.read_to_end(&mut rest).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(told), text(rest))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_1_has_leave_though_the_app_says_nothing_before_it_has_the_body() {
    let app = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &app)]);
    wanted.pools[0].limits.body_bytes = 100;
    proxy.serve(&wanted).await;
    for (more, body) in [
        ("Content-Length: 4\r\n", "fine"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nfine\r\n0\r\n\r\n"),
    ] {
        let (told, rest) = waits(&proxy, more, body).await;
        assert!(told.starts_with("HTTP/1.1 100 "), "{told}");
        assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
        assert!(rest.ends_with("fine"), "{rest}");
    }
    // What speaks against it is said at once.
    let (told, _) = waits(&proxy, "Content-Length: 101\r\n", "").await;
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_client_waited_for_leave_is_kept() {
    let app = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &app)])).await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    );
    for _ in 0..2 {
        client.write_all(head.as_bytes()).await.expect("write");
        let mut told = Vec::new();
        let reading = async {
            while !told.ends_with(b"100 Continue\r\n\r\n") {
                told.push(client.read_u8().await.expect("leave"));
            }
            client.write_all(b"fine").await.expect("write");
            while !told.ends_with(b"fine") {
                told.push(client.read_u8().await.expect("an answer"));
            }
        };
        let read = tokio::time::timeout(LIMIT, reading).await;
        assert!(read.is_ok(), "{}", String::from_utf8_lossy(&told));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_has_leave_as_well() {
    let app = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &app)])).await;
    let socket = TcpStream::connect(proxy.http).await.expect("connect");
    let mut talk = Talk::begin(socket, &[]).await;
    let head = |path: &'static [u8]| {
        block(&[
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", HOST.as_bytes()),
            (b":path", path),
            (b"expect", b"100-continue"),
            (b"content-length", b"4"),
        ])
    };
    for stream in [1, 3] {
        assert!(
            talk.send(&frame(HEADERS, END_HEADERS, stream, &head(b"/echo")))
                .await
        );
        let leave = talk.next_of(stream).await.expect("leave");
        assert_eq!((leave.kind, leave.flags & END_STREAM), (HEADERS, 0));
        if stream == 1 {
            // From then on it is in the table of HPACK.
            assert_eq!(leave.status(), Some(100));
        }
        assert!(talk.send(&frame(DATA, END_STREAM, stream, b"fine")).await);
        let answer = talk.next_of(stream).await.expect("an answer");
        assert_eq!(answer.status(), Some(200));
        assert_eq!(talk.next_of(stream).await.expect("a body").payload, b"fine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_not_told_that_a_client_waited() {
    let app = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &app)])).await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-Continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfine"
    );
    let answer = raw(proxy.http, head.as_bytes()).await;
    assert!(answer.contains("HTTP/1.1 200 "), "{answer}");
    assert!(!answer.to_lowercase().contains("\"expect\""), "{answer}");
}
