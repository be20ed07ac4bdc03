//! Hostnames as users have them: swapped between environments, added, taken for parts of paths, redirected.

use crate::changes::{assert_none_failed, items};
use beanpole_tests::bed::Bed;
use beanpole_tests::http::{self, Connection};
use beanpole_tests::load::Load;
use beanpole_tests::wait::{seconds, until, until_true};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests a second that a swap may not cost one of.
const RATE: u32 = 1_000;

/// What answers at a hostname, by its version.
fn version_at(bed: &Bed, host: &str, path: &str) -> String {
    let answer = http::get(bed.http, host, path).expect("the proxy answers");
    let text = answer.text();
    text.split_whitespace().next().unwrap_or("").to_owned()
}

/// Two environments of one application: `shop-blue` runs v1, `shop-green` v2.
fn blue_and_green() -> Bed {
    let bed = Bed::up();
    launch_both(&bed);
    bed
}

fn launch_both(bed: &Bed) {
    let app = bed.serving("shop-blue", 2).version("v2");
    let options = ["--option", "beanpole:instance:MinUptime=1"];
    let create = ["create", "shop-green", "--instances", "1"];
    bed.run_in(&app.dir, &[&create[..], &options].concat()).ok();
    bed.deploy(&app, "shop-green", "v2").ok();
}

/// When `shop-blue.localhost` is first answered by v2 at a load balancer, and not by v1 any more.
fn first_answer_by_v2(proxy: SocketAddr) -> JoinHandle<Instant> {
    std::thread::spawn(move || {
        let mut open = Connection::open(proxy, seconds(30)).expect("connect");
        loop {
            let asked = open.send("GET", "shop-blue.localhost", "/", &[], b"");
            if asked.expect("the proxy answers").text().starts_with("v2") {
                return Instant::now();
            }
        }
    })
}

#[test]
fn a_swap_reaches_two_load_balancers_within_a_tenth_of_a_second_of_each_other() {
    let (bed, second) = Bed::up_with_second_proxy();
    launch_both(&bed);
    let loads = [bed.http, second].map(|at| Load::start(at, "shop-blue.localhost", RATE, 20));
    let seen = [bed.http, second].map(first_answer_by_v2);
    bed.run(&["swap", "shop-blue", "shop-green"]).ok();
    let [one, other] = seen.map(|seen| seen.join().expect("no panic"));
    let apart = one.max(other) - one.min(other);
    assert!(apart < Duration::from_millis(100), "{apart:?}");
    for load in loads {
        assert_none_failed(&load.stop());
    }
}

#[test]
fn a_swap_exchanges_all_hostnames_at_once_without_a_lost_request_and_back() {
    let bed = blue_and_green();
    bed.run(&["domain", "add", "shop-blue", "shop.example"])
        .ok()
        .says("shop.example leads to shop-blue.");
    let load = Load::start(bed.http, "shop-blue.localhost", RATE, 20);
    let others = Load::start(bed.http, "shop.example", RATE / 4, 5);
    bed.run(&["swap", "shop-blue", "shop-green"])
        .ok()
        .says("http://shop-green.localhost")
        .says("Completed swapping CNAMEs for environments 'shop-blue' and 'shop-green'.")
        .says("The hostname 'shop-blue' now leads to the environment 'shop-green'.");
    for (host, version) in [
        ("shop-blue.localhost", "v2"),
        ("shop.example", "v2"),
        ("shop-green.localhost", "v1"),
    ] {
        assert_eq!(version_at(&bed, host, "/"), version, "{host}");
    }
    for name in ["shop-blue", "shop-green"] {
        let events = bed.run(&["events", name]).ok();
        events.says("swapEnvironmentCNAMEs is starting.");
    }
    // There and back, until enough was sent meanwhile.
    for _ in 0..9 {
        bed.run(&["swap", "shop-blue", "shop-green"]).ok();
    }
    assert_eq!(version_at(&bed, "shop-blue.localhost", "/"), "v1");
    assert_eq!(version_at(&bed, "shop.example", "/"), "v1");
    for outcome in [load.stop(), others.stop()] {
        assert_none_failed(&outcome);
        assert_eq!(outcome.versions.len(), 2, "{outcome:?}");
    }
}

