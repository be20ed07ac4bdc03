//! How long requests may take, and how large they may be, on both ways through the proxy.

use crate::support::*;
use beanpole_protocol::proxy::{PoolLimits, Rate, Rates};
use http::Method;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Has a request take the long way.
const ODD: &str = "TE: trailers\r\n";

async fn limited(limits: PoolLimits) -> (Backend, Proxy) {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.pools[0].limits = limits;
    proxy.serve(&wanted).await;
    (backend, proxy)
}

fn quick() -> PoolLimits {
    PoolLimits {
        idle_ms: 300,
        ..PoolLimits::default()
    }
}

fn small() -> PoolLimits {
    PoolLimits {
        body_bytes: 10,
        ..PoolLimits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_silent_for_too_long_is_told_by_a_504() {
    let (_backend, proxy) = limited(quick()).await;
    for odd in ["", ODD] {
        let head = format!("GET /hold HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\n\r\n");
        let begun = Instant::now();
        let answer = raw(proxy.http, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(300));
        proxy
            .until_target("nothing is under way", 1, |target| target.in_flight == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_body_stays_away_is_told_by_a_408() {
    let (backend, proxy) = limited(quick()).await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nhalf");
    client.write_all(head.as_bytes()).await.expect("write");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(backend.hits.load(Ordering::SeqCst) <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not() {
    let (backend, proxy) = limited(small()).await;
    for odd in ["", ODD] {
        let told = |length: usize| {
            let body = "x".repeat(length);
            format!(
                "POST /echo HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let answer = raw(proxy.http, told(10).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let before = backend.hits();
        let answer = raw(proxy.http, told(11).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert_eq!(backend.hits(), before);
    }
    let chunked = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         6\r\nxxxxxx\r\n6\r\nxxxxxx\r\n0\r\n\r\n"
    );
    let answer = raw(proxy.http, chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let traffic = proxy.target(1).await.traffic;
    assert_eq!(
        traffic.failed, 0,
        "it is no failure of the app: {traffic:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_a_clients_rate_get_a_429_that_says_when_to_come_again() {
    for odd in [[].as_slice(), &[("te", "trailers")]] {
        let limits = PoolLimits {
            rates: Rates {
                by_client: Rate {
                    per_second: 1,
                    burst: 3,
                },
                ..Rates::default()
            },
            ..PoolLimits::default()
        };
        let (backend, proxy) = limited(limits).await;
        let mut client = Client::connect(proxy.http).await;
        let mut ask = async || client.send(request(Method::GET, HOST, "/", odd)).await;
        for _ in 0..3 {
            assert_eq!(ask().await.expect("an answer").status, 200);
        }
        let answer = ask().await.expect("the connection goes on");
        assert_eq!(answer.status, 429);
        let after = answer.headers["retry-after"].to_str().expect("text");
        assert!((1..=2).contains(&after.parse::<u32>().expect("seconds")));
        assert_eq!(backend.hits(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_longer_than_an_app_may_be_silent() {
    let (_backend, proxy) = limited(quick()).await;
    let mut client = TcpStream::connect(proxy.http).await.expect("connect");
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.expect("write");
    for _ in 0..10 {
        // The point is that it takes its time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(b"x").await.expect("write");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("xxxxxxxxxx"), "{answer}");
}
