//! What a deployment says of itself, before and after.

use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until_true};
use serde_json::Value;

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("a number: {value}"))
}

#[track_caller]
fn list(value: &Value) -> &Vec<Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("a list: {value}"))
}

fn sum(list: &[Value], field: &str) -> u64 {
    list.iter().map(|one| number(&one[field])).sum()
}

#[test]
fn a_deployment_under_load_leaves_a_receipt_that_outlives_the_controller() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let load = bed.load("shop-prod");
    until_true("there is a minute before", seconds(20), || {
        let health = bed.run(&["health", "shop-prod", "--json"]).ok().json();
        number(&health["traffic"]["requests"]) > 1_000
    });
    let deployed = bed
        .deploy_with(&app, "shop-prod", "v2", "--policy rolling --batch 1 --json")
        .ok()
        .json();
    let receipt = &deployed["receipt"];
    assert_eq!(receipt["complete"], false, "{receipt:#}");
    assert!(number(&receipt["before"]["p99_us"]) > 0, "{receipt:#}");
    let served = number(&receipt["during"]["requests"]);
    assert!(served > 500, "{receipt:#}");
    assert_eq!(receipt["during"]["failed"], 0, "{receipt:#}");
    assert!(number(&receipt["during"]["p99_us"]) > 0, "{receipt:#}");
    assert_eq!(list(&receipt["releases"]).len(), 2, "{receipt:#}");
    // Requests that are under way at one of the ends count for the environment or the release alone.
    let by_release = sum(list(&receipt["releases"]), "requests");
    assert!(by_release.abs_diff(served) < 100, "{receipt:#}");
    // Of the bundle only what the host lacks: its executable is the one of before.
    let sent = number(&receipt["sent"][0]["bytes"]);
    assert!((30..60_000).contains(&sent), "{receipt:#}");
    assert_eq!(
        sum(list(&receipt["phases"]), "ms"),
        number(&receipt["took_ms"]),
        "{receipt:#}"
    );
    assert_eq!(list(&receipt["batches"]).len(), 2, "{receipt:#}");
    for instance in list(&receipt["instances"]) {
        assert_eq!(instance["result"], "replaced", "{receipt:#}");
        for field in ["out_of_service_ms", "checked_ms", "requests"] {
            assert!(number(&instance[field]) > 0, "{field}: {receipt:#}");
        }
    }

    bed.kill_and_await_successor("controller");
    until_true("the minute after is counted", seconds(90), || {
        let release = bed.run(&["show", "shop-prod", "2", "--json"]).ok().json();
        release["deployment"]["receipt"]["complete"] == true
    });
    let release = bed.run(&["show", "shop-prod", "--json"]).ok().json();
    let after = &release["deployment"]["receipt"]["after"];
    assert!(number(&after["requests"]) > 5_000, "{after:#}");
    assert_eq!(after["failed"], 0, "{after:#}");
    assert!(number(&after["for_ms"]) >= 60_000, "{after:#}");
    bed.run(&["show", "shop-prod"]).ok().says("out of service");
    bed.run(&["releases", "shop-prod"]).ok().says("0 of ");
    load.stop();
}

#[test]
fn a_plan_is_measured_by_what_was_done_before() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let options = "--policy rolling --batch 1 --plan --json";
    let plan = bed
        .deploy_with(&app, "shop-prod", "v2", options)
        .ok()
        .json();
    assert!(plan["time"]["expected_ms"].is_null(), "{plan:#}");
    assert!(number(&plan["time"]["at_most_ms"]) > 0, "{plan:#}");
    let capacity: Vec<u64> = list(&plan["steps"])
        .iter()
        .map(|step| number(&step["serving_lowest"]))
        .collect();
    assert_eq!(capacity, [2, 1, 1], "{plan:#}");
    bed.deploy_with(&app, "shop-prod", "v2", "--policy rolling --batch 1")
        .ok();
    let app = app.version("v3");
    let plan = bed
        .deploy_with(&app, "shop-prod", "v3", options)
        .ok()
        .json();
    let expected = number(&plan["time"]["expected_ms"]);
    assert!((1_000..30_000).contains(&expected), "{plan:#}");
    // The release before is prepared already.
    let back = bed
        .run(&["rollback", "shop-prod", "--plan", "--json"])
        .ok()
        .json();
    assert_eq!(back["steps"][0]["expected_ms"], 0, "{back:#}");
    bed.run(&["rollback", "shop-prod", "--plan"])
        .ok()
        .says("in service");
    bed.run(&["scale", "shop-prod", "3", "--plan"])
        .ok()
        .says("2 → 3");
    assert_eq!(bed.status("shop-prod")["size"], 2, "nothing was done");
}

#[test]
fn a_release_that_fails_leaves_a_receipt_too() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 2)
        .procfile("web: ./testapp v2 --exit 7\n");
    bed.deploy_with(&app, "shop-prod", "broken", "--batch 1")
        .exits(1)
        .says("beanpole show shop-prod 2");
    let release = bed.run(&["show", "shop-prod", "2", "--json"]).ok().json();
    let receipt = &release["deployment"]["receipt"];
    let results: Vec<&str> = list(&receipt["instances"])
        .iter()
        .filter_map(|one| one["result"].as_str())
        .collect();
    assert!(results.contains(&"taken-back"), "{receipt:#}");
    assert!(results.contains(&"untouched"), "{receipt:#}");
    let ways: Vec<&Value> = list(&receipt["batches"])
        .iter()
        .map(|of| &of["back"])
        .collect();
    assert_eq!(ways, [false, true], "{receipt:#}");
    bed.run(&["show", "shop-prod"]).ok().says("taken back");
}
