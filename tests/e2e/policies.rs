//! The policies that make new instances: what users of an environment notice of each.

use crate::changes::{assert_live, assert_none_failed, items};
use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until_true};
use serde_json::Value;
use std::collections::BTreeSet;

fn ids(status: &Value) -> BTreeSet<String> {
    items(&status["instances"])
        .iter()
        .filter_map(|one| Some(one["id"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn an_immutable_update_replaces_the_whole_set_without_a_lost_request() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 3).version("v2");
    let before = ids(&bed.status("shop-prod"));
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--policy immutable")
        .ok()
        .says("Test instance passed health checks");
    assert_live(&bed, "shop-prod", "v2", 3);
    let after = ids(&bed.status("shop-prod"));
    assert!(before.is_disjoint(&after), "{before:?} and {after:?}");
    bed.run(&["rollback", "shop-prod", "--policy", "immutable"])
        .ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_none_failed(&load.stop());
}

#[test]
fn an_immutable_update_that_fails_touches_nothing_that_serves() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 2)
        .procfile("web: ./testapp v2 --exit 7\n");
    let before = ids(&bed.status("shop-prod"));
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "broken", "--policy immutable")
        .exits(1)
        .says("cannot find the database, giving up");
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(ids(&bed.status("shop-prod")), before);
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert_eq!(outcome.versions.len(), 1, "{outcome:?}");
}

#[test]
fn an_aborted_immutable_update_leaves_the_old_set() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let before = ids(&bed.status("shop-prod"));
    let load = bed.load("shop-prod");
    // Its new instances have to stay up for longer than it takes to give it up.
    bed.run(&["config", "shop-prod", "--set", "MinUptime=60"])
        .ok();
    bed.deploy_with(&app, "shop-prod", "v2", "--policy immutable --detach")
        .ok();
    until_true("the test instance is there", seconds(30), || {
        ids(&bed.status("shop-prod")).len() == 3
    });
    bed.run(&["abort", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(ids(&bed.status("shop-prod")), before);
    assert_none_failed(&load.stop());
}

#[test]
fn an_additional_batch_keeps_all_in_service_and_goes_in_the_end() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 3).version("v2");
    let load = bed.load("shop-prod");
    bed.deploy_with(
        &app,
        "shop-prod",
        "v2",
        "--policy RollingWithAdditionalBatch --batch 1 --detach",
    )
    .ok();
    let mut most = 0;
    until_true("it is over", seconds(60), || {
        let status = bed.status("shop-prod");
        let serving = items(&status["instances"])
            .iter()
            // The load balancer's word on one that has just been put in may be on its way.
            .filter(|one| matches!(one["health"].as_str(), Some("Healthy" | "Unknown")))
            .count();
        assert!(serving >= 3, "{status:#}");
        most = most.max(ids(&status).len());
        status["status"] == "Ready"
    });
    assert_eq!(most, 4, "three and a batch of one");
    assert_live(&bed, "shop-prod", "v2", 3);
    assert_none_failed(&load.stop());
}
