//! Releases that do not work: the environment ends on the one before, users notice nothing, and
//! the message names the evidence.

use crate::changes::{assert_live, assert_none_failed, items};
use beanpole_tests::apps::App;
use beanpole_tests::bed::{Bed, Ran};
use beanpole_tests::wait::{seconds, until_true};
use serde_json::Value;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Deploys what cannot work to three instances under load, and checks that nothing is lost.
#[track_caller]
fn refused(bed: &Bed, app: &App) -> Ran {
    let load = bed.load("shop-prod");
    let ran = bed
        .run_in(
            &app.dir,
            &[
                "deploy",
                "shop-prod",
                "--label",
                "broken",
                "--policy",
                "rolling",
                "--batch",
                "1",
            ],
        )
        .exits(1);
    until_true("it is ready again", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    let outcome = load.stop();
    assert_none_failed(&outcome);
    assert_eq!(outcome.versions.len(), 1, "only v1 answered: {outcome:?}");
    assert_live(bed, "shop-prod", "v1", 3);
    ran
}

/// An environment whose batches are given up after 15 s.
fn impatient(bed: &Bed) -> App {
    impatient_with(bed, 3)
}

fn impatient_with(bed: &Bed, instances: u32) -> App {
    let app = bed.serving("shop-prod", instances);
    set(bed, "aws:elasticbeanstalk:command", "Timeout", "15");
    app
}

/// Sets an option of the environment that needs no restart.
fn set(bed: &Bed, namespace: &str, name: &str, value: &str) {
    let settings = serde_json::json!({"set": {namespace: {name: value}}});
    let answer = bed.call(
        "PATCH",
        "/v1/environments/shop-prod/settings",
        Some(&settings),
    );
    assert_eq!(answer.status, 202, "{}", answer.text());
    until_true("the setting is in force", seconds(20), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
}

#[test]
fn an_app_that_ends_at_once_is_named_with_its_last_lines() {
    let bed = Bed::up();
    let app = impatient(&bed).procfile("web: ./testapp v2 --exit 7\n");
    refused(&bed, &app)
        .says("cannot find the database, giving up")
        .says("i-");
}

#[test]
fn an_app_that_answers_500_is_named_with_its_answer() {
    let bed = Bed::up();
    let app = impatient(&bed).procfile("web: ./testapp v2 --status 500\n");
    let ran = refused(&bed, &app).says("GET /").says("500").says("i-");
    // Why it waits is said while it waits, and once as long as nothing changes.
    let said = format!("{}{}", ran.out, ran.err);
    assert_eq!(said.matches("GET / answered 500, waiting (").count(), 1);
    let events = bed.run(&["events", "shop-prod", "--json"]).ok().json();
    let waits = items(&events)
        .iter()
        .filter(|event| event["code"] == "instance-waits" && event["instance"].is_string())
        .count();
    assert!(waits >= 1, "{events:#}");
}

#[test]
fn a_release_that_ends_every_second_never_gets_traffic() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 3)
        .procfile("web: ./testapp broken --lives 1000\n");
    set(&bed, "beanpole:instance", "MinUptime", "5");
    refused(&bed, &app)
        .says("exit code 9")
        .says("the database went away, giving up")
        .says("i-");
}

#[test]
fn a_release_that_ends_after_its_first_batch_is_taken_back() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 3)
        .procfile("web: ./testapp broken --lives 5000\n");
    // Long enough for the first batch, too short for two of them.
    set(&bed, "beanpole:instance", "MinUptime", "3");
    bed.deploy_with(&app, "shop-prod", "broken", "--batch 1")
        .exits(1)
        .says("ended with exit code 9 after it had passed its checks")
        .says("the database went away, giving up");
    assert_live(&bed, "shop-prod", "v1", 3);
}

#[test]
fn an_app_that_never_listens_is_named() {
    let bed = Bed::up();
    let app = impatient(&bed).procfile("web: ./testapp v2 --no-listen\n");
    refused(&bed, &app).says("GET /").says("refused");
}

