use super::*;
use crate::commands::why::outside::{Attempt, Found, Handshake, SPEAKS_TLS, Trusted};
use beanpole_protocol::api::{
    Certificate, CertificateOrigin, CertificateStatus, ClosedListener, Colour, EnvironmentStatus,
    ExplainedEnvironment, ExplainedPool, ExplainedRequest, ExplainedRoute, ExplainedTarget,
    InstanceHealth,
};
use beanpole_protocol::proxy::{CheckResult, TargetMode};
use beanpole_protocol::tls::Terms;
use beanpole_protocol::{
    ApplicationName, CertificateName, EnvironmentName, Generation, InstanceId, ReleaseNumber,
    Timestamp,
};
use std::net::IpAddr;
use std::time::Duration;

const HTTP: &str = "http://shop.example.org/cart?secret";
const HTTPS: &str = "https://shop.example.org/cart";

fn answer(status: u16) -> Answer {
    Answer {
        status,
        took: Duration::from_millis(12),
        location: None,
        server: None,
        code: None,
    }
}

fn seen(answer: Answer) -> Seen {
    Seen {
        addresses: Ok((
            vec![IpAddr::from([192, 0, 2, 7])],
            Found::Resolved(Duration::from_millis(4)),
        )),
        attempts: vec![Attempt {
            address: SocketAddr::from(([192, 0, 2, 7], 80)),
            took: Duration::from_millis(1),
            error: None,
        }],
        tls: None,
        answer: Some(Ok(answer)),
        stands: None,
    }
}

fn refused() -> Seen {
    let mut seen = seen(answer(200));
    seen.attempts[0].error = Some("connection refused".to_owned());
    seen.answer = None;
    seen
}

fn traced(status: u16, why: Option<&str>) -> TracedRequest {
    TracedRequest {
        at: Timestamp::EPOCH,
        generation: Generation(12),
        status: Some(status),
        why: why.map(str::to_owned),
        environment: Some("shop-prod".to_owned()),
        instance: Some(InstanceId::from_bits(1)),
        release: Some(ReleaseNumber(4)),
        duration_us: 2_300,
    }
}

fn target(number: u128, taking: bool, why: Option<&str>) -> ExplainedTarget {
    ExplainedTarget {
        instance: InstanceId::from_bits(number),
        host: None,
        address: "192.0.2.20:20000".to_owned(),
        pool: "shop-prod".to_owned(),
        release: ReleaseNumber(4),
        mode: TargetMode::Serve,
        taking,
        why: why.map(str::to_owned),
        health: if taking {
            InstanceHealth::Healthy
        } else {
            InstanceHealth::Unhealthy
        },
        last_check: Some(CheckResult {
            at: Timestamp::EPOCH,
            asked: "GET /".to_owned(),
            good: taking,
            connected: true,
            answer: if taking { "200 in 1 ms" } else { "500 in 3 ms" }.to_owned(),
        }),
        in_flight: 0,
    }
}

/// An environment with one instance that takes requests.
fn explained(request: Option<TracedRequest>) -> Explained {
    Explained {
        host: "shop.example.org".to_owned(),
        path: "/cart".to_owned(),
        generation: Generation(12),
        balancers: vec![ExplainedBalancer {
            name: "local".to_owned(),
            connected: true,
            last_seen: Some(Timestamp::EPOCH),
            version: None,
            generation: Some(Generation(12)),
            listeners: vec!["http://192.0.2.7:80".to_owned()],
        }],
        route: Some(ExplainedRoute {
            host: "shop.example.org".to_owned(),
            paths: Vec::new(),
            redirect_to: None,
            only_https: false,
            rule: None,
        }),
        environment: Some(ExplainedEnvironment {
            name: EnvironmentName::new("shop-prod").expect("a name"),
            application: ApplicationName::new("shop").expect("a name"),
            status: EnvironmentStatus::Ready,
            health: Colour::Green,
            causes: Vec::new(),
            release: Some(ReleaseNumber(4)),
            version: None,
            operation: None,
        }),
        pools: vec![ExplainedPool {
            name: "shop-prod".to_owned(),
            percent: 100,
            releases: vec![ReleaseNumber(4)],
            serving: 1,
            taking: 1,
            ejected: 0,
            draining: 0,
            probed: 0,
            hold_ms: None,
            idle_ms: 60_000,
            body_bytes: None,
            per_second: None,
            per_second_by_client: None,
        }],
        targets: vec![target(1, true, None)],
        request: Some(ExplainedRequest {
            asked: vec!["local".to_owned()],
            balancer: request.as_ref().map(|_| "local".to_owned()),
            traced: request,
        }),
        ..Explained::default()
    }
}

