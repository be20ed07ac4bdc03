//! Connections that outlast the instances' time.

use crate::changes::assert_live;
use beanpole_tests::bed::Bed;
use beanpole_tests::mixed::Socket;
use beanpole_tests::wait::{seconds, until, until_true};
use serde_json::Value;

fn lingering(bed: &Bed) -> Vec<Value> {
    let status = bed.status("shop-prod");
    let all = status["lingering"].as_array();
    all.unwrap_or_else(|| panic!("nothing is said of what lingers: {status:#}"))
        .clone()
}

fn open(bed: &Bed) -> Socket {
    let mut socket =
        Socket::open(bed.http, &Bed::host("shop-prod")).expect("a WebSocket is opened");
    assert!(socket.round(1).expect("a frame comes back"));
    socket
}

#[test]
fn a_websocket_outlasts_a_deployment_that_does_not_wait_for_it_until_its_limit() {
    let bed = Bed::up();
    let app = bed.serving("shop-prod", 2).version("v2");
    let set = |limit: &str| {
        let limit = format!("LingerLimit={limit}");
        let arguments = ["config", "shop-prod", "--set", "DeregistrationDelay=1"];
        bed.run(&[&arguments[..], &["--set", &limit]].concat()).ok();
    };
    set("3600");
    let mut socket = open(&bed);
    bed.deploy_with(&app, "shop-prod", "v2", "--policy rolling --batch 1")
        .ok();
    assert_live(&bed, "shop-prod", "v2", 2);
    assert!(socket.round(2).expect("a frame comes back"), "it was cut");
    let listed = lingering(&bed);
    assert_eq!(listed.len(), 1, "only where something is open: {listed:#?}");
    assert_eq!(
        (&listed[0]["version"], &listed[0]["open"]),
        (&"v1".into(), &1.into())
    );
    bed.run(&["status", "shop-prod"]).ok().says("LINGERS");
    drop(socket);
    until_true("it goes with its last connection", seconds(20), || {
        lingering(&bed).is_empty()
    });

    set("4");
    let mut socket = open(&bed);
    bed.run(&["restart", "shop-prod"]).ok();
    until("the limit cuts it", seconds(20), || {
        let open = socket.round(3).expect("a frame, or the end");
        (!open).then_some(())
    });
    bed.run(&["events", "shop-prod"])
        .ok()
        .says("and may not for longer. 1 open request is cut.");
    assert_live(&bed, "shop-prod", "v2", 2);
}
