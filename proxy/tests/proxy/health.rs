//! Checks, ejection, retries, drains.

use crate::support::*;
use beanpole_protocol::proxy::{HttpDetails, Probe, ProxyReport, TargetMode};
use beanpole_protocol::{Generation, Incarnation};
use http::Method;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn checks_follow_the_thresholds_and_say_what_came_back() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, backend.address, TargetMode::Probe)]);
    check_all(&mut wanted, |check| check.healthy_threshold = 3);
    proxy.put(&wanted).await.expect("put");
    let target = proxy
        .until_target("healthy", 1, |target| target.healthy)
        .await;
    assert!(target.good_checks >= 3, "{target:?}");
    assert_eq!(proxy.get("/").await.status, 503, "probed, not served");

    backend.health.store(418, Ordering::SeqCst);
    let target = proxy
        .until_target("unhealthy", 1, |target| !target.healthy)
        .await;
    assert!(target.bad_checks >= 2, "{target:?}");
    let answer = target.last_check.expect("a check").answer;
    assert!(answer.starts_with("418 in "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_of_more_than_a_second_holds_for_what_is_waited_for_too() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![target(1, backend.address, TargetMode::Probe)]);
    check_all(&mut wanted, |check| {
        check.interval_ms = 1_500;
        check.healthy_threshold = 2;
    });
    let begun = std::time::Instant::now();
    proxy.put(&wanted).await.expect("put");
    proxy
        .until_target("healthy", 1, |target| target.healthy)
        .await;
    // A tenth less at most.
    assert!(begun.elapsed() >= Duration::from_millis(1_300));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_target_is_checked_as_its_own_release_is_to_be() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &old), serving(2, &new)]);
    old.health.store(404, Ordering::SeqCst);
    if let Probe::Http { path, .. } = &mut wanted.pools[0].targets[0].check.probe {
        "/".clone_into(path);
    }
    proxy.serve(&wanted).await;
    let asked = |report: &ProxyReport| -> Vec<String> {
        let targets = report.targets.iter();
        targets
            .filter_map(|target| Some(target.last_check.as_ref()?.asked.clone()))
            .collect()
    };
    assert_eq!(asked(&proxy.report().await), ["GET /", "GET /health"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_tried_decides_nothing_and_says_how_it_goes() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    proxy.serve(&wanted).await;
    for (generation, asked, passes) in [(2, "/drop", false), (3, "/", true)] {
        wanted.generation = Generation(generation);
        let target = &mut wanted.pools[0].targets[0];
        let mut check = target.check.clone();
        check.probe = Probe::Http {
            path: asked.to_owned(),
            statuses: vec![(200, 200)],
            details: HttpDetails::default(),
        };
        target.tried = Some(check.clone());
        proxy.put(&wanted).await.expect("put");
        let target = proxy
            .until_target("known", 1, |target| {
                let tried = target.tried.as_ref().filter(|tried| tried.check == check);
                tried.is_some_and(|tried| tried.passes() == Some(passes))
            })
            .await;
        assert!(target.healthy, "{target:?}");
        assert_eq!(target.last_check.expect("a check").asked, "GET /health");
        let last = target.tried.and_then(|tried| tried.last);
        assert_eq!(last.expect("a check").asked, format!("GET {asked}"));
        assert_eq!(proxy.get("/").await.status, 200);
    }
    wanted.generation = Generation(4);
    wanted.pools[0].targets[0].tried = None;
    proxy.put(&wanted).await.expect("put");
    proxy
        .until_target("forgotten", 1, |target| target.tried.is_none())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_goes_to_another_target_and_ejects() {
    let (alive, dead) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &alive), serving(2, &dead)]);
    // Only traffic can notice.
    check_all(&mut wanted, |check| check.interval_ms = 60_000);
    proxy.serve(&wanted).await;
    proxy
        .until_target("checked at leisure", 2, |target| target.good_checks >= 1)
        .await;
    dead.kill();
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..10 {
        let post = request(Method::POST, HOST, "/", &[]);
        assert_eq!(client.send(post).await.expect("answer").status, 200);
    }
    let target = proxy
        .until_target("ejected", 2, |target| !target.healthy)
        .await;
    assert!(target.bad_checks >= 1);
    assert_eq!(alive.hits(), 10);

    let _back = Backend::start_at(dead.address).await;
    proxy.until_target("back", 2, |target| target.healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_midway_is_a_failure_and_is_not_repeated() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    proxy
        .serve(&table(1, vec![serving(1, &first), serving(2, &second)]))
        .await;
    let mut client = Client::connect(proxy.http).await;
    let post = request(Method::POST, HOST, "/drop", &[]);
    let answer = client.send(post).await.expect("an answer");
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("beanpole logs prod"), "{answer:?}");
    // It does close the connection; who is not told sends the next request into nothing.
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(first.hits() + second.hits(), 1);
    until("the failure is counted", || async {
        let report = proxy.report().await;
        let failed: u64 = report.targets.iter().map(|t| t.traffic.failed).sum();
        (failed == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_the_app_breaks_off_do_not_take_it_out_of_service() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    check_all(&mut wanted, |check| check.unhealthy_threshold = 1);
    proxy.serve(&wanted).await;
    let mut others = Client::connect(proxy.http).await;
    for _ in 0..50 {
        assert_eq!(proxy.get("/drop").await.status, 502);
        let answer = others.get(HOST, "/").await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let target = proxy.target(1).await;
    assert!(target.healthy && target.bad_checks == 0, "{target:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_the_app_closed_costs_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut client = Client::connect(proxy.http).await;
    assert_eq!(client.get(HOST, "/").await.expect("answer").status, 200);
    let address = backend.address;
    backend.kill();
    let again = Backend::start_at(address).await;
    let well = proxy
        .until_target("back", 1, |target| target.healthy && target.good_checks > 0)
        .await;
    assert!(well.healthy);
    assert_eq!(client.get(HOST, "/").await.expect("answer").status, 200);
    assert_eq!(again.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_target_finishes_and_gets_nothing_new() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    proxy
        .serve(&table(1, vec![serving(1, &old), serving(2, &new)]))
        .await;
    let http = proxy.http;
    let mut held = Vec::new();
    while old.hits() == 0 {
        held.push(tokio::spawn(async move { get(http, HOST, "/hold").await }));
        let sent = held.len();
        until("the request arrives", || async {
            (old.hits() + new.hits() == sent).then_some(())
        })
        .await;
    }
    let mut wanted = table(2, vec![serving(1, &old), serving(2, &new)]);
    wanted.pools[0].targets[0].mode = TargetMode::Drain;
    proxy.put(&wanted).await.expect("put");
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.status, 200);
    }
    assert_eq!(old.hits(), 1);
    assert_eq!(proxy.target(1).await.in_flight, 1);
    old.release.notify_waiters();
    new.release.notify_waiters();
    for held in held {
        assert_eq!(held.await.expect("no panic").text(), "held");
    }
    proxy
        .until_target("drained", 1, |target| target.in_flight == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_incarnation_starts_from_nothing_and_an_unchanged_target_keeps_all() {
    let (kept, renewed) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &kept), serving(2, &renewed)]);
    proxy.serve(&wanted).await;
    for _ in 0..10 {
        proxy.get("/").await;
    }
    wanted.generation = wanted.generation.next();
    wanted.pools[0].targets[1].incarnation = Incarnation(2);
    wanted.pools[0].targets[1].mode = TargetMode::Probe;
    renewed.health.store(500, Ordering::SeqCst);
    proxy.put(&wanted).await.expect("put");
    let (one, two) = (proxy.target(1).await, proxy.target(2).await);
    assert!(one.healthy && one.traffic.requests == 5, "{one:?}");
    assert!(!two.healthy && two.traffic.requests == 0, "{two:?}");
    assert_eq!(two.incarnation, Incarnation(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_not_the_apps_failure() {
    use tokio::io::AsyncWriteExt;
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut socket = tokio::net::TcpStream::connect(proxy.http)
        .await
        .expect("connect");
    socket
        .write_all(b"GET /hold HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
        .await
        .expect("write");
    proxy
        .until_target("it arrives", 1, |target| target.in_flight == 1)
        .await;
    drop(socket);
    let target = proxy
        .until_target("it is over", 1, |target| target.in_flight == 0)
        .await;
    assert_eq!(target.traffic.failed, 0);
    assert!(target.healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_gets_no_more_requests_long_before_its_checks_have_failed() {
    let (well, stuck) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &well), serving(2, &stuck)]);
    // As it is unless something else is set, and even the first time-out is far away.
    check_all(&mut wanted, |check| {
        check.interval_ms = 1_000;
        check.timeout_ms = 5_000;
        check.unhealthy_threshold = 3;
    });
    proxy.serve(&wanted).await;
    stuck.frozen.store(true, Ordering::SeqCst);
    let begun = std::time::Instant::now();
    until("twenty requests in a row are answered at once", || async {
        for _ in 0..20 {
            let answer = tokio::time::timeout(Duration::from_millis(300), proxy.get("/")).await;
            answer.ok()?;
        }
        Some(())
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        proxy.target(2).await.healthy,
        "the checks have not yet failed"
    );
    proxy
        .until_target("unhealthy", 2, |target| !target.healthy)
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(11),
        "{:?}",
        begun.elapsed()
    );

    stuck.frozen.store(false, Ordering::SeqCst);
    proxy.until_target("back", 2, |target| target.healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_targets_hang_requests_wait_for_them() {
    let only = Backend::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &only)]);
    check_all(&mut wanted, |check| check.timeout_ms = 5_000);
    proxy.serve(&wanted).await;
    only.frozen.store(true, Ordering::SeqCst);
    // Past the silence, before the first time-out.
    tokio::time::sleep(Duration::from_secs(2)).await;
    only.frozen.store(false, Ordering::SeqCst);
    assert_eq!(proxy.get("/").await.status, 200);
}
