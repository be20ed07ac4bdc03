//! What checks ask and want besides a path and a status.

use crate::h2app::H2App;
use crate::support::*;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::{BodyMatch, HttpDetails, Probe, RoutingTable, TargetMode};
use std::sync::atomic::Ordering;

fn asking(generation: u64, address: std::net::SocketAddr, probe: Probe) -> RoutingTable {
    let mut wanted = table(generation, vec![target(1, address, TargetMode::Serve)]);
    check_all(&mut wanted, |check| check.probe = probe.clone());
    wanted
}

fn http(path: &str, details: HttpDetails) -> Probe {
    Probe::Http {
        path: path.to_owned(),
        statuses: vec![(200, 299)],
        details,
    }
}

fn grpc(service: &str, codes: &[(u16, u16)]) -> Probe {
    Probe::Grpc {
        service: service.to_owned(),
        codes: codes.to_vec(),
    }
}

/// What the next check after a change of the table says.
async fn answer(proxy: &Proxy, wanted: &RoutingTable, good: bool) -> String {
    proxy.put(wanted).await.expect("put");
    let asked = wanted.pools[0].targets[0].check.probe.to_string();
    let target = proxy
        .until_target("it is asked", 1, |target| {
            let last = target.last_check.as_ref();
            last.is_some_and(|last| last.asked == asked && last.good == good)
        })
        .await;
    target.last_check.expect("a check").answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_wants_its_body_and_sends_its_headers() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let details = |wanted: &str| HttpDetails {
        headers: vec![("host".to_owned(), "shop.example".to_owned())],
        body: Some(BodyMatch::Contains(wanted.to_owned())),
        http2: false,
    };
    // It tells what it was asked.
    let told = http("/told", details("[\"host\",\"shop.example\"]"));
    let said = answer(&proxy, &asking(1, backend.address, told), true).await;
    assert!(said.starts_with("200 in "), "{said}");
    let said = answer(
        &proxy,
        &asking(2, backend.address, http("/other", details("ready"))),
        false,
    )
    .await;
    let wrong = ", but the body does not contain \"ready\"";
    assert!(
        said.starts_with("200 in ") && said.ends_with(wrong),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_grpc_goes_by_what_the_service_says_of_itself() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    let said = answer(&proxy, &asking(1, app.address, grpc("", &[(0, 0)])), true).await;
    assert!(said.starts_with("SERVING in "), "{said}");
    app.health.store(2, Ordering::SeqCst);
    let shop = asking(2, app.address, grpc("shop", &[(0, 0)]));
    let said = answer(&proxy, &shop, false).await;
    assert!(
        said.starts_with("NOT_SERVING in ") && said.ends_with(", wanted SERVING"),
        "{said}"
    );
    let other = asking(3, app.address, grpc("other", &[(0, 0)]));
    let said = answer(&proxy, &other, false).await;
    assert!(said.starts_with("NOT_FOUND (5) in "), "{said}");
    let again = asking(5, app.address, grpc("", &[(0, 0)]));
    let lenient = asking(4, app.address, grpc("others", &[(0, 0), (5, 5)]));
    let said = answer(&proxy, &lenient, true).await;
    assert!(said.starts_with("NOT_FOUND (5) in "), "{said}");
    app.leave();
    assert_eq!(answer(&proxy, &again, false).await, "connection refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_over_http2_is_tried_like_any_other() {
    let app = H2App::start().await;
    let proxy = Proxy::start().await;
    let mut wanted = asking(1, app.address, grpc("", &[(0, 0)]));
    proxy.serve(&wanted).await;
    for (generation, text, passes) in [(2, "ready", true), (3, "never", false)] {
        let mut tried = wanted.pools[0].targets[0].check.clone();
        let details = HttpDetails {
            body: Some(BodyMatch::Contains(text.to_owned())),
            http2: true,
            ..HttpDetails::default()
        };
        tried.probe = http("/up", details);
        wanted.generation = Generation(generation);
        wanted.pools[0].targets[0].tried = Some(tried.clone());
        proxy.put(&wanted).await.expect("put");
        let target = proxy
            .until_target("known", 1, |target| {
                let of_it = target.tried.as_ref().filter(|one| one.check == tried);
                of_it.is_some_and(|one| one.passes() == Some(passes))
            })
            .await;
        assert!(target.healthy, "{target:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_http2_is_told_so() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let said = answer(
        &proxy,
        &asking(1, backend.address, grpc("", &[(0, 0)])),
        false,
    )
    .await;
    assert!(said.starts_with("no HTTP/2 without TLS"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_pattern_that_is_none_changes_nothing() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    let details = HttpDetails {
        body: Some(BodyMatch::Matches("(".to_owned())),
        ..HttpDetails::default()
    };
    let wanted = asking(1, backend.address, http("/", details));
    let refused = proxy
        .put(&wanted)
        .await
        .expect_err("no pattern")
        .to_string();
    assert!(refused.contains("pattern that cannot be used"), "{refused}");
}
