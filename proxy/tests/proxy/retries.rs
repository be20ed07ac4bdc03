//! Requests that are sent once more, and how many of them.

use crate::support::*;
use beanpole_protocol::proxy::{EnvironmentTraffic, Probe, Retries, RoutingTable, TargetMode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Has a request take the long way.
const ODD: &str = "X_Odd: 1\r\n";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

/// An app that says the same whatever it is asked, and closes; and how often it was asked.
async fn saying(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if socket.read(&mut head).await.is_ok_and(|read| read > 0) {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, asked)
}

fn failing(addresses: &[SocketAddr], retries: Retries) -> RoutingTable {
    let targets = (1..).zip(addresses);
    let targets = targets.map(|(number, at)| target(number, *at, TargetMode::Serve));
    let mut wanted = table(1, targets.collect());
    check_all(&mut wanted, |check| check.probe = Probe::Tcp);
    wanted.pools[0].limits.retries = retries;
    wanted
}

fn ask_again() -> Retries {
    Retries {
        failed: true,
        ..Retries::default()
    }
}

async fn ask(proxy: &Proxy, method: &str, odd: &str) -> String {
    let body = if method == "POST" { "x" } else { "" };
    let length = body.len();
    let whole = format!(
        "{method} / HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    raw(proxy.http, whole.as_bytes()).await
}

async fn seen(proxy: &Proxy) -> EnvironmentTraffic {
    proxy.report().await.environments.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instance_is_asked_where_one_cannot_answer_if_that_is_wanted() {
    for answer in [BUSY, ""] {
        for odd in ["", ODD] {
            let backend = Backend::start().await;
            let (busy, asked) = saying(answer).await;
            let proxy = Proxy::start().await;
            proxy
                .serve(&failing(&[busy, backend.address], ask_again()))
                .await;
            for _ in 0..6 {
                let answer = ask(&proxy, "GET", odd).await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
            assert_eq!(asked.load(Ordering::SeqCst), 3);
            assert_eq!(backend.hits(), 6);
            let counts = seen(&proxy).await;
            assert_eq!(
                (counts.traffic.retried, counts.traffic.requests),
                (3, 6),
                "{counts:?}"
            );
            assert_eq!((counts.traffic.failed, counts.traffic.errors), (0, 0));
            let answers = [
                ask(&proxy, "POST", odd).await,
                ask(&proxy, "POST", odd).await,
            ];
            let failed = answers
                .iter()
                .filter(|answer| answer.starts_with("HTTP/1.1 50"));
            assert_eq!(failed.count(), 1, "what may change something is sent once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_bad_comes_through_where_nobody_else_can_be_asked_or_is_to_be() {
    for (retries, both) in [(ask_again(), false), (Retries::default(), true)] {
        let backend = Backend::start().await;
        let (busy, _) = saying(BUSY).await;
        let proxy = Proxy::start().await;
        let all = [busy, backend.address];
        proxy
            .serve(&failing(&all[..=usize::from(both)], retries))
            .await;
        let answers = [ask(&proxy, "GET", "").await, ask(&proxy, "GET", ODD).await];
        assert!(
            answers.iter().any(|answer| answer.ends_with("busy")),
            "{answers:?}"
        );
        assert_eq!(seen(&proxy).await.traffic.retried, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_budget_has_no_room_for_fails_at_once() {
    for odd in ["", ODD] {
        for (per_second, wanted) in [(0, (0, 1)), (10, (1, 0))] {
            let (alive, dead) = (Backend::start().await, Backend::start().await);
            let proxy = Proxy::start().await;
            let retries = Retries {
                percent: 0,
                per_second,
                failed: false,
            };
            let mut table = failing(&[dead.address, alive.address], retries);
            // Only traffic can notice.
            check_all(&mut table, |check| check.interval_ms = 60_000);
            proxy.serve(&table).await;
            dead.kill();
            until("it is gone", || async {
                tokio::net::TcpStream::connect(dead.address)
                    .await
                    .is_err()
                    .then_some(())
            })
            .await;
            let answers = [
                ask(&proxy, "POST", odd).await,
                ask(&proxy, "POST", odd).await,
            ];
            let failed = answers
                .iter()
                .filter(|answer| answer.starts_with("HTTP/1.1 502 "));
            assert_eq!(failed.count() as u64, wanted.1, "{answers:?}");
            let counts = seen(&proxy).await;
            assert_eq!(
                (counts.traffic.retried, counts.traffic.retries_denied),
                wanted,
                "{counts:?}"
            );
        }
    }
}
