use super::*;
use crate::derive::tests::{environment, host, release};
use crate::{Asked, Call, EngineConfig};
use beanpole_protocol::api::{CreateEnvironment, Scheme, SetDomain, Swap, Tier, UpdateSettings};
use beanpole_protocol::options::{ASG, ENVIRONMENT, PROXY};
use beanpole_protocol::proxy::{ProxyReport, StreamReport};
use beanpole_protocol::{
    Cname, Domain, DomainName, EnvironmentId, Generation, HostId, Hostname, ReleaseNumber,
    RequestId,
};
use beanpole_store::Store;
use beanpole_store::model::{ApplicationRecord, DomainRecord, EventRecord};

const NOW: Timestamp = Timestamp::from_millis(10_000);

fn name(text: &str) -> EnvironmentName {
    EnvironmentName::new(text).expect("a name")
}

fn with(other: &str) -> Swap {
    Swap {
        with: name(other),
        allow_empty: false,
    }
}

fn call(bits: u128, observed: &Observed) -> Call<'_> {
    Call {
        request_id: RequestId::from_bits(bits),
        now: NOW,
        bits,
        observed,
    }
}

fn network(ports: &[(u16, &str)], by_name: bool) -> OptionSettings {
    let mut settings = OptionSettings::default();
    settings.set(ENVIRONMENT, "LoadBalancerType", "network");
    for (port, protocol) in ports {
        settings.set(&format!("aws:elbv2:listener:{port}"), "Protocol", *protocol);
    }
    if by_name {
        settings.set(PROXY, "RouteBySNI", "true");
    }
    settings
}

fn record(number: u128, text: &str, settings: OptionSettings) -> EnvironmentRecord {
    EnvironmentRecord {
        id: EnvironmentId::from_bits(number),
        name: name(text),
        tier: Tier::Web,
        cname: Some(Cname::new(text).expect("a name")),
        settings,
        ..environment()
    }
}

/// An engine with a network environment `db-a` at 5432, an application one and their application.
fn engine() -> Engine {
    let store = Store::in_memory();
    let application = environment().application;
    let written = store.update(|tx| {
        tx.put(&ApplicationRecord {
            name: application.clone(),
            description: String::new(),
            root: false,
            created_at: NOW,
        })?;
        tx.put(&host(&HostId::from_bits(1)))?;
        tx.put(&record(1, "db-a", network(&[(5432, "TCP")], false)))?;
        tx.put(&record(2, "shop", OptionSettings::default()))
    });
    written.expect("memory");
    Engine::new(store, EngineConfig::default())
}

fn reports(streams: Vec<StreamReport>) -> Observed {
    let mut observed = Observed::default();
    let report = ProxyReport {
        sequence: 1,
        run: String::new(),
        version: String::new(),
        generation: Generation(1),
        now: NOW,
        targets: Vec::new(),
        environments: Vec::new(),
        releases: Vec::new(),
        listeners: vec![
            "http://0.0.0.0:80".to_owned(),
            "https://[::]:443".to_owned(),
        ],
        streams,
    };
    observed.proxy_report("local", report, NOW);
    observed
}

fn create(engine: &Engine, text: &str, settings: OptionSettings) -> Result<(), Problem> {
    let body = CreateEnvironment {
        application: environment().application,
        name: name(text),
        cname: None,
        description: String::new(),
        tier: Tier::Web,
        platform: environment().platform,
        settings,
        version: None,
        new_application: None,
    };
    let bits = u128::from(text.len() as u64) << 70;
    engine
        .create_environment(&call(bits, &reports(Vec::new())), body)
        .map(drop)
}

fn turn(engine: &Engine, observed: &Observed) {
    engine.turn(observed, NOW, &mut || 7).expect("a turn");
}

#[test]
fn a_network_environment_gets_connections_and_no_requests() {
    let engine = engine();
    let domain = SetDomain {
        name: DomainName::new("*.db.example").expect("a domain"),
        redirect_to: None,
        only_https: false,
    };
    let observed = reports(Vec::new());
    engine
        .set_domain(&call(1, &observed), &name("db-a"), domain)
        .expect("set");
    turn(&engine, &observed);
    let table = engine.routing_table().expect("a table");
    let hosts: Vec<&str> = table
        .routes
        .iter()
        .map(|route| route.host.as_str())
        .collect();
    assert_eq!(hosts, ["shop.localhost"]);
    let [stream] = table.streams.as_slice() else {
        panic!("{:?}", table.streams);
    };
    assert_eq!((stream.port, stream.mode), (5432, StreamMode::Pass));
    assert!(stream.hosts.is_empty());
    let mut change = UpdateSettings::default();
    change.set.set(PROXY, "RouteBySNI", "true");
    engine
        .update_settings(&call(2, &observed), &name("db-a"), change)
        .expect("set");
    turn(&engine, &observed);
    let table = engine.routing_table().expect("a table");
    assert_eq!(table.streams[0].hosts, ["db-a.localhost", "*.db.example"]);
}

