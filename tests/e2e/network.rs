//! Network environments: connections to a TCP port.

use beanpole_tests::bed::Bed;
use beanpole_tests::http::get;
use beanpole_tests::ports;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn a_rolling_deployment_of_a_network_environment_loses_no_connection() {
    let bed = Bed::up();
    let reserved = ports::reserve();
    let port = reserved.address.port().to_string();
    let app = bed.app("shop");
    let arguments = [
        "create",
        "shop-net",
        "--instances",
        "2",
        "--load-balancer",
        "network",
        "--listen",
        &port,
        "--option",
        "beanpole:instance:MinUptime=1",
    ];
    bed.run_in(&app.dir, &arguments).ok();
    bed.deploy(&app, "shop-net", "v1").ok();
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    // Each is a connection of its own.
                    let answer = get(reserved.address, "whatever", "/").expect("carried");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let deployed = bed.deploy(&app, "shop-net", "v2");
        over.store(true, Ordering::SeqCst);
        deployed.ok();
    });
    assert!(asked.load(Ordering::SeqCst) > 20);
    let status = bed.status("shop-net");
    assert_eq!(status["listeners"][0]["port"], reserved.address.port());
    assert_eq!(status["health"], "Green", "{status}");

    bed.run(&[
        "config",
        "shop-net",
        "--set",
        "LoadBalancerType=application",
    ])
    .exits(1)
    .says("beanpole swap shop-net");
}
