//! SIGKILL for every part in turn, under load. What has its own process tree must not notice.

use crate::changes::{assert_live, assert_none_failed, items};
use beanpole_tests::bed::{Bed, signal};
use beanpole_tests::load::Load;
use beanpole_tests::wait::{pause, seconds, until_true};
use rustix::process::Signal;

/// Begins a deployment that takes some seconds, under load.
fn slow_deployment(bed: &Bed) -> Load {
    let app = bed
        .serving("shop-prod", 3)
        .procfile("web: ./testapp v2 --start-delay 1500\n");
    let load = bed.load("shop-prod");
    bed.deploy_with(&app, "shop-prod", "v2", "--batch 1 --detach")
        .ok();
    load
}

#[test]
fn a_killed_agent_costs_no_request() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let before = bed.get("shop-prod", "/").text();
    let load = bed.load("shop-prod");
    bed.kill_and_await_successor("agent");
    until_true("the agent knows its instances again", seconds(20), || {
        bed.status("shop-prod")["health"] == "Green"
    });
    assert_none_failed(&load.stop());
    let pids: Vec<String> = (0..4).map(|_| bed.get("shop-prod", "/").text()).collect();
    assert!(pids.contains(&before), "the processes are the same");
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_live(&bed, "shop-prod", "v2", 2);
}

#[test]
fn a_controller_killed_in_mid_deployment_goes_on_where_it_was() {
    let bed = Bed::up();
    let load = slow_deployment(&bed);
    for _ in 0..3 {
        bed.kill_and_await_successor("controller");
    }
    until_true("the deployment ends", seconds(90), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 3);
}

#[test]
fn a_controller_that_stands_still_holds_no_host_for_lost() {
    let bed = Bed::up();
    let load = slow_deployment(&bed);
    let controller = bed.daemon("controller");
    signal(controller, Signal::STOP);
    // A host that was not heard of for 30 s is lost.
    pause(seconds(32));
    signal(controller, Signal::CONT);
    until_true("the deployment ends", seconds(60), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v2", 3);
    assert_none_failed(&load.stop());
}

#[test]
fn a_killed_proxy_is_back_with_its_table_before_the_controller_says_anything() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    bed.kill_and_await_successor("proxy");
    until_true("it serves again", seconds(10), || {
        beanpole_tests::http::get(bed.http, "shop-prod.localhost", "/")
            .is_ok_and(|answer| answer.status == 200)
    });
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_live(&bed, "shop-prod", "v2", 2);
}

#[test]
fn a_load_balancer_is_reloaded_in_mid_deployment_and_killed_without_being_missed() {
    let bed = Bed::up();
    let load = slow_deployment(&bed);
    let keeper = bed.daemon("proxy");
    let socket = bed.data().join("proxy/proxy.sock");
    let socket = socket.to_str().expect("plain text");
    for _ in 0..3 {
        bed.run(&["proxy", "reload", "--socket", socket])
            .ok()
            .says("serves");
    }
    until_true("the deployment ends", seconds(90), || {
        bed.status("shop-prod")["status"] == "Ready"
    });
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 3);
    for serving in bed.daemons("proxy-process") {
        signal(serving, Signal::KILL);
    }
    let killed = std::time::Instant::now();
    assert_eq!(bed.get("shop-prod", "/").status, 200);
    assert!(killed.elapsed() < seconds(1), "{:?}", killed.elapsed());
    assert_eq!(bed.daemon("proxy"), keeper, "it is the same process");
    bed.run(&["proxy", "reload", "--socket", "/nowhere/proxy.sock"])
        .exits(1)
        .says("--socket SOCKET");
}

/// It goes on with what is in flight while its successor serves, and takes nothing from it at its end.
#[test]
fn a_proxy_that_outlives_its_successors_start_leaves_it_reachable() {
    let mut bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let before = bed.daemon("proxy");
    let http = bed.http;
    let slow = std::thread::spawn(move || {
        beanpole_tests::http::get(http, "shop-prod.localhost", "/slow?8000")
    });
    until_true("the request is under way", seconds(5), || {
        let status = bed.status("shop-prod");
        let mut instances = items(&status["instances"]).iter();
        instances.any(|one| one["in_flight"] == 1)
    });
    signal(bed.daemon("up"), Signal::KILL);
    until_true("its parent is gone", seconds(5), || {
        bed.daemons("up").is_empty()
    });
    bed.start();
    assert!(bed.daemons("proxy").contains(&before), "it still drains");
    let answer = slow.join().expect("no panic").expect("an answer");
    assert_eq!(answer.status, 200);
    until_true("the one before is gone", seconds(10), || {
        !bed.daemons("proxy").contains(&before)
    });
    bed.kill_and_await_successor("controller");
    until_true("the proxy is heard of", seconds(10), || {
        bed.status("shop-prod")["health"] == "Green"
    });
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_live(&bed, "shop-prod", "v2", 2);
}

#[test]
fn a_killed_shim_is_replaced() {
    let bed = Bed::up();
    bed.serving("shop-prod", 2);
    let shims = bed.daemons("shim");
    assert!(shims.len() >= 2, "every instance has a shim");
    signal(shims[0], Signal::KILL);
    until_true("a new shim runs its instance", seconds(30), || {
        let now = bed.daemons("shim");
        now.len() >= 2 && !now.contains(&shims[0])
    });
    assert_live(&bed, "shop-prod", "v1", 2);
}

#[test]
fn all_daemons_killed_at_once_leave_the_applications_alone() {
    let mut bed = Bed::up();
    bed.serving("shop-prod", 2);
    let before: Vec<u32> = bed.daemons("shim");
    for part in ["up", "controller", "agent", "proxy"] {
        for pid in bed.daemons(part) {
            signal(pid, Signal::KILL);
        }
    }
    until_true("they are gone", seconds(5), || {
        ["up", "controller", "agent", "proxy"]
            .iter()
            .all(|part| bed.daemons(part).is_empty())
    });
    bed.start();
    assert_live(&bed, "shop-prod", "v1", 2);
    assert_eq!(bed.daemons("shim"), before, "the same shims, never stopped");
    assert!(bed.get("shop-prod", "/").text().starts_with("v1 "));
}
