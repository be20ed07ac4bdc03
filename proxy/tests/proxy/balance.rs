//! Who gets the next request, with real requests.

use crate::support::*;
use beanpole_protocol::Generation;
use beanpole_protocol::proxy::{Algorithm, HashBy, Outliers, Stickiness, Sticky, TargetMode};
use beanpole_protocol::tls::{CertificateSet, SessionKey};
use http::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// So many backends, and a table that has them serve.
async fn serving_all(count: u8) -> (Vec<Backend>, beanpole_protocol::proxy::RoutingTable) {
    let mut backends = Vec::new();
    for _ in 0..count {
        backends.push(Backend::start().await);
    }
    let targets = (1..).zip(&backends).map(|(n, b)| serving(n, b)).collect();
    (backends, table(1, targets))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_the_same_header_cookie_or_path_go_to_the_same_instance() {
    let (backends, mut wanted) = serving_all(3).await;
    let proxy = Proxy::start().await;
    wanted.pools[0].algorithm = Algorithm::ConsistentHash;
    let hits = || backends.iter().map(Backend::hits).collect::<Vec<_>>();
    let ways = [
        (HashBy::Header("x-tenant".to_owned()), "x-tenant", "acme"),
        (HashBy::Cookie("sid".to_owned()), "cookie", "a=b; sid=1"),
    ];
    for (by, name, value) in ways {
        wanted.generation = wanted.generation.next();
        wanted.pools[0].rules.hash_by = by;
        proxy.serve(&wanted).await;
        let mut client = Client::connect(proxy.http).await;
        let before = hits();
        for number in 0..12 {
            // Every other one takes the long way, through pingora.
            let path = format!("/{number}");
            let mut told = request(Method::GET, HOST, &path, &[(name, value)]);
            if number % 2 == 0 {
                let odd = http::HeaderValue::from_static("1");
                told.headers_mut().insert("x_odd", odd);
            }
            assert_eq!(client.send(told).await.expect("an answer").status, 200);
        }
        let after = hits();
        let same = before.iter().zip(&after).filter(|(b, a)| **a == **b + 12);
        assert_eq!(same.count(), 1, "{name}: {before:?} {after:?}");
        // Without it they go by turns.
        for _ in 0..6 {
            client.get(HOST, "/").await.expect("an answer");
        }
        assert!(
            after
                .iter()
                .zip(hits())
                .all(|(before, now)| now == before + 2)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_instance_gets_less_under_peak_ewma() {
    let (backends, mut wanted) = serving_all(2).await;
    let proxy = Proxy::start().await;
    wanted.pools[0].algorithm = Algorithm::PeakEwma;
    proxy.serve(&wanted).await;
    // One is asked for what it holds back for a while.
    let http = proxy.http;
    let held = tokio::spawn(async move { get(http, HOST, "/hold").await });
    until("one has it", || async {
        let hit = backends.iter().position(|backend| backend.hits() == 1);
        hit.map(|_| ())
    })
    .await;
    let slow = backends.iter().position(|b| b.hits() == 1).expect("one");
    // So long that the other one's slowest answer is quick beside it, on a busy machine, too.
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    while begun.elapsed() < 50 * longest || backends[1 - slow].hits() < 20 {
        let asked = Instant::now();
        proxy.get("/").await;
        longest = longest.max(asked.elapsed());
    }
    backends[slow].release.notify_one();
    assert_eq!(held.await.expect("no panic").text(), "held");
    proxy
        .until_target("it is counted", slow as u8 + 1, |t| t.in_flight == 0)
        .await;
    let before = backends[slow].hits();
    for _ in 0..20 {
        proxy.get("/").await;
    }
    assert!(backends[slow].hits() <= before + 1, "it took too long");
}

/// The pair that gives back the cookie of that name, if an answer gives one.
fn cookie(answer: &Answer, name: &str) -> Option<String> {
    let given = answer.headers.get_all("set-cookie").iter();
    let mut pairs = given.filter_map(|value| value.to_str().ok()?.split(';').next());
    pairs.find(|pair| pair.starts_with(name)).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_by_its_cookie_and_moves_when_its_instance_is_gone() {
    let (backends, mut wanted) = serving_all(3).await;
    let proxy = Proxy::start().await;
    wanted.pools[0].rules.sticky = Some(Stickiness::Cookie { lasts_s: 60 });
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    let first = client.get(HOST, "/").await.expect("an answer");
    let pair = cookie(&first, "beanpole_session").expect("a cookie");
    let home = backends.iter().position(|b| b.hits() == 1).expect("one");
    let told = first.headers["set-cookie"].to_str().expect("text");
    assert!(
        told.ends_with("; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"),
        "{told}"
    );
    assert!(!told.contains("127.0.0.1") && !told.contains(instance(home as u8 + 1).as_str()));
    let sent = format!("a=1; {pair}; beanpole_client=7");
    for long_way in [false, true, false] {
        let headers = [("cookie", sent.as_str()), ("x_odd", "1")];
        let count = 1 + usize::from(long_way);
        for _ in 0..4 {
            let asked = request(Method::GET, HOST, "/", &headers[..count]);
            let answer = client.send(asked).await.expect("an answer");
            assert_eq!(answer.told("cookie").as_deref(), Some("a=1"));
            assert!(!answer.headers.contains_key("set-cookie"));
        }
    }
    assert_eq!(backends[home].hits(), 13);
    backends[home].kill();
    // It may answer once more before it is gone.
    let other = until("the client moves", || async {
        let asked = request(Method::GET, HOST, "/", &[("cookie", sent.as_str())]);
        let mut client = Client::connect(proxy.http).await;
        let moved = client.send(asked).await.expect("an answer");
        assert_eq!(moved.status, 200);
        cookie(&moved, "beanpole_session")
    })
    .await;
    assert_ne!(other, pair);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_last_while_the_proxy_starts_again() {
    let (backends, mut wanted) = serving_all(3).await;
    let proxy = Proxy::start().await;
    wanted.pools[0].rules.sticky = Some(Stickiness::Cookie { lasts_s: 60 });
    proxy.serve(&wanted).await;
    let first = proxy.get("/").await;
    let pair = cookie(&first, "beanpole_session").expect("a cookie");
    let home = backends.iter().position(|b| b.hits() == 1).expect("one");
    let proxy = Proxy::start_in(proxy.stopped().await, |_| {}).await;
    let mut client = Client::connect(proxy.http).await;
    for _ in 0..6 {
        let asked = request(Method::GET, HOST, "/", &[("cookie", pair.as_str())]);
        assert_eq!(client.send(asked).await.expect("an answer").status, 200);
    }
    assert_eq!(backends[home].hits(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_stay_at_any_load_balancer_with_the_key_of_all_and_so_do_those_of_before() {
    let (backends, mut wanted) = serving_all(3).await;
    wanted.pools[0].rules.sticky = Some(Stickiness::Cookie { lasts_s: 60 });
    let [one, other] = [Proxy::start().await, Proxy::start().await];
    one.serve(&wanted).await;
    other.serve(&wanted).await;
    let before = cookie(&one.get("/").await, "beanpole_session").expect("a cookie");
    let home = backends.iter().position(|b| b.hits() == 1).expect("one");
    let set = CertificateSet {
        generation: Generation(1),
        session_key: Some(SessionKey::from_bits(7)),
        ..CertificateSet::default()
    };
    one.put_certificates(&set).await.expect("put");
    other.put_certificates(&set).await.expect("put");
    let asks = async |proxy: &Proxy, pair: &str| {
        let mut client = Client::connect(proxy.http).await;
        let asked = request(Method::GET, HOST, "/", &[("cookie", pair)]);
        client.send(asked).await.expect("an answer")
    };
    // What it gave by its own key holds on.
    assert!(cookie(&asks(&one, &before).await, "beanpole_session").is_none());
    assert_eq!(backends[home].hits(), 2);
    // What either gives from now on holds at both, also when one is started again.
    let hits: Vec<usize> = backends.iter().map(Backend::hits).collect();
    let given = cookie(&one.get("/").await, "beanpole_session").expect("a cookie");
    let home = (0..3).find(|number| backends[*number].hits() > hits[*number]);
    let home = home.expect("one");
    let hits = backends[home].hits();
    let other = Proxy::start_in(other.stopped().await, |_| {}).await;
    for proxy in [&other, &one, &other] {
        assert!(cookie(&asks(proxy, &given).await, "beanpole_session").is_none());
    }
    assert_eq!(backends[home].hits(), hits + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_split_the_side_comes_first_and_then_the_instance() {
    let (backends, mut wanted) = serving_all(4).await;
    let proxy = Proxy::start().await;
    let new_side = wanted.pools[0].targets.split_off(2);
    wanted.pools.push(pool("main@2", new_side));
    wanted.routes = vec![route(HOST, &[("main", 50), ("main@2", 50)])];
    wanted.routes[0].sticky = Some(Sticky::Cookie);
    for pool in &mut wanted.pools {
        pool.rules.sticky = Some(Stickiness::Cookie { lasts_s: 60 });
    }
    proxy.serve(&wanted).await;
    let first = proxy.get("/").await;
    let side = cookie(&first, "beanpole_client").expect("a side");
    let session = cookie(&first, "beanpole_session").expect("a session");
    let home = backends.iter().position(|b| b.hits() == 1).expect("one");
    let mut client = Client::connect(proxy.http).await;
    let both = format!("{side}; {session}");
    for _ in 0..6 {
        let asked = request(Method::GET, HOST, "/", &[("cookie", both.as_str())]);
        let answer = client.send(asked).await.expect("an answer");
        assert!(!answer.headers.contains_key("set-cookie"));
        assert_eq!(answer.told("cookie"), None);
    }
    assert_eq!(backends[home].hits(), 7);
    // The new side takes all in: everybody moves, and is told where.
    wanted.generation = wanted.generation.next();
    wanted.routes[0].pools[0].weight = 0;
    wanted.routes[0].pools[1].weight = 100;
    proxy.serve(&wanted).await;
    let asked = request(Method::GET, HOST, "/", &[("cookie", both.as_str())]);
    let answer = client.send(asked).await.expect("an answer");
    let moved = cookie(&answer, "beanpole_session");
    assert_eq!(
        moved.is_some(),
        home < 2,
        "only who was on the other side moves"
    );
    assert!(backends[2].hits() + backends[3].hits() > 0);
}

/// An app that passes its checks, and answers all else with 500 while it is broken.
struct Breakable {
    address: SocketAddr,
    broken: Arc<AtomicBool>,
    hits: Arc<AtomicUsize>,
}

impl Breakable {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let breakable = Self {
            address: listener.local_addr().expect("address"),
            broken: Arc::new(AtomicBool::new(true)),
            hits: Arc::default(),
        };
        let (broken, hits) = (breakable.broken.clone(), breakable.hits.clone());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let count = socket.read(&mut head).await.unwrap_or(0);
                let is_check = head[..count].starts_with(b"GET /health");
                hits.fetch_add(usize::from(!is_check), SeqCst);
                let status = if is_check || !broken.load(SeqCst) {
                    "200 OK"
                } else {
                    "500 No"
                };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        breakable
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_requests_is_left_out_for_a_while_and_told_of() {
    let good = [Backend::start().await, Backend::start().await];
    let bad = Breakable::start().await;
    let proxy = Proxy::start().await;
    let mut targets: Vec<_> = (1..).zip(&good).map(|(n, b)| serving(n, b)).collect();
    targets.push(target(3, bad.address, TargetMode::Serve));
    let mut wanted = table(1, targets);
    wanted.pools[0].rules.outliers = Some(Outliers {
        failures: 0,
        errors: 3,
        error_percent: 0,
        window_s: 30,
        lasts_s: 1,
        most_percent: 10,
    });
    proxy.serve(&wanted).await;
    let mut client = Client::connect(proxy.http).await;
    let mut failed = 0;
    for _ in 0..30 {
        let answer = client.get(HOST, "/").await.expect("an answer");
        failed += usize::from(answer.status == 500);
    }
    assert_eq!((failed, bad.hits.load(SeqCst)), (3, 3));
    let told = proxy.target(3).await;
    assert!(told.healthy, "{told:?}");
    let ejected = told.ejected.expect("it is told");
    assert_eq!(ejected.why, "3 requests in a row failed");
    assert_eq!((ejected.times, ejected.lasts_ms), (1, 1_000));
    bad.broken.store(false, SeqCst);
    proxy
        .until_target("it is back", 3, |target| target.ejected.is_none())
        .await;
    for _ in 0..6 {
        assert_eq!(client.get(HOST, "/").await.expect("an answer").status, 200);
    }
    assert_eq!(bad.hits.load(SeqCst), 5);
}
