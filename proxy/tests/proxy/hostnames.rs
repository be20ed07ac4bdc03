//! Hostnames, wildcards, parts of a host's paths, and clients that are sent elsewhere.

use crate::support::*;
use beanpole_protocol::proxy::{Redirect, Route, RouteRule, Target};
use http::Method;

/// A proxy with two apps: `first` at `www.example`, `second` wherever `other` says.
async fn two_apps(other: impl FnOnce(&mut Vec<Route>)) -> (Proxy, Backend, Backend) {
    let (first, second) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &first)]);
    wanted.pools.push(pool("other", vec![serving(2, &second)]));
    wanted.routes = vec![route("www.example", &[("main", 1)])];
    other(&mut wanted.routes);
    proxy.serve(&wanted).await;
    (proxy, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_takes_every_name_below_that_has_no_route_of_its_own() {
    let (proxy, first, second) = two_apps(|routes| {
        routes.push(route("*.example", &[("other", 1)]));
    })
    .await;
    for host in ["shop.example", "A.B.example:80"] {
        assert_eq!(get(proxy.http, host, "/").await.status, 200, "{host}");
    }
    assert_eq!(get(proxy.http, "www.example", "/").await.status, 200);
    assert_eq!((first.hits(), second.hits()), (1, 2));
    assert_eq!(get(proxy.http, "example", "/").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_hosts_paths_may_be_another_apps_on_both_ways_through_the_proxy() {
    let (proxy, first, second) = two_apps(|routes| {
        routes.push(Route {
            paths: vec!["/api".to_owned(), "/api/*".to_owned()],
            ..route("www.example", &[("other", 1)])
        });
    })
    .await;
    let mut client = Client::connect(proxy.http).await;
    for (path, headers) in [("/api?x=/", [].as_slice()), ("/api/v1", &[("x_odd", "1")])] {
        let wanted = request(Method::GET, "www.example", path, headers);
        let answer = client.send(wanted).await.expect("an answer");
        assert_eq!(answer.status, 200);
    }
    assert_eq!((first.hits(), second.hits()), (0, 2));
    for headers in [[].as_slice(), &[("x_odd", "1")]] {
        let wanted = request(Method::GET, "www.example", "/apis", headers);
        assert_eq!(client.send(wanted).await.expect("an answer").status, 200);
    }
    assert_eq!((first.hits(), second.hits()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_route_lead_to_another_process_of_the_same_instance_on_both_ways() {
    let (web, api) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    let mut wanted = table(1, vec![serving(1, &web)]);
    let of_api = Target {
        process: "api".to_owned(),
        ..serving(1, &api)
    };
    wanted.pools.push(pool("main/api", vec![of_api]));
    let rule = |hosts: &[&str], paths: &[&str], https, to: &str| RouteRule {
        hosts: hosts.iter().map(|one| (*one).to_owned()).collect(),
        paths: paths.iter().map(|one| (*one).to_owned()).collect(),
        https,
        pools: route("", &[(to, 1)]).pools,
        ..RouteRule::default()
    };
    wanted.routes = vec![Route {
        rules: vec![
            rule(&[], &["/api/web"], None, "main"),
            rule(&[], &["/api/*"], None, "main/api"),
            rule(&["a?.example"], &["/host"], None, "main/api"),
            rule(&[], &["/secure"], Some(true), "main/api"),
            rule(&[], &["/plain"], Some(false), "main/api"),
        ],
        ..route("*.example", &[("main", 1)])
    }];
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    // The second way is taken by what the short one leaves to it.
    for headers in [[].as_slice(), &[("x_odd", "1")]] {
        for (host, path, to_api) in [
            ("a1.example", "/", false),
            ("a1.example", "/api/v1?x", true),
            ("a1.example", "/api/web", false),
            ("a1.example", "/API/v1", false),
            ("a1.example", "/host", true),
            ("b1.example", "/host", false),
            ("a1.example", "/secure", false),
            ("a1.example", "/plain", true),
        ] {
            let before = api.hits();
            let wanted = request(Method::GET, host, path, headers);
            assert_eq!(client.send(wanted).await.expect("an answer").status, 200);
            assert_eq!(api.hits() > before, to_api, "{host}{path}");
        }
    }
    let report = proxy.report().await;
    let mut processes: Vec<_> = report.targets.iter().map(|one| &*one.process).collect();
    processes.sort_unstable();
    assert_eq!(processes, ["", "api"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_requests_are_sent_to_https_with_their_method_and_the_connection_goes_on() {
    let (proxy, first, _second) = two_apps(|routes| routes[0].only_https = true).await;
    let mut client = Client::connect(proxy.http).await;
    let port = proxy.https.port();
    for (method, path) in [(Method::GET, "/a?b=c"), (Method::POST, "/")] {
        let wanted = request(method, "www.example:8080", path, &[]);
        let answer = client.send(wanted).await.expect("an answer");
        assert_eq!(answer.status, 308);
        assert_eq!(
            answer.headers["location"].to_str().expect("text"),
            format!("https://www.example:{port}{path}")
        );
    }
    assert_eq!(first.hits(), 0);
    // Whoever says so itself is not believed.
    let wanted = request(
        Method::GET,
        "www.example",
        "/",
        &[("x-forwarded-proto", "https")],
    );
    assert_eq!(client.send(wanted).await.expect("an answer").status, 308);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_in_front_that_had_tls_is_not_sent_there_again() {
    let backend = Backend::start().await;
    let directory = tempfile::tempdir().expect("temporary directory");
    let proxy = Proxy::start_in(directory.into(), |config| {
        config.trusted = vec![beanpole_proxy::Network {
            address: [127, 0, 0, 1].into(),
            bits: 8,
        }];
    })
    .await;
    let mut wanted = table(1, vec![serving(1, &backend)]);
    wanted.routes[0].only_https = true;
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    for (proto, status) in [("https", 200), ("http", 308)] {
        let wanted = request(Method::GET, HOST, "/", &[("x-forwarded-proto", proto)]);
        assert_eq!(client.send(wanted).await.expect("an answer").status, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_leads_to_the_canonical_one() {
    let (proxy, first, _second) = two_apps(|routes| {
        routes.push(Route {
            redirect: Some(Redirect {
                host: "www.example".to_owned(),
                https: false,
            }),
            ..route("example", &[("main", 1)])
        });
    })
    .await;
    let answer = get(proxy.http, "example:8080", "/x").await;
    assert_eq!(answer.status, 308);
    assert_eq!(answer.headers["location"], "http://www.example:8080/x");
    assert_eq!(first.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_route_that_makes_no_sense_changes_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let broken: [fn(&mut Route); 4] = [
        |route| route.host = "*.a..b".to_owned(),
        |route| route.host = "a.*.example".to_owned(),
        |route| route.paths = vec!["api".to_owned()],
        |route| {
            route.redirect = Some(Redirect {
                host: "a/b".to_owned(),
                https: true,
            });
        },
    ];
    for break_it in broken {
        let mut wanted = table(2, vec![serving(1, &backend)]);
        break_it(&mut wanted.routes[0]);
        assert!(proxy.put(&wanted).await.is_err(), "{wanted:?}");
    }
    assert_eq!(proxy.get("/").await.status, 200);
}
