//! An environment's life on this machine: what changes, and what its users notice of it.

use beanpole_tests::apps::App;
use beanpole_tests::bed::Bed;
use beanpole_tests::load::Outcome;
use beanpole_tests::wait::{seconds, until, until_true};
use serde_json::Value;

/// Every request was answered by the application.
#[track_caller]
pub fn assert_none_failed(outcome: &Outcome) {
    assert!(outcome.sent > 100, "the load was sent: {outcome:?}");
    assert_eq!(
        outcome.failed, 0,
        "{} of {} requests failed: {:#?}",
        outcome.failed, outcome.sent, outcome.failures
    );
}

/// An environment as it shall be at the end of every test that went well.
#[track_caller]
pub fn assert_live(bed: &Bed, environment: &str, version: &str, instances: usize) {
    let status = bed.status(environment);
    assert_eq!(status["status"], "Ready", "{status:#}");
    assert_eq!(status["version"], version, "{status:#}");
    let all = status["instances"].as_array().expect("a list");
    assert_eq!(all.len(), instances, "{status:#}");
    for instance in all {
        assert_eq!(instance["version"], version, "{status:#}");
    }
    until_green(bed, environment);
}

/// Waits until an environment is Green.
#[track_caller]
pub fn until_green(bed: &Bed, environment: &str) {
    let mut last = Value::Null;
    let end = std::time::Instant::now() + seconds(30);
    while std::time::Instant::now() < end {
        last = bed.status(environment);
        if last["health"] == "Green" {
            return;
        }
        beanpole_tests::wait::pause(std::time::Duration::from_millis(200));
    }
    panic!("{environment} is not Green after 30 s: {last:#}");
}

/// Two instances whose releases need not stay up before they get traffic: a matrix has many deployments.
pub fn create_hasty(bed: &Bed, app: &App, environment: &str) {
    bed.run_in(
        &app.dir,
        &[
            "create",
            environment,
            "--instances",
            "2",
            "--option",
            "beanpole:instance:MinUptime=0",
        ],
    )
    .ok();
}

#[test]
fn a_version_answers_at_the_environments_address() {
    let bed = Bed::up();
    let app = bed.app("shop");
    bed.run_in(&app.dir, &["create", "shop-prod", "--instances", "2"])
        .ok();
    bed.deploy(&app, "shop-prod", "v1")
        .ok()
        .says("shop-prod.localhost");
    assert!(bed.get("shop-prod", "/").text().starts_with("v1 i-"));
    let status = bed.status("shop-prod");
    for field in ["status", "health", "release", "version", "url", "instances"] {
        assert!(!status[field].is_null(), "{field} is missing: {status:#}");
    }
    for field in ["id", "host", "address", "version", "health"] {
        let value = &status["instances"][0][field];
        assert!(
            value.is_string(),
            "instances[].{field} is missing: {status:#}"
        );
    }
    assert_eq!(status["release"], 1);
    assert_live(&bed, "shop-prod", "v1", 2);
}

#[test]
fn a_rolling_update_and_a_rollback_cost_no_request() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 3).version("v2");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--policy rolling --batch 1")
        .ok();
    assert_live(&bed, "shop-prod", "v2", 3);
    let back = bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert!(
        outcome.versions["v1"] > 0 && outcome.versions["v2"] > 0,
        "{outcome:?}"
    );
    assert!(back.took < seconds(60), "a rollback took {:?}", back.took);
    let releases = bed.run(&["releases", "shop-prod", "--json"]).ok().json();
    let newest = items(&releases)[0].clone();
    assert_eq!(newest["version"], "v1", "{releases:#}");
}