#[test]
fn a_build_that_fails_touches_no_instance() {
    let bed = Bed::up();
    let app = impatient(&bed).procfile("web: ./testapp v2\n").file(
        "package.json",
        br#"{"name": "shop", "version": "1.0.0", "scripts": {"preinstall": "echo no such compiler >&2; exit 9", "start": "node server.js"}}"#,
    );
    std::fs::remove_file(app.dir.join("Procfile")).expect("it is there");
    refused(&bed, &app).says("no such compiler");
}

#[test]
fn without_auto_rollback_the_failed_batch_stays() {
    let bed = Bed::up();
    let app = impatient(&bed).procfile("web: ./testapp v2 --exit 7\n");
    bed.deploy_with(&app, "shop-prod", "broken", "--batch 1 --no-auto-rollback")
        .exits(1);
    let status = bed.status("shop-prod");
    let old = items(&status["instances"])
        .iter()
        .filter(|one| one["version"] == "v1")
        .count();
    assert_eq!(old, 2, "{status:#}");
    assert_eq!(
        status["version"], "v1",
        "the live version is the last good one"
    );
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--version", "v1"])
        .ok();
    assert_live(&bed, "shop-prod", "v1", 3);
}

#[test]
fn a_limit_that_no_host_has_the_memory_for_changes_nothing() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    bed.run(&["config", "shop-prod", "--set", "MemoryMax=4194304"])
        .exits(1)
        .says("`MemoryMax` asks for 4194304 MiB, and the largest host has");
    assert_live(&bed, "shop-prod", "v1", 1);
    assert_eq!(bed.status("shop-prod")["release"], 1);
}

/// The process of each instance of `version`.
fn processes(bed: &Bed, version: &str) -> Vec<Value> {
    let status = bed.status("shop-prod");
    let of_it = items(&status["instances"]).iter();
    let of_it = of_it.filter(|one| one["version"] == version);
    of_it
        .map(|one| one["processes"][0]["pid"].clone())
        .collect()
}

/// One of three instances is left on a release that fails, and that has a property of its own.
fn left_for_a_look(bed: &Bed) -> App {
    let app = impatient(bed)
        .procfile("web: ./testapp v2 --exit 7\n")
        .file("deploy.toml", b"[env]\nCOLOUR = \"red\"\n");
    bed.deploy_with(&app, "shop-prod", "broken", "--batch 1 --no-auto-rollback")
        .exits(1);
    app
}

#[test]
fn a_rollback_takes_back_what_a_failed_deployment_left_and_touches_nothing_else() {
    let bed = Bed::up();
    left_for_a_look(&bed);
    let kept = processes(&bed, "v1");
    assert_eq!(kept.len(), 2, "{kept:?}");
    let load = bed.load("shop-prod");
    bed.run(&["rollback", "shop-prod", "--plan"])
        .ok()
        .says("back to release 1 (v1)");
    bed.run(&["rollback", "shop-prod"])
        .ok()
        .says("back to release 1 (v1)");
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v1", 3);
    assert_eq!(bed.status("shop-prod")["release"], 1);
    let now = processes(&bed, "v1");
    assert!(kept.iter().all(|one| now.contains(one)), "{kept:?} {now:?}");
    let settings = bed.run(&["printenv", "shop-prod"]).ok();
    assert!(!settings.out.contains("COLOUR"), "{settings:?}");
    bed.run(&["rollback", "shop-prod"])
        .exits(1)
        .says("was live before this one");
}

#[test]
fn what_was_left_by_a_failed_deployment_leaves_no_settings_behind() {
    let bed = Bed::up();
    let app = left_for_a_look(&bed);
    // What is left has its own; those in force are the live release's at once.
    let settings = bed.run(&["printenv", "shop-prod"]).ok();
    assert_eq!(settings.out, "", "{settings:?}");
    bed.deploy_with(&app, "shop-prod", "again", "--batch 1")
        .exits(1);
    assert_live(&bed, "shop-prod", "v1", 3);
    bed.deploy_with(
        &app,
        "shop-prod",
        "and-again",
        "--batch 1 --no-auto-rollback",
    )
    .exits(1);
    bed.run(&["setenv", "shop-prod", "SIZE=3"]).ok();
    assert_live(&bed, "shop-prod", "v1", 3);
    let settings = bed.run(&["printenv", "shop-prod"]).ok();
    assert_eq!(settings.out.trim(), "SIZE=3", "{settings:?}");
}

