//! What an instance has to pass when it starts, and operations that wait for others.

use crate::changes::{assert_live, assert_none_failed};
use beanpole_tests::bed::Bed;
use beanpole_tests::wait::{seconds, until_true};

const HOOK: &str = ".platform/hooks/postdeploy/1_warm.sh";

#[test]
fn an_instance_serves_when_it_is_ready_and_its_hooks_ran_and_a_bad_one_goes_back() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2);
    let ready = "ReadyCommand=test -n \"$PORT\" && ! cat not-ready";
    bed.run(&[
        "config",
        "shop-prod",
        "--set",
        ready,
        "--set",
        "StartTimeout=5",
    ])
    .ok();
    let load = bed.load("shop-prod");
    let app = app
        .version("v2")
        .file(HOOK, b"#!/bin/sh\r\necho warmed $BEANPOLE_INSTANCE\r\n");
    bed.deploy(&app, "shop-prod", "v2").ok();
    assert_live(&bed, "shop-prod", "v2", 2);
    bed.run(&["logs", "shop-prod"]).ok().says("warmed i-");
    let app = app
        .version("v3")
        .file(HOOK, b"#!/bin/sh\necho no cache; exit 3\n");
    bed.deploy(&app, "shop-prod", "v3")
        .exits(1)
        .says("1_warm.sh` exited with 3")
        .says("no cache");
    let app = app
        .version("v4")
        .file(HOOK, b"#!/bin/sh\n")
        .file("not-ready", b"no such table\n");
    bed.deploy(&app, "shop-prod", "v4")
        .exits(1)
        .says("exited with 1 (no such table)");
    assert_none_failed(&load.stop());
    assert_live(&bed, "shop-prod", "v2", 2);
}

#[test]
fn what_is_queued_begins_in_its_turn_whatever_becomes_of_the_controller() {
    let bed = Bed::up();
    let app = bed
        .serving("shop-prod", 2)
        .version("v2")
        .file(HOOK, b"#!/bin/sh\nsleep 1\n");
    bed.deploy_with(&app, "shop-prod", "v2", "--detach").ok();
    bed.run(&["deploy", "shop-prod", "--version", "v1"])
        .exits(1)
        .says("--queue");
    let scaled = ["scale", "shop-prod", "1", "--queue", "--detach"];
    bed.run(&scaled).ok().says("is queued");
    let queued = [
        "deploy",
        "shop-prod",
        "--version",
        "v1",
        "--queue",
        "--detach",
    ];
    bed.run(&queued).ok().says("It begins when the deploy");
    bed.kill_and_await_successor("controller");
    bed.run(&["status", "shop-prod"]).ok().says("deploy of v1");
    until_true("the queued deployment is live", seconds(60), || {
        let status = bed.status("shop-prod");
        status["release"] == 3 && status["status"] == "Ready"
    });
    assert_live(&bed, "shop-prod", "v1", 2);
    bed.run(&["events", "shop-prod"])
        .ok()
        .says("a later deploy of v1 took its place");
}
