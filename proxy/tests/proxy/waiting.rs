//! Requests that wait while no instance can take them.

use crate::support::*;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::{Hold, RoutingTable, TargetMode};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A table whose only target is not in service, and whose requests may wait.
fn out_of_service(backend: &Backend, hold: Hold) -> RoutingTable {
    let mut wanted = table(1, vec![target(1, backend.address, TargetMode::Probe)]);
    wanted.pools[0].hold = Some(hold);
    wanted
}

/// Sends so many requests at once, and waits until one has been refused.
async fn one_is_refused(proxy: &Proxy, sent: usize) -> Vec<JoinHandle<String>> {
    let http = proxy.http;
    let head = format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n");
    let whole = format!("{head}Content-Length: 4\r\n\r\nwait");
    let mut asked: Vec<JoinHandle<String>> = (0..sent)
        .map(|_| {
            let whole = whole.clone();
            tokio::spawn(async move { raw(http, whole.as_bytes()).await })
        })
        .collect();
    let at = until("one is refused", || async {
        asked.iter().position(JoinHandle::is_finished)
    })
    .await;
    let refused = asked.remove(at).await.expect("no panic");
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_a_target_and_the_ones_beyond_the_bound_do_not() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let hold = Hold {
        for_ms: 60_000,
        most: 2,
    };
    let mut wanted = out_of_service(&backend, hold);
    proxy.put(&wanted).await.expect("put");
    let waiting = one_is_refused(&proxy, 3).await;
    assert!(!waiting.iter().any(JoinHandle::is_finished));
    assert_eq!(backend.hits(), 0);
    let traffic = proxy.report().await.environments[0].traffic;
    assert_eq!((traffic.held, traffic.waiting), (2, 2));
    wanted.generation = Generation(2);
    wanted.pools[0].targets[0].mode = TargetMode::Serve;
    proxy.serve(&wanted).await;
    for answer in waiting {
        let answer = answer.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("wait"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_in_vain_gets_its_503_when_its_time_is_up_or_nothing_is_waited_for() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let hold = Hold {
        for_ms: 300,
        most: 10,
    };
    let mut wanted = out_of_service(&backend, hold);
    proxy.put(&wanted).await.expect("put");
    let begun = Instant::now();
    assert_eq!(proxy.get("/").await.status, 503);
    assert!(begun.elapsed() >= Duration::from_millis(300));

    wanted.generation = Generation(2);
    wanted.pools[0].hold = Some(Hold {
        for_ms: 60_000,
        most: 1,
    });
    proxy.put(&wanted).await.expect("put");
    let waiting = one_is_refused(&proxy, 2).await;
    wanted.generation = Generation(3);
    wanted.pools[0].hold = None;
    proxy.put(&wanted).await.expect("put");
    for answer in waiting {
        let answer = answer.await.expect("no panic");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    assert_eq!(backend.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_request_waits_makes_room_for_another() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let hold = Hold {
        for_ms: 60_000,
        most: 1,
    };
    let mut wanted = out_of_service(&backend, hold);
    proxy.put(&wanted).await.expect("put");
    for waiting in one_is_refused(&proxy, 2).await {
        waiting.abort();
    }
    let http = proxy.http;
    until("the next one has the place", || async {
        let waits = tokio::time::timeout(Duration::from_secs(1), get(http, HOST, "/"));
        waits.await.is_err().then_some(())
    })
    .await;
    wanted.generation = Generation(2);
    wanted.pools[0].targets[0].mode = TargetMode::Serve;
    proxy.serve(&wanted).await;
    assert_eq!(proxy.get("/").await.status, 200);
}
