//! Traffic splitting: shares as they were asked for, a guard that takes a worse release back, and what
//! people may do meanwhile.

use crate::changes::{assert_live, assert_none_failed, items};
use beanpole_tests::apps::App;
use beanpole_tests::bed::Bed;
use beanpole_tests::http::Connection;
use beanpole_tests::load::Outcome;
use beanpole_tests::wait::{pause, seconds, until, until_true};
use serde_json::Value;

/// An environment whose checks ask for another page than its clients.
fn environment(bed: &Bed, instances: u32) -> App {
    let app = bed.app("shop").version("v1");
    let instances = instances.to_string();
    bed.run_in(
        &app.dir,
        &[
            "create",
            "shop-prod",
            "--instances",
            &instances,
            "--option",
            "aws:elasticbeanstalk:environment:process:default:HealthCheckPath=/health",
            "--option",
            "beanpole:instance:MinUptime=1",
        ],
    )
    .ok();
    bed.deploy(&app, "shop-prod", "v1").ok();
    app
}

/// The split that is under way, once every load balancer has confirmed this share.
fn in_force(bed: &Bed, percent: u64) -> Value {
    until(&format!("{percent} % are in force"), seconds(60), || {
        let split = bed.status("shop-prod")["operation"]["split"].clone();
        (split["percent"] == percent && split["confirmed_at"].is_string()).then_some(split)
    })
}

/// The share of answers of `version`, in per cent.
fn share(outcome: &Outcome, version: &str) -> f64 {
    let of = outcome.versions.get(version).copied().unwrap_or(0);
    let all: u64 = outcome.versions.values().sum();
    of as f64 * 100.0 / all.max(1) as f64
}