#[test]
fn a_port_has_one_environment_unless_names_tell_them_apart() {
    let engine = engine();
    for (settings, told) in [
        (
            network(&[(5432, "TLS")], false),
            "belongs to environment `db-a`",
        ),
        (network(&[(80, "TCP")], false), "for HTTP."),
        (network(&[(80, "TCP")], true), "for HTTP."),
        (network(&[(443, "TCP")], false), "for HTTPS."),
    ] {
        let refused = create(&engine, "db-b", settings).expect_err("refused");
        assert_eq!(refused.code, "port-taken");
        assert!(refused.detail.contains(told), "{}", refused.detail);
    }
    create(
        &engine,
        "db-bb",
        network(&[(5432, "TCP"), (443, "TCP")], true),
    )
    .expect("by name");
    create(&engine, "db-bbb", network(&[(443, "TLS")], true)).expect("by name as well");
    let mut change = UpdateSettings::default();
    change.set.set("aws:elbv2:listener:5432", "Protocol", "TCP");
    let observed = reports(Vec::new());
    let refused = engine.update_settings(&call(3, &observed), &name("shop"), change);
    let refused = refused.expect_err("it takes requests");
    assert!(
        refused.detail.contains("--load-balancer network"),
        "{}",
        refused.detail
    );
}

#[test]
fn a_port_that_a_failed_change_would_go_back_to_is_not_given_away() {
    let engine = engine();
    let observed = reports(Vec::new());
    let mut change = UpdateSettings::default();
    change.set.set("aws:elbv2:listener:5433", "Protocol", "TCP");
    let gone = ["Protocol".to_owned()].into();
    change
        .remove
        .insert("aws:elbv2:listener:5432".to_owned(), gone);
    engine
        .update_settings(&call(1, &observed), &name("db-a"), change)
        .expect("under way");
    let refused = create(&engine, "db-b", network(&[(5432, "TCP")], false));
    assert_eq!(refused.expect_err("not yet").code, "port-taken");
    turn(&engine, &observed);
    create(&engine, "db-b", network(&[(5432, "TCP")], false)).expect("it is free");
}

#[test]
fn the_type_is_fixed_and_the_way_to_another_one_is_told() {
    let engine = engine();
    let observed = reports(Vec::new());
    let change = |set: &OptionSettings| UpdateSettings {
        set: set.clone(),
        ..UpdateSettings::default()
    };
    let mut classic = OptionSettings::default();
    classic.set(ENVIRONMENT, "LoadBalancerType", "classic");
    let same = engine.update_settings(&call(2, &observed), &name("shop"), change(&classic));
    same.expect("another word for the same");
    turn(&engine, &observed);
    engine
        .store
        .update(|tx| {
            let mut shop = record(2, "shop", OptionSettings::default());
            shop.settings.set(ASG, "MinSize", "2");
            shop.live = Some(ReleaseNumber(1));
            tx.put(&release(&shop))?;
            tx.put(&shop)
        })
        .expect("memory");
    let domain = |text: &str| SetDomain {
        name: DomainName::new(text).expect("a domain"),
        redirect_to: None,
        only_https: false,
    };
    for text in ["shop.example", "shop.example/a", "shop.example/b*"] {
        let set = engine.set_domain(&call(7, &observed), &name("shop"), domain(text));
        set.expect("set");
    }
    let wanted = network(&[(8443, "TLS")], false);
    let refused = engine.update_settings(&call(1, &observed), &name("shop"), change(&wanted));
    let refused = refused.expect_err("fixed");
    assert_eq!(refused.code, "option-fixed");
    assert!(
        refused
            .detail
            .contains("LoadBalancer type option cannot be changed")
    );
    let hint = refused.hint.expect("a hint");
    for command in [
        "beanpole create shop-2 --application shop --load-balancer network --listen 8443 --instances 2 --version v1",
        "`beanpole domain remove shop shop.example/a`, `beanpole domain remove shop 'shop.example/b*'`, `beanpole swap shop shop-2`",
        "beanpole terminate shop",
    ] {
        assert!(hint.contains(command), "{hint}");
    }
    // A swap names them all at once as well.
    let refused = engine.swap(&call(8, &observed), &name("shop"), &with("db-a"));
    let hint = refused.expect_err("paths").hint.expect("a hint");
    assert!(
        hint.contains("shop.example/a`, ") && hint.contains("'shop.example/b*'`"),
        "{hint}"
    );
    let back = engine.update_settings(&call(3, &observed), &name("db-a"), change(&classic));
    assert_eq!(back.expect_err("fixed").code, "option-fixed");
}