/// What it left serves nothing, and must not be counted on.
#[test]
fn what_was_left_by_a_failed_deployment_takes_no_part_in_keeping_the_service_up() {
    for instances in [1, 2] {
        let bed = Bed::up();
        let app = impatient_with(&bed, instances);
        let command = "aws:elasticbeanstalk:command";
        set(&bed, command, "BatchSizeType", "Fixed");
        let load = bed.load("shop-prod");
        let fails = |label: &str| {
            let broken = bed.app("shop").procfile("web: ./testapp v0 --exit 7\n");
            let how = "--policy immutable --no-auto-rollback";
            bed.deploy_with(&broken, "shop-prod", label, how)
                .exits(1)
                .says("`beanpole rollback shop-prod` takes back what is left of it");
        };
        fails("broken");
        // Two of three, of which one serves nothing.
        set(&bed, command, "BatchSize", "2");
        bed.run(&["restart", "shop-prod"]).ok();
        set(&bed, command, "BatchSize", "1");
        bed.run(&["setenv", "shop-prod", "COLOUR=red"]).ok();
        assert_live(&bed, "shop-prod", "v1", instances as usize);
        fails("broken-again");
        let app = app.version("v2");
        bed.deploy_with(&app, "shop-prod", "v2", "--policy rolling")
            .ok();
        assert_live(&bed, "shop-prod", "v2", instances as usize);
        assert_none_failed(&load.stop());
    }
}

#[test]
fn a_first_release_that_fails_leaves_nothing_live_and_the_next_one_works_at_once() {
    let bed = Bed::up();
    let app = bed.app("shop").procfile("web: ./testapp v1 --exit 7\n");
    bed.run_in(&app.dir, &["create", "shop-prod", "--instances", "2"])
        .ok();
    bed.deploy(&app, "shop-prod", "broken")
        .exits(1)
        .says("cannot find the database, giving up")
        .says("There is no release to go back to");
    let status = bed.status("shop-prod");
    assert_eq!(status["status"], "Ready", "{status:#}");
    assert_eq!(status["health"], "Red", "{status:#}");
    assert!(status["release"].is_null(), "{status:#}");
    assert_eq!(status["failed"]["version"], "broken", "{status:#}");
    let cause = status["causes"][0].as_str().unwrap_or_default();
    assert!(
        cause.starts_with("No release is live: release 1 (broken) failed.")
            && cause.contains("exit code 7"),
        "{cause}"
    );
    assert_eq!(bed.get("shop-prod", "/").status, 503);
    bed.run(&["rollback", "shop-prod"])
        .exits(1)
        .says("was ever live")
        .says("beanpole deploy shop-prod");
    bed.run(&["restart", "shop-prod"])
        .exits(1)
        .says("none was deployed with success");
    let app = app.version("v2");
    let ran = bed.deploy(&app, "shop-prod", "v2").ok();
    assert!(
        ran.took < seconds(20),
        "it waited for what was dead: {ran:?}"
    );
    assert_live(&bed, "shop-prod", "v2", 2);
    assert!(bed.status("shop-prod")["failed"].is_null());
}