#[test]
fn a_split_gives_each_share_for_its_time_and_then_all() {
    let bed = Bed::up();
    let app = environment(&bed, 2).version("v2");
    bed.deploy_with(&app, "shop-prod", "v2", "--split 20%:8s,50%:8s --detach")
        .ok();
    for asked in [20, 50] {
        let split = in_force(&bed, asked);
        assert_eq!(split["steps"], 2, "{split:#}");
        let load = bed.load("shop-prod");
        pause(seconds(4));
        let outcome = load.stop();
        assert_none_failed(&outcome);
        // Shares are dealt to all clients together: a load beside this one would take turns with it.
        let measured = share(&outcome, "v2");
        assert!(
            (measured - asked as f64).abs() < 0.5,
            "{measured} of {asked} %"
        );
    }
    let load = bed.load("shop-prod");
    until_true("it is over", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v2", 2);
    assert_none_failed(&load.stop());
}

#[test]
fn the_guard_takes_a_worse_release_back_and_says_why() {
    let bed = Bed::up();
    let app = environment(&bed, 2).procfile("web: ./testapp v2 --errors 20\n");
    let load = bed.load("shop-prod");
    let ran = bed
        .deploy_with(&app, "shop-prod", "worse", "--split 10%:10m")
        .exits(1)
        .says("is worse than the one before")
        .says("GuardErrors allows 1 points more");
    assert!(ran.took < seconds(60), "{:?}", ran.took);
    assert_live(&bed, "shop-prod", "v1", 2);
    let outcome = load.stop();
    // A tenth of the requests for half a minute at most, a fifth of which fails.
    let failed = outcome.failed as f64 * 100.0 / outcome.sent as f64;
    assert!(failed < 2.5, "{failed} % failed: {outcome:?}");
}

#[test]
fn a_release_that_fails_its_trial_and_is_left_for_a_look_gets_no_requests() {
    let bed = Bed::up();
    let app = environment(&bed, 2).procfile("web: ./testapp v2 --lives 4000\n");
    bed.deploy_with(
        &app,
        "shop-prod",
        "dies",
        "--split 40%:1m --no-auto-rollback",
    )
    .exits(1)
    .says("gets no requests");
    let status = bed.status("shop-prod");
    assert_eq!(status["version"], "v1", "{status:#}");
    assert_eq!(items(&status["instances"]).len(), 4, "{status:#}");
    for _ in 0..40 {
        let answer = bed.get("shop-prod", "/");
        assert!(answer.text().starts_with("v1"), "{answer:?}");
    }
    let served = |status: &Value| -> Vec<Value> {
        let instances = items(&status["instances"]).iter();
        let old = instances.filter(|one| one["version"] == "v1");
        old.map(|one| one["id"].clone()).collect()
    };
    bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(served(&status), served(&bed.status("shop-prod")));
}

#[test]
fn an_environment_grows_while_its_requests_are_split() {
    let bed = Bed::up();
    let app = environment(&bed, 2).version("v2");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--split 10%:1h --detach")
        .ok();
    in_force(&bed, 10);
    bed.run(&["scale", "shop-prod", "1"])
        .exits(1)
        .says("can only get more instances than the 2 that each side has");
    bed.run(&["scale", "shop-prod", "3"])
        .ok()
        .says("grows to 3 instances on each side of its split");
    until_true("both sides have three", seconds(30), || {
        let status = bed.status("shop-prod");
        let healthy = |version: &str| {
            let instances = items(&status["instances"]).iter();
            let of_it = instances.filter(|one| one["version"] == version);
            of_it.filter(|one| one["health"] == "Healthy").count()
        };
        (healthy("v1"), healthy("v2")) == (3, 3)
    });
    in_force(&bed, 10);
    bed.run(&["abort", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    // What joins the old side leaves with it.
    bed.deploy_with(&app, "shop-prod", "v2-again", "--split 10%:1h --detach")
        .ok();
    in_force(&bed, 10);
    bed.run(&["scale", "shop-prod", "4"]).ok();
    bed.run(&["promote", "shop-prod"]).ok();
    until_true("it is over", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v2-again", 4);
    assert_none_failed(&load.stop());
}

#[test]
fn a_split_is_promoted_or_aborted_at_any_time() {
    let bed = Bed::up();
    let app = environment(&bed, 2).version("v2");
    let load = bed.load("shop-prod");
    bed.run(&["promote", "shop-prod"])
        .exits(1)
        .says("No operation runs on `shop-prod`.");
    bed.deploy_with(&app, "shop-prod", "v2", "--split 10%:1h --detach")
        .ok();
    in_force(&bed, 10);
    bed.run(&["abort", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 2);
    bed.deploy_with(
        &app,
        "shop-prod",
        "v2-again",
        "--split 10%:1h,50%:1h --detach",
    )
    .ok();
    in_force(&bed, 10);
    bed.run(&["promote", "shop-prod"])
        .ok()
        .says("shop-prod runs v2-again");
    assert_live(&bed, "shop-prod", "v2-again", 2);
    assert_none_failed(&load.stop());
}

#[test]
fn a_client_stays_on_its_side_by_its_cookie() {
    let bed = Bed::up();
    let app = environment(&bed, 1).version("v2");
    bed.run(&[
        "config",
        "shop-prod",
        "--set",
        "beanpole:trafficsplitting:Sticky=cookie",
    ])
    .ok();
    bed.deploy_with(&app, "shop-prod", "v2", "--split 50%:1h --detach")
        .ok();
    in_force(&bed, 50);
    let host = Bed::host("shop-prod");
    let mut connection = Connection::open(bed.http, seconds(10)).expect("the proxy listens");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let first = connection
            .send("GET", &host, "/", &[], b"")
            .expect("answer");
        let cookie = first.header("set-cookie").expect("a cookie").to_owned();
        let pair = cookie.split(';').next().expect("a pair").to_owned();
        let side = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        let version = side(&first.text());
        for _ in 0..5 {
            let again = connection
                .send("GET", &host, "/", &[("Cookie", &pair)], b"")
                .expect("answer");
            assert_eq!(side(&again.text()), version, "with {pair}");
        }
        seen.insert(version);
    }
    assert_eq!(seen.len(), 2, "both releases answer: {seen:?}");
    bed.run(&["abort", "shop-prod"]).ok();
}
