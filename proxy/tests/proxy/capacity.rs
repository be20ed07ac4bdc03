//! How many requests may be in flight, and what becomes of those that come then.

use crate::support::*;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::{Capacity, RoutingTable};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Has a request take the long way.
const ODD: &str = "X_Odd: 1\r\n";

fn bounded(backends: &[&Backend], capacity: Capacity) -> RoutingTable {
    let targets = (1..).zip(backends);
    let targets = targets.map(|(number, backend)| serving(number, backend));
    let mut wanted = table(1, targets.collect());
    wanted.pools[0].limits.capacity = capacity;
    wanted
}

fn hold(proxy: &Proxy, odd: &str) -> JoinHandle<String> {
    let http = proxy.http;
    let whole = format!("GET /hold HTTP/1.1\r\nHost: {HOST}\r\n{odd}Connection: close\r\n\r\n");
    tokio::spawn(async move { raw(http, whole.as_bytes()).await })
}

async fn in_flight(proxy: &Proxy, number: u8, count: u32) {
    proxy
        .until_target("it has its requests", number, |target| {
            target.in_flight == count
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_gets_no_more_than_its_bound_and_the_next_ones_wait_or_are_refused() {
    for odd in ["", ODD] {
        let (one, other) = (Backend::start().await, Backend::start().await);
        let proxy = Proxy::start().await;
        let capacity = Capacity {
            each: 1,
            pending: 1,
            wait_ms: 60_000,
            ..Capacity::default()
        };
        proxy.serve(&bounded(&[&one, &other], capacity)).await;
        let (first, second) = (hold(&proxy, odd), hold(&proxy, odd));
        in_flight(&proxy, 1, 1).await;
        in_flight(&proxy, 2, 1).await;
        let third = hold(&proxy, odd);
        let mut others = vec![third, hold(&proxy, odd)];
        let at = until("one is refused", || async {
            others.iter().position(JoinHandle::is_finished)
        })
        .await;
        let refused = others.remove(at).await.expect("no panic");
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(
            refused.to_lowercase().contains("\r\nretry-after: "),
            "{refused}"
        );
        assert_eq!((one.hits(), other.hits()), (1, 1));
        // Whoever is over makes room for the one that waits.
        one.release.notify_one();
        until("the third is at work", || async {
            (one.hits() == 2).then_some(())
        })
        .await;
        one.release.notify_one();
        other.release.notify_one();
        for answer in [first, second, others.remove(0)] {
            let answer = answer.await.expect("no panic");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        let seen = proxy.report().await;
        assert_eq!(seen.environments[0].traffic.over_capacity, 1);
        assert_eq!(seen.environments[0].traffic.failed, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_has_a_bound_of_its_own_and_waiting_has_an_end() {
    let (one, other) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let capacity = Capacity {
        all: 1,
        pending: 10,
        wait_ms: 300,
        ..Capacity::default()
    };
    let mut wanted = bounded(&[&one, &other], capacity);
    proxy.serve(&wanted).await;
    let first = hold(&proxy, "");
    until("it is at work", || async {
        (one.hits() + other.hits() == 1).then_some(())
    })
    .await;
    let begun = Instant::now();
    assert_eq!(proxy.get("/").await.status, 503);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // A bound that is lifted holds nobody any more.
    wanted.generation = Generation(2);
    wanted.pools[0].limits.capacity = Capacity::default();
    proxy.put(&wanted).await.expect("put");
    assert_eq!(proxy.get("/").await.status, 200);
    wanted.generation = Generation(3);
    wanted.pools[0].limits.capacity = capacity;
    proxy.put(&wanted).await.expect("put");
    assert_eq!(proxy.get("/").await.status, 503, "the first still counts");
    one.release.notify_one();
    other.release.notify_one();
    first.await.expect("no panic");
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_the_queue_makes_room_in_it() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let capacity = Capacity {
        all: 1,
        pending: 1,
        wait_ms: 60_000,
        ..Capacity::default()
    };
    proxy.serve(&bounded(&[&backend], capacity)).await;
    let first = hold(&proxy, "");
    in_flight(&proxy, 1, 1).await;
    // Either of two may be the one that waits: the other is refused.
    let mut two = vec![hold(&proxy, ""), hold(&proxy, "")];
    let refused = until("one is refused", || async {
        two.iter().position(JoinHandle::is_finished)
    })
    .await;
    let answer = two.remove(refused).await.expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let waiting = two.remove(0);
    let http = proxy.http;
    waiting.abort();
    until("the next one has its place", || async {
        let asked = tokio::time::timeout(Duration::from_millis(500), get(http, HOST, "/"));
        asked.await.is_err().then_some(())
    })
    .await;
    backend.release.notify_one();
    assert!(first.await.expect("no panic").starts_with("HTTP/1.1 200 "));
}