/// Answers 200 on a port as soon as it is free, until it is dropped.
struct Stranger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stranger {
    fn waits_for(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut own: Option<TcpListener> = None;
            while !told.load(Ordering::Relaxed) {
                if own.is_none() {
                    own = TcpListener::bind(("127.0.0.1", port)).ok();
                    if let Some(listener) = &own {
                        listener.set_nonblocking(true).expect("non-blocking");
                    }
                }
                match own.as_ref().map(TcpListener::accept) {
                    Some(Ok((mut stream, _))) => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    }
                    _ => std::thread::park_timeout(seconds(1) / 1_000),
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn port_of_the_first(bed: &Bed) -> u16 {
    let status = bed.status("shop-prod");
    let address = status["instances"][0]["address"].as_str();
    let port = address.and_then(|address| address.rsplit(':').next()?.parse().ok());
    port.unwrap_or_else(|| panic!("it has an address: {status:#}"))
}

/// The only instance leaves its port before its successor takes it, instead of serving until then.
fn in_place(bed: &Bed) {
    bed.run(&["config", "shop-prod", "--set", "Overlap=false"])
        .ok();
}

#[test]
fn a_port_that_turns_out_taken_is_exchanged_for_another() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1).version("v2");
    in_place(&bed);
    let port = port_of_the_first(&bed);
    let _stranger = Stranger::waits_for(port);
    bed.deploy(&app, "shop-prod", "v2")
        .ok()
        .says(&format!("Port {port} is taken by another program: "));
    assert_ne!(port_of_the_first(&bed), port);
    assert_live(&bed, "shop-prod", "v2", 1);
    assert!(bed.get("shop-prod", "/").text().starts_with("v2 "));
}

#[test]
fn another_programs_answers_on_its_port_do_not_make_an_app_healthy() {
    let bed = Bed::up();
    let app = impatient_with(&bed, 1);
    in_place(&bed);
    let port = port_of_the_first(&bed);
    let stranger = Stranger::waits_for(port);
    let app = app.procfile("web: ./testapp v2 --no-listen\n");
    bed.deploy_with(&app, "shop-prod", "v2", "--no-auto-rollback")
        .exits(1)
        .says(&format!("Port {port} is taken by another program: "));
    drop(stranger);
    bed.run_in(&app.dir, &["deploy", "shop-prod", "--version", "v1"])
        .ok();
    assert_live(&bed, "shop-prod", "v1", 1);
}

#[test]
fn a_program_that_takes_a_dead_instances_port_gets_no_traffic() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    let port = port_of_the_first(&bed);
    let _stranger = Stranger::waits_for(port);
    let _ = beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/exit");
    until_true("the instance has another port", seconds(30), || {
        port_of_the_first(&bed) != port
    });
    until_true("it is well there", seconds(30), || {
        let status = bed.status("shop-prod");
        status["health"] == "Green" && status["status"] == "Ready"
    });
    bed.run(&["events", "shop-prod"])
        .ok()
        .says(&format!("Port {port} is taken by another program: "))
        .says("leaves service");
    for _ in 0..50 {
        assert!(!bed.get("shop-prod", "/").text().is_empty());
    }
}

#[test]
fn labels_decide_which_hosts_get_instances() {
    let bed = Bed::up();
    let app = bed.app("shop").file(
        "deploy.toml",
        b"application = \"shop\"\nhost-labels = { disk = \"ssd\" }\n",
    );
    bed.run_in(&app.dir, &["create", "shop-prod", "--instances", "2"])
        .ok();
    bed.deploy(&app, "shop-prod", "v1")
        .exits(1)
        .says("local lacks the label disk=ssd")
        .says("beanpole host label");
    bed.run(&["host", "label", "local", "disk ssd"]).exits(2);
    bed.run(&["host", "label", "local", "disk=ssd", "zone=a"])
        .ok()
        .says("disk=ssd zone=a");
    // What was refused has left no version behind.
    bed.deploy(&app, "shop-prod", "v1").ok();
    assert_live(&bed, "shop-prod", "v1", 2);
    bed.run(&["config", "shop-prod", "--set", "HostLabels=zone=b"])
        .exits(1)
        .says("lacks the label zone=b");
    // Nowhere else to go: they stay.
    bed.run(&["host", "label", "local", "--remove", "disk"])
        .ok();
    until_true("it is said that they have no place", seconds(20), || {
        bed.run(&["events", "shop-prod"])
            .ok()
            .out
            .contains("Instances should be replaced, but no host can take 2 more instances")
    });
    assert_live(&bed, "shop-prod", "v1", 2);
}

