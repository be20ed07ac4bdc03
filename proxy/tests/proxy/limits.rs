//! How long requests may take, and how large they may be, on both ways through the proxy.

use crate::support::*;
use beanpole_protocol::proxy::{PoolLimits, Probe, Rate, Rates, TargetMode};
use http::Method;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Has a request take the long way.
const ODD: &str = "X_Odd: 1\r\n";

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

/// An app that begins to answer at once, and says a piece more every 50 ms for ever; the end of its connection would
/// be that of its answer.
async fn endless() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = socket.read(&mut head).await;
                let mut piece: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
                while socket.write_all(piece).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    piece = b"more";
                }
            });
        }
    });
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits = PoolLimits {
        answer_ms: 300,
        whole_ms: 600,
        ..PoolLimits::default()
    };
    proxy.serve(&wanted).await;
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_as_a_whole_breaks_off_and_does_not_seem_to_end() {
    let proxy = endless().await;
    for odd in ["", ODD] {
        let head = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{odd}\r\n");
        let begun = Instant::now();
        let answer = raw(proxy.http, head.as_bytes()).await;
        let took = begun.elapsed();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            !answer.ends_with("0\r\n\r\n"),
            "it would seem whole: {answer}"
        );
        assert!(took >= Duration::from_millis(550), "{took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    let failed = proxy.report().await.environments[0].traffic.failed;
    assert_eq!(failed, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_begin_in_time_is_a_504_however_long_silence_may_last() {
    for limits in [(300, 0), (0, 300)] {
        let (_backend, proxy) = limited(PoolLimits {
            answer_ms: limits.0,
            whole_ms: limits.1,
            ..PoolLimits::default()
        })
        .await;
        for odd in ["", ODD] {
            // An earlier request has set a timer for later.
            let earlier = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{odd}\r\n");
            let head =
                format!("GET /hold HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\n\r\n");
            let begun = Instant::now();
            let answer = raw(proxy.http, format!("{earlier}{head}").as_bytes()).await;
            let took = begun.elapsed();
            assert!(answer.contains("HTTP/1.1 504 "), "{answer}");
            assert!(took >= Duration::from_millis(300), "{took:?}");
            assert!(took < Duration::from_secs(10), "{took:?}");
        }
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
    for odd in [[].as_slice(), &[("x_odd", "1")]] {
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