/// Each release is asked for what it has, on the way there and on the way back.
#[test]
fn a_health_check_that_comes_with_a_version_costs_no_request() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 3);
    let load = bed.load("shop-prod");
    let asks_for = |app: App, path: &str| {
        let settings = format!("[health]\nstart-timeout = 5\npath = \"{path}\"\n");
        app.file("deploy.toml", settings.as_bytes())
    };
    let app = asks_for(app.version("v2"), "/only/v2");
    bed.deploy_with(&app, "shop-prod", "v2", "--batch 1").ok();
    assert_live(&bed, "shop-prod", "v2", 3);
    // As a typo is: nothing answers there.
    let app = asks_for(app.version("v3"), "/only/nobody");
    bed.deploy_with(&app, "shop-prod", "v3", "--batch 1")
        .exits(1)
        .says("GET /only/nobody answered: 404");
    assert_live(&bed, "shop-prod", "v2", 3);
    let processes = |bed: &Bed| -> Vec<Value> {
        let status = bed.status("shop-prod");
        let instances = items(&status["instances"]).iter();
        instances
            .map(|one| one["processes"][0]["pid"].clone())
            .collect()
    };
    let asked = |bed: &Bed| -> Vec<Value> {
        let status = bed.status("shop-prod");
        let instances = items(&status["instances"]).iter();
        instances
            .map(|one| one["last_check"]["asked"].clone())
            .collect()
    };
    let before = processes(&bed);
    let check = |path: &str| {
        let set = format!("HealthCheckPath={path}");
        bed.run(&["config", "shop-prod", "--set", &set])
    };
    check("/only/nobody")
        .exits(1)
        .says("GET /only/nobody answered: 404")
        .says("The health check stays as it was.");
    assert_live(&bed, "shop-prod", "v2", 3);
    assert_eq!(asked(&bed), ["GET /only/v2"; 3]);
    // One that passes is in force at once; nothing is started afresh.
    check("/").ok();
    until_true("the new check is asked", seconds(10), || {
        asked(&bed) == ["GET /"; 3]
    });
    // Without it the older name holds, which nobody asked for until now.
    let config = |arguments: &[&str]| bed.run(&[&["config", "shop-prod"], arguments].concat());
    let older = "Application Healthcheck URL=/only/nobody";
    config(&["--set", older]).ok();
    config(&["--remove", "HealthCheckPath", "--plan"])
        .ok()
        .says("sets HealthCheckPath back to /only/nobody");
    config(&["--remove", "HealthCheckPath"])
        .exits(1)
        .says("GET /only/nobody answered: 404");
    config(&["--set", "HealthCheckPath=/slow?1500"]).ok();
    config(&["--set", "HealthCheckTimeout=1"])
        .exits(1)
        .says("no answer within 1000 ms");
    config(&["--set", "HealthCheckPath=/", "--remove", "HealthCheckPath"])
        .exits(1)
        .says("is both set and removed");
    assert_live(&bed, "shop-prod", "v2", 3);
    assert_eq!(bed.status("shop-prod")["release"], 2);
    assert_eq!(before, processes(&bed));
    config(&["--set", "HealthCheckPath=/"]).ok();
    bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert!(!outcome.versions.contains_key("v3"), "{outcome:?}");
}

/// The items of a list, whether it is a page or plain.
pub fn items(list: &Value) -> &Vec<Value> {
    list.as_array()
        .or_else(|| list["items"].as_array())
        .unwrap_or_else(|| panic!("this is no list: {list:#}"))
}

#[test]
fn all_at_once_changes_every_instance() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    bed.deploy_with(&app, "shop-prod", "v2", "--policy all-at-once")
        .ok();
    assert_live(&bed, "shop-prod", "v2", 2);
    assert!(bed.get("shop-prod", "/").text().starts_with("v2 "));
}

#[test]
fn a_version_that_was_uploaded_before_is_deployed_by_its_label() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1).version("v2");
    bed.deploy(&app, "shop-prod", "v2").ok();
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--version", "v1"])
        .ok();
    assert_live(&bed, "shop-prod", "v1", 1);
    bed.run_in(&app.dir, &["rollback", "shop-prod", "--to", "2"])
        .ok();
    assert_live(&bed, "shop-prod", "v2", 1);
}

#[test]
fn scaling_out_and_in_costs_no_request() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    let load = bed.load("shop-prod");
    bed.run(&["scale", "shop-prod", "4"]).ok();
    assert_live(&bed, "shop-prod", "v1", 4);
    bed.run(&["scale", "shop-prod", "2"]).ok();
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_none_failed(&load.stop());
}

#[test]
fn properties_reach_the_application_without_a_lost_request() {
    let bed = Bed::up();
    bed.serving("shop-prod", 2);
    let load = bed.load("shop-prod");
    bed.run(&[
        "setenv",
        "shop-prod",
        "GREETING=hello world",
        "SECRET=hunter2",
    ])
    .ok();
    until_true("every instance has the property", seconds(20), || {
        (0..4).all(|_| bed.get("shop-prod", "/env?GREETING").text() == "hello world\n")
    });
    bed.run(&["printenv", "shop-prod"])
        .ok()
        .says("GREETING=hello world");
    bed.run(&["setenv", "shop-prod", "GREETING="]).ok();
    until_true("the property is gone", seconds(20), || {
        (0..4).all(|_| bed.get("shop-prod", "/env?GREETING").text() == "\n")
    });
    assert_none_failed(&load.stop());
    assert!(!bed.log().contains("hunter2"), "a secret is in the log");
}

#[test]
fn a_restart_replaces_processes_without_a_lost_request() {
    let bed = Bed::up();
    bed.serving("shop-prod", 2);
    let pid = |text: String| text.split_whitespace().nth(2).map(str::to_owned);
    let before: Vec<_> = (0..4)
        .map(|_| pid(bed.get("shop-prod", "/").text()))
        .collect();
    let load = bed.load("shop-prod");
    bed.run(&["restart", "shop-prod"]).ok();
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v1", 2);
    for _ in 0..4 {
        assert!(!before.contains(&pid(bed.get("shop-prod", "/").text())));
    }
}

#[test]
fn a_single_instance_environment_has_one() {
    let bed = Bed::up();
    let app = bed.app("shop");
    bed.run_in(
        &app.dir,
        &["create", "shop-dev", "--single", "--cname", "try-me"],
    )
    .ok();
    bed.deploy(&app, "shop-dev", "v1").ok();
    assert_live(&bed, "shop-dev", "v1", 1);
    assert!(bed.get("try-me", "/").text().starts_with("v1 "));
    assert_eq!(
        bed.get("shop-dev", "/").status,
        404,
        "only its CNAME answers"
    );
}