#[test]
fn a_swap_of_two_network_environments_takes_their_ports_along() {
    let engine = engine();
    let observed = reports(Vec::new());
    let other = record(3, "db-b", network(&[(5433, "TLS")], true));
    engine.store.update(|tx| tx.put(&other)).expect("memory");
    engine
        .swap(&call(1, &observed), &name("db-a"), &with("db-b"))
        .expect("swapped");
    let view = |of: &str| {
        let seen = engine
            .environment(&name(of), &observed, NOW)
            .expect("there");
        seen.listeners
            .into_iter()
            .map(|one| one.address)
            .collect::<Vec<_>>()
    };
    assert_eq!(view("db-a"), ["tls://db-b.localhost:5433"]);
    assert_eq!(view("db-b"), ["tcp://db-a.localhost:5432"]);
}

#[test]
fn a_swap_with_one_that_takes_requests_leaves_ports_and_refuses_what_makes_no_sense_there() {
    let engine = engine();
    let observed = reports(Vec::new());
    let redirect = SetDomain {
        name: DomainName::new("old.example").expect("a domain"),
        redirect_to: Some(Hostname::new("new.example").expect("a host")),
        only_https: false,
    };
    let refused = engine.set_domain(&call(1, &observed), &name("db-a"), redirect.clone());
    assert_eq!(
        refused.expect_err("no redirects").code,
        "network-environment"
    );
    engine
        .set_domain(&call(2, &observed), &name("shop"), redirect)
        .expect("set");
    let refused = engine.swap(&call(3, &observed), &name("shop"), &with("db-a"));
    let hint = refused.expect_err("a redirect").hint.expect("a hint");
    assert!(
        hint.contains("beanpole domain remove shop old.example"),
        "{hint}"
    );
    let gone = DomainName::new("old.example").expect("a domain");
    engine
        .remove_domain(&call(4, &observed), &name("shop"), &gone)
        .expect("removed");
    engine
        .swap(&call(5, &observed), &name("shop"), &with("db-a"))
        .expect("swapped");
    let seen = engine
        .environment(&name("db-a"), &observed, NOW)
        .expect("there");
    assert_eq!(seen.listeners[0].address, "tcp://shop.localhost:5432");
    assert_eq!(seen.url, None);
}

#[test]
fn a_port_that_cannot_be_opened_is_told_once_and_so_is_its_end() {
    let engine = engine();
    let why = "nginx (process 812) already listens on port 5432; stop it, or choose another port for the environment";
    let taken = reports(vec![StreamReport {
        port: 5432,
        failed: Some(why.to_owned()),
        refused: 0,
    }]);
    turn(&engine, &taken);
    turn(&engine, &taken);
    let seen = engine
        .environment(&name("db-a"), &taken, NOW)
        .expect("there");
    assert!(
        seen.causes.iter().any(|cause| cause.contains("nginx")),
        "{:?}",
        seen.causes
    );
    assert_eq!(seen.listeners[0].closed[0].balancer, "local");
    let asked = Asked {
        scheme: Scheme::Http,
        host: "db-a.localhost",
        port: 80,
        path: "/",
    };
    let explained = engine.explain(asked, &taken, NOW).expect("told");
    assert_eq!(explained.network.expect("found").environment, name("db-a"));
    turn(
        &engine,
        &reports(vec![StreamReport {
            port: 5432,
            ..StreamReport::default()
        }]),
    );
    let events = engine.store.list::<EventRecord>().expect("memory");
    let of_port = events
        .iter()
        .filter(|event| event.0.code.starts_with("port-"));
    let codes: Vec<&str> = of_port.map(|event| event.0.code.as_str()).collect();
    assert_eq!(codes, ["port-closed", "port-open"]);
}

#[test]
fn tls_ends_for_hostnames_of_requests_and_of_listeners_that_end_it() {
    let engine = engine();
    let mut mqtt = record(7, "mqtt", network(&[(8883, "TLS"), (1883, "TCP")], false));
    mqtt.domains = vec![DomainRecord {
        domain: Domain {
            name: DomainName::new("*.mqtt.example.org").expect("a name"),
            redirect_to: None,
            only_https: false,
        },
        since: NOW,
    }];
    let gone = EnvironmentRecord {
        status: EnvironmentStatus::Terminated,
        ..record(8, "gone", network(&[(8884, "TLS")], false))
    };
    let written = engine.store.update(|tx| {
        tx.put(&mqtt)?;
        tx.put(&gone)
    });
    written.expect("memory");
    let found = engine.tls_hosts().expect("memory");
    let told: Vec<(&str, &str)> = found
        .iter()
        .map(|(host, whose)| (host.as_str(), whose.as_str()))
        .collect();
    let wanted = [
        ("shop.localhost", "shop"),
        ("mqtt.localhost", "mqtt"),
        ("*.mqtt.example.org", "mqtt"),
    ];
    assert_eq!(told, wanted, "`db-a` lets TLS pass");
}
