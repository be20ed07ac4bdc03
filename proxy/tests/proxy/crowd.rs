//! More connections than there is room for.

use crate::support::*;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Long enough for what happens at once, and far below the time after which idle clients are left.
const SOON: Duration = Duration::from_secs(5);

async fn proxy_with_room_for(most: usize) -> (Backend, Proxy) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let proxy = Proxy::start_in(Arc::new(directory), |config| {
        config.max_connections = most;
        // Time is looked at 16 times a second.
        config.header_timeout = Duration::from_millis(500);
    })
    .await;
    let backend = Backend::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    (backend, proxy)
}

async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        crowd.push(TcpStream::connect(address).await.expect("connect"));
    }
    crowd
}

async fn served_soon(proxy: &Proxy) {
    let answer = timeout(SOON, proxy.get("/")).await.expect("at once");
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// What comes until the other side closes.
async fn rest_of(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(SOON, socket.read_to_end(&mut answer)).await;
    let _ = read.expect("it is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn h2(address: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(address).await.expect("connect");
    let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
        .await
        .expect("handshake");
    tokio::spawn(driver);
    sender
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let (_backend, proxy) = proxy_with_room_for(16).await;
    let _greeting = idle(proxy.https, 40).await;
    let mut silent = idle(proxy.http, 40).await;
    served_soon(&proxy).await;
    assert_eq!(rest_of(&mut silent[0]).await, "");
    let target = proxy.target(1).await;
    assert!(target.healthy && target.bad_checks == 0, "{target:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_makes_room_and_a_request_under_way_does_not() {
    let (backend, proxy) = proxy_with_room_for(4).await;
    let http = proxy.http;
    let held = tokio::spawn(async move { get(http, HOST, "/hold").await });
    proxy
        .until_target("it is held", 1, |target| target.in_flight == 1)
        .await;
    let mut kept = Client::connect(http).await;
    assert_eq!(kept.get(HOST, "/").await.expect("an answer").status, 200);
    let mut begun = TcpStream::connect(http).await.expect("connect");
    begun.write_all(b"GET / HTTP/1.1\r\n").await.expect("write");
    let mut crowd = idle(http, 20).await;
    served_soon(&proxy).await;
    // Its rest may have begun with the crowd's, where its answer was quicker than the proxy's note of it.
    for _ in 0..20 {
        if kept.get(HOST, "/").await.is_err() {
            break;
        }
        crowd = idle(http, 20).await;
    }
    assert!(kept.get(HOST, "/").await.is_err(), "it was kept");
    drop(crowd);
    let told = rest_of(&mut begun).await;
    assert!(
        told.is_empty() || told.starts_with("HTTP/1.1 503 "),
        "{told}"
    );
    backend.release.notify_one();
    assert_eq!(held.await.expect("no panic").text(), "held");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_all_work_new_ones_wait_for_room() {
    let (backend, proxy) = proxy_with_room_for(2).await;
    let http = proxy.http;
    let held = || tokio::spawn(async move { get(http, HOST, "/hold").await });
    let (first, second) = (held(), held());
    proxy
        .until_target("both are held", 1, |target| target.in_flight == 2)
        .await;
    let mut third = Box::pin(proxy.get("/"));
    // Not to wait for something, but for nothing to happen.
    let early = timeout(Duration::from_millis(300), &mut third).await;
    assert!(early.is_err(), "{early:?}");
    backend.release.notify_one();
    let answer = timeout(SOON, third).await.expect("there is room");
    assert_eq!(answer.status, 200);
    backend.release.notify_one();
    for held in [first, second] {
        assert_eq!(held.await.expect("no panic").text(), "held");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_rests_without_requests_and_works_with_one() {
    let (backend, proxy) = proxy_with_room_for(4).await;
    let mut busy = h2(proxy.http).await;
    let wanted = Request::get(format!("http://{HOST}/hold"))
        .body(Full::default())
        .expect("a request");
    let held = tokio::spawn(async move { busy.send_request(wanted).await });
    proxy
        .until_target("it is held", 1, |target| target.in_flight == 1)
        .await;
    let mut crowd = Vec::new();
    for _ in 0..12 {
        crowd.push(h2(proxy.http).await);
    }
    served_soon(&proxy).await;
    assert!(crowd.iter().any(|idle| idle.is_closed()), "all were kept");
    backend.release.notify_one();
    let answer = held.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status(), 200);
}