#[test]
fn a_long_request_ends_before_its_instance_does() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    // More requests than instances, so that each one holds some.
    let slow: Vec<_> = (0..4)
        .map(|_| {
            let http = bed.http;
            std::thread::spawn(move || {
                beanpole_tests::http::get(http, "shop-prod.localhost", "/slow?4000")
            })
        })
        .collect();
    until_true("they are in flight", seconds(5), || {
        let status = bed.status("shop-prod");
        let count = |instance: &Value| instance["in_flight"].as_u64().unwrap_or(0);
        items(&status["instances"]).iter().map(count).sum::<u64>() >= 4
    });
    bed.deploy(&app, "shop-prod", "v2").ok();
    for request in slow {
        let answer = request.join().expect("the request's thread lives");
        assert_eq!(answer.expect("it is answered").status, 200);
    }
}

#[test]
fn a_terminated_environment_is_gone_and_its_name_is_free() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2);
    bed.run(&["terminate", "shop-prod", "--yes"]).ok();
    until_true("the load balancer forgets it", seconds(10), || {
        bed.get("shop-prod", "/").status == 404
    });
    until_true("its processes are gone", seconds(20), || {
        bed.daemons("shim").is_empty()
    });
    bed.run_in(&app.dir, &["create", "shop-prod", "--instances", "1"])
        .ok();
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--version", "v1"])
        .ok();
    assert_live(&bed, "shop-prod", "v1", 1);
}

#[test]
fn an_aborted_deployment_goes_back() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 3)
        .procfile("web: ./testapp v2 --start-delay 4000\n");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--batch 1 --detach")
        .ok();
    until_true("the first batch changes", seconds(20), || {
        let status = bed.status("shop-prod");
        items(&status["instances"])
            .iter()
            .any(|one| one["version"] == "v2")
    });
    bed.run(&["abort", "shop-prod"]).ok();
    until_true("the environment is ready again", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_none_failed(&load.stop());
}

#[test]
fn a_worker_runs_and_gets_no_requests() {
    let bed = Bed::up();
    let app = bed
        .app("mailer")
        .procfile("worker: ./testapp v1 --no-listen\n");
    bed.run_in(&app.dir, &["create", "mailer-prod", "--tier", "worker"])
        .ok();
    bed.deploy(&app, "mailer-prod", "v1").ok();
    until("its process runs", seconds(10), || {
        let status = bed.status("mailer-prod");
        status["instances"][0]["processes"][0]["pid"].as_u64()
    });
    assert_eq!(bed.get("mailer-prod", "/").status, 404);
    let policy = "DeploymentPolicy=TrafficSplitting";
    bed.run(&["config", "mailer-prod", "--set", policy])
        .exits(1)
        .says("A worker has no requests that a new release could get a share of.");
    bed.run(&["setenv", "mailer-prod", "SIZE=3"]).ok();
}

#[test]
fn logs_and_events_tell_what_happened() {
    let bed = Bed::up();
    bed.serving("shop-prod", 2);
    bed.run(&["logs", "shop-prod"]).ok().says("v1 listens on");
    let events = bed.run(&["events", "shop-prod", "--json"]).ok();
    let list: Vec<Value> = match serde_json::from_str::<Value>(&events.out) {
        Ok(value) => items(&value).clone(),
        Err(_) => events
            .out
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON lines"))
            .collect(),
    };
    let times: Vec<String> = list.iter().map(|event| event["at"].to_string()).collect();
    let mut sorted = times.clone();
    sorted.sort();
    sorted.dedup();
    assert!(list.len() >= 4, "{list:#?}");
    let mut oldest_first = times.clone();
    if times.first() > times.last() {
        oldest_first.reverse();
    }
    assert_eq!(oldest_first, sorted, "times rise strictly");
    assert!(list.iter().all(|event| event["request_id"].is_string()));
}

#[test]
fn only_what_changed_is_uploaded_and_ignored_files_stay_at_home() {
    let bed = Bed::up();
    let app: App = bed
        .app("shop")
        .file(".gitignore", b"secret.txt\n")
        .file("secret.txt", b"hunter2");
    bed.run_in(&app.dir, &["create", "shop-prod", "--single"])
        .ok();
    bed.deploy(&app, "shop-prod", "v1").ok();
    bed.deploy(&app, "shop-prod", "v2").ok();
    let bundle = |label: &str| {
        let answer = bed.call(
            "GET",
            &format!("/v1/applications/shop/versions/{label}"),
            None,
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["bundle"]
            .as_str()
            .expect("a digest")
            .to_owned()
    };
    assert_eq!(
        bundle("v1"),
        bundle("v2"),
        "the same files are the same bundle"
    );
    let found = std::process::Command::new("find")
        .arg(bed.data())
        .args(["-name", "secret.txt"])
        .output()
        .expect("find runs");
    assert!(found.stdout.is_empty(), "an ignored file was deployed");
}