fn without_instances(mut told: Explained) -> Explained {
    told.targets.clear();
    told.pools[0].serving = 0;
    told.pools[0].taking = 0;
    told
}

fn ill(mut told: Explained) -> Explained {
    told.targets = vec![target(1, false, Some("GET / answered: 500 in 3 ms"))];
    told.pools[0].taking = 0;
    told
}

fn hops(url: &str, seen: &Seen, told: Result<&Explained, &str>) -> Vec<Hop> {
    let url = Url::read(url).expect("a URL");
    let known = Known {
        url: &url,
        seen,
        told,
        api: Some("http://192.0.2.7:7700"),
    };
    known.hops()
}

/// Which hop fails, and what is said of it first.
fn verdict(url: &str, seen: &Seen, told: Result<&Explained, &str>) -> (Option<Name>, String) {
    let hops = hops(url, seen, told);
    match failing(&hops) {
        Some(hop) => (Some(hop.hop), hop.evidence[0].clone()),
        None => (None, hops[6].evidence[0].clone()),
    }
}

fn states(hops: &[Hop]) -> String {
    let of = |hop: &Hop| match hop.state {
        State::Ok => 'o',
        State::Failed => 'f',
        State::Skipped => '-',
    };
    hops.iter().map(of).collect()
}

#[test]
fn what_works_passes_every_hop_and_names_who_answered() {
    let told = explained(Some(traced(200, None)));
    let all = hops(HTTP, &seen(answer(200)), Ok(&told));
    assert_eq!(states(&all), "oo-oooo");
    let text: Vec<String> = all.iter().flat_map(|hop| hop.evidence.clone()).collect();
    let text = text.join("\n");
    for part in [
        "resolves to 192.0.2.7 in 4 ms",
        "192.0.2.7 is the load balancer `local`",
        "routing table 12, the newest",
        "leads to the environment shop-prod of shop",
        "release 4 gets 100 % of the requests: 1 of 1 instance takes them",
        "the application answered 200 in 12 ms",
        "the load balancer counts 2.3 ms",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn the_first_hop_that_fails_is_named() {
    let none = Explained {
        route: None,
        environment: None,
        pools: Vec::new(),
        targets: Vec::new(),
        near: vec!["shop.example.com".to_owned()],
        ..explained(Some(traced(404, Some("unknown-host"))))
    };
    let unreleased = {
        let mut told = without_instances(explained(Some(traced(503, Some("no-healthy-instance")))));
        told.environment.as_mut().expect("one").release = None;
        told
    };
    let late = explained(Some(traced(504, Some("late-answer"))));
    for (url, seen, told, wanted, says) in [
        (
            HTTP,
            seen(answer(404)),
            &none,
            Some(Name::Route),
            "no environment has the hostname",
        ),
        (
            HTTP,
            seen(answer(503)),
            &unreleased,
            Some(Name::Pool),
            "has no release",
        ),
        (
            HTTP,
            seen(answer(503)),
            &ill(explained(Some(traced(503, Some("no-healthy-instance"))))),
            Some(Name::Target),
            "none of 1 instance takes requests",
        ),
        (
            HTTP,
            seen(answer(500)),
            &explained(Some(traced(500, None))),
            Some(Name::App),
            "the application answered 500",
        ),
        (
            HTTP,
            seen(answer(504)),
            &late,
            Some(Name::App),
            "did not answer in time",
        ),
        (
            HTTP,
            seen(answer(429)),
            &explained(Some(traced(429, Some("too-many-requests")))),
            Some(Name::Pool),
            "more requests come",
        ),
        (
            HTTP,
            refused(),
            &explained(None),
            Some(Name::Edge),
            "192.0.2.7:80: connection refused",
        ),
        (
            HTTP,
            seen(answer(404)),
            &explained(Some(traced(404, None))),
            None,
            "the application answered 404",
        ),
        (
            HTTP,
            seen(answer(200)),
            &ill(explained(Some(traced(200, None)))),
            None,
            "the application answered 200",
        ),
        (
            HTTP,
            seen(answer(200)),
            &explained(None),
            Some(Name::Edge),
            "something else answers at 192.0.2.7:80",
        ),
    ] {
        let (hop, said) = verdict(url, &seen, Ok(told));
        assert_eq!(hop, wanted, "{said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn a_name_that_does_not_resolve_leaves_nothing_to_be_met_and_the_inside_is_told_all_the_same() {
    let mut seen = refused();
    seen.addresses = Err("no such name".to_owned());
    seen.attempts.clear();
    let all = hops(HTTP, &seen, Ok(&explained(None)));
    assert_eq!(states(&all), "f--ooo-");
    assert!(
        all[0]
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("--at"))
    );
}

#[test]
fn an_instance_says_why_it_takes_nothing() {
    let told = ill(explained(Some(traced(503, Some("no-healthy-instance")))));
    let all = hops(HTTP, &seen(answer(503)), Ok(&told));
    let line = &all[5].evidence[1];
    let wanted = "release 4: Unhealthy; GET / answered: 500 in 3 ms";
    assert!(line.ends_with(wanted), "{line}");
    assert_eq!(states(&all), "oo-oof-");
}

#[test]
fn without_the_controller_only_what_is_seen_from_outside_counts() {
    let down = "unknown without the controller: connection refused";
    let all = hops(HTTP, &seen(answer(200)), Err(down));
    assert_eq!(states(&all), "oo----o");
    assert_eq!(all[3].evidence[0], down);
    for (code, wanted) in [
        ("unknown-host", Name::Route),
        ("no-healthy-instance", Name::Target),
        ("too-many-requests", Name::Pool),
        ("no-answer", Name::App),
        ("bad-request", Name::App),
    ] {
        let told = Answer {
            code: Some(code.to_owned()),
            ..answer(503)
        };
        let (hop, said) = verdict(HTTP, &seen(told), Err(down));
        assert_eq!(hop, Some(wanted), "{code}: {said}");
    }
    assert_eq!(verdict(HTTP, &refused(), Err(down)).0, Some(Name::Edge));
}

#[test]
fn a_load_balancer_that_is_down_is_told_apart_from_a_wrong_port() {
    let mut down = explained(None);
    down.balancers[0].connected = false;
    down.pools[0].taking = 0;
    let all = hops(HTTP, &refused(), Ok(&down));
    assert!(
        all[1].evidence[1].contains("not connected to the controller"),
        "{all:?}"
    );
    assert!(
        all[1]
            .hint
            .as_ref()
            .is_some_and(|hint| hint.contains("Start"))
    );
    assert_eq!(
        all[5].state,
        State::Skipped,
        "nobody says which instances take requests"
    );
    let mut other = explained(None);
    other.balancers[0].listeners = vec!["http://0.0.0.0:8080".to_owned()];
    let all = hops(HTTP, &refused(), Ok(&other));
    let hint = all[1].hint.as_deref().unwrap_or_default();
    assert!(hint.contains("listens on port 80"), "{hint}");
}

#[test]
fn a_redirect_of_the_load_balancer_asks_no_instance() {
    let mut told = explained(Some(traced(308, Some("redirect"))));
    told.route.as_mut().expect("a route").redirect_to = Some("www.example.org".to_owned());
    let all = hops(HTTP, &seen(answer(308)), Ok(&told));
    assert_eq!(states(&all), "oo-o---");
    assert!(all[3].evidence[0].contains("sends clients to www.example.org"));
}

#[test]
fn a_load_balancer_with_an_older_table_is_found_out() {
    let mut late = traced(404, Some("unknown-host"));
    late.generation = Generation(11);
    let all = hops(HTTP, &seen(answer(404)), Ok(&explained(Some(late))));
    let failed = failing(&all).expect("it fails");
    assert_eq!(failed.hop, Name::Route);
    let line = &failed.evidence[1];
    assert!(
        line.contains("routing table 11, where 12 is the newest"),
        "{line}"
    );
}

fn handshake(trusted: Trusted, wrong: Option<&str>) -> Handshake {
    Handshake {
        version: "1.3",
        took: Duration::from_millis(3),
        facts: Err("it has no hostnames".to_owned()),
        by_itself: false,
        wrong: wrong.map(str::to_owned),
        trusted,
    }
}

fn certificate() -> Certificate {
    Certificate {
        name: CertificateName::new("shop").expect("a name"),
        origin: CertificateOrigin::Given,
        status: CertificateStatus::Valid,
        causes: Vec::new(),
        hosts: Vec::new(),
        issuer: None,
        serial: None,
        fingerprint: None,
        not_before: None,
        not_after: None,
        renews_at: None,
        in_force: false,
        fallback: false,
        terms: Terms::default(),
        used_by: Vec::new(),
        ocsp: None,
        added_at: Timestamp::EPOCH,
        chain: None,
    }
}

#[test]
fn a_certificate_has_to_be_for_the_name_and_somebodys() {
    let over = |tls| Seen {
        tls: Some(tls),
        ..seen(answer(200))
    };
    let mut told = explained(Some(traced(200, None)));
    told.certificate = Some(certificate());
    let of = |tls| verdict(HTTPS, &over(tls), Ok(&told));
    assert_eq!(of(Ok(handshake(Trusted::Machine, None))).0, None);
    assert_eq!(of(Ok(handshake(Trusted::Own, None))).0, None);
    let (hop, said) = of(Ok(handshake(Trusted::Nobody, None)));
    assert_eq!(
        (hop, said.contains("nobody whom clients know")),
        (Some(Name::Tls), true)
    );
    let (hop, said) = of(Ok(handshake(Trusted::Machine, Some("has expired"))));
    assert_eq!(
        (hop, said.as_str()),
        (Some(Name::Tls), "the certificate has expired")
    );
    let refused = Seen {
        tls: Some(Err("unrecognised name".to_owned())),
        answer: None,
        ..seen(answer(200))
    };
    let mut without = explained(None);
    without.request = None;
    without.balancers[0].listeners = vec!["https://192.0.2.7:80".to_owned()];
    let all = hops(HTTPS, &refused, Ok(&without));
    assert_eq!(states(&all), "oof ooo-".replace(' ', ""));
    assert!(
        all[2].evidence[1].contains("there is no certificate for"),
        "{all:?}"
    );
}

#[test]
fn plain_http_at_a_port_of_tls_is_no_fault_of_the_application() {
    let told = explained(None);
    let mut seen = seen(answer(200));
    seen.answer = Some(Err(SPEAKS_TLS.to_owned()));
    let (fails, why) = verdict(HTTP, &seen, Ok(&told));
    assert_eq!((fails, why.as_str()), (Some(Name::Tls), SPEAKS_TLS));
    // What closes the connection without a word is known by the controller's word.
    let mut told = told;
    told.balancers[0].listeners = vec!["https://192.0.2.7:80".to_owned()];
    seen.answer = Some(Err("the connection was closed without an answer".to_owned()));
    seen.addresses = Ok((vec![IpAddr::from([192, 0, 2, 7])], Found::Given));
    let hops = hops(HTTP, &seen, Ok(&told));
    let tls = failing(&hops).expect("it fails");
    assert_eq!(tls.hop, Name::Tls);
    assert_eq!(
        tls.hint.as_deref(),
        Some("Ask by HTTPS: beanpole why https://shop.example.org/cart?… --at 192.0.2.7:80")
    );
}

#[test]
fn tls_at_a_port_of_plain_http_is_told_with_the_port_for_https() {
    let mut told = explained(None);
    told.request = None;
    told.certificate = Some(certificate());
    let mut seen = seen(answer(200));
    seen.tls = Some(Err("it does not speak TLS".to_owned()));
    seen.answer = None;
    let failed = |told: &Explained| {
        let all = hops("https://shop.example.org:80/cart", &seen, Ok(told));
        failing(&all).expect("it fails").clone()
    };
    let tls = failed(&told);
    assert_eq!(tls.hop, Name::Tls);
    assert!(tls.evidence[0].contains("plain HTTP alone"), "{tls:?}");
    let hint = tls.hint.unwrap_or_default();
    assert!(
        hint.ends_with("beanpole why http://shop.example.org/cart"),
        "{hint}"
    );
    let by_tls = "https://192.0.2.7:8443".to_owned();
    told.balancers[0].listeners.push(by_tls);
    let hint = failed(&told).hint.unwrap_or_default();
    assert!(
        hint.ends_with("beanpole why https://shop.example.org:8443/cart"),
        "{hint}"
    );
}

#[test]
fn the_controllers_api_is_no_load_balancer() {
    let mut seen = seen(answer(200));
    seen.attempts[0].address.set_port(7700);
    let all = hops("http://192.0.2.7:7700/healthz", &seen, Ok(&explained(None)));
    let edge = failing(&all).expect("it fails");
    assert_eq!(edge.hop, Name::Edge);
    assert!(
        edge.evidence[0].contains("the controller's own API"),
        "{edge:?}"
    );
    let hint = edge.hint.as_deref().unwrap_or_default();
    assert!(hint.contains("http://192.0.2.7:80"), "{hint}");
}

#[test]
fn a_host_that_nobody_has_is_given_by_a_command_that_can_be_typed() {
    let nobody = |default_domain| Explained {
        route: None,
        environment: None,
        pools: Vec::new(),
        targets: Vec::new(),
        default_domain,
        ..explained(Some(traced(404, Some("unknown-host"))))
    };
    for (host, default_domain, wanted) in [
        (
            "shop.example.org",
            false,
            "beanpole domain add ENVIRONMENT shop.example.org;",
        ),
        ("s1-net.localhost", true, "beanpole create s1-net"),
        ("shop.apps.example.org", true, "beanpole create shop"),
        ("a.shop.localhost", true, "beanpole list"),
        ("localhost", true, "beanpole list"),
    ] {
        let url = format!("http://{host}/");
        let all = hops(&url, &seen(answer(404)), Ok(&nobody(default_domain)));
        let hint = failing(&all)
            .and_then(|hop| hop.hint.clone())
            .unwrap_or_default();
        assert!(hint.contains(wanted), "{host}: {hint}");
        assert_eq!(
            hint.contains("domain add"),
            !default_domain,
            "{host}: {hint}"
        );
    }
}

/// A network environment at 5432, with one instance.
fn network(protocol: StreamMode, by_name: bool) -> Explained {
    Explained {
        route: None,
        request: None,
        network: Some(ExplainedNetwork {
            environment: EnvironmentName::new("shop-db").expect("a name"),
            listeners: vec![ListenerView {
                port: 5432,
                protocol,
                by_name,
                address: "tcp://shop-db.localhost:5432".to_owned(),
                closed: Vec::new(),
            }],
            port: Some(5432),
        }),
        ..explained(None)
    }
}

/// A connection to it, on which nothing was asked.
fn connected(stands: Stands) -> Seen {
    let mut seen = seen(answer(200));
    seen.attempts[0].address.set_port(5432);
    seen.answer = None;
    seen.stands = Some(stands);
    seen
}

const TCP: &str = "tcp://shop-db.localhost:5432";
const TLS: &str = "tls://shop-db.localhost:5432";

#[test]
fn a_connection_is_followed_from_its_port_to_the_instances() {
    let told = network(StreamMode::Pass, false);
    let all = hops(TCP, &connected(Stands::Silent), Ok(&told));
    assert_eq!(states(&all), "oo-oooo", "{all:?}");
    let lines: Vec<String> = all.iter().flat_map(|hop| hop.evidence.clone()).collect();
    let text = lines.join("\n");
    for part in [
        "load balancers listen on port 5432 for shop-db",
        "port 5432 takes connections for the network environment shop-db of shop: bytes pass as they are",
        "release 4 gets 100 % of the connections: 1 of 1 instance takes them",
        "1 of 1 instance takes connections",
        "the connection stands",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let ends = connected(Stands::Ends("the connection was reset".to_owned()));
    let (fails, _) = verdict(TCP, &ends, Ok(&told));
    assert_eq!(fails, Some(Name::App));
    let (fails, why) = verdict(TCP, &ends, Ok(&ill(told)));
    assert_eq!(
        (fails, why.as_str()),
        (Some(Name::Target), "none of 1 instance takes connections")
    );
}

#[test]
fn the_application_behind_tls_that_ends_is_looked_at() {
    let told = network(StreamMode::Terminate, false);
    let closed = "the connection was closed without a word".to_owned();
    let seen = Seen {
        tls: Some(Ok(handshake(Trusted::Machine, None))),
        ..connected(Stands::Ends(closed))
    };
    assert_eq!(verdict(TLS, &seen, Ok(&told)).0, Some(Name::App));
    let mut asked = seen;
    asked.stands = None;
    asked.answer = Some(Err("it is no HTTP/1.1".to_owned()));
    let https = "https://shop-db.localhost:5432";
    assert_eq!(verdict(https, &asked, Ok(&told)).0, Some(Name::App));
}

#[test]
fn who_is_cut_off_because_no_instance_takes_anybody_is_told_so_at_any_moment() {
    let reset = || "the connection was reset".to_owned();
    for mode in [StreamMode::Pass, StreamMode::Terminate] {
        let told = ill(network(mode, false));
        let mut in_greeting = connected(Stands::Silent);
        in_greeting.stands = None;
        in_greeting.tls = Some(Err(reset()));
        assert_eq!(verdict(TLS, &in_greeting, Ok(&told)).0, Some(Name::Target));
        let mut before = in_greeting;
        before.tls = None;
        before.attempts[0].error = Some(reset());
        assert_eq!(verdict(TLS, &before, Ok(&told)).0, Some(Name::Target));
    }
}

#[test]
fn requests_to_a_network_port_go_to_its_environment() {
    let told = network(StreamMode::Pass, false);
    let (fails, why) = verdict("http://127.0.0.1:5432", &seen(answer(200)), Ok(&told));
    assert_eq!(fails, None, "{why}");
    let mut other = seen(answer(200));
    other.answer = Some(Err("it is no HTTP/1.1".to_owned()));
    let all = hops("http://127.0.0.1:5432", &other, Ok(&told));
    let failed = failing(&all).expect("it fails");
    assert_eq!(failed.hop, Name::App);
    let hint = failed.hint.as_deref().unwrap_or_default();
    assert!(
        hint.ends_with("beanpole why tcp://127.0.0.1:5432"),
        "{hint}"
    );
}

#[test]
fn tls_that_passes_is_the_applications_own_and_so_is_what_is_wrong_with_it() {
    let told = network(StreamMode::Pass, true);
    let shown = |trusted, by_itself| Seen {
        tls: Some(Ok(Handshake {
            by_itself,
            ..handshake(trusted, None)
        })),
        ..connected(Stands::Silent)
    };
    assert_eq!(
        verdict(TLS, &shown(Trusted::Machine, false), Ok(&told)).0,
        None
    );
    let own = shown(Trusted::Nobody, true);
    let all = hops(TLS, &own, Ok(&told));
    let failed = failing(&all).expect("it fails");
    assert_eq!(
        failed.evidence[0],
        "TLS is the application's own, and clients will not trust its certificate: it is signed by itself"
    );
    let hint = failed.hint.as_deref().unwrap_or_default();
    assert!(
        hint.contains("--set aws:elbv2:listener:5432:Protocol=TLS"),
        "{hint}"
    );
    assert_eq!(states(&all), "oofoooo");
    let (fails, why) = verdict(TCP, &connected(Stands::Silent), Ok(&told));
    assert_eq!(fails, Some(Name::Tls), "{why}");
    assert!(why.contains("is for clients of TLS"), "{why}");
}

#[test]
fn a_port_that_no_load_balancer_could_open_is_another_programs() {
    let mut told = network(StreamMode::Pass, false);
    let listeners = &mut told.network.as_mut().expect("one").listeners;
    listeners[0].closed.push(ClosedListener {
        balancer: "local".to_owned(),
        why: "postgres (process 7) already listens on port 5432".to_owned(),
    });
    let all = hops(TCP, &connected(Stands::Silent), Ok(&told));
    let failed = failing(&all).expect("it fails");
    assert_eq!(failed.hop, Name::Edge);
    assert!(failed.evidence[0].contains("another program"), "{failed:?}");
    assert!(failed.evidence.iter().any(|line| line.contains("postgres")));
}

#[test]
fn ports_that_lead_nowhere_say_what_would() {
    let mut shared = network(StreamMode::Pass, true);
    shared.network = None;
    shared.no_such_name = true;
    shared.near = vec!["shop-db.localhost".to_owned()];
    let all = hops(
        "tls://other.test:5432",
        &connected(Stands::Silent),
        Ok(&shared),
    );
    let route = &all[3];
    assert_eq!(
        route.hint.as_deref(),
        Some("Ask for one of its names: beanpole why tls://shop-db.localhost:5432")
    );
    let mut nobody = network(StreamMode::Pass, false);
    nobody.network = None;
    nobody.balancers[0].listeners = vec!["https://192.0.2.7:5432".to_owned()];
    let all = hops(TLS, &connected(Stands::Silent), Ok(&nobody));
    let hint = all[3].hint.as_deref().unwrap_or_default();
    assert_eq!(
        hint,
        "Send one: beanpole why https://shop-db.localhost:5432/"
    );
    let mut elsewhere = network(StreamMode::Pass, false);
    elsewhere.network.as_mut().expect("one").port = None;
    let all = hops(
        "tcp://shop-db.localhost:1",
        &connected(Stands::Silent),
        Ok(&elsewhere),
    );
    let hint = all[3].hint.as_deref().unwrap_or_default();
    assert_eq!(
        hint,
        "Look there: beanpole why tcp://shop-db.localhost:5432"
    );
}