#[test]
fn a_swap_is_refused_with_a_reason_and_changes_nothing() {
    let bed = blue_and_green();
    bed.run(&["swap", "shop-blue", "shop-blue"])
        .exits(1)
        .says("cannot exchange hostnames with itself");
    bed.run(&["swap", "shop-blue", "nobody"])
        .exits(1)
        .says("There is no environment `nobody`");
    bed.run(&["create", "shop-work", "--tier", "worker"]).ok();
    bed.run(&["swap", "shop-blue", "shop-work"])
        .exits(1)
        .says("is a worker");
    bed.run(&["create", "shop-empty"]).ok();
    bed.run(&["swap", "shop-blue", "shop-empty"])
        .exits(1)
        .says("`shop-empty` has no version yet")
        .says("--allow-empty");
    let slow = ["config", "shop-green", "--set", "MinUptime=60", "--quiet"];
    bed.run(&slow).ok();
    let app = bed.app("shop").version("v3");
    bed.deploy_with(&app, "shop-green", "v3", "--detach").ok();
    bed.run(&["swap", "shop-blue", "shop-green"])
        .exits(1)
        .says("is under way on `shop-green`")
        .says("beanpole abort shop-green");
    assert_eq!(version_at(&bed, "shop-blue.localhost", "/"), "v1");
}

#[test]
fn domains_lead_to_environments_and_to_each_other() {
    let bed = blue_and_green();
    let add = |rest: &[&str]| bed.run(&[&["domain", "add"], rest].concat());
    add(&["shop-blue", "shop.example"]).ok();
    add(&["shop-green", "shop.example/api"]).ok();
    add(&["shop-blue", "*.wild.example"]).ok();
    add(&[
        "shop-blue",
        "www.shop.example",
        "--redirect-to",
        "shop.example",
    ])
    .ok()
    .says("www.shop.example sends clients to shop.example.");
    assert_eq!(version_at(&bed, "shop.example", "/"), "v1");
    assert_eq!(version_at(&bed, "shop.example", "/api/x"), "v2");
    assert_eq!(version_at(&bed, "a.b.wild.example", "/"), "v1");
    let sent = http::get(bed.http, "www.shop.example", "/x?y=z").expect("an answer");
    assert_eq!(sent.status, 308);
    assert_eq!(sent.header("location"), Some("http://shop.example/x?y=z"));

    add(&["shop-green", "shop.example"])
        .exits(1)
        .says("belongs to environment `shop-blue`")
        .says("beanpole swap shop-green shop-blue");
    add(&["shop-green", "other.localhost"])
        .exits(1)
        .says("Names below `localhost`");
    add(&["shop-blue", "https://Shop.example/"])
        .exits(2)
        .says("Write shop.example");
    add(&[
        "shop-blue",
        "shop.example",
        "--redirect-to",
        "www.shop.example",
    ])
    .exits(1)
    .says("leads back to itself");

    // Of its own hostname, too: to where HTTPS is served.
    add(&["shop-blue", "shop-blue.localhost", "--only-https"]).ok();
    let sent = http::get(bed.http, "shop-blue.localhost", "/").expect("an answer");
    let to = format!("https://shop-blue.localhost:{}/", bed.https.port());
    assert_eq!((sent.status, sent.header("location")), (308, Some(&*to)));

    let listed = bed.run(&["domain", "list", "--json"]).ok().json();
    let of_cnames = |one: &&serde_json::Value| one["cname"] == true;
    let cnames = items(&listed).iter().filter(of_cnames).count();
    assert_eq!(items(&listed).len() - cnames, 5, "{listed:#}");
    assert!(cnames > 0, "{listed:#}");
    bed.run(&["domain", "remove", "shop-green", "shop.example/api"])
        .ok();
    until_true("it leads to the whole host's", seconds(10), || {
        version_at(&bed, "shop.example", "/api/x") == "v1"
    });
    bed.run(&["domain", "remove", "shop-green", "shop.example"])
        .exits(1)
        .says("It belongs to `shop-blue`.");
    // What an environment had is free when it is gone.
    bed.run(&["terminate", "shop-blue", "--yes"]).ok();
    add(&["shop-green", "shop.example"]).ok();
    let found = until("green answers", seconds(10), || {
        let version = version_at(&bed, "shop.example", "/");
        (version == "v2").then_some(version)
    });
    assert_eq!(found, "v2");
}
