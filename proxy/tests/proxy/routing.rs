//! Hosts, pools, shares, pages, headers.

use crate::support::*;
use beanpole_protocol::ReleaseNumber;
use beanpole_protocol::proxy::{Algorithm, Sticky, TargetMode};
use http::Method;

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_by_host_whatever_its_case_and_port() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &first)]);
    wanted.pools.push(pool("other", vec![serving(2, &second)]));
    wanted.routes.push(route("other.example", &[("other", 1)]));
    wanted.routes.push(route("::1", &[("other", 1)]));
    proxy.serve(&wanted).await;

    assert_eq!(get(proxy.http, "APP.localhost:8080", "/").await.status, 200);
    assert_eq!((first.hits(), second.hits()), (1, 0));
    for host in ["other.example.", "[::1]:80"] {
        assert_eq!(get(proxy.http, host, "/").await.status, 200, "{host}");
    }
    assert_eq!((first.hits(), second.hits()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_uri_routes_and_must_agree_with_the_host_header() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    for (host, status) in [("app.localhost", 200), ("nowhere", 400)] {
        let request = format!(
            "GET http://app.localhost/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(proxy.http, request.as_bytes()).await;
        let wanted = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&wanted), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_gets_a_page_in_the_form_that_it_accepts() {
    let proxy = Proxy::start().await;
    let mut client = Client::connect(proxy.http).await;
    for (accept, content_type) in [
        ("text/html", "text/html; charset=utf-8"),
        ("application/json", "application/problem+json"),
        ("*/*", "text/plain; charset=utf-8"),
    ] {
        let wanted = request(Method::GET, "nobody.example", "/", &[("accept", accept)]);
        let answer = client.send(wanted).await.expect("an answer");
        assert_eq!(answer.status, 404);
        assert_eq!(answer.headers["content-type"], content_type);
        assert!(answer.text().contains("nobody.example"), "{answer:?}");
        assert!(answer.headers.contains_key("x-request-id"));
    }
    let head = request(Method::HEAD, "nobody.example", "/", &[]);
    let answer = client.send(head).await.expect("an answer");
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    assert_eq!(client.get("x", "/").await.expect("kept").status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_healthy_target_there_is_a_503_that_says_what_to_type_here() {
    let backend = Backend::start().await;
    backend
        .health
        .store(500, std::sync::atomic::Ordering::SeqCst);
    let proxy = Proxy::start().await;
    proxy
        .put(&table(1, vec![serving(1, &backend)]))
        .await
        .expect("put");
    let answer = proxy.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.text().contains("beanpole health prod"), "{answer:?}");
    assert!(!answer.text().contains("127.0.0.1"), "{answer:?}");
    assert_eq!(backend.hits(), 0);
    let traffic = until("it is counted", || async {
        let traffic = proxy.report().await.environments[0].traffic;
        (traffic.requests > 0).then_some(traffic)
    })
    .await;
    assert_eq!((traffic.requests, traffic.failed), (1, 1));
    assert_eq!(traffic.by_class, [0, 0, 0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_by_release_and_go_on_over_new_tables() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let new = |number, backend: &Backend| beanpole_protocol::proxy::Target {
        release: ReleaseNumber(2),
        ..serving(number, backend)
    };
    let old = serving(1, &first).release;
    proxy
        .serve(&table(1, vec![serving(1, &first), new(2, &second)]))
        .await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..10 {
        assert_eq!(client.get(HOST, "/").await.expect("answer").status, 200);
    }
    let wanted = table(2, vec![new(2, &second)]);
    proxy.serve(&wanted).await;
    for _ in 0..5 {
        assert_eq!(client.get(HOST, "/").await.expect("answer").status, 200);
    }
    let releases = until("all are counted", || async {
        let releases = proxy.report().await.releases;
        (releases.iter().map(|one| one.requests).sum::<u64>() >= 10).then_some(releases)
    })
    .await;
    assert!(
        releases.iter().all(|one| one.release != old),
        "{releases:?}"
    );
    assert_eq!((releases[0].requests, releases[0].errors), (10, 0));
    assert_eq!(releases[0].latency.total(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_cookie_stays_on_its_side_and_new_ones_are_shared_out_exactly() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let split = |generation, percent| {
        let mut wanted = table(generation, vec![serving(1, &first)]);
        wanted.pools.push(pool("main@2", vec![serving(2, &second)]));
        wanted.routes = vec![route(HOST, &[("main", 100 - percent), ("main@2", percent)])];
        wanted.routes[0].sticky = Some(Sticky::Cookie);
        wanted
    };
    proxy.serve(&split(1, 10)).await;
    let mut client = Client::connect(proxy.http).await;
    let mut taken_in = None;
    for _ in 0..1_000 {
        let before = second.hits();
        let answer = client.get(HOST, "/").await.expect("answer");
        let cookie = answer.headers["set-cookie"]
            .to_str()
            .expect("text")
            .to_owned();
        if second.hits() > before {
            taken_in = Some(cookie);
        }
    }
    let share = second.hits();
    assert!((99..=101).contains(&share), "{share} of 1000 clients");
    let cookie = taken_in.expect("a client of the new side");
    assert!(cookie.contains("; HttpOnly; SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    // Its side grows, and it stays.
    for (generation, percent) in [(2, 10), (3, 50), (4, 100)] {
        proxy.serve(&split(generation, percent)).await;
        let before = second.hits();
        for _ in 0..20 {
            let known = request(Method::GET, HOST, "/", &[("cookie", pair)]);
            let answer = client.send(known).await.expect("answer");
            assert!(!answer.headers.contains_key("set-cookie"));
        }
        assert_eq!(second.hits(), before + 20, "at {percent} %");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_between_pools_are_exact() {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &first)]);
    wanted.pools.push(pool("canary", vec![serving(2, &second)]));
    wanted.routes = vec![route(HOST, &[("main", 90), ("canary", 10)])];
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..1_000 {
        assert_eq!(client.get(HOST, "/").await.expect("answer").status, 200);
    }
    assert_eq!((first.hits(), second.hits()), (900, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn round_robin_gives_each_the_same() {
    let backends = [
        Backend::start().await,
        Backend::start().await,
        Backend::start().await,
    ];
    let proxy = Proxy::start().await;
    let targets = (1..).zip(&backends).map(|(n, b)| serving(n, b)).collect();
    proxy.serve(&table(1, targets)).await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..30 {
        client.get(HOST, "/").await.expect("answer");
    }
    assert!(backends.iter().all(|backend| backend.hits() == 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn least_connections_avoids_the_busy_one() {
    let (busy, idle) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &busy)]);
    wanted.pools[0].algorithm = Algorithm::LeastConnections;
    proxy.serve(&wanted).await;
    let http = proxy.http;
    let held = tokio::spawn(async move { get(http, HOST, "/hold").await });
    proxy
        .until_target("one is held", 1, |target| target.in_flight == 1)
        .await;
    wanted.generation = wanted.generation.next();
    wanted.pools[0].targets.push(serving(2, &idle));
    proxy.serve(&wanted).await;
    for _ in 0..10 {
        proxy.get("/").await;
        // An answer may reach its client a moment before its request counts as over.
        proxy
            .until_target("it is idle again", 2, |target| target.in_flight == 0)
            .await;
    }
    assert_eq!((busy.hits(), idle.hits()), (1, 10));
    busy.release.notify_one();
    assert_eq!(held.await.expect("no panic").text(), "held");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_told_about_the_client_and_not_what_the_client_claims() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut client = Client::connect(proxy.http).await;
    let spoofed = request(
        Method::GET,
        "app.localhost:81",
        "/x?y=1",
        &[
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-request-id", "mine-1"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("x_odd", "1"),
        ],
    );
    let answer = client.send(spoofed).await.expect("an answer");
    assert_eq!(answer.told("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(answer.told("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(
        answer.told("x-forwarded-port"),
        Some(proxy.http.port().to_string())
    );
    assert_eq!(answer.told("host").as_deref(), Some("app.localhost:81"));
    assert_eq!(
        answer.told("forwarded").as_deref(),
        Some("for=127.0.0.1;host=\"app.localhost:81\";proto=http")
    );
    assert_eq!(answer.told("x-request-id").as_deref(), Some("mine-1"));
    assert_eq!(answer.told("x-hop"), None);
    assert_eq!(answer.told("connection"), None);
    assert!(answer.text().contains("/x?y=1"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_per_target_and_logged() {
    let backend = Backend::start().await;
    let directory = std::sync::Arc::new(tempfile::tempdir().expect("temporary directory"));
    let log = directory.path().join("access.log");
    let proxy = Proxy::start_in(directory, |config| config.access_log = Some(log.clone())).await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    for _ in 0..20 {
        proxy.get("/page?secret=1").await;
    }
    let target = proxy
        .until_target("all are counted", 1, |t| t.traffic.requests == 20)
        .await;
    assert_eq!(target.traffic.by_class, [0, 20, 0, 0, 0]);
    assert_eq!((target.traffic.failed, target.in_flight), (0, 0));
    assert!(target.traffic.p50_us > 0 && target.traffic.p50_us <= target.traffic.p99_us);
    assert_eq!(target.mode, TargetMode::Serve);
    let _directory = proxy.stopped().await;
    let text = std::fs::read_to_string(&log).expect("the log");
    assert_eq!(text.lines().count(), 20);
    let line: serde_json::Value =
        serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["path"], "/page");
    assert_eq!(line["environment"], "prod");
    assert_eq!(line["instance"], instance(1).as_str());
}