#[test]
fn an_app_that_dies_later_is_started_again_and_its_host_says_so() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    let before = bed.get("shop-prod", "/").text();
    let _ = beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/exit");
    until_true("it answers again, as another process", seconds(20), || {
        beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/")
            .is_ok_and(|answer| answer.status == 200 && answer.text() != before)
    });
    let status = bed.status("shop-prod");
    let restarts = &status["instances"][0]["processes"][0]["restarts"];
    assert!(restarts.as_u64() >= Some(1), "{status:#}");
    until_true("an event tells of it", seconds(20), || {
        let events = bed.run(&["events", "shop-prod"]).ok().out;
        events.contains("Process `web` ended") && events.contains("is started again (once so far)")
    });
}

#[test]
fn an_instance_that_is_started_again_gets_no_requests_before_it_listens() {
    let bed = Bed::up();
    let app = bed.app("shop");
    // Its second start takes its time before it listens.
    let app =
        app.procfile("web: test -e $HOME/once && sleep 4; touch $HOME/once; exec ./testapp v1\n");
    bed.run_in(&app.dir, &["create", "shop-prod", "--single"])
        .ok();
    bed.deploy(&app, "shop-prod", "v1").ok();
    assert_eq!(mode_of_the_first(&bed), "serve");
    let _ = beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/exit");
    until_true("it leaves the load balancer", seconds(3), || {
        mode_of_the_first(&bed) == "probe"
    });
    assert_eq!(bed.get("shop-prod", "/").status, 503);
    let why = &bed.status("shop-prod")["instances"][0]["health"];
    assert_eq!(why, "Unhealthy");
    until_true("it is back", seconds(20), || {
        mode_of_the_first(&bed) == "serve"
    });
    until_true("it answers", seconds(10), || {
        bed.get("shop-prod", "/").status == 200
    });
}

/// What the load balancer's table says of the only instance.
fn mode_of_the_first(bed: &Bed) -> String {
    let text = std::fs::read(bed.data().join("proxy/table.json")).expect("the proxy has a table");
    let table: serde_json::Value = serde_json::from_slice(&text).expect("the table is JSON");
    let mode = &table["pools"][0]["targets"][0]["mode"];
    mode.as_str().unwrap_or_default().to_owned()
}

/// The only instance, by a request that it does not survive.
fn ends_three_times(bed: &Bed) {
    for ends in 1..=3 {
        let _ = beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/exit");
        until_true("it was started again", seconds(30), || {
            let status = bed.status("shop-prod");
            status["instances"][0]["processes"][0]["restarts"].as_u64() >= Some(ends)
        });
        until_true("it answers", seconds(30), || {
            beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/")
                .is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
fn an_app_that_ends_again_and_again_is_a_warning_though_it_answers() {
    let bed = Bed::up();
    bed.serving("shop-prod", 1);
    ends_three_times(&bed);
    until_true("it serves with a warning", seconds(30), || {
        let status = bed.status("shop-prod");
        status["instances"][0]["health"] == "Warning" && status["health"] == "Yellow"
    });
    bed.run(&["status", "shop-prod"])
        .ok()
        .says("process `web` ended and was started again 3 times in the last 15 minutes")
        .says("by signal 9");
    bed.run(&["list"]).ok().says("1/1");
}

#[test]
fn a_rollback_passes_over_a_release_that_was_not_well() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 1).version("v2");
    bed.deploy(&app, "shop-prod", "v2").ok();
    ends_three_times(&bed);
    let app = app.version("v3");
    bed.deploy(&app, "shop-prod", "v3").ok();
    bed.run(&["rollback", "shop-prod"]).ok();
    assert_live(&bed, "shop-prod", "v1", 1);
    let live = bed.status("shop-prod")["release"].to_string();
    bed.run(&["rollback", "shop-prod", "--to", &live])
        .exits(1)
        .says("there is nothing to go back from");
}

#[test]
fn no_healthy_target_and_unknown_hosts_get_a_page_that_says_so() {
    let bed = Bed::up();
    let app = bed.app("shop");
    bed.run_in(&app.dir, &["create", "shop-prod", "--single"])
        .ok();
    let empty = bed.get("shop-prod", "/");
    assert_eq!(empty.status, 503, "{}", empty.text());
    assert!(empty.header("retry-after").is_some());
    assert_eq!(bed.get("nobody-here", "/").status, 404);
}
