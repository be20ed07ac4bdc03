//! Tables in, reports out; restarts and stops.

use crate::support::*;
use beanpole_daemon::http::CallError;
use beanpole_protocol::proxy::{ProxyReport, Ready, TargetMode};
use beanpole_proxy::{ProxyConfig, ProxyError};
use futures::StreamExt;
use http::Method;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn code(error: &CallError) -> &str {
    match error {
        CallError::Refused(problem) => &problem.code,
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_makes_no_sense_changes_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let good = table(5, vec![serving(1, &backend)]);
    proxy.serve(&good).await;

    let mut unknown_pool = table(6, vec![]);
    unknown_pool.routes[0].pools[0].pool = "gone".to_owned();
    let mut twice = table(6, vec![]);
    twice.routes.push(route("APP.localhost", &[("main", 1)]));
    for wrong in [unknown_pool, twice] {
        let error = proxy.put(&wrong).await.expect_err("refused");
        assert_eq!(code(&error), "invalid-table");
    }
    let error = proxy.put(&table(4, vec![])).await.expect_err("refused");
    assert_eq!(code(&error), "stale-generation");
    let error = proxy.put(&table(5, vec![])).await.expect_err("refused");
    assert_eq!(code(&error), "generation-reused");
    proxy.put(&good).await.expect("the same again is fine");
    assert_eq!(proxy.report().await.generation.0, 5);
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_change_under_load_without_a_lost_request() {
    let (one, two) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    proxy
        .serve(&table(1, vec![serving(1, &one), serving(2, &two)]))
        .await;
    let load = Load::start(proxy.http, 8);
    let mut generation = 1;
    // In and out, as a rolling update does it, while requests run.
    while load.sent.load(std::sync::atomic::Ordering::SeqCst) < 3_000 || generation < 21 {
        let out: u8 = if generation % 4 < 2 { 1 } else { 2 };
        for mode in [TargetMode::Drain, TargetMode::Serve] {
            generation += 1;
            let mut wanted = table(generation, vec![serving(1, &one), serving(2, &two)]);
            wanted.pools[0].targets[usize::from(out - 1)].mode = mode;
            proxy.put(&wanted).await.expect("put");
            if mode == TargetMode::Drain {
                let hits = || if out == 1 { one.hits() } else { two.hits() };
                proxy
                    .until_target("drained", out, |target| target.in_flight == 0)
                    .await;
                let before = hits();
                let sent = load.sent.load(std::sync::atomic::Ordering::SeqCst);
                load.reached(sent + 50).await;
                assert_eq!(hits(), before, "nothing new after the drain");
            }
        }
    }
    let (good, bad) = load.end().await;
    assert!(bad.is_empty(), "{} bad: {:?}", bad.len(), bad.first());
    assert!(good >= 3_000, "{good}");
    // The last answers are counted a moment after the client has them.
    until("everything is counted", || async {
        let counted: u64 = (proxy.report().await.targets.iter())
            .map(|target| target.traffic.requests)
            .sum();
        (counted == good as u64).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_table_serves_again_right_after_a_restart() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(7, vec![serving(1, &backend)])).await;
    let run = proxy.report().await.run;
    let directory = proxy.stopped().await;
    let proxy = Proxy::start_in(directory, |_| {}).await;
    assert_eq!(proxy.get("/").await.status, 200);
    let report = proxy.report().await;
    assert_eq!(report.generation.0, 7);
    assert_ne!(report.run, run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_is_put_aside() {
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    std::fs::write(directory.path().join("table.json"), "{").expect("write");
    let proxy = Proxy::start_in(directory.clone(), |_| {}).await;
    assert_eq!(proxy.report().await.generation.0, 0);
    assert!(directory.path().join("table.damaged").exists());
    drop(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_hear_of_changes() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let connection = proxy.connect().await;
    let mut lines = connection
        .lines::<ProxyReport>("/v1/watch", Duration::from_secs(5))
        .await
        .expect("a stream");
    let first = lines.next().await.expect("one at once").expect("a report");
    assert_eq!(first.generation.0, 0);
    proxy
        .put(&table(1, vec![serving(1, &backend)]))
        .await
        .expect("put");
    let mut last = first.sequence;
    loop {
        let next = lines.next().await.expect("another").expect("a report");
        assert!(next.sequence > last);
        last = next.sequence;
        if next.targets.iter().any(|target| target.healthy) {
            break;
        }
    }
    proxy.stop();
    while let Some(Ok(_)) = lines.next().await {}
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_in_flight() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut idle = Client::connect(proxy.http).await;
    idle.get(HOST, "/").await.expect("answer");
    let http = proxy.http;
    let held = tokio::spawn(async move { get(http, HOST, "/hold").await });
    // What is in flight may still be the first request, which ends after its answer is read.
    until("it is held", || async {
        (backend.hits() == 2).then_some(())
    })
    .await;
    proxy.stop();
    until("nothing new is accepted", || async {
        tokio::net::TcpStream::connect(http)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    backend.release.notify_one();
    assert_eq!(held.await.expect("no panic").text(), "held");
    proxy.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_explained() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut config = ProxyConfig::new(directory.path(), directory.path().join("proxy.sock"));
    config.http = vec![taken.local_addr().expect("address")];
    let error = beanpole_proxy::run(config, CancellationToken::new())
        .await
        .expect_err("in use");
    assert!(matches!(error, ProxyError::Listen(_)));
    let text = error.to_string();
    assert!(
        text.contains("already listens") && text.contains("--http"),
        "{text}"
    );
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
}

/// As one of several, on a host of its own, is started.
fn one_of_several(config: &mut ProxyConfig) {
    config.table_wait = Some(Duration::from_mins(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_takes_no_request_before_it_is_told_that_its_table_is_the_newest() {
    let backend = Backend::start().await;
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let proxy = Proxy::start_in(directory, one_of_several).await;
    let mut wanted = table(5, vec![serving(1, &backend)]);
    check_all(&mut wanted, |check| check.healthy_threshold = 1_000);
    proxy.put(&wanted).await.expect("put");
    // Others have found its targets well: they get requests at once.
    assert_eq!(proxy.get("/").await.status, 200);
    let proxy = Proxy::start_in(proxy.stopped().await, one_of_several).await;
    let address = proxy.http;
    let waits = tokio::spawn(async move { get(address, HOST, "/").await.status });
    let held = proxy.report().await;
    assert_eq!(held.generation.0, 5);
    assert!(!waits.is_finished());
    // The way in two steps, with the table that it has.
    let mut connection = proxy.connect().await;
    let path = "/v1/table/next";
    let put = connection.call::<()>(Method::PUT, path, Some(&wanted), LIMIT);
    put.await.expect("it is ready");
    let ready = Ready {
        generation: wanted.generation,
    };
    let post = connection.call::<()>(Method::POST, path, Some(&ready), LIMIT);
    post.await.expect("it is in force");
    assert_eq!(waits.await.expect("no panic"), 200);
}
